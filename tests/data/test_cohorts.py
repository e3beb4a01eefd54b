"""Tasks: who is a sample, what its label is, and where its history ends."""

from __future__ import annotations

import os
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from omegaconf import OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.admissions import InHospitalMortality, Readmission
from ehrlab.data.cohorts.first_diagnosis import FirstDiagnosis
from ehrlab.data.cohorts.labels import MedsLabels
from ehrlab.data.cohorts.task import SAMPLE_SCHEMA, Task, check_classes
from ehrlab.data.meds import SPLITS
from meds_folders import Event, at, dx, event, person, stay, write_meds

TASK = FirstDiagnosis("heart_failure", icd9=[r"428\d*"], icd10=[r"I50\d*"])
CONF = Path(__file__).parents[2] / "conf" / "task"


def visits(subject: int, *days: float, code: str = "401.9") -> list[Event]:
    return [e for day in days for e in dx(subject, day, code)]


def case(subject: int, *days: float, **traits: object) -> list[Event]:
    """Ordinary visits, then the target at the last of `days`."""
    return [*person(subject, **traits), *visits(subject, *days[:-1]), *dx(subject, days[-1], "428.0")]  # type: ignore[arg-type]


def control(subject: int, *days: float, **traits: object) -> list[Event]:
    return [*person(subject, **traits), *visits(subject, *days)]  # type: ignore[arg-type]


def trio(first: int, *days: float, **traits: object) -> list[Event]:
    """Three controls with the same visits."""
    return [e for i in range(3) for e in control(first + i, *days, **traits)]


def rows(task: Task, path: Path, events: list[Event]) -> dict[int, tuple[bool, object]]:
    """subject -> (label, prediction_time)"""
    samples = task.cohort(write_meds(path, events)).samples
    return {s: (label, time) for s, time, label, _ in samples.iter_rows()}


# ---- first diagnosis


def test_history_of_a_case_ends_180_days_before_its_first_target_code(tmp_path):
    again = dx(1, 500, "428.9")
    found = rows(TASK, tmp_path, [*case(1, 0, 50, 300), *again, *trio(2, 0, 60, 400)])
    assert found[1] == (True, at(120))


def test_case_and_controls_have_histories_of_the_same_span(tmp_path):
    shifted = trio(2, 10, 70, 1000)  # first visit on day 10, watched far longer than the case
    found = rows(TASK, tmp_path, [*case(1, 0, 50, 300), *shifted])
    assert {s: found[s] for s in (2, 3, 4)} == dict.fromkeys((2, 3, 4), (False, at(10 + 120)))


@pytest.mark.parametrize(
    "odd",
    [
        {"gender": "M"},
        {"race": "BLACK"},
        {"age": 71.0},
    ],
)
def test_controls_agree_on_gender_race_and_age_band(tmp_path, odd):
    others = trio(2, 0, 60, 400, **odd)
    assert rows(TASK, tmp_path / "odd", [*case(1, 0, 50, 300), *others]) == {}
    assert len(rows(TASK, tmp_path / "same", [*case(1, 0, 50, 300, **odd), *others])) == 4


def test_an_unknown_birth_is_no_age_over_89(tmp_path):
    def unborn(events: list[Event]) -> list[Event]:
        return [e for e in events if e[2] != "MEDS_BIRTH"]

    old, unknown = case(1, 0, 50, 300, age=95.0), unborn(case(1, 0, 50, 300))
    others = unborn(trio(2, 0, 60, 400))
    assert rows(TASK, tmp_path / "old", [*old, *others]) == {}
    assert len(rows(TASK, tmp_path / "unknown", [*unknown, *others])) == 4


def test_case_with_two_controls_only_is_dropped_and_counted(tmp_path):
    two = trio(2, 0, 60, 400)[: -len(control(4, 0, 60, 400))]
    cohort = TASK.cohort(write_meds(tmp_path, [*case(1, 0, 50, 300), *two]))
    assert cohort.samples.is_empty()
    assert cohort.dropped == {
        "cases with fewer than 2 visits in the history": 0,
        "cases without 3 matching controls": 1,
    }


def test_control_who_leaves_care_before_the_index_date_is_not_eligible(tmp_path):
    assert rows(TASK, tmp_path / "left", [*case(1, 0, 50, 300), *trio(2, 0, 60, 299)]) == {}
    assert len(rows(TASK, tmp_path / "stayed", [*case(1, 0, 50, 300), *trio(2, 0, 60, 300)])) == 4


def test_patient_with_the_target_anywhere_is_no_control(tmp_path):
    late = [*control(4, 0, 60, 400), *dx(4, 5000, "428.22")]
    assert 4 not in rows(TASK, tmp_path, [*case(1, 0, 50, 300), *trio(2, 0, 60, 400)[:-6], *late])


def test_both_kinds_need_two_visits_in_the_history(tmp_path):
    cohort = TASK.cohort(write_meds(tmp_path / "case", [*case(1, 0, 200, 300), *trio(2, 0, 60, 400)]))
    assert cohort.dropped["cases with fewer than 2 visits in the history"] == 1
    late_second_visit = trio(2, 0, 121, 400)
    assert rows(TASK, tmp_path / "control", [*case(1, 0, 50, 300), *late_second_visit]) == {}


def test_codes_of_one_admission_are_one_visit(tmp_path):
    one_visit = [*dx(1, 0, "401.9", visit=7), *dx(1, 50, "250.00", visit=7), *dx(1, 300, "428.0", visit=8)]
    cohort = TASK.cohort(write_meds(tmp_path, [*person(1), *one_visit, *trio(2, 0, 60, 400)]))
    assert cohort.dropped["cases with fewer than 2 visits in the history"] == 1


def test_controls_are_used_once_and_three_to_a_case(tmp_path):
    rng = np.random.default_rng(0)
    events: list[Event] = []
    for subject in range(1, 200):
        days = np.cumsum(rng.integers(1, 120, size=rng.integers(3, 15))).tolist()
        make = case if subject % 6 == 0 else control
        events += make(subject, *days, gender="FM"[subject % 2], age=60 + subject % 7)
    samples = TASK.cohort(write_meds(tmp_path, events)).samples
    assert samples["subject_id"].is_unique().all()
    num_cases = samples["boolean_value"].sum()
    assert num_cases > 5
    assert samples.height == 4 * num_cases


def test_matching_depends_on_the_seed_only_not_on_the_order_of_events(tmp_path):
    events = [*case(1, 0, 50, 300), *[e for i in range(2, 40) for e in control(i, 0, 60, 400)]]
    first = rows(TASK, tmp_path / "a", events)
    assert rows(TASK, tmp_path / "b", [*reversed(events)]) == first
    assert rows(replace(TASK, seed=1), tmp_path / "c", events) != first


def test_number_of_visits_tells_nothing_of_the_label_when_the_hazard_is_flat(tmp_path):
    """The trap of the simulated population: everybody is watched for a fixed time, a case only until its diagnosis."""
    rng = np.random.default_rng(1)
    events: list[Event] = []
    for subject in range(1, 1500):
        days = np.cumsum(rng.exponential(60, size=40))
        days = days[days < 2000].tolist()
        hit = next((i for i in range(len(days)) if rng.random() < 0.01), None)  # at any visit alike
        if len(days) < 2:
            continue
        events += control(subject, *days) if not hit else case(subject, *days[: hit + 1])
    meds = write_meds(tmp_path, events)
    samples = TASK.cohort(meds).samples
    counts = (
        meds.scan()
        .filter(meds.is_kind("diagnosis"))
        .select("subject_id", "time")
        .collect()
        .join(samples, on="subject_id")
        .filter(pl.col("time") <= pl.col("prediction_time"))
        .group_by("subject_id")
        .agg(pl.len(), pl.col("boolean_value").first())
    )
    positive = counts.filter("boolean_value")["len"].to_numpy()
    negative = counts.filter(~pl.col("boolean_value"))["len"].to_numpy()
    assert len(positive) > 80
    auroc = (positive[:, None] > negative).mean() + 0.5 * (positive[:, None] == negative).mean()
    assert abs(auroc - 0.5) < 0.07


def test_last_six_months_is_the_180_days_before_the_day_of_the_diagnosis(tmp_path):
    task = replace(TASK, window="last_six_months")
    meds = write_meds(tmp_path, [*case(1, 0, 130, 200, 300.5), *trio(2, 0, 140, 210, 400)])
    sample = task.cohort(meds).samples.row(0, named=True)
    just_before = timedelta(microseconds=1)
    assert sample["prediction_time"] == at(300) - just_before
    assert sample["history_start"] == at(120) - just_before


@pytest.mark.parametrize("window", ["until", "last_six_months"])
def test_target_codes_never_lie_in_a_history(tmp_path, window):
    rng = np.random.default_rng(2)
    events: list[Event] = []
    for subject in range(1, 120):
        days = np.cumsum(rng.integers(1, 60, size=12)).tolist()
        events += control(subject, *days)
        if subject % 5 == 0:
            events += [e for day in days[8:] for e in dx(subject, day + 0.25, "428.0", "250.00")]
    task = replace(TASK, window=window)
    meds = write_meds(tmp_path, events)
    samples = task.cohort(meds).samples
    targets = meds.scan().filter(pl.col("code").is_in(task.target_codes(meds))).collect().join(samples, on="subject_id")
    assert samples["boolean_value"].sum() > 3
    assert (targets["time"] > targets["prediction_time"]).all()


TARGETS = {
    "heart_failure": (
        ["398.91", "402.11", "404.03", "404.91", "428", "428.0", "428.43"],
        ["402.10", "402.90", "404.02", "404.00", "429.0", "427.9"],
        ["I09.81", "I11.0", "I13.0", "I13.2", "I50", "I50.9", "I50.23", "I50.814"],
        ["I11.9", "I13.10", "I13.11", "I51.9"],
    ),
    "kidney": (
        ["285.21", "585", "585.9", "593.9", "753.10", "403.91"],
        ["285.29", "584.9", "593.8", "753.12", "404.03"],
        ["D63.1", "N18.30", "N18.9", "N28.9", "Q61.9", "I12.0"],
        ["N17.9", "N28.1", "I13.0", "D63.0"],
    ),
    "copd": (
        ["490", "491", "491.21", "492.8", "494.1", "496"],
        ["493.20", "495.9"],
        ["J40", "J41.8", "J42", "J43.9", "J44.1", "J47.9"],
        ["J45.909", "J98.4"],
    ),
    "amnesia": (
        ["780.93", "294.0", "437.7", "300.12"],
        ["780.97", "294.10", "437.9", "300.13"],
        ["R41.1", "R41.3", "F04", "G45.4", "F44.0"],
        ["R41.0", "R41.82", "F44.1", "G45.9"],
    ),
}


@pytest.mark.parametrize("name", TARGETS)
def test_conf_names_the_target_codes_in_both_icd_versions(tmp_path, name):
    settings = OmegaConf.load(CONF / f"{name}.yaml")
    task = FirstDiagnosis(name, settings.icd9, settings.icd10)
    nine, not_nine, ten, not_ten = TARGETS[name]
    wanted = {
        *(f"DIAGNOSIS//ICD//9//{c}" for c in nine),
        *(f"DIAGNOSIS//ICD//10//{c}" for c in ten),
        *(f"ICD10CM/{c}" for c in ten),
        *(f"DIAGNOSIS//ICD//10//{c.replace('.', '')}" for c in ten),
    }
    others = {
        *(f"DIAGNOSIS//ICD//9//{c}" for c in not_nine),
        *(f"DIAGNOSIS//ICD//10//{c}" for c in not_ten),
        # A procedure, or the other version's code, may be spelt like a target.
        *(f"PROCEDURE//ICD//9//{c}" for c in nine),
        *(f"DIAGNOSIS//ICD//10//{c}" for c in nine if c not in ten),
        "PROCEDURE//ICD//9//49.2",
        "LAB//428//UNK",
    }
    meds = write_meds(tmp_path, [event(1, 0, code) for code in sorted(wanted | others)])
    assert set(task.target_codes(meds)) == wanted


def test_misspelt_window_and_bad_pattern_are_refused():
    with pytest.raises(InputError, match=r"task\.window.*until, last_six_months.*'before'"):
        replace(TASK, window="before")
    with pytest.raises(InputError, match=r"task\.icd9.*regular expression"):
        replace(TASK, icd9=["428("])
    with pytest.raises(InputError, match=r"task\.icd9.*list"):
        replace(TASK, icd9="428")


# ---- admissions

READMISSION = Readmission("readmission_30d")
MORTALITY = InHospitalMortality("in_hospital_mortality")
LONG_AFTER = person(99) + stay(99, 5000, 5001)  # keeps the end of the data away from the stays under test


def readmissions(path: Path, events: list[Event], task: Readmission = READMISSION) -> list[tuple[object, bool]]:
    samples = task.cohort(write_meds(path, [*events, *LONG_AFTER])).samples.filter(pl.col("subject_id") == 1)
    return samples.select("prediction_time", "boolean_value").rows()


def test_readmission_is_predicted_at_each_discharge_and_counts_30_days(tmp_path):
    events = [*stay(1, 0, 5, 11), *stay(1, 35, 40, 12), *stay(1, 71, 75, 13)]
    assert readmissions(tmp_path, events) == [(at(5), True), (at(40), False), (at(75), False)]


def test_stay_that_ends_in_death_is_no_sample_but_a_readmission(tmp_path):
    assert readmissions(tmp_path, [*stay(1, 0, 5, 11), *stay(1, 20, 25, 12, died=True)]) == [(at(5), True)]


def test_death_at_home_within_30_days_is_dropped_unless_kept(tmp_path):
    events = [*stay(1, 0, 5, 11), event(1, 30, "MEDS_DEATH")]
    assert readmissions(tmp_path / "a", events) == []
    assert readmissions(tmp_path / "b", events, replace(READMISSION, keep_early_deaths=True)) == [(at(5), False)]
    assert readmissions(tmp_path / "c", [*stay(1, 0, 5, 11), event(1, 36, "MEDS_DEATH")]) == [(at(5), False)]


def test_overlapping_and_touching_stays_are_one(tmp_path):
    transfer = [*stay(1, 0, 5, 11), *stay(1, 4, 6, 12), *stay(1, 6, 9, 13)]
    assert readmissions(tmp_path, transfer) == [(at(9), False)]


def test_stays_without_visit_id_pair_each_discharge_with_the_admission_before(tmp_path):
    assert readmissions(tmp_path, [*stay(1, 0, 5), *stay(1, 20, 25)]) == [(at(5), True), (at(25), False)]


def test_stay_too_near_to_the_end_of_the_data_is_dropped_unless_readmission_was_seen(tmp_path):
    cohort = READMISSION.cohort(write_meds(tmp_path, [*stay(1, 0, 5, 1), *stay(1, 20, 22, 2), *stay(2, 10, 15, 3)]))
    assert cohort.samples.select("subject_id", "boolean_value").rows() == [(1, True)]
    assert cohort.dropped["stays less than 30 days before the end of the data"] == 2


def test_inpatient_encounters_are_stays_and_other_encounters_are_not(tmp_path):
    def encounter(start: float, end: float, kind: str, visit: int) -> list[Event]:
        return [event(1, start, f"ENCOUNTER_START//{kind}", visit), event(1, end, f"ENCOUNTER_END//{kind}", visit)]

    events = [*encounter(0, 5, "IMP", 11), *encounter(10, 10, "AMB", 12), *encounter(100, 104, "IMP", 13)]
    assert readmissions(tmp_path / "a", events) == [(at(5), False), (at(104), False)]
    both = replace(READMISSION, inpatient=["IMP", "AMB"])
    assert readmissions(tmp_path / "b", events, both) == [(at(5), True), (at(10), False), (at(104), False)]


def test_data_without_admissions_cannot_serve_an_admission_task(tmp_path):
    with pytest.raises(InputError, match=r"no admission.*task\.inpatient"):
        READMISSION.cohort(write_meds(tmp_path, dx(1, 0, "401.9")))


def test_mortality_takes_patients_with_two_stays_and_predicts_at_the_last_discharge(tmp_path):
    events = [
        *stay(1, 0, 5, 11),
        *stay(1, 50, 55, 12, died=True),
        *stay(2, 0, 6, 21),
        *stay(2, 60, 66, 22),
        *stay(3, 0, 7, 31, died=True),
    ]
    assert rows(MORTALITY, tmp_path / "last", events) == {1: (True, at(55)), 2: (False, at(66))}
    forecast = replace(MORTALITY, include_last_admission=False)
    assert rows(forecast, tmp_path / "before", events) == {1: (True, at(5)), 2: (False, at(6))}
    single = replace(MORTALITY, min_admissions=1)
    assert rows(single, tmp_path / "single", events)[3] == (True, at(7))


def test_forecast_of_the_last_stay_needs_a_stay_before():
    with pytest.raises(InputError, match=r"task\.min_admissions: expected at least 2"):
        replace(MORTALITY, min_admissions=1, include_last_admission=False)


# ---- labels made elsewhere


def labels_file(path: Path, **columns: object) -> MedsLabels:
    pl.DataFrame(columns).write_parquet(path)
    return MedsLabels("labels", str(path))


def test_labels_of_another_tool_are_taken_as_they_are(tmp_path):
    task = labels_file(
        tmp_path / "aces.parquet",
        subject_id=[2, 1, 77],
        prediction_time=[at(3), at(4), at(5)],
        boolean_value=[True, False, True],
        categorical_value=["a", "b", "c"],
        window_start=[at(0)] * 3,
    )
    cohort = task.cohort(write_meds(tmp_path / "meds", [*dx(1, 0, "496"), *dx(2, 0, "496")]))
    assert cohort.samples.schema == SAMPLE_SCHEMA
    assert cohort.samples.rows() == [(1, at(4), False, None), (2, at(3), True, None)]
    assert cohort.dropped["labels of subjects that the data lack"] == 1


def test_labels_that_break_the_schema_are_refused_without_naming_a_patient(tmp_path):
    meds = write_meds(tmp_path / "meds", dx(918273, 0, "496"))
    time, subject = [at(0)], [918273]
    broken = {
        "lacks": {"subject_id": subject, "prediction_time": time},
        "type": {"subject_id": ["P918273"], "prediction_time": time, "boolean_value": [True]},
        "null": {"subject_id": subject, "prediction_time": time, "boolean_value": pl.Series([None], dtype=pl.Boolean)},
        "both": {"subject_id": subject * 2, "prediction_time": time * 2, "boolean_value": [True, False]},
    }
    for name, columns in broken.items():
        with pytest.raises(InputError, match=name + r"\.parquet") as caught:
            labels_file(tmp_path / f"{name}.parquet", **columns).cohort(meds)
        assert "918273" not in str(caught.value)
    (tmp_path / "text.parquet").write_text("subject_id,prediction_time")
    for missing in ("text.parquet", "nowhere.parquet"):
        with pytest.raises(InputError, match=missing):
            MedsLabels("labels", str(tmp_path / missing)).cohort(meds)


def test_fingerprint_of_labels_follows_the_content_not_the_path(tmp_path):
    columns = {"subject_id": [1], "prediction_time": [at(0)], "boolean_value": [True]}
    first = labels_file(tmp_path / "a.parquet", **columns)
    same = labels_file(tmp_path / "b.parquet", **columns)
    other = labels_file(tmp_path / "c.parquet", **{**columns, "boolean_value": [False]})
    assert first.fingerprint() == same.fingerprint() != other.fingerprint()


# ---- all tasks


def test_one_class_in_a_split_names_the_counts_and_the_remedy():
    good = dict.fromkeys(SPLITS, (2, 3))
    check_classes("kidney", good, {})
    with pytest.raises(InputError, match=r"kidney.*tuning 0/3.*dropped: too young: 4.*split\.seed") as caught:
        check_classes("kidney", {**good, "tuning": (0, 3)}, {"too young": 4, "too old": 0})
    assert "too old" not in str(caught.value)
    with pytest.raises(InputError, match="no sample at all"):
        check_classes("kidney", {}, {})


def test_fingerprints_differ_by_each_setting():
    variants = [TASK, replace(TASK, lead_days=90), replace(TASK, icd9=["428"]), READMISSION, MORTALITY]
    assert len({task.fingerprint() for task in variants}) == len(variants)


@pytest.mark.skipif("EHRLAB_MIMIC3_DEMO" not in os.environ, reason="EHRLAB_MIMIC3_DEMO names no MIMIC-III demo")
def test_every_stay_of_the_real_demo_is_a_sample_or_counted(tmp_path):
    from ehrlab.data.meds import MedsDataset, SplitSettings, build
    from ehrlab.data.sources import open_mimic

    build(open_mimic(Path(os.environ["EHRLAB_MIMIC3_DEMO"])), tmp_path, SplitSettings(), simulated=False)
    meds = MedsDataset.open(tmp_path)
    cohort = READMISSION.cohort(meds)
    assert cohort.samples.height + sum(cohort.dropped.values()) == 129  # admissions; none of them overlap
    assert cohort.samples["boolean_value"].sum() == 11
    assert MORTALITY.cohort(meds).samples.height == 14  # patients with two admissions or more
