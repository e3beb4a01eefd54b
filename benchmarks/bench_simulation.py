"""Patients per second of the simulator on one core, with and without writing raw tables.

    python benchmarks/bench_simulation.py [--patients 8192] [--repeats 5]      -> benchmarks/simulation.json

Every repeat runs in a fresh process and warms up on ten patients; CPU seconds leave that out, peak memory counts all.
Target: 3,000 patients a second for kidney in the TriNetX layout (some 100 visits each), without writing.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import measuring
from ehrlab.simulation import simulate, write_mimic3, write_trinetx

WRITE = {"trinetx": write_trinetx, "mimic": write_mimic3}
CASES = (("kidney", "trinetx"), ("heart_failure", "mimic"))
TARGET = 3000


def draw(preset: str, layout: str, num_patients: int) -> tuple[int, int]:
    """Numbers of visits and codes drawn."""
    num_visits = num_codes = 0
    for shard in simulate(preset, layout, num_patients, 0):
        num_visits += len(shard.visits.patient)
        num_codes += len(shard.codes.code)
    return num_visits, num_codes


def draw_and_write(preset: str, layout: str, num_patients: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        WRITE[layout](Path(folder) / "raw", preset, num_patients, 0)


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--patients", type=int, default=8192)
    arguments = parser.parse_args()
    # Read by polars and by OpenMP when a measured process starts.
    os.environ.update(POLARS_MAX_THREADS="1", OMP_NUM_THREADS="1")
    numbers, sizes = [], {}
    for preset, layout in CASES:
        for task in (draw, draw_and_write):
            case = (preset, layout, arguments.patients)
            runs = [
                measuring.in_fresh_process(task, *case, warm_up=(preset, layout, 10)) for _ in range(arguments.repeats)
            ]
            target = TARGET if (task, layout) == (draw, "trinetx") else None
            what = f"simulating {preset} in the {layout} layout" + (", written" if task is draw_and_write else "")
            speeds = [arguments.patients / run.cpu_s for run in runs]
            numbers.append(measuring.number(what, "patients per CPU-s", speeds, at_least=target))
            numbers.append(measuring.number(what, "MiB", [run.peak_mib for run in runs]))
            if task is draw:
                num_visits, num_codes = runs[0].returned
                sizes[f"{preset}/{layout}"] = {
                    "visits_per_patient": round(num_visits / arguments.patients, 1),
                    "codes_per_visit": round(num_codes / num_visits, 2),
                }
    result = {"setting": {"patients": arguments.patients, "cores": 1}, "numbers": numbers, "sizes": sizes}
    measuring.record("simulation", result, arguments.folder)


if __name__ == "__main__":
    main()
