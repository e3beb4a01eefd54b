"""What is read off a trained generator: which codes its embeddings are nearest to, and where its hidden states lie."""

import json
from dataclasses import fields

import polars as pl
import pytest
import torch

from ehrlab.core.errors import InputError
from ehrlab.core.model import Augmenter
from ehrlab.models.meddiffusion import MedDiffusion
from ehrlab.run.generated import hidden_states, synthetic_codes, write_analysis
from stub_data import StubData, stub_data
from tiny import build

NUM_CODES = 18
RECORDS = [60, 40, 30, 20] + [10] * (NUM_CODES - 4)


class Known(StubData):
    """Patients whose codes have names; code i is in RECORDS[i - 1] samples."""

    def vocabulary(self):
        ids = list(range(NUM_CODES + 1))
        return pl.DataFrame(
            {
                "id": ids,
                "code": ["PADDING", *(f"DIAGNOSIS//ICD//9//{100 + i}.0" for i in ids[1:])],
                "description": [None, *(f"disease {i}" for i in ids[1:])],
                "num_samples": [0, *RECORDS],
            }
        )


class Made(Augmenter):
    """e' = make(e)."""

    def __init__(self, make):
        super().__init__()
        self.make = make

    def sample(self, e, h_prev, mask, labels):
        return self.make(e)

    def loss(self, e, h_prev, mask, labels):
        raise NotImplementedError


@pytest.fixture
def data():
    stub = stub_data(sizes=(23, 11, 30))
    return Known(**{field.name: getattr(stub, field.name) for field in fields(stub)})


@pytest.fixture
def backbone():
    """Rows that the ReLU of a visit leaves as they are, so that a code's own embedding is its row."""
    lstm = build("model=lstm").eval()
    with torch.no_grad():
        lstm.visit.codes.table.weight.abs_()
        yield lstm


def test_an_augmenter_that_changes_nothing_leaves_the_data_as_they_are(backbone, data):
    content, png = synthetic_codes(backbone, Made(lambda e: e), data)
    measures = content["measures"]
    assert (measures["num_codes"], measures["num_reached"]) == (NUM_CODES, NUM_CODES)
    assert measures["unchanged"] == pytest.approx(1)
    assert measures["unchanged_without_augmenter"] == pytest.approx(1)
    assert measures["rank_correlation"] == pytest.approx(1)
    assert [entry["rank_original"] for entry in content["codes"]] == list(range(1, NUM_CODES + 1))
    assert [entry["rank_synthetic"] for entry in content["codes"]] == list(range(1, NUM_CODES + 1))
    assert [entry["share"] for entry in content["codes"]] == pytest.approx([n / sum(RECORDS) for n in RECORDS])
    assert png is None


def test_a_code_counts_as_often_as_the_records_of_the_codes_that_become_it(backbone, data):
    rows = backbone.visit.codes.table.weight[1:].detach()

    def next_code(e):
        code = (e[:, 0, None] - rows).norm(dim=-1).argmin(-1)
        return rows[(code + 1) % NUM_CODES][:, None]

    content, _ = synthetic_codes(backbone, Made(next_code), data)
    share = {entry["rank_original"]: entry["share"] for entry in content["codes"]}
    assert [share[2], share[3], share[1]] == pytest.approx([60 / 290, 40 / 290, 10 / 290])
    assert content["codes"][0]["code"] == "DIAGNOSIS//ICD//9//102.0"
    assert content["codes"][0]["rank_without_augmenter"] == 2
    assert content["measures"]["unchanged"] == 0


def test_one_embedding_for_every_code_is_one_code(backbone, data):
    row = backbone.visit.codes.table.weight[7].detach()
    content, _ = synthetic_codes(backbone, Made(lambda e: 3 * row.expand_as(e)), data)
    (entry,) = content["codes"]
    assert (entry["rank_original"], entry["rank_synthetic"], entry["share"]) == (7, 1, pytest.approx(1))
    assert entry["share_of_vocabulary"] == pytest.approx(1)


def test_a_code_is_listed_with_ranks_and_no_count(backbone, data):
    content, _ = synthetic_codes(backbone, Made(lambda e: e), data)
    assert set(content["codes"][0]) == {
        *("code", "description", "rank_original", "rank_synthetic", "rank_without_augmenter"),
        *("share", "share_of_vocabulary"),
    }


def test_states_of_unchanged_visits_are_their_own_and_those_of_one_visit_are_nobodys(backbone, data):
    with torch.no_grad():
        same, png = hidden_states(backbone, Made(lambda e: e), data)
        one, _ = hidden_states(backbone, Made(torch.zeros_like), data)
    assert (same["measures"]["own_closer"], same["measures"]["nearest_is_own"]) == (1, 1)
    assert same["measures"]["same_label_original"] == same["measures"]["same_label_synthetic"]
    assert one["measures"]["nearest_is_own"] < 0.5
    assert 0.3 < one["measures"]["own_closer"] < 0.7
    assert same["measures"]["same_label_by_chance"] == 0.5  # labels alternate
    assert same["num_drawn"] == 30
    assert png.startswith(b"\x89PNG")


@pytest.mark.parametrize("what", ["synthetic_codes", "hidden_states"])
def test_the_same_weights_give_the_same_files_and_move_no_other_random_number(data, tmp_path, what):
    model = build("model=meddiffusion")
    before = torch.get_rng_state()
    for run in ("a", "b"):
        write_analysis(what, tmp_path / run, model, data)
    assert torch.equal(before, torch.get_rng_state())
    for path in (tmp_path / "a" / "analyses").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / "analyses" / path.name).read_bytes()
    written = (tmp_path / "a" / "analyses" / f"{what}.json").read_text()
    assert "measures" in json.loads(written)
    subjects = {str(number) for number in data.splits["held_out"].subject_id.tolist()}
    assert not subjects & set(written.replace(",", " ").split())


def test_what_is_there_is_not_computed_again(data, tmp_path, monkeypatch):
    model = build("model=meddiffusion")
    write_analysis("synthetic_codes", tmp_path, model, data)
    (left,) = tmp_path.rglob("synthetic_codes.json")
    before = left.stat().st_mtime_ns
    monkeypatch.setattr("ehrlab.run.generated.ANALYSES", {})  # would be looked into
    write_analysis("synthetic_codes", tmp_path, model, data)
    assert left.stat().st_mtime_ns == before


@pytest.mark.parametrize("overrides", [("model=lstm",), ("model=meddiffusion", "model/augmenter=none")])
def test_a_model_that_generates_nothing_is_refused(data, tmp_path, overrides):
    with pytest.raises(InputError, match="expected a model that generates visits"):
        write_analysis("hidden_states", tmp_path, build(*overrides), data)


def test_codes_need_a_backbone_whose_visits_are_sums_of_codes(data, tmp_path):
    model = build("model=meddiffusion", "model@model.backbone=hitanet")
    assert isinstance(model, MedDiffusion)
    with pytest.raises(InputError, match="found HiTANet"):
        write_analysis("synthetic_codes", tmp_path, model, data)
    write_analysis("hidden_states", tmp_path, model, data)


def test_too_few_patients_are_refused(backbone):
    with pytest.raises(InputError, match="at least 10 test samples, found 7"), torch.no_grad():
        hidden_states(backbone, Made(lambda e: e), stub_data())
