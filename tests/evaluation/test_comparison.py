"""Rows against each other: paired bootstrap, Holm's correction, mean rank, the test against a published number."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import stdtrit
from scipy.stats import ttest_1samp

from ehrlab.core.errors import InputError
from ehrlab.evaluation.comparison import (
    ResampledRow,
    holm,
    mean_rank,
    paired_difference,
    resample_row,
    row_interval,
    t_test_against,
)

KEYS = pl.DataFrame({"subject_id": [1]})


def predictions(skill, seed, n=150, first=5000, flip=()):
    labels = np.random.default_rng(99).random(n) < 0.35
    labels[list(flip)] ^= True
    logits = np.random.default_rng(seed).normal(size=n) + skill * labels - 1
    return pl.DataFrame(
        {
            "subject_id": np.arange(first, first + n),
            "prediction_time": [datetime(2021, 1, 1) + timedelta(days=i) for i in range(n)],
            "boolean_value": labels,
            "predicted_boolean_value": logits >= 0,
            "predicted_boolean_probability": 1 / (1 + np.exp(-logits)),
        }
    )


def row(skill, seeds, offset=0, num_bootstrap=300, **kwargs):
    tables = {seed: predictions(skill, seed + offset, **kwargs) for seed in seeds}
    return resample_row(tables, ["pr_auc", "f1"], num_bootstrap=num_bootstrap)


def test_a_row_does_not_differ_from_itself():
    same = paired_difference(row(1.0, [0, 1, 2]), row(1.0, [0, 1, 2]), "pr_auc")
    assert (same.value, same.low, same.high, same.p_value) == (0, 0, 0, 1)


def test_difference_is_the_mean_over_common_seeds_and_changes_sign_with_the_rows():
    strong, weak = row(2.5, [0, 1, 2]), row(0.3, [1, 2, 7], offset=50)
    there, back = paired_difference(strong, weak, "pr_auc"), paired_difference(weak, strong, "pr_auc")
    expected = np.mean([strong.values["pr_auc"][i] - weak.values["pr_auc"][j] for i, j in ((1, 0), (2, 1))])
    assert there.value == pytest.approx(expected)
    assert there.num_seeds == 2
    assert (back.value, back.low, back.high) == pytest.approx((-there.value, -there.high, -there.low))
    assert there.low > 0
    assert there.p_value == back.p_value < 0.05


def test_pairing_narrows_the_difference_of_two_similar_rows():
    tables = {seed: predictions(1.0, seed) for seed in range(2)}
    shifted = {seed: t.with_columns(pl.col("predicted_boolean_probability") ** 1.01) for seed, t in tables.items()}
    ours, theirs = (
        resample_row(tables, ["brier"], num_bootstrap=200),
        resample_row(shifted, ["brier"], num_bootstrap=200),
    )
    alone, paired = row_interval(ours, "brier"), paired_difference(ours, theirs, "brier")
    assert paired.high - paired.low < 0.1 * (alone.high - alone.low)


def test_a_seed_that_differs_widens_the_interval_of_a_row():
    steady = row_interval(row(1.0, [4]), "pr_auc")
    tables = {0: predictions(0.0, 4), 1: predictions(3.0, 4)}
    varied = row_interval(resample_row(tables, ["pr_auc"], num_bootstrap=300), "pr_auc")
    assert varied.high - varied.low > 2 * (steady.high - steady.low)


def test_the_interval_of_a_row_stays_within_what_its_seeds_have():
    tables = {0: predictions(3.0, 4), 1: predictions(-9.0, 4), 2: predictions(-9.0, 5)}
    interval = row_interval(resample_row(tables, ["f1"], num_bootstrap=300), "f1")
    assert interval.low >= 0


def crossed(rng, num_seeds, seeds, patients, both, num_bootstrap=200, n=100):
    """A row whose metric is a mean over patients: the spread of seeds, errors over patients, and of one seed alone."""
    scores = seeds * rng.normal(size=(num_seeds, 1)) + np.sqrt(n) * (
        patients * rng.normal(size=n) + both * rng.normal(size=(num_seeds, n))
    )
    weights = rng.multinomial(n, np.full(n, 1 / n), num_bootstrap) / n
    return ResampledRow(tuple(range(num_seeds)), {"m": scores.mean(1)}, {"m": weights @ scores.T}, KEYS, 0)


@pytest.mark.parametrize("num_seeds", [3, 5])
@pytest.mark.parametrize(
    ("seeds", "patients", "both"), [(1, 0.01, 0.1), (1, 0.5, 0.5), (0.3, 1, 0.3), (3, 1, 1), (0, 1, 0.5)]
)
def test_two_equal_methods_are_called_different_in_one_of_twenty_tests(num_seeds, seeds, patients, both):
    """Whether seeds or patients vary more; a bootstrap over so few seeds calls every fourth pair different."""
    rng = np.random.default_rng(3)
    nothing = ResampledRow(
        tuple(range(num_seeds)), {"m": np.zeros(num_seeds)}, {"m": np.zeros((200, num_seeds))}, KEYS, 0
    )
    found = [
        paired_difference(crossed(rng, num_seeds, seeds, patients, both), nothing, "m").p_value < 0.05
        for _ in range(600)
    ]
    assert np.mean(found) < 0.05 + 3 * np.sqrt(0.05 * 0.95 / 600)


def test_what_is_detectable_is_found_four_times_out_of_five_even_as_one_of_many():
    rng = np.random.default_rng(4)
    nothing = ResampledRow((0,), {"m": np.zeros(1)}, {"m": np.zeros((200, 1))}, KEYS, 0)
    for num_comparisons in (1, 17):
        found = []
        for _ in range(600):
            difference = paired_difference(crossed(rng, 1, 0, 1, 0), nothing, "m")
            shifted = difference.value + difference.detectable(num_comparisons)
            found.append(
                abs(shifted) > stdtrit(difference.degrees, 1 - 0.025 / num_comparisons) * difference.standard_error
            )
        assert np.mean(found) == pytest.approx(0.8, abs=0.05)


def test_an_interval_holds_zero_exactly_where_p_is_at_least_one_in_twenty():
    rng = np.random.default_rng(5)
    nothing = ResampledRow((0, 1), {"m": np.zeros(2)}, {"m": np.zeros((200, 2))}, KEYS, 0)
    found = [paired_difference(crossed(rng, 2, 0.3, 1, 0.2), nothing, "m") for _ in range(200)]
    assert {(d.low > 0 or d.high < 0) == (d.p_value < 0.05) for d in found} == {True}
    assert 2 <= sum(d.p_value < 0.05 for d in found) <= 25


@pytest.mark.parametrize(
    ("other", "complaint"),
    [
        ({"first": 5003}, "150 of 150 and 150 of 150"),
        ({"flip": (3, 8)}, "2 of 150 and 2 of 150"),
        ({"n": 149}, "1 of 150 and 0 of 149"),
    ],
)
def test_rows_with_other_test_samples_or_labels_are_refused_with_their_number(other, complaint):
    with pytest.raises(InputError, match=complaint) as refusal:
        paired_difference(row(1.0, [0]), row(1.0, [0], **other), "pr_auc")
    assert "500" not in str(refusal.value)


def test_seeds_of_one_row_must_share_their_samples():
    with pytest.raises(InputError, match="seed 0 with seed 1"):
        resample_row({0: predictions(1, 0), 1: predictions(1, 1, first=1)}, ["f1"], num_bootstrap=1)


def test_rows_without_a_common_seed_are_refused():
    with pytest.raises(InputError, match="seeds in common"):
        paired_difference(row(1.0, [0]), row(1.0, [1]), "pr_auc")


def test_an_undefined_metric_gives_a_reason_instead_of_a_p_value():
    tables = {0: predictions(1.0, 0).with_columns(boolean_value=pl.lit(False))}
    ours = resample_row(tables, ["pr_auc"], num_bootstrap=20)
    difference = paired_difference(ours, ours, "pr_auc")
    assert difference.reason == "undefined"
    assert np.isnan(difference.p_value)


def test_holm_matches_a_worked_example_and_skips_what_was_not_tested():
    assert holm([0.01, 0.04, float("nan"), 0.03, 0.005]) == pytest.approx(
        [0.03, 0.06, float("nan"), 0.06, 0.02], nan_ok=True
    )
    assert holm([]) == []


@given(st.lists(st.floats(0, 1), min_size=1, max_size=12))
def test_holm_keeps_the_order_and_lies_between_raw_and_bonferroni(p_values):
    adjusted = holm(p_values)
    for p, q in zip(p_values, adjusted):
        assert p <= q <= min(1, len(p_values) * p) + 1e-12
    assert np.all(np.diff(np.array(adjusted)[np.argsort(p_values, kind="stable")]) >= 0)


def test_mean_rank_shares_ties_and_counts_only_columns_where_all_ran():
    values = {"a": {"x": 3.0, "y": 1.0, "z": 9.0}, "b": {"x": 2.0, "y": 1.0}, "c": {"x": 1.0, "y": 5.0, "z": 1.0}}
    ranks, columns = mean_rank(values)
    assert columns == 2
    assert ranks == {"a": 1.75, "b": 2.25, "c": 2.0}
    assert mean_rank({"a": {"x": 1.0}, "b": {"x": 2.0}}, higher_is_better=False)[0] == {"a": 1, "b": 2}


def test_t_test_matches_scipy_and_needs_two_seeds():
    values = [0.701, 0.712, 0.69, 0.705]
    assert t_test_against(values, 0.72) == pytest.approx(ttest_1samp(values, 0.72).pvalue)
    assert np.isnan(t_test_against([0.7], 0.72))
    assert t_test_against([0.5, 0.5], 0.5) == 1.0
