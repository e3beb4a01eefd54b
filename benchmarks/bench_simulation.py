"""Patients per second of the simulator on one core, with and without writing raw tables; each repeat in a new process.

    python benchmarks/bench_simulation.py [--patients 8192] [--repeats 5] [--out benchmarks/simulation.json]

CPU seconds, start of Python and warm-up left out; peak memory of the whole process. Expected: at least 3,000 patients a
second for kidney/trinetx (some 100 visits each), and memory that does not grow with the number of patients.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

CASES = (("kidney", "trinetx"), ("heart_failure", "mimic"))

JOB = """
import json, resource, sys, tempfile, time
from pathlib import Path
from ehrlab.simulation import simulate, write_mimic3, write_trinetx

preset, shape, num_patients, task = sys.argv[1], sys.argv[2], int(sys.argv[3]), sys.argv[4]
write = {"trinetx": write_trinetx, "mimic": write_mimic3}[shape]
num_visits = num_codes = 0
with tempfile.TemporaryDirectory() as folder:
    write(Path(folder) / "warm-up", preset, 10, 0)
    begin = time.process_time()
    if task == "write":
        write(Path(folder) / "raw", preset, num_patients, 0)
    else:
        for shard in simulate(preset, shape, num_patients, 0):
            num_visits += len(shard.visits.patient)
            num_codes += len(shard.codes.code)
    seconds = time.process_time() - begin
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
found = {"patients_per_s": num_patients / seconds, "peak_mib": peak, "visits": num_visits, "codes": num_codes}
print(json.dumps(found))
"""


def measure(preset: str, shape: str, num_patients: int, task: str) -> dict[str, float]:
    one_core = os.environ | {"POLARS_MAX_THREADS": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", JOB, preset, shape, str(num_patients), task]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=one_core)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=8192)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    rows = []
    for preset, shape in CASES:
        for task in ("simulate", "write"):
            runs = [measure(preset, shape, settings.patients, task) for _ in range(settings.repeats)]
            speeds = [run["patients_per_s"] for run in runs]
            row: dict[str, Any] = {
                "population": f"{preset}/{shape}",
                "task": task,
                "patients_per_s": {
                    "median": round(statistics.median(speeds)),
                    "min": round(min(speeds)),
                    "max": round(max(speeds)),
                },
                "peak_mib": round(max(run["peak_mib"] for run in runs)),
            }
            if task == "simulate":
                row["visits_per_patient"] = round(runs[0]["visits"] / settings.patients, 1)
                row["codes_per_visit"] = round(runs[0]["codes"] / runs[0]["visits"], 2)
            rows.append(row)
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True)
    result = {
        "num_patients": settings.patients,
        "repeats": settings.repeats,
        "rows": rows,
        "machine": {"processor": platform.processor() or platform.machine(), "cores": os.cpu_count()},
        "versions": {"python": platform.python_version(), "numpy": version("numpy"), "polars": version("polars")},
        "commit": commit.stdout.strip(),
    }
    text = json.dumps(result, indent=2)
    print(text)
    if settings.out:
        settings.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
