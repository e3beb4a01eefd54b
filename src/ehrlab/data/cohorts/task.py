"""What a task is: a rule that turns events into labelled samples, in the MEDS label schema."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.batch import MODALITIES
from ehrlab.core.errors import InputError
from ehrlab.data.cache import content_key
from ehrlab.data.meds import SPLITS, MedsDataset

SCHEMA_VERSION = 2
"""Raised whenever a task selects other samples from the same events, so that caches of older versions are not taken."""

SAMPLE_SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "prediction_time": pl.Datetime("us"),
        "boolean_value": pl.Boolean(),
        "history_start": pl.Datetime("us"),
    }
)
"""MEDS label columns, then history_start: a sample's input is what happened in (history_start, prediction_time].

A null history_start means from the beginning of the record.
"""

VALUES = "boolean_values"
"""In place of boolean_value where a task has several labels: a list of a value each, in the order of Task.labels."""

ALL_INPUTS = frozenset(MODALITIES)

OLDEST = 90
"""Ages above are one age: MIMIC-III shifts them to 300 years, MIMIC-IV and TriNetX top-code them."""

UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class Cohort:
    """Samples (see `finish`) sorted by subject and time, and how many candidates were dropped, by reason."""

    samples: pl.DataFrame
    dropped: Mapping[str, int]


@dataclass(frozen=True)
class Task(ABC):
    """A prediction task. Its fields are the settings in conf/task.

    unit    what a sample is: "patient", "admission" or "stay"
    inputs  Batch fields that its samples may hold: not those that are empty by its rules, or that hold the label
    tables  optional raw tables that it needs to find labels, where a source has tables (data.source.tables)
    """

    unit: ClassVar[str] = "patient"
    inputs: ClassVar[frozenset[str]] = ALL_INPUTS
    tables: ClassVar[frozenset[str]] = frozenset()

    name: str

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, where there are several."""
        return ()

    @abstractmethod
    def cohort(self, meds: MedsDataset) -> Cohort:
        """Select and label; InputError where the data lack what the task needs. The cohort may be empty."""

    def fingerprint(self) -> str:
        """Names what decides the samples besides the events: the class and its settings."""
        return content_key(SCHEMA_VERSION, type(self).__name__, asdict(self))


def as_strings(value: Iterable[Any], setting: str) -> tuple[str, ...]:
    """A list of a config as a tuple of strings; InputError for a single string, which would be split to letters."""
    if isinstance(value, str):
        raise InputError(f"{setting}: expected a list, found the text '{value}'; write it as [{value}]")
    return tuple(str(item) for item in value)


def finish(samples: pl.DataFrame, dropped: Mapping[str, int]) -> Cohort:
    """A Cohort of `samples`, whose history_start may be missing; the order is that of subject and time.

    The samples have a column boolean_value, or boolean_values (VALUES) for a task with several labels; those of a view
    without labels have neither.
    """
    if "history_start" not in samples.columns:
        samples = samples.with_columns(history_start=None)
    several = VALUES in samples.columns
    schema = {(VALUES if several and name == "boolean_value" else name): dtype for name, dtype in SAMPLE_SCHEMA.items()}
    if several:
        schema[VALUES] = pl.List(pl.Boolean())
    elif "boolean_value" not in samples.columns:
        del schema["boolean_value"]
    samples = samples.select(pl.col(name).cast(dtype) for name, dtype in schema.items())
    order = [name for name in ("subject_id", "prediction_time", "boolean_value") if name in schema]
    return Cohort(samples.sort(order), {k: int(v) for k, v in dropped.items()})


def visit_keys(by: str = "visit") -> tuple[pl.Expr, pl.Expr]:
    """Two columns that name a visit within a subject: visit_id, and `day` where an event is part of no visit.

    by  "visit": admission or encounter, else the calendar day; "day": always the calendar day
    """
    visit_id = pl.col("visit_id") if by == "visit" else pl.lit(None, dtype=pl.Int64)
    day = pl.when(visit_id.is_null()).then(pl.col("time").dt.date())
    return visit_id.alias("visit_id"), day.alias("day")


def scrambled(ids: NDArray[np.int64], seed: int) -> NDArray[np.uint64]:
    """A seeded pseudo-random key for each id (SplitMix64): the same on every machine, independent of the other ids."""
    x = ids.astype(np.uint64) + np.uint64((seed + 1) * 0x9E3779B97F4A7C15 % 2**64)  # wraps around modulo 2^64
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def check_classes(name: str, counts: Mapping[str, tuple[int, int]], dropped: Mapping[str, int]) -> None:
    """InputError unless every split holds both classes. `counts`: split -> (positives, negatives) of one label."""
    if all(counts.get(split, (0, 0))[0] and counts.get(split, (0, 0))[1] for split in SPLITS):
        return
    found = ", ".join("{} {}/{}".format(split, *counts.get(split, (0, 0))) for split in SPLITS)
    reasons = "; ".join(f"{reason}: {count}" for reason, count in dropped.items() if count)
    empty = not any(sum(pair) for pair in counts.values())
    raise InputError(
        f"task '{name}': expected positive and negative samples in each split, found "
        + ("no sample at all" if empty else f"positives/negatives {found}")
        + (f" (dropped: {reasons})" if reasons else "")
        + ". Choose another task, another split.seed, or a larger cohort."
    )
