"""`python -m ehrlab.run.analyse WHAT RUN ...`: look into finished runs, without training anything.

A run's model is rebuilt from its config.yaml and model.safetensors, its data from the cache.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.core.model import Model
from ehrlab.data.clinical import ClinicalData
from ehrlab.run.compose import Entry
from ehrlab.run.generated import ANALYSES, FOLDER, write_analysis
from ehrlab.run.main import build_model, open_data, open_source, tables_of, wanted_by
from ehrlab.run.store import DONE
from ehrlab.training.runner import WEIGHTS, load_weights


def reopen(run: Path) -> tuple[Model, ClinicalData]:
    """The trained model of a finished run, and the data that it was trained on.

    Errors: InputError where the run is not finished, or its data have changed since.
    """
    if not (run / DONE).exists():
        raise InputError(f"run {run}: expected a finished run, found no {DONE} file; start it again and it resumes")
    cfg = OmegaConf.load(run / "config.yaml")
    assert isinstance(cfg, DictConfig)
    about = json.loads((run / "run.json").read_text())
    entry = Entry(about["row"], about["model"], about["variant"], cfg)
    task = instantiate(cfg.task)
    wanted = wanted_by([entry], task)
    data = open_data(cfg, open_source(cfg, tables_of(wanted, task)), task, wanted)
    trained_on = json.loads((run / "identity.json").read_text())["data"]
    if data.fingerprint != trained_on:
        raise InputError(
            f"run {run}: trained on data {trained_on[:12]}, but {cfg.data.name} / {cfg.task.name} now gives "
            f"{data.fingerprint[:12]}. Train it again, or restore the raw tables and the version that it was made with."
        )
    model = build_model(entry, data.spec)
    load_weights(model, run / WEIGHTS)
    return model, data


def main(argv: Sequence[str] | None = None) -> int:
    """0, or 2 after one line that says what is wrong."""
    parser = argparse.ArgumentParser(prog="python -m ehrlab.run.analyse", description=__doc__)
    parser.add_argument("what", choices=sorted(ANALYSES))
    parser.add_argument("run", nargs="+", type=Path, help="folders of finished runs")
    arguments = parser.parse_args(argv)
    try:
        for run in arguments.run:
            write_analysis(arguments.what, run, *reopen(run))
            print(run / FOLDER / f"{arguments.what}.json")
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
