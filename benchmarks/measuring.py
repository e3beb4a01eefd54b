"""What the benchmarks share: measuring in a fresh process, and writing numbers down with where they come from.

A benchmark measures, puts its results into `number`s and calls `record` once; render.py makes the table of all.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
PACKAGES = ("ehrlab", "torch", "lightning", "polars", "pyarrow", "numpy")
RATIO = "x"
"""Unit of a number that compares two measurements of one run: it means something on other machines too."""

# When a benchmark begins: at its end the average would count its own work.
_LOAD_BEFORE = os.getloadavg()


# ---- measuring
@dataclass(frozen=True)
class Cost:
    """What a call took in a process of its own.

    cpu_s     CPU seconds of all its threads, user and system; start-up and imports were paid before
    wall_s    seconds that passed
    peak_mib  the most memory (MiB) that the process ever held, imports included
    returned  what the call returned
    """

    cpu_s: float
    wall_s: float
    peak_mib: float
    returned: Any


def in_fresh_process(function: Callable[..., Any], *arguments: Any, warm_up: Sequence[Any] | None = None) -> Cost:
    """Call a module-level function in a new interpreter, after one uncounted call with `warm_up` where given.

    What it raises, and the death of its process, are raised here.
    """
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        return pool.submit(_measured, function, arguments, warm_up).result()


def _measured(function: Callable[..., Any], arguments: Sequence[Any], warm_up: Sequence[Any] | None) -> Cost:
    if warm_up is not None:
        function(*warm_up)
    cpu, wall = time.process_time(), time.perf_counter()
    returned = function(*arguments)
    return Cost(time.process_time() - cpu, time.perf_counter() - wall, _peak_mib(), returned)


def _peak_mib() -> float:
    if sys.platform != "linux":
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # bytes on macOS
    # Not ru_maxrss: Linux hands a parent's peak on to the programs it starts.
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) / 2**10


# ---- writing down
def parser(doc: str | None, repeats: int) -> argparse.ArgumentParser:
    """The options of every benchmark; a checkout without a commit to name is refused before anything is measured."""
    found = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    found.add_argument("--repeats", type=int, default=repeats, help=f"default: {repeats}")
    found.add_argument("--folder", type=Path, default=HERE, help="of the JSON file; default: beside the script")
    checkout()
    return found


def number(
    what: str,
    unit: str,
    values: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
) -> dict[str, Any]:
    """One line of the table: median and spread of repeated measurements, and the target where there is one."""
    found: dict[str, Any] = {
        "what": what,
        "unit": unit,
        "median": statistics.median(values),
        "least": min(values),
        "most": max(values),
        "repeats": len(values),
    }
    targets = {"at_most": at_most, "at_least": at_least}
    return found | {name: target for name, target in targets.items() if target is not None}


def record(name: str, result: Mapping[str, Any], folder: Path = HERE) -> Path:
    """Write <folder>/<name>.json, whole or not at all, and print its numbers.

    result  "setting": what was measured, name -> value; "numbers": a list of `number`; anything else for the reader;
            "dirty" and "versions" replace this process's where something else was measured
    """
    whole = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "load_average": {"before": round(_LOAD_BEFORE[0], 2), "after": round(os.getloadavg()[0], 2)},
        "versions": {"python": platform.python_version()} | {package: version(package) for package in PACKAGES},
        **checkout(),
        **result,
    }
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name}.json"
    beside = path.with_name(f"{path.name}.tmp")
    beside.write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    os.replace(beside, path)
    for found in result["numbers"]:
        print(f"{found['what']:<64} {measured(found)}")
    print(f"-> {path}", flush=True)
    return path


def measured(found: Mapping[str, Any]) -> str:
    """A number for people: the median, and where it was repeated the spread.

    >>> measured(number("a step", "s", [0.25, 0.21, 0.3])), measured(number("cohort", "patients", [4012]))
    ('0.25 s (0.21 to 0.3, 3 repeats)', '4,012 patients')
    """
    text = f"{short(found['median'])} {found['unit']}"
    if found["repeats"] == 1:
        return text
    return f"{text} ({short(found['least'])} to {short(found['most'])}, {found['repeats']} repeats)"


def short(value: float) -> str:
    """Three digits, or all of those before the point."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


@cache
def checkout() -> dict[str, Any]:
    """Commit of this checkout, and whether files differ from it; what benchmarks write does not count."""
    own = (":!benchmarks/*.json", ":!benchmarks/BENCHMARKS.md")
    try:
        commit = _git("rev-parse", "HEAD")
        changes = _git("status", "--porcelain", "--", ":/", *own)
    except (OSError, subprocess.CalledProcessError):
        sys.exit("error: benchmarks name the commit that they measured: expected a git checkout with a commit.")
    return {"commit": commit, "dirty": bool(changes)}


def _git(*arguments: str) -> str:
    command = ["git", "--no-optional-locks", *arguments]
    return subprocess.run(command, cwd=HERE.parent, check=True, capture_output=True, text=True).stdout.strip()


def machine() -> dict[str, Any]:
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gib": round(memory / 2**30, 1),
        "system": platform.platform(terse=True),
    }


def _processor() -> str:
    if sys.platform == "linux":
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()  # /proc/cpuinfo names no model on ARM
