"""Labels that another tool made: any parquet file of the MEDS label schema, such as ACES writes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
from flexible_schema import SchemaValidationError, TableValidationError
from meds import LabelSchema

from ehrlab.core.errors import InputError
from ehrlab.data.cache import content_key
from ehrlab.data.cohorts.task import SCHEMA_VERSION, Cohort, Task, finish
from ehrlab.data.meds import MedsDataset


@dataclass(frozen=True)
class MedsLabels(Task):
    """Labels from `path`, a parquet file or a folder of them, with a boolean_value in each row."""

    path: str

    def files(self) -> list[Path]:
        path = Path(self.path)
        found = sorted(path.rglob("*.parquet")) if path.is_dir() else [path]
        if not found or not all(p.is_file() for p in found):
            raise InputError(
                f"task.path={self.path}: expected a parquet file of MEDS labels or a folder of them, found none"
            )
        return found

    def fingerprint(self) -> str:
        digests = []
        for path in self.files():
            with path.open("rb") as file:
                digests.append(hashlib.file_digest(file, "sha256").hexdigest())
        return content_key(SCHEMA_VERSION, type(self).__name__, self.name, digests)

    def cohort(self, meds: MedsDataset) -> Cohort:
        tables = pl.concat([_read(path) for path in self.files()])
        known = tables.join(meds.splits().select("subject_id"), on="subject_id", how="semi")
        distinct = known.unique(["subject_id", "prediction_time"])
        if (clashes := known.unique().height - distinct.height) > 0:
            raise InputError(
                f"labels {self.path}: {clashes} samples (subject_id, prediction_time) have both labels; "
                "expected one each"
            )
        return finish(
            distinct,
            {
                "labels of subjects that the data lack": tables.height - known.height,
                "repeated labels": known.height - distinct.height,
            },
        )


def _read(path: Path) -> pl.DataFrame:
    """subject_id, prediction_time, boolean_value of one file; InputError where it breaks the schema."""
    try:
        table = pq.read_table(path)
        wanted = LabelSchema.align(table.select([c for c in LabelSchema.schema().names if c in table.column_names]))
    except (pa.ArrowInvalid, SchemaValidationError, TableValidationError) as error:
        raise InputError(
            f"labels {path}: expected parquet of the MEDS label schema (subject_id, prediction_time, boolean_value); "
            f"{str(error).splitlines()[0]}"
        ) from None
    if "boolean_value" not in wanted.column_names:
        raise InputError(f"labels {path}: expected a column boolean_value, found {', '.join(wanted.column_names)}")
    columns = ["subject_id", "prediction_time", "boolean_value"]
    for column in columns:
        if nulls := wanted[column].null_count:
            raise InputError(f"labels {path}: {nulls} of {len(wanted)} rows have no {column}; expected one in each row")
    frame = pl.from_arrow(wanted.select(columns))
    assert isinstance(frame, pl.DataFrame)
    return frame
