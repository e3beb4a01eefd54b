"""Run folders as the composition root leaves them, filled with random predictions."""

import json
from collections.abc import Mapping
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import yaml

from ehrlab.evaluation.oracle import compare
from ehrlab.evaluation.risk import evaluate

# Large odd numbers that no count, metric or hash of a test will contain by chance.
FIRST_SUBJECT = 918273645001


def predictions(
    *,
    num_subjects: int = 60,
    skill: float = 1.5,
    seed: int = 0,
    first_subject: int = FIRST_SUBJECT,
    prevalence: float = 0.3,
) -> pl.DataFrame:
    """Two samples of each subject; the labels depend on num_subjects only, the probabilities on skill and seed."""
    labels = np.random.default_rng(7).random(2 * num_subjects) < prevalence
    logits = np.random.default_rng(seed).normal(size=2 * num_subjects) + skill * labels - 1
    probabilities = 1 / (1 + np.exp(-logits))
    days = [datetime(2031, 5, 4) + timedelta(days=i) for i in range(2 * num_subjects)]
    return pl.DataFrame(
        {
            "subject_id": np.repeat(np.arange(first_subject, first_subject + num_subjects), 2),
            "prediction_time": days,
            "boolean_value": labels,
            "predicted_boolean_value": probabilities >= 0.5,
            "predicted_boolean_probability": probabilities,
        }
    )


def exact_risks(table: pl.DataFrame, *, sets: Mapping[str, float] | None = None) -> pl.DataFrame:
    """An oracle of the samples of `table`: information set -> how well its risk separates their labels."""
    keys = [name for name in ("subject_id", "prediction_time", "label") if name in table.columns]
    noise = np.random.default_rng(11).normal(size=len(table))
    logits = {
        name: noise + skill * table["boolean_value"].to_numpy() - 1
        for name, skill in (sets or {"codes": 2.0, "codes+time": 2.5, "latent": 4.0}).items()
    }
    return table.select(keys).with_columns(**{name: 1 / (1 + np.exp(-logit)) for name, logit in logits.items()})


def write_run(
    results: Path,
    *,
    row: str = "meddiffusion",
    model: str = "meddiffusion",
    variant: str = "none",
    data: str = "mimic",
    task: str = "heart_failure",
    seed: int = 0,
    simulated: bool = True,
    config_hash: str = "a1b2c3d4",
    fingerprint: str = "f" * 64,
    config: Mapping[str, Any] | None = None,
    cohort: Mapping[str, Any] | None = None,
    table: pl.DataFrame | None = None,
    folder_row: str | None = None,
    oracle: pl.DataFrame | str | None = None,
    done: bool = True,
) -> Path:
    """One run folder; `folder_row` replaces a row that is no file name. `oracle`: its table, or why there is none."""
    folder = results / data / task / (folder_row or row) / config_hash / f"seed={seed}"
    folder.mkdir(parents=True)
    table = predictions(seed=seed) if table is None else table
    table.write_parquet(folder / "predictions.parquet")
    meta = {"row": row, "model": model, "variant": variant, "data": data, "task": task, "seed": seed}
    write_json(folder / "run.json", {**meta, "simulated": simulated, "hash": config_hash})
    metrics = evaluate(table, num_bootstrap=20)
    if isinstance(oracle, pl.DataFrame):
        oracle.write_parquet(folder / "oracle.parquet")
        metrics["oracle"] = compare(table, oracle, "codes+time", num_bootstrap=20)
    elif oracle is not None:
        metrics["oracle"] = {"reason": oracle}
    write_json(folder / "metrics.json", metrics)
    write_json(
        folder / "provenance.json",
        {
            "commit": "0123456789abcdef",
            "data": fingerprint,
            "wall_seconds": 12.5,
            "peak_memory_mib": 900,
            "device": "cpu",
        },
    )
    if cohort is not None:
        write_json(folder / "cohort.json", cohort)
    (folder / "config.yaml").write_text(yaml.safe_dump({"seed": seed, **(config or {"model": {"width": 8}})}))
    for version, text in enumerate(
        (
            "epoch,step,train/loss,val/loss,val/f1,val/pr_auc\n0,9,0.7,,,\n0,9,,0.69,0.2,0.3\n1,18,0.6,,,\n",
            "epoch,step,train/loss,val/loss,val/f1,val/pr_auc\n1,18,0.5,,,\n1,18,,0.61,0.4,0.5\n",
        )
    ):
        log = folder / "phases" / "fit" / "history" / f"version_{version}" / "metrics.csv"
        log.parent.mkdir(parents=True)
        log.write_text(text)
    if done:
        (folder / "DONE").touch()
    return folder


def write_index(results: Path, name: str, declaration: Mapping[str, Any], runs: Mapping[Path, str]) -> None:
    """The experiment's folder: its declaration and one entry per run folder (-> row)."""
    folder = results / "experiments" / name
    folder.mkdir(parents=True)
    write_json(folder / "experiment.json", declaration)
    for number, (run, row) in enumerate(runs.items()):
        write_json(folder / f"{number}.json", {"run": str(run.relative_to(results)), "row": row, "column": ""})


def write_json(path: Path, content: Any) -> None:
    path.write_text(json.dumps(content))
