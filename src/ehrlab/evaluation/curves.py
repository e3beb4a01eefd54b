"""Curves of a test set for drawing: aggregated on fixed grids, so that no point belongs to a patient."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from ehrlab.evaluation.metrics import NUM_CALIBRATION_BINS, FloatArray, Scores

NUM_GRID_POINTS = 101
SMALLEST_BIN = 10  # samples; smaller calibration bins are merged with their neighbour


@dataclass(frozen=True)
class CalibrationBin:
    """Samples of similar probability: mean probability, share of positives, number of samples (>= 10)."""

    mean_probability: float
    observed: float
    num_samples: int


def grid() -> FloatArray:
    """The abscissae of every curve: recall (PR) or false positive rate (ROC)."""
    return np.linspace(0, 1, NUM_GRID_POINTS)


def precision_recall_curve(scores: Scores) -> FloatArray:
    """Precision on the `grid()` of recall, between the curve's corners as the trapezoid has it.

    NaN everywhere unless both classes are present.
    """
    if not scores.has_both_classes:
        return np.full(NUM_GRID_POINTS, np.nan)
    positives, everyone = _corners(scores)
    recall = np.concatenate([[0.0], positives / positives[-1]])
    precision = np.concatenate([[1.0], positives / everyone])
    return _on_grid(recall, precision)


def roc_curve(scores: Scores) -> FloatArray:
    """True positive rate on the `grid()` of false positive rates; NaN everywhere unless both classes are present."""
    if not scores.has_both_classes:
        return np.full(NUM_GRID_POINTS, np.nan)
    positives, everyone = _corners(scores)
    negatives = everyone - positives
    true_rate = np.concatenate([[0.0], positives / positives[-1]])
    false_rate = np.concatenate([[0.0], negatives / negatives[-1]])
    return _on_grid(false_rate, true_rate)


def calibration_bins(scores: Scores, smallest: int = SMALLEST_BIN) -> list[CalibrationBin]:
    """Reliability diagram: ten bins of equal mass, ties together, merged upward until each has `smallest` samples.

    Where the rows of several seeds or labels are pooled, `smallest` is to grow by their number, so that no bin rests on
    fewer than 10 samples. Empty for a smaller test set.
    """
    p, y = scores.probabilities[::-1], scores.labels[::-1]  # rising
    num = len(p)
    target = max(num / NUM_CALIBRATION_BINS, smallest)
    group_ends = np.flatnonzero(np.diff(p, append=np.inf) != 0) + 1
    edges = [0]
    for end in group_ends.tolist():
        # A bin closes once it is full, unless what is left would be too small for a bin of its own.
        if end - edges[-1] >= target and (end == num or num - end >= smallest):
            edges.append(end)
    if num - edges[-1] >= smallest:
        edges.append(num)
    elif len(edges) > 1:
        edges[-1] = num
    return [
        CalibrationBin(float(p[start:end].mean()), float(y[start:end].mean()), end - start)
        for start, end in pairwise(edges)
    ]


def _corners(scores: Scores) -> tuple[FloatArray, FloatArray]:
    """Numbers of positives and of samples at or above each distinct probability, falling: both `[G]`."""
    ends = np.append(scores.starts[1:], len(scores))
    return np.cumsum(scores.labels)[ends - 1].astype(np.float64), ends.astype(np.float64)


def _on_grid(x: FloatArray, y: FloatArray) -> FloatArray:
    """Linear interpolation of the corners (x not falling) at `grid()`; at an upright piece, its last corner."""
    points = grid()
    left = np.searchsorted(x, points, side="right") - 1
    right = np.minimum(left + 1, len(x) - 1)
    width = x[right] - x[left]
    share = np.divide(points - x[left], width, out=np.zeros_like(points), where=width > 0)
    return y[left] + share * (y[right] - y[left])
