"""Rows of a results table against each other: paired bootstrap over patients and seeds, Holm's correction, mean rank.

A row is one method trained with several seeds and tested on the same samples each time. Its number is the mean over
seeds. That number is uncertain for two reasons: other patients could have been in the test set, and other seeds could
have been drawn. Patients are resampled; seeds are too few for that, so their variance is estimated and a test has as
few degrees of freedom as they leave it. With one seed nothing is known of other seeds, and a difference is one of two
trained models.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import polars as pl
from scipy.special import stdtr, stdtrit

from ehrlab.core.errors import InputError
from ehrlab.evaluation.joint import averaged
from ehrlab.evaluation.metrics import FloatArray
from ehrlab.evaluation.resampling import Interval, Predictions, Resampled, percentile_interval

MOST_DEGREES = 1e6  # of freedom: the normal distribution


@dataclass(frozen=True)
class ResampledRow:
    """One row's metrics for each of `S` seeds: `values[metric]` is `[S]`, `resamples[metric]` is `[R, S]`."""

    seeds: tuple[int, ...]
    values: dict[str, FloatArray]
    resamples: dict[str, FloatArray]
    keys: pl.DataFrame
    resampling_seed: int


@dataclass(frozen=True)
class Difference:
    """Ours minus theirs, with a 95 % interval, a two-sided p-value, and what it rests on.

    NaN and a `reason` where the metric is undefined.
    """

    value: float
    low: float
    high: float
    p_value: float
    standard_error: float
    degrees: float  # of freedom, Student's t
    num_seeds: int
    reason: str | None = None

    def detectable(self, num_comparisons: int = 1) -> float:
        """The true difference that would be called significant four times out of five, as one of so many comparisons.

        Significant: p < .05 / num_comparisons, what Holm's correction asks of the smallest p. Of a single comparison
        without seeds, 2.8 standard errors.
        """
        quantiles = stdtrit(self.degrees, [1 - 0.025 / num_comparisons, 0.8])
        return float(self.standard_error * quantiles.sum())


def resample_row(
    predictions: Mapping[int, pl.DataFrame | Path | str | Predictions],
    metrics: Sequence[str],
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> ResampledRow:
    """Resample the test patients of a row's runs (`seed of the run -> predictions`), the same patients for every run.

    metrics  of METRICS, averaged over labels, and of JOINT_METRICS

    Raises InputError when the runs were not tested on the same samples.
    """
    if not predictions:
        raise InputError("a row of the comparison: expected at least one run, found none")
    seeds = tuple(sorted(predictions))
    tests = [Predictions.read(predictions[run_seed]) for run_seed in seeds]
    for run_seed, test in zip(seeds[1:], tests[1:]):
        require_same_samples(tests[0].keys, test.keys, f"seed {seeds[0]}", f"seed {run_seed}")
    runs = [averaged(test, metrics, num_bootstrap, seed) for test in tests]
    return ResampledRow(
        seeds=seeds,
        values={name: np.array([run[name].value for run in runs]) for name in metrics},
        resamples={name: np.stack([run[name].resamples for run in runs], axis=1) for name in metrics},
        keys=tests[0].keys,
        resampling_seed=seed,
    )


def row_interval(row: ResampledRow, metric: str) -> Interval:
    """Mean over seeds with its percentile interval over patients and seeds."""
    resamples = row.resamples[metric]
    num, num_seeds = resamples.shape
    means = resamples.mean(axis=1)
    if num_seeds > 1:
        # Its own stream: the same draw of seeds for every row, whatever the number of patients.
        drawn = np.random.default_rng([row.resampling_seed, num_seeds]).integers(0, num_seeds, (num, num_seeds))
        away = np.take_along_axis(resamples, drawn, axis=1).mean(axis=1) - means
        widened = means + away * np.sqrt(num_seeds / (num_seeds - 1))  # a mean of S draws varies by that too little
        means = np.clip(widened, np.nanmin(resamples), np.nanmax(resamples)) if np.isfinite(resamples).any() else means
    return percentile_interval(float(row.values[metric].mean()), means)


def paired_difference(ours: ResampledRow, theirs: ResampledRow, metric: str) -> Difference:
    """Ours minus theirs over the seeds that both have, on the same resampled patients.

    d is the mean of the seeds' differences d_s. Its variance is V + s^2 / S: V of the mean over seeds between resamples
    of the patients, s^2 of the d_s. d over its standard error is held against Student's t with Satterthwaite's
    (V + s^2/S)^2 / ((s^2/S)^2 / (S - 1)) degrees of freedom, so that S seeds that agree by chance decide nothing. What
    seeds and patients share is counted twice, which errs on the safe side.

    Raises InputError when the test samples differ (it says how many), or when the rows share no seed.
    """
    require_same_samples(ours.keys, theirs.keys, "the first row", "the second row")
    common = sorted(set(ours.seeds) & set(theirs.seeds))
    if not common:
        raise InputError(
            f"paired comparison: expected rows with seeds in common, found {list(ours.seeds)} and "
            f"{list(theirs.seeds)}; train both with the same seeds"
        )
    if ours.resampling_seed != theirs.resampling_seed or len(ours.resamples[metric]) != len(theirs.resamples[metric]):
        raise ValueError(
            "both rows of a paired comparison must be resampled with the same seed and number of resamples"
        )
    mine = [ours.seeds.index(seed) for seed in common]
    other = [theirs.seeds.index(seed) for seed in common]
    of_seeds = ours.values[metric][mine] - theirs.values[metric][other]
    value, num_seeds = float(of_seeds.mean()), len(common)
    resamples = (ours.resamples[metric][:, mine] - theirs.resamples[metric][:, other]).mean(axis=1)
    if (reason := percentile_interval(value, resamples).reason) is not None:
        return Difference(value, np.nan, np.nan, np.nan, np.nan, np.nan, num_seeds, reason)
    over_patients = resamples[np.isfinite(resamples)].var(ddof=1)
    over_seeds = of_seeds.var(ddof=1) / num_seeds if num_seeds > 1 else 0.0
    error = float(np.sqrt(over_patients + over_seeds))
    degrees = MOST_DEGREES
    if over_seeds > 0:
        degrees = min(MOST_DEGREES, float(error**4 / over_seeds**2 * (num_seeds - 1)))
    half = float(stdtrit(degrees, 0.975) * error)
    return Difference(value, value - half, value + half, _two_sided(value, error, degrees), error, degrees, num_seeds)


def prior_risk(test: Predictions, *, num_bootstrap: int = 1000, seed: int = 0) -> Resampled:
    """The share of positives, to which PR-AUC tends without any skill: the mean over labels that have both classes."""
    shares = test.resample_means([scores.as_given(scores.labels) for scores in test.scores], num_bootstrap, seed)
    known = [
        share if scores.has_both_classes else replace(share, value=np.nan) for scores, share in zip(test.scores, shares)
    ]
    return test.macro([{"prior": share} for share in known])["prior"]


def standing_at(row: ResampledRow, metric: str, number: Resampled) -> ResampledRow:
    """A row of the same seeds and samples whose metric is `number`: what a claim of equality is compared with."""
    num_seeds = len(row.seeds)
    return replace(
        row,
        values={metric: np.full(num_seeds, number.value)},
        resamples={metric: np.repeat(number.resamples[:, None], num_seeds, axis=1)},
    )


def require_same_samples(ours: pl.DataFrame, theirs: pl.DataFrame, our_name: str, their_name: str) -> None:
    """Raise InputError, with the number of samples that differ, unless both tables hold the same samples and labels."""
    if ours.columns == theirs.columns:
        ours_only = len(ours.join(theirs, on=ours.columns, how="anti"))
        theirs_only = len(theirs.join(ours, on=ours.columns, how="anti"))
        if ours_only == 0 and theirs_only == 0:
            return
        found = (
            f"{ours_only} of {len(ours)} and {theirs_only} of {len(theirs)} are not in the other with the same label"
        )
    else:
        found = "only one of them has several labels"
    raise InputError(
        f"paired comparison of {our_name} with {their_name}: expected the same test samples, but {found}; "
        f"compare runs of one data set, task and split"
    )


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment, in the order given. NaN (no test was possible) stays NaN and is not counted.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    adjusted = [float("nan")] * len(p_values)
    tested = sorted((index for index, p in enumerate(p_values) if not np.isnan(p)), key=lambda index: p_values[index])
    largest = 0.0
    for rank, index in enumerate(tested):
        largest = max(largest, min(1.0, (len(tested) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def mean_rank(
    values: Mapping[str, Mapping[str, float]], *, higher_is_better: bool = True
) -> tuple[dict[str, float], int]:
    """Rank the rows in each column (1 = best, ties share the mean of their ranks) and average over columns.

    `values` is row -> column -> number. Only columns in which every row has a number count; their number is returned
    too (0 columns: every rank is NaN), because a row must not gain by leaving out a hard column.
    """
    columns = {column for row in values.values() for column in row}
    whole = [c for c in sorted(columns) if all(np.isfinite(row.get(c, np.nan)) for row in values.values())]
    if not whole:
        return {row: float("nan") for row in values}, 0
    table = np.array([[row[column] for column in whole] for row in values.values()])  # [rows, columns]
    if higher_is_better:
        table = -table
    better = (table[:, None] > table[None]).sum(axis=1)
    equal = (table[:, None] == table[None]).sum(axis=1)
    ranks = better + (equal + 1) / 2
    return dict(zip(values, ranks.mean(axis=1).tolist())), len(whole)


def t_test_against(values: Sequence[float], published: float) -> float:
    """Two-sided p of Student's t-test that the seeds' mean equals a published number; NaN with fewer than two seeds.

    It knows nothing of the published number's own uncertainty, which the papers do not state.
    """
    v = np.asarray(values, dtype=np.float64)
    if len(v) < 2 or not np.isfinite(v).all():
        return float("nan")
    return _two_sided(float(v.mean() - published), float(v.std(ddof=1) / np.sqrt(len(v))), len(v) - 1)


def _two_sided(distance: float, error: float, degrees: float) -> float:
    """p of Student's t-test that a distance with this standard error is 0."""
    if error == 0:
        return 1.0 if distance == 0 else 0.0
    return float(2 * stdtr(degrees, -abs(distance) / error))
