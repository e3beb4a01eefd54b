"""Metrics of a binary risk, computed for many weightings of one test set at a time.

A bootstrap needs each metric a thousand times over the same samples. The samples are therefore sorted once
(`Scores`), and each metric is a weighted cumulative sum over that order for a whole block of weightings `[R, n]`
(`Weighted`). Samples of equal probability form one step of every curve, so the order in which ties are stored never
matters, and an integer weight k is the same as k copies of the sample.

Legend of shape letters: `n` samples, `R` weightings (bootstrap resamples), `G` distinct probabilities.

Where a definition has no value the result is NaN and `undefined_reason` says why:

* `pr_auc`, `average_precision`, `auroc`, `calibration_slope`, `calibration_intercept`: labels of one class only;
* `kappa`: labels and decisions are all one and the same class (0/0, as in scikit-learn);
* `calibration_slope`: the probabilities are constant, or separate the classes (the fitted slope would be infinite).

`precision`, `recall` and `f1` are 0 where they would be 0/0 (scikit-learn's `zero_division=0`).
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
BoolArray = NDArray[np.bool_]

NUM_CALIBRATION_BINS = 10
# logit(0) is infinite; float32 sigmoids of confident models reach 0 and 1, and stay in the fit at this distance.
_LOGIT_CLIP = 1e-7
_NEWTON_STEPS = 200  # of a resample, which starts at the solution of the whole test set
_NEWTON_STEPS_FROM_AFAR = 1000  # a step moves no logit by more than 0.5, and logits reach 16 times the slope
_NEWTON_TOLERANCE = 1e-8  # in logits
_LEAST_INFORMATION = 1e-10  # mean of risk * (1 - risk); above it no risk has rounded to 0 or 1 everywhere


class Scores:
    """One test set: labels, probabilities and decisions, sorted by falling probability.

    `decisions` are the predicted classes; by default probability >= 0.5. Raises ValueError for unequal lengths, an
    empty set, or probabilities outside [0, 1] (the reader of predictions has turned those into an InputError before).
    """

    def __init__(self, labels: ArrayLike, probabilities: ArrayLike, decisions: ArrayLike | None = None) -> None:
        y = np.asarray(labels, dtype=bool)
        p = np.asarray(probabilities, dtype=np.float64)
        d = p >= 0.5 if decisions is None else np.asarray(decisions, dtype=bool)
        if y.ndim != 1 or y.shape != p.shape or y.shape != d.shape:
            raise ValueError(f"labels, probabilities and decisions differ in shape: {y.shape}, {p.shape}, {d.shape}")
        if len(y) == 0:
            raise ValueError("a test set without samples has no metrics")
        if not ((p >= 0) & (p <= 1)).all():
            raise ValueError("probabilities must lie in [0, 1]")
        self.order: NDArray[np.intp] = np.argsort(-p, kind="stable")
        self.labels: BoolArray = y[self.order]
        self.probabilities: FloatArray = p[self.order]
        self.decisions: BoolArray = d[self.order]
        self.starts: NDArray[np.intp] = np.flatnonzero(np.diff(self.probabilities, prepend=np.inf) != 0)

    def __len__(self) -> int:
        return len(self.labels)

    def as_given(self, sorted_values: NDArray[np.generic]) -> FloatArray:
        """Numbers of the sorted samples (`labels`, `probabilities`, ...) in the order in which samples were given."""
        given = np.empty(len(self))
        given[self.order] = sorted_values
        return given

    @property
    def has_both_classes(self) -> bool:
        return bool(self.labels.any() and not self.labels.all())

    @cached_property
    def logits(self) -> FloatArray:
        p = np.clip(self.probabilities, _LOGIT_CLIP, 1 - _LOGIT_CLIP)
        return np.log(p / (1 - p))

    @cached_property
    def recalibration(self) -> tuple[float, float, float]:
        """(intercept at slope 1, intercept, slope) of the unweighted fit: where the fits of a resample start.

        NaN where the fit has no solution. A resample holds a subset of the samples, so it has none either.
        """
        if not self.has_both_classes:
            return np.nan, np.nan, np.nan
        everyone = np.ones((1, len(self)))
        steps = _NEWTON_STEPS_FROM_AFAR
        offset = _logistic_fit(everyone, self.labels, self.logits, (0.0, 1.0), fit_slope=False, max_steps=steps)
        both = _logistic_fit(everyone, self.labels, self.logits, (0.0, 0.0), fit_slope=True, max_steps=steps)
        return float(offset[0, 0]), float(both[0, 0]), float(both[0, 1])


class Weighted:
    """`R` weightings of one test set and the sums that the metrics share. `weights`: `[R, n]`, the caller's order."""

    def __init__(self, scores: Scores, weights: ArrayLike | None = None) -> None:
        w = np.ones((1, len(scores))) if weights is None else np.atleast_2d(np.asarray(weights, dtype=np.float64))
        if w.ndim != 2 or w.shape[1] != len(scores):
            raise ValueError(f"weights of shape {w.shape} do not belong to {len(scores)} samples")
        if not (np.isfinite(w).all() and (w >= 0).all() and (w.sum(axis=1) > 0).all()):
            raise ValueError("weights must be finite, not negative, and not all zero")
        self.scores = scores
        self.weights: FloatArray = w[:, scores.order]  # [R, n]

    @cached_property
    def _groups(self) -> tuple[FloatArray, FloatArray]:
        """Weight, and weight of the positives, at each distinct probability (falling): both `[R, G]`."""
        positive = self.weights * self.scores.labels
        if len(self.scores.starts) == len(self.scores):
            return self.weights, positive
        starts = self.scores.starts
        return np.add.reduceat(self.weights, starts, axis=1), np.add.reduceat(positive, starts, axis=1)

    @cached_property
    def _cumulative(self) -> tuple[FloatArray, FloatArray]:
        """(all, positives) at or above each distinct probability: both `[R, G]`."""
        weight, positive = self._groups
        return np.cumsum(weight, axis=1), np.cumsum(positive, axis=1)

    @cached_property
    def _confusion(self) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray]:
        """True positives, false positives, false negatives, true negatives: each `[R]`."""
        y, d = self.scores.labels, self.scores.decisions
        cells = np.stack([y & d, ~y & d, y & ~d, ~y & ~d], axis=1).astype(np.float64)
        tp, fp, fn, tn = (self.weights @ cells).T
        return tp, fp, fn, tn

    @cached_property
    def _class_weights(self) -> tuple[FloatArray, FloatArray]:
        tp, fp, fn, tn = self._confusion
        return tp + fn, fp + tn

    @cached_property
    def _precision(self) -> FloatArray:
        """Precision at each distinct probability `[R, G]`; 1, the curve's start, before the first weight > 0."""
        weight, positive = self._cumulative
        return np.divide(positive, weight, out=np.ones_like(positive), where=weight > 0)

    def pr_auc(self) -> FloatArray:
        """Trapezoid over the precision-recall curve: `sklearn.metrics.auc(recall, precision)`. `[R]`.

        Of a constant risk the prevalence: it has one point, which a trapezoid would join to precision 1 at recall 0,
        and (1 + prevalence) / 2 would put a model that has learned nothing above most that have.
        """
        weight, positive = self._groups
        area = positive[:, 0] * (1 + self._precision[:, 0])  # the curve starts at recall 0, precision 1
        area += np.einsum("rg,rg->r", positive[:, 1:], self._precision[:, 1:] + self._precision[:, :-1])
        trapezoid = self._both_classes(area / 2, self._class_weights[0])
        is_constant = np.count_nonzero(weight, axis=1) == 1
        return np.where(is_constant, self.average_precision(), trapezoid) if is_constant.any() else trapezoid

    def average_precision(self) -> FloatArray:
        """Step sum over the precision-recall curve: `sklearn.metrics.average_precision_score`. `[R]`."""
        _, positive = self._groups
        area = np.einsum("rg,rg->r", positive, self._precision)
        return self._both_classes(area, self._class_weights[0])

    def auroc(self) -> FloatArray:
        """Area under the ROC curve, a tie between the classes counting one half. `[R]`."""
        weight, positive = self._groups
        _, above = self._cumulative
        area = np.einsum("rg,rg->r", weight - positive, above - positive / 2)
        num_positive, num_negative = self._class_weights
        return self._both_classes(area, num_positive * num_negative)

    def accuracy(self) -> FloatArray:
        tp, fp, fn, tn = self._confusion
        return (tp + tn) / (tp + fp + fn + tn)

    def precision(self) -> FloatArray:
        tp, fp, _, _ = self._confusion
        return _ratio(tp, tp + fp, empty=0.0)

    def recall(self) -> FloatArray:
        tp, _, fn, _ = self._confusion
        return _ratio(tp, tp + fn, empty=0.0)

    def f1(self) -> FloatArray:
        tp, fp, fn, _ = self._confusion
        return _ratio(2 * tp, 2 * tp + fp + fn, empty=0.0)

    def kappa(self) -> FloatArray:
        """Cohen's kappa: 1 - observed / expected disagreement. `[R]`."""
        tp, fp, fn, tn = self._confusion
        total = tp + fp + fn + tn
        by_chance = (tp + fp) * (fp + tn) + (fn + tn) * (tp + fn)
        return 1 - _ratio((fp + fn) * total, by_chance, empty=np.nan)

    def brier(self) -> FloatArray:
        """Mean squared difference of probability and label. `[R]`."""
        error = (self.scores.probabilities - self.scores.labels) ** 2
        return (self.weights @ error) / self.weights.sum(axis=1)

    def ece(self) -> FloatArray:
        """Expected calibration error over ten bins of equal mass. `[R]`.

        A bin holds whole groups of equal probability (each goes where the middle of its mass lies), so the value does
        not depend on how ties are stored. sum_b |sum_{i in b} w_i (y_i - p_i)| / sum_i w_i.
        """
        weight, positive = self._groups
        cumulative, _ = self._cumulative
        total = cumulative[:, -1:]
        middle = (cumulative - weight / 2) / total
        bins = np.minimum((middle * NUM_CALIBRATION_BINS).astype(np.intp), NUM_CALIBRATION_BINS - 1)
        bins += np.arange(len(bins))[:, None] * NUM_CALIBRATION_BINS
        residual = positive - weight * self.scores.probabilities[self.scores.starts]
        sums = np.bincount(bins.ravel(), residual.ravel(), minlength=len(bins) * NUM_CALIBRATION_BINS)
        return np.abs(sums.reshape(len(bins), NUM_CALIBRATION_BINS)).sum(axis=1) / total[:, 0]

    def calibration_intercept(self) -> FloatArray:
        """a in logit P(y) = a + logit(p): 0 when the mean risk is right, positive when risks are too low. `[R]`."""
        start, _, _ = self.scores.recalibration
        fit = self._fit(start=(start, 1.0), fit_slope=False)
        return self._both_classes(fit[:, 0], np.ones(len(fit)))

    def calibration_slope(self) -> FloatArray:
        """b in logit P(y) = a + b logit(p): 1 when the spread is right, below 1 when risks are too extreme. `[R]`."""
        _, intercept, slope = self.scores.recalibration
        fit = self._fit(start=(intercept, slope), fit_slope=True)
        return self._both_classes(fit[:, 1], np.ones(len(fit)))

    def _fit(self, start: tuple[float, float], fit_slope: bool) -> FloatArray:
        if not np.isfinite(start).all():
            return np.full((len(self.weights), 2), np.nan)
        return _logistic_fit(self.weights, self.scores.labels, self.scores.logits, start, fit_slope)

    def _both_classes(self, numerator: FloatArray, denominator: FloatArray) -> FloatArray:
        """numerator / denominator `[R]`, NaN in a weighting that lacks one of the classes."""
        num_positive, num_negative = self._class_weights
        defined = (num_positive > 0) & (num_negative > 0)
        return np.divide(numerator, denominator, out=np.full(len(numerator), np.nan), where=defined)


@dataclass(frozen=True)
class Metric:
    """A metric's name in files (`key`), on pages (`label`), and how it is shown.

    `percent`: printed times 100, as the papers do. `better`: +1 higher, -1 lower, 0 neither (a target value).
    """

    key: str
    label: str
    compute: Callable[[Weighted], FloatArray]
    better: int
    percent: bool


METRICS: dict[str, Metric] = {
    metric.key: metric
    for metric in (
        Metric("pr_auc", "PR-AUC", Weighted.pr_auc, better=1, percent=True),
        Metric("average_precision", "Average precision", Weighted.average_precision, better=1, percent=True),
        Metric("f1", "F1", Weighted.f1, better=1, percent=True),
        Metric("kappa", "Kappa", Weighted.kappa, better=1, percent=True),
        Metric("auroc", "AUROC", Weighted.auroc, better=1, percent=True),
        Metric("accuracy", "Accuracy", Weighted.accuracy, better=1, percent=True),
        Metric("precision", "Precision", Weighted.precision, better=1, percent=True),
        Metric("recall", "Recall", Weighted.recall, better=1, percent=True),
        Metric("brier", "Brier", Weighted.brier, better=-1, percent=False),
        Metric("ece", "ECE", Weighted.ece, better=-1, percent=False),
        Metric("calibration_slope", "Calibration slope", Weighted.calibration_slope, better=0, percent=False),
        Metric(
            "calibration_intercept", "Calibration intercept", Weighted.calibration_intercept, better=0, percent=False
        ),
    )
}


def compute(scores: Scores, weights: ArrayLike | None = None, names: Iterable[str] = METRICS) -> dict[str, FloatArray]:
    """The named metrics under each of `R` weightings: name -> `[R]` (R = 1 without weights), NaN where undefined."""
    weighted = Weighted(scores, weights)
    return {name: METRICS[name].compute(weighted) for name in names}


def undefined_reason(name: str, scores: Scores) -> str:
    """Why the metric has no value on this test set. Call it only where the value is NaN."""
    if not scores.has_both_classes:
        everyone = "positive" if scores.labels[0] else "negative"
        if name == "kappa":
            return f"every label and every decision is {everyone}"
        return f"every label is {everyone}"
    if name == "calibration_slope":
        if len(scores.starts) == 1:
            return "every probability is the same"
        return "the probabilities separate the classes, so the slope is infinite"
    raise AssertionError(f"{name} is defined on every test set with both classes")


def pr_auc(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Trapezoid under the precision-recall curve (`auc(recall, precision)`); NaN with one class.

    >>> round(pr_auc([0, 0, 1, 1], [.1, .4, .35, .8]), 6)
    0.791667
    """
    return _single("pr_auc", Scores(labels, probabilities), weights)


def average_precision(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Step sum under the precision-recall curve; NaN with one class."""
    return _single("average_precision", Scores(labels, probabilities), weights)


def auroc(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Area under the ROC curve; NaN with one class."""
    return _single("auroc", Scores(labels, probabilities), weights)


def brier(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Mean squared error of the probability."""
    return _single("brier", Scores(labels, probabilities), weights)


def ece(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Expected calibration error over ten bins of equal mass."""
    return _single("ece", Scores(labels, probabilities), weights)


def calibration_slope(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Slope of the logistic regression of the label on logit(probability); NaN with one class or separated classes."""
    return _single("calibration_slope", Scores(labels, probabilities), weights)


def calibration_intercept(labels: ArrayLike, probabilities: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Intercept of the logistic regression of the label with logit(probability) as offset; NaN with one class."""
    return _single("calibration_intercept", Scores(labels, probabilities), weights)


def accuracy(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of right decisions."""
    return _single("accuracy", _decided(labels, decisions), weights)


def precision(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of positives among the positive decisions; 0 when there are none."""
    return _single("precision", _decided(labels, decisions), weights)


def recall(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Share of the positives decided positive; 0 when there are none."""
    return _single("recall", _decided(labels, decisions), weights)


def f1(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Harmonic mean of precision and recall; 0 when nothing is positive, in label or decision."""
    return _single("f1", _decided(labels, decisions), weights)


def kappa(labels: ArrayLike, decisions: ArrayLike, weights: ArrayLike | None = None) -> float:
    """Cohen's kappa; NaN when labels and decisions are all one and the same class."""
    return _single("kappa", _decided(labels, decisions), weights)


def _decided(labels: ArrayLike, decisions: ArrayLike) -> Scores:
    d = np.asarray(decisions, dtype=bool)
    return Scores(labels, d.astype(np.float64), d)


def _single(name: str, scores: Scores, weights: ArrayLike | None) -> float:
    return float(compute(scores, weights, [name])[name][0])


def _ratio(numerator: FloatArray, denominator: FloatArray, empty: float) -> FloatArray:
    return np.divide(numerator, denominator, out=np.full(len(numerator), empty), where=denominator > 0)


def _logistic_fit(
    weights: FloatArray,
    labels: BoolArray,
    x: FloatArray,
    start: tuple[float, float],
    fit_slope: bool,
    max_steps: int = _NEWTON_STEPS,
) -> FloatArray:
    """Newton's method for logit P(y) = a + b x under each weighting; `[R, 2]` of (a, b), NaN where it has no solution.

    Without `fit_slope` b stays at its start. No step moves a sample's logit by more than 0.5: over such a step the
    curvature changes by less than e^0.5 < 2, so the likelihood cannot fall and Newton's method cannot run away from a
    solution that exists. Where the classes are separated the slope grows without bound, so "no convergence" is "no
    solution".
    """
    result = np.full((len(weights), 2), np.nan)
    active = np.arange(len(weights))
    w = weights
    centre = x.mean()  # uncentred, logits in a narrow range far from 0 make the information matrix singular
    z = x - centre
    span = np.array([z.min(), z.max()])
    b = np.full(len(weights), start[1])
    a = start[0] + b * centre
    powers = np.stack([np.ones_like(z), z, z * z], axis=1)
    target = w @ (labels[:, None] * powers[:, :2])  # [R, 2]
    for _ in range(max_steps):
        # tanh cannot overflow, unlike exp of a large logit
        risk = 0.5 + 0.5 * np.tanh(0.5 * (a[:, None] + b[:, None] * z))
        expected = w * risk
        gradient = target - expected @ powers[:, :2]
        h = (expected * (1 - risk)) @ powers  # [R, 3]: entries aa, ab, bb of the Fisher information
        if fit_slope:
            determinant = h[:, 0] * h[:, 2] - h[:, 1] ** 2
            solvable = determinant > 1e-12 * h[:, 0] * h[:, 2]
            inverse = np.divide(1.0, determinant, out=np.zeros_like(determinant), where=solvable)
            step_a = (h[:, 2] * gradient[:, 0] - h[:, 1] * gradient[:, 1]) * inverse
            step_b = (h[:, 0] * gradient[:, 1] - h[:, 1] * gradient[:, 0]) * inverse
        else:
            solvable = h[:, 0] > 0
            step_a = np.divide(gradient[:, 0], h[:, 0], out=np.zeros_like(a), where=solvable)
            step_b = np.zeros_like(b)
        largest = np.abs(step_a[:, None] + step_b[:, None] * span).max(axis=1)
        # In separated classes every risk at last rounds to its label: a step of 0, and no information left.
        solvable &= h[:, 0] > _LEAST_INFORMATION * w.sum(axis=1)
        converged = solvable & (largest < _NEWTON_TOLERANCE)
        shrink = 0.5 / np.maximum(largest, 0.5)
        a, b = a + shrink * step_a, b + shrink * step_b
        result[active[converged], 0] = a[converged] - b[converged] * centre
        result[active[converged], 1] = b[converged]
        going = solvable & ~converged
        if not going.any():
            break
        if not going.all():
            active, w, target, a, b = active[going], w[going], target[going], a[going], b[going]
    return result
