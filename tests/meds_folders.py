"""MEDS folders of hand-written events for the tests of cohorts and tensors."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from datetime import datetime, timedelta
from pathlib import Path

import polars as pl

from ehrlab.data.codes import DEFAULT_KINDS
from ehrlab.data.meds import SPLITS, MedsDataset
from ehrlab.data.sources.source import EVENT_SCHEMA

START = datetime(2020, 1, 1)
Event = tuple[int, float | None, str, int | None, int | None]
"""subject_id, days since START (None = static), code, visit_id, sequence"""


def event(subject: int, day: float | None, code: str, visit: int | None = None, sequence: int | None = None) -> Event:
    return subject, day, code, visit, sequence


def dx(subject: int, day: float, *codes: str, visit: int | None = None) -> list[Event]:
    """ICD-9 diagnoses in their order of rank."""
    return [event(subject, day, f"DIAGNOSIS//ICD//9//{code}", visit, i) for i, code in enumerate(codes, 1)]


def person(subject: int, gender: str = "F", race: str = "WHITE", age: float = 60.0) -> list[Event]:
    """Gender, race and birth; `age` in years at START."""
    return [
        event(subject, None, f"GENDER//{gender}"),
        event(subject, None, f"RACE//{race}"),
        event(subject, -age * 365.25, "MEDS_BIRTH"),
    ]


def stay(subject: int, start: float, end: float, visit: int | None = None, died: bool = False) -> list[Event]:
    return [
        event(subject, start, "HOSPITAL_ADMISSION//URGENT", visit),
        event(subject, end, "HOSPITAL_DISCHARGE//DIED" if died else "HOSPITAL_DISCHARGE//HOME", visit),
    ]


def at(day: float) -> datetime:
    return START + timedelta(days=day)


def write_meds(
    path: Path, events: Iterable[Event], splits: Mapping[int, str] | None = None, num_shards: int = 2
) -> MedsDataset:
    """A folder as `meds.build` writes it; subjects go to shards and, unless told, to splits by turns."""
    frame = pl.DataFrame(
        [(s, None if day is None else at(day), code, None, None, visit, seq) for s, day, code, visit, seq in events],
        schema=EVENT_SCHEMA,
        orient="row",
    ).sort("subject_id", "time", nulls_last=False, maintain_order=True)
    (path / "data").mkdir(parents=True)
    (path / "metadata").mkdir()
    for shard in range(num_shards):
        frame.filter(pl.col("subject_id") % num_shards == shard).write_parquet(path / "data" / f"{shard}.parquet")
    subjects = frame["subject_id"].unique().sort().to_list()
    names = [(splits or {}).get(s, SPLITS[i % 3]) for i, s in enumerate(subjects)]
    pl.DataFrame({"subject_id": subjects, "split": names}).write_parquet(path / "metadata" / "subject_splits.parquet")
    codes = frame["code"].unique().sort()
    pl.DataFrame({"code": codes, "description": "about " + codes}).write_parquet(path / "metadata" / "codes.parquet")
    description = {
        "dataset_name": "hand-written",
        "simulated": True,
        "provides": ["visits", "demographics"],
        "kinds": DEFAULT_KINDS,
        "fingerprint": f"of {path.name}",
        "counts": {},
    }
    (path / "metadata" / "dataset.json").write_text(json.dumps(description))
    return MedsDataset.open(path)
