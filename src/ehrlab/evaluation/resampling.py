"""Predictions of one run and their bootstrap over subjects.

A subject may have several samples (one per stay or admission) and, with several labels, several rows per sample. They
are not independent, so the bootstrap draws whole subjects with replacement.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.evaluation.metrics import FloatArray, Scores, compute

COLUMNS = {
    "subject_id": "an integer",
    "prediction_time": "a timestamp",
    "boolean_value": "a boolean",
    "predicted_boolean_value": "a boolean",
    "predicted_boolean_probability": "a number",
}
# More undefined resamples than this, and the percentiles of the rest describe a different question.
MOST_UNDEFINED = 0.05
# Weights of one block of resamples: 2 MiB, so that the cumulative sums over them stay in the cache.
_BLOCK_ELEMENTS = 2**18


@dataclass(frozen=True)
class Interval:
    """A value with its percentile interval; `reason` says why a part is missing (NaN)."""

    value: float
    low: float
    high: float
    reason: str | None = None


@dataclass(frozen=True)
class Resampled:
    """A metric's value on the test set and its values `[R]` on `R` resamples of the subjects (NaN where undefined)."""

    value: float
    resamples: FloatArray


class Predictions:
    """A validated predictions table in canonical order, as score sets: one, or one per label.

    `keys` identifies the samples (subject_id, prediction_time, label) and `boolean_value`: equal keys mean that two
    runs were tested on the same samples. It holds patient-level rows and never leaves the process.
    """

    def __init__(self, table: pl.DataFrame, origin: str = "predictions") -> None:
        table = _validated(table, origin)
        self.has_labels = "label" in table.columns
        key = ["subject_id", "prediction_time", *(["label"] if self.has_labels else [])]
        table = table.sort(key)
        self.keys = table.select(*key, "boolean_value")
        subjects, clusters = np.unique(table["subject_id"].to_numpy(), return_inverse=True)
        self.num_subjects = len(subjects)
        self.num_samples = table.select(pl.struct("subject_id", "prediction_time").n_unique()).item()
        self.num_positive = int(table["boolean_value"].sum())
        self.labels: list[str | None] = sorted(table["label"].unique()) if self.has_labels else [None]
        self.scores: list[Scores] = []
        self.clusters: list[NDArray[np.intp]] = []
        for label in self.labels:
            rows = np.flatnonzero((table["label"] == label).to_numpy()) if label is not None else np.arange(len(table))
            part = table[rows]
            self.scores.append(
                Scores(
                    part["boolean_value"].to_numpy(),
                    part["predicted_boolean_probability"].to_numpy(),
                    part["predicted_boolean_value"].to_numpy(),
                )
            )
            self.clusters.append(clusters[rows])

    @classmethod
    def read(cls, source: "pl.DataFrame | Path | str | Predictions") -> "Predictions":
        """From a table, a parquet file, or as it is. Raises InputError for what is not a predictions table."""
        if isinstance(source, Predictions):
            return source
        if isinstance(source, pl.DataFrame):
            return cls(source)
        path = Path(source)
        try:
            return cls(pl.read_parquet(path), origin=str(path))
        except FileNotFoundError:
            raise InputError(f"predictions {path}: expected a parquet file, found nothing there") from None
        except (pl.exceptions.ComputeError, OSError) as error:
            raise InputError(
                f"predictions {path}: expected a readable parquet file, found a damaged one ({type(error).__name__}); "
                f"remove the run folder and run again"
            ) from None

    def resample(self, names: Sequence[str], num_bootstrap: int, seed: int) -> list[dict[str, Resampled]]:
        """Per label: metric -> value and resamples `[R]`. The same seed draws the same subjects for equal `keys`."""
        if num_bootstrap < 0:
            raise InputError(f"num_bootstrap: expected 0 or more resamples, found {num_bootstrap}")
        values = [compute(scores, names=names) for scores in self.scores]
        defined = [[name for name in names if np.isfinite(value[name][0])] for value in values]
        blocks: list[dict[str, list[FloatArray]]] = [{name: [] for name in names} for _ in self.scores]
        for counts in self._subject_counts(num_bootstrap, seed):
            for index, (scores, clusters) in enumerate(zip(self.scores, self.clusters)):
                weights = counts[:, clusters]
                # Subjects without this label can make up a whole resample.
                present = weights.any(axis=1)
                result = compute(scores, weights[present], defined[index]) if present.any() else {}
                for name in names:
                    column = np.full(len(counts), np.nan)
                    if name in result:
                        column[present] = result[name]
                    blocks[index][name].append(column)
        return [
            {
                name: Resampled(float(value[name][0]), np.concatenate(block[name]) if block[name] else np.empty(0))
                for name in names
            }
            for value, block in zip(values, blocks)
        ]

    def resample_means(self, values: Sequence[FloatArray], num_bootstrap: int, seed: int) -> list[Resampled]:
        """Per label: the mean over samples of a number of each, `[n]` in the order of `keys`, and its resamples `[R]`.

        The same seed draws the same subjects as `resample` does.
        """
        if num_bootstrap < 0:
            raise InputError(f"num_bootstrap: expected 0 or more resamples, found {num_bootstrap}")
        blocks: list[list[FloatArray]] = [[np.empty(0)] for _ in values]
        for counts in self._subject_counts(num_bootstrap, seed):
            for column, number, clusters in zip(blocks, values, self.clusters):
                weights = counts[:, clusters]
                total = weights.sum(axis=1)
                column.append(np.divide(weights @ number, total, out=np.full(len(total), np.nan), where=total > 0))
        return [Resampled(float(number.mean()), np.concatenate(column)) for number, column in zip(values, blocks)]

    def resample_sums(self, numbers: FloatArray, num_bootstrap: int, seed: int) -> tuple[FloatArray, FloatArray]:
        """Sums over subjects of `numbers`, `[num_subjects, M]` in the order of subject_id: `[M]`, and `[R, M]` of
        resamples.

        The same seed draws the same subjects as `resample` does.
        """
        blocks = [counts @ numbers for counts in self._subject_counts(num_bootstrap, seed)]
        return numbers.sum(axis=0), np.concatenate([np.empty((0, numbers.shape[1])), *blocks])

    def macro(self, per_label: list[dict[str, Resampled]]) -> dict[str, Resampled]:
        """Mean over the labels on which the metric is defined; with one score set, that set's numbers.

        A resample that lacks a class of some label averages over its other labels.
        """
        if not self.has_labels:
            return per_label[0]
        merged = {}
        for name in per_label[0]:
            known = [part[name] for part in per_label if np.isfinite(part[name].value)]
            if not known:
                merged[name] = Resampled(np.nan, np.full_like(per_label[0][name].resamples, np.nan))
                continue
            stacked = np.stack([part.resamples for part in known])  # [K, R]
            finite = np.isfinite(stacked)
            sums, counts = np.where(finite, stacked, 0).sum(axis=0), finite.sum(axis=0)
            mean = np.divide(sums, counts, out=np.full(len(sums), np.nan), where=counts > 0)
            merged[name] = Resampled(float(np.mean([part.value for part in known])), mean)
        return merged

    def _subject_counts(self, num_bootstrap: int, seed: int) -> Iterator[FloatArray]:
        """Blocks `[<= R, num_subjects]`: how often each subject was drawn in each resample."""
        rng = np.random.default_rng(seed)
        block = max(1, _BLOCK_ELEMENTS // max(self.num_subjects, max(map(len, self.scores))))
        for done in range(0, num_bootstrap, block):
            size = min(block, num_bootstrap - done)
            drawn = rng.integers(0, self.num_subjects, (size, self.num_subjects))
            drawn += np.arange(size)[:, None] * self.num_subjects
            counts = np.bincount(drawn.ravel(), minlength=size * self.num_subjects)
            yield counts.reshape(size, self.num_subjects).astype(np.float64)


def percentile_interval(value: float, resamples: FloatArray) -> Interval:
    """The 95 % percentile interval of a value, without bounds where too many resamples are undefined."""
    if not np.isfinite(value):
        return Interval(np.nan, np.nan, np.nan, "undefined")
    finite = resamples[np.isfinite(resamples)]
    if len(resamples) == 0:
        return Interval(value, np.nan, np.nan, "no resamples were drawn")
    undefined = len(resamples) - len(finite)
    if undefined > MOST_UNDEFINED * len(resamples):
        return Interval(value, np.nan, np.nan, f"undefined in {undefined} of {len(resamples)} resamples")
    low, high = np.percentile(finite, [2.5, 97.5])
    return Interval(value, float(low), float(high))


def _validated(table: pl.DataFrame, origin: str) -> pl.DataFrame:
    """The table in the types of the MEDS prediction schema. Raises InputError, without a value of any row."""
    missing = [name for name in COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"{origin}: expected the columns {list(COLUMNS)}, but {missing} are missing")
    if table.is_empty():
        raise InputError(f"{origin}: expected at least one test sample, found none; the held_out split is empty")
    fits = {
        "subject_id": table["subject_id"].dtype.is_integer(),
        "prediction_time": table["prediction_time"].dtype.is_temporal(),
        "boolean_value": table["boolean_value"].dtype == pl.Boolean,
        "predicted_boolean_value": table["predicted_boolean_value"].dtype == pl.Boolean,
        "predicted_boolean_probability": table["predicted_boolean_probability"].dtype.is_numeric(),
    }
    for name, fit in fits.items():
        if not fit:
            raise InputError(f"{origin}: column {name} should hold {COLUMNS[name]}, found {table[name].dtype}")
    required = [*COLUMNS, *(["label"] if "label" in table.columns else [])]
    for name in required:
        nulls = table[name].null_count()
        if nulls:
            raise InputError(f"{origin}: column {name} has no value in {nulls} of {len(table)} rows")
    table = table.with_columns(pl.col("predicted_boolean_probability").cast(pl.Float64))
    if "label" in required:
        table = table.with_columns(pl.col("label").cast(pl.String))
    probability = table["predicted_boolean_probability"]
    bad = int((probability.is_nan() | (probability < 0) | (probability > 1)).sum())
    if bad:
        raise InputError(
            f"{origin}: probabilities must lie in [0, 1], but {bad} of {len(table)} are outside or NaN; "
            f"the model diverged, or wrote logits"
        )
    keys = [name for name in ("subject_id", "prediction_time", "label") if name in required]
    repeated = len(table) - table.select(pl.struct(keys).n_unique()).item()
    if repeated:
        raise InputError(f"{origin}: each sample ({', '.join(keys)}) may occur once, but {repeated} rows repeat one")
    return table
