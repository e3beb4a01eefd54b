"""MIMIC-IV: two ICD versions in one table, anchored ages, three modules."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_mimic
from ehrlab.data.sources.mimic4 import Mimic4
from raw_tables import codes_of, dataset_of, events_of, write_table

MEASURED = "subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom"


def write_mimic4(root: Path, suffix: str = ".csv.gz", race: str = "race") -> Path:
    def write(name: str, header: str, rows: list[list[object]]) -> None:
        write_table(root / (name + suffix), header, rows)

    write(
        "hosp/patients",
        "subject_id,gender,anchor_age,anchor_year,anchor_year_group,dod",
        [
            [10000032, "F", 52, 2180, "2014 - 2016", "2180-09-09"],
            [10000048, "M", 91, 2150, "2008 - 2010", ""],
            [10000055, "M", 40, 2150, "2008 - 2010", ""],
            [10000061, "F", 0, 2150, "2008 - 2010", ""],
        ],
    )
    write(
        "hosp/admissions",
        f"subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location,{race},"
        "hospital_expire_flag",
        [
            [10000032, 201, "2180-05-06 22:23:00", "2180-05-07 17:15:00", "", "URGENT", "HOME", "WHITE", 0],
            [
                10000048,
                202,
                "2150-05-06 22:23:00",
                "2150-05-07 17:15:00",
                "2150-05-07 17:00:00",
                "EW EMER.",
                "DIED",
                "UNKNOWN",
                1,
            ],
        ],
    )
    coded = "subject_id,hadm_id,seq_num,icd_code,icd_version"
    write(
        "hosp/diagnoses_icd",
        coded,
        [
            [10000032, 201, 1, "5723", 9],
            [10000032, 201, 2, "I509", 10],
            [10000032, 201, 3, "0389", 9],
            [10000048, 202, 1, "E119", 10],
            [10000048, 202, 2, "E8120", 9],
        ],
    )
    write("hosp/procedures_icd", coded, [[10000032, 201, 1, "5491", 9], [10000048, 202, 1, "02HV33Z", 10]])
    write(
        "hosp/prescriptions",
        "subject_id,hadm_id,pharmacy_id,starttime,stoptime,drug,ndc",
        [[10000032, 201, 1, "2180-05-07 01:00:00", "", "Furosemide", "0"]],
    )
    write("hosp/labevents", MEASURED, [[10000032, "", 50868, "2180-03-01 08:00:00", "12", "12", "mEq/L"]])
    write(
        "icu/icustays",
        "subject_id,hadm_id,stay_id,first_careunit,last_careunit,intime,outtime,los",
        [
            [
                10000032,
                201,
                9,
                "Medical ICU (MICU)",
                "Medical ICU (MICU)",
                "2180-05-06 23:00:00",
                "2180-05-07 09:00:00",
                0.4,
            ]
        ],
    )
    write(
        "hosp/d_icd_diagnoses",
        "icd_code,icd_version,long_title",
        [["E119", 10, "Ours: type 2 diabetes"], ["E8120", 9, "Ours: collision"]],
    )
    write("icu/chartevents", MEASURED, [[10000032, 201, 220045, "2180-05-07 00:00:00", "91", "91", "bpm"]])
    write(
        "icu/inputevents",
        "subject_id,hadm_id,stay_id,starttime,endtime,itemid,amount,amountuom,rate,rateuom,statusdescription",
        [
            [
                10000032,
                201,
                9,
                "2180-05-07 02:00:00",
                "2180-05-07 03:00:00",
                222315,
                2,
                "units",
                2.4,
                "units/hour",
                "Paused",
            ],
            [
                10000032,
                201,
                9,
                "2180-05-07 03:00:00",
                "2180-05-07 03:01:00",
                225798,
                500,
                "ml",
                "",
                "",
                "FinishedRunning",
            ],
        ],
    )
    write(
        "icu/procedureevents",
        "subject_id,hadm_id,stay_id,starttime,endtime,itemid,value,valueuom,statusdescription",
        [[10000032, 201, 9, "2180-05-07 04:00:00", "2180-05-07 08:00:00", 225794, 240, "min", "FinishedRunning"]],
    )
    note = "note_id,subject_id,hadm_id,note_type,note_seq,charttime,storetime,text"
    write("note/discharge", note, [["a", 10000032, 201, "DS", 1, "2180-05-07 00:00:00", "", "Home.\n\nWell."]])
    write("note/radiology", note, [["b", 10000032, "", "RR", 1, "2180-05-06 23:00:00", "", "Chest, clear"]])
    return root


@pytest.fixture(params=[".csv", ".csv.gz"])
def root(tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    return write_mimic4(tmp_path / "raw", request.param)


def test_hosp_folder_means_mimic4(root: Path) -> None:
    assert isinstance(open_mimic(root), Mimic4)


def test_icd_versions_mix_within_a_patient(root: Path) -> None:
    events = events_of(open_mimic(root))
    assert codes_of(events, 10000032, "DIAGNOSIS") == [
        "DIAGNOSIS//ICD//9//572.3",
        "DIAGNOSIS//ICD//10//I50.9",
        "DIAGNOSIS//ICD//9//038.9",
    ]
    # The same letter opens an external cause in one version and diabetes in the other.
    assert codes_of(events, 10000048, "DIAGNOSIS") == ["DIAGNOSIS//ICD//10//E11.9", "DIAGNOSIS//ICD//9//E812.0"]
    assert codes_of(events, 10000048, "PROCEDURE") == ["PROCEDURE//ICD//10//02HV33Z"]


def test_age_at_any_date_is_the_anchor_age_plus_the_years_between(root: Path) -> None:
    births = dict(events_of(open_mimic(root)).filter(code="MEDS_BIRTH").select("subject_id", "time").iter_rows())
    assert births[10000032] == datetime(2128, 1, 1)
    assert births[10000048] == datetime(2059, 1, 1)  # top-coded at 91
    assert births[10000061] == datetime(2150, 1, 1)


def test_death_out_of_hospital_closes_its_day(root: Path) -> None:
    deaths = dict(events_of(open_mimic(root)).filter(code="MEDS_DEATH").select("subject_id", "time").iter_rows())
    assert deaths == {10000032: datetime(2180, 9, 9, 23, 59, 59), 10000048: datetime(2150, 5, 7, 17)}


def test_all_modules_are_read(root: Path) -> None:
    source = open_mimic(root, ["drugs", "labs", "icu_stays", "vitals", "notes"])
    events = events_of(source)
    assert source.provides == {"visits", "demographics", "labs", "stays", "notes", "text"}
    assert codes_of(events, 10000032)[2:] == [
        "MEDS_BIRTH",
        "LAB//50868//mEq/L",
        "HOSPITAL_ADMISSION//URGENT",
        "ICU_ADMISSION//MEDICAL ICU (MICU)",
        "NOTE//RADIOLOGY",
        "VITAL//220045//bpm",
        "DRUG//FUROSEMIDE",
        "ICU_DISCHARGE//MEDICAL ICU (MICU)",
        "HOSPITAL_DISCHARGE//HOME",
        "NOTE//DISCHARGE SUMMARY",  # midnight = a date without a time: it closes the day
        "MEDS_DEATH",
    ]
    assert events.filter(code="NOTE//RADIOLOGY").select("text_value", "visit_id").row(0) == ("Chest, clear", None)
    assert events.filter(code="NOTE//DISCHARGE SUMMARY")["text_value"].item() == "Home.\n\nWell."


def test_what_is_given_and_done_in_intensive_care_is_read(root: Path) -> None:
    events = events_of(open_mimic(root, ["inputs", "icu_procedures"]))
    found = events.filter(pl.col("code").str.contains("^(INPUT|ICU_PROCEDURE)//"))
    assert found.select("time", "code", "numeric_value", "visit_id").rows() == [
        (datetime(2180, 5, 7, 2), "INPUT//222315//units/hour", pytest.approx(2.4), 201),
        (datetime(2180, 5, 7, 3), "INPUT//225798//ml", 500.0, 201),
        (datetime(2180, 5, 7, 4), "ICU_PROCEDURE//225794", None, 201),
    ]


def test_names_of_the_release_win_over_the_code_lists(root: Path) -> None:
    names = dict(dataset_of(open_mimic(root)).codes().select("code", "description").iter_rows())
    assert names["DIAGNOSIS//ICD//10//E11.9"] == "Ours: type 2 diabetes"
    assert names["DIAGNOSIS//ICD//9//E812.0"] == "Ours: collision"
    assert names["DIAGNOSIS//ICD//10//I50.9"] == "Heart failure, unspecified"


def test_first_version_calls_race_ethnicity(tmp_path: Path) -> None:
    events = events_of(open_mimic(write_mimic4(tmp_path / "raw", race="ethnicity")))
    assert codes_of(events, 10000032, "RACE") == ["RACE//WHITE"]
    assert codes_of(events, 10000048, "RACE") == ["RACE//UNKNOWN"]


def test_times_are_sorted_with_static_events_first(root: Path) -> None:
    events = events_of(open_mimic(root))
    for (_,), own in events.group_by("subject_id"):
        assert own["time"].is_sorted(nulls_last=False)
        assert own["time"].head(2).null_count() == 2
    assert events["subject_id"].is_sorted()


def test_notes_need_the_note_module(root: Path) -> None:
    for path in (root / "note").iterdir():
        path.unlink()
    with pytest.raises(InputError, match=r"MIMIC-IV-Note module.*found neither"):
        open_mimic(root, ["notes"])


def test_code_of_the_other_version_is_malformed(root: Path) -> None:
    path = next((root / "hosp").glob("diagnoses_icd*"))
    write_table(path, "subject_id,hadm_id,seq_num,icd_code,icd_version", [[10000032, 201, 1, "I509", 9]])
    with pytest.raises(InputError, match="malformed icd_code"):
        events_of(open_mimic(root, ["diagnoses"]))


def test_table_outside_its_module_is_not_taken(root: Path) -> None:
    path = next((root / "icu").glob("chartevents*"))
    path.rename(root / "hosp" / path.name)
    with pytest.raises(InputError, match=r"chartevents.*/icu"):
        open_mimic(root, ["vitals"])
