"""AdaCare's recalibrated dilated convolutions against loops, and how far back they look."""

import pytest
import torch
from torch import Tensor

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.adacare import AdaCare, CausalConv, Recalibration
from parity.naive import affine, code_sum, gru_states

DILATIONS = (1, 3)
CONV_DIM = 4


@pytest.fixture
def model() -> AdaCare:
    torch.manual_seed(0)
    return AdaCare(SPEC, embed_dim=8, hidden_dim=6, conv_dim=CONV_DIM, dilations=DILATIONS).double().eval()


@pytest.fixture
def batch() -> Batch:
    return random_batch(lengths=[5, 1, 4]).map(lambda t: t.double() if t.is_floating_point() else t)


def naive_conv(layer: CausalConv, inputs: list[Tensor], dilation: int) -> list[Tensor]:
    outputs = []
    for t in range(len(inputs)):
        y = layer.conv.bias.clone()  # type: ignore[union-attr]
        for back in range(2):
            if t - back * dilation >= 0:
                y = y + layer.conv.weight[:, :, 1 - back] @ inputs[t - back * dilation]
        outputs.append(y)
    return outputs


def naive_recalibration(layer: Recalibration, x: Tensor) -> Tensor:
    return x * torch.sigmoid(affine(layer.excite, torch.relu(affine(layer.squeeze, x))))


def naive_adacare(model: AdaCare, visits: list[list[int]]) -> Tensor:
    e = [code_sum(model.codes.table.weight, codes) for codes in visits]
    scales = [naive_conv(conv, e, dilation) for conv, dilation in zip(model.convs, DILATIONS)]  # type: ignore[arg-type]
    inputs = []
    for t, e_t in enumerate(e):
        trend = torch.relu(torch.cat([scale[t] for scale in scales]))
        recalibrated = naive_recalibration(model.recalibrate_trends, trend)
        inputs.append(torch.cat([recalibrated, naive_recalibration(model.recalibrate_visit, e_t)]))
    return affine(model.head, gru_states(model.rnn, inputs)[-1])


def test_logits_equal_the_equations(model: AdaCare, batch: Batch) -> None:
    visits = visits_of(batch)
    expected = []
    for codes, mask in zip(visits.codes, visits.mask):
        expected.append(naive_adacare(model, [[int(c) for c in row if c > 0] for row in codes[mask]]))
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_each_dilation_sets_a_visit_against_the_one_that_many_visits_back_and_no_other(model: AdaCare) -> None:
    e = torch.randn(1, 6, 8).double()
    torch.nn.init.constant_(model.convs[0].conv.bias, 10.0)  # type: ignore[arg-type, union-attr]
    torch.nn.init.constant_(model.convs[1].conv.bias, 10.0)  # type: ignore[arg-type, union-attr]  # no ReLU is shut
    for changed in range(6):
        other = e.clone()
        other[:, changed] += 1
        moved = (model.trends(other) != model.trends(e))[0].unflatten(-1, (len(DILATIONS), CONV_DIM)).any(-1)
        for scale, dilation in enumerate(DILATIONS):
            expected = [t in (changed, changed + dilation) for t in range(6)]
            assert moved[:, scale].tolist() == expected


def test_recalibration_only_ever_weakens_a_feature_and_by_what_stands_in_its_own_visit(model: AdaCare) -> None:
    e = 3 * torch.randn(2, 5, 8).double()
    gates = model.recalibrate_visit.gates(e)
    assert ((gates > 0) & (gates < 1)).all()
    assert gates.std(dim=1).min() > 0  # adaptive: the same feature has another gate in another visit
    other = e.clone()
    other[:, 2] += 1
    unchanged = torch.arange(5) != 2
    assert torch.equal(model.recalibrate_visit.gates(other)[:, unchanged], gates[:, unchanged])


def test_states_do_not_know_later_visits(model: AdaCare, batch: Batch) -> None:
    visits = visits_of(batch)
    e = model.embed(visits)
    later = e.clone()
    later[:, 3:] += 1
    assert torch.equal(model.encode(later, visits)[:, :3], model.encode(e, visits)[:, :3])


def test_a_reduction_that_leaves_no_feature_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected 1 \.\. 8, the features it squeezes, found 9"):
        AdaCare(SPEC, embed_dim=8, hidden_dim=6, reduction_input=9)
