"""Run folders, as found on disk, and the long table of their results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.evaluation.oracle import DISTANCES, Oracle
from ehrlab.evaluation.resampling import Predictions
from ehrlab.report.files import read_json, read_yaml

_RUN_FIELDS: dict[str, type] = {"row": str, "model": str, "data": str, "task": str, "seed": int, "simulated": bool}
DONE = "DONE"


@dataclass(frozen=True)
class Run:
    """One finished run. `fingerprint` names the data it saw, `hash` its configuration without the seed."""

    folder: Path
    row: str
    model: str
    variant: str
    data: str
    task: str
    seed: int
    simulated: bool
    hash: str
    metrics: dict[str, Any]
    provenance: dict[str, Any]
    cohort: dict[str, Any] | None
    done_at: float

    @property
    def column(self) -> str:
        return f"{self.data}/{self.task}"

    @property
    def fingerprint(self) -> str:
        return str(self.provenance.get("data", ""))

    @cached_property
    def predictions(self) -> Predictions:
        return Predictions.read(self.folder / "predictions.parquet")

    @cached_property
    def oracle(self) -> Oracle:
        """Exact risks of the test samples; only of a run with a `reference`."""
        return Oracle.read(self.folder / "oracle.parquet")

    @property
    def reference(self) -> str | None:
        """The oracle's information set that holds what the model was given; None without an oracle."""
        reference = self.metrics.get("oracle", {}).get("reference")
        return None if reference is None else str(reference)

    @cached_property
    def config(self) -> dict[str, Any]:
        return read_yaml(self.folder / "config.yaml")

    def value(self, metric: str) -> float | None:
        """The metric, or the distance to the oracle, on the held-out samples; None where it is undefined or was not
        computed."""
        part = self.metrics.get("oracle", {}) if metric in DISTANCES else self.metrics["held_out"]
        value = part.get(metric, {}).get("value")
        return None if value is None else float(value)


def load_run(folder: Path) -> Run:
    """A finished run. Raises InputError naming the folder or file when it is unfinished or damaged."""
    if not (folder / DONE).exists():
        raise InputError(f"run {folder}: expected a finished run, found no {DONE} file; start it again and it resumes")
    meta = read_json(folder / "run.json")
    for name, kind in _RUN_FIELDS.items():
        if not isinstance(meta.get(name), kind) or (kind is int and isinstance(meta[name], bool)):
            raise InputError(
                f"{folder / 'run.json'}: {name} should be of type {kind.__name__}, found {meta.get(name)!r}"
            )
    metrics = read_json(folder / "metrics.json")
    if not isinstance(metrics.get("held_out"), dict):
        raise InputError(
            f"{folder / 'metrics.json'}: expected an entry held_out with the metrics, found {list(metrics)}"
        )
    cohort = read_json(folder / "cohort.json") if (folder / "cohort.json").exists() else None
    return Run(
        folder=folder,
        row=meta["row"],
        model=meta["model"],
        variant=str(meta.get("variant") or "none"),
        data=meta["data"],
        task=meta["task"],
        seed=meta["seed"],
        # One simulated source is enough: simulated data may never look like a replication.
        simulated=meta["simulated"] or bool(cohort and cohort.get("simulated")),
        hash=str(meta.get("hash") or folder.parent.name),
        metrics=metrics,
        provenance=read_json(folder / "provenance.json"),
        cohort=cohort,
        done_at=(folder / DONE).stat().st_mtime,
    )


def load_runs(folders: Iterable[Path]) -> tuple[list[Run], list[Path]]:
    """Finished runs in the order given, each folder once, and the folders that are not finished."""
    finished, unfinished = [], []
    for folder in dict.fromkeys(Path(f) for f in folders):
        if (folder / DONE).exists():
            finished.append(load_run(folder))
        else:
            unfinished.append(folder)
    return finished, unfinished


def find_runs(results: Path) -> tuple[list[Run], list[Path]]:
    """Every run folder `<data>/<task>/<row>/<hash>/seed=<n>` under `results`, finished and not."""
    if not results.is_dir():
        raise InputError(
            f"results folder {results}: expected a folder with runs, found nothing there; start a run first"
        )
    return load_runs(sorted(path for path in results.glob("*/*/*/*/seed=*") if path.is_dir()))


def long_table(runs: Sequence[Run]) -> pl.DataFrame:
    """One row per run and metric (and label): the content of results.csv. Aggregates only, nothing of a patient."""
    rows = []
    for run in runs:
        oracle = run.metrics.get("oracle", {})
        parts = [(None, run.metrics, oracle)]
        parts += [(k, part, oracle.get("labels", {}).get(k, {})) for k, part in run.metrics.get("labels", {}).items()]
        for label, part, exact in parts:
            for metric, entry in {**part["held_out"], **_of_oracle(exact)}.items():
                rows.append(
                    {
                        "row": run.row,
                        "model": run.model,
                        "variant": run.variant,
                        "data": run.data,
                        "task": run.task,
                        "label": label,
                        "simulated": run.simulated,
                        "seed": run.seed,
                        "metric": metric,
                        "value": entry.get("value"),
                        "low": entry.get("low"),
                        "high": entry.get("high"),
                        "reason": entry.get("reason"),
                        "num_samples": part.get("num_samples"),
                        "num_subjects": part.get("num_subjects"),
                        "num_positive": part.get("num_positive"),
                        "config_hash": run.hash,
                        "data_fingerprint": run.fingerprint,
                        "commit": run.provenance.get("commit"),
                    }
                )
    text, real, whole = pl.String, pl.Float64, pl.Int64
    schema = {
        **dict.fromkeys(("row", "model", "variant", "data", "task", "label"), text),
        "simulated": pl.Boolean,
        "seed": whole,
        "metric": text,
        **dict.fromkeys(("value", "low", "high"), real),
        "reason": text,
        **dict.fromkeys(("num_samples", "num_subjects", "num_positive"), whole),
        **dict.fromkeys(("config_hash", "data_fingerprint", "commit"), text),
    }
    return pl.DataFrame(rows, schema=schema)


def _of_oracle(exact: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The model's distances, and the oracle's own metrics as `oracle/<information set>/<metric>`."""
    distances = {name: exact[name] for name in DISTANCES if name in exact}
    sets = exact.get("sets", {}).items()
    return distances | {f"oracle/{name}/{metric}": entry for name, part in sets for metric, entry in part.items()}
