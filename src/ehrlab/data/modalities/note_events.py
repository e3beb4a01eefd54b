"""Notes among the events: which admission a note belongs to, and which notes a sample may see.

A note is seen from its time on. One that is dated without a time closes its day, so that nothing sees it too early; yet
the summary of an admission belongs to its discharge. Therefore, when the admission is over, its dated notes up to the
day of the prediction are seen. A note that has a time never has this exception.
"""

from __future__ import annotations

import datetime as dt
from collections.abc import Iterator, Sequence
from hashlib import blake2b
from pathlib import Path

import numpy as np
import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import admissions
from ehrlab.data.sources.source import EVENT_SCHEMA

VISIT = ["subject_id", "visit_id"]
LAST_SECOND = dt.time(23, 59, 59)
"""The time of a note that is dated without a time (data.sources.raw.day_end)."""


def note_codes(meds: MedsDataset, categories: Sequence[str], setting: str) -> list[str]:
    """The codes of the notes of `categories` (empty = all), in alphabetical order.

    A category is what follows NOTE// in a code, whatever its case. InputError where the data hold no notes, or none of
    a category.
    """
    codes = meds.codes().filter(meds.is_kind("note"))["code"].sort().to_list()
    if not codes:
        raise InputError(
            f"{setting}: expected clinical notes, found none in these data. Read the table of notes "
            "(data.source.tables=[..., notes]; MIMIC-IV: the note module; kinds.note for other codes), or choose a "
            "model that does not require them."
        )
    if not categories:
        return codes
    by_name = {code.partition("//")[2].upper() or code.upper(): code for code in codes}
    if unknown := [name for name in categories if name.upper() not in by_name]:
        raise InputError(
            f"{setting}.categories: expected some of {', '.join(by_name)}, found '{unknown[0]}'. Correct it, or leave "
            "the list empty for all."
        )
    return sorted(by_name[name.upper()] for name in set(categories))


def notes_by_file(meds: MedsDataset, codes: Sequence[str]) -> Iterator[pl.DataFrame]:
    """The notes of these codes file by file: subject_id, visit_id, time, code, text, key; in the order of the events.

    A note belongs to the admission whose visit_id it has; without one, to each that lasts at its time, and is given
    once for each. Notes of no admission, without time, and without any letter are left out. `key` is the hash of the
    text: equal texts, equal keys.
    """
    known = admissions(meds)
    for file in meds.shards():
        yield _notes(file, codes, known)


def _notes(file: Path, codes: Sequence[str], known: pl.DataFrame) -> pl.DataFrame:
    found = (
        pl.scan_parquet(file, schema=EVENT_SCHEMA)
        .filter(pl.col("code").is_in(codes) & pl.col("time").is_not_null() & pl.col("text_value").str.contains(r"\S"))
        .select(*VISIT, "time", "code", text="text_value")
        .collect()
        .with_row_index("row")
    )
    named = found.join(known.select(VISIT), on=VISIT, how="semi")
    nameless = (
        found.filter(pl.col("visit_id").is_null())
        .drop("visit_id")
        .join(known, on="subject_id")
        .filter(pl.col("time").is_between(pl.col("admitted"), pl.col("discharged")))
    )
    notes = pl.concat([named, nameless.select(named.columns)]).sort("row", "visit_id").drop("row")
    keys = [blake2b(text.encode(), digest_size=16).hexdigest() for text in notes["text"]]
    return notes.with_columns(key=pl.Series(keys, dtype=pl.String))


def seen(notes: pl.LazyFrame, samples: pl.DataFrame) -> pl.LazyFrame:
    """`sample` and the columns of `notes`, once for each sample that may see the note."""
    wanted = samples.select(pl.col("sample").cast(pl.UInt32), *VISIT, "prediction_time", "over").drop_nulls("visit_id")
    time, until = pl.col("time"), pl.col("prediction_time")
    dated = (time.dt.time() >= LAST_SECOND) & pl.col("over") & (time.dt.date() <= until.dt.date())
    return wanted.lazy().join(notes, on=VISIT).filter((time <= until) | dated).drop("prediction_time", "over")


def offsets_of(sample: pl.Series, num_samples: int) -> np.ndarray:
    """int64 [num_samples + 1]: where the entries of each sample begin, `sample` being sorted."""
    counts = np.bincount(sample.to_numpy(), minlength=num_samples)
    return np.concatenate([[0], np.cumsum(counts, dtype=np.int64)])
