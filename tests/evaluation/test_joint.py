"""Several labels: micro and macro, subset accuracy, and that everything takes labels by their names."""

from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import accuracy_score, f1_score, precision_score, recall_score

from ehrlab.core.errors import InputError
from ehrlab.evaluation.comparison import paired_difference, resample_row, row_interval
from ehrlab.evaluation.joint import JOINT_METRICS, averaged
from ehrlab.evaluation.metrics import METRICS
from ehrlab.evaluation.oracle import compare
from ehrlab.evaluation.resampling import Predictions
from ehrlab.evaluation.risk import evaluate

NAMES = ("reflux", "diabetes", "heart_failure")  # not in the order of the alphabet


def table(truth, risk, subjects=None):
    """`truth`, `risk`: samples x labels."""
    truth, risk = np.asarray(truth, dtype=bool), np.asarray(risk, dtype=float)
    n, k = truth.shape
    times = [datetime(2020, 1, 1) + timedelta(hours=i) for i in range(n)]
    return pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(n) if subjects is None else subjects, k),
            "prediction_time": [time for time in times for _ in range(k)],
            "label": list(NAMES[:k]) * n,
            "boolean_value": truth.ravel(),
            "predicted_boolean_value": risk.ravel() >= 0.5,
            "predicted_boolean_probability": risk.ravel(),
        }
    )


def random_arrays(n=60, seed=0):
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 3)) < [0.2, 0.5, 0.4]
    return truth, np.clip(0.35 + 0.3 * truth + rng.normal(0, 0.25, (n, 3)), 0, 1)


def values(predictions, names=(*JOINT_METRICS, *METRICS)):
    held_out = evaluate(predictions, num_bootstrap=0)["held_out"]
    return {name: held_out[name]["value"] for name in names}


@settings(max_examples=40)
@given(st.data())
def test_numbers_match_scikit_learn_whatever_the_order_of_rows(data):
    n = data.draw(st.integers(1, 12))
    cells = st.lists(
        st.lists(st.sampled_from([0.0, 0.2, 0.5, 0.7, 1.0]), min_size=3, max_size=3), min_size=n, max_size=n
    )
    truth, risk = np.array(data.draw(cells)) > 0.4, np.array(data.draw(cells))
    subjects = np.array(data.draw(st.lists(st.integers(0, 4), min_size=n, max_size=n)))
    found = values(table(truth, risk, subjects).sample(fraction=1.0, shuffle=True, seed=1))
    decided = risk >= 0.5
    for kind, metric in (("f1", f1_score), ("precision", precision_score), ("recall", recall_score)):
        assert found[f"{kind}_micro"] == pytest.approx(metric(truth, decided, average="micro", zero_division=0))
        assert found[kind] == pytest.approx(metric(truth, decided, average="macro", zero_division=0))
    assert found["f1_macro"] == found["f1"]
    assert found["subset_accuracy"] == pytest.approx(accuracy_score(truth, decided))
    assert found["accuracy"] == pytest.approx((truth == decided).mean())


def test_one_label_is_its_own_micro_and_macro():
    truth, risk = random_arrays()
    single = Predictions(table(truth[:, :1], risk[:, :1]).drop("label"))
    found = averaged(
        single, ["f1", "f1_macro", "f1_micro", "accuracy", "subset_accuracy", "recall_micro", "recall"], 30, 0
    )
    for one, other in (
        ("f1", "f1_micro"),
        ("f1", "f1_macro"),
        ("accuracy", "subset_accuracy"),
        ("recall", "recall_micro"),
    ):
        assert found[one].value == pytest.approx(found[other].value)
        np.testing.assert_allclose(found[one].resamples, found[other].resamples)


def test_a_run_with_one_label_has_no_joint_metrics():
    truth, risk = random_arrays()
    assert not set(JOINT_METRICS) & set(evaluate(table(truth[:, :1], risk[:, :1]).drop("label"))["held_out"])


def test_micro_and_macro_are_resampled_on_the_same_subjects():
    """A test set of one label repeated: every joint resample must be the label's own."""
    truth, risk = random_arrays()
    thrice = Predictions(table(np.repeat(truth[:, :1], 3, 1), np.repeat(risk[:, :1], 3, 1), np.arange(60) // 2))
    found = averaged(thrice, ["f1", "f1_micro", "accuracy", "subset_accuracy"], 50, 3)
    np.testing.assert_allclose(found["f1_micro"].resamples, found["f1"].resamples)
    np.testing.assert_allclose(found["subset_accuracy"].resamples, found["accuracy"].resamples)


def test_bootstrap_draws_subjects_so_repeated_stays_do_not_narrow_the_intervals():
    truth, risk = random_arrays(40)
    alone = evaluate(table(truth, risk), num_bootstrap=200)["held_out"]
    many = table(np.repeat(truth, 7, 0), np.repeat(risk, 7, 0), np.repeat(np.arange(40), 7))
    repeated = evaluate(many, num_bootstrap=200)["held_out"]
    for name in JOINT_METRICS:
        assert alone[name]["low"] < alone[name]["value"] < alone[name]["high"]
        assert repeated[name] == {key: pytest.approx(number) for key, number in alone[name].items()}


def test_each_label_has_numbers_of_its_own_by_its_name():
    truth, risk = random_arrays()
    found = evaluate(table(truth, risk), num_bootstrap=40)
    assert set(found["labels"]) == set(NAMES)
    for k, name in enumerate(NAMES):
        part = found["labels"][name]
        assert part["num_positive"] == truth[:, k].sum()
        assert part["held_out"]["f1"]["value"] == pytest.approx(f1_score(truth[:, k], risk[:, k] >= 0.5))
        assert part["held_out"]["pr_auc"]["low"] < part["held_out"]["pr_auc"]["value"]
    assert (found["num_samples"], found["num_positive"]) == (60, truth.sum())


def test_rows_are_compared_in_joint_metrics():
    truth, risk = random_arrays(200)
    better = np.clip(risk + 0.2 * np.where(truth, 1, -1), 0, 1)
    names = ["f1_micro", "subset_accuracy", "pr_auc", "f1_macro"]
    ours = resample_row({0: table(truth, better), 1: table(truth, better)}, names, num_bootstrap=200)
    theirs = resample_row({0: table(truth, risk), 1: table(truth, risk)}, names, num_bootstrap=200)
    for name in names:
        difference = paired_difference(ours, theirs, name)
        assert 0 < difference.low < difference.value
        assert row_interval(ours, name).value == pytest.approx(values(table(truth, better))[name])


def test_runs_on_other_labels_are_not_compared():
    truth, risk = random_arrays()
    ours, theirs = (resample_row({0: table(truth[:, :k], risk[:, :k])}, ["f1_micro"], num_bootstrap=5) for k in (3, 2))
    with pytest.raises(InputError, match="60 of 180"):
        paired_difference(ours, theirs, "f1_micro")


def test_exact_risks_are_matched_by_the_names_of_labels():
    truth, risk = random_arrays(300)
    predictions = table(truth, risk)
    exact = np.clip(risk + 0.2 * np.where(truth, 1, -1), 0.01, 0.99)
    oracle = predictions.select("subject_id", "prediction_time", "label", codes=pl.Series(exact.ravel()))
    found = compare(predictions, oracle.sample(fraction=1.0, shuffle=True, seed=0), "codes", num_bootstrap=20)
    assert set(found["labels"]) == set(NAMES)
    assert all(part["regret"]["value"] > 0 for part in found["labels"].values())
    mean = np.mean([part["regret"]["value"] for part in found["labels"].values()])
    assert found["regret"]["value"] == pytest.approx(mean)
