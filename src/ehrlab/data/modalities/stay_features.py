"""The features of an hour in intensive care: which there may be, and which of them an hour has. See stays.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.data.modalities.stay_store import Part

FEATURES = "features.parquet"
FEATURE_SCHEMA = pl.Schema(
    {
        "code": pl.String(),
        "what": pl.String(),
        "above": pl.Float32(),
        "up_to": pl.Float32(),
        "text": pl.String(),
    }
)
"""One row per feature; what = "measured", "bin" (with above and up_to) or "text" (with the text)."""

MOST_FEATURES = np.iinfo(np.uint16).max

_HOURLY = ["stay", "hour", "code_id"]
_NONE = -1


class Candidates:
    """Gathers what the training stays show, one file of events at a time, to make features of it.

    What it holds are counts by code, by code and text, and by code and number: as many as there are distinct ones.
    A feature of a code that fewer than `least` stays show is none; whether its bins are shown often enough is not
    known before they are cut.
    """

    def __init__(self, codes: pl.DataFrame, num_bins: int, value: str, least: float) -> None:
        self._codes, self._num_bins, self._value, self._least = codes, num_bins, value, least
        self._measured, self._texts, self._numbers = (pl.DataFrame() for _ in range(3))

    def add(self, events: pl.DataFrame) -> None:
        """`events` as StayModality reads them; a stay is in one file only."""
        by_stay = events.select("stay", "code_id", "text").unique()
        self._measured = _sum(self._measured, by_stay.select("stay", "code_id").unique(), ["code_id"])
        self._texts = _sum(self._texts, by_stay.drop_nulls("text"), ["code_id", "text"])
        self._numbers = _sum(self._numbers, hourly_numbers(events, self._value), ["code_id", "number"])

    def features(self) -> pl.DataFrame:
        """FEATURE_SCHEMA by code; of each "measured", then bins from below, then texts by alphabet."""
        common = self._measured.filter(pl.col("n") >= self._least).select("code_id")
        texts = self._texts.filter(pl.col("n") >= self._least).select("code_id", "text")
        bins = self._bins().join(common, on="code_id", how="semi", maintain_order="left")
        found = pl.concat(
            [
                common.with_columns(what=pl.lit("measured"), rank=0),
                bins.with_columns(what=pl.lit("bin"), rank=1),
                texts.with_columns(what=pl.lit("text"), rank=2),
            ],
            how="diagonal",
        )
        return (
            found.sort("code_id", "rank", "above", "text")
            .join(self._codes, on="code_id", maintain_order="left")
            .select(pl.col(name).cast(dtype) for name, dtype in FEATURE_SCHEMA.items())
        )

    def _bins(self) -> pl.DataFrame:
        """code_id, above, up_to. The cuts are quantiles, each once; none where all numbers of a code are the same."""
        sums = self._numbers.sort("code_id", "number").with_columns(
            share=pl.col("n").cum_sum().over("code_id") / pl.col("n").sum().over("code_id"),
            most=pl.col("number").max().over("code_id"),
        )
        cuts = pl.concat(
            sums.filter(pl.col("share") >= q / self._num_bins - 1e-12)
            .group_by("code_id")
            .agg(above=pl.col("number").min(), most=pl.col("most").first())
            for q in range(1, self._num_bins)
        )
        cuts = cuts.filter(pl.col("above") < pl.col("most")).select("code_id", "above").unique()
        lowest = cuts.select("code_id").unique().with_columns(above=pl.lit(-np.inf, dtype=pl.Float32))
        return (
            pl.concat([lowest, cuts])
            .sort("code_id", "above")
            .with_columns(up_to=pl.col("above").shift(-1).over("code_id").fill_null(np.inf))
        )


def hourly_numbers(events: pl.DataFrame, value: str) -> pl.DataFrame:
    """stay, hour, code_id, number: the last one of the hour, or their mean."""
    number = pl.col("number")
    return (
        events.lazy()
        .filter(number.is_not_null())
        .group_by(_HOURLY)
        .agg(number.last() if value == "last" else number.mean())
        .collect()
    )


def encode(events: pl.DataFrame, features: pl.DataFrame, value: str, hours: int) -> Part:
    """Which of `features` (FEATURE_SCHEMA and code_id, null for a code that the data lack) each hour has.

    A feature's number is its row in `features`.
    """
    known = features.with_row_index("feature").drop_nulls("code_id").sort("code_id", "above")
    num_codes = 1 + int(pl.concat([events["code_id"], known["code_id"]]).max() or 0)  # type: ignore[arg-type]
    measured = known.filter(pl.col("what") == "measured")
    of_code = np.full(num_codes, _NONE, dtype=np.int64)
    of_code[measured["code_id"].to_numpy()] = measured["feature"].to_numpy()
    numbers = hourly_numbers(events, value)
    texts = events.drop_nulls("text").join(
        known.filter(pl.col("what") == "text").select("feature", "code_id", "text"), on=["code_id", "text"]
    )
    found = (
        (events, of_code[events["code_id"].to_numpy()]),
        (numbers, _bin(numbers, known.filter(pl.col("what") == "bin"), num_codes)),
        (texts, texts["feature"].to_numpy().astype(np.int64)),
    )
    # One number for a stay, hour and feature: a sort of integers is several times faster than one of rows.
    key = np.concatenate(
        [
            (frame["stay"].to_numpy().astype(np.int64) * hours + frame["hour"].to_numpy()) * features.height + one
            for frame, one in found
        ]
    )
    key = np.sort(key[np.concatenate([one for _, one in found]) != _NONE])
    key = key[np.diff(key, prepend=-1) > 0]  # np.unique hashes: on such keys twenty times slower
    hour, ids = np.divmod(key, features.height)
    stay, row = np.unique(hour // hours, return_inverse=True)
    lengths = np.bincount(row * hours + hour % hours, minlength=len(stay) * hours)
    return Part(stay, lengths.reshape(-1, hours).astype(np.uint16), ids.astype(np.uint16))


def _bin(numbers: pl.DataFrame, bins: pl.DataFrame, num_codes: int) -> NDArray[np.int64]:
    """The feature of the bin that each number lies in, or _NONE; `bins` by code, from below."""
    code, number = numbers["code_id"].to_numpy(), numbers["number"].to_numpy()
    of = bins["code_id"].to_numpy()
    place = np.arange(len(of)) - np.searchsorted(of, of)
    above, up_to = (np.full((num_codes, place.max(initial=0) + 1), np.inf, dtype=np.float32) for _ in range(2))
    feature = np.full(above.shape, _NONE, dtype=np.int64)
    above[of, place], up_to[of, place] = bins["above"].to_numpy(), bins["up_to"].to_numpy()
    feature[of, place] = bins["feature"].to_numpy()
    last = np.full(len(code), -1)  # place of the last bin that begins below the number
    for edges in above.T:
        last += number > edges[code]
    return np.where((last >= 0) & (number <= up_to[code, last]), feature[code, last], _NONE)


def read_features(store: Path, setting: str) -> pl.DataFrame:
    """The features of a store, in the order of their ids; InputError where `store` is none. `setting` named it."""
    path = store / FEATURES
    try:
        return pl.read_parquet(path).select(pl.col(name).cast(dtype) for name, dtype in FEATURE_SCHEMA.items())
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"{setting}={store}: expected the folder of a store of stays, which has {FEATURES}, found none "
            f"({type(error).__name__}). Name a folder below <cache>/stores of a run on the other data."
        ) from None


def _sum(counts: pl.DataFrame, rows: pl.DataFrame, key: list[str]) -> pl.DataFrame:
    """key, n: `counts` plus the number of `rows`."""
    new = rows.group_by(key).agg(n=pl.len().cast(pl.Int64))
    return pl.concat([counts, new], how="diagonal").group_by(key).agg(pl.col("n").sum()) if counts.width else new
