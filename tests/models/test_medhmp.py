from dataclasses import replace

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from ehrlab.core.batch import Batch, CodeSets, Notes, Stays
from ehrlab.core.errors import InputError
from ehrlab.models.lsan import LSAN
from ehrlab.models.lstm import LSTM
from ehrlab.models.medhmp import MedHMP
from modal_batches import FEATURES, HOURS, MODAL_SPEC, NUM_DIAGNOSES, modal_batch
from steps import gradient_phases, set_gradients, train
from tiny_medhmp import AUTHORS, BODIES, UNITS, E, build, codes_of, notes_of, phase, stays_of


def with_another_stay(batch: Batch) -> Batch:
    """Wider by a stay that is padding, and holds something."""
    stays, rows = stays_of(batch), len(batch)
    features = torch.cat([stays.features, torch.ones(rows, 1, HOURS, FEATURES, dtype=torch.uint8)], dim=1)
    return replace(batch, stays=Stays(features, torch.cat([stays.mask, torch.zeros(rows, 1, dtype=torch.bool)], 1)))


def losses(model: MedHMP, batch: Batch) -> dict[str, Tensor]:
    """Everything that a batch makes of a model in eval mode, under the same masks."""
    torch.manual_seed(7)
    found = {"logits": model(batch)}
    if model.learned:
        found |= {"stay": model.reconstruction(batch)["loss"], **model.masked_codes_and_contrast(batch)}
    return found


# ---- padding and missing modalities


@pytest.mark.parametrize("unit", ["stay", "admission"])
def test_padded_stay_changes_nothing(unit: str) -> None:
    spec = MODAL_SPEC.stays
    assert spec is not None
    torch.manual_seed(0)
    wide = replace(MODAL_SPEC, unit=unit, stays=replace(spec, max_stays=4))
    model, batch = MedHMP(wide, BODIES["lstm"], embed_dim=E, demographics_dim=5).eval(), modal_batch()
    torch.testing.assert_close(losses(model, with_another_stay(batch)), losses(model, batch))


def test_what_stands_at_padding_changes_nothing() -> None:
    model, batch = build("admission").eval(), modal_batch()
    stays, notes = stays_of(batch), notes_of(batch)
    changed = replace(
        batch,
        stays=Stays(stays.features | ~stays.mask[:, :, None, None].expand_as(stays.features), stays.mask),
        notes=Notes(torch.where(notes.mask[..., None], notes.vectors, 9.0), notes.mask),
        codes=CodeSets(
            *(torch.nn.functional.pad(ids, (0, 2)) for ids in (codes_of(batch).diagnoses, codes_of(batch).drugs))
        ),
    )
    # The draws of masks follow the width of the sets, so only what has no masks in it is compared.
    found, expected = losses(model, changed), losses(model, batch)
    for name in ("logits", "stay", "contrast"):
        torch.testing.assert_close(found[name], expected[name])


@pytest.mark.parametrize("missing", ["stays", "notes", "diagnoses", "drugs"])
def test_missing_modality_of_one_admission_leaves_the_others_alone(missing: str) -> None:
    model, batch = build("admission").eval(), modal_batch()
    stays, codes, notes = stays_of(batch), codes_of(batch), notes_of(batch)
    rest = torch.arange(len(batch)) != 0
    changed = {
        "stays": replace(batch, stays=Stays(stays.features, stays.mask & rest[:, None])),
        "notes": replace(batch, notes=Notes(notes.vectors, notes.mask & rest[:, None])),
        "diagnoses": replace(batch, codes=replace(codes, diagnoses=codes.diagnoses * rest[:, None])),
        "drugs": replace(batch, codes=replace(codes, drugs=codes.drugs * rest[:, None])),
    }[missing]
    torch.testing.assert_close(model(changed)[1:], model(batch)[1:])
    assert not torch.equal(model(changed)[0], model(batch)[0])
    place = ["notes", "diagnoses", "drugs", "stays"].index(missing)
    assert not model.encode(changed).present[0, place]
    others = [other for other in range(4) if other != place]
    torch.testing.assert_close(model.encode(changed).tokens[:, others], model.encode(batch).tokens[:, others])


@pytest.mark.parametrize("unit", UNITS)
def test_batch_in_which_nothing_is_there_has_finite_losses_and_gradients(unit: str) -> None:
    model = build(unit)
    batch = modal_batch(2).map(lambda t: t[1:])  # no stay, no note, no drug
    nothing = replace(
        batch, codes=CodeSets(*(torch.zeros_like(ids) for ids in (codes_of(batch).diagnoses, codes_of(batch).drugs)))
    )
    for one in gradient_phases(model):
        for turn in one.turns:
            params = list(turn.params())
            loss = turn.loss(nothing)["loss"]
            assert loss.isfinite()
            set_gradients(params, loss)
            assert all(p.grad is None or p.grad.isfinite().all() for p in params)


def test_pair_without_a_partner_is_not_contrasted() -> None:
    """The last admission of the batch has diagnoses and nothing else: it is in no pair."""
    model, batch = build("admission").eval(), modal_batch()
    alone, rest = model.encode(batch).present[-1].tolist(), batch.map(lambda t: t[:-1])
    assert alone == [False, True, False, False]
    found, expected = (losses(model, one)["contrast"] for one in (batch, rest))
    torch.testing.assert_close(found, expected)


# ---- masked code prediction


@pytest.mark.parametrize("settings", [{}, AUTHORS], ids=["paper", "authors"])
def test_masked_prediction_never_sees_which_codes_are_hidden(
    settings: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = build("admission", losses=["mcp"], **settings).eval(), modal_batch()
    diagnoses = codes_of(batch).diagnoses
    hidden = torch.zeros_like(diagnoses, dtype=torch.bool)
    hidden[:, 2] = True

    def predictions(codes: Tensor, hide: Tensor) -> Tensor:
        seen = []
        none = torch.zeros_like(codes_of(batch).drugs, dtype=torch.bool)
        for mcp, mask in ((model.mcp_diagnoses, hide), (model.mcp_drugs, none)):
            monkeypatch.setattr(mcp, "draw", lambda _, mask=mask: (mask, None))
        handle = model.mcp_diagnoses.output.register_forward_hook(lambda *args: seen.append(args[2]))
        model.masked_codes_and_contrast(replace(batch, codes=replace(codes_of(batch), diagnoses=codes)))
        handle.remove()
        return seen[0]

    free = torch.tensor([next(i for i in range(1, NUM_DIAGNOSES) if i not in row) for row in diagnoses.tolist()])
    swapped = torch.where(hidden, free[:, None], diagnoses)
    assert torch.equal(predictions(swapped, hidden), predictions(diagnoses, hidden))
    assert not torch.equal(predictions(swapped, ~hidden), predictions(diagnoses, ~hidden))


def test_share_of_hidden_codes_is_the_mask_rate() -> None:
    model = build("admission", mask_rate=0.3)
    codes = torch.arange(1, NUM_DIAGNOSES).repeat(500, 1)
    for targets in ("vocabulary", "masked"):
        model.mcp_diagnoses.targets = targets
        hidden, _ = model.mcp_diagnoses.draw(codes)
        assert abs(hidden.float().mean().item() - 0.3) < 0.02


# ---- batches larger than memory


@pytest.mark.parametrize("settings", [{}, AUTHORS], ids=["paper", "authors"])
def test_chunks_have_loss_and_gradient_of_the_whole_batch(settings: dict[str, object]) -> None:
    batch, gradients, values = modal_batch(7), [], []
    for chunk in (100, 3, 1):
        model = build("admission", chunk=chunk, dropout=0.0, **settings)
        torch.manual_seed(1)
        loss = model.masked_codes_and_contrast(batch)
        params = list(phase(model, "admission").turns[0].params())
        gradients.append(torch.autograd.grad(loss["loss"], params))
        values.append(loss)
    for value, gradient in zip(values[1:], gradients[1:]):
        torch.testing.assert_close(value, values[0])
        torch.testing.assert_close(gradient, gradients[0])


def test_activations_of_one_chunk_at_a_time_are_kept() -> None:
    """What autograd saves in the forward pass does not grow with what happens inside a chunk."""

    def saved(chunk: int) -> int:
        model, batch, sizes = build("admission", chunk=chunk, losses=["contrast"]), modal_batch(24), []

        def pack(t: Tensor) -> Tensor:
            sizes.append(t.numel())
            return t

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
            model.masked_codes_and_contrast(batch)
        return sum(sizes)

    assert saved(2) < saved(24) / 3


# ---- patients


@pytest.mark.parametrize("body", BODIES)
def test_body_reads_visits_through_the_encoder_of_diagnoses(body: str) -> None:
    model, batch = build("patient", body).eval(), modal_batch()
    before = model(batch)
    assert before.shape == (len(batch), 1)
    with torch.no_grad():
        model.diagnoses.rest[0].weight.mul_(-3)
    assert not torch.allclose(model(batch), before)
    weights = model.state_dict()
    assert not any("codes.table" in key for key in weights if key.startswith("body"))
    assert sum("table" in key for key in weights) == 2  # diagnoses and drugs, once each
    params = {id(p) for p in phase(model, "finetune").turns[0].params()}
    assert {id(p) for p in model.diagnoses.parameters()} <= params
    set_gradients(list(model.diagnoses.parameters()), model.loss(batch)["loss"])
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.diagnoses.parameters())


@pytest.mark.parametrize("body", BODIES)
def test_padded_visits_change_nothing(body: str) -> None:
    model, batch = build("patient", body).eval(), modal_batch()
    v = batch.visits
    assert v is not None
    pad = torch.nn.functional.pad
    wider = replace(
        v, codes=pad(v.codes, (0, 1, 0, 2)), days_before_last=pad(v.days_before_last, (0, 2)), mask=pad(v.mask, (0, 2))
    )
    torch.testing.assert_close(model(replace(batch, visits=wider)), model(batch), rtol=1e-4, atol=1e-5)


def test_body_keeps_what_it_adds_to_the_embedding() -> None:
    model, batch = build("patient", "hitanet").eval(), modal_batch()
    v = batch.visits
    assert v is not None
    later = replace(batch, visits=replace(v, days_before_last=v.days_before_last * 3))
    assert not torch.allclose(model(later), model(batch))


def test_what_cannot_be_a_body_is_refused() -> None:
    for body in (lambda spec: LSAN(spec, embed_dim=E, num_heads=2), lambda spec: LSTM(spec, embed_dim=12)):
        with pytest.raises(InputError, match="expected an embedding of visits, 8 wide"):
            MedHMP(replace(MODAL_SPEC, unit="patient"), body, embed_dim=E)
    with pytest.raises(InputError, match="expected a SequenceRiskModel"):
        MedHMP(replace(MODAL_SPEC, unit="patient"), lambda spec: nn.Linear(1, 1), embed_dim=E)  # type: ignore[arg-type,return-value]


# ---- settings, training


def test_settings_that_mean_nothing_are_refused() -> None:
    for settings, match in (
        ({"pretrain": ["patient"]}, "model.pretrain: expected any of stay, admission"),
        ({"losses": []}, "expected one or both of mcp, contrast"),
        ({"pretrain": [], "pretrained": "x"}, "expected the levels to take from there"),
        ({"decoder": "output"}, "expected start state or input"),
        ({"targets": "all"}, "expected targets vocabulary or masked"),
        ({"mask_rate": 0.0}, "mask rate between 0 and 1"),
        ({"num_heads": 3}, "divisible by 3 heads"),
        ({"num_layers": 0}, "num_layers >= 1"),
    ):
        with pytest.raises(InputError, match=match):
            build("admission", **settings)
    with pytest.raises(InputError, match="at least 1 row"):
        build("admission", chunk=0).masked_codes_and_contrast(modal_batch())


@pytest.mark.parametrize("unit", UNITS)
def test_trains_phase_by_phase_and_lowers_each_loss(unit: str) -> None:
    model, batch = build(unit, dropout=0.0), modal_batch(12)
    for name in ("stay", "admission"):
        turn = phase(model, name).turns[0]
        optimiser = torch.optim.Adam(list(turn.params()), lr=0.01)
        values = []
        for _ in range(30):
            torch.manual_seed(0)
            loss = turn.loss(batch)["loss"]
            set_gradients(list(turn.params()), loss)
            optimiser.step()
            values.append(loss.item())
        assert values[-1] < values[0]
    first = train(build(unit, seed=3), [batch] * 2)
    assert first == train(build(unit, seed=3), [batch] * 2)


@pytest.mark.parametrize("unit", UNITS)
def test_state_dict_round_trip_restores_the_logits(unit: str) -> None:
    model, batch = build(unit), modal_batch()
    train(model, [batch] * 2)
    stored = safetensors.torch.save({key: value.contiguous() for key, value in model.state_dict().items()})
    other = build(unit, seed=5)
    other.load_state_dict(safetensors.torch.load(stored))
    assert torch.equal(other.eval()(batch), model.eval()(batch))
