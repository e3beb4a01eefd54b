"""Run folders, as found on disk, and the long table of their results."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.evaluation.generation import GENERATOR_METRICS
from ehrlab.evaluation.oracle import DISTANCES, Oracle
from ehrlab.evaluation.resampling import Predictions
from ehrlab.evaluation.sequences import HELD_OUT, Completions, read_completions
from ehrlab.report.files import read_json, read_yaml

_RUN_FIELDS: dict[str, type] = {"row": str, "model": str, "data": str, "task": str, "seed": int, "simulated": bool}
DONE = "DONE"


@dataclass(frozen=True)
class Run:
    """One finished run. `fingerprint` names the samples that it was trained and tested on, whatever it read of them;
    `hash` its configuration without the seed, its data included."""

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
        return str(self.provenance.get("samples") or self.provenance.get("data", ""))

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

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels; empty where there is one, without a name."""
        return tuple(self.metrics.get("labels", {}))

    @property
    def prior(self) -> float:
        """The share of positives: PR-AUC of a constant risk. Of several labels the mean of those with both classes."""
        parts = self.metrics["labels"].values() if self.labels else [self.metrics]
        shares = [part["num_positive"] / part["num_samples"] for part in parts]
        known = [share for share in shares if 0 < share < 1] or shares
        return float(sum(known) / len(known))

    @property
    def is_generator(self) -> bool:
        """It was judged by what it generates, not by risks."""
        return "tokens" in self.metrics

    @property
    def has_probabilities(self) -> bool:
        """Its predictions hold risks; a generator may have been asked for none."""
        return not self.is_generator or bool(self.metrics["curve"])

    @cached_property
    def completions(self) -> Completions:
        """Of the held-out records; only of a generator."""
        return read_completions(self.folder / "completions.parquet", self.tokens)[HELD_OUT]

    @property
    def tokens(self) -> TokenSpec:
        """The vocabulary of a generator's files."""
        sizes = self.metrics["tokens"]
        return TokenSpec(**{**sizes, "targets": tuple(sizes["targets"])})

    def entry(self, metric: str) -> dict[str, Any]:
        """{"value", "low", "high"} of a metric, or of a distance to the oracle, on the held-out samples; empty where it
        was not computed."""
        if metric in GENERATOR_METRICS:
            path = GENERATOR_METRICS[metric].path
        else:
            path = ("oracle" if metric in DISTANCES else "held_out", metric)
        node: Any = self.metrics
        for part in path:
            node = node.get(part, {})
        return dict(node)

    def value(self, metric: str) -> float | None:
        """The value of `entry`; None where it is undefined or was not computed."""
        value = self.entry(metric).get("value")
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
            for metric, entry in {**part["held_out"], **_of_oracle(exact), **_of_generator(part)}.items():
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


def _of_generator(metrics: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """What a generator is judged by beside its continuations of held-out records, by its path."""
    parts = {name: metrics.get(name, {}) for name in ("onset", "memorisation", "utility", "augmentation", "privacy")}
    parts |= {f"fidelity/{name}": part for name, part in metrics.get("fidelity", {}).items()}
    return {f"{name}/{key}": entry for name, part in parts.items() for key, entry in part.items() if key != "counts"}
