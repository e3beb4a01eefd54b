"""Laboratory tests: one number per test of a sample's admission, of what was known at the prediction time.

A *test* is an item, whatever its unit: LAB//50912//mg/dL and LAB//50912//umol/L are of one. Its unit is the one in
which most training values stand, an unknown unit being one of them: a test that is mostly written without unit (INR) is
taken as it stands. Values in other units are converted where the factor does not hang on the test (lab_units.py), else
left out; so are values without number or time, of no admission, and of tests that few training admissions have. All are
counted, in counts.json; only when no test is left is it an error.

    tests.parquet           row i is test i: item, name, unit, lowest .. reference_high (see TESTS)
    values/<shard>.parquet  subject_id, visit_id, time, test, value: every value of an admission, in the test's unit,
                            cut to [lowest, highest], in the order of time
    counts.json             values read, and left out by reason

A selection is `offsets`, `tests`, `values` (.npy): sample i has the entries offsets[i] .. offsets[i + 1], standardised.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ehrlab.core.batch import Labs
from ehrlab.core.errors import InputError
from ehrlab.core.spec import LabSpec
from ehrlab.data.meds import SPLITS, MedsDataset
from ehrlab.data.modalities.base import Modality, Reader, admissions
from ehrlab.data.modalities.lab_units import range_of, units_of
from ehrlab.data.sources.source import EVENT_SCHEMA

log = logging.getLogger(__name__)

TAKES = ("last", "first", "mean")

TESTS = pl.Schema(
    {
        "item": pl.String(),
        "name": pl.String(),
        "unit": pl.String(),
        "lowest": pl.Float64(),
        "highest": pl.Float64(),
        "mean": pl.Float64(),
        "sd": pl.Float64(),
        "frequency": pl.Float64(),
        "low": pl.Float64(),
        "high": pl.Float64(),
    }
)
"""A test's item, its name in the data's dictionary, its unit as most training values spell it (null = unknown); bounds
to which values are cut, and mean and standard deviation of the training admissions' values, both in that unit;
share of training admissions that have it; and the range of `abnormal_labs`."""

_VISIT = ["subject_id", "visit_id"]
_NO_NUMBER, _NO_TIME = "without a number", "without a time"
_NO_ADMISSION, _UNIT, _RARE = "of no admission", "in a unit that cannot be converted", "of tests that are too rare"


@dataclass(frozen=True)
class LabModality(Modality):
    """Settings of Batch.labs.

    take           which value of a test: the last, the first, or the mean of those known
    min_frequency  tests in a smaller share of training admissions are left out
    clip           quantiles of a test's training values to which its values are cut
    normal         quantiles outside of which a value is abnormal, where no range of reference is known (abnormal_labs)
    """

    name: ClassVar[str] = "labs"
    version: ClassVar[int] = 1

    take: str = "last"
    min_frequency: float = 0.01
    clip: tuple[float, float] = (0.001, 0.999)
    normal: tuple[float, float] = (0.1, 0.9)

    def __post_init__(self) -> None:
        if self.take not in TAKES:
            raise InputError(f"labs.take: expected one of {', '.join(TAKES)}, found '{self.take}'")
        if not 0 <= self.min_frequency <= 1:
            raise InputError(f"labs.min_frequency: expected a share between 0 and 1, found {self.min_frequency}")
        for setting in ("clip", "normal"):
            bounds = tuple(float(bound) for bound in getattr(self, setting))
            if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] <= 1:
                raise InputError(f"labs.{setting}: expected two rising quantiles between 0 and 1, found {list(bounds)}")
            object.__setattr__(self, setting, bounds)

    def build(self, meds: MedsDataset, out: Path) -> None:
        """InputError where no test is left."""
        codes = (
            meds.codes()
            .filter(meds.is_kind("lab"))
            .select("code", "description")
            .sort("code")
            .with_row_index("code_id")
        )
        known = admissions(meds)
        train = meds.splits().filter(pl.col("split") == SPLITS[0]).select("subject_id")
        spool = out / "spool"
        spool.mkdir()
        counts = dict.fromkeys(("values", _NO_NUMBER, _NO_TIME, _NO_ADMISSION, _UNIT, _RARE), 0)
        for i, file in enumerate(meds.shards()):
            found, left_out = _values(file, codes, known)
            found.write_parquet(spool / f"{i}.parquet")
            for reason, number in left_out.items():
                counts[reason] += number

        values = pl.scan_parquet(spool / "*.parquet")
        of_training = values.join(train.lazy(), on="subject_id", how="semi")
        usage = of_training.group_by("code_id").len("num_values").collect(engine="streaming")
        factors, tests = units_of(codes.join(usage, on="code_id", how="left").fill_null(0))
        tests = self._fit(of_training.join(factors.lazy(), on="code_id"), tests, known, train)
        counts[_UNIT] = values.join(factors.lazy(), on="code_id", how="anti").select(pl.len()).collect().item()
        if tests.is_empty():
            raise InputError(_nothing_left(counts, self.min_frequency))

        (out / "values").mkdir()
        moments = pl.DataFrame(schema={"test": pl.UInt16, "n": pl.UInt32, "sum": pl.Float64, "squares": pl.Float64})
        for i in range(len(meds.shards())):
            raw = pl.read_parquet(spool / f"{i}.parquet").join(factors, on="code_id", maintain_order="left")
            kept = raw.join(tests, on="candidate", maintain_order="left").select(
                *_VISIT,
                "time",
                "test",
                value=(pl.col("value") * pl.col("factor")).clip("lowest", "highest"),
                # Squares are summed around a value in the middle: around 0 they would cancel to noise.
                around="middle",
            )
            counts[_RARE] += raw.height - kept.height
            kept.drop("around").write_parquet(out / "values" / f"{i}.parquet")
            own = kept.join(train, on="subject_id", how="semi", maintain_order="left")
            taken = own.group_by(*_VISIT, "test", maintain_order=True).agg(self._taken(), pl.col("around").first())
            shifted = pl.col("value") - pl.col("around")
            part = taken.group_by("test").agg(n=pl.len(), sum=shifted.sum(), squares=(shifted**2).sum())
            moments = pl.concat([moments, part])
        shutil.rmtree(spool)

        total = moments.group_by("test").agg(pl.col("n", "sum", "squares").sum())
        shift = pl.col("sum") / pl.col("n")
        spread = (pl.col("squares") / pl.col("n") - shift**2).clip(0).sqrt()
        # A constant test is left at its mean, 0, so that whether it was measured can still be told.
        fitted = tests.join(total, on="test", how="left").with_columns(
            mean=pl.col("middle") + shift,
            sd=pl.when(spread > 1e-6 * pl.col("middle").abs()).then(spread).otherwise(1.0),
        )
        fitted.sort("test").select(pl.col(k).cast(v) for k, v in TESTS.items()).write_parquet(out / "tests.parquet")
        (out / "counts.json").write_text(json.dumps(counts, indent=1), encoding="utf-8")
        left_out_ones = ", ".join(f"{number:,} {reason}" for reason, number in [*counts.items()][1:] if number)
        log.info(
            "labs: %d tests; left out of %s values: %s", tests.height, f"{counts['values']:,}", left_out_ones or "0"
        )

    def _taken(self) -> pl.Expr:
        """Of the values of a group in the order of time, the one that stands for it."""
        value = pl.col("value")
        return {"last": value.last(), "first": value.first(), "mean": value.mean()}[self.take]

    def _fit(self, values: pl.LazyFrame, tests: pl.DataFrame, known: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
        """Those of `tests` that are common enough, numbered, with what training values say of them."""
        value = pl.col("value") * pl.col("factor")

        def quantile(q: float) -> pl.Expr:
            return value.quantile(q, "linear").cast(pl.Float64)

        quantiles = values.group_by("candidate").agg(
            lowest=quantile(self.clip[0]),
            highest=quantile(self.clip[1]),
            middle=quantile(0.5),
            low=quantile(self.normal[0]),
            high=quantile(self.normal[1]),
        )
        having = values.select("candidate", *_VISIT).unique().group_by("candidate").len("num_admissions")
        of_training, in_admissions = pl.collect_all([quantiles, having], engine="streaming")
        num_admissions = max(1, known.join(train, on="subject_id", how="semi").height)
        common = (
            tests.join(of_training, on="candidate")
            .join(in_admissions, on="candidate")
            .with_columns(frequency=pl.col("num_admissions") / num_admissions)
            .filter(pl.col("frequency") >= self.min_frequency)
            .sort("item")
            .with_row_index("test")
        )
        ranges = [range_of(test) for test in common.iter_rows(named=True)]
        return common.with_columns(
            pl.col("test").cast(pl.UInt16),
            low=pl.Series([low for low, _ in ranges], dtype=pl.Float64),
            high=pl.Series([high for _, high in ranges], dtype=pl.Float64),
        )

    def select(self, meds: MedsDataset, store: Path, samples: pl.DataFrame, out: Path) -> None:
        tests = _tests(store).select("test", "mean", "sd")
        found = self.known_values(store, samples).join(tests, on="test", how="left", maintain_order="left")
        standard = ((found["value"] - found["mean"]) / found["sd"]).cast(pl.Float32)
        num_of = np.bincount(found["sample"].to_numpy(), minlength=samples.height)
        np.save(out / "offsets.npy", np.concatenate([[0], np.cumsum(num_of, dtype=np.int64)]))
        np.save(out / "tests.npy", found["test"].to_numpy())
        np.save(out / "values.npy", standard.to_numpy())

    def known_values(self, store: Path, samples: pl.DataFrame) -> pl.DataFrame:
        """sample, test, value (in the test's unit) of the samples' admissions at their prediction times, sorted."""
        wanted = samples.select(pl.col("sample").cast(pl.UInt32), *_VISIT, "prediction_time").drop_nulls("visit_id")
        parts = [pl.DataFrame(schema={"sample": pl.UInt32, "test": pl.UInt16, "value": pl.Float64})]
        for file in sorted((store / "values").glob("*.parquet")):
            values = pl.read_parquet(file).with_row_index("row")
            parts.append(
                wanted.join(values, on=_VISIT)
                .filter(pl.col("time") <= pl.col("prediction_time"))
                .sort("sample", "row")
                .group_by("sample", "test", maintain_order=True)
                .agg(self._taken())
            )
        return pl.concat(parts).sort("sample", "test")

    def reader(self, store: Path, selection: Path) -> Reader:
        return LabReader(self.spec(store).num_tests, selection)

    def spec(self, store: Path) -> LabSpec:
        return LabSpec(num_tests=_tests(store).height)


class LabReader:
    """Batch.labs of the rows of a selection; always as wide as there are tests."""

    def __init__(self, num_tests: int, selection: Path) -> None:
        self.num_tests = num_tests
        self._offsets, self._tests, self._values = (
            np.load(selection / f"{name}.npy", mmap_mode="r") for name in ("offsets", "tests", "values")
        )

    def __call__(self, rows: NDArray[np.int64]) -> Labs:
        begin = np.asarray(self._offsets[rows])
        lengths = np.asarray(self._offsets[np.asarray(rows) + 1]) - begin
        sample = np.repeat(np.arange(len(begin)), lengths)
        entry = np.arange(len(sample)) + np.repeat(begin - np.cumsum(lengths) + lengths, lengths)
        values = np.zeros((len(begin), self.num_tests), dtype=np.float32)
        observed = np.zeros(values.shape, dtype=bool)
        test = self._tests[entry]
        values[sample, test], observed[sample, test] = self._values[entry], True
        return Labs(torch.from_numpy(values), torch.from_numpy(observed))


def abnormal_labs(labs: LabModality, store: Path, samples: pl.DataFrame) -> pl.DataFrame:
    """What of the samples' labs lies outside its range: sample, name, value, unit, side, low, high.

    store  of `labs`
    name   of the test in the data's dictionary, else its item
    unit   as the data spell it; null = unknown
    side   "low" or "high"
    low, high  the range: of reference where it is known (lab_units.py), else the training quantiles `labs.normal`

    Sorted by sample, the farthest from its range first (in standard deviations of the test).
    """
    low, high, value = pl.col("low"), pl.col("high"), pl.col("value")
    beyond = pl.max_horizontal(low - value, value - high) / pl.col("sd")
    return (
        labs.known_values(store, samples)
        .join(_tests(store), on="test", how="left", maintain_order="left")
        .filter((value < low) | (value > high))
        .with_columns(side=pl.when(value < low).then(pl.lit("low")).otherwise(pl.lit("high")), beyond=beyond)
        .sort(["sample", "beyond", "test"], descending=[False, True, False])
        .select("sample", "name", "value", "unit", "side", "low", "high")
    )


def _tests(store: Path) -> pl.DataFrame:
    return pl.read_parquet(store / "tests.parquet").with_row_index("test").with_columns(pl.col("test").cast(pl.UInt16))


def _values(file: Path, codes: pl.DataFrame, known: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
    """subject_id, visit_id, time, code_id, value of a file's labs, those of a visit in time's order; what was left out.

    A value belongs to the admission whose visit_id it has; without one, to each that lasts at its time.
    """
    labs = (
        pl.scan_parquet(file, schema=EVENT_SCHEMA)
        .join(codes.lazy().select("code", "code_id"), on="code", maintain_order="left")
        .select(*_VISIT, "time", "code_id", value="numeric_value")
        .collect()
    )
    timed = labs.filter(pl.col("time").is_not_null())
    numbers = timed.filter(pl.col("value").is_finite()).with_row_index("row")
    named = numbers.join(known.select(_VISIT), on=_VISIT, how="semi")
    nameless = (
        numbers.filter(pl.col("visit_id").is_null())
        .drop("visit_id")
        .join(known, on="subject_id")
        .filter(pl.col("time").is_between(pl.col("admitted"), pl.col("discharged")))
    )
    found = pl.concat([named, nameless.select(named.columns)]).sort(*_VISIT, "time", "row")
    return found.drop("row"), {
        "values": labs.height,
        _NO_TIME: labs.height - timed.height,
        _NO_NUMBER: timed.height - numbers.height,
        _NO_ADMISSION: numbers.height - found["row"].n_unique(),
    }


def _nothing_left(counts: Mapping[str, int], min_frequency: float) -> str:
    if not counts["values"]:
        return (
            "labs: expected laboratory values, found none in these data. Read the table of labs "
            "(data.source.tables=[..., labs]; kinds.lab for other codes), or choose a model that does not require them."
        )
    reasons = ", ".join(f"{number:,} {reason}" for reason, number in counts.items() if number and reason != "values")
    return (
        f"labs: expected a test in at least {min_frequency:g} of the training admissions, found none among "
        f"{counts['values']:,} values"
        + (f" ({reasons})" if reasons else "")
        + ". Lower labs.min_frequency, or correct "
        "units and visits of the table of labs."
    )
