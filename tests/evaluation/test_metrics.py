"""Metrics against scikit-learn, and the laws that a weighted metric keeps."""

import numpy as np
import pytest
import sklearn.metrics as sk
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from sklearn.linear_model import LogisticRegression

from ehrlab.evaluation import metrics

# A coarse grid makes ties, and 0 and 1 among them, the normal case.
tied = st.sampled_from([0.0, 0.1, 0.25, 0.5, 0.5000001, 0.75, 1.0])
free = st.floats(0, 1, allow_subnormal=False)


@st.composite
def samples(draw, elements=tied | free, max_size=30):
    size = draw(st.integers(1, max_size))
    labels = draw(hnp.arrays(bool, size))
    probabilities = np.array(draw(st.lists(elements, min_size=size, max_size=size)))
    return labels, probabilities


@st.composite
def weighted_samples(draw):
    labels, probabilities = draw(samples())
    weights = draw(hnp.arrays(np.int64, len(labels), elements=st.integers(0, 4)))
    assume(weights.sum() > 0)
    return labels, probabilities, weights


def all_metrics(labels, probabilities, weights=None):
    return {k: v[0] for k, v in metrics.compute(metrics.Scores(labels, probabilities), weights).items()}


@given(samples())
def test_ranking_metrics_match_sklearn_on_two_classes(sample):
    labels, probabilities = sample
    assume(labels.any() and not labels.all() and len(set(probabilities)) > 1)
    precision, recall, _ = sk.precision_recall_curve(labels, probabilities)
    assert metrics.pr_auc(labels, probabilities) == pytest.approx(sk.auc(recall, precision), abs=1e-12)
    expected = sk.average_precision_score(labels, probabilities)
    assert metrics.average_precision(labels, probabilities) == pytest.approx(expected, abs=1e-12)
    assert metrics.auroc(labels, probabilities) == pytest.approx(sk.roc_auc_score(labels, probabilities), abs=1e-12)


@given(samples(), st.integers(0, 2**32 - 1))
def test_ranking_metrics_match_sklearn_with_real_weights(sample, seed):
    labels, probabilities = sample
    assume(labels.any() and not labels.all() and len(set(probabilities)) > 1)
    weights = np.random.default_rng(seed).uniform(0.1, 3, len(labels))
    precision, recall, _ = sk.precision_recall_curve(labels, probabilities, sample_weight=weights)
    assert metrics.pr_auc(labels, probabilities, weights) == pytest.approx(sk.auc(recall, precision), abs=1e-9)
    expected = sk.roc_auc_score(labels, probabilities, sample_weight=weights)
    assert metrics.auroc(labels, probabilities, weights) == pytest.approx(expected, abs=1e-9)


@given(samples())
def test_decision_metrics_match_sklearn_with_zero_division_0(sample):
    labels, probabilities = sample
    decisions = probabilities >= 0.5
    assert metrics.f1(labels, decisions) == pytest.approx(sk.f1_score(labels, decisions, zero_division=0))
    assert metrics.precision(labels, decisions) == pytest.approx(sk.precision_score(labels, decisions, zero_division=0))
    assert metrics.recall(labels, decisions) == pytest.approx(sk.recall_score(labels, decisions, zero_division=0))
    assert metrics.accuracy(labels, decisions) == pytest.approx(sk.accuracy_score(labels, decisions))
    assert metrics.brier(labels, probabilities) == pytest.approx(np.mean((labels - probabilities) ** 2))


@given(samples())
def test_kappa_matches_sklearn_and_is_undefined_only_where_everything_is_one_class(sample):
    labels, probabilities = sample
    decisions = probabilities >= 0.5
    ours = metrics.kappa(labels, decisions)
    if len({*labels.tolist(), *decisions.tolist()}) == 1:
        assert np.isnan(ours)
    else:
        assert ours == pytest.approx(sk.cohen_kappa_score(labels, decisions), abs=1e-12)


@given(weighted_samples())
def test_an_integer_weight_equals_repeated_samples(sample):
    labels, probabilities, weights = sample
    weighted = all_metrics(labels, probabilities, weights)
    repeated = all_metrics(np.repeat(labels, weights), np.repeat(probabilities, weights))
    for name in metrics.METRICS:
        assert weighted[name] == pytest.approx(repeated[name], rel=1e-6, abs=1e-9, nan_ok=True), name


@given(samples(), st.randoms(use_true_random=False))
def test_the_order_of_samples_changes_nothing(sample, random):
    labels, probabilities = sample
    order = list(range(len(labels)))
    random.shuffle(order)
    before, after = all_metrics(labels, probabilities), all_metrics(labels[order], probabilities[order])
    for name in metrics.METRICS:
        assert before[name] == pytest.approx(after[name], rel=1e-6, abs=1e-9, nan_ok=True), name


@given(samples(), st.integers(0, 2**32 - 1))
def test_a_block_of_weightings_equals_one_at_a_time(sample, seed):
    labels, probabilities = sample
    weights = np.random.default_rng(seed).integers(0, 3, (4, len(labels))).astype(float)
    weights[:, 0] += 1
    block = metrics.compute(metrics.Scores(labels, probabilities), weights)
    for row in range(4):
        alone = all_metrics(labels, probabilities, weights[row])
        for name in metrics.METRICS:
            assert block[name][row] == pytest.approx(alone[name], rel=1e-6, abs=1e-9, nan_ok=True), name


@pytest.mark.parametrize("label", [False, True])
def test_one_class_leaves_the_ranking_metrics_undefined_with_a_reason(label):
    scores = metrics.Scores([label] * 5, [0.1, 0.2, 0.2, 0.7, 0.9])
    values = metrics.compute(scores)
    for name in ("pr_auc", "average_precision", "auroc", "calibration_slope", "calibration_intercept"):
        assert np.isnan(values[name][0])
        assert ("positive" if label else "negative") in metrics.undefined_reason(name, scores)
    assert all(np.isfinite(values[name][0]) for name in ("f1", "precision", "recall", "accuracy", "brier", "ece"))


def test_a_constant_risk_has_the_prevalence_and_not_half_of_one_more():
    labels = [1, 0, 0, 0, 1, 0, 0, 0]
    assert metrics.pr_auc(labels, [0.3] * 8) == metrics.average_precision(labels, [0.3] * 8) == 0.25
    assert metrics.pr_auc(labels, [0.3] * 8, [1, 1, 1, 1, 0, 2, 2, 2]) == 0.1


def test_tied_scores_part_the_trapezoid_from_the_step_sum():
    labels, probabilities = [1, 0, 1, 0, 0, 0], [0.9, 0.5, 0.5, 0.5, 0.5, 0.1]
    assert metrics.pr_auc(labels, probabilities) - metrics.average_precision(labels, probabilities) > 0.06


def test_calibration_fit_matches_an_unpenalised_logistic_regression():
    rng = np.random.default_rng(3)
    logits = rng.normal(-1, 1.5, 700)
    labels = rng.random(700) < 1 / (1 + np.exp(-(0.4 + 0.6 * logits)))
    probabilities = 1 / (1 + np.exp(-logits))
    fitted = LogisticRegression(C=np.inf, tol=1e-10).fit(logits[:, None], labels)
    assert metrics.calibration_slope(labels, probabilities) == pytest.approx(fitted.coef_[0, 0], rel=1e-5)
    shifted = 1 / (1 + np.exp(-(logits + metrics.calibration_intercept(labels, probabilities))))
    assert shifted.mean() == pytest.approx(labels.mean(), rel=1e-9)


@pytest.mark.parametrize(
    "probabilities",
    [
        [0.1, 0.2, 0.3, 0.4, 0.9],
        [0.9, 0.8, 0.7, 0.2, 0.1],
        [0.0, 0.0, 0.0, 1.0, 1.0],
        [0.1, 0.3, 0.3, 0.3, 0.9],
        [0.4] * 5,
    ],
)
def test_separated_or_constant_probabilities_have_no_calibration_slope(probabilities):
    scores = metrics.Scores([0, 0, 0, 1, 1], probabilities)
    assert np.isnan(metrics.compute(scores, names=["calibration_slope"])["calibration_slope"][0])
    assert metrics.undefined_reason("calibration_slope", scores)


@given(samples(elements=free))
def test_calibration_intercept_makes_the_mean_risk_right_wherever_both_classes_occur(sample):
    labels, probabilities = sample
    assume(labels.any() and not labels.all())
    shift = metrics.calibration_intercept(labels, probabilities)
    clipped = np.clip(probabilities, 1e-7, 1 - 1e-7)
    shifted = 1 / (1 + np.exp(-(np.log(clipped / (1 - clipped)) + shift)))
    assert shifted.mean() == pytest.approx(labels.mean(), abs=1e-6)


def test_ece_is_zero_for_the_true_risk_and_the_gap_for_a_constant_one():
    labels = np.array([0, 0, 0, 1] * 25)
    assert metrics.ece(labels, np.full(100, 0.25)) == pytest.approx(0)
    assert metrics.ece(labels, np.full(100, 0.6)) == pytest.approx(0.35)


def test_ece_equals_the_mean_gap_of_ten_equal_bins_without_ties():
    rng = np.random.default_rng(0)
    probabilities, labels = rng.random(230), rng.random(230) < 0.3
    order = np.argsort(-probabilities)
    gaps = [abs(labels[part].mean() - probabilities[part].mean()) for part in np.split(order, 10)]
    assert metrics.ece(labels, probabilities) == pytest.approx(np.mean(gaps))


@pytest.mark.parametrize(
    ("labels", "probabilities", "weights"),
    [
        ([], [], None),
        ([1, 0], [0.5], None),
        ([1, 0], [0.5, 1.5], None),
        ([1, 0], [0.5, np.nan], None),
        ([1, 0], [0.5, 0.4], [1.0]),
        ([1, 0], [0.5, 0.4], [0.0, 0.0]),
        ([1, 0], [0.5, 0.4], [1.0, -1.0]),
    ],
)
def test_impossible_input_is_refused(labels, probabilities, weights):
    with pytest.raises(ValueError, match=r"."):
        metrics.compute(metrics.Scores(labels, probabilities), weights)
