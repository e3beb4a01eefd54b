"""From a fresh clone to the report: seconds of the set-up and of `make run`, and the size of the cohort.

    python benchmarks/bench_run.py [--repeats 1] [--command "make run"]      -> benchmarks/run.json

Clones HEAD (uncommitted changes stay out) and works there with a new virtual environment and no environment variable
but PATH. Packages come from wherever pip is configured to look; the setting says how much pip's cache held before.
Target: under 8 minutes together, with at least 4,000 patients.
"""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import measuring

REPOSITORY = Path(__file__).resolve().parents[1]
# The interpreter below a virtual environment that this script may run in.
PYTHON = Path(sys.executable).resolve()
ENVIRONMENT = {"PATH": os.environ["PATH"]}


def timed(command: list[str], folder: Path) -> float:
    """Seconds of a command; its last lines and the end of this program where it fails."""
    start = time.perf_counter()
    done = subprocess.run(
        command,
        cwd=folder,
        env=ENVIRONMENT,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
    )
    seconds = time.perf_counter() - start
    if done.returncode:
        tail = "\n".join(done.stdout.splitlines()[-30:])
        sys.exit(f"{tail}\nerror: {shlex.join(command)} ended with exit code {done.returncode} in a fresh clone.")
    print(f"{seconds:6.0f} s  {shlex.join(command)}", flush=True)
    return seconds


def pip_cache_mib() -> float:
    """MiB of downloads that pip would find again in the environment of the measured commands."""
    command = [str(PYTHON), "-m", "pip", "cache", "dir"]
    done = subprocess.run(command, env=ENVIRONMENT, check=True, capture_output=True, text=True)
    files = (path for path in Path(done.stdout.strip()).rglob("*") if path.is_file())
    return round(sum(path.stat().st_size for path in files) / 2**20, 1)


def measure(command: list[str]) -> dict[str, Any]:
    """Seconds of both parts, the run's cohort, its number of finished runs and the provenance of one of them."""
    with tempfile.TemporaryDirectory() as name:
        clone = Path(name) / "ehrlab"
        timed(["git", "clone", "--quiet", str(REPOSITORY), str(clone)], Path(name))
        timed(["git", "checkout", "--quiet", "--detach", measuring.checkout()["commit"]], clone)
        setup = timed(["make", "setup", f"PYTHON={PYTHON}"], clone)
        run = timed(command, clone)
        (cohort_file,) = clone.glob("cache/shards/*/cohort.json")
        cohort = json.loads(cohort_file.read_text(encoding="utf-8"))
        finished = list(clone.glob("results/*/*/*/*/seed=*/DONE"))
        assert finished, f"{shlex.join(command)} ended well and left no finished run"
        provenance = json.loads((finished[0].parent / "provenance.json").read_text(encoding="utf-8"))
    return {"setup": setup, "run": run, "cohort": cohort, "num_runs": len(finished), "provenance": provenance}


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--command", default="make run", help="after `make setup`; for a quick try of this script")
    arguments = parser.parse_args()
    cached = pip_cache_mib()
    runs = [measure(shlex.split(arguments.command)) for _ in range(arguments.repeats)]
    command = arguments.command
    together = [run["setup"] + run["run"] for run in runs]
    numbers = [
        measuring.number(f"fresh clone: make setup and {command}", "s", together, at_most=480),
        measuring.number("fresh clone: make setup", "s", [run["setup"] for run in runs]),
        measuring.number(f"fresh clone: {command}", "s", [run["run"] for run in runs]),
        measuring.number(
            f"cohort of {command}", "patients", [run["cohort"]["subjects"] for run in runs], at_least=4000
        ),
    ]
    last = runs[-1]
    result = {
        "setting": {
            "command": command,
            "task": last["cohort"]["task"],
            "simulated": last["cohort"]["simulated"],
            "finished_runs": last["num_runs"],
            "pip_cache_mib": cached,
        },
        "numbers": numbers,
        # Of the clone and its environment, not of this process.
        "dirty": False,
        "versions": {"python": last["provenance"]["python"], **last["provenance"]["versions"]},
    }
    measuring.record("run", result, arguments.folder)


if __name__ == "__main__":
    main()
