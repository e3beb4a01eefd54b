"""evaluate: the content of metrics.json, its bootstrap, and refusals that reveal no patient."""

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.evaluation import metrics
from ehrlab.evaluation.risk import evaluate

SUBJECT = 918273645


def table(labels, probabilities, subjects=None, label=None):
    n = len(labels)
    columns = {
        "subject_id": np.asarray(range(SUBJECT, SUBJECT + n) if subjects is None else subjects, dtype=np.int64),
        "prediction_time": [datetime(2020, 1, 1) + timedelta(hours=i) for i in range(n)],
        "boolean_value": np.asarray(labels, dtype=bool),
        "predicted_boolean_value": np.asarray(probabilities) >= 0.5,
        "predicted_boolean_probability": np.asarray(probabilities, dtype=float),
    }
    return pl.DataFrame(columns | ({} if label is None else {"label": [label] * n}))


def random_table(n=90, seed=0, label=None, prevalence=0.3):
    rng = np.random.default_rng(seed)
    labels = rng.random(n) < prevalence
    return table(labels, 1 / (1 + np.exp(-rng.normal(labels * 1.2 - 1, 1))), label=label)


def test_every_metric_has_its_value_within_its_interval_and_json_takes_it():
    predictions = random_table()
    result = json.loads(json.dumps(evaluate(predictions, num_bootstrap=200)))
    assert set(result["held_out"]) == set(metrics.METRICS)
    expected = metrics.pr_auc(predictions["boolean_value"], predictions["predicted_boolean_probability"])
    assert result["held_out"]["pr_auc"]["value"] == pytest.approx(expected)
    for name in ("pr_auc", "f1", "kappa", "auroc", "brier"):
        entry = result["held_out"][name]
        assert entry["low"] < entry["value"] < entry["high"]
    assert (result["num_samples"], result["num_subjects"]) == (90, 90)
    assert result["num_positive"] == predictions["boolean_value"].sum()


def test_same_seed_same_intervals_and_another_seed_others():
    first, again, other = (evaluate(random_table(), num_bootstrap=50, seed=s) for s in (3, 3, 4))
    assert first == again
    assert first["held_out"]["auroc"]["low"] != other["held_out"]["auroc"]["low"]


def test_order_of_rows_changes_nothing():
    predictions = random_table()
    assert evaluate(predictions.reverse(), num_bootstrap=30) == evaluate(predictions, num_bootstrap=30)


def test_bootstrap_draws_subjects_so_repeated_stays_do_not_narrow_the_interval():
    one_stay = random_table(n=80)
    p = one_stay["predicted_boolean_probability"].to_numpy()
    y = one_stay["boolean_value"].to_numpy()
    nine_stays = table(np.repeat(y, 9), np.repeat(p, 9), subjects=np.repeat(np.arange(80), 9))
    alone, repeated = (evaluate(t, num_bootstrap=300)["held_out"]["auroc"] for t in (one_stay, nine_stays))
    assert repeated["high"] - repeated["low"] == pytest.approx(alone["high"] - alone["low"], rel=1e-9)


def test_bootstrap_standard_error_matches_the_binomial_formula():
    labels = np.arange(400) % 2
    wrong = np.arange(400) < 100
    entry = evaluate(table(labels, np.where(wrong, 1 - labels, labels)), num_bootstrap=2000)["held_out"]["accuracy"]
    assert (entry["high"] - entry["low"]) / 2 == pytest.approx(1.96 * np.sqrt(0.75 * 0.25 / 400), rel=0.1)


def test_one_class_has_null_values_with_reasons_and_null_bounds():
    held_out = evaluate(table([0, 0, 0], [0.2, 0.3, 0.6]), num_bootstrap=20)["held_out"]
    assert held_out["pr_auc"] == {"value": None, "low": None, "high": None, "reason": "every label is negative"}
    assert held_out["f1"]["value"] == 0


def test_an_interval_is_withheld_when_many_resamples_lack_a_class():
    entry = evaluate(table([1, 0, 0, 0, 0], [0.9, 0.8, 0.1, 0.2, 0.3]), num_bootstrap=200)["held_out"]["auroc"]
    assert entry["value"] == 1.0
    assert entry["low"] is None
    assert "of 200 resamples" in entry["reason"]


def test_labels_are_reported_each_and_averaged():
    easy, hard = random_table(seed=1, label="copd"), random_table(seed=2, label="kidney")
    result = evaluate(pl.concat([easy, hard]), num_bootstrap=40)
    parts = [result["labels"][name]["held_out"]["pr_auc"]["value"] for name in ("copd", "kidney")]
    assert parts[0] != parts[1]
    assert result["held_out"]["pr_auc"]["value"] == pytest.approx(np.mean(parts))
    assert (
        result["labels"]["copd"]["held_out"]["f1"]["value"]
        == evaluate(easy.drop("label"), num_bootstrap=0)["held_out"]["f1"]["value"]
    )
    assert result["num_samples"] == 90


def test_a_label_without_positives_is_left_out_of_the_mean_and_says_so():
    known, empty = random_table(seed=1, label="copd"), random_table(seed=2, label="rare", prevalence=0)
    result = evaluate(pl.concat([known, empty]), num_bootstrap=20)
    assert result["labels"]["rare"]["held_out"]["pr_auc"]["value"] is None
    assert result["held_out"]["pr_auc"]["value"] == result["labels"]["copd"]["held_out"]["pr_auc"]["value"]


def test_reads_the_file_that_a_run_writes(tmp_path):
    random_table().write_parquet(tmp_path / "predictions.parquet")
    assert evaluate(tmp_path / "predictions.parquet", num_bootstrap=10) == evaluate(random_table(), num_bootstrap=10)


def broken(change):
    return change(random_table(n=6))


@pytest.mark.parametrize(
    ("predictions", "complaint"),
    [
        (broken(lambda t: t.drop("boolean_value")), r"\['boolean_value'\] are missing"),
        (broken(lambda t: t.clear()), "found none"),
        (broken(lambda t: t.with_columns(predicted_boolean_probability=pl.lit(1.5))), "6 of 6 are outside or NaN"),
        (broken(lambda t: t.with_columns(predicted_boolean_probability=pl.lit(float("nan")))), "6 of 6"),
        (broken(lambda t: pl.concat([t, t[:2]])), "2 rows repeat one"),
        (broken(lambda t: t.with_columns(boolean_value=pl.lit(None, dtype=pl.Boolean))), "no value in 6 of 6"),
        (broken(lambda t: t.with_columns(boolean_value=pl.lit(1))), "should hold a boolean"),
    ],
)
def test_a_broken_table_is_refused_in_one_line_without_a_patient(predictions, complaint):
    with pytest.raises(InputError, match=complaint) as refusal:
        evaluate(predictions)
    assert "\n" not in str(refusal.value)
    assert str(SUBJECT)[:6] not in str(refusal.value)
    assert "2020" not in str(refusal.value)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.parquet"):
        evaluate(tmp_path / "absent.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"damaged\.parquet"):
        evaluate(tmp_path / "damaged.parquet")
