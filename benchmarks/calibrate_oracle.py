"""Is the exact risk exact? Every preset's cohort, in deciles of the risk, for each information set.

    python benchmarks/calibrate_oracle.py [--patients 20000] [--seed 0] [--only kidney]      -> prints tables

Patients are simulated, written as raw tables, read back and sampled by the project's own path; the oracle never sees
the labels. What the columns mean: ehrlab.simulation.calibration. Tasks of one stay or admission, whose tables of charts
and tests are large, only where --only names them. About half an hour on one core.
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

from ehrlab.data.cohorts.task import VALUES, Task
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
LARGE_CASES: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("mimic", "arf_48h", {}),
    ("mimic", "shock_48h", {}),
    ("mimic", "mortality_48h", {}),
    ("mimic", "ten_conditions", {}),
)
LARGE = {name for _, name, _ in LARGE_CASES}
KINDS = {
    "FirstDiagnosis": "first_diagnosis",
    "InHospitalMortality": "in_hospital_mortality",
    "Readmission": "readmission",
    "OnsetInStay": "stay_onset",
    "DeathInHospital": "stay_death",
    "Conditions": "conditions",
}


def task_of(name: str, change: dict[str, Any]) -> Task:
    own: Any = OmegaConf.load(TASKS / f"{name}.yaml")
    parents = [OmegaConf.load(TASKS / f"{base}.yaml") for base in own.pop("defaults", []) if base != "_self_"]
    task: Task = instantiate(OmegaConf.merge(*parents, own, change), _convert_="all")
    return task


def hashed(raw: pl.Series) -> pl.Series:
    return raw.to_frame("id").select(hash_ids(pl.col("id"))).to_series()


def calibrate(layout: str, task: Task, num_patients: int, seed: int, folder: Path) -> str:
    is_mimic = layout == "mimic"
    raw = folder / "raw"
    # Beside diagnoses: what the task finds its samples by.
    modalities = {"stay": ["charts"], "admission": ["labs", "notes"]}[task.unit] if task.name in LARGE else []
    tables = ["diagnoses", *sorted(task.tables - {"diagnoses"})]
    (write_mimic3 if is_mimic else write_trinetx)(raw, task.name, num_patients, seed, modalities=modalities)
    source = Mimic3(raw, tables) if is_mimic else open_trinetx(raw, tables)
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
    if task.labels:
        names = pl.Series([list(task.labels)] * samples.height)
        samples = samples.with_columns(label=names).explode("label", VALUES).rename({VALUES: "boolean_value"})
    found = table(samples.drop("history_start"), pl.read_parquet(folder / "oracle.parquet"))
    return f"{found}\nexact risks, with the patients drawn anew: {seconds:.0f} CPU seconds"


def main() -> None:
    parser = argparse.ArgumentParser(description="Reliability of the exact risks of every preset.")
    parser.add_argument("--patients", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="a task's name")
    given = parser.parse_args()
    for layout, name, change in (*CASES, *LARGE_CASES):
        if given.only == name or (given.only is None and name not in LARGE):
            task = task_of(name, change)
            with tempfile.TemporaryDirectory() as folder:
                print(f"\n{name} / {layout} {change or ''}, {given.patients:,} patients, seed {given.seed}")
                print(calibrate(layout, task, given.patients, given.seed, Path(folder)), flush=True)


if __name__ == "__main__":
    main()
