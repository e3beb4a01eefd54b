"""Distance to the exact risk: none for the oracle itself, closed forms, paired resamples, no patient in a refusal."""

import json
from datetime import datetime, timedelta

import numpy as np
import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.evaluation import metrics
from ehrlab.evaluation.comparison import paired_difference, prior_risk, resample_row, row_interval, standing_at
from ehrlab.evaluation.oracle import KL_CLIP, Oracle, compare, kl_divergence, resample_distances
from ehrlab.evaluation.resampling import Predictions
from ehrlab.evaluation.risk import evaluate

SUBJECT = 918273645


def world(n=120, seed=0, prevalence=0.3, label=None):
    """Predictions of a noisy model, and the oracle of two information sets; three samples of each subject."""
    rng = np.random.default_rng(seed)
    signal = rng.normal(np.log(prevalence / (1 - prevalence)) if prevalence else -50, 1.5, n)
    exact = 1 / (1 + np.exp(-signal))
    predicted = 1 / (1 + np.exp(-(0.5 * signal + rng.normal(size=n))))
    keys = {
        "subject_id": np.repeat(np.arange(SUBJECT, SUBJECT + n // 3), 3),
        "prediction_time": [datetime(2020, 1, 1) + timedelta(hours=i) for i in range(n)],
        **({} if label is None else {"label": [label] * n}),
    }
    predictions = pl.DataFrame(
        keys
        | {
            "boolean_value": rng.random(n) < exact,
            "predicted_boolean_value": predicted >= 0.5,
            "predicted_boolean_probability": predicted,
        }
    )
    return predictions, pl.DataFrame(keys | {"codes": exact**2, "codes+time": exact})


def as_model(predictions, risk):
    return predictions.with_columns(predicted_boolean_probability=risk, predicted_boolean_value=risk >= 0.5)


def test_the_oracles_own_risks_have_no_regret_and_no_divergence():
    predictions, oracle = world()
    found = compare(as_model(predictions, oracle["codes+time"]), oracle, "codes+time", num_bootstrap=50)
    for name in ("regret", "regret_average_precision", "kl"):
        assert found[name] == pytest.approx({"value": 0, "low": 0, "high": 0}, abs=1e-12)
    other = compare(as_model(predictions, oracle["codes+time"]), oracle, "codes", num_bootstrap=50)
    assert other["kl"]["low"] > 0


def test_regret_is_the_difference_of_two_metrics_and_json_takes_it():
    predictions, oracle = world()
    found = json.loads(json.dumps(compare(predictions, oracle, "codes+time", num_bootstrap=100)))
    labels, model = predictions["boolean_value"], predictions["predicted_boolean_probability"]
    for regret, metric in (("regret", metrics.pr_auc), ("regret_average_precision", metrics.average_precision)):
        assert found[regret]["value"] == pytest.approx(metric(labels, oracle["codes+time"]) - metric(labels, model))
        assert found[regret]["low"] < found[regret]["value"] < found[regret]["high"]
    assert found["reference"] == "codes+time"
    assert list(found["sets"]) == ["codes", "codes+time"]
    assert found["sets"]["codes"]["auroc"]["value"] == pytest.approx(metrics.auroc(labels, oracle["codes"]))


def test_kl_is_the_textbook_formula():
    q, p = np.array([0.3, 0.9, 0.5]), np.array([0.6, 0.2, 0.5])
    expected = q * np.log(q / p) + (1 - q) * np.log((1 - q) / (1 - p))
    np.testing.assert_allclose(kl_divergence(q, p), expected, rtol=1e-13)
    predictions, oracle = world()
    divergence = kl_divergence(oracle["codes+time"].to_numpy(), predictions["predicted_boolean_probability"].to_numpy())
    assert compare(predictions, oracle, "codes+time", num_bootstrap=0)["kl"]["value"] == pytest.approx(
        divergence.mean()
    )


def test_a_certain_and_wrong_model_is_finitely_far_off():
    np.testing.assert_allclose(kl_divergence(np.array([1.0, 0.0]), np.array([0.0, 1.0])), -np.log(KL_CLIP))
    np.testing.assert_allclose(kl_divergence(np.array([1.0, 0.0]), np.array([1.0, 0.0])), 0, atol=2 * KL_CLIP)
    assert (kl_divergence(np.linspace(0, 1, 101), np.linspace(0, 1, 101)) >= 0).all()


def test_model_and_oracle_are_resampled_together():
    """A model that ranks as the oracle does has no regret in any resample, though both vary by many points."""
    predictions, oracle = world()
    found = compare(as_model(predictions, oracle["codes"]), oracle, "codes+time", num_bootstrap=200)
    assert (found["regret"]["low"], found["regret"]["high"]) == (0, 0)
    area = found["sets"]["codes+time"]["pr_auc"]
    assert area["high"] - area["low"] > 0.05
    assert found["kl"]["value"] > 0


def test_the_oracles_intervals_are_those_of_evaluate():
    predictions, oracle = world()
    as_run = evaluate(as_model(predictions, oracle["codes"]), num_bootstrap=60, seed=3)["held_out"]
    of_set = compare(predictions, oracle, "codes+time", num_bootstrap=60, seed=3)["sets"]["codes"]
    assert of_set == {name: as_run[name] for name in of_set}


def test_a_row_of_seeds_has_the_mean_of_its_runs_distances():
    runs = {seed: as_model(world()[0], world()[1]["codes"] ** power) for seed, power in ((0, 1.5), (4, 0.7))}
    oracle = world()[1]
    row = resample_distances(runs, oracle, "codes+time", num_bootstrap=80)
    alone = [compare(run, oracle, "codes+time", num_bootstrap=80) for run in runs.values()]
    assert row.seeds == (0, 4)
    for name in ("regret", "kl"):
        np.testing.assert_allclose(row.values[name], [entry[name]["value"] for entry in alone])
        assert row_interval(row, name).value == pytest.approx(np.mean([entry[name]["value"] for entry in alone]))
    assert row.resamples["kl"].shape == (80, 2)


def test_rows_come_in_the_order_of_the_predictions_whatever_theirs_and_their_types():
    predictions, oracle = world()
    shuffled = oracle.sample(fraction=1, shuffle=True, seed=1).with_columns(
        pl.col("prediction_time").cast(pl.Datetime("ns"))
    )
    surplus = pl.concat([shuffled, shuffled.with_columns(pl.col("subject_id") - 10**6)])
    expected = compare(predictions, oracle, "codes+time", num_bootstrap=20)
    assert compare(predictions.reverse(), surplus, "codes+time", num_bootstrap=20) == expected
    test = Predictions.read(predictions)
    assert Oracle.read(surplus).rows_of(test.keys)["codes"].to_list() == oracle["codes"].to_list()


def test_labels_are_compared_each_and_averaged():
    parts = [world(seed=seed, label=name) for seed, name in ((1, "copd"), (2, "kidney"))]
    predictions, oracle = (pl.concat(tables) for tables in zip(*parts))
    found = compare(predictions, oracle, "codes", num_bootstrap=40)
    for name in ("regret", "kl"):
        of_labels = [found["labels"][label][name]["value"] for label in ("copd", "kidney")]
        assert of_labels[0] != of_labels[1]
        assert found[name]["value"] == pytest.approx(np.mean(of_labels))
    alone = compare(parts[0][0].drop("label"), parts[0][1].drop("label"), "codes", num_bootstrap=0)
    assert found["labels"]["copd"]["sets"]["codes"]["pr_auc"]["value"] == alone["sets"]["codes"]["pr_auc"]["value"]
    with pytest.raises(InputError, match="expected the keys"):
        compare(predictions, oracle.filter(label="copd").drop("label"), "codes")


def test_one_class_leaves_regret_undefined_with_a_reason_and_kl_defined():
    predictions, oracle = world(prevalence=0)
    found = compare(predictions, oracle, "codes", num_bootstrap=20)
    assert found["regret"] == {"value": None, "low": None, "high": None, "reason": "every label is negative"}
    assert found["sets"]["codes"]["auroc"]["reason"] == "every label is negative"
    assert found["kl"]["value"] > 0


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t[3:], "3 of 120 are missing"),
        (lambda t: pl.concat([t, t[:2]]), "4 of 122 rows repeat one"),
        (lambda t: t.with_columns(codes=pl.lit(1.5)), "120 of 120 do not"),
        (lambda t: t.with_columns(codes=pl.lit(float("nan"))), "120 of 120 do not"),
        (lambda t: t.with_columns(codes=pl.lit(None, dtype=pl.Float64)), "120 of 120 do not"),
        (lambda t: t.with_columns(codes=pl.lit("x")), "should hold a number"),
        (lambda t: t.drop("codes", "codes+time"), "for each information set, found none"),
        (lambda t: t.drop("prediction_time"), r"\['prediction_time'\] are missing"),
        (lambda t: t.drop("codes+time"), r"set 'codes\+time', found \['codes'\]"),
    ],
)
def test_a_table_that_does_not_fit_is_refused_in_one_line_without_a_patient(change, complaint):
    predictions, oracle = world()
    with pytest.raises(InputError, match=complaint) as refusal:
        compare(predictions, change(oracle), "codes+time")
    assert "\n" not in str(refusal.value)
    assert str(SUBJECT)[:6] not in str(refusal.value)
    assert "2020" not in str(refusal.value)


def test_a_missing_or_damaged_file_is_named(tmp_path):
    with pytest.raises(InputError, match=r"absent\.parquet"):
        Oracle.read(tmp_path / "absent.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"damaged\.parquet"):
        Oracle.read(tmp_path / "damaged.parquet")


def test_a_constant_risk_is_at_the_prior_in_every_resample():
    predictions, _ = world()
    test = Predictions.read(as_model(predictions, pl.repeat(0.5, len(predictions), eager=True)))
    row = resample_row({0: test, 1: test}, ["average_precision"], num_bootstrap=60)
    prior = prior_risk(test, num_bootstrap=60)
    assert prior.value == pytest.approx(predictions["boolean_value"].mean())
    difference = paired_difference(row, standing_at(row, "average_precision", prior), "average_precision")
    assert (difference.low, difference.high) == pytest.approx((0, 0), abs=1e-12)
