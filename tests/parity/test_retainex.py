"""RetainEX against its equations, patient by patient, visit by visit."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.models.retainex import BiLSTM, RetainEX, interval_features
from parity.naive import affine, code_sum, lstm_states, softmax


@pytest.fixture
def model() -> RetainEX:
    torch.manual_seed(0)
    return RetainEX(SPEC, embed_dim=8, alpha_dim=7, beta_dim=5).double().eval()


@pytest.fixture
def batch() -> Batch:
    return random_batch().map(lambda t: t.double() if t.is_floating_point() else t)


def both_directions(rnn: BiLSTM, inputs: list[Tensor]) -> list[Tensor]:
    ahead, back = lstm_states(rnn.ahead, inputs), lstm_states(rnn.back, inputs[::-1])[::-1]
    return [torch.cat(pair) for pair in zip(ahead, back)]


def naive_logit(model: RetainEX, visits: list[list[int]], days: list[float]) -> Tensor:
    timed, context = [], []
    for k, codes in enumerate(visits):
        interval = 1.0 if k == 0 else max(days[k - 1] - days[k], 1.0)
        time = [interval / 180, 1 / interval, 1 / math.log(math.e + interval)]
        timed.append(
            torch.cat([code_sum(model.attention_codes.table.weight, codes), torch.tensor(time, dtype=torch.float64)])
        )
        context.append(code_sum(model.context_codes.table.weight, codes))
    alpha = softmax([affine(model.alpha_head, g)[0] for g in both_directions(model.alpha_rnn, timed)])
    beta = [torch.tanh(affine(model.beta_head, h)) for h in both_directions(model.beta_rnn, timed)]
    return affine(model.head, sum((a * b * v for a, b, v in zip(alpha, beta, context)), torch.zeros_like(context[0])))


def test_retainex_equals_its_equations(model: RetainEX, batch: Batch) -> None:
    v = visits_of(batch)
    expected = []
    for codes, days, mask in zip(v.codes, v.days_before_last, v.mask):
        real = int(mask.sum())
        visits = [[int(c) for c in visit if c > 0] for visit in codes[:real]]
        expected.append(naive_logit(model, visits, days[:real].tolist()))
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_contributions_of_all_codes_sum_to_the_logit(model: RetainEX, batch: Batch) -> None:
    contributions = model.contributions(visits_of(batch))
    assert (contributions[visits_of(batch).codes == 0] == 0).all()
    torch.testing.assert_close(contributions.sum((1, 2)) + model.head.bias, model(batch))


@pytest.mark.parametrize(("changed", "watched"), [(0, -1), (-1, 0)], ids=["last sees first", "first sees last"])
def test_the_weights_of_a_visit_know_both_its_past_and_its_future(model: RetainEX, changed: int, watched: int) -> None:
    """RETAIN's last visit is weighted before its past is read; here both ends see each other."""
    v = visits_of(random_batch(lengths=[5, 5, 5]).map(lambda t: t.double() if t.is_floating_point() else t))
    codes = v.codes.clone()
    codes[:, changed] = torch.tensor([1, 2, 0, 0])
    other = replace(v, codes=codes)
    beta, beta_other = (model.attention(model.attention_codes(x.codes), x)[1][:, watched] for x in (v, other))
    assert ((beta - beta_other).abs().amax(1) > 1e-6).all()


def test_the_first_visit_and_a_second_one_on_the_same_day_are_one_day_from_the_previous() -> None:
    features = interval_features(torch.tensor([[360.0, 360.0, 359.0, 0.0]]))
    one_day = torch.tensor([1 / 180, 1.0, 1 / math.log(math.e + 1)])
    torch.testing.assert_close(features[0, :3], one_day.expand(3, 3))
    torch.testing.assert_close(features[0, 3], torch.tensor([359 / 180, 1 / 359, 1 / math.log(math.e + 359)]))


def test_moving_a_visit_in_time_moves_the_prediction(model: RetainEX, batch: Batch) -> None:
    v = visits_of(batch)
    moved = replace(v, days_before_last=v.days_before_last * 0.1)
    several = v.mask.sum(1) > 1
    assert several.any()
    assert ((model(replace(batch, visits=moved)) - model(batch)).abs() > 1e-6)[several].all()
