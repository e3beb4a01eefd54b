"""What leaves a run for people and services holds no patient."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

SMOKE = ("trainer=smoke", "data=toy")
# Numbers that no count, metric, hash or time holds by chance.
SHIFT = 918_273_645_000_000
MARK = "918273645"


@pytest.fixture
def marked(toy_tables: Path, tmp_path: Path) -> Path:
    """The toy cohort's raw tables with ids that can be searched for."""
    root = tmp_path / "marked"
    root.mkdir()
    for table in toy_tables.glob("*.csv"):
        rows = pl.read_csv(table, infer_schema=False)
        ids = [name for name in ("SUBJECT_ID", "HADM_ID") if name in rows.columns]
        rows.with_columns(pl.col(name).cast(pl.Int64) + SHIFT for name in ids).write_csv(root / table.name)
    return root


@pytest.mark.parametrize("model", ["lstm", "logistic_regression"])
def test_no_subject_is_named_outside_the_predictions(cli, results, marked, tmp_path, model):
    log = tmp_path / "logged.jsonl"
    recorder = f"+logger.recorder={{_target_: probes.Recorder, _partial_: true, path: '{log}'}}"
    done = cli(f"model={model}", *SMOKE, f"data.root={marked}", recorder)
    assert (done.code, done.err) == (0, "")
    (run,) = results.glob(f"toy/*/{model}/*/seed=0")
    subjects = pl.read_parquet(run / "predictions.parquet")["subject_id"]
    assert subjects.cast(pl.String).str.starts_with(MARK).all()  # else the search below would prove nothing

    assert MARK not in done.out
    written = [path for path in [*results.rglob("*"), *(tmp_path / "reports").rglob("*"), log] if path.is_file()]
    assert {path.suffix for path in written} >= {".html", ".md", ".json", ".yaml", ".jsonl"}
    leaks = [path.name for path in written if MARK.encode() in path.read_bytes()]
    assert [name for name in leaks if name != "predictions.parquet"] == []


def test_loggers_get_scalars_and_the_config_only(cli, results, tmp_path):
    log = tmp_path / "logged.jsonl"
    recorder = f"+logger.recorder={{_target_: probes.Recorder, _partial_: true, path: '{log}'}}"
    assert cli("model=meddiffusion", *SMOKE, recorder).code == 0
    entries = [json.loads(line) for line in log.read_text().splitlines()]
    metrics = [content for kind, content in entries if kind == "metrics"]
    names = {name for content in metrics for name in content}
    assert names >= {"train/loss", "train/risk", "train/augmenter_loss", "val/loss", "val/f1", "epoch"}
    assert {kind for content in metrics for kind, _ in content.values()} <= {"float", "int"}
    assert len(metrics) <= 2 * 2  # once an epoch after training and validation: no step is logged
    (settings,) = (content for kind, content in entries if kind == "config" and content[0])
    assert settings[0]["seed"] == 0
    assert settings[0]["lambda_s"] == 0.5
    assert settings[1:] == [[], {}]


def test_weights_and_biases_works_without_a_network(shell, results):
    """About 20 s: W&B starts a service of its own, which is why this is not done in our process."""
    pytest.importorskip("wandb")
    done = shell("model=lstm", *SMOKE, "logger=wandb", WANDB_MODE="offline", WANDB_SILENT="true")
    assert done.code == 0, done.err
    assert list((results / "wandb").glob("offline-run-*"))
    assert list(results.glob("toy/*/lstm/*/seed=0/DONE"))
