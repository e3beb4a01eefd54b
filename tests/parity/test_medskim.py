"""MedSkim against its equations, patient by patient, visit by visit, and the laws of its gates."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SPEC, pad_visits, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.medskim import MedSkim, Memory, gate
from ehrlab.nn.embedding import TimeEmbedding
from parity.naive import affine, lstm_states, softmax

EMBED = 8


@pytest.fixture
def model() -> MedSkim:
    """In eval mode; some codes are dropped and some visits skipped (asserted below)."""
    torch.manual_seed(0)
    model = MedSkim(SPEC, embed_dim=EMBED, probe_dim=3, time_dim=5, dropout=0.0).double()
    nn.init.normal_(model.gate_head.weight)
    return model.eval()


@pytest.fixture
def batch() -> Batch:
    return double(random_batch(num_samples=6))


def double(batch: Batch) -> Batch:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


def patients(batch: Batch) -> list[tuple[list[list[int]], list[float]]]:
    v = visits_of(batch)
    lengths = v.mask.sum(1).tolist()
    return [
        ([[int(c) for c in visit if c > 0] for visit in codes[:n]], days[:n].tolist())
        for codes, days, n in zip(v.codes, v.days_before_last, lengths)
    ]


def total(vectors: list[Tensor]) -> Tensor:
    return sum(vectors, torch.zeros(EMBED, dtype=torch.float64))


def time(layer: TimeEmbedding, day: float) -> Tensor:
    gap = torch.tensor([day / 180], dtype=torch.float64)
    return affine(layer.project, 1 - torch.tanh(affine(layer.frequency, gap) ** 2))


def gru_step(cell: nn.GRUCell, x: Tensor, h: Tensor) -> Tensor:
    r_in, z_in, n_in = (cell.weight_ih @ x + cell.bias_ih).view(3, -1)
    r_h, z_h, n_h = (cell.weight_hh @ h + cell.bias_hh).view(3, -1)
    z = (z_in + z_h).sigmoid()
    return (1 - z) * (n_in + (r_in + r_h).sigmoid() * n_h).tanh() + z * h


def look_back(memory: Memory, h: Tensor, states: list[Tensor]) -> Tensor:
    u = memory.ask[2](torch.relu(affine(memory.ask[0], h)))
    past = [memory.store[2](torch.relu(affine(memory.store[0], state))) for state in states]
    weights = softmax([u @ m / EMBED**0.5 for m in past])
    y = memory.norm(u + total([w * m for w, m in zip(weights, past)]))
    return memory.norm_out(y + affine(memory.feed_forward[2], torch.relu(affine(memory.feed_forward[0], y))))


def naive(model: MedSkim, visits: list[list[int]], days: list[float]) -> tuple[Tensor, list[bool], list[list[bool]]]:
    """The logit, which visits were read, which of their codes were kept."""

    def kept(code: int) -> bool:
        first, _, last = model.keep
        return bool(affine(last, torch.tanh(affine(first, model.codes.weight[code])))[0] > 0)

    keep = [[kept(code) for code in codes] for codes in visits]
    x = [[torch.relu(model.codes.weight[code]) for code in codes] for codes in visits]
    t = [time(model.time, day) for day in days]
    s = [total([x_c for x_c, k in zip(x_k, keep_k) if k]) + t_k for x_k, keep_k, t_k in zip(x, keep, t)]
    r = lstm_states(model.probe, s[::-1])[::-1]
    h = torch.zeros(EMBED, dtype=torch.float64)
    states: list[Tensor] = []
    read = []
    for k in range(len(visits)):
        hidden = torch.tanh(affine(model.gate_visit, torch.cat([s[k], r[k]])) + affine(model.gate_state, h))
        read.append(bool(affine(model.gate_head, hidden)[0] > 0))
        if read[k]:
            query = torch.relu(affine(model.query_visit, r[k]) + affine(model.query_state, h))
            chosen = [x_c for x_c, keep_c in zip(x[k], keep[k]) if keep_c]
            weights = softmax([query @ x_c / EMBED**0.5 for x_c in chosen]) if chosen else []
            z = affine(model.read_codes, total([w * x_c for w, x_c in zip(weights, chosen)])) + t[k]
            h = gru_step(model.cell, z, h)
        if states:
            h = look_back(model.memory, h, states)
        states.append(h)
    scores = [
        affine(model.global_head, torch.tanh(affine(model.global_state, h_k) + time(model.global_time, day)))[0]
        for h_k, day in zip(states, days)
    ]
    return affine(model.head, total([w * h_k for w, h_k in zip(softmax(scores), states)])), read, keep


def test_medskim_equals_its_equations(model: MedSkim, batch: Batch) -> None:
    results = [naive(model, visits, days) for visits, days in patients(batch)]
    torch.testing.assert_close(model(batch), torch.stack([logit for logit, _, _ in results]))
    for decisions in (
        [r for _, read, _ in results for r in read],
        [c for _, _, keep in results for visit in keep for c in visit],
    ):
        assert True in decisions
        assert False in decisions


def test_loss_is_cross_entropy_plus_the_squared_distance_of_the_skip_rate_from_its_target(
    model: MedSkim, batch: Batch
) -> None:
    assert batch.labels is not None
    results = [naive(model, visits, days) for visits, days in patients(batch)]
    seen = [r and c for _, read, keep in results for r, visit in zip(read, keep) for c in visit]
    skip_rate = 1 - sum(seen) / len(seen)
    assert 0 < skip_rate < 1
    losses = model.loss(pad_visits(batch, extra=2))
    risk = F.binary_cross_entropy_with_logits(model(batch), batch.labels)
    assert losses["skip_rate"].item() == pytest.approx(skip_rate)
    assert losses["loss"].item() == pytest.approx(risk.item() + 0.1 * (skip_rate - 0.3) ** 2)


def test_a_dropped_code_might_as_well_not_be_in_the_record(model: MedSkim, batch: Batch) -> None:
    v = visits_of(batch)
    _, keep, _ = model.skim(v)
    without = replace(v, codes=v.codes * keep.long())
    assert (without.codes != v.codes).any()
    torch.testing.assert_close(model(replace(batch, visits=without)), model(batch))


def test_if_every_visit_is_skipped_no_code_is_read(model: MedSkim, batch: Batch) -> None:
    nn.init.constant_(model.gate_head.bias, -1e3)
    v = visits_of(batch)
    other = replace(v, codes=v.codes.flip(0).flip(2) * v.mask[..., None])
    assert (other.codes != v.codes).any()
    torch.testing.assert_close(model(replace(batch, visits=other)), model(batch))


def test_gates_are_sampled_in_training_and_fixed_at_inference(model: MedSkim, batch: Batch) -> None:
    visits = visits_of(batch)
    first, again = (model.skim(visits)[1:] for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, again))
    model.train()
    first, again = (model.skim(visits)[1:] for _ in range(2))
    assert not any(torch.equal(a, b) for a, b in zip(first, again))


@pytest.mark.parametrize("logit", [-1.5, 0.0, 0.7])
def test_a_sampled_gate_is_open_as_often_as_its_sigmoid_says(logit: float) -> None:
    torch.manual_seed(0)
    logits = torch.full((40_000,), logit, requires_grad=True)
    value = gate(logits, sample=True)
    assert set(value.unique().tolist()) == {0.0, 1.0}
    assert value.mean().item() == pytest.approx(torch.tensor(logit).sigmoid().item(), abs=0.01)  # four deviations
    value.sum().backward()
    assert logits.grad is not None
    assert (logits.grad > 0).all()


def test_dropped_codes_and_skipped_visits_still_get_a_gradient() -> None:
    """Otherwise what is once skipped stays skipped."""
    torch.manual_seed(0)
    model = MedSkim(SPEC, embed_dim=EMBED, probe_dim=3, time_dim=5, dropout=0.0, skip_weight=0.0)
    biases = [model.get_parameter(name) for name in ("keep.2.bias", "gate_head.bias")]
    for bias in biases:
        nn.init.constant_(bias, -10.0)  # closed but for one draw in 20,000
    losses = model.loss(random_batch())
    losses["loss"].backward()
    assert losses["skip_rate"] == 1
    assert all(bias.grad is not None and bias.grad.abs() > 0 for bias in biases)


def test_a_skip_target_that_is_no_share_is_refused() -> None:
    with pytest.raises(InputError, match="skip_target"):
        MedSkim(SPEC, skip_target=30.0)
