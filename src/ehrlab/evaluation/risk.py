"""Risk prediction: predictions.parquet in, the content of metrics.json out."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrlab.evaluation.joint import joint
from ehrlab.evaluation.metrics import METRICS, undefined_reason
from ehrlab.evaluation.resampling import Predictions, Resampled, percentile_interval


def evaluate(predictions: pl.DataFrame | Path | str, *, num_bootstrap: int = 1000, seed: int = 0) -> dict[str, Any]:
    """Every metric of the test set with its 95 % bootstrap interval over subjects.

    {"held_out": {metric: {"value", "low", "high"}}, "num_samples", "num_subjects", "num_positive"}; the three numbers
    are floats or None, and "reason" is there whenever one is None. With a column `label`, "held_out" is the mean over
    labels, with JOINT_METRICS, and "labels" holds the same per label, each with its own counts; `num_positive` then
    counts positive (sample, label)s. Raises InputError for a table that is not a predictions table.
    """
    test = Predictions.read(predictions)
    per_label = test.resample(list(METRICS), num_bootstrap, seed)
    counts = {"num_samples": test.num_samples, "num_subjects": test.num_subjects, "num_positive": test.num_positive}
    reasons: list[dict[str, str]] = [
        {name: undefined_reason(name, scores) for name, number in part.items() if np.isnan(number.value)}
        for scores, part in zip(test.scores, per_label)
    ]
    if not test.has_labels:
        return {"held_out": written(per_label[0], reasons[0]), **counts}
    of_labels = {
        str(label): {
            "held_out": written(part, why),
            "num_samples": len(scores),
            "num_subjects": len(np.unique(clusters)),
            "num_positive": int(scores.labels.sum()),
        }
        for label, part, why, scores, clusters in zip(test.labels, per_label, reasons, test.scores, test.clusters)
    }
    macro = test.macro(per_label)
    undefined_everywhere = dict.fromkeys(METRICS, "undefined for every label")
    together = joint(test, macro, num_bootstrap, seed)
    return {"held_out": written({**macro, **together}, undefined_everywhere), "labels": of_labels, **counts}


def written(numbers: Mapping[str, Resampled], reasons: Mapping[str, str]) -> dict[str, dict[str, Any]]:
    """Metric -> {"value", "low", "high"} with None for NaN, and the reason beside it.

    `reasons`: why a value is NaN, for each that is.
    """
    entries: dict[str, dict[str, Any]] = {}
    for name, number in numbers.items():
        interval = percentile_interval(number.value, number.resamples)
        entry: dict[str, Any] = {
            key: float(bound) if np.isfinite(bound) else None
            for key, bound in (("value", interval.value), ("low", interval.low), ("high", interval.high))
        }
        if interval.reason is not None:
            entry["reason"] = reasons[name] if entry["value"] is None else interval.reason
        entries[name] = entry
    return entries
