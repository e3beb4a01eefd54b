"""What a modality beside visits has to do: keep what a data set holds of it, and find what each sample sees.

A modality is written in two folders. The *store* is made once per data set, whatever the task, so that pretraining and
all tasks share it; what is fitted in it knows training subjects only. A *selection* says, for the rows of one table of
samples, which parts of the store they see.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.batch import TensorGroup
from ehrlab.core.errors import InputError
from ehrlab.data.meds import MedsDataset

ADMISSIONS = pl.Schema(
    {"subject_id": pl.Int64(), "visit_id": pl.Int64(), "admitted": pl.Datetime("us"), "discharged": pl.Datetime("us")}
)


class Reader(Protocol):
    """Serves the padded group of the samples `rows`, trimmed to the widest of them, and at least one wide."""

    def __call__(self, rows: NDArray[np.int64]) -> TensorGroup: ...


class Modality(ABC):
    """One Batch field beside visits. Subclasses are frozen dataclasses; their fields are the settings of conf/<name>.

    name     the Batch field, and that of the DataSpec
    version  raised whenever the same events give other files, so that older caches are not taken
    computed  files of the store that a network wrote: their last digits are the machine's
    """

    name: ClassVar[str]
    version: ClassVar[int]
    computed: ClassVar[frozenset[str]] = frozenset()

    @abstractmethod
    def build(self, meds: MedsDataset, out: Path) -> None:
        """Write the store into the existing folder `out`; InputError where the data lack what it needs."""

    @abstractmethod
    def select(self, meds: MedsDataset, store: Path, samples: pl.DataFrame, out: Path) -> None:
        """Write into `out` what each row of `samples` (see `with_admissions`) sees, row by row."""

    @abstractmethod
    def reader(self, store: Path, selection: Path) -> Reader:
        """Cheap: files are memory-mapped."""

    @abstractmethod
    def spec(self, store: Path) -> Any:
        """The sizes that a model is built from: an entry of DataSpec."""

    def spec_beside(self, store: Path, visit_codes: Sequence[str]) -> Any:
        """`spec`, where the samples also have visits: `visit_codes` are the codes of their ids."""
        return self.spec(store)

    def fingerprint(self) -> Any:
        """What decides the store besides events and settings: the content of files that a setting names. JSON-able."""
        return None


def admissions(meds: MedsDataset) -> pl.DataFrame:
    """Every hospital admission with a beginning and an end (ADMISSIONS), sorted by subject and time.

    InputError where the data hold none.
    """
    found = admissions_if_any(meds)
    if found.is_empty():
        raise InputError(
            "the data hold no hospital admission with a beginning and an end (kinds.admission, kinds.discharge), to "
            "which stays, notes and labs belong. Choose data with admissions, or a model that reads visits only."
        )
    return found


def admissions_if_any(meds: MedsDataset) -> pl.DataFrame:
    begins, ends = meds.is_kind("admission"), meds.is_kind("discharge")
    found = (
        meds.scan()
        .filter((begins | ends) & pl.col("time").is_not_null() & pl.col("visit_id").is_not_null())
        .group_by("subject_id", "visit_id")
        .agg(
            admitted=pl.col("time").filter(begins).min(),
            discharged=pl.col("time").filter(ends).max(),
        )
        .drop_nulls()
        .filter(pl.col("discharged") >= pl.col("admitted"))
        .sort("subject_id", "admitted", "visit_id")
        .collect(engine="streaming")
    )
    return found.select(ADMISSIONS.names())


def with_admissions(samples: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """`samples` (sample, subject_id, prediction_time, ...) with the admission of each, in their order.

    It is the one that began last at or before prediction_time. Adds visit_id, admitted, discharged (null where there
    is none) and over: it had ended by prediction_time.

    known  of `admissions`
    """
    joined = (
        samples.sort("prediction_time")
        .join_asof(
            known.sort("admitted"),
            left_on="prediction_time",
            right_on="admitted",
            by="subject_id",
            strategy="backward",
            check_sortedness=False,
            coalesce=False,
        )
        .sort("sample")
    )
    return joined.with_columns(over=(pl.col("discharged") <= pl.col("prediction_time")).fill_null(False))
