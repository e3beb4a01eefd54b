"""Curves for drawing: on the grid they agree with the metrics, and no point of them is a patient."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.evaluation.curves import calibration_bins, grid, precision_recall_curve, roc_curve
from ehrlab.evaluation.metrics import Scores, auroc, pr_auc


def random_scores(n, seed=0):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < 0.3
    return labels, 1 / (1 + np.exp(-rng.normal(labels * 1.5, 1)))


def test_area_under_the_drawn_curves_is_the_metric():
    labels, probabilities = random_scores(2000)
    scores = Scores(labels, probabilities)
    assert np.trapezoid(precision_recall_curve(scores), grid()) == pytest.approx(
        pr_auc(labels, probabilities), abs=0.01
    )
    assert np.trapezoid(roc_curve(scores), grid()) == pytest.approx(auroc(labels, probabilities), abs=0.005)


@pytest.mark.parametrize("n", [3, 500, 40_000])
def test_curves_have_the_size_of_the_grid_whatever_the_number_of_patients(n):
    labels, probabilities = random_scores(n, seed=2)
    assert len(precision_recall_curve(Scores(labels, probabilities))) == len(grid()) <= 200


def test_one_class_has_no_curve():
    scores = Scores([0, 0, 0], [0.1, 0.5, 0.5])
    assert np.isnan(precision_recall_curve(scores)).all()
    assert np.isnan(roc_curve(scores)).all()


def test_a_perfect_ranking_fills_the_square():
    scores = Scores([0, 0, 0, 1, 1], [0.1, 0.2, 0.3, 0.8, 0.9])
    np.testing.assert_allclose(precision_recall_curve(scores)[:-1], 1)
    np.testing.assert_allclose(roc_curve(scores), 1)


@given(st.lists(st.sampled_from([0.0, 0.2, 0.21, 0.5, 0.9, 1.0]), min_size=1, max_size=150), st.integers(10, 40))
def test_no_calibration_bin_is_smaller_than_asked_and_none_is_lost(probabilities, smallest):
    labels = np.arange(len(probabilities)) % 3 == 0
    bins = calibration_bins(Scores(labels, probabilities), smallest)
    assert all(b.num_samples >= smallest for b in bins)
    assert sum(b.num_samples for b in bins) == (len(probabilities) if len(probabilities) >= smallest else 0)
    assert all(x.mean_probability < y.mean_probability for x, y in pairwise(bins))


def test_calibration_bins_are_ten_of_equal_mass_without_ties():
    labels, probabilities = random_scores(300)
    assert [b.num_samples for b in calibration_bins(Scores(labels, probabilities))] == [30] * 10
