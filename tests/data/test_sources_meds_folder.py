"""MEDS folders of other ETLs: checked against the standard, then read as they are."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from polars.testing import assert_frame_equal

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_meds
from raw_tables import dataset_of, events_of

D1, D2, D3 = datetime(2020, 1, 1, 8), datetime(2020, 1, 1, 20), datetime(2020, 2, 1)

# subject, time, code, numeric_value, hadm_id
FIRST = [
    (3, None, "GENDER//F", None, None),
    (3, D1, "DIAGNOSIS//ICD//10//I509", None, 31),
    (3, D2, "LAB//51003//UNK", 1.5, 31),
    (3, D3, "ICD9CM/428.0", None, 32),
    (1, D1, "MEDICATION//Aspirin", None, 11),
]
SECOND = [(number, D1, "DIAGNOSIS//ICD//9//4280", None, 100 + number) for number in (2, 4, 5)]


def write_part(path: Path, rows: list[tuple[Any, ...]], **types: pa.DataType) -> None:
    names = ("subject_id", "time", "code", "numeric_value", "hadm_id")
    schema = {
        "subject_id": pa.int64(),
        "time": pa.timestamp("us"),
        "code": pa.string(),
        "numeric_value": pa.float32(),
        "hadm_id": pa.int64(),
    } | types
    columns = {name: pa.array([row[i] for row in rows], type=schema[name]) for i, name in enumerate(names)}
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns), path)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_part(tmp_path / "raw/data/train/0.parquet", FIRST)
    write_part(tmp_path / "raw/data/held_out/0.parquet", SECOND)
    return tmp_path / "raw"


def write_splits(root: Path, names: dict[int, str]) -> None:
    (root / "metadata").mkdir(exist_ok=True)
    frame = pl.DataFrame({"subject_id": list(names), "split": list(names.values())})
    frame.write_parquet(root / "metadata/subject_splits.parquet")


def test_events_are_read_as_they_are(root: Path) -> None:
    events = events_of(open_meds(root))
    assert events.filter(subject_id=3).select("time", "code", "numeric_value", "visit_id").rows() == [
        row[1:] for row in FIRST[:4]
    ]
    assert events["subject_id"].unique().to_list() == [1, 2, 3, 4, 5]


def test_events_do_not_depend_on_the_number_of_buckets(root: Path) -> None:
    source = open_meds(root)
    many = dataset_of(source, bucket_bytes=5000)
    assert len(many.shards()) > 2
    assert_frame_equal(many.scan().sort("subject_id", maintain_order=True).collect(), events_of(source))


def test_kinds_of_common_etls_are_known_and_may_be_changed(root: Path) -> None:
    dataset = dataset_of(open_meds(root))
    found = dataset.scan().filter(dataset.is_kind("diagnosis", "drug")).collect()["code"].unique().sort().to_list()
    assert found == ["DIAGNOSIS//ICD//10//I509", "DIAGNOSIS//ICD//9//4280", "ICD9CM/428.0", "MEDICATION//Aspirin"]
    changed = open_meds(root, kinds={"drug": ["^LAB//"], "diagnosis": [], "lab": []})
    other = dataset_of(changed)
    assert other.scan().filter(other.is_kind("drug", "diagnosis")).collect()["code"].to_list() == ["LAB//51003//UNK"]
    assert changed.fingerprint() != open_meds(root).fingerprint()


def test_source_provides_what_its_codes_mean(root: Path) -> None:
    assert open_meds(root).provides == {"visits", "demographics", "labs"}
    assert open_meds(root, kinds={"lab": []}).provides == {"visits", "demographics"}


def test_visits_have_no_name_where_no_column_gives_one(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    write_part(root / "data/0.parquet", FIRST + SECOND)
    path = root / "data/0.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["hadm_id", "numeric_value"]), path)
    events = events_of(open_meds(root)).filter(subject_id=3)
    assert events["visit_id"].to_list() == [None] * 4  # a stay of days is then paired by time, not by its days
    assert events["numeric_value"].null_count() == 4


def test_visit_column_may_be_chosen_and_may_be_text(tmp_path: Path) -> None:
    root = tmp_path / "raw"
    rows = [(*row[:4], None if row[4] is None else f"stay-{row[4]}") for row in FIRST + SECOND]
    write_part(root / "data/0.parquet", rows, hadm_id=pa.string())
    visits = events_of(open_meds(root, visit="hadm_id")).filter(subject_id=3)["visit_id"].to_list()
    assert visits[0] is None
    assert visits[1] == visits[2] != visits[3]
    with pytest.raises(InputError, match=r"column 'stay' is not in every file.*found code, hadm_id"):
        open_meds(root, visit="stay")


def test_own_split_is_kept(root: Path) -> None:
    own = {1: "train", 2: "tuning", 3: "train", 4: "held_out", 5: "train", 77: "train"}
    write_splits(root, own)
    found = dict(dataset_of(open_meds(root)).splits().iter_rows())
    assert found == {subject: own[subject] for subject in (1, 2, 3, 4, 5)}


@pytest.mark.parametrize(
    ("names", "message"),
    [
        ({1: "train", 2: "tuning", 3: "held_out", 4: "train"}, "found 1 of 5 missing"),
        ({1: "train", 2: "val", 3: "test", 4: "train", 5: "train"}, "found test, train, val"),
        ({1: "train", 2: "train", 3: "held_out", 4: "train", 5: "train"}, "expected the splits train, tuning"),
    ],
)
def test_own_split_must_be_whole(root: Path, names: dict[int, str], message: str) -> None:
    write_splits(root, names)
    with pytest.raises(InputError, match=message):
        dataset_of(open_meds(root))


def test_own_descriptions_are_kept(root: Path) -> None:
    (root / "metadata").mkdir()
    codes = {"code": ["MEDICATION//Aspirin", "LAB//51003//UNK"], "description": ["acetylsalicylic acid", None]}
    pl.DataFrame(codes).write_parquet(root / "metadata/codes.parquet")
    names = dict(dataset_of(open_meds(root)).codes().select("code", "description").iter_rows())
    assert names["MEDICATION//Aspirin"] == "acetylsalicylic acid"
    assert set(names) == {row[2] for row in FIRST + SECOND}


def test_folder_without_data_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected data/\*.parquet, found none"):
        open_meds(tmp_path)


@pytest.mark.parametrize(
    ("types", "message"),
    [
        ({"subject_id": pa.string()}, "'subject_id': expected int64.*found string"),
        ({"time": pa.timestamp("us", "UTC")}, "'time': expected timestamp"),
        ({"time": pa.timestamp("ns")}, "'time': expected timestamp"),
        ({"code": pa.int32()}, "'code': expected string"),
        ({"numeric_value": pa.string()}, "'numeric_value': expected float32"),
    ],
)
def test_wrong_types_are_refused_on_opening(root: Path, types: dict[str, pa.DataType], message: str) -> None:
    write_part(root / "data/x.parquet", [], **types)
    with pytest.raises(InputError, match=message):
        open_meds(root)


def test_missing_column_is_refused_on_opening(root: Path) -> None:
    path = root / "data/train/0.parquet"
    pq.write_table(pq.read_table(path).drop_columns("time"), path)
    with pytest.raises(InputError, match=r"0.parquet: column 'time'.*missing; found subject_id, code"):
        open_meds(root)


def test_half_a_file_is_refused_on_opening(root: Path) -> None:
    path = root / "data/train/0.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(InputError, match="expected a Parquet file"):
        open_meds(root)


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([(None, D1, "A", None, None)], "'subject_id': MEDS allows no nulls"),
        ([(9, D1, None, None, None)], "'code': MEDS allows no nulls"),
        ([(9, D3, "A", None, None), (9, D1, "B", None, None)], "sorted by time"),
        ([(9, D1, "A", None, None), (9, None, "B", None, None)], "static events"),
        ([(9, D1, "A", None, None), (8, D1, "A", None, None), (9, D2, "B", None, None)], "split up"),
        ([(3, D1, "A", None, None)], "found 1 subjects in several"),
    ],
)
def test_rows_that_break_the_standard_are_refused(root: Path, rows: list[tuple[Any, ...]], message: str) -> None:
    write_part(root / "data/x.parquet", rows)
    with pytest.raises(InputError, match=message):
        events_of(open_meds(root))


def test_order_is_checked_across_batches(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ehrlab.data.sources.meds_folder.ROWS", 2)
    times = [D1, D2, D3]
    write_part(root / "data/x.parquet", [(9, time, "A", None, None) for time in times])
    assert events_of(open_meds(root))["subject_id"].n_unique() == 6
    write_part(root / "data/x.parquet", [(9, time, "A", None, None) for time in (D1, D3, D2)])
    with pytest.raises(InputError, match="sorted by time"):
        events_of(open_meds(root))


@pytest.mark.parametrize("simulated", [True, False])
def test_simulated_folder_says_so(root: Path, simulated: bool) -> None:
    (root / "metadata").mkdir(exist_ok=True)
    (root / "metadata" / "dataset.json").write_text(f'{{"simulated": {str(simulated).lower()}}}')
    assert open_meds(root).simulated is simulated


def test_folder_without_a_word_on_it_is_taken_for_real(root: Path) -> None:
    assert not open_meds(root).simulated
