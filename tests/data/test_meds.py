"""The MEDS folder that `build` writes: valid, sorted, split once, the same every time."""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import meds as standard
import polars as pl
import pyarrow.parquet as pq
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data import meds
from ehrlab.data.meds import MedsDataset, SplitSettings, assign_splits, build
from ehrlab.data.sources.source import EVENT_SCHEMA, EventTable, Fault, Source


class Tables(Source):
    """A source in memory: `tables` are lists of (subject, day or None, code, fault)."""

    name = "memory"
    provides = frozenset({"visits"})

    def __init__(self, root: Path, *tables: list[tuple[int, int | None, str, int | None]]) -> None:
        self.root = root
        self._tables = tables

    def files(self) -> list[Path]:
        return sorted(self.root.glob("*.raw"))

    def settings(self) -> dict[str, object]:
        return {}

    def tables(self):  # type: ignore[no-untyped-def]
        faults = (Fault("a bad thing", 0.0), Fault("a known gap", 1.0), Fault("a rare flaw", 0.4))
        for number, rows in enumerate(self._tables):
            frame = pl.LazyFrame(
                {
                    "subject_id": [row[0] for row in rows],
                    "time": [None if row[1] is None else datetime(2020, 1, row[1]) for row in rows],
                    "code": [row[2] for row in rows],
                    "numeric_value": [float(i) for i in range(len(rows))],
                    "text_value": None,
                    "visit_id": None,
                    "sequence": None,
                    "fault": [row[3] for row in rows],
                },
                schema=EVENT_SCHEMA | {"fault": pl.UInt8()},
            )
            yield EventTable(f"t{number}", frame, faults, (), is_roster=number == 0)


ROSTER: list[tuple[int, int | None, str, int | None]] = [(n, None, "GENDER//F", None) for n in range(20)]


def make(tmp_path: Path, *tables: list[tuple[int, int | None, str, int | None]], num_buckets: int = 1) -> MedsDataset:
    root = tmp_path / "raw"
    root.mkdir(exist_ok=True)
    (root / "x.raw").write_bytes(b"x" * 100)
    out = tmp_path / f"meds{num_buckets}"
    out.mkdir()
    build(Tables(root, *tables), out, SplitSettings(), simulated=True, bucket_bytes=-(-100 // num_buckets))
    return MedsDataset.open(out)


EVENTS: list[tuple[int, int | None, str, int | None]] = [
    (7, 9, "DIAGNOSIS//ICD//9//428.0", None),
    (7, 3, "B", None),
    (2, 3, "B", None),
    (7, 3, "A", None),
    (7, None, "RACE//X", None),
]


@pytest.mark.parametrize("num_buckets", [1, 3])
def test_folder_satisfies_the_standard(tmp_path: Path, num_buckets: int) -> None:
    dataset = make(tmp_path, ROSTER, EVENTS, num_buckets=num_buckets)
    seen: list[int] = []
    for shard in dataset.shards():
        table = pq.read_table(shard)
        standard.DataSchema.validate(table)
        events = pl.read_parquet(shard)
        runs = events["subject_id"].rle().struct.field("value").to_list()
        assert len(set(runs)) == len(runs)
        seen += runs
        for _, own in events.group_by("subject_id"):
            assert own["time"].is_sorted(nulls_last=False)
    assert sorted(seen) == list(range(20))
    standard.SubjectSplitSchema.validate(pq.read_table(dataset.path / standard.subject_splits_filepath))
    standard.CodeMetadataSchema.validate(pq.read_table(dataset.path / standard.code_metadata_filepath))
    standard.DatasetMetadataSchema.validate(json.loads((dataset.path / standard.dataset_metadata_filepath).read_text()))
    assert not (dataset.path / "spill").exists()


def test_events_of_one_time_keep_the_order_of_the_tables(tmp_path: Path) -> None:
    events = make(tmp_path, ROSTER, EVENTS).scan().filter(subject_id=7).collect()
    assert events["code"].to_list() == ["GENDER//F", "RACE//X", "B", "A", "DIAGNOSIS//ICD//9//428.0"]


def test_building_twice_gives_the_same_bytes(tmp_path: Path) -> None:
    first = make(tmp_path, ROSTER, EVENTS, num_buckets=3)
    (tmp_path / "again").mkdir()
    second = make(tmp_path / "again", ROSTER, EVENTS, num_buckets=3)
    for shard in first.shards():
        assert shard.read_bytes() == (second.path / "data" / shard.name).read_bytes()
    assert first.codes().equals(second.codes())
    assert first.splits().equals(second.splits())


def test_faulty_rows_are_dropped_and_counted(tmp_path: Path) -> None:
    rows = [*EVENTS, (7, 1, "GAP", 2), (8, 1, "GAP", 2), (8, 1, "FLAW", 3), (99, 1, "STRANGER", None)]
    dataset = make(tmp_path, ROSTER, rows)
    assert dataset.counts["dropped"] == {
        "t1": {"a known gap": 2, "a rare flaw": 1, "a subject that the patient table lacks": 1}
    }
    assert dataset.counts["events"] == 20 + len(EVENTS)
    assert not dataset.codes()["code"].is_in(["GAP", "FLAW", "STRANGER"]).any()


@pytest.mark.parametrize(
    ("fault", "rows", "message"),
    [(1, 1, "t1 .*1 rows .* a bad thing; none may"), (3, 5, r"5 rows \(50.00%\) have a rare flaw; at most 40%")],
)
def test_too_many_faulty_rows_are_refused(tmp_path: Path, fault: int, rows: int, message: str) -> None:
    with pytest.raises(InputError, match=message):
        make(tmp_path, ROSTER, EVENTS + [(7, 1, "X", fault)] * rows)


def test_codes_are_described_once_each(tmp_path: Path) -> None:
    codes = make(tmp_path, ROSTER, EVENTS).codes()
    assert codes["code"].to_list() == ["A", "B", "DIAGNOSIS//ICD//9//428.0", "GENDER//F", "RACE//X"]
    assert codes.row(2)[1:] == (
        "Congestive heart failure, unspecified",
        ["DIAGNOSIS//ICD//9//428"],
        "108",
    )


def test_dataset_says_that_it_is_simulated_and_what_it_provides(tmp_path: Path) -> None:
    dataset = make(tmp_path, ROSTER)
    assert dataset.simulated
    assert dataset.provides == {"visits"}
    assert dataset.name == "memory"


def test_unknown_kind_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        make(tmp_path, ROSTER).is_kind("diagnoses")


def test_folder_of_another_tool_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="data=meds"):
        MedsDataset.open(tmp_path)


def test_fingerprint_names_files_split_and_origin(tmp_path: Path) -> None:
    (tmp_path / "x.raw").write_bytes(b"1")
    source = Tables(tmp_path, ROSTER)
    first = meds.fingerprint(source, SplitSettings(), simulated=False)
    assert meds.fingerprint(source, SplitSettings(), simulated=True) != first
    assert meds.fingerprint(source, SplitSettings(seed=1), simulated=False) != first
    (tmp_path / "x.raw").write_bytes(b"2")
    assert meds.fingerprint(source, SplitSettings(), simulated=False) != first


def test_split_has_the_papers_shares_and_ignores_order() -> None:
    subjects = pl.Series("subject_id", range(1000), dtype=pl.Int64)
    splits = assign_splits(subjects, SplitSettings())
    assert dict(splits.group_by("split").len().iter_rows()) == {"train": 750, "tuning": 100, "held_out": 150}
    reversed_ = assign_splits(subjects.reverse(), SplitSettings())
    assert reversed_.sort("subject_id").equals(splits)


def test_split_changes_with_its_seed_only() -> None:
    subjects = pl.Series("subject_id", range(1000), dtype=pl.Int64)
    same, other = assign_splits(subjects, SplitSettings()), assign_splits(subjects, SplitSettings(seed=1))
    assert same.equals(assign_splits(subjects, SplitSettings()))
    agreement = (same["split"] == other["split"]).mean()
    # Independent splits agree on .75^2 + .1^2 + .15^2 = .595 of the subjects.
    assert agreement == pytest.approx(0.595, abs=0.05)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_too_few_subjects_for_the_split_are_refused(number: int) -> None:
    with pytest.raises(InputError, match=f"{number} subjects are too few for the split 0.75/0.1/0.15"):
        assign_splits(pl.Series("subject_id", range(number), dtype=pl.Int64), SplitSettings())


@pytest.mark.parametrize("shares", [(0.9, 0.1), (0.0, 0.5), (0.5, -0.1)])
def test_shares_that_leave_nothing_are_refused(shares: tuple[float, float]) -> None:
    with pytest.raises(InputError, match="split"):
        SplitSettings(train=shares[0], tuning=shares[1])
