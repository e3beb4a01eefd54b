"""What every risk model obeys that reads more than visits: stays, sets of codes, laboratory tests, notes, text.

A model is given what the data layer would give it and no more: the fields that it requires of labelled samples, and in
views without labels those that it pretrains on.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace

import pytest
import safetensors.torch
import torch
import torch.nn.functional as F

from batches import pad_codes, pad_visits, shuffle_codes, take, with_flipped_labels, without_labels
from ehrlab.core.batch import MODALITIES, Batch, CodeSets, Notes, Stays, Text
from ehrlab.core.model import EstimatorPhase, Phase, RiskModel
from ehrlab.core.spec import DataSpec
from modal_batches import MODAL_SPEC, modal_batch
from other_device import There, other_device
from steps import gradient_phases, set_gradients
from tiny import MODAL_CASES, build, needs

SOME_STEPS = 3
MANY_STEPS = 400

Case = tuple[str, str]
Change = Callable[[Batch], Batch]


# ---- what a model is given


def required(case: Case) -> frozenset[str]:
    return needs(*case).samples


def spec_of(case: Case, num_labels: int = 1) -> DataSpec:
    """Sizes of the modalities that the model asks for; the rest are None."""
    found = needs(*case)
    asked = found.fields | found.vocabularies
    unknown = {f.name: None for f in fields(DataSpec) if f.name in MODALITIES and f.name not in asked}
    rate = MODAL_SPEC.positive_rate * num_labels
    return replace(MODAL_SPEC, unit=case[1], num_labels=num_labels, positive_rate=rate, **unknown)


def make(case: Case, seed: int = 0, num_labels: int = 1) -> RiskModel:
    return build(f"model={case[0]}", spec=spec_of(case, num_labels), seed=seed)


def only(batch: Batch, fields: Iterable[str]) -> Batch:
    return replace(batch, **{name: None for name in MODALITIES if name not in fields})


def in_view(case: Case, view: str, batch: Batch) -> Batch:
    if view == "samples":
        return only(batch, needs(*case).samples)
    if view == "stays":  # each row is one stay, a real one
        assert batch.stays is not None
        one = Stays(batch.stays.features[:, :1], torch.ones_like(batch.stays.mask[:, :1]))
        return only(without_labels(replace(batch, stays=one)), needs(*case).views[view])
    assert view == "admissions", f"no such view: {view}"
    return only(without_labels(batch), needs(*case).views[view])


def take_steps(
    case: Case, model: RiskModel, phase: Phase, batches: Sequence[Batch], learning_rate: float
) -> list[float]:
    """A step per batch and player. Returns every turn's loss in order."""
    phase.begin()
    players = [list(turn.params()) for turn in phase.turns]
    optimisers = [torch.optim.Adam(params, lr=learning_rate) for params in players]
    losses = []
    for batch in batches:
        for turn, params, optimiser in zip(phase.turns, players, optimisers):
            loss = turn.loss(in_view(case, phase.view, batch))["loss"]
            set_gradients(params, loss)
            optimiser.step()
            losses.append(loss.item())
    return losses


def train(
    case: Case, model: RiskModel, batches: Sequence[Batch], learning_rate: float = 1e-3, seed: int = 0
) -> list[float]:
    """Every phase in order, with a step per batch in each. An estimator gives its loss on each batch."""
    torch.manual_seed(seed)
    model.train()
    losses = []
    for phase in model.phases():
        if isinstance(phase, EstimatorPhase):
            seen = [in_view(case, phase.view, batch) for batch in batches]
            phase.fit(seen, seen)
            losses += [model.loss(batch)["loss"].item() for batch in seen]
        else:
            assert isinstance(phase, Phase)
            losses += take_steps(case, model, phase, batches, learning_rate)
    return losses


# ---- changes that no prediction may notice


def pad_stays(batch: Batch) -> Batch:
    assert batch.stays is not None
    stays = Stays(F.pad(batch.stays.features, (0, 0, 0, 0, 0, 1)), F.pad(batch.stays.mask, (0, 1)))
    return replace(batch, stays=stays)


def pad_notes(batch: Batch) -> Batch:
    assert batch.notes is not None
    return replace(batch, notes=Notes(F.pad(batch.notes.vectors, (0, 0, 0, 2)), F.pad(batch.notes.mask, (0, 2))))


def pad_text(batch: Batch) -> Batch:
    assert batch.text is not None
    assert MODAL_SPEC.text is not None
    ids = F.pad(batch.text.ids, (0, 3), value=MODAL_SPEC.text.pad_id)
    return replace(batch, text=Text(ids, F.pad(batch.text.mask, (0, 3))))


def pad_code_sets(batch: Batch) -> Batch:
    assert batch.codes is not None
    return replace(batch, codes=CodeSets(F.pad(batch.codes.diagnoses, (0, 2)), F.pad(batch.codes.drugs, (0, 1))))


def shuffle_code_sets(batch: Batch) -> Batch:
    """In another order, and padding among them."""
    assert batch.codes is not None
    return replace(batch, codes=batch.codes.map(lambda ids: ids.flip(1).roll(1, 1)))


def reverse_notes(batch: Batch) -> Batch:
    """The real notes of each sample in reverse order."""
    assert batch.notes is not None
    vectors = batch.notes.vectors.clone()
    for row, real in zip(vectors, batch.notes.mask):
        row[real] = row[real].flip(0)
    return replace(batch, notes=replace(batch.notes, vectors=vectors))


CHANGES: dict[str, tuple[str, Change]] = {
    "one more padded stay": ("stays", pad_stays),
    "two more padded notes": ("notes", pad_notes),
    "other order of notes": ("notes", reverse_notes),
    "three more padded tokens": ("text", pad_text),
    "more padded codes": ("codes", pad_code_sets),
    "other order of codes": ("codes", shuffle_code_sets),
    "two more padded visits": ("visits", lambda batch: pad_visits(batch, extra=2)),
    "more padded codes in visits": ("visits", lambda batch: pad_codes(batch, extra=3)),
    "other order of codes in visits": ("visits", shuffle_codes),
}
CASES_AND_CHANGES = [
    pytest.param(case, change, id=f"{case}-{change}")
    for case in MODAL_CASES
    for change, (field, _) in CHANGES.items()
    if field in required(MODAL_CASES[case])
]


def trimmed(batch: Batch) -> Batch:
    """As the data layer cuts a batch: each modality as wide as its widest sample, and at least one wide."""

    def widest(mask: torch.Tensor) -> int:
        return max(1, int(mask.sum(1).max()))

    if batch.stays is not None:
        n = widest(batch.stays.mask)
        batch = replace(batch, stays=batch.stays.map(lambda t: t[:, :n]))
    if batch.notes is not None:
        n = widest(batch.notes.mask)
        batch = replace(batch, notes=batch.notes.map(lambda t: t[:, :n]))
    if batch.text is not None:
        n = widest(batch.text.mask)
        batch = replace(batch, text=batch.text.map(lambda t: t[:, :n]))
    if batch.codes is not None:
        batch = replace(batch, codes=batch.codes.map(lambda t: t[:, : widest(t > 0)]))
    return batch


# ---- the laws


@pytest.fixture(params=MODAL_CASES, ids=str)
def case(request: pytest.FixtureRequest) -> Case:
    return MODAL_CASES[request.param]


@pytest.fixture
def batch(case: Case) -> Batch:
    return only(modal_batch(), required(case))


def after_some_steps(case: Case) -> RiskModel:
    """In eval mode, some steps from the initial weights: zero-initialised branches no longer hide what they do."""
    model = make(case)
    train(case, model, [modal_batch()] * SOME_STEPS, learning_rate=0.05)
    return model.eval()


@pytest.fixture
def trained(case: Case) -> RiskModel:
    return after_some_steps(case)


def assert_same_logits(model: RiskModel, changed: Batch, batch: Batch) -> None:
    torch.testing.assert_close(model(changed), model(batch), rtol=1e-4, atol=1e-5)


def test_logits_and_losses_are_finite(trained: RiskModel, batch: Batch) -> None:
    logits = trained(batch)
    assert logits.shape == (len(batch), 1)
    assert logits.isfinite().all()
    assert all(value.isfinite() and value.ndim == 0 for value in trained.loss(batch).values())


def test_there_are_as_many_logits_as_labels(case: Case) -> None:
    model = make(case, num_labels=3)
    batch = modal_batch(num_labels=3)
    assert len(train(case, model, [batch] * SOME_STEPS)) >= SOME_STEPS
    assert model.eval()(only(batch, required(case))).shape == (len(batch), 3)


def test_every_parameter_belongs_to_a_turn_and_gets_a_finite_gradient(case: Case) -> None:
    model, batch = make(case), modal_batch()
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    reached: set[int] = set()
    for phase in gradient_phases(model):
        phase.begin()
        for _ in range(SOME_STEPS):  # a zero-initialised branch has no gradient before its last layer has moved
            for turn in phase.turns:
                params = list(turn.params())
                set_gradients(params, turn.loss(in_view(case, phase.view, batch))["loss"])
                assert all(p.grad.isfinite().all() for p in params if p.grad is not None)
                torch.optim.SGD(params, lr=0.1).step()
                reached |= {id(p) for p in params if p.grad is not None and p.grad.abs().max() > 0}
    assert [name for name, p in trainable.items() if id(p) not in reached] == []


def test_what_a_model_makes_is_on_its_batchs_device(case: Case, batch: Batch) -> None:
    model = make(case)
    with other_device() as device:
        train(case, model.to(device), [modal_batch().to(device)] * 2)
        assert isinstance(model.eval()(batch.to(device)), There)


def test_bfloat16_gives_nearly_the_same_first_loss(case: Case) -> None:
    expected = train(case, make(case), [modal_batch()])
    with torch.autocast("cpu", torch.bfloat16):
        found = train(case, make(case), [modal_batch()])
    torch.testing.assert_close(found[0], expected[0], rtol=0.05, atol=0.05)
    assert torch.tensor(found).isfinite().all()


def test_players_do_not_share_parameters(case: Case) -> None:
    for phase in gradient_phases(make(case)):
        players = [{id(p) for p in turn.params()} for turn in phase.turns]
        assert sum(map(len, players)) == len(set().union(*players))


@pytest.mark.parametrize(("name", "change"), CASES_AND_CHANGES)
def test_logits_do_not_notice(name: str, change: str) -> None:
    case = MODAL_CASES[name]
    batch = only(modal_batch(), required(case))
    assert_same_logits(after_some_steps(case), CHANGES[change][1](batch), batch)


def test_every_modality_that_is_required_is_read(case: Case, trained: RiskModel, batch: Batch) -> None:
    """Else a model would be refused data that would do."""
    logits = trained(batch)
    for field in required(case):
        others = replace(batch, **{field: getattr(take(batch, [1, 2, 3, 0, 4]), field)})
        assert not torch.allclose(trained(others), logits, atol=1e-5), field


def test_samples_do_not_see_each_other(trained: RiskModel, batch: Batch) -> None:
    logits = trained(batch)
    for samples in ([2, 4, 0, 1], [1], [4], [0, 2]):
        torch.testing.assert_close(trained(take(batch, samples)), logits[samples], rtol=1e-4, atol=1e-5)
        assert_same_logits(trained, trimmed(take(batch, samples)), take(batch, samples))


def test_logits_do_not_depend_on_labels(trained: RiskModel, batch: Batch) -> None:
    logits = trained(batch)
    assert torch.equal(trained(with_flipped_labels(batch)), logits)
    assert torch.equal(trained(without_labels(batch)), logits)


def test_inference_is_deterministic(trained: RiskModel, batch: Batch) -> None:
    torch.manual_seed(1)
    logits = trained(batch)
    torch.manual_seed(2)
    assert torch.equal(trained(batch), logits)


@pytest.mark.parametrize("sample", [0, 4], ids=["with everything", "with nothing"])
def test_a_batch_of_one_trains_and_predicts(case: Case, sample: int) -> None:
    model = make(case)
    one = trimmed(take(modal_batch(), [sample]))
    for phase in gradient_phases(model):
        assert all(torch.tensor(take_steps(case, model.train(), phase, [one] * 2, 1e-3)).isfinite())
    assert model.eval()(only(one, required(case))).isfinite().all()


def test_fits_eight_samples(case: Case) -> None:
    model, batch = make(case), modal_batch(num_samples=8, seed=1)
    labels = batch.labels
    assert labels is not None
    *earlier, last = model.phases()
    torch.manual_seed(0)
    for phase in earlier:
        assert isinstance(phase, Phase)
        take_steps(case, model.train(), phase, [batch] * SOME_STEPS, learning_rate=0.01)
    for _ in range(MANY_STEPS // 20):
        if isinstance(last, EstimatorPhase):
            last.fit([only(batch, required(case))], [only(batch, required(case))])
        else:
            assert isinstance(last, Phase)
            take_steps(case, model.train(), last, [batch] * 20, learning_rate=0.02)
        if ((model.eval()(only(batch, required(case))) > 0) == labels.bool()).all():
            return
    pytest.fail(f"misses labels of its own 8 training samples after {MANY_STEPS} steps")


def test_same_seed_gives_the_same_losses_and_another_seed_others(case: Case) -> None:
    batches = [modal_batch()] * SOME_STEPS
    first, again = (train(case, make(case, seed=3), batches, seed=3) for _ in range(2))
    assert first == again
    if gradient_phases(make(case)):  # an estimator has no random initial weights
        assert first != train(case, make(case, seed=4), batches, seed=4)


def test_state_dict_round_trip_restores_the_logits(case: Case, trained: RiskModel, batch: Batch) -> None:
    stored = safetensors.torch.save(trained.state_dict())
    other = make(case, seed=5)
    other.load_state_dict(safetensors.torch.load(stored))
    assert torch.equal(other.eval()(batch), trained(batch))
