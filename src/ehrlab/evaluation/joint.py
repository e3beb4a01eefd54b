"""Metrics of several labels: means over labels (macro), and of all labels together (micro, subset accuracy).

* a metric of `METRICS` is the mean over the labels on which it is defined. Of `accuracy` that is the share of right
  (sample, label)s, of `f1` the macro F1: the mean of the labels' F1, not the F1 of mean precision and recall;
* `precision_micro`, `recall_micro`, `f1_micro` count (sample, label)s of all labels as one;
* `subset_accuracy` is the share of samples of which every label is right.

With one label, micro is macro and subset accuracy is accuracy. All are resampled by subject, on the same draws.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl

from ehrlab.evaluation.metrics import METRICS, FloatArray
from ehrlab.evaluation.resampling import Predictions, Resampled


@dataclass(frozen=True)
class JointMetric:
    """How a metric of several labels is named in files (`key`) and shown, as `metrics.Metric`."""

    key: str
    label: str
    better: int = 1
    percent: bool = True


JOINT_METRICS: dict[str, JointMetric] = {
    metric.key: metric
    for metric in (
        JointMetric("f1_macro", "F1 (macro)"),
        JointMetric("f1_micro", "F1 (micro)"),
        JointMetric("precision_micro", "Precision (micro)"),
        JointMetric("recall_micro", "Recall (micro)"),
        JointMetric("subset_accuracy", "Subset accuracy"),
    )
}
"""f1_macro is f1 by the name that papers on several labels give it."""


def averaged(test: Predictions, names: Sequence[str], num_bootstrap: int, seed: int) -> dict[str, Resampled]:
    """Metric of METRICS or JOINT_METRICS -> value and resamples `[R]` over all labels."""
    single = list(dict.fromkeys("f1" if name == "f1_macro" else name for name in names if name not in _COUNTED))
    found = test.macro(test.resample(single, num_bootstrap, seed)) if single else {}
    if _COUNTED & set(names):
        found |= _counted(test, num_bootstrap, seed)
    return {name: found["f1" if name == "f1_macro" else name] for name in names}


def joint(test: Predictions, macro: dict[str, Resampled], num_bootstrap: int, seed: int) -> dict[str, Resampled]:
    """All of JOINT_METRICS; `macro` are the means over labels, drawn with the same seed."""
    found = {"f1_macro": macro["f1"], **_counted(test, num_bootstrap, seed)}
    return {name: found[name] for name in JOINT_METRICS}


def is_metric(name: str) -> bool:
    return name in METRICS or name in JOINT_METRICS


_COUNTED = frozenset(JOINT_METRICS) - {"f1_macro"}


def _counted(test: Predictions, num_bootstrap: int, seed: int) -> dict[str, Resampled]:
    """What follows from counts that add up over subjects."""
    sample = test.keys.select(pl.struct("subject_id", "prediction_time").rle_id()).to_series().to_numpy()
    num_samples = int(sample[-1]) + 1
    label = test.keys["label"].to_numpy() if test.has_labels else np.full(len(sample), None)
    all_right, subject_of = np.ones(num_samples, dtype=bool), np.zeros(num_samples, dtype=np.intp)
    counts = np.zeros((test.num_subjects, 5))  # true and false positives, false negatives, samples all right, samples
    for name, scores, subjects in zip(test.labels, test.scores, test.clusters):
        truth, decision = (scores.as_given(values) > 0 for values in (scores.labels, scores.decisions))
        for column, cell in enumerate((truth & decision, ~truth & decision, truth & ~decision)):
            counts[:, column] += np.bincount(subjects, cell, minlength=test.num_subjects)
        rows = sample[label == name]
        all_right[rows] &= truth == decision
        subject_of[rows] = subjects
    counts[:, 3] = np.bincount(subject_of, all_right, minlength=test.num_subjects)
    counts[:, 4] = np.bincount(subject_of, minlength=test.num_subjects)
    total, resamples = test.resample_sums(counts, num_bootstrap, seed)
    values, columns = _ratios(total[None]), _ratios(resamples)
    return {name: Resampled(float(values[name][0]), columns[name]) for name in values}


def _ratios(counts: FloatArray) -> dict[str, FloatArray]:
    """Of `[R, 5]`: each metric `[R]`; 0 where it would be 0/0, as in `metrics`."""
    tp, fp, fn, right, samples = counts.T

    def ratio(numerator: FloatArray, denominator: FloatArray) -> FloatArray:
        return np.divide(numerator, denominator, out=np.zeros(len(numerator)), where=denominator > 0)

    return {
        "f1_micro": ratio(2 * tp, 2 * tp + fp + fn),
        "precision_micro": ratio(tp, tp + fp),
        "recall_micro": ratio(tp, tp + fn),
        "subset_accuracy": ratio(right, samples),
    }
