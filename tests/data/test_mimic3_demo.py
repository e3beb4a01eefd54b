"""The real MIMIC-III demo (PhysioNet, ODbL), where EHRLAB_MIMIC3_DEMO names its folder."""

from __future__ import annotations

import os
from pathlib import Path

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data import meds
from ehrlab.data.sources import open_mimic

ROOT = os.environ.get("EHRLAB_MIMIC3_DEMO", "")
pytestmark = pytest.mark.skipif(not ROOT, reason="EHRLAB_MIMIC3_DEMO does not name the demo's folder")

TABLES = ("diagnoses", "procedures", "drugs", "labs", "icu_stays", "vitals")


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> meds.MedsDataset:
    out = tmp_path_factory.mktemp("meds")
    # Small buckets: the demo fits in one, real data do not.
    meds.build(open_mimic(ROOT, TABLES), out, meds.SplitSettings(), simulated=False, bucket_bytes=20 * 2**20)
    return meds.MedsDataset.open(out)


def count(dataset: meds.MedsDataset, prefix: str) -> int:
    return dataset.scan().filter(pl.col("code").str.starts_with(prefix)).select(pl.len()).collect().item()


def test_every_row_of_the_demo_arrives(dataset: meds.MedsDataset) -> None:
    assert len(dataset.shards()) > 1
    assert count(dataset, "GENDER//") == 100
    assert count(dataset, "HOSPITAL_ADMISSION//") == count(dataset, "HOSPITAL_DISCHARGE//") == 129
    assert count(dataset, "ICU_ADMISSION//") == 136
    assert count(dataset, "DIAGNOSIS//ICD//9//") == 1761
    assert count(dataset, "PROCEDURE//ICD//9//") == 506
    assert count(dataset, "DRUG//") == 10398
    assert count(dataset, "LAB//") == 76074
    assert dataset.counts["dropped"] == {}


def test_every_patient_of_the_demo_dies_and_forty_stays_end_so(dataset: meds.MedsDataset) -> None:
    assert count(dataset, "MEDS_DEATH") == 100
    assert count(dataset, "HOSPITAL_DISCHARGE//DIED") == 40


def test_labs_without_admission_are_kept(dataset: meds.MedsDataset) -> None:
    labs = dataset.scan().filter(pl.col("code").str.starts_with("LAB//"))
    assert labs.select(pl.col("visit_id").is_null().sum()).collect().item() == 14262


def test_eight_patients_are_ninety_and_none_is_older_at_first_admission(dataset: meds.MedsDataset) -> None:
    events = dataset.scan().collect()
    born = events.filter(code="MEDS_BIRTH").select("subject_id", born="time")
    first = (
        events.filter(pl.col("code").str.starts_with("HOSPITAL_ADMISSION//"))
        .group_by("subject_id")
        .agg(first=pl.col("time").min())
    )
    ages = born.join(first, on="subject_id").select(
        (pl.col("first").dt.year() - pl.col("born").dt.year()).alias("age")
    )["age"]
    assert len(ages) == 100
    assert (ages == 90).sum() == 8
    assert ages.max() == 90


def test_diagnoses_have_names_and_groups(dataset: meds.MedsDataset) -> None:
    codes = dataset.codes().filter(pl.col("code").str.starts_with("DIAGNOSIS//"))
    assert len(codes) == 581
    # Twenty were subdivided before the last code list (585, 276.5 ...); the release's dictionary lacks them as well.
    assert codes["description"].null_count() == 20
    assert codes["ccs"].null_count() == 0


def test_split_is_75_10_15(dataset: meds.MedsDataset) -> None:
    assert dict(dataset.splits().group_by("split").len().iter_rows()) == {"train": 75, "tuning": 10, "held_out": 15}


def test_empty_note_table_of_the_demo_is_refused() -> None:
    assert (Path(ROOT) / "NOTEEVENTS.csv.gz").exists()
    with pytest.raises(InputError, match="only the header"):
        open_mimic(ROOT, ["notes"])
