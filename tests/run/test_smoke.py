"""`trainer=smoke data=toy` for every risk model in conf/model: from nothing to metrics, predictions and a page."""

import json
from pathlib import Path

import polars as pl
import pytest
from safetensors.torch import load_file

from tiny import RISK_MODELS

FILES = {
    "DONE",
    "cohort.json",
    "config.yaml",
    "identity.json",
    "metrics.json",
    "model.safetensors",
    "oracle.parquet",
    "predictions.parquet",
    "provenance.json",
    "run.json",
}


@pytest.fixture(params=RISK_MODELS)
def model(request):
    return request.param


def test_every_model_runs_from_raw_tables_to_a_report(cli, results, model):
    done = cli(f"model={model}", "trainer=smoke", "data=toy")
    assert (done.code, done.err) == (0, "")
    assert "SIMULATED" in done.out

    (run,) = results.glob(f"toy/heart_failure/{model}/*/seed=0")
    assert {path.name for path in run.iterdir() if path.is_file() and path.name != ".lock"} == FILES
    about = json.loads((run / "run.json").read_text())
    assert (about["model"], about["seed"], about["simulated"], about["hash"]) == (model, 0, True, run.parent.name)
    metrics = json.loads((run / "metrics.json").read_text())
    assert 0 <= metrics["held_out"]["pr_auc"]["value"] <= 1
    predictions = pl.read_parquet(run / "predictions.parquet")
    assert metrics["num_samples"] == len(predictions) > 0
    assert not predictions.select("subject_id", "prediction_time").is_duplicated().any()
    assert predictions["predicted_boolean_probability"].is_between(0, 1).all()
    last = max(run.glob("phases/*/model.safetensors"), key=lambda path: path.stat().st_mtime_ns)
    assert load_file(run / "model.safetensors").keys() == load_file(last).keys()

    page = Path(done.out.rsplit("Report: ", 1)[1].strip())
    assert page.stat().st_size > 1000
    assert model in page.read_text()


def test_baselines_run_under_the_protocol_of_the_model_on_top(cli, results):
    """Same data, seeds and training; what was changed in the model itself stays with the model."""
    done = cli(
        "model=lstm",
        "baselines=sequence3",
        "model.embed_dim=6",
        "model.hidden_dim=5",
        "training.max_epochs=1",
        "seed=[2,1]",
        "trainer=smoke",
        "data=toy",
    )
    assert (done.code, done.err) == (0, "")
    runs = [json.loads(path.read_text()) for path in results.glob("toy/heart_failure/*/*/seed=*/run.json")]
    assert sorted((run["row"], run["seed"]) for run in runs) == [
        (row, seed)
        for row in (
            "logistic_regression training.max_epochs=1",
            "lstm embed_dim=6 hidden_dim=5 training.max_epochs=1",
            "lstm training.max_epochs=1",
            "retain training.max_epochs=1",
        )
        for seed in (1, 2)
    ]
    identities = [json.loads(path.read_text()) for path in results.glob("toy/heart_failure/*/*/seed=*/identity.json")]
    assert all(identity["training"]["max_epochs"] == 1 for identity in identities)
    table = done.out[done.out.rindex("PR-AUC x100") :]
    assert table.index("embed_dim") < min(table.index(row) for row in ("logistic", "retain"))


def test_a_model_that_is_in_its_baseline_set_is_one_row(cli, results):
    done = cli("model=logistic_regression", "baselines=floor", "visits.max_visits=7", "trainer=smoke", "data=toy")
    assert (done.code, done.err) == (0, "")
    assert len(list(results.glob("toy/heart_failure/*/*/seed=*"))) == 1
    assert done.out.count("training logistic_regression") == 1
    assert "done before" not in done.out
    assert "(2)" not in done.out  # two seeds
