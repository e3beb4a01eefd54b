"""CPU-seconds and memory from raw MIMIC-III-layout tables to shards, and milliseconds to cut a batch from them.

    python benchmarks/bench_tensorize.py [--patients 2000] [--repeats 3] [--out benchmarks/tensorize.json]

2,000 patients, 39 admissions each, 4.7 diagnoses in an admission out of 8,800 (MedDiffusion's kidney cohort). Each
stage runs in a fresh process, whose CPU time (user and system, all threads) and peak memory the system reports; what an
idle process that has imported the same modules costs is given beside it.
Expected: raw tables to shards below 5 CPU-seconds and 1 GiB, imports not counted; a batch of 64 patients below 5 ms.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

import synthetic_mimic3
from ehrlab.data.cohorts.admissions import InHospitalMortality, Readmission
from ehrlab.data.cohorts.task import Task
from ehrlab.data.meds import MedsDataset, SplitSettings, build
from ehrlab.data.prepare import ClinicalData
from ehrlab.data.sources import open_mimic
from ehrlab.data.tensorize import VisitSettings, tensorize

STAGES = ("idle", "meds", "shards", "shards_of_every_stay")
MIB = 2**20


def run_stage(stage: str, folder: Path) -> None:
    if stage == "meds":
        (folder / "meds").mkdir()
        build(open_mimic(folder / "raw", tables=["diagnoses"]), folder / "meds", SplitSettings(), simulated=True)
    elif stage != "idle":
        meds = MedsDataset.open(folder / "meds")
        task: Task = (
            Readmission("readmission_30d") if stage == "shards_of_every_stay" else InHospitalMortality("mortality")
        )
        out = folder / stage
        out.mkdir()
        tensorize(meds, task.name, task.cohort(meds), VisitSettings(), out)


def child(stage: str, folder: Path) -> dict[str, float]:
    """Run the stage in this process and measure it; the imports of this file were paid before."""
    start, before = time.perf_counter(), cpu_seconds()
    run_stage(stage, folder)
    return {
        "cpu_s": cpu_seconds() - before,
        "wall_s": time.perf_counter() - start,
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    }


def cpu_seconds() -> float:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def measure_stages(folder: Path) -> dict[str, dict[str, float]]:
    results = {}
    for stage in STAGES:
        command = [sys.executable, __file__, "--stage", stage, "--folder", str(folder)]
        results[stage] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    return results


def measure_batches(folder: Path, batch_size: int = 64, epochs: int = 3) -> dict[str, Any]:
    data = ClinicalData.open(folder / "shards")
    loader = data.loader("train", batch_size=batch_size, shuffle=True)
    times, num_visits, num_codes = [], 0, 0
    for epoch in range(epochs + 1):
        loader.batch_sampler.sampler.set_epoch(epoch)  # type: ignore[union-attr]
        dataset = data.dataset("train")
        for indices in loader.batch_sampler:  # type: ignore[union-attr]
            start = time.perf_counter()
            batch = dataset.__getitems__(indices)
            if epoch:  # the first epoch reads the file's pages
                times.append(1000 * (time.perf_counter() - start))
                assert batch.visits is not None
                num_visits += int(batch.visits.mask.sum())
                num_codes += int((batch.visits.codes > 0).sum())
    samples = epochs * len(data.dataset("train"))
    return {
        "patients": batch_size,
        "visits_per_patient": num_visits / samples,
        "codes_per_visit": num_codes / num_visits,
        "median_ms": statistics.median(times),
        "fastest_ms": min(times),
        "slowest_ms": max(times),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--stage", choices=STAGES, help="used by the program itself")
    parser.add_argument("--folder", type=Path, help="used by the program itself")
    arguments = parser.parse_args()
    if arguments.stage:
        print(json.dumps(child(arguments.stage, arguments.folder)))
        return

    runs = []
    for _ in range(arguments.repeats):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            size = synthetic_mimic3.write(folder / "raw", arguments.patients)
            runs.append(measure_stages(folder))
            batches = measure_batches(folder)
    for run in runs:
        whole = (run["meds"], run["shards"])
        run["raw to shards"] = {
            "cpu_s": sum(stage["cpu_s"] for stage in whole),
            "wall_s": sum(stage["wall_s"] for stage in whole),
            "peak_memory_mib": max(stage["peak_memory_mib"] for stage in whole),
        }
    stages = {
        stage: {
            f"{statistic}_{unit}": choose([run[stage][unit] for run in runs])
            for unit in ("cpu_s", "wall_s", "peak_memory_mib")
            for statistic, choose in (("median", statistics.median), ("least", min), ("most", max))
        }
        for stage in runs[0]
    }
    for stage, row in stages.items():
        cpu, memory = row["median_cpu_s"], row["median_peak_memory_mib"]
        print(f"{stage:22} {cpu:6.2f} CPU-s {row['median_wall_s']:6.2f} s {memory:6.0f} MiB")
    print(
        f"batch of {batches['patients']} patients  {batches['median_ms']:.2f} ms (slowest {batches['slowest_ms']:.2f})"
    )
    if arguments.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        report = {
            "rows": asdict(size),
            "stages": stages,
            "batch": batches,
            "repeats": arguments.repeats,
            "machine": f"{platform.machine()}, {platform.system()}, {pl.thread_pool_size()} threads",
            "python": platform.python_version(),
            "polars": pl.__version__,
            "commit": commit,
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
