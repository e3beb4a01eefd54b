"""Exact risks of tasks about one stay or one admission, through the tables and the project's own cohorts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.task import VALUES, Task
from ehrlab.data.meds import MedsDataset, SplitSettings, build
from ehrlab.data.sources.mimic3 import Mimic3
from ehrlab.simulation import write_mimic3, write_mimic4
from ehrlab.simulation.oracle import write_oracle
from ehrlab.simulation.question import emitted
from ehrlab.simulation.spec import DISEASES, population

CONF = Path(__file__).parents[2] / "conf" / "task"
KINDS = {"OnsetInStay": "stay_onset", "DeathInHospital": "stay_death", "Conditions": "conditions"}
TABLES = ["diagnoses", "labs", "icu_stays", "vitals", "inputs", "icu_procedures"]


def task_of(name: str, **changes: Any) -> Task:
    own: Any = OmegaConf.load(CONF / f"{name}.yaml")
    parents = [OmegaConf.load(CONF / f"{base}.yaml") for base in own.pop("defaults", []) if base != "_self_"]
    task: Task = instantiate(OmegaConf.merge(*parents, own, changes), _convert_="all")
    return task


def question(task: Task) -> dict[str, Any]:
    return {"kind": KINDS[type(task).__name__], **asdict(task)}


def integers(raw: pl.Series) -> pl.Series:
    return raw.cast(pl.Int64)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, MedsDataset]:
    root = tmp_path_factory.mktemp("stays")
    write_mimic3(root / "raw", "ten_conditions", 400, seed=3, modalities=["labs", "charts", "notes"])
    build(Mimic3(root / "raw", TABLES), root / "meds", SplitSettings(seed=0, train=0.75, tuning=0.1), True)
    return root / "raw", MedsDataset.open(root / "meds")


@pytest.mark.parametrize("name", ["arf_48h", "shock_48h", "mortality_48h"])
def test_stays_of_the_cohort_have_their_risks(name: str, made: tuple[Path, MedsDataset], tmp_path: Path) -> None:
    root, meds = made
    task = task_of(name)
    samples = task.cohort(meds).samples
    assert write_oracle(root, question(task), samples, tmp_path / "oracle.parquet", subject_ids=integers)
    oracle = pl.read_parquet(tmp_path / "oracle.parquet")
    assert oracle.columns == ["subject_id", "prediction_time", "charts", "latent"]
    assert oracle.select("subject_id", "prediction_time").equals(samples.select("subject_id", "prediction_time"))
    label = samples["boolean_value"].to_numpy()
    prior = label.mean()
    for known in ("charts", "latent"):
        risk = oracle[known].to_numpy()
        assert 0.0 <= risk.min() <= risk.max() <= 1.0
        assert abs((label - risk).sum()) < 4 * np.sqrt((risk * (1 - risk)).sum())
    # Those of other stays would say nothing.
    score = np.log(np.where(label, risk, 1 - risk)).mean()
    assert score > np.log(np.where(label, prior, 1 - prior)).mean() + 0.01


def test_admissions_of_the_cohort_have_a_risk_for_each_condition(
    made: tuple[Path, MedsDataset], tmp_path: Path
) -> None:
    root, meds = made
    task = task_of("ten_conditions")
    samples = task.cohort(meds).samples
    assert write_oracle(root, question(task), samples, tmp_path / "oracle.parquet", subject_ids=integers)
    oracle = pl.read_parquet(tmp_path / "oracle.parquet")
    assert oracle.columns == ["subject_id", "prediction_time", "label", "labs", "notes", "labs+notes", "latent"]
    labels = samples.select("subject_id", "prediction_time", boolean_value=VALUES).explode("boolean_value")
    named = labels.with_columns(label=pl.Series(list(task.labels) * len(samples)))
    keys = ["subject_id", "prediction_time", "label"]
    assert oracle.select(keys).equals(named.select(keys))
    coded = named["boolean_value"].to_numpy()
    for known in oracle.columns[3:]:
        risk = oracle[known].to_numpy()
        assert 0.0 <= risk.min() <= risk.max() <= 1.0
        assert abs((coded - risk).sum()) < 4 * np.sqrt((risk * (1 - risk)).sum())
    # The truth knows who has been diagnosed with the target, and at which admission it was.
    target, risk = (oracle["label"] == "heart_failure").to_numpy(), oracle["latent"].to_numpy()
    assert not coded[target & (risk == 0)].any()
    assert coded[target & (risk == 1)].all()
    assert (target & (risk == 1)).sum() > 10
    few = write_oracle(
        root, question(task), samples, tmp_path / "few.parquet", subject_ids=integers, modalities=["notes"]
    )
    assert few
    assert pl.read_parquet(tmp_path / "few.parquet").equals(oracle.drop("labs", "labs+notes"))


REFUSED = {
    "another end of the stay": ("mortality_48h", {"died": ["^HOSPITAL_DISCHARGE//HOME$"]}),
    "conditions that belong to no part of the truth": ("ten_conditions", {"conditions": {"stroke": {"icd9": ["434"]}}}),
    "the last admission": ("ten_conditions", {"admissions": "last"}),
    "one vasopressor of five": ("shock_48h", {"onset": {"input": [221906]}}),
    "both organs at once": ("arf_48h", {"onset": {"input": [221906, 221289, 221662, 222315, 221749]}}),
}


@pytest.mark.parametrize("why", REFUSED)
def test_other_questions_get_a_reason_and_no_number(
    why: str, made: tuple[Path, MedsDataset], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    name, changes = REFUSED[why]
    caplog.set_level("INFO", logger="ehrlab.simulation")
    nobody = pl.DataFrame(schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})
    out = tmp_path / "oracle.parquet"
    assert not write_oracle(made[0], question(task_of(name, **changes)), nobody, out, subject_ids=integers)
    assert "no exact risk" in caplog.messages[-1]
    assert not out.exists()


def test_ventilation_alone_is_the_onset_of_respiratory_failure(made: tuple[Path, MedsDataset], tmp_path: Path) -> None:
    root, meds = made
    whole, part = task_of("arf_48h"), task_of("arf_48h")
    part = type(part)(**{**vars(part), "onset": {"icu_procedure": [225792, 225794]}})
    samples = whole.cohort(meds).samples
    assert part.cohort(meds).samples.equals(samples)
    for name, task in (("whole", whole), ("part", part)):
        assert write_oracle(root, question(task), samples, tmp_path / name, subject_ids=integers)
    assert pl.read_parquet(tmp_path / "whole").equals(pl.read_parquet(tmp_path / "part"))


def test_samples_at_another_moment_are_refused(made: tuple[Path, MedsDataset], tmp_path: Path) -> None:
    root, meds = made
    for name in ("mortality_48h", "ten_conditions"):
        task = task_of(name)
        moved = task.cohort(meds).samples.with_columns(pl.col("prediction_time").dt.offset_by("1h"))
        with pytest.raises(InputError, match="prediction time"):
            write_oracle(root, question(task), moved, tmp_path / "oracle.parquet", subject_ids=integers)


@pytest.mark.parametrize("layout", ["mimic3", "mimic4"])
@pytest.mark.parametrize("disease", DISEASES)
def test_the_projects_lists_are_those_of_the_simulated_disease(disease: str, layout: str) -> None:
    asked: Mapping[str, Any] = vars(task_of(disease))
    for other in DISEASES:
        spec = population(other, "mimic")
        found = emitted(
            spec,
            layout,
            lambda version, code: any(re.fullmatch(pattern, code) for pattern in asked[f"icd{version}"]),
        )
        assert (found == set(spec.disease.target)) == (other == disease)


def test_each_condition_is_one_part_of_the_truth_in_both_versions_of_the_icd(tmp_path: Path) -> None:
    write_mimic4(tmp_path / "raw", "ten_conditions", 3, seed=0)
    task, out = task_of("ten_conditions"), tmp_path / "oracle.parquet"
    nobody = pl.DataFrame(schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us")})
    assert write_oracle(tmp_path / "raw", question(task), nobody, out, subject_ids=integers)
    assert pl.read_parquet(out).columns == ["subject_id", "prediction_time", "label", "latent"]
