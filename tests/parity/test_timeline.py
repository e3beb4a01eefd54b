"""Timeline's per-code decay and within-visit attention against loops, and what fades for whom."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from batches import SPEC, random_batch, visits_of, with_visits
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.timeline import Timeline
from parity.naive import affine, lstm_states, softmax

ATTENTION_DIM = 3


@pytest.fixture
def model() -> Timeline:
    torch.manual_seed(0)
    built = Timeline(SPEC, embed_dim=8, attention_dim=ATTENTION_DIM, hidden_dim=6).double().eval()
    torch.nn.init.normal_(built.theta.weight, mean=-0.1, std=0.1)
    torch.nn.init.normal_(built.mu.weight)
    return built


@pytest.fixture
def batch() -> Batch:
    return random_batch(lengths=[5, 1, 4]).map(lambda t: t.double() if t.is_floating_point() else t)


def naive_visit(model: Timeline, codes: list[int], day: float) -> Tensor:
    table = model.codes.weight
    e = torch.zeros(8, dtype=torch.float64)
    for c in codes:
        q = affine(model.query, table[c])
        alpha = softmax([q @ affine(model.key, table[i]) / math.sqrt(ATTENTION_DIM) for i in codes])
        a = torch.zeros(8, dtype=torch.float64)
        for alpha_i, i in zip(alpha, codes):
            a = a + alpha_i * table[i]
        e = e + torch.sigmoid(model.theta.weight[c] * day / 30 + model.mu.weight[c]) * a
    return e


def naive_timeline(model: Timeline, visits: list[list[int]], days: list[float]) -> Tensor:
    e = [naive_visit(model, codes, day) for codes, day in zip(visits, days)]
    ends = [lstm_states(model.forward_rnn, e)[-1], lstm_states(model.backward_rnn, e[::-1])[-1]]
    return affine(model.head, torch.cat(ends))


def at_days(batch: Batch, days: Tensor) -> Batch:
    return with_visits(batch, replace(visits_of(batch), days_before_last=days))


def test_logits_equal_the_equations(model: Timeline, batch: Batch) -> None:
    v = visits_of(batch)
    expected = []
    for codes, days, mask in zip(v.codes, v.days_before_last, v.mask):
        expected.append(
            naive_timeline(model, [[int(c) for c in row if c > 0] for row in codes[mask]], days[mask].tolist())
        )
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_a_codes_pace_moves_only_the_patients_who_have_that_code(model: Timeline, batch: Batch) -> None:
    v = visits_of(batch)
    before = model(batch)
    earlier = v.codes * (v.days_before_last > 0)[..., None]
    seen = set()
    for code in range(1, SPEC.num_codes):
        original = model.theta.weight.detach().clone()
        with torch.no_grad():
            model.theta.weight[code] -= 0.05
        moved = ((model(batch) - before).abs() > 1e-12).any(1)
        with torch.no_grad():
            model.theta.weight.copy_(original)
        has_it = (earlier == code).flatten(1).any(1)
        assert moved.tolist() == has_it.tolist()
        seen |= set(has_it.tolist())
    assert seen == {True, False}


def test_without_decay_time_does_not_matter_and_with_it_it_does(model: Timeline, batch: Batch) -> None:
    later = at_days(batch, visits_of(batch).days_before_last * 1.5)
    assert ((model(later) - model(batch)).abs() > 1e-6).any()
    torch.nn.init.zeros_(model.theta.weight)
    assert torch.equal(model(later), model(batch))


def test_decay_is_a_patients_reading_of_the_progression_functions_and_0_at_padding(
    model: Timeline, batch: Batch
) -> None:
    v = visits_of(batch)
    decay = model.decay(v)
    curves = model.progression(v.days_before_last.flatten()).unflatten(1, v.mask.shape)  # N B V
    expected = torch.einsum("nbv,bvcn->bvc", curves, torch.nn.functional.one_hot(v.codes, SPEC.num_codes).double())
    torch.testing.assert_close(decay, expected * (v.codes > 0))
    assert (decay[v.codes == 0] == 0).all()


def test_fresh_codes_all_fade_alike_to_less_than_half_in_a_year() -> None:
    curves = Timeline(SPEC, embed_dim=8, attention_dim=3, hidden_dim=6).progression(torch.tensor([0.0, 365.0, 3650.0]))
    assert (curves == curves[0]).all()
    torch.testing.assert_close(curves[0, 0], torch.tensor(1.0).sigmoid())
    assert (curves[:, 1] < 0.5).all()
    assert (curves[:, 2] < 1e-4).all()


def test_both_directions_read_every_visit(model: Timeline, batch: Batch) -> None:
    v = visits_of(batch)
    e = model.embed(v)
    h = model.encode(e, v)
    for changed in range(4):
        other = e.clone()
        other[0, changed] += 1
        moved = model.encode(other, v)[0] != h[0]
        assert moved[-1, :6].any()
        assert moved[0, 6:].any()


def test_a_unit_of_no_days_is_refused() -> None:
    with pytest.raises(InputError, match="expected a number of days > 0, found 0"):
        Timeline(SPEC, days_per_unit=0.0)
