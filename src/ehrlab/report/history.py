"""Training curves: the CSV logs of a run, put together over its interruptions."""

import json
from pathlib import Path

import polars as pl

from ehrlab.core.errors import InputError

CURVES = ("train/loss", "val/loss", "val/f1", "val/pr_auc")


def read_history(run_folder: Path) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """phase -> curve -> [(epoch, value)], epochs rising; empty for a run without logs (logistic regression).

    Each start of a run writes its own `version_<k>`. A resumed run repeats the epoch that it lost, so the last value
    of an epoch counts, in the order of the versions' numbers.
    """
    phases: dict[str, dict[str, list[tuple[int, float]]]] = {}
    for phase in sorted(path for path in (run_folder / "phases").glob("*") if path.is_dir()):
        latest: dict[str, dict[int, float]] = {}
        for log in sorted((phase / "history").glob("version_*/metrics.csv"), key=_version):
            for curve, points in _read_log(log).items():
                latest.setdefault(curve, {}).update(points)
        curves = {curve: sorted(latest[curve].items()) for curve in CURVES if latest.get(curve)}
        if curves:
            phases[phase.name] = curves
    return phases


def read_choices(run_folder: Path) -> dict[str, tuple[str, int]]:
    """phase -> (settings that its search chose by validation, how many were tried); of phases that searched."""
    chosen = {}
    for done in sorted((run_folder / "phases").glob("*/DONE")):
        record = json.loads(done.read_text())
        if "chosen" in record:
            chosen[done.parent.name] = (str(record["chosen"]), len(record["searched"]))
    return chosen


def _version(log: Path) -> int:
    number = log.parent.name.removeprefix("version_")
    if not number.isdecimal():
        raise InputError(f"training log {log}: expected a folder version_<number>, found {log.parent.name}")
    return int(number)


def _read_log(log: Path) -> dict[str, dict[int, float]]:
    """curve -> epoch -> last value. Rows of a Lightning CSV log fill only some columns."""
    try:
        table = pl.read_csv(log, infer_schema=False)
    except pl.exceptions.NoDataError:
        return {}  # killed before the first epoch ended
    except pl.exceptions.ComputeError:
        raise InputError(f"training log {log}: expected a CSV with a header, found text that does not parse") from None
    if "epoch" not in table.columns:
        raise InputError(f"training log {log}: expected a column epoch, found {table.columns}")
    numbers = table.select(
        pl.col("epoch").cast(pl.Int64, strict=False),
        *(pl.col(curve).cast(pl.Float64, strict=False) for curve in CURVES if curve in table.columns),
    ).drop_nulls("epoch")
    return {
        curve: dict(numbers.select("epoch", curve).filter(pl.col(curve).is_finite()).iter_rows())
        for curve in CURVES
        if curve in numbers.columns
    }
