"""RAIM's recurrence, hour by hour and channel by channel, against its equations."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from ehrlab.models.raim import Raim
from modal_batches import DEMOGRAPHICS, FEATURES, HOURS, MODAL_SPEC
from parity.naive import affine, softmax

SAMPLES = 3


def make(num_hours: int) -> Raim:
    torch.manual_seed(0)
    assert MODAL_SPEC.stays is not None
    spec = replace(MODAL_SPEC, stays=replace(MODAL_SPEC.stays, num_hours=num_hours))
    built = Raim(spec, embed_dim=8, hidden_dim=5).double()
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return built.eval()


@pytest.fixture
def hours() -> Tensor:
    return (torch.rand(SAMPLES, HOURS, FEATURES, generator=torch.Generator().manual_seed(1)) < 0.4).double()


@pytest.fixture
def demographics() -> Tensor:
    return torch.rand(SAMPLES, DEMOGRAPHICS, generator=torch.Generator().manual_seed(2)).double()


def naive_gru(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    r_in, z_in, n_in = (cell.weight_ih @ x + cell.bias_ih).view(3, -1)
    r_h, z_h, n_h = (cell.weight_hh @ h + cell.bias_hh).view(3, -1)
    r, z = (r_in + r_h).sigmoid(), (z_in + z_h).sigmoid()
    return (1 - z) * (n_in + r * n_h).tanh() + z * h


def naive_raim(model: Raim, u: list[Tensor], demographics: Tensor) -> Tensor:
    x = [torch.relu(affine(model.embed, hour)) for hour in u]
    h = torch.zeros(5, dtype=torch.float64)
    for t in range(len(u)):
        g = [affine(model.guide, u[j]).sigmoid() if j < t else torch.ones(1, dtype=torch.float64) for j in range(t + 1)]
        of_hours, of_channels = affine(model.hour_of_state, h), affine(model.channel_of_state, h)
        alpha = softmax([torch.tanh(model.hour_of_input.weight[0] @ (g[j] * x[j]) + of_hours[j]) for j in range(t + 1)])
        energies = []
        for channel in range(8):
            total = sum(model.channel_of_input[j, 0] * g[j] * x[j][channel] for j in range(t + 1))
            energies.append(torch.tanh(total + of_channels[channel])[0])
        beta = softmax(energies)
        context = [8 * beta[c] * sum(alpha[j] * x[j][c] for j in range(t + 1)) for c in range(8)]
        h = naive_gru(model.cell, torch.stack(context), h)
    return affine(model.head, h + affine(model.demographics, demographics))


def test_logits_equal_the_equations(hours: Tensor, demographics: Tensor) -> None:
    model = make(HOURS)
    expected = [naive_raim(model, list(u), d) for u, d in zip(hours, demographics)]
    torch.testing.assert_close(model.risk(hours, demographics), torch.stack(expected))


@pytest.mark.parametrize(("num_hours", "read"), [(1, False), (2, True)])
def test_the_guide_decides_about_past_hours_and_not_about_the_present_one(
    hours: Tensor, num_hours: int, read: bool
) -> None:
    model = make(num_hours)
    before = model.encode(hours[:, :num_hours])
    with torch.no_grad():
        model.guide.bias.add_(2)
    assert torch.equal(model.encode(hours[:, :num_hours]), before) != read


def test_a_past_hour_that_the_guide_hides_is_still_part_of_what_is_attended_to(hours: Tensor) -> None:
    """As in the release: the guide has a say in the weights alone."""
    model = make(HOURS)
    nn.init.zeros_(model.guide.weight)
    nn.init.constant_(model.guide.bias, -1e9)
    other = hours.clone()
    other[:, 0] = 1 - other[:, 0]
    assert not torch.allclose(model.encode(other), model.encode(hours))


def test_equal_weights_of_channels_leave_the_hour_as_it_is(hours: Tensor) -> None:
    model, first = make(1), hours[:, :1]
    for parameter in (model.channel_of_input, model.channel_of_state.weight, model.channel_of_state.bias):
        nn.init.zeros_(parameter)
    expected = model.cell(torch.relu(model.embed(first))[:, 0], torch.zeros(SAMPLES, 5).double())
    torch.testing.assert_close(model.encode(first), expected)
