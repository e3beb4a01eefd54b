"""Is the exact risk exact? Every preset's cohort, in deciles of the risk, for each information set.

    python benchmarks/calibrate_oracle.py [--patients 20000] [--seed 0] [--only kidney]      -> prints tables

Patients are simulated, written as raw tables, read back and sampled by the project's own path; the oracle never sees
the labels. What the columns mean: ehrlab.simulation.calibration. About half an hour on one core.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ehrlab.data.cohorts.task import Task
from ehrlab.data.meds import MedsDataset, SplitSettings, build
from ehrlab.data.sources.ids import hash_ids
from ehrlab.data.sources.mimic3 import Mimic3
from ehrlab.data.sources.trinetx import open_trinetx
from ehrlab.simulation import write_mimic3, write_trinetx
from ehrlab.simulation.calibration import table
from ehrlab.simulation.oracle import write_oracle

TASKS = Path(__file__).parents[1] / "conf" / "task"

# (layout, task, what is changed in the task)
CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("mimic", "heart_failure", {}),
    ("trinetx", "kidney", {}),
    ("trinetx", "copd", {}),
    ("trinetx", "amnesia", {}),
    ("mimic", "in_hospital_mortality", {}),
    ("mimic", "in_hospital_mortality", {"include_last_admission": False}),
    ("mimic", "readmission_30d", {}),
)
KINDS = {
    "FirstDiagnosis": "first_diagnosis",
    "InHospitalMortality": "in_hospital_mortality",
    "Readmission": "readmission",
}


def task_of(name: str, change: dict[str, Any]) -> Task:
    own: Any = OmegaConf.load(TASKS / f"{name}.yaml")
    parents = [OmegaConf.load(TASKS / f"{base}.yaml") for base in own.pop("defaults", []) if base != "_self_"]
    task: Task = instantiate(OmegaConf.merge(*parents, own, change))
    return task


def hashed(raw: pl.Series) -> pl.Series:
    return raw.to_frame("id").select(hash_ids(pl.col("id"))).to_series()


def calibrate(layout: str, task: Task, num_patients: int, seed: int, folder: Path) -> str:
    is_mimic = layout == "mimic"
    raw = folder / "raw"
    (write_mimic3 if is_mimic else write_trinetx)(raw, task.name, num_patients, seed)
    source = Mimic3(raw, ["diagnoses"]) if is_mimic else open_trinetx(raw, ["diagnoses"])
    build(source, folder / "meds", SplitSettings(seed=0, train=0.75, tuning=0.1), True)
    samples = task.cohort(MedsDataset.open(folder / "meds")).samples
    began = time.process_time()
    write_oracle(
        raw,
        {"kind": KINDS[type(task).__name__], **asdict(task)},
        samples,
        folder / "oracle.parquet",
        subject_ids=(lambda ids: ids.cast(pl.Int64)) if is_mimic else hashed,
        modalities=["labs", "notes"] if is_mimic else ["labs"],
    )
    seconds = time.process_time() - began
    found = table(samples, pl.read_parquet(folder / "oracle.parquet"))
    return f"{found}\nexact risks, with the patients drawn anew: {seconds:.0f} CPU seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description="Reliability of the exact risks of every preset.")
    parser.add_argument("--patients", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a task's name")
    given = parser.parse_args()
    for layout, name, change in CASES:
        if given.only in (None, name):
            task = task_of(name, change)
            with tempfile.TemporaryDirectory() as folder:
                print(f"\n{name} / {layout} {change or ''}, {given.patients:,} patients, seed {given.seed}")
                print(calibrate(layout, task, given.patients, given.seed, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
