from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from batches import SPEC
from ehrlab.augment.diffusion import SYNTHESES, Diffusion
from ehrlab.core.errors import InputError
from ehrlab.core.spec import DataSpec
from ehrlab.nn.denoiser import ResidualMLP

E, D = 8, 6
MASK = torch.arange(5) < torch.tensor([5, 3, 1])[:, None]
LABELS = torch.tensor([[1.0], [0.0], [1.0]])


def inputs() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(3, 5, E, generator=generator), torch.randn(3, 5, D, generator=generator)


def diffusion(
    synthesis: str, condition: str = "attention", betas: tuple[float, float] = (1e-4, 0.2), min_signal: float = 0.5
) -> Diffusion:
    torch.manual_seed(0)

    def denoiser(spec: DataSpec, embed_dim: int) -> ResidualMLP:
        return ResidualMLP(spec, embed_dim, width=12, num_blocks=1)

    first, last = betas
    return Diffusion(SPEC, E, D, denoiser, 4, condition, synthesis, 30, first, last, min_signal)


class Stub(nn.Module):
    """A denoiser that answers what the test says."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.answer = answer

    def forward(self, x: Tensor, n: Tensor) -> Tensor:
        return self.answer(x, n)


def oracle(model: Diffusion, clean: Tensor, error: float = 0.0) -> Stub:
    """Knows the clean visits: eps = (x_n - sqrt(abar_n) x_0) / sqrt(1 - abar_n), plus `error` everywhere."""

    def answer(x: Tensor, n: Tensor) -> Tensor:
        signal, noise = model.schedule.signal[n][:, None, None], model.schedule.noise[n][:, None, None]
        return (x - signal * clean) / noise + error

    return Stub(answer)


@pytest.mark.parametrize("synthesis", SYNTHESES)
def test_perfect_denoiser_gives_back_the_visits_and_a_loss_of_zero(synthesis: str) -> None:
    e, h_prev = inputs()
    model = diffusion(synthesis, condition="visit_only")
    model.denoiser = oracle(model, e)
    assert model.loss(e, h_prev, MASK, LABELS)["loss"] < 1e-9
    sample = model.sample(e, h_prev, MASK, LABELS)
    torch.testing.assert_close(sample[MASK], e[MASK], rtol=1e-3, atol=1e-3)


def test_denoiser_that_says_zero_has_unit_loss() -> None:
    e, h_prev = inputs()
    model = diffusion("one_step")
    model.denoiser = Stub(lambda x, n: torch.zeros_like(x))
    losses = torch.stack([model.loss(e, h_prev, MASK, LABELS)["loss"] for _ in range(200)])
    assert abs(losses.mean() - 1) < 0.05


@pytest.mark.parametrize("synthesis", SYNTHESES)
def test_loss_does_not_depend_on_the_values_at_padding(synthesis: str) -> None:
    e, h_prev = inputs()
    model = diffusion(synthesis)
    torch.manual_seed(1)
    loss = model.loss(e, h_prev, MASK, LABELS)["loss"]
    noise = 5 * torch.randn(3, 5, E) * ~MASK[..., None]
    torch.manual_seed(1)
    torch.testing.assert_close(model.loss(e + noise, h_prev, MASK, LABELS)["loss"], loss)


@pytest.mark.parametrize("synthesis", SYNTHESES)
def test_gradients_reach_visits_history_attention_and_denoiser_through_the_sample(synthesis: str) -> None:
    e, h_prev = (t.requires_grad_() for t in inputs())
    model = diffusion(synthesis)
    model.sample(e, h_prev, MASK, LABELS)[MASK].square().sum().backward()
    assert h_prev.grad is not None
    assert h_prev.grad[:, 1:].abs().max() > 0
    assert all(p.grad is not None for p in (model.attention.project.weight, model.denoiser.leave.weight))
    # From pure noise, a visit is only known through the state that follows it.
    assert (e.grad is None) == (synthesis == "ancestral")


@pytest.mark.parametrize("synthesis", SYNTHESES)
def test_without_history_the_sample_ignores_it(synthesis: str) -> None:
    e, h_prev = inputs()
    for condition, ignored in (("visit_only", True), ("equal", False), ("attention", False)):
        model = diffusion(synthesis, condition)
        torch.manual_seed(1)
        one = model.sample(e, h_prev, MASK, LABELS)
        torch.manual_seed(1)
        assert torch.equal(model.sample(e, h_prev + 1, MASK, LABELS), one) == ignored


def test_residual_sample_is_the_attended_visit_less_the_denoisers_error() -> None:
    """e' = e_hat + eps - eps_theta, as in the authors' code."""
    e, h_prev = inputs()
    model = diffusion("residual", condition="equal")
    attended = model.attention(e, h_prev)
    model.denoiser = oracle(model, attended, error=1.0)
    sample = model.sample(e, h_prev, MASK, LABELS)
    torch.testing.assert_close(sample[MASK], (attended - 1)[MASK], rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("synthesis", ["ancestral", "ancestral_from_visit", "one_step"])
def test_history_reaches_the_sample_through_the_denoiser_only(synthesis: str) -> None:
    """e_hat is what eps_theta reads; the mean of the reverse step starts from e_{k,n} itself."""
    e, h_prev = inputs()
    model = diffusion(synthesis, condition="equal")
    model.denoiser = Stub(lambda x, n: torch.zeros_like(x))
    torch.manual_seed(1)
    one = model.sample(e, h_prev, MASK, LABELS)
    torch.manual_seed(1)
    assert torch.equal(model.sample(e, h_prev + 1, MASK, LABELS), one)


def test_error_of_the_denoiser_enters_a_one_step_sample_at_most_once() -> None:
    """Its factor is sqrt((1 - abar) / abar), at most 1 where abar >= min_signal = 1/2."""
    e, h_prev = inputs()
    model = diffusion("one_step", condition="visit_only")
    model.denoiser = oracle(model, e, error=1.0)
    for _ in range(50):
        assert (model.sample(e, h_prev, MASK, LABELS) - e)[MASK].abs().max() <= 1 + 1e-4


def test_visits_that_start_later_wait_for_their_step() -> None:
    """Patients start the reverse process at their own n: with start 1, one reverse step is the one-step estimate."""
    e, h_prev = inputs()
    model = diffusion("ancestral_from_visit", condition="visit_only")
    n = torch.tensor([1, 1, 1])
    noisy = model.schedule.add_noise(e, n, torch.randn_like(e))
    expected = model.schedule.estimate_clean(noisy, n, model.denoiser(noisy * MASK[..., None], n))
    result = model._reverse(noisy, n, 7, h_prev, MASK)
    torch.testing.assert_close(result, expected, rtol=1e-4, atol=1e-4)


def test_diffusion_learns_what_the_history_tells() -> None:
    """Visits that repeat the state before them are denoised better by a model that may look at it."""
    final = {}
    for condition in ("attention", "visit_only"):
        model = diffusion("one_step", condition, betas=(0.01, 0.02))
        optimiser = torch.optim.Adam(model.parameters(), lr=1e-2)
        tail = []
        for step in range(300):
            h_prev = torch.randn(16, 5, D)
            e = 2 * torch.cat([h_prev, h_prev[..., : E - D]], dim=-1)
            loss = model.loss(e, h_prev, torch.ones(16, 5, dtype=torch.bool), torch.ones(16, 1))["loss"]
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            if step >= 250:
                tail.append(loss.item())
        final[condition] = sum(tail) / len(tail)
    assert final["attention"] < 0.8 * final["visit_only"]


def test_unknown_synthesis_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected one of .*one_step.*found 'two_step'"):
        diffusion("two_step")


def test_min_signal_that_no_step_keeps_is_refused() -> None:
    with pytest.raises(InputError, match=r"min_signal of the diffusion: expected at most .* found 1.0"):
        diffusion("one_step", min_signal=1.0)
