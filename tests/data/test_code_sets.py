"""Sets of diagnoses and drugs of an admission: which codes are in them, when they are known, and their ids."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrlab.core.batch import CodeSets
from ehrlab.core.errors import InputError
from ehrlab.core.spec import CodeSetSpec
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import admissions, with_admissions
from ehrlab.data.modalities.codes import CodeSetModality
from meds_folders import Event, at, dx, event, stay, write_meds

SETS = CodeSetModality()
SPLITS = {1: "train", 2: "train", 3: "held_out"}


def drugs(subject: int, day: float, *names: str, visit: int | None = None) -> list[Event]:
    return [event(subject, day, f"DRUG//{name}", visit) for name in names]


EVENTS = [
    *stay(1, 0, 5, 11),
    *dx(1, 5, "401.9", "428.0", visit=11),
    *drugs(1, 1, "ASPIRIN", "HEPARIN", visit=11),
    *drugs(1, 2, "ASPIRIN", visit=11),  # twice is once
    *stay(1, 10, 15, 12),
    *dx(1, 15, "401.9", visit=12),
    *drugs(1, 12, "ASPIRIN"),  # names no admission, lies in 12
    *drugs(1, 7, "INSULIN"),  # lies in none
    *drugs(1, 16, "MORPHINE", visit=12),  # dated after the discharge
    *stay(2, 0, 9, 21),
    *dx(2, 9, "401.9", "250.00", visit=21),
    *stay(3, 0, 4, 31),
    *dx(3, 4, "428.0", "V10.3", visit=31),  # the second is nowhere else
    *drugs(3, 1, "WARFARIN", visit=31),
    event(1, 3, "PROCEDURE//ICD//9//39.95", 11),
]


def samples(meds: MedsDataset, *times: tuple[int, float]) -> pl.DataFrame:
    frame = pl.DataFrame(
        [(s, at(day), "train") for s, day in times],
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "split": pl.String},
        orient="row",
    ).with_row_index("sample")
    return with_admissions(frame, admissions(meds))


def serve(meds: MedsDataset, modality: CodeSetModality, rows: pl.DataFrame, folder: Path) -> CodeSets:
    store, selection = folder / "store", folder / "selection"
    store.mkdir(parents=True)
    selection.mkdir()
    modality.build(meds, store)
    modality.select(meds, store, rows, selection)
    return modality.reader(store, selection)(np.arange(rows.height))


def ids(folder: Path) -> dict[str, int]:
    """id of each code, by its last part."""
    table = pl.read_parquet(folder / "store" / "vocabulary.parquet")
    return {code.split("//")[-1]: i for code, i in table.select("code", "id").iter_rows()}


def named(batch: CodeSets, folder: Path) -> list[tuple[set[str], set[str]]]:
    table = pl.read_parquet(folder / "store" / "vocabulary.parquet")
    of = {
        kind: dict(table.filter(kind=kind).select("id", pl.col("code").str.split("//").list.last()).iter_rows())
        for kind in ("diagnosis", "drug")
    }
    return [
        ({of["diagnosis"][i] for i in d if i}, {of["drug"][i] for i in g if i})
        for d, g in zip(batch.diagnoses.tolist(), batch.drugs.tolist())
    ]


@pytest.mark.parametrize("num_shards", [1, 3])
def test_sets_hold_each_code_of_the_admission_once_until_its_discharge(tmp_path, num_shards):
    meds = write_meds(tmp_path / "meds", EVENTS, SPLITS, num_shards)
    batch = serve(meds, SETS, samples(meds, (1, 15), (2, 9), (1, 5)), tmp_path)
    assert named(batch, tmp_path) == [
        ({"401.9"}, {"ASPIRIN"}),
        ({"401.9", "250.00"}, set()),
        ({"401.9", "428.0"}, {"ASPIRIN", "HEPARIN"}),
    ]
    assert batch.diagnoses.shape == batch.drugs.shape == (3, 2)
    assert (batch.diagnoses > 0).sum(1).tolist() == [1, 2, 2]


@pytest.mark.parametrize("time", [(1, 4.9), (1, 14.9), (1, -1.0)])
def test_until_an_admission_is_over_its_sets_are_empty(tmp_path, time):
    meds = write_meds(tmp_path / "meds", EVENTS, SPLITS)
    batch = serve(meds, SETS, samples(meds, time), tmp_path)
    assert batch.diagnoses.tolist() == batch.drugs.tolist() == [[0]]


def test_after_its_end_the_last_admission_is_known_until_the_next_begins(tmp_path):
    meds = write_meds(tmp_path / "meds", EVENTS, SPLITS)
    batch = serve(meds, SETS, samples(meds, (1, 9.9), (1, 10), (1, 99)), tmp_path)
    assert [len(diagnoses) for diagnoses, _ in named(batch, tmp_path)] == [2, 0, 1]


def test_ids_count_from_the_commonest_training_code_and_know_training_admissions_only(tmp_path):
    meds = write_meds(tmp_path / "meds", EVENTS, SPLITS)
    batch = serve(meds, SETS, samples(meds, (3, 4)), tmp_path)
    assert ids(tmp_path) == {"401.9": 1, "250.00": 2, "428.0": 3, "ASPIRIN": 1, "HEPARIN": 2}
    assert batch.diagnoses.tolist() == [[3]]  # V10.3 is unknown
    assert batch.drugs.tolist() == [[0]]
    assert SETS.spec(tmp_path / "store") == CodeSetSpec(num_diagnoses=4, num_drugs=3)


def test_codes_of_fewer_training_admissions_are_unknown(tmp_path):
    meds = write_meds(tmp_path / "meds", EVENTS, SPLITS)
    serve(meds, replace(SETS, min_count=2), samples(meds, (1, 5)), tmp_path)
    assert ids(tmp_path) == {"401.9": 1, "ASPIRIN": 1}


def test_codes_of_visits_are_known_by_their_diagnosis_id(tmp_path):
    meds = write_meds(tmp_path / "meds", EVENTS, SPLITS)
    serve(meds, SETS, samples(meds, (1, 5)), tmp_path)
    dotted = [f"DIAGNOSIS//ICD//9//{code}" for code in ("428.0", "401.9", "V10.3")]
    spec = SETS.spec_beside(tmp_path / "store", ["", *dotted, "DRUG//ASPIRIN"])
    assert spec.of_visit_codes == (0, 3, 1, 0, 0)


def test_a_vocabulary_of_other_data_is_taken_as_it_is(tmp_path):
    meds = write_meds(tmp_path / "home" / "meds", EVENTS, SPLITS)
    serve(meds, SETS, samples(meds, (1, 5)), tmp_path / "home")
    moved = CodeSetModality(vocabulary=str(tmp_path / "home" / "store"))
    away = write_meds(tmp_path / "away" / "meds", EVENTS, {1: "held_out", 2: "held_out", 3: "train"})
    batch = serve(away, moved, samples(away, (1, 5)), tmp_path / "away")
    assert named(batch, tmp_path / "home") == [({"401.9", "428.0"}, {"ASPIRIN", "HEPARIN"})]
    assert moved.spec(tmp_path / "away" / "store") == SETS.spec(tmp_path / "home" / "store")
    own = CodeSetModality(vocabulary=str(tmp_path / "away" / "store"))
    assert moved.fingerprint() == own.fingerprint() is not None
    assert SETS.fingerprint() is None


def test_data_without_drugs_or_a_vocabulary_without_their_codes_are_refused(tmp_path):
    undrugged = write_meds(tmp_path / "a", [e for e in EVENTS if "DRUG" not in e[2]], SPLITS)
    with pytest.raises(InputError, match=r"known drug in the data, found none. Read diagnoses and drugs"):
        serve(undrugged, SETS, samples(undrugged, (1, 5)), tmp_path / "b")
    with pytest.raises(InputError, match=r"codes.vocabulary=.*nowhere"):
        CodeSetModality(vocabulary=str(tmp_path / "nowhere")).fingerprint()
    with pytest.raises(InputError, match=r"codes.min_count"):
        CodeSetModality(min_count=0)
