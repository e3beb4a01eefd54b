"""Raw MIMIC-III tables to batches: CPU seconds and peak memory of each stage, and milliseconds to cut a batch.

    python benchmarks/bench_data.py [--patients 2000] [--repeats 5]      -> benchmarks/data.json

2,000 patients, 39 admissions each, 4.7 diagnoses in an admission out of 8,800 (MedDiffusion's kidney cohort), two
procedures and three prescriptions; .csv.gz. Every stage of every repeat runs in a fresh process. CPU seconds leave its
imports out; peak memory counts them, so that of a process that only imports is given too.
Target: raw tables to shards in 5 CPU-seconds and 1 GiB; a batch of 64 patients in 5 ms.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import measuring
import synthetic_mimic3
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.cohorts.admissions import InHospitalMortality, Readmission
from ehrlab.data.cohorts.task import Task
from ehrlab.data.meds import MedsDataset, SplitSettings, build
from ehrlab.data.sources import open_mimic
from ehrlab.data.tensorize import VisitSettings, tensorize

IDLE = "a process with the same imports"
TO_MEDS = "raw -> MEDS"
TO_SHARDS = "MEDS -> cohort -> shards, one sample a patient"
TO_SHARDS_OF_STAYS = "MEDS -> cohort -> shards, one sample a stay"
WHOLE = "raw -> MEDS -> cohort -> shards"


def idle() -> None:
    pass


def raw_to_meds(raw: Path, out: Path) -> None:
    out.mkdir()
    build(open_mimic(raw), out, SplitSettings(), simulated=True)


def meds_to_shards(folder: Path, task: Task, out: Path) -> None:
    out.mkdir()
    meds = MedsDataset.open(folder)
    tensorize(meds, task.name, task.cohort(meds), VisitSettings(), out)


def milliseconds_per_batch(shards: Path, batch_size: int = 64, epochs: int = 3) -> float:
    """Median over the batches of all epochs but one more, whose first touch reads the files' pages."""
    loader = ClinicalData.open({"samples": shards}).loader("train", batch_size=batch_size, shuffle=True)
    times = []
    for epoch in range(1 + epochs):
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        batches, taken = iter(loader), []
        for _ in range(len(loader)):
            start = time.perf_counter()
            next(batches)
            taken.append(1000 * (time.perf_counter() - start))
        times += taken if epoch else []
    return statistics.median(times)


def measure(raw: Path, folder: Path) -> tuple[dict[str, measuring.Cost], float]:
    """Cost of each stage, and milliseconds per batch; `folder` is empty before and holds every stage's files after."""
    meds, shards = folder / "meds", folder / "shards"
    stages: dict[str, tuple[Callable[..., None], tuple[Any, ...]]] = {
        IDLE: (idle, ()),
        TO_MEDS: (raw_to_meds, (raw, meds)),
        TO_SHARDS: (meds_to_shards, (meds, InHospitalMortality("mortality"), shards)),
        TO_SHARDS_OF_STAYS: (meds_to_shards, (meds, Readmission("readmission"), folder / "shards_of_stays")),
    }
    costs = {name: measuring.in_fresh_process(stage, *arguments) for name, (stage, arguments) in stages.items()}
    first, second = costs[TO_MEDS], costs[TO_SHARDS]
    costs[WHOLE] = measuring.Cost(
        cpu_s=first.cpu_s + second.cpu_s,
        wall_s=first.wall_s + second.wall_s,
        peak_mib=max(first.peak_mib, second.peak_mib),
        returned=None,
    )
    return costs, measuring.in_fresh_process(milliseconds_per_batch, shards).returned


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--patients", type=int, default=2000)
    arguments = parser.parse_args()
    runs, batches = [], []
    with tempfile.TemporaryDirectory() as name:
        raw = Path(name) / "raw"
        size = synthetic_mimic3.write(raw, arguments.patients)
        for _ in range(arguments.repeats):
            with tempfile.TemporaryDirectory(dir=name) as folder:
                costs, milliseconds = measure(raw, Path(folder))
            runs.append(costs)
            batches.append(milliseconds)
    numbers = []
    for stage in (WHOLE, TO_MEDS, TO_SHARDS, TO_SHARDS_OF_STAYS, IDLE):
        costs_of_stage = [run[stage] for run in runs]
        cpu_target, memory_target = (5, 1024) if stage == WHOLE else (None, None)
        if stage != IDLE:
            numbers.append(measuring.number(stage, "CPU-s", [c.cpu_s for c in costs_of_stage], at_most=cpu_target))
            numbers.append(measuring.number(stage, "s", [c.wall_s for c in costs_of_stage]))
        numbers.append(measuring.number(stage, "MiB", [c.peak_mib for c in costs_of_stage], at_most=memory_target))
    numbers.append(measuring.number("cutting a batch of 64 patients", "ms", batches, at_most=5))
    measuring.record("data", {"setting": asdict(size), "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
