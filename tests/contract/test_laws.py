"""What every risk model of conf/model obeys, alone and as part of MedDiffusion's composition."""

import pytest
import safetensors.torch
import torch

from batches import (
    SPEC,
    pad_codes,
    pad_visits,
    random_batch,
    reverse_visits,
    shuffle_codes,
    take,
    with_flipped_labels,
    without_labels,
)
from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from other_device import There, other_device
from steps import gradient_phases, set_gradients, train
from tiny import CASES, build

SOME_STEPS = 3
MANY_STEPS = 400
# Without the compositions that repeat each augmenter for every other model of visits.
ONE_BODY = {name: case for name, case in CASES.items() if "+" not in name or name.startswith(("lstm+", "meddiffusion"))}


@pytest.fixture(params=CASES, ids=str)
def case(request: pytest.FixtureRequest) -> tuple[str, ...]:
    return CASES[request.param]


@pytest.fixture
def batch() -> Batch:
    return random_batch()


@pytest.fixture
def trained(case: tuple[str, ...], batch: Batch) -> RiskModel:
    """In eval mode, some steps from the initial weights: zero-initialised branches no longer hide what they do."""
    model = build(*case)
    train(model, [batch] * SOME_STEPS, learning_rate=0.05)
    return model.eval()


def assert_same_logits(model: RiskModel, changed: Batch, batch: Batch) -> None:
    torch.testing.assert_close(model(changed), model(batch), rtol=1e-4, atol=1e-5)


def test_logits_and_losses_are_finite(trained: RiskModel, batch: Batch) -> None:
    logits = trained(batch)
    assert logits.shape == (len(batch), SPEC.num_labels)
    assert logits.isfinite().all()
    assert all(value.isfinite() and value.ndim == 0 for value in trained.loss(batch).values())


def test_every_parameter_belongs_to_a_turn_and_gets_a_gradient(case: tuple[str, ...], batch: Batch) -> None:
    model = build(*case)
    reached: set[int] = set()
    for phase in gradient_phases(model):
        phase.begin()
        for _ in range(SOME_STEPS):  # a zero-initialised branch has no gradient before its last layer has moved
            for turn in phase.turns:
                params = list(turn.params())
                set_gradients(params, turn.loss(batch)["loss"])
                torch.optim.SGD(params, lr=0.1).step()
                reached |= {id(p) for p in params if p.grad is not None and p.grad.abs().max() > 0}
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert [name for name, p in trainable.items() if id(p) not in reached] == []


@pytest.mark.parametrize("case", ONE_BODY.values(), ids=ONE_BODY)
def test_what_a_model_makes_is_on_its_batchs_device(case: tuple[str, ...], batch: Batch) -> None:
    model = build(*case)
    with other_device() as device:
        train(model.to(device), [batch.to(device)] * 2)
        assert isinstance(model.eval()(batch.to(device)), There)


@pytest.mark.parametrize("case", ONE_BODY.values(), ids=ONE_BODY)
def test_bfloat16_gives_nearly_the_same_first_loss(case: tuple[str, ...], batch: Batch) -> None:
    expected = train(build(*case), [batch])
    with torch.autocast("cpu", torch.bfloat16):
        found = train(build(*case), [batch])
    torch.testing.assert_close(found[0], expected[0], rtol=0.05, atol=0.05)
    assert torch.tensor(found).isfinite().all()


def test_players_do_not_share_parameters(case: tuple[str, ...]) -> None:
    for phase in gradient_phases(build(*case)):
        players = [{id(p) for p in turn.params()} for turn in phase.turns]
        assert sum(map(len, players)) == len(set().union(*players))


def test_padding_visits_leaves_logits_unchanged(trained: RiskModel, batch: Batch) -> None:
    assert_same_logits(trained, pad_visits(batch, extra=2), batch)


def test_padding_codes_leaves_logits_unchanged(trained: RiskModel, batch: Batch) -> None:
    assert_same_logits(trained, pad_codes(batch, extra=3), batch)


def test_order_of_codes_within_a_visit_does_not_matter(trained: RiskModel, batch: Batch) -> None:
    assert_same_logits(trained, shuffle_codes(batch), batch)


def test_samples_do_not_see_each_other(trained: RiskModel, batch: Batch) -> None:
    logits = trained(batch)
    for samples in ([2, 0, 1], [1], [0, 2]):
        torch.testing.assert_close(trained(take(batch, samples)), logits[samples], rtol=1e-4, atol=1e-5)


def test_logits_do_not_depend_on_labels(trained: RiskModel, batch: Batch) -> None:
    logits = trained(batch)
    assert torch.equal(trained(with_flipped_labels(batch)), logits)
    assert torch.equal(trained(without_labels(batch)), logits)


def test_inference_is_deterministic(trained: RiskModel, batch: Batch) -> None:
    torch.manual_seed(1)
    logits = trained(batch)
    torch.manual_seed(2)
    assert torch.equal(trained(batch), logits)


def test_order_of_visits_matters_unless_the_model_says_otherwise(trained: RiskModel, batch: Batch) -> None:
    changed = (trained(reverse_visits(batch)) - trained(batch)).abs().max() > 1e-4
    assert changed == trained.reads_order


def test_fits_eight_patients(case: tuple[str, ...]) -> None:
    model = build(*case)
    batch = random_batch(num_samples=8, seed=1)
    assert batch.labels is not None
    for _ in range(MANY_STEPS // 20):
        train(model, [batch] * 20, learning_rate=0.02)
        model.eval()
        if ((model(batch) > 0) == batch.labels.bool()).all():
            return
    pytest.fail(f"misses labels of its own 8 training samples after {MANY_STEPS} steps: {model(batch).flatten()}")


def test_same_seed_gives_the_same_losses_and_another_seed_others(case: tuple[str, ...], batch: Batch) -> None:
    first, again = (train(build(*case, seed=3), [batch] * SOME_STEPS, seed=3) for _ in range(2))
    assert first == again
    if gradient_phases(build(*case)):  # an estimator has no random initial weights
        assert first != train(build(*case, seed=4), [batch] * SOME_STEPS, seed=4)


def test_state_dict_round_trip_restores_the_logits(case: tuple[str, ...], trained: RiskModel, batch: Batch) -> None:
    stored = safetensors.torch.save(trained.state_dict())
    other = build(*case, seed=5)
    other.load_state_dict(safetensors.torch.load(stored))
    assert torch.equal(other.eval()(batch), trained(batch))


@pytest.mark.parametrize(("num_samples", "num_visits", "num_codes"), [(1, 1, 1), (1, 4, 2), (3, 1, 2), (2, 3, 1)])
def test_smallest_batches_train_and_predict(
    trained: RiskModel, num_samples: int, num_visits: int, num_codes: int
) -> None:
    batch = random_batch(num_samples=num_samples, num_visits=num_visits, num_codes=num_codes)
    assert trained.train().loss(batch)["loss"].isfinite()
    assert trained.eval()(batch).isfinite().all()


def test_single_visits_leave_no_parameter_without_a_gradient(case: tuple[str, ...]) -> None:
    """DDP stops at a parameter that the loss does not know; it looks for such only where players take turns."""
    model, single = build(*case), random_batch(num_visits=1)
    for phase in gradient_phases(model):
        phase.begin()
        if len(phase.turns) == 1:
            params = list(phase.turns[0].params())
            set_gradients(params, phase.turns[0].loss(single)["loss"])
            known = {id(p) for p in params if p.grad is not None}
            trained = {id(p) for p in params}
            assert [n for n, p in model.named_parameters() if id(p) in trained - known] == []


def test_a_patient_whose_visits_hold_no_known_code_is_finite(trained: RiskModel, batch: Batch) -> None:
    unseen = batch.map(lambda t: torch.zeros_like(t) if t.ndim == 3 else t)
    assert trained(unseen).isfinite().all()
    assert trained.train().loss(unseen)["loss"].isfinite()
