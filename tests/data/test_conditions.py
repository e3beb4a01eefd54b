"""Several labels of an admission: which conditions are coded in it, and which admissions are samples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.conditions import Conditions
from ehrlab.data.cohorts.task import VALUES
from ehrlab.data.meds import MedsDataset
from ehrlab.data.sources import open_mimic
from ehrlab.simulation import write_mimic3, write_mimic4
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.icd10 import counterparts
from ehrlab.simulation.spec import population
from meds_folders import Event, at, dx, event, stay, write_meds
from raw_tables import dataset_of

CONF = Path(__file__).parents[2] / "conf"
GROUPS: dict[str, Any] = {
    "failure": {"icd9": ["428"], "icd10": ["I50"]},
    "diabetes": {"icd9": ["250.00"], "icd10": ["e11.9"]},
    "accident": {"icd9": ["E860"]},
}
TASK = Conditions("few", GROUPS, evidence=[])
SHOWN = Conditions("few", GROUPS)


def ten() -> Conditions:
    task = instantiate(OmegaConf.load(CONF / "task" / "ten_conditions.yaml"))
    assert isinstance(task, Conditions)
    return task


def dataset(path: Path, events: list[Event]) -> MedsDataset:
    """Laboratory tests have a number, notes a text; an EMPTY note has none."""
    meds = write_meds(path, events)
    code = pl.col("code")
    for file in meds.shards():
        pl.read_parquet(file).with_columns(
            numeric_value=pl.when(code.str.starts_with("LAB//")).then(1.0).cast(pl.Float32),
            text_value=pl.when(code == "NOTE//EMPTY").then(pl.lit(" ")).when(code.str.starts_with("NOTE//")).then(code),
        ).write_parquet(file)
    return meds


def rows(task: Conditions, path: Path, events: list[Event]) -> list[tuple[int, object, list[bool]]]:
    """subject, prediction_time, labels"""
    samples = task.cohort(dataset(path, events)).samples
    return samples.select("subject_id", "prediction_time", VALUES).rows()


# ---- labels


@pytest.mark.parametrize(
    ("code", "labels"),
    [
        ("DIAGNOSIS//ICD//9//428.0", [True, False, False]),
        ("DIAGNOSIS//ICD//9//42822", [True, False, False]),
        ("DIAGNOSIS//ICD//10//I50.9", [True, False, False]),
        ("ICD10CM/I50.22", [True, False, False]),
        ("DIAGNOSIS//ICD//9//250.00", [False, True, False]),
        ("DIAGNOSIS//ICD//9//250.01", [False, False, False]),
        ("DIAGNOSIS//ICD//10//E119", [False, True, False]),
        ("DIAGNOSIS//ICD//10//E86.0", [False, False, False]),  # dehydration; by ICD-9 an accident
        ("DIAGNOSIS//ICD//9//E860.1", [False, False, True]),
        ("DIAGNOSIS//ICD//9//142.8", [False, False, False]),  # begins otherwise
        ("PROCEDURE//ICD//9//42.80", [False, False, False]),
    ],
)
def test_a_label_is_true_where_a_code_begins_as_its_condition(tmp_path, code, labels):
    events = [*stay(1, 0, 5, visit=7), event(1, 5, code, 7), *stay(2, 0, 4, visit=8), *dx(2, 4, "428.0", visit=8)]
    assert rows(TASK, tmp_path, events) == [(1, at(5), labels), (2, at(4), [True, False, False])]


def test_an_admission_has_the_labels_of_its_own_codes_alone(tmp_path):
    events = [*stay(1, 0, 5, visit=7), *dx(1, 5, "428.0", "486", visit=7)]
    events += [*stay(1, 50, 60, visit=8), *dx(1, 60, "250.00", "428.9", visit=8), *dx(1, 55, "E860.0")]
    events += [*stay(1, 90, 91, visit=9), *dx(1, 70, "428.0"), *dx(1, 99, "250.00", visit=8)]
    assert [labels for _, _, labels in rows(TASK, tmp_path, events)] == [
        [True, False, False],
        [True, True, True],  # a code without visit belongs to the admission in which it lies
        [False, False, False],
    ]


def test_labels_stand_in_the_order_of_the_conditions(tmp_path):
    turned = Conditions("few", dict(reversed(GROUPS.items())), evidence=[])
    events = [*stay(1, 0, 5, visit=7), *dx(1, 5, "428.0", visit=7)]
    assert TASK.labels == ("failure", "diabetes", "accident")
    assert turned.labels == ("accident", "diabetes", "failure")
    assert rows(turned, tmp_path, events)[0][2] == [False, False, True]
    assert turned.fingerprint() != TASK.fingerprint()


def test_samples_do_not_offer_what_holds_the_labels():
    assert not {"visits", "tokens", "codes"} & Conditions.inputs
    assert {"labs", "notes", "text", "stays", "demographics"} <= Conditions.inputs
    assert Conditions.unit == "admission"


# ---- samples


def test_an_admission_needs_a_laboratory_value_or_a_note_by_its_discharge(tmp_path):
    shown = {
        1: event(1, 2, "LAB//50912//mg/dL", 10),
        2: event(2, 2, "NOTE//NURSING", 20),
        3: event(3, 2, "VITAL//1//bpm", 30),
        4: event(4, 6, "LAB//50912//mg/dL", 40),  # after the discharge
        5: event(5, 5.9, "NOTE//DISCHARGE SUMMARY", 50),  # later on the day of the discharge
        6: event(6, 7, "NOTE//ADDENDUM", 60),
        7: event(7, 3, "NOTE//EMPTY", 70),
        8: event(8, 3, "LAB//50912//mg/dL"),  # of no visit, during the admission
    }
    events = [*stay(9, 0, 5.5, visit=90)]
    for subject, one in shown.items():
        events += [*stay(subject, 0, 5.5, visit=10 * subject), one, *dx(subject, 5.5, "428.0", visit=10 * subject)]
    cohort = SHOWN.cohort(dataset(tmp_path, events))
    assert cohort.samples["subject_id"].to_list() == [1, 2, 5, 8]
    assert cohort.dropped["admissions without a lab or note"] == 5


def test_the_last_admission_that_qualifies_is_one_per_patient(tmp_path):
    events = [*dx(1, 5, "428.0", visit=1)]
    for visit, day in ((1, 0), (2, 20), (3, 40)):
        events += stay(1, day, day + 5, visit=visit)
    events += [event(1, day, "LAB//50912//mg/dL", visit) for visit, day in ((1, 1), (2, 21))]
    last = Conditions("few", GROUPS, admissions="last")
    assert [time for _, time, _ in rows(SHOWN, tmp_path / "all", events)] == [at(5), at(25)]
    assert [time for _, time, _ in rows(last, tmp_path / "last", events)] == [at(25)]


def test_an_admission_at_whose_end_another_had_begun_is_no_sample(tmp_path):
    events = [*stay(1, 0, 10, visit=1), *stay(1, 5, 12, visit=2), *dx(1, 10, "428.0", visit=1)]
    cohort = TASK.cohort(dataset(tmp_path, events))
    assert cohort.samples["prediction_time"].to_list() == [at(12)]
    assert cohort.samples[VALUES].to_list() == [[False, False, False]]
    assert cohort.dropped["admissions at whose end another had begun"] == 1


# ---- the ten, in both versions of ICD


def test_ten_conditions_are_told_alike_by_icd_9_and_icd_10(tmp_path):
    """Of every code of the simulated population, and of its counterpart in ICD-10."""
    spec, task = population("heart_failure", "mimic"), ten()
    nine, tens = vocabulary(spec).codes, counterparts(spec)
    nines = [event(i, 0, f"DIAGNOSIS//ICD//9//{code}") for i, code in enumerate(nine)]
    found = [
        dict(
            task.codes(write_meds(tmp_path / version, events))
            .with_columns(pl.col("code").str.split("//").list.last())
            .rows()
        )
        for version, events in (
            ("9", nines),
            ("10", [event(i, 0, f"DIAGNOSIS//ICD//10//{code}") for i, code in enumerate(tens)]),
        )
    ]
    by_nine, by_ten = ([labels.get(code) for code in codes] for labels, codes in zip(found, (nine, tens)))
    assert by_nine == by_ten
    assert set(by_nine) - {None} == set(range(10))


def test_ten_conditions_are_not_in_the_simulators_background():
    """Which is drawn for anybody: the exact probability of a label would be another."""
    spec, task = population("heart_failure", "mimic"), ten()
    words = vocabulary(spec)
    prefixes = tuple(p for groups in task.conditions.values() for p in groups["icd9"])
    of_label = [i for i, code in enumerate(words.codes) if code.replace(".", "").startswith(prefixes)]
    assert max(of_label) < words.background


@pytest.mark.parametrize(("layout", "write"), [("mimic3", write_mimic3), ("mimic4", write_mimic4)])
def test_each_condition_is_neither_rare_nor_the_rule_in_simulated_admissions(tmp_path, layout, write):
    write(tmp_path / layout, "heart_failure", 250, 3, modalities=["codes", "labs"])
    source = open_mimic(tmp_path / layout, ["diagnoses", "labs"])
    cohort = ten().cohort(dataset_of(source, folder=tmp_path / "meds"))
    shares = (
        pl.DataFrame(cohort.samples[VALUES].to_list(), schema=list(ten().labels), orient="row").cast(pl.Float64).mean()
    )
    assert cohort.samples.height > 500
    assert all(0.02 < share < 0.8 for share in shares.row(0)), shares


def test_the_ten_are_a_choice_of_the_config():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose("config", overrides=["task=ten_conditions"])
    task = instantiate(config.task)
    assert task.labels == ten().labels
    assert len(task.labels) == 10
    assert all(
        not any("." in code for codes in groups.values() for code in codes) for groups in task.conditions.values()
    )


# ---- bad input


@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({"conditions": {"one": {"icd9": ["4"]}}}, "at least two, found 1"),
        ({"conditions": {**GROUPS, "none": {"icd9": []}}}, r"conditions\.none: expected the beginning of a code"),
        ({"conditions": {**GROUPS, "a/b": {"icd9": ["4"]}}}, "found 'a/b'"),
        ({"conditions": {**GROUPS, "odd": {"icd11": ["4"]}}}, "expected lists icd9 and icd10, found 'icd11'"),
        ({"conditions": {**GROUPS, "odd": ["4"]}}, "expected lists icd9 and icd10"),
        ({"conditions": {**GROUPS, "odd": {"icd9": "428"}}}, r"odd\.icd9: expected a list"),
        ({"conditions": {**GROUPS, "odd": {"icd9": ["."]}}}, r"odd\.icd9: .* empty text"),
        ({"conditions": GROUPS, "admissions": "first"}, "all, last, found 'first'"),
        ({"conditions": GROUPS, "evidence": "lab"}, "expected a list"),
    ],
)
def test_settings_are_checked(settings, complaint):
    with pytest.raises(InputError, match=complaint):
        Conditions("few", **settings)


@pytest.mark.parametrize(
    ("task", "events", "complaint"),
    [
        (
            SHOWN,
            [*stay(1, 0, 5, visit=7), *dx(1, 5, "428.0", visit=7)],
            "no admission shows any event of the kinds lab, note",
        ),
        (TASK, [*stay(1, 0, 5, visit=7), *dx(1, 5, "486", visit=7)], "no diagnosis code of task.conditions"),
        (TASK, [*dx(1, 5, "428.0")], "no hospital admission"),
        (Conditions("few", GROUPS, evidence=["labs"]), [*stay(1, 0, 5, visit=7)], "unknown kind 'labs'"),
    ],
)
def test_data_that_lack_what_it_needs_are_refused_with_the_remedy(tmp_path, task, events, complaint):
    with pytest.raises(InputError, match=complaint) as refusal:
        task.cohort(dataset(tmp_path, events))
    assert "\n" not in str(refusal.value)
