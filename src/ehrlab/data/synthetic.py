"""Generated sequences as a MEDS folder: `data=meds data.root=...` reads it, so any risk model can train on it.

A sequence knows ages in whole years and the order of visits, but no dates. These are invented: a record begins in
2000, and the visits of one year of age are spread evenly over that year. Read back, every visit has the age and the
place that the generator gave it; the days between visits are an artefact, as is what a model or a task makes of them.
Ends of admissions and deaths are no tokens: a synthetic cohort serves tasks about codes, not those about admissions.
"""

from __future__ import annotations

import json
from datetime import datetime
from pathlib import Path

import meds
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.data.sources.source import EVENT_SCHEMA, SIMULATION_MARK
from ehrlab.data.tokens import LISTS, SPECIALS, YEAR, Tokenizer

SUBJECTS = 10_000
"""Subjects per file of events."""

_START = pl.lit(datetime(2000, 1, 1)).cast(pl.Datetime("us"))
_DATA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("visit_id", pa.int64()),
    ]
)
_CODES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
    ]
)


def write_meds(sequences: pl.DataFrame, tokenizer: Tokenizer, out: Path, *, generator: str) -> None:
    """Write `sequences` as a MEDS folder; nothing but the files of this call may be in `out`.

    sequences  subject_id (each once) and the lists ids, visit, age, place, as TokenDataset.frame gives them; what
               follows <eos> is passed over. Visits are counted by their <visit> tokens
    generator  name of what made them, for dataset.json, which also says that they are simulated

    Left out: visits without a code, gender and race after the first <visit>, and codes before it, which
    metadata/dataset.json counts. An age that is lower than at the visit before is that of the visit before.

    Errors: InputError for a folder that is not empty, missing columns, repeated subjects and ids that the tokenizer
    does not know.
    """
    _check(sequences, tokenizer, out)
    (out / meds.data_subdirectory).mkdir(parents=True)
    (out / "metadata").mkdir()
    table = _event_table(tokenizer)
    places = pl.DataFrame({"place": range(len(tokenizer.places)), "code": tokenizer.places}).slice(1)
    codes: set[str] = set()
    num_events = num_visits = stray = 0
    for number, part in enumerate(sequences.iter_slices(SUBJECTS)):
        tokens = _tokens(part)
        visits = _visits(tokens, tokenizer.first_code).with_row_index("visit_id", offset=num_visits)
        rows = _events(tokens, visits, table, places, tokenizer.first_code)
        num_visits += visits.height
        stray += tokens.filter((pl.col("visit") == 0) & (pl.col("id") >= tokenizer.first_code)).height
        codes.update(rows["code"].unique())
        num_events += rows.height
        data = rows.select(_DATA.names).to_arrow().cast(_DATA)
        pq.write_table(data, out / meds.data_subdirectory / f"{number:04}.parquet", compression="zstd")

    listed = pl.DataFrame({"code": sorted(codes)}, schema={"code": pl.String})
    listed = listed.with_columns(description=pl.lit(None, pl.String), parent_codes=pl.lit([], pl.List(pl.String)))
    pq.write_table(listed.to_arrow().cast(_CODES), out / meds.code_metadata_filepath)
    description = {
        "dataset_name": "synthetic",
        "etl_name": "ehrlab",
        "meds_version": meds.__version__,
        "raw_source_id_columns": ["visit_id"],
        "simulated": True,
        "synthetic": {
            "generator": generator,
            "fitted_on_simulated": tokenizer.simulated,
            "times": "invented: the order and the year of age of a visit are the generator's, dates and gaps are not",
        },
        "counts": {
            "subjects": sequences.height,
            "visits": num_visits,
            "events": num_events,
            "codes_before_the_first_visit": stray,
        },
    }
    text = json.dumps(description, indent=1)
    (out / meds.dataset_metadata_filepath).write_text(text, encoding="utf-8")
    (out / SIMULATION_MARK).write_text(json.dumps({"layout": "meds", "generator": generator}), encoding="utf-8")


def _check(sequences: pl.DataFrame, tokenizer: Tokenizer, out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        raise InputError(f"{out}: expected an empty folder for the synthetic cohort, found files; choose another")
    if missing := [name for name in ("subject_id", *LISTS) if name not in sequences.columns]:
        raise InputError(
            f"synthetic cohort: expected the columns subject_id, {', '.join(LISTS)}, found no {', '.join(missing)}"
        )
    if sequences["subject_id"].is_duplicated().any():
        raise InputError("synthetic cohort: expected each subject_id once, found some twice; number the sequences")
    for name, limit in (("ids", len(tokenizer.tokens)), ("place", len(tokenizer.places)), ("age", TokenSpec.NUM_AGES)):
        values = sequences[name].explode(empty_as_null=False, keep_nulls=False)
        if len(values) and not values.is_between(0, limit - 1).all():
            raise InputError(
                f"synthetic cohort: expected {name} in 0 .. {limit - 1}, found others; the sequences were made with "
                "another vocabulary. Give the tokenizer that lies beside the generator's weights."
            )


def _event_table(tokenizer: Tokenizer) -> pl.DataFrame:
    """id, code, numeric_value of each token that is an event."""
    ids = range(len(SPECIALS), len(tokenizer.tokens))
    found = [(i, *tokenizer.event(i)) for i in ids]
    return pl.DataFrame(found, schema={"id": pl.Int64, "code": pl.String, "numeric_value": pl.Float32}, orient="row")


def _tokens(sequences: pl.DataFrame) -> pl.DataFrame:
    """row, subject_id, id, visit, age, place of each token before <eos>; visit 0 is before the first <visit>."""
    return (
        sequences.select("subject_id", *LISTS)
        .with_row_index("row")
        .explode(*LISTS, empty_as_null=False, keep_nulls=False)
        .rename({"ids": "id"})
        .cast({"id": pl.Int64, "age": pl.Int64, "place": pl.Int64})
        .with_columns(
            visit=(pl.col("id") == TokenSpec.VISIT).cum_sum().over("row"),
            ended=(pl.col("id") == TokenSpec.EOS).cum_sum().over("row") > 0,
        )
        .filter(~pl.col("ended"))
        .drop("ended")
    )


def _visits(tokens: pl.DataFrame, first_code: int) -> pl.DataFrame:
    """row, subject_id, visit, place, birth, time of each visit with a code, in their order."""
    age, years = pl.col("age"), pl.col("age") - pl.col("age").first().over("row")
    # Of n visits in a year of age, the i-th lies in the middle of the i-th n-th of the year.
    within = (2 * pl.int_range(pl.len()) + 1).over("row", "age") * YEAR // (2 * pl.len().over("row", "age"))
    return (
        tokens.filter(pl.col("visit") > 0)
        .group_by("row", "subject_id", "visit", maintain_order=True)
        .agg(pl.col("age", "place").first(), is_empty=(pl.col("id") < first_code).all())
        .filter(~pl.col("is_empty"))
        .with_columns(age.cum_max().over("row"))
        .with_columns(
            birth=_START - pl.duration(microseconds=age.first().over("row") * YEAR),
            time=_START + pl.duration(microseconds=years * YEAR + within),
        )
    )


def _events(
    tokens: pl.DataFrame, visits: pl.DataFrame, table: pl.DataFrame, places: pl.DataFrame, first_code: int
) -> pl.DataFrame:
    """The columns of _DATA, by subject and time: what is static, birth, then visit by visit its start and its codes."""
    is_code = pl.col("id") >= first_code
    static = tokens.filter((pl.col("visit") == 0) & ~is_code).unique(["row", "id"], maintain_order=True)
    of_visit = tokens.filter((pl.col("visit") > 0) & is_code).unique(["row", "visit", "id"], maintain_order=True)
    parts = [
        static.join(table, on="id", maintain_order="left"),
        visits.unique("row", maintain_order=True).select(
            "row", "subject_id", time="birth", code=pl.lit(meds.birth_code)
        ),
        visits.join(places, on="place", maintain_order="left").drop("place"),
        of_visit.join(table, on="id", maintain_order="left").join(
            visits.drop("subject_id", "place"), on=["row", "visit"], maintain_order="left"
        ),
    ]
    columns = pl.Schema({"row": pl.UInt32(), **{name: EVENT_SCHEMA[name] for name in _DATA.names}})
    rows = pl.concat([part.select(c for c in columns if c in part.columns) for part in parts], how="diagonal")
    return rows.cast(columns).sort("row", "time", nulls_last=False, maintain_order=True)
