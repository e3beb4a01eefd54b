"""MaskEHR: what a fill leaves alone, the generator against loops, and REINFORCE against the finite sum it estimates."""

from dataclasses import replace
from itertools import product

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.models.maskehr import MaskEHR, Reader, reinforce
from parity.naive import affine, code_sum, gru_states


def double(batch: Batch) -> Batch:
    return batch.map(lambda t: t.double() if t.is_floating_point() else t)


@pytest.fixture
def model() -> MaskEHR:
    torch.manual_seed(0)
    return MaskEHR(SPEC, embed_dim=8, hidden_dim=3, selector_dim=4).double()


@pytest.fixture
def batch() -> Batch:
    return double(random_batch(num_samples=6, num_codes=6))


def without_positives(batch: Batch) -> Batch:
    assert batch.labels is not None
    return replace(batch, labels=torch.zeros_like(batch.labels))


# ---- generation


def test_a_fill_leaves_what_was_not_hidden_and_makes_sets_of_new_codes(model: MaskEHR, batch: Batch) -> None:
    for seed in range(20):
        torch.manual_seed(seed)
        visits, hidden, _ = model.masked(batch)
        synthetic, log_prob = model.fill(visits, hidden)
        assert torch.equal(synthetic.codes[~hidden], visits.codes[~hidden])
        assert torch.equal(synthetic.days_before_last, visits.days_before_last)
        assert torch.equal(synthetic.mask, visits.mask)
        assert len(log_prob) == hidden.any(-1).sum()
        for row in synthetic.codes.flatten(0, 1):
            found = row[row > 0].tolist()
            assert len(found) == len(set(found))
        assert (synthetic.codes[hidden] > 0).any()


def test_only_codes_of_positive_patients_are_hidden_and_as_often_as_said(model: MaskEHR) -> None:
    batch = random_batch(num_samples=400, num_codes=6)
    assert batch.labels is not None
    torch.manual_seed(0)
    visits, hidden, labels = model.masked(batch)
    assert torch.equal(labels, batch.labels[batch.labels[:, 0] > 0])
    assert torch.equal(visits.codes, visits_of(batch).codes[batch.labels[:, 0] > 0])
    assert (visits.codes[hidden] > 0).all()
    assert hidden.sum() / (visits.codes > 0).sum() == pytest.approx(0.25, abs=0.04)


def naive_states(reader: Reader, sets: list[list[list[int]]]) -> list[Tensor]:
    e = [torch.cat([code_sum(reader.codes.table.weight, codes) for codes in visit]) for visit in zip(*sets)]
    backward = gru_states(reader.backward_rnn, e[::-1])[::-1]
    return [torch.cat(pair) for pair in zip(gru_states(reader.forward_rnn, e), backward)]


def by_patient(visits: Visits, hidden: Tensor) -> list[tuple[list[list[int]], list[list[int]]]]:
    """Kept and hidden codes of each real visit."""
    return [
        (
            [[int(c) for c in row[~h] if c > 0] for row, h in zip(codes[mask], hide[mask])],
            [[int(c) for c in row[h]] for row, h in zip(codes[mask], hide[mask])],
        )
        for codes, hide, mask in zip(visits.codes, hidden, visits.mask)
    ]


def test_likelihood_of_hidden_codes_equals_the_naive_one(
    model: MaskEHR, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = model.masked(batch)
    monkeypatch.setattr(model, "masked", lambda _: drawn)
    visits, hidden, _ = drawn
    terms = []
    for kept, wanted in by_patient(visits, hidden):
        for h, left, codes in zip(naive_states(model.generator, [kept]), kept, wanted):
            logits = affine(model.generator.head, h)
            possible = [c for c in range(1, SPEC.num_codes) if c not in left]
            normaliser = sum(logits[c].exp() for c in possible)
            terms += [(logits[c].exp() / normaliser).log() for c in codes]
    assert len(terms) > 3
    assert model.likelihood_loss(batch)["loss"].item() == pytest.approx(-sum(terms).item() / len(terms))


def test_the_discriminator_is_told_which_codes_were_hidden(model: MaskEHR, batch: Batch) -> None:
    visits, hidden, _ = model.masked(batch)
    result = model.realness(visits, hidden)
    for p, (kept, wanted) in enumerate(by_patient(visits, hidden)):
        for k, h in enumerate(naive_states(model.discriminator, [kept, wanted])):
            torch.testing.assert_close(result[p, k], affine(model.discriminator.head, h)[0])
    assert not torch.allclose(model.realness(visits, torch.zeros_like(hidden))[visits.mask], result[visits.mask])


def test_maximum_likelihood_learns_what_is_missing() -> None:
    """Code 5 comes with code 6 in every record: hide one, and the other says it."""
    torch.manual_seed(0)
    batch = random_batch(num_samples=8, num_visits=3, num_codes=2)
    v = visits_of(batch)
    pair = torch.tensor([5, 6]) * v.mask[..., None]
    batch = replace(batch, visits=replace(v, codes=pair))
    model = MaskEHR(SPEC, embed_dim=8, hidden_dim=6, selector_dim=4)
    optimiser = torch.optim.Adam(model.generator.parameters(), lr=0.02)
    for _ in range(150):
        loss = model.likelihood_loss(batch)["loss"]
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    visits, hidden, _ = model.masked(batch)
    single = hidden & (hidden.sum(-1, keepdim=True) == 1)
    synthetic, _ = model.fill(visits, single)
    assert (synthetic.codes == visits.codes)[single].float().mean() > 0.8


# ---- reinforcement


@pytest.mark.parametrize("num_samples", [2, 3])
def test_expected_reinforce_gradient_is_that_of_the_expected_reward(num_samples: int) -> None:
    """Two patients, so four selections with arbitrary rewards: both sides are finite sums."""
    logit = torch.tensor([0.3, -1.2], dtype=torch.float64, requires_grad=True)
    rewards = {(0, 0): 0.0, (0, 1): 2.0, (1, 0): -1.0, (1, 1): 0.7}

    def log_prob(action: tuple[int, ...]) -> Tensor:
        return -F.binary_cross_entropy_with_logits(logit, torch.tensor(action).double(), reduction="sum")

    expected_reward = sum(log_prob(a).exp() * r for a, r in rewards.items())
    (gradient,) = torch.autograd.grad(expected_reward, logit)
    total = torch.zeros(2, dtype=torch.float64)
    for actions in product(rewards, repeat=num_samples):
        log_probs = torch.stack([log_prob(a) for a in actions])
        loss = reinforce(log_probs, torch.tensor([rewards[a] for a in actions], dtype=torch.float64))
        (of_draw,) = torch.autograd.grad(loss, logit)
        total += log_probs.sum().exp().detach() * of_draw
    torch.testing.assert_close(total, -gradient)


def test_gain_is_the_slope_of_the_real_loss_along_a_synthetic_patients_gradient(model: MaskEHR, batch: Batch) -> None:
    assert batch.labels is not None
    head, real = model.predictor.head, model.state(visits_of(batch)).detach()
    synthetic, state, _, labels = model.candidates(batch)
    h = model.state(synthetic).detach()
    torch.testing.assert_close(state[:, :6], h)

    def real_loss() -> Tensor:
        return F.binary_cross_entropy_with_logits(head(real), batch.labels)

    params, epsilon = list(head.parameters()), 1e-6
    for i, gain in enumerate(model.gain(h, labels, real, batch.labels)):
        gradients = torch.autograd.grad(F.binary_cross_entropy_with_logits(head(h[i]), labels[i]), params)
        before = real_loss().item()
        with torch.no_grad():
            for p, g in zip(params, gradients):
                p -= epsilon * g
            after = real_loss().item()
            for p, g in zip(params, gradients):
                p += epsilon * g
        assert gain.item() == pytest.approx((before - after) / epsilon, rel=1e-3, abs=1e-8)


@pytest.mark.parametrize("gain", [1.0, -1.0])
def test_the_selector_learns_to_keep_what_helps_and_to_drop_what_harms(
    model: MaskEHR, batch: Batch, monkeypatch: pytest.MonkeyPatch, gain: float
) -> None:
    monkeypatch.setattr(model, "gain", lambda h, *_: gain * torch.ones_like(h[:, 0]))
    optimiser = torch.optim.Adam(model.selector.parameters(), lr=0.05)
    for _ in range(60):
        losses = model.selector_loss(batch)
        optimiser.zero_grad()
        losses["loss"].backward()
        optimiser.step()
    assert gain * (losses["kept"].item() - 0.5) > 0.3


@pytest.mark.parametrize("kept", [True, False])
def test_the_predictor_learns_from_kept_patients_alone(model: MaskEHR, batch: Batch, kept: bool) -> None:
    torch.nn.init.constant_(model.selector[2].bias, 1e3 if kept else -1e3)
    torch.manual_seed(5)
    losses = model.loss(batch)
    torch.manual_seed(5)
    synthetic, _, filled, labels = model.candidates(batch)
    assert filled.any()
    logits = model.predictor.head(model.state(synthetic))[filled]
    expected = F.binary_cross_entropy_with_logits(logits, labels[filled]) if kept else torch.tensor(0.0).double()
    torch.testing.assert_close(losses["risk_synthetic"], expected)
    torch.testing.assert_close(losses["risk"], F.binary_cross_entropy_with_logits(model(batch), batch.labels))
    torch.testing.assert_close(losses["loss"], losses["risk"] + 0.5 * expected)


def test_a_batch_without_positives_teaches_the_predictor_and_nobody_else(model: MaskEHR, batch: Batch) -> None:
    negatives = without_positives(batch)
    for phase in model.phases():
        for turn in phase.turns:
            losses = turn.loss(negatives)
            losses["loss"].backward()
            if turn.name != "predictor":
                assert losses["loss"] == 0
    assert losses["risk_synthetic"] == 0
    assert losses["loss"] > 0
    others = [model.generator, model.discriminator, model.selector]
    assert all(p.grad is None or not p.grad.any() for other in others for p in other.parameters())


def test_a_prediction_needs_only_the_predictor(model: MaskEHR, batch: Batch) -> None:
    logits = model.eval()(batch)
    for other in (model.generator, model.discriminator, model.selector):
        for p in other.parameters():
            torch.nn.init.constant_(p, torch.nan)
    assert torch.equal(model(batch), logits)


@pytest.mark.parametrize("wrong", [{"mask_visits": 0.0}, {"mask_codes": 30.0}, {"num_actions": 1}])
def test_masks_that_hide_nothing_or_no_share_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(InputError, match="mask_visits"):
        MaskEHR(SPEC, **wrong)
