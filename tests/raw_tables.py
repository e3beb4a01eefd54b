"""Tiny raw tables, written by hand in the spellings that exports use."""

from __future__ import annotations

import csv
import gzip
import io
import tempfile
from collections.abc import Sequence
from pathlib import Path

import polars as pl

from ehrlab.data import meds
from ehrlab.data.sources import Source

SPLIT = meds.SplitSettings(train=0.4, tuning=0.3)


def write_table(path: Path, header: str, rows: Sequence[Sequence[object]], upper: bool = False) -> Path:
    """Write CSV with a comma-separated `header`; gzip where the name ends in .gz."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n", quoting=csv.QUOTE_ALL if upper else csv.QUOTE_MINIMAL)
    writer.writerow((header.upper() if upper else header).split(","))
    writer.writerows(rows)
    data = text.getvalue().encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(data) if path.name.lower().endswith(".gz") else data)
    return path


def events_of(source: Source, bucket_bytes: int = meds.BUCKET_BYTES, folder: Path | None = None) -> pl.DataFrame:
    """All events of the MEDS folder built from `source`."""
    return dataset_of(source, bucket_bytes, folder).scan().collect()


def dataset_of(source: Source, bucket_bytes: int = meds.BUCKET_BYTES, folder: Path | None = None) -> meds.MedsDataset:
    out = folder or Path(tempfile.mkdtemp(dir=source.root.parent))
    out.mkdir(exist_ok=True)
    meds.build(source, out, SPLIT, simulated=True, bucket_bytes=bucket_bytes)
    return meds.MedsDataset.open(out)


def codes_of(events: pl.DataFrame, subject: int, prefix: str = "") -> list[str]:
    """The subject's codes that start with `prefix`, in file order."""
    return events.filter((pl.col("subject_id") == subject) & pl.col("code").str.starts_with(prefix))["code"].to_list()
