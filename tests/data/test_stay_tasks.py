"""Respiratory failure, shock and death after 48 hours of intensive care: who is a sample, and with which label."""

from __future__ import annotations

import os
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.data import meds as meds_folder
from ehrlab.data.cohorts.stays import DeathInHospital, OnsetInStay
from ehrlab.data.cohorts.task import Task
from ehrlab.data.meds import MedsDataset, SplitSettings
from ehrlab.data.modalities.stays import stays
from ehrlab.data.sources import open_mimic
from ehrlab.simulation import icu, icu_risk, simulate, write_mimic3
from ehrlab.simulation.hospital import at_minute
from ehrlab.simulation.mimic3 import clock
from meds_folders import Event, at, event, person, stay, write_meds

CONF = Path(__file__).parents[2] / "conf" / "task"
NAMES = ("arf_48h", "shock_48h", "mortality_48h")
PEEP, VENTILATED, PRESSOR = "VITAL//220339//cmH2O", "ICU_PROCEDURE//225794", "INPUT//221906//mcg/kg/min"


def task(name: str, **changed: Any) -> Task:
    """As the configuration makes it."""
    made: Task = instantiate(OmegaConf.merge(OmegaConf.load(CONF / f"{name}.yaml"), changed))
    return made


def stayed(
    subject: int,
    *,
    end: float = 5.0,
    died: bool = False,
    age: float = 60.0,
    items: dict[str, float] | None = None,
    chart: str | None = "VITAL//220045//bpm",
    death: float | None = None,
) -> list[Event]:
    """A patient with an admission on days 0 to 10 and a stay on days 1 to `end`; `items`: code -> day."""
    visit = 10 * subject
    events = [*person(subject, age=age), *stay(subject, 0, 10, visit, died)]
    events += [event(subject, 1, "ICU_ADMISSION//MICU", visit), event(subject, end, "ICU_DISCHARGE//MICU", visit)]
    events += [event(subject, day, code, visit) for code, day in (items or {}).items()]
    if chart:
        events.append(event(subject, 1.1, chart, visit))
    return events if death is None else [*events, event(subject, death, "MEDS_DEATH")]


NOBODY = [e for code in (PEEP, VENTILATED, PRESSOR) for e in stayed(99, age=10, items={code: 1.5})]
"""A child with one event of each kind: no sample, but every kind occurs in the data."""


def labels(name: str, path: Path, *people: list[Event], **changed: Any) -> dict[int, bool]:
    meds = write_meds(path, [*NOBODY, *(e for events in people for e in events)])
    samples = task(name, **changed).cohort(meds).samples
    assert samples["prediction_time"].to_list() == [at(3)] * samples.height
    return dict(samples.select("subject_id", "boolean_value").iter_rows())


@pytest.mark.parametrize("name", NAMES)
def test_a_sample_is_a_stay_of_an_adult_of_at_least_48_hours(tmp_path, name):
    found = labels(
        name,
        tmp_path,
        stayed(1),
        stayed(2, end=3.0),
        stayed(3, end=2.999),
        stayed(4, age=18.0),
        stayed(5, age=17.9),
        stayed(6)[3:],  # birth unknown
    )
    assert set(found) == {1, 2, 4}
    assert not any(found.values())


def test_death_counts_when_the_admission_ends_in_it_and_not_within_48_hours(tmp_path):
    found = labels(
        "mortality_48h",
        tmp_path,
        stayed(1, died=True, death=10.0),
        stayed(2, death=10.5),
        stayed(3, died=True, death=3.0),
        [*stayed(4), *stay(4, 20, 30, 41, died=True)],  # another admission
    )
    assert found == {1: True, 2: False, 4: False}


@pytest.mark.parametrize(
    ("name", "code"),
    [("arf_48h", PEEP), ("arf_48h", VENTILATED), ("shock_48h", PRESSOR), ("shock_48h", "INPUT//222315//UNK")],
)
def test_an_onset_counts_from_48_hours_to_the_end_of_the_stay(tmp_path, name, code):
    found = labels(
        name,
        tmp_path,
        stayed(1, items={code: 3.0}),
        stayed(2, items={code: 5.0}),
        stayed(3, items={code: 5.1}),
        stayed(4, items={code: 2.99}),
        stayed(5, items={code: 0.5}),  # before the stay
        [*stayed(6, items={code: 4.0}), event(6, 1.0, code, 60)],
    )
    assert found == {1: True, 2: True, 3: False, 5: False}


def test_items_of_the_other_task_and_longer_numbers_are_no_onset(tmp_path):
    others = {PRESSOR: 4.0, "VITAL//2203390//cmH2O": 4.0, "INPUT//225792//mg": 4.0}
    assert labels("arf_48h", tmp_path / "a", stayed(1, items=others)) == {1: False}
    assert labels("shock_48h", tmp_path / "b", stayed(1, items={PEEP: 4.0, VENTILATED: 4.0})) == {1: False}


@pytest.mark.parametrize("name", NAMES)
def test_stays_charted_in_the_older_system_are_no_samples_unless_asked_for(tmp_path, name):
    people = [
        stayed(1),
        stayed(2, chart="VITAL//211//BPM"),
        [*stayed(3), event(3, 1.2, "VITAL//211//BPM", 30)],
        stayed(4, chart=None),
    ]
    assert set(labels(name, tmp_path / "a", *people)) == {1}
    assert set(labels(name, tmp_path / "b", *people, first_item=None)) == {1, 2, 3, 4}


def test_what_is_dropped_is_counted_by_reason(tmp_path):
    people = [
        stayed(1, items={PRESSOR: 4.0}),
        stayed(2, end=2.0),
        stayed(3, chart=None),
        stayed(4, age=5),
        stayed(5, death=2.0),
        stayed(6, items={PRESSOR: 1.2}),
        [*stayed(7), *stay(7, 2, 4, 71)],
    ]
    cohort = task("shock_48h").cohort(write_meds(tmp_path, [e for events in people for e in events]))
    assert cohort.dropped == {
        "stays shorter than 48 hours": 1,
        "stays outside of the admission of their time": 1,
        "stays without charts of items from 220000 on only": 1,
        "stays of patients under 18 or of unknown age": 1,
        "stays of patients who die within 48 hours": 1,
        "stays with an onset within 48 hours": 1,
    }
    assert cohort.samples["boolean_value"].to_list() == [True]


def test_hours_are_those_of_the_task(tmp_path):
    meds = write_meds(tmp_path, [*stayed(1, end=2.5, died=True), *stayed(2, end=1.9)])
    samples = task("mortality_48h", hours=24).cohort(meds).samples
    assert samples.rows() == [(1, at(2), True, None)]


@pytest.mark.parametrize("name", NAMES)
def test_a_stay_task_offers_nothing_that_is_coded_at_discharge(name):
    made = task(name)
    assert made.unit == "stay"
    assert made.inputs >= {"stays", "demographics"}
    assert not made.inputs & {"visits", "codes", "tokens"}
    assert made.tables >= {"icu_stays", "vitals", "inputs", "icu_procedures"}


# ---------------------------------------------------------------------------------------------------------- bad input


def test_an_onset_whose_table_was_not_read_is_refused(tmp_path):
    meds = write_meds(tmp_path, stayed(1, items={PEEP: 4.0}))
    with pytest.raises(InputError, match=r"task 'arf_48h'.*kind icu_procedure.*none.*data.source.tables"):
        task("arf_48h").cohort(meds)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"hours": 0}, "task.hours: expected at least 1"),
        ({"onset": {}}, "task.onset: expected kinds of event with item numbers"),
        ({"onset": {"input": 221906}}, r"task.onset.input: expected a list, found .*write it as \[221906\]"),
    ],
)
def test_impossible_settings_are_refused(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        OnsetInStay("shock", **{"onset": {"input": [1]}, **changed})


def test_unknown_kind_and_bad_pattern_are_refused(tmp_path):
    meds = write_meds(tmp_path, stayed(1))
    with pytest.raises(InputError, match=r"task.onset: unknown kind 'infusion'"):
        OnsetInStay("shock", onset={"infusion": [221906]}).cohort(meds)
    with pytest.raises(InputError, match=r"task.died"):
        DeathInHospital("death", died=["("])


# ---------------------------------------------------------------------------------------------------- the simulator


@pytest.fixture(scope="module")
def simulated(tmp_path_factory: pytest.TempPathFactory) -> MedsDataset:
    folder = tmp_path_factory.mktemp("simulated")
    write_mimic3(folder / "raw", "heart_failure", 250, 3, modalities=["codes", "charts"])
    source = open_mimic(folder / "raw", ["icu_stays", "vitals", "inputs", "icu_procedures"])
    (folder / "meds").mkdir()
    meds_folder.build(source, folder / "meds", SplitSettings(), simulated=True)
    return MedsDataset.open(folder / "meds")


@pytest.mark.parametrize("name", NAMES)
def test_cohort_agrees_with_the_simulator_stay_by_stay(simulated, name):
    expected: dict[tuple[int, datetime], bool] = {}
    for shard in simulate("heart_failure", "mimic", 250, 3):
        drawn = icu.draw_stays(shard)
        outcome = icu_risk.outcome_risk(shard, drawn, icu.draw_course(shard, drawn))[name.removesuffix("_48h")]
        subject, entry = clock(shard)
        patient = shard.visits.patient[drawn.visit[outcome.stay]]
        start = at_minute(entry[patient], drawn.first_minute[outcome.stay])
        for key, time, label in zip(subject[patient].tolist(), start.tolist(), outcome.happened.tolist()):
            expected[key, time + timedelta(hours=48)] = label
    samples = task(name).cohort(simulated).samples
    assert {(s, time): label for s, time, label, _ in samples.iter_rows()} == expected
    assert min(sum(expected.values()), len(expected) - sum(expected.values())) >= 5
    assert samples.select(pl.struct("subject_id", "prediction_time").is_unique().all()).item()


# ------------------------------------------------------------------------------------------------------- the real demo

DEMO = os.environ.get("EHRLAB_MIMIC3_DEMO", "")


@pytest.mark.skipif(not DEMO, reason="EHRLAB_MIMIC3_DEMO does not name the folder of the MIMIC-III demo")
def test_stays_and_cohorts_of_the_demo(tmp_path):
    source = open_mimic(DEMO, ["icu_stays", "vitals", "inputs", "icu_procedures"])
    meds_folder.build(source, tmp_path, SplitSettings(), simulated=False, bucket_bytes=20 * 2**20)
    meds = MedsDataset.open(tmp_path)
    assert stays(meds).height == 136
    found = {}
    for name in NAMES:
        cohort = task(name).cohort(meds)
        assert cohort.dropped["stays shorter than 48 hours"] == 63
        assert cohort.dropped["stays without charts of items from 220000 on only"] == 38  # CareVue
        found[name] = cohort.samples["boolean_value"].sum(), cohort.samples.height
    # Nobody of the demo's few MetaVision patients who breathe on their own for two days fails later.
    assert found == {"arf_48h": (0, 15), "shock_48h": (3, 21), "mortality_48h": (9, 34)}
