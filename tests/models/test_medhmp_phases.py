from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import nn

from ehrlab.core.errors import InputError
from ehrlab.core.model import Needs
from ehrlab.models.medhmp import MedHMP
from ehrlab.nn.phase_weights import weights_digest
from ehrlab.run.store import without
from modal_batches import MODAL_SPEC, modal_batch
from steps import gradient_phases, set_gradients
from tiny_medhmp import AUTHORS, BODIES, UNITS, E, build, notes_of, phase

# ---- phases


@pytest.mark.parametrize("settings", [{}, AUTHORS, {"losses": ["contrast"]}, {"losses": ["mcp"]}], ids=str)
@pytest.mark.parametrize(
    ("unit", "pretrain"),
    [
        *((unit, pretrain) for unit in UNITS for pretrain in (["stay", "admission"], ["admission"], [])),
        *((unit, ["stay"]) for unit in ("stay", "admission")),  # to a patient, stays come by way of admissions
    ],
    ids=str,
)
def test_every_parameter_is_trained_in_some_phase(unit: str, pretrain: list[str], settings: dict[str, object]) -> None:
    model = build(unit, pretrain=pretrain, **{**settings, "mask_rate": 0.5})
    assert [one.name for one in gradient_phases(model)] == [*pretrain, "finetune"]
    reached: set[int] = set()
    for one in gradient_phases(model):
        one.begin()
        params = list(one.turns[0].params())
        set_gradients(params, one.turns[0].loss(modal_batch(12))["loss"])
        idle = [p for p in params if p.grad is None or p.grad.abs().max() == 0]
        reached |= {id(p) for p in params if not any(p is i for i in idle)}
    assert [name for name, p in model.named_parameters() if id(p) not in reached] == []


@pytest.mark.parametrize("unit", UNITS)
def test_no_gradient_leaves_the_parts_of_a_phase(unit: str) -> None:
    model = build(unit)
    for one in gradient_phases(model):
        own = {id(p) for p in one.turns[0].params()}
        for p in model.parameters():
            p.requires_grad_(id(p) in own)
            p.grad = None
        one.turns[0].loss(modal_batch(12))["loss"].backward()
        assert all(p.grad is None for p in model.parameters() if id(p) not in own)
        assert all(p.grad is not None for p in model.parameters() if id(p) in own)


def test_notes_get_no_gradient_and_pretraining_no_labels() -> None:
    model, batch = build("stay"), replace(modal_batch(), labels=None, visits=None)
    assert not notes_of(batch).vectors.requires_grad
    for name in ("stay", "admission"):
        assert phase(model, name).turns[0].loss(batch)["loss"].isfinite()


@pytest.mark.parametrize("unit", UNITS)
def test_reads_no_more_than_it_says(unit: str) -> None:
    model, batch = build(unit).eval(), modal_batch()
    needs = MedHMP.needs(unit, {"pretrain": ["stay", "admission"]})
    groups = ("visits", "tokens", "stays", "codes", "labs", "notes", "text", "demographics")
    bare = replace(batch, labels=None, **{name: None for name in groups if name not in needs.samples})
    assert torch.equal(model(bare), model(batch))
    views = replace(batch, labels=None, **{name: None for name in groups if name not in needs.views["admissions"]})
    model.masked_codes_and_contrast(views)
    assert MedHMP.needs("stay", {"pretrain": ["stay"]}).views == {"stays": {"stays", "demographics"}}
    assert MedHMP.needs("stay", {"pretrain": ["stay"], "pretrained": "folder"}).views == {}
    assert MedHMP.needs("patient", {"pretrain": []}) == Needs(frozenset({"visits"}), {}, frozenset({"codes"}))


# ---- phases that runs share


def test_runs_that_share_a_phase_begin_it_with_the_same_weights() -> None:
    models = [build(unit, body) for unit, body in (("stay", "lstm"), ("admission", "lstm"), ("patient", "retain"))]
    models.append(build("stay", pretrain=["stay"]))
    for name in ("stay", "admission"):
        states = []
        for model in models:
            if name in model.learned:
                phase(model, name).begin()
                states.append(model.state_dict())
        for state in states[1:]:
            assert state.keys() == states[0].keys()
            assert all(torch.equal(state[key], states[0][key]) for key in state)


@pytest.mark.parametrize("name", ["stay", "admission"])
def test_what_a_phase_leaves_is_loaded_by_every_task_and_leaves_their_heads_alone(name: str) -> None:
    donor = build("stay", seed=1)
    phase(donor, name).begin()
    left = donor.state_dict()
    assert not any(key.startswith(("head", "body")) for key in left)
    for unit, body in (("admission", "lstm"), ("patient", "hitanet")):
        model = build(unit, body)
        before = {key: value.clone() for key, value in model.state_dict().items()}
        model.load_state_dict(left)
        assert model.state_dict().keys() == left.keys()  # and is saved as what it was
        phase(model, "finetune").begin()
        after = model.state_dict()
        assert after.keys() == before.keys()
        assert all(torch.equal(after[key], left.get(key, before[key])) for key in after)


def test_within_another_module_a_phase_leaves_the_same() -> None:
    """As in Lightning's checkpoints."""
    outer, other = nn.Module(), nn.Module()
    outer.model, other.model = build("stay", seed=1), build("patient")
    phase(outer.model, "stay").begin()
    left = outer.state_dict()
    assert {key.split(".")[1] for key in left} == {"stay_encoder", "stay_decoder"}
    other.load_state_dict(left)
    assert torch.equal(other.model.stay_decoder.output.weight, outer.model.stay_decoder.output.weight)


def test_anything_else_that_is_missing_is_refused() -> None:
    model = build("admission")
    whole = model.state_dict()
    for part in ("stay_decoder", "drugs", "stay_encoder.hours", "head.2.weight"):
        with pytest.raises(RuntimeError, match="Missing key"):
            model.load_state_dict({key: value for key, value in whole.items() if not key.startswith(part)})


def test_whole_weights_end_the_phase_that_was_left() -> None:
    model = build("stay")
    whole = model.state_dict()
    phase(model, "stay").begin()
    model.load_state_dict(whole)
    assert model.state_dict().keys() == whole.keys()


def test_pretraining_depends_on_nothing_of_the_task() -> None:
    identity = {
        "model": {
            "body": {"embed_dim": 8},
            "pretrain": ["stay"],
            "losses": ["mcp"],
            "dropout_head": 0.2,
            "dropout": 0.1,
        },
        "training": {"batch_size": 64, "phases": {"stay": 1, "admission": 2, "finetune": 3, "fit": 3}},
        **dict.fromkeys(("task", "data", "visits", "labels", "bootstrap", "codes", "notes", "stays", "records"), 1),
    }
    model = build("stay")
    stay, admission = (without(identity, phase(model, name).ignores) for name in ("stay", "admission"))
    assert stay == {
        "model": {"dropout": 0.1},
        "training": {"batch_size": 64, "phases": {"stay": 1}},
        "stays": 1,
        "records": 1,
    }
    assert admission["model"] == {"pretrain": ["stay"], "losses": ["mcp"], "dropout": 0.1}
    assert admission["training"] == {"batch_size": 64, "phases": {"stay": 1, "admission": 2}}
    assert set(admission) == {"model", "training", "codes", "notes", "stays", "records"}
    assert not phase(model, "finetune").ignores


# ---- weights of another hospital


def test_levels_are_taken_from_a_folder(tmp_path: Path) -> None:
    donor = build("admission", seed=1)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "model.safetensors")
    for pretrain in (["stay"], ["stay", "admission"]):
        model = build("admission", pretrain=pretrain, pretrained=str(tmp_path))
        assert [one.name for one in model.phases()] == ["finetune"]
        own = model.drugs.rest[0].weight.clone()
        phase(model, "finetune").begin()
        assert torch.equal(model.stay_encoder.hours.first.weight_ih_l0, donor.stay_encoder.hours.first.weight_ih_l0)
        assert torch.equal(model.drugs.rest[0].weight, donor.drugs.rest[0].weight if len(pretrain) == 2 else own)


def test_gender_and_race_of_another_hospital_are_not_taken(tmp_path: Path) -> None:
    donor = build("stay", seed=1)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "weights.safetensors")
    torch.manual_seed(0)
    spec = replace(MODAL_SPEC, unit="stay", num_demographics=MODAL_SPEC.num_demographics + 2)
    settings = {"embed_dim": E, "demographics_dim": 5, "pretrained": str(tmp_path / "weights.safetensors")}
    model = MedHMP(spec, BODIES["lstm"], **settings)  # type: ignore[arg-type]
    own = model.stay_encoder.demographics[0].weight.clone()
    phase(model, "finetune").begin()
    weight, given = model.stay_encoder.demographics[0].weight, donor.stay_encoder.demographics[0].weight
    assert torch.equal(weight[:, :2], given[:, :2])
    assert torch.equal(weight[:, 2:], own[:, 2:])


def test_weights_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"model.pretrained=.*expected weights"):
        phase(build("stay", pretrained=str(tmp_path)), "finetune").begin()
    donor = build("stay", pretrain=["stay"])
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(InputError, match=r"expected a tensor diagnoses.*found none.*codes.vocabulary"):
        phase(build("admission", pretrained=str(tmp_path)), "finetune").begin()
    wide = build("stay", embed_dim=12, pretrained=str(tmp_path))
    with pytest.raises(InputError, match=r"expected stay_encoder.* of shape .*found") as error:
        phase(wide, "finetune").begin()
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("modality", "what"), [("stays", "stay_encoder"), ("codes", "diagnoses"), ("notes", "notes")])
def test_weights_for_other_input_of_the_same_size_are_refused(modality: str, what: str, tmp_path: Path) -> None:
    donor = build("admission", seed=1)
    safetensors.torch.save_file(donor.state_dict(), tmp_path / "model.safetensors")
    name = "encoder" if modality == "notes" else "content"
    other = replace(getattr(MODAL_SPEC, modality), **{name: "of another hospital"})
    spec = replace(MODAL_SPEC, unit="admission", **{modality: other})
    model = MedHMP(spec, BODIES["lstm"], embed_dim=E, demographics_dim=5, pretrained=str(tmp_path))
    with pytest.raises(InputError, match=rf"expected {what} to read .*Give the vocabularies"):
        phase(model, "finetune").begin()


def test_pretrained_weights_are_known_by_their_content(tmp_path: Path) -> None:
    for seed, name in ((1, "one"), (1, "same"), (2, "other")):
        (tmp_path / name).mkdir()
        safetensors.torch.save_file(build("stay", seed=seed).state_dict(), tmp_path / name / "model.safetensors")
    digests = [weights_digest(tmp_path / name, "model.pretrained") for name in ("one", "same", "other")]
    assert digests[0] == digests[1] != digests[2]
    assert weights_digest(tmp_path / "one" / "model.safetensors", "model.pretrained") == digests[0]
    with pytest.raises(InputError, match=r"model.pretrained=.*expected weights"):
        weights_digest(tmp_path / "none", "model.pretrained")
