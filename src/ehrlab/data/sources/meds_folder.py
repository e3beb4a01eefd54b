"""Any MEDS folder, whichever ETL made it: checked against the standard, then read like every other source."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import meds
import numpy as np
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrlab.core.errors import InputError
from ehrlab.data.codes import merge_kinds
from ehrlab.data.sources.ids import hash_ids
from ehrlab.data.sources.source import EVENT_SCHEMA, EventTable, Source

VISIT_COLUMNS = ("visit_id", "hadm_id", "encounter_id", "visit_occurrence_id")
"""Extra columns that name the visit, in order of preference."""

ROWS = 1_000_000

# Kinds of which at least one code must occur for a modality to be there.
_NEEDS = {"visits": ("diagnosis", "procedure", "drug"), "labs": ("lab",), "notes": ("note",), "text": ("note",)}


class MedsFolder(Source):
    """A MEDS folder.

    kinds  kind of event -> regular expressions of this ETL's codes; unnamed kinds keep codes.DEFAULT_KINDS
    visit  the column that groups events into visits; by default the first of VISIT_COLUMNS that the files have, else
           visits have no names: stays go by time, and what needs visits takes a subject's calendar days

    The schema is checked on opening; order, contiguity and nulls when the events are read (one streaming pass).
    Errors: InputError where the folder breaks the standard.
    """

    name = "meds"

    def __init__(
        self, root: Path | str, kinds: Mapping[str, Iterable[str]] | None = None, visit: str | None = None
    ) -> None:
        self.root = Path(root)
        self.kinds = merge_kinds(kinds or {})
        self._data = sorted((self.root / meds.data_subdirectory).rglob("*.parquet"))
        if not self._data:
            raise InputError(
                f"MEDS folder {self.root}: expected {meds.data_subdirectory}/*.parquet, found none; correct data.root"
            )
        self._schemas = [_schema(path) for path in self._data]
        for path, schema in zip(self._data, self._schemas):
            _check_schema(path, schema)
        self._visit = self._visit_column(visit)
        self._metadata = [
            path
            for name in (meds.code_metadata_filepath, meds.subject_splits_filepath)
            if (path := self.root / name).is_file()
        ]
        self.provides = self._provides()

    @property
    def simulated(self) -> bool:
        """As its dataset.json says; a generator's synthetic cohort and what our own simulator made both do."""
        path = self.root / meds.dataset_metadata_filepath
        if not path.is_file():
            return super().simulated
        try:
            return bool(json.loads(path.read_text(encoding="utf-8")).get("simulated", False))
        except (json.JSONDecodeError, AttributeError) as error:
            raise InputError(f"{path}: expected a JSON object, found none; correct or remove the file") from error

    def files(self) -> list[Path]:
        return [*self._data, *self._metadata]

    def settings(self) -> dict[str, Any]:
        return {"kinds": self.kinds, "visit": self._visit}

    def tables(self) -> Iterator[EventTable]:
        _ = self._subjects  # checks the rows
        yield EventTable(
            "events", pl.concat(self._events(*f) for f in zip(self._data, self._schemas)), (), tuple(self._data)
        )

    def code_metadata(self) -> pl.DataFrame:
        path = self.root / meds.code_metadata_filepath
        if path not in self._metadata:
            return super().code_metadata()
        found = _read(path)
        if "code" not in found.columns:
            raise InputError(f"{path}: expected a column code, found {', '.join(found.columns)}; rewrite the file")
        description = pl.col("description") if "description" in found.columns else pl.lit(None)
        return found.select(pl.col("code").cast(pl.String), description.cast(pl.String).alias("description"))

    def splits(self) -> pl.DataFrame | None:
        """The folder's own split, which must place every subject in train, tuning or held_out, none of them empty."""
        path = self.root / meds.subject_splits_filepath
        if path not in self._metadata:
            return None
        found = _read(path)
        expected = {meds.train_split, meds.tuning_split, meds.held_out_split}
        if not {"subject_id", "split"} <= set(found.columns):
            raise InputError(f"{path}: expected columns subject_id and split, found {', '.join(found.columns)}")
        found = found.select(pl.col("subject_id").cast(pl.Int64), pl.col("split").cast(pl.String))
        names = set(found["split"].unique().to_list())
        if names != expected:
            shown = ", ".join(sorted(str(name) for name in names))
            raise InputError(
                f"{path}: expected the splits train, tuning and held_out, found {shown}; rename them, or remove the "
                "file to use the seeded split"
            )
        if found["subject_id"].is_duplicated().any():
            raise InputError(f"{path}: expected each subject once, found some twice; rewrite the file")
        missing = len(np.setdiff1d(self._subjects, found["subject_id"].drop_nulls().to_numpy()))
        if missing:
            raise InputError(
                f"{path}: expected every subject of the data, found {missing} of {len(self._subjects)} missing; "
                "complete the file, or remove it to use the seeded split"
            )
        return found

    def _events(self, path: Path, schema: pa.Schema) -> pl.LazyFrame:
        frame = pl.scan_parquet(path, hive_partitioning=False)
        if self._visit is None:
            visit = pl.lit(None, pl.Int64)  # what needs visits takes a subject's days for them, and stays go by time
        elif pa.types.is_integer(schema.field(self._visit).type) or pa.types.is_floating(
            schema.field(self._visit).type
        ):
            visit = pl.col(self._visit).cast(pl.Int64)
        else:
            visit = hash_ids(pl.col(self._visit).cast(pl.String))
        optional = {
            name: pl.col(name).cast(EVENT_SCHEMA[name]) if name in schema.names else pl.lit(None, EVENT_SCHEMA[name])
            for name in ("numeric_value", "text_value")
        }
        return frame.select(
            "subject_id",
            "time",
            pl.col("code").cast(pl.String),
            **optional,
            visit_id=visit,
            sequence=pl.lit(None, pl.Int32),
            fault=pl.lit(None, pl.UInt8),
        )

    def _visit_column(self, wanted: str | None) -> str | None:
        shared = set.intersection(*(set(schema.names) for schema in self._schemas))
        if wanted is None:
            return next((name for name in VISIT_COLUMNS if name in shared), None)
        if wanted not in shared:
            raise InputError(
                f"data.source.visit: column {wanted!r} is not in every file of {self.root / meds.data_subdirectory}; "
                f"found {', '.join(sorted(shared))}"
            )
        return wanted

    def _provides(self) -> frozenset[str]:
        codes = self.code_metadata()["code"]
        if codes.is_empty():
            found = [pl.scan_parquet(path).select(pl.col("code").cast(pl.String).unique()) for path in self._data]
            codes = pl.concat(found).unique().collect(engine="streaming")["code"]

        def occurs(kind: str) -> bool:
            return any(bool(codes.str.contains(pattern).any()) for pattern in self.kinds[kind])

        provides = {"demographics"} | {field for field, kinds in _NEEDS.items() if any(map(occurs, kinds))}
        if occurs("icu_admission") and (occurs("vital") or occurs("lab")):
            provides.add("stays")
        if all(map(occurs, ("diagnosis", "drug", "admission", "discharge"))):
            provides.add("codes")
        return frozenset(provides)

    @cached_property
    def _subjects(self) -> np.ndarray:
        """Sorted ids of all subjects; InputError unless each is contiguous, time-sorted and in one file only."""
        seen = [_check_order(path) for path in self._data]
        ids, counts = np.unique(np.concatenate(seen), return_counts=True)
        if (counts > 1).any():
            raise InputError(
                f"MEDS folder {self.root}: expected each subject in one file of data/ only, found "
                f"{int((counts > 1).sum())} subjects in several; merge them"
            )
        return ids


def open_meds(
    root: Path | str, kinds: Mapping[str, Sequence[str]] | None = None, visit: str | None = None
) -> MedsFolder:
    """A MEDS folder made by any ETL; see MedsFolder."""
    return MedsFolder(root, kinds, visit)


def _schema(path: Path) -> pa.Schema:
    try:
        return pq.read_schema(path)
    except (pa.ArrowInvalid, OSError):
        raise InputError(
            f"{path}: expected a Parquet file, found something else or half of one; copy it again"
        ) from None


def _read(path: Path) -> pl.DataFrame:
    _schema(path)
    return pl.read_parquet(path)


def _is_text(dtype: pa.DataType) -> bool:
    if pa.types.is_dictionary(dtype):
        dtype = dtype.value_type
    return pa.types.is_string(dtype) or pa.types.is_large_string(dtype) or pa.types.is_string_view(dtype)


def _check_schema(path: Path, schema: pa.Schema) -> None:
    """The columns of meds.DataSchema with its types; any width of text and of floats is taken."""
    rules = {
        "subject_id": (True, "int64", pa.types.is_int64),
        "time": (True, "timestamp[us] without time zone", lambda dtype: dtype == pa.timestamp("us")),
        "code": (True, "string", _is_text),
        "numeric_value": (False, "float32", pa.types.is_floating),
        "text_value": (False, "large_string", _is_text),
    }
    for name, (needed, expected, fits) in rules.items():
        if name not in schema.names:
            if needed:
                raise InputError(
                    f"{path}: column {name!r} of the MEDS schema is missing; found {', '.join(schema.names)}; run the "
                    "ETL again"
                )
        elif not fits(schema.field(name).type):
            raise InputError(
                f"{path}: column {name!r}: expected {expected} (MEDS schema), found {schema.field(name).type}; "
                "convert it"
            )


def _check_order(path: Path) -> np.ndarray:
    """The subjects of one file, each once; reads the file in batches.

    MEDS wants the events of a subject contiguous and sorted by time; static events (time null) come first.
    """
    starts: list[np.ndarray] = []
    last_subject: int | None = None
    last_time = 0
    static = np.iinfo(np.int64).min  # a null time, before every time
    for batch in pq.ParquetFile(path).iter_batches(batch_size=ROWS, columns=["subject_id", "time", "code"]):
        for name in ("subject_id", "code"):
            nulls = batch.column(name).null_count
            if nulls:
                raise InputError(
                    f"{path}: column {name!r}: MEDS allows no nulls, found {nulls} or more; run the ETL again"
                )
        if not len(batch):
            continue
        subject = batch.column("subject_id").to_numpy()
        time = batch.column("time").cast(pa.int64()).fill_null(static).to_numpy()
        previous = np.concatenate([[subject[0] if last_subject is None else last_subject], subject[:-1]])
        before = np.concatenate([[static if last_subject is None else last_time], time[:-1]])
        changes = subject != previous
        if ((time < before) & ~changes).any():
            raise InputError(
                f"{path}: expected each subject's events sorted by time, static events (no time) first, found some "
                "that are not; sort the file"
            )
        if last_subject is None:
            changes[0] = True
        starts.append(subject[changes])
        last_subject, last_time = int(subject[-1]), int(time[-1])
    found = np.concatenate(starts) if starts else np.zeros(0, dtype=np.int64)
    if len(np.unique(found)) < len(found):
        raise InputError(
            f"{path}: expected each subject's events in one run of rows, found subjects split up; sort the file"
        )
    return found
