"""Distance to the best possible model, on simulated data whose exact risks are known.

An *oracle table* holds, for every sample, the exact probability of a positive label given each of several *information
sets* (codes, codes and times, ...; one column each). No model that is given no more can rank better in expectation, so

* regret  = PR-AUC(oracle) - PR-AUC(model), on the same samples; also for average precision;
* KL      = mean over samples of KL(Bernoulli(q) || Bernoulli(p)) in nats, q exact and p the model's,

both against the set that the model is given, its *reference*. Oracle and model are resampled together (paired). A
regret can be negative by chance, KL cannot; and KL is far less noisy, because no label enters it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from scipy.special import rel_entr

from ehrlab.core.errors import InputError
from ehrlab.evaluation.comparison import ResampledRow, require_same_samples
from ehrlab.evaluation.metrics import FloatArray, Scores, undefined_reason
from ehrlab.evaluation.resampling import Predictions, Resampled
from ehrlab.evaluation.risk import written

KEYS = ("subject_id", "prediction_time", "label")
SET_METRICS = ("pr_auc", "average_precision", "auroc")
"""What is computed of each information set."""

# A model that says 0 or 1 and is wrong would be infinitely far off. float32 sigmoids reach both, so the model's risk is
# taken as no nearer to them than this; one such sample then costs at most 16.1 nats.
KL_CLIP = 1e-7


@dataclass(frozen=True)
class Distance:
    """How a distance is named in files (`key`) and shown, as `metrics.Metric`; `of` is the metric it compares."""

    key: str
    label: str
    of: str | None
    percent: bool
    better: int = -1


DISTANCES: dict[str, Distance] = {
    distance.key: distance
    for distance in (
        Distance("regret", "Regret", "pr_auc", percent=True),
        Distance("regret_average_precision", "Regret in average precision", "average_precision", percent=True),
        Distance("kl", "KL to the exact risk", None, percent=False),
    )
}


class Oracle:
    """A validated oracle table. It holds patient-level rows and never leaves the process.

    Raises InputError, without a value of any row, for a table without a set, or with a sample twice or a risk that is
    not in [0, 1].
    """

    def __init__(self, table: pl.DataFrame, origin: str = "oracle") -> None:
        self.origin = origin
        self.keys = [name for name in KEYS if name in table.columns]
        self.sets = [name for name in table.columns if name not in KEYS]
        if missing := [name for name in KEYS[:2] if name not in table.columns]:
            raise InputError(
                f"{origin}: expected the columns subject_id and prediction_time, but {missing} are missing"
            )
        if not self.sets:
            raise InputError(f"{origin}: expected a column for each information set, found none")
        for name in self.sets:
            if not table[name].dtype.is_numeric():
                raise InputError(f"{origin}: column '{name}' should hold a number, found {table[name].dtype}")
            risk = table[name].cast(pl.Float64)
            bad = len(risk) - int(risk.is_between(0, 1).fill_null(False).sum())
            if bad:
                raise InputError(f"{origin}: risks of set '{name}' must lie in [0, 1]; {bad} of {len(risk)} do not")
        if repeated := int(table.select(pl.struct(self.keys).is_duplicated()).to_series().sum()):
            raise InputError(f"{origin}: each sample may occur once, but {repeated} of {len(table)} rows repeat one")
        self.table = table.with_columns(_comparable(self.keys))

    @classmethod
    def read(cls, source: "pl.DataFrame | Path | str | Oracle") -> "Oracle":
        """From a table, a parquet file, or as it is."""
        if isinstance(source, Oracle):
            return source
        if isinstance(source, pl.DataFrame):
            return cls(source)
        path = Path(source)
        try:
            return cls(pl.read_parquet(path), origin=str(path))
        except FileNotFoundError:
            raise InputError(f"oracle {path}: expected a parquet file, found nothing there") from None
        except (pl.exceptions.ComputeError, OSError) as error:
            raise InputError(
                f"oracle {path}: expected a readable parquet file, found a damaged one ({type(error).__name__})"
            ) from None

    def rows_of(self, samples: pl.DataFrame) -> pl.DataFrame:
        """The rows of these samples (`Predictions.keys`), in their order. Raises InputError when one is missing."""
        keys = [name for name in KEYS if name in samples.columns]
        if keys != self.keys:
            raise InputError(f"{self.origin}: expected the keys {keys} of the samples, found {self.keys}")
        wanted = samples.select(keys).with_columns(_comparable(keys))
        found = wanted.join(self.table, on=keys, how="left", maintain_order="left")
        if lost := found[self.sets[0]].null_count():
            raise InputError(
                f"{self.origin}: expected the exact risk of every sample, but {lost} of {len(found)} are missing; "
                "the oracle belongs to another cohort"
            )
        return found

    def predictions(self, test: Predictions, name: str) -> Predictions:
        """The exact risks of one information set in the place of a model's, on the very samples of `test`."""
        if name not in self.sets:
            raise InputError(f"{self.origin}: expected an information set '{name}', found {self.sets}")
        risk = self.rows_of(test.keys)[name].cast(pl.Float64)
        table = test.keys.with_columns(predicted_boolean_value=risk >= 0.5, predicted_boolean_probability=risk)
        return Predictions(table, f"{self.origin}, set '{name}'")


def compare(
    predictions: pl.DataFrame | Path | str | Predictions,
    oracle: pl.DataFrame | Path | str | Oracle,
    reference: str,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """The entry "oracle" of metrics.json: how good the oracle is with each set, and how far the model is from one.

    {"reference", "sets": {set: {metric: {"value", "low", "high"}}}, "regret": {...}, "regret_average_precision": {...},
    "kl": {...}}; with a column `label` these are means over labels, and "labels" holds the same of each. Intervals and
    undefined values are those of `evaluate`. Raises InputError for an unknown reference and for a test sample that the
    oracle lacks.
    """
    test, exact = Predictions.read(predictions), Oracle.read(oracle)
    best = exact.predictions(test, reference)
    sets = {name: exact.predictions(test, name).resample(SET_METRICS, num_bootstrap, seed) for name in exact.sets}
    away = _distances(test, best, sets[reference], list(DISTANCES), num_bootstrap, seed)

    def of_label(index: int) -> dict[str, Any]:
        return _entry({name: part[index] for name, part in sets.items()}, away[index], test.scores[index])

    if not test.has_labels:
        return {"reference": reference, **of_label(0)}
    mean = _entry({name: test.macro(part) for name, part in sets.items()}, test.macro(away), None)
    labels = {str(label): of_label(index) for index, label in enumerate(test.labels)}
    return {"reference": reference, **mean, "labels": labels}


def resample_distances(
    predictions: Mapping[int, pl.DataFrame | Path | str | Predictions],
    oracle: pl.DataFrame | Path | str | Oracle,
    reference: str,
    names: Sequence[str] = tuple(DISTANCES),
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> ResampledRow:
    """The distances of a row's runs (`seed of the run -> predictions`), as `comparison.resample_row` gives metrics."""
    if not predictions:
        raise InputError("a row of the comparison: expected at least one run, found none")
    seeds = tuple(sorted(predictions))
    tests = [Predictions.read(predictions[run_seed]) for run_seed in seeds]
    for run_seed, test in zip(seeds[1:], tests[1:]):
        require_same_samples(tests[0].keys, test.keys, f"seed {seeds[0]}", f"seed {run_seed}")
    best = Oracle.read(oracle).predictions(tests[0], reference)
    compared = [metric for name in names if (metric := DISTANCES[name].of) is not None]
    resampled = best.resample(compared, num_bootstrap, seed)
    runs = [test.macro(_distances(test, best, resampled, names, num_bootstrap, seed)) for test in tests]
    return ResampledRow(
        seeds=seeds,
        values={name: np.array([run[name].value for run in runs]) for name in names},
        resamples={name: np.stack([run[name].resamples for run in runs], axis=1) for name in names},
        keys=tests[0].keys,
        resampling_seed=seed,
    )


def kl_divergence(exact: FloatArray, predicted: FloatArray) -> FloatArray:
    """KL(Bernoulli(exact) || Bernoulli(predicted)) in nats, elementwise.

    >>> kl_divergence(np.array([0.5, 0.2, 0.0]), np.array([0.25, 0.2, 0.5])).round(6).tolist()
    [0.143841, 0.0, 0.693147]
    """
    p = np.clip(predicted, KL_CLIP, 1 - KL_CLIP)
    divergence: FloatArray = rel_entr(exact, p) + rel_entr(1 - exact, 1 - p)
    return np.maximum(divergence, 0.0)  # the two terms cancel to rounding where the risks are equal


def _distances(
    test: Predictions,
    best: Predictions,
    resampled: list[dict[str, Resampled]],
    names: Sequence[str],
    num_bootstrap: int,
    seed: int,
) -> list[dict[str, Resampled]]:
    """Per label: distance -> value and resamples. `resampled`: the metrics of `best`, drawn with the same seed."""
    compared = [metric for name in names if (metric := DISTANCES[name].of) is not None]
    model = test.resample(compared, num_bootstrap, seed)
    divergences = [
        kl_divergence(exact.as_given(exact.probabilities), scores.as_given(scores.probabilities))
        for exact, scores in zip(best.scores, test.scores)
    ]
    means = test.resample_means(divergences, num_bootstrap, seed)
    away: list[dict[str, Resampled]] = []
    for label in range(len(test.labels)):
        of_label: dict[str, Resampled] = {}
        for name in names:
            metric = DISTANCES[name].of
            if metric is None:
                of_label[name] = means[label]
            else:
                upper, lower = resampled[label][metric], model[label][metric]
                of_label[name] = Resampled(upper.value - lower.value, upper.resamples - lower.resamples)
        away.append(of_label)
    return away


def _entry(
    sets: Mapping[str, Mapping[str, Resampled]], away: Mapping[str, Resampled], scores: Scores | None
) -> dict[str, Any]:
    """The JSON form; `scores` tell why a value is undefined, None stands for the mean over labels."""

    def why(numbers: Mapping[str, Resampled], metric_of: Mapping[str, str | None]) -> dict[str, str]:
        return {
            name: undefined_reason(metric, scores) if scores is not None else "undefined for every label"
            for name, metric in metric_of.items()
            if np.isnan(numbers[name].value) and metric is not None
        }

    of_sets = {name: written(part, why(part, {metric: metric for metric in part})) for name, part in sets.items()}
    return {"sets": of_sets, **written(away, why(away, {name: DISTANCES[name].of for name in away}))}


def _comparable(keys: Sequence[str]) -> list[pl.Expr]:
    """Keys in one type each, whoever wrote them."""
    types = {"subject_id": pl.Int64(), "prediction_time": pl.Datetime("us"), "label": pl.String()}
    return [pl.col(name).cast(types[name]) for name in keys]
