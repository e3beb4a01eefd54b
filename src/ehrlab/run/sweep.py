"""What runs leave for those that look at many of them: pointers by sweep and by experiment, and the page at the end."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hydra.experimental.callback import Callback
from omegaconf import DictConfig
from rich.console import Console

from ehrlab.core.files import slug
from ehrlab.data.clinical import ClinicalData
from ehrlab.report.collect import comparison_table
from ehrlab.report.experiment import write_experiment
from ehrlab.report.labels import labels_table
from ehrlab.report.page import write_report
from ehrlab.run.compose import plain
from ehrlab.run.store import content_hash, write_json

JOB = "job-{:05d}.json"
COHORTS = Path("experiments/meddiffusion/table1.csv")


def index_sweep(folder: Path, job: int, runs: Sequence[Path]) -> None:
    """Note which runs a job of a sweep made or found; the jobs may be processes on different machines."""
    write_json(folder / JOB.format(job), [str(run.resolve()) for run in runs])


def index_experiment(cfg: DictConfig, runs: Sequence[Path]) -> None:
    """Put runs on the list of the paper's table or figure that they were made for."""
    results, folder = Path(cfg.paths.results), _declare(cfg)
    for run in runs:
        about = json.loads((run / "run.json").read_text())
        pointer = {
            "run": os.path.relpath(run.resolve(), results.resolve()),
            "row": about["variant"] if about["variant"] != "none" else about["row"],
            "column": f"{about['data']}/{about['task']}",
        }
        write_json(folder / f"{slug(about['row'])}-{content_hash(pointer)[:8]}.json", pointer)


def index_cohort(cfg: DictConfig, data: ClinicalData) -> None:
    """Put a cohort on the list of an experiment that trains nothing."""
    column = f"{cfg.data.name}/{cfg.task.name}"
    entry = {"column": column, "cohort": asdict(data.cohort), "data": data.fingerprint}
    write_json(_declare(cfg) / f"{slug(column)}-{data.fingerprint[:8]}.json", entry)


def _declare(cfg: DictConfig) -> Path:
    """The folder of an experiment's list, with its declaration as it is now."""
    folder = Path(cfg.paths.results) / "experiments" / cfg.experiment.name
    write_json(folder / "experiment.json", plain(cfg.experiment))
    return folder


def show(run_folders: Sequence[Path], out: Path) -> None:
    """Print the comparison table and write the report page."""
    console = Console()
    if not console.is_terminal:
        console.width = 120  # a log file has no width of its own
    console.print(comparison_table(run_folders))
    if (of_labels := labels_table(run_folders)) is not None:
        console.print(of_labels)
    page = write_report(run_folders, out, published_cohorts=COHORTS if COHORTS.exists() else None)
    console.print(f"Report: {page}", soft_wrap=True)


class SweepReport(Callback):
    """At the end of a sweep: one table and one page over all its jobs, or the page of its experiment."""

    def on_multirun_end(self, config: DictConfig, **kwargs: Any) -> None:
        folder = Path(config.hydra.sweep.dir)
        jobs = sorted(folder.glob("job-*.json"))
        if not jobs:
            return  # every job failed, and each has said why
        if "experiment" in config:
            name, results = str(config.experiment.name), Path(config.paths.results)
            page = write_experiment(name, results, Path(config.paths.reports) / name)
            Console().print(f"Report: {page}", soft_wrap=True)
        else:
            runs = [Path(run) for job in jobs for run in json.loads(job.read_text())]
            show(list(dict.fromkeys(runs)), Path(config.paths.reports) / "sweeps" / folder.name)
