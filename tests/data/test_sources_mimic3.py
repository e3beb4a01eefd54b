"""MIMIC-III: every spelling of its files, and the traps of its content."""

from __future__ import annotations

import gzip
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_mimic
from ehrlab.data.sources.mimic3 import Mimic3, notes
from ehrlab.data.sources.raw import Events, RawTable
from raw_tables import codes_of, dataset_of, events_of, write_table

Rows = list[list[object]]

ALL = ("diagnoses", "procedures", "drugs", "labs", "icu_stays", "vitals", "inputs", "icu_procedures", "notes")

# name -> header, rows. Eight patients; 7 and 8 are over 89, 8 was never admitted with a known race.
TABLES: dict[str, tuple[str, Rows]] = {
    "PATIENTS": (
        "row_id,subject_id,gender,dob,dod,dod_hosp,dod_ssn,expire_flag",
        [
            [1, 1, "F", "2100-03-05 00:00:00", "2165-08-12 00:00:00", "", "2165-08-12 00:00:00", 1],
            [2, 2, "M", "2110-01-01 00:00:00", "", "", "", 0],
            [3, 3, "F", "2110-01-01 00:00:00", "", "", "", 0],
            [4, 4, "M", "2110-01-01 00:00:00", "", "", "", 0],
            [5, 5, "M", "2110-01-01 00:00:00", "", "", "", 0],
            [6, 6, "", "2110-01-01 00:00:00", "", "", "", 0],
            [7, 7, "M", "1850-01-01 00:00:00", "2150-06-02 00:00:00", "2150-06-02 00:00:00", "", 1],
            [8, 8, "F", "1860-01-01 00:00:00", "", "", "", 0],
        ],
    ),
    "ADMISSIONS": (
        "row_id,subject_id,hadm_id,admittime,dischtime,deathtime,admission_type,discharge_location,ethnicity,"
        "diagnosis,hospital_expire_flag",
        [
            [1, 1, 12, "2164-10-23 21:09:00", "2164-11-01 17:15:00", "", "EMERGENCY", "HOME", "WHITE", "SEPSIS", 0],
            [2, 1, 11, "2160-01-01 10:00:00", "2160-01-03 10:00:00", "", "ELECTIVE", "SNF", "UNABLE TO OBTAIN", "", 0],
            [3, 2, 21, "2160-01-01 10:00:00", "2160-01-03 10:00:00", "", "URGENT", "", "ASIAN", 'A, "B"\nC', 0],
            [4, 3, 31, "2160-01-05 10:00:00", "2160-01-04 10:00:00", "", "URGENT", "HOME", "ASIAN", "", 0],
            [
                5,
                7,
                71,
                "2150-06-01 10:00:00",
                "2150-06-02 11:30:00",
                "2150-06-02 11:00:00",
                "EMERGENCY",
                "DEAD/EXPIRED",
                "UNKNOWN/NOT SPECIFIED",
                "",
                1,
            ],
            [
                6,
                8,
                81,
                "2160-01-01 10:00:00",
                "2160-01-03 10:00:00",
                "",
                "URGENT",
                "HOME",
                "UNKNOWN/NOT SPECIFIED",
                "",
                0,
            ],
        ],
    ),
    "DIAGNOSES_ICD": (
        "row_id,subject_id,hadm_id,seq_num,icd9_code",
        [
            [1, 1, 12, 2, "4280"],
            [2, 1, 12, 1, "00845"],
            [3, 1, 11, 1, "V1251"],
            [4, 2, 21, 1, "E8120"],
            [5, 2, 21, "", ""],
            [6, 7, 71, 1, "496"],
        ],
    ),
    "PROCEDURES_ICD": ("row_id,subject_id,hadm_id,seq_num,icd9_code", [[1, 1, 12, 1, "0066"], [2, 2, 21, 1, "3995"]]),
    "PRESCRIPTIONS": (
        "row_id,subject_id,hadm_id,startdate,enddate,drug_type,drug,ndc",
        [
            [1, 1, 12, "2164-10-24 00:00:00", "", "MAIN", "Aspirin  ", "0"],
            [2, 1, 12, "", "", "MAIN", "Heparin", "0"],
            [3, 2, 21, "2160-01-02 00:00:00", "", "MAIN", "NA", "00006494300"],
            [4, 99, 991, "2160-01-02 00:00:00", "", "MAIN", "Stranger", "0"],
        ],
    ),
    "LABEVENTS": (
        "row_id,subject_id,hadm_id,itemid,charttime,value,valuenum,valueuom,flag",
        [
            [1, 1, "", 50868, "2164-09-24 20:21:00", "19", "19", "mEq/L", ""],
            [2, 1, 12, 50868, "2164-10-24 20:21:00", "NEG", "", "", "abnormal"],
            [3, 2, 21, 50999, "2160-01-02 05:00:00", "1.5", "1.5", "mg/dL", ""],
        ],
    ),
    "D_LABITEMS": ("row_id,itemid,label,fluid,category,loinc_code", [[1, 50868, "Anion Gap", "Blood", "Chem", ""]]),
    "ICUSTAYS": (
        "row_id,subject_id,hadm_id,icustay_id,first_careunit,last_careunit,intime,outtime,los",
        [
            [1, 1, 12, 5, "MICU", "CCU", "2164-10-23 21:10:15", "2164-10-25 12:21:07", 1.6],
            [2, 2, 21, 6, "SICU", "SICU", "2160-01-01 11:00:00", "", ""],
        ],
    ),
    "CHARTEVENTS": (
        "row_id,subject_id,hadm_id,icustay_id,itemid,charttime,value,valuenum,valueuom,warning,error",
        [
            [1, 1, 12, 5, 211, "2164-10-23 22:00:00", "80", "80", "BPM", 0, 0],
            [2, 1, 12, 5, 211, "2164-10-23 23:00:00", "800", "800", "BPM", 0, 1],
            [3, 2, 21, 6, 211, "2160-01-01 12:00:00", "90", "90", "BPM", "", ""],
        ],
    ),
    "INPUTEVENTS_MV": (
        "row_id,subject_id,hadm_id,icustay_id,starttime,endtime,itemid,amount,amountuom,rate,rateuom,statusdescription",
        [
            [1, 1, 12, 5, "2164-10-24 01:00:00", "2164-10-24 03:00:00", 221906, 2, "mg", 0.1, "mcg/kg/min", "Changed"],
            [2, 1, 12, 5, "2164-10-24 02:00:00", "2164-10-24 02:01:00", 225799, 60, "ml", "", "", "FinishedRunning"],
            [
                3,
                1,
                12,
                5,
                "2164-10-24 03:00:00",
                "2164-10-24 04:00:00",
                221906,
                9,
                "mg",
                0.9,
                "mcg/kg/min",
                "Rewritten",
            ],
        ],
    ),
    "INPUTEVENTS_CV": (
        "row_id,subject_id,hadm_id,icustay_id,charttime,itemid,amount,amountuom,rate,rateuom,stopped",
        [
            [1, 2, 21, 6, "2160-01-01 13:00:00", 30120, "", "", 0.05, "mcgkgmin", ""],
            [2, 2, 21, 6, "2160-01-01 14:00:00", 30120, "", "", "", "", "Stopped"],
        ],
    ),
    "PROCEDUREEVENTS_MV": (
        "row_id,subject_id,hadm_id,icustay_id,starttime,endtime,itemid,value,valueuom,statusdescription",
        [
            [1, 1, 12, 5, "2164-10-24 05:00:00", "2164-10-25 05:00:00", 225792, 1440, "min", "FinishedRunning"],
            [2, 1, 12, 5, "2164-10-24 06:00:00", "2164-10-24 07:00:00", 225794, 60, "min", "Rewritten"],
        ],
    ),
    "D_ITEMS": ("row_id,itemid,label", [[1, 225792, "Invasive Ventilation"], [2, 211, "Heart Rate"]]),
    "NOTEEVENTS": (
        "row_id,subject_id,hadm_id,chartdate,charttime,storetime,category,description,cgid,iserror,text",
        [
            [1, 1, 12, "2164-11-01", "", "", "Discharge summary", "Report", "", "", 'Line, one\nsays "two"\n\nNA'],
            [2, 1, 12, "2164-10-24", "2164-10-24 09:00:00", "", "Nursing ", "Report", "", "", "NA"],
            [3, 1, 12, "2164-10-24", "2164-10-24 09:00:00", "", "Nursing", "Report", "", "1", "retracted"],
        ],
    ),
}


def write_mimic3(
    root: Path, suffix: str = ".csv", upper: bool = True, only: Sequence[str] | None = None, **changed: Rows
) -> Path:
    for name, (header, rows) in TABLES.items():
        if only is None or name in only:
            file = (name if upper else name.lower()) + suffix
            write_table(root / file, header, changed.get(name, rows), upper=upper)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_mimic3(tmp_path / "raw")


@pytest.mark.parametrize(("suffix", "upper"), [(".csv", True), (".csv.gz", False), (".CSV", False), (".CSV.GZ", True)])
def test_every_spelling_gives_the_same_events(root: Path, tmp_path: Path, suffix: str, upper: bool) -> None:
    other = write_mimic3(tmp_path / "other", suffix, upper)
    assert_frame_equal(events_of(open_mimic(other, ALL)), events_of(open_mimic(root, ALL)))


def test_events_do_not_depend_on_the_number_of_buckets(root: Path) -> None:
    source = open_mimic(root, ALL)
    one, many = dataset_of(source), dataset_of(source, bucket_bytes=250)
    assert len(one.shards()) == 1
    assert len(many.shards()) > 4
    assert_frame_equal(many.scan().sort("subject_id", maintain_order=True).collect(), one.scan().collect())
    for name in ("codes.parquet", "subject_splits.parquet"):
        assert (one.path / "metadata" / name).read_bytes() == (many.path / "metadata" / name).read_bytes()


def test_a_billing_code_happens_at_the_discharge_of_its_admission(root: Path) -> None:
    events = events_of(open_mimic(root))
    found = events.filter(pl.col("code").str.contains("^(DIAGNOSIS|PROCEDURE)//"), subject_id=1)
    late, early = datetime(2164, 11, 1, 17, 15), datetime(2160, 1, 3, 10)
    assert found.select("time", "code", "visit_id", "sequence").rows() == [
        (early, "DIAGNOSIS//ICD//9//V12.51", 11, 1),
        (late, "DIAGNOSIS//ICD//9//428.0", 12, 2),
        (late, "DIAGNOSIS//ICD//9//008.45", 12, 1),
        (late, "PROCEDURE//ICD//9//00.66", 12, 1),
    ]


def test_null_codes_and_undated_drugs_are_dropped_and_counted(root: Path) -> None:
    dataset = dataset_of(open_mimic(root))
    assert dataset.counts["dropped"] == {
        "diagnoses": {"no icd9_code (expected an ICD-9 diagnosis code)": 1},
        "drugs": {
            "no startdate (expected a date YYYY-MM-DD HH:MM:SS)": 1,
            "a subject that the patient table lacks": 1,
        },
    }
    assert dataset.counts["subjects"] == 8


def test_drugs_are_known_by_name_and_the_text_na_is_a_name(root: Path) -> None:
    events = events_of(open_mimic(root))
    assert codes_of(events, 1, "DRUG") == ["DRUG//ASPIRIN"]
    assert codes_of(events, 2, "DRUG") == ["DRUG//NA"]


def test_patients_over_89_are_ninety_at_their_first_admission(root: Path) -> None:
    births = events_of(open_mimic(root)).filter(code="MEDS_BIRTH").select("subject_id", "time")
    found = dict(births.iter_rows())
    assert found[7] == datetime(2060, 6, 1, 10)
    assert found[8] == datetime(2070, 1, 1, 10)
    assert found[1] == datetime(2100, 3, 5)


def test_race_is_the_first_that_is_known(root: Path) -> None:
    events = events_of(open_mimic(root))
    assert [codes_of(events, subject, "RACE") for subject in (1, 2, 4, 8)] == [
        ["RACE//WHITE"],
        ["RACE//ASIAN"],
        ["RACE//UNKNOWN"],
        ["RACE//UNKNOWN"],
    ]
    assert codes_of(events, 6, "GENDER") == ["GENDER//UNKNOWN"]


def test_death_is_the_time_in_hospital_else_the_end_of_the_day(root: Path) -> None:
    events = events_of(open_mimic(root))
    deaths = dict(events.filter(code="MEDS_DEATH").select("subject_id", "time").iter_rows())
    assert deaths == {1: datetime(2165, 8, 12, 23, 59, 59), 7: datetime(2150, 6, 2, 11)}


def test_discharge_says_died_whatever_the_release_calls_it(root: Path) -> None:
    events = events_of(open_mimic(root))
    assert codes_of(events, 7, "HOSPITAL") == ["HOSPITAL_ADMISSION//EMERGENCY", "HOSPITAL_DISCHARGE//DIED"]
    assert codes_of(events, 2, "HOSPITAL_D") == ["HOSPITAL_DISCHARGE//UNK"]


def test_a_stay_never_ends_before_it_begins(root: Path) -> None:
    stay = events_of(open_mimic(root)).filter(pl.col("code").str.starts_with("HOSPITAL_"), subject_id=3)
    assert stay["time"].to_list() == [datetime(2160, 1, 5, 10)] * 2
    assert [code.split("//")[0] for code in stay["code"]] == ["HOSPITAL_ADMISSION", "HOSPITAL_DISCHARGE"]


def test_labs_without_an_admission_are_kept_outside_of_visits(root: Path) -> None:
    labs = events_of(open_mimic(root, ["labs"])).filter(pl.col("code").str.starts_with("LAB//"))
    assert labs.select("subject_id", "code", "numeric_value", "text_value", "visit_id").rows() == [
        (1, "LAB//50868//mEq/L", 19.0, None, None),
        (1, "LAB//50868//UNK", None, "NEG", 12),
        (2, "LAB//50999//mg/dL", 1.5, None, 21),
    ]


def test_lab_items_are_named_whatever_their_unit(root: Path) -> None:
    names = dict(dataset_of(open_mimic(root, ["labs"])).codes().select("code", "description").iter_rows())
    assert names["LAB//50868//mEq/L"] == names["LAB//50868//UNK"] == "Anion Gap"


def test_struck_out_chart_values_and_retracted_notes_are_passed_over(root: Path) -> None:
    events = events_of(open_mimic(root, ["vitals", "notes"]))
    assert events.filter(code="VITAL//211//BPM")["numeric_value"].to_list() == [80.0, 90.0]
    assert codes_of(events, 1, "NOTE") == ["NOTE//NURSING", "NOTE//DISCHARGE SUMMARY"]


def test_what_is_given_happens_at_its_start_with_the_rate_else_the_amount(root: Path) -> None:
    events = events_of(open_mimic(root, ["inputs"])).filter(pl.col("code").str.starts_with("INPUT//"))
    assert events.select("subject_id", "time", "code", "numeric_value", "text_value", "visit_id").rows() == [
        (1, datetime(2164, 10, 24, 1), "INPUT//221906//mcg/kg/min", pytest.approx(0.1), None, 12),
        (1, datetime(2164, 10, 24, 2), "INPUT//225799//ml", 60.0, None, 12),
        (2, datetime(2160, 1, 1, 13), "INPUT//30120//mcgkgmin", pytest.approx(0.05), None, 21),
        (2, datetime(2160, 1, 1, 14), "INPUT//30120//UNK", None, None, 21),
    ]


@pytest.mark.parametrize(("system", "subjects"), [("MV", [1, 1]), ("CV", [2, 2])])
def test_either_table_of_inputs_may_be_missing(tmp_path: Path, system: str, subjects: list[int]) -> None:
    root = write_mimic3(tmp_path / "raw", only=["PATIENTS", "ADMISSIONS", f"INPUTEVENTS_{system}"])
    events = events_of(open_mimic(root, ["inputs"])).filter(pl.col("code").str.starts_with("INPUT//"))
    assert events["subject_id"].to_list() == subjects


def test_a_procedure_of_intensive_care_is_known_by_its_item_and_does_not_say_how_long_it_will_last(root: Path) -> None:
    dataset = dataset_of(open_mimic(root, ["icu_procedures"]))
    found = dataset.scan().filter(pl.col("code").str.starts_with("ICU_PROCEDURE//")).collect()
    assert found.select("subject_id", "time", "code", "numeric_value", "text_value", "visit_id").rows() == [
        (1, datetime(2164, 10, 24, 5), "ICU_PROCEDURE//225792", None, None, 12)
    ]
    names = dict(dataset.codes().select("code", "description").iter_rows())
    assert names["ICU_PROCEDURE//225792"] == "Invasive Ventilation"


def test_inputs_without_a_time_are_refused(tmp_path: Path) -> None:
    rows = [[*row[:4], "", *row[5:]] for row in TABLES["INPUTEVENTS_MV"][1]]
    root = write_mimic3(tmp_path / "raw", INPUTEVENTS_MV=rows)
    with pytest.raises(InputError, match=r"table inputs .*no starttime or charttime"):
        events_of(open_mimic(root, ["inputs"]))


@pytest.mark.parametrize(
    ("table", "name"),
    [("inputs", "inputevents_mv"), ("icu_procedures", "procedureevents_mv"), ("vitals", "chartevents")],
)
def test_a_table_of_intensive_care_is_missed_only_where_it_was_asked_for(tmp_path: Path, table: str, name: str) -> None:
    root = write_mimic3(tmp_path / "raw", only=["PATIENTS", "ADMISSIONS", "DIAGNOSES_ICD"])
    open_mimic(root, ["diagnoses"])
    with pytest.raises(
        InputError, match=rf"table {name} \(was asked for in data.source.tables\).*found admissions, diagnoses"
    ):
        open_mimic(root, [table])


def test_notes_keep_their_lines_and_quotes_and_undated_ones_close_the_day(root: Path) -> None:
    events = events_of(open_mimic(root, ["notes"]))
    summary = events.row(by_predicate=pl.col("code") == "NOTE//DISCHARGE SUMMARY", named=True)
    assert summary["text_value"] == 'Line, one\nsays "two"\n\nNA'
    assert summary["time"] == datetime(2164, 11, 1, 23, 59, 59)
    assert events.row(by_predicate=pl.col("code") == "NOTE//NURSING", named=True)["text_value"] == "NA"


def test_lines_within_notes_survive_the_borders_of_streamed_chunks(tmp_path: Path) -> None:
    # Some ten chunks of a compressed file; every text has quotes and line breaks at other places.
    rows: Rows = [
        [i, 1, 12, "2164-10-24", "2164-10-24 09:00:00", "", "Nursing", "", "", "", f'a\n"{"x" * (i % 97)}",\n{i}']
        for i in range(40_000)
    ]
    root = write_mimic3(tmp_path / "raw", ".csv.gz", NOTEEVENTS=rows)
    found = events_of(open_mimic(root, ["notes"])).filter(pl.col("code").str.starts_with("NOTE//"))
    assert found["text_value"].to_list() == [row[-1] for row in rows]


def test_stay_without_an_end_has_only_a_beginning(root: Path) -> None:
    events = events_of(open_mimic(root, ["icu_stays"]))
    assert codes_of(events, 1, "ICU") == ["ICU_ADMISSION//MICU", "ICU_DISCHARGE//CCU"]
    assert codes_of(events, 2, "ICU") == ["ICU_ADMISSION//SICU"]


@pytest.mark.parametrize(
    ("tables", "expected"),
    [
        (["diagnoses"], {"visits", "demographics"}),
        (["labs", "icu_stays"], {"visits", "demographics", "labs"}),
        (["icu_stays", "vitals", "notes"], {"visits", "demographics", "stays", "notes", "text"}),
        (["icu_stays", "inputs", "icu_procedures"], {"visits", "demographics"}),
        (["diagnoses", "drugs"], {"visits", "demographics", "codes"}),
    ],
)
def test_source_provides_what_its_tables_hold(root: Path, tables: list[str], expected: set[str]) -> None:
    assert open_mimic(root, tables).provides == expected


def test_empty_note_table_gives_no_rows_but_may_not_be_asked_for(tmp_path: Path) -> None:
    root = write_mimic3(tmp_path / "raw", ".csv.gz", NOTEEVENTS=[])
    with pytest.raises(InputError, match=r"table notes .*only the header.*leave the table out"):
        open_mimic(root, ["notes"])
    layout = Mimic3.layouts["notes"]
    table = RawTable("notes", [root / "NOTEEVENTS.csv.gz"], layout.columns, may_be_empty=True)
    assert notes(Events(table)).frame.collect().is_empty()


# ------------------------------------------------------------------------------------------------- bad input


def test_missing_table_is_named_with_what_was_found(tmp_path: Path) -> None:
    root = write_mimic3(tmp_path / "raw", only=["PATIENTS", "ADMISSIONS"])
    with pytest.raises(InputError, match=r"diagnoses_icd.*data.source.tables.*found admissions, patients"):
        open_mimic(root)


def test_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere.*expected a folder"):
        open_mimic(tmp_path / "nowhere")


def test_missing_column_is_named_with_those_found(root: Path) -> None:
    write_table(root / "DIAGNOSES_ICD.csv", "row_id,subject_id,hadm_id,seq_num,code", [[1, 1, 12, 1, "4280"]])
    with pytest.raises(InputError, match=r"DIAGNOSES_ICD.csv\): column 'icd9_code' is missing; found row_id, .*code"):
        open_mimic(root)


def test_unknown_table_name_is_refused(root: Path) -> None:
    with pytest.raises(InputError, match=r"unknown table 'drug'; expected some of diagnoses"):
        open_mimic(root, ["drug"])


def test_copy_of_a_table_is_refused(root: Path) -> None:
    write_table(root / "patients.csv.gz", *TABLES["PATIENTS"])
    with pytest.raises(InputError, match="several spellings"):
        open_mimic(root)


def test_malformed_date_is_counted_and_never_shown(tmp_path: Path) -> None:
    rows = [list(row) for row in TABLES["ADMISSIONS"][1]]
    rows[1][3], rows[2][3] = "2160-13-77 99:00:00", "soon"
    root = write_mimic3(tmp_path / "raw", ADMISSIONS=rows)
    with pytest.raises(InputError, match=r"admissions .*ADMISSIONS.csv.* 2 rows .*admittime.*YYYY-MM-DD HH") as caught:
        events_of(open_mimic(root))
    assert "soon" not in str(caught.value)
    assert "2160" not in str(caught.value)


def test_column_without_any_date_is_refused(tmp_path: Path) -> None:
    rows = [[*row[:3], "x", *row[4:]] for row in TABLES["PATIENTS"][1]]
    root = write_mimic3(tmp_path / "raw", PATIENTS=rows)
    with pytest.raises(InputError, match="column 'dob' holds no dates"):
        events_of(open_mimic(root))


@pytest.mark.parametrize(("bad", "good", "refused"), [(1, 200, False), (3, 200, True)])
def test_malformed_codes_are_dropped_while_rare(tmp_path: Path, bad: int, good: int, refused: bool) -> None:
    rows: Rows = [[i, 1, 12, i, "4280"] for i in range(good)] + [[i, 1, 12, i, "D0001?"] for i in range(bad)]
    source = open_mimic(write_mimic3(tmp_path / "raw", DIAGNOSES_ICD=rows), ["diagnoses"])
    if refused:
        with pytest.raises(InputError, match=r"diagnoses .*3 rows \(1.48%\) have a malformed icd9_code.*at most 1%"):
            events_of(source)
    else:
        counts = dataset_of(source).counts["dropped"]["diagnoses"]
        assert counts == {"a malformed icd9_code (expected an ICD-9 diagnosis code)": 1}


def test_identifier_that_is_no_integer_is_refused(tmp_path: Path) -> None:
    rows = [*TABLES["DIAGNOSES_ICD"][1], [9, "x1", 12, 1, "4280"]]
    root = write_mimic3(tmp_path / "raw", DIAGNOSES_ICD=rows)
    with pytest.raises(InputError, match="malformed subject_id"):
        events_of(open_mimic(root))


@pytest.mark.parametrize("table", ["PATIENTS", "ADMISSIONS"])
def test_key_that_occurs_twice_is_refused(tmp_path: Path, table: str) -> None:
    rows = TABLES[table][1]
    root = write_mimic3(tmp_path / "raw", **{table: [*rows, rows[0]]})
    with pytest.raises(InputError, match="found some twice"):
        events_of(open_mimic(root))


@pytest.mark.parametrize("damage", ["not gzip", "truncated", "empty"])
def test_unreadable_file_is_named(tmp_path: Path, damage: str) -> None:
    root = write_mimic3(tmp_path / "raw", ".csv.gz")
    path = root / "DIAGNOSES_ICD.csv.gz"
    write_table(path, TABLES["DIAGNOSES_ICD"][0], [[i, 1, 12, i, f"{i % 90000 + 1000:05d}"] for i in range(60_000)])
    whole = path.read_bytes()
    path.write_bytes({"not gzip": b"hello", "truncated": whole[: len(whole) // 2], "empty": gzip.compress(b"")}[damage])
    with pytest.raises(InputError, match=r"DIAGNOSES_ICD.csv.gz"):
        events_of(open_mimic(root))


def test_row_with_too_many_fields_names_the_file_and_not_the_row(root: Path) -> None:
    path = root / "DIAGNOSES_ICD.csv"
    path.write_text(path.read_text() + '"7","1","12","3","secret","4280","4281"\n')
    with pytest.raises(InputError, match=r"DIAGNOSES_ICD.csv") as caught:
        events_of(open_mimic(root))
    assert "secret" not in str(caught.value)


def test_fingerprint_follows_files_and_settings(root: Path) -> None:
    before = open_mimic(root).fingerprint()
    assert open_mimic(root).fingerprint() == before
    assert open_mimic(root, ["diagnoses"]).fingerprint() != before
    path = root / "DIAGNOSES_ICD.csv"
    path.write_text(path.read_text().replace("4280", "4281"))
    assert open_mimic(root).fingerprint() != before
