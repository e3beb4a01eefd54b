"""TriNetX exports: flat or in folders, whole or in parts, under several names and date spellings."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_trinetx
from ehrlab.data.sources.ids import hash_ids
from raw_tables import codes_of, dataset_of, events_of, write_table

ALL = ("diagnoses", "procedures", "drugs", "labs", "vitals")
PATIENT = "patient_id,sex,race,ethnicity,year_of_birth,month_year_death,source_id"
ENCOUNTER = "encounter_id,patient_id,start_date,end_date,type,source_id"
CODED = "patient_id,encounter_id,code_system,code,principal_diagnosis_indicator,date,source_id"


def write_trinetx(root: Path, folders: bool = False, numeric: bool = True, dashes: bool = False) -> Path:
    """Five patients. `folders`: one per domain, alternative table names, gzip; `dashes`: timestamps, not YYYYMMDD."""

    def patient(number: int) -> str:
        return str(number) if numeric else f"p-{number:04d}"

    def day(text: str) -> str:
        return f"{text[:4]}-{text[4:6]}-{text[6:]} 00:00:00" if dashes and text else text

    def write(flat: str, nested: str, header: str, rows: list[list[object]]) -> None:
        write_table(root / (nested + ".csv.gz" if folders else flat + ".csv"), header, rows, upper=folders)

    write(
        "patient",
        "Patient/Patient",
        PATIENT,
        [
            [patient(1), "F", "White", "", 1950, "202002", "s"],
            [patient(2), "Male", "Unknown", "", 1960, "", "s"],
            [patient(3), "", "", "", "", "201912", "s"],
            [patient(4), "M", "Asian", "", 1970, "", "s"],
            [patient(5), "F", "Asian", "", 1980, "", "s"],
        ],
    )
    write(
        "encounter",
        "Encounter/encounter",
        ENCOUNTER,
        [
            ["e1", patient(1), day("20190304"), day("20190306"), "IMP", "s"],
            ["e2", patient(1), day("20190404"), "", "AMB", "s"],
            ["e1", patient(2), day("20180101"), day("20180101"), "", "s"],
            ["e4", patient(9), day("20180101"), day("20180101"), "AMB", "s"],
        ],
    )
    write(
        "diagnosis",
        "Diagnosis/diagnosis",
        CODED,
        [
            [patient(1), "e1", "ICD-10-CM", "I50.9", "P", day("20190304"), "s"],
            [patient(1), "e2", "ICD-9-CM", "4280", "S", day("20190404"), "s"],
            [patient(2), "e1", "SNOMED", "84114007", "S", day("20180101"), "s"],
            [patient(2), "e1", "ICD-10-CM", "N18.3", "S", "", "s"],
        ],
    )
    write(
        "procedure",
        "Procedure/procedure",
        CODED,
        [
            [patient(1), "e1", "CPT", "99213", "", day("20190304"), "s"],
            [patient(1), "e1", "ICD-10-PCS", "02HV33Z", "", day("20190305"), "s"],
            [patient(1), "e1", "ICD-9-CM", "39.95", "", day("20190306"), "s"],
            [patient(2), "e1", "HCPCS", "g0008", "", day("20180101"), "s"],
        ],
    )
    write(
        "medication_ingredient",
        "Medications/medication_drug",
        "patient_id,encounter_id,unique_id,code_system,code,start_date,route",
        [[patient(1), "e1", "u", "RxNorm", "1191", day("20190305"), ""]],
    )
    write(
        "lab_result",
        "Lab Results/lab_results",
        "patient_id,encounter_id,code_system,code,date,lab_result_num_val,lab_result_text_val,units_of_measure",
        [
            [patient(1), "e1", "LOINC", "2345-7", day("20190305"), "5.5", "", "mmol/L"],
            [patient(1), "e1", "TNX", "9000", day("20190306"), "", "positive", ""],
            [patient(1), "", "TNX", "TNX:9001", day("20190307"), "1", "", ""],
        ],
    )
    write(
        "vitals_signs",
        "Vital Signs/vital_signs",
        "patient_id,encounter_id,code_system,code,date,value,text_value,units_of_measure",
        [[patient(2), "e1", "LOINC", "8867-4", day("20180101"), "80", "", "/min"]],
    )
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_trinetx(tmp_path / "raw")


def test_code_systems_become_our_prefixes(root: Path) -> None:
    events = events_of(open_trinetx(root, ALL))
    assert codes_of(events, 1) == [
        "GENDER//F",
        "RACE//WHITE",
        "MEDS_BIRTH",
        "ENCOUNTER_START//IMP",
        "DIAGNOSIS//ICD//10//I50.9",
        "PROCEDURE//CPT//99213",
        "PROCEDURE//ICD//10//02HV33Z",
        "DRUG//RXNORM//1191",
        "LAB//2345-7//mmol/L",
        "ENCOUNTER_END//IMP",
        "PROCEDURE//ICD//9//39.95",
        "LAB//TNX:9000//UNK",
        "LAB//TNX:9001//UNK",
        "ENCOUNTER_START//AMB",
        "DIAGNOSIS//ICD//9//428.0",
        "MEDS_DEATH",
    ]
    assert codes_of(events, 2)[3:] == [
        "ENCOUNTER_START//UNK",
        "ENCOUNTER_END//UNK",
        "DIAGNOSIS//SNOMED//84114007",
        "PROCEDURE//HCPCS//G0008",
        "VITAL//8867-4///min",
    ]


@pytest.mark.parametrize("dashes", [False, True])
def test_layouts_and_date_spellings_give_the_same_events(root: Path, tmp_path: Path, dashes: bool) -> None:
    other = write_trinetx(tmp_path / "other", folders=True, dashes=dashes)
    assert_frame_equal(events_of(open_trinetx(other, ALL)), events_of(open_trinetx(root, ALL)))


def test_parts_of_a_split_table_are_one_table(root: Path, tmp_path: Path) -> None:
    whole = events_of(open_trinetx(root, ALL))
    lines = (root / "diagnosis.csv").read_text().splitlines()
    (root / "diagnosis.csv").unlink()
    for number, line in enumerate(lines[1:], start=1):
        (root / f"diagnosis{number:04d}.csv").write_text(f"{lines[0]}\n{line}\n")
    assert_frame_equal(events_of(open_trinetx(root, ALL)), whole)
    (root / "diagnosis.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(InputError, match="several spellings"):
        open_trinetx(root)


def test_events_do_not_depend_on_the_number_of_buckets(root: Path) -> None:
    source = open_trinetx(root, ALL)
    many = dataset_of(source, bucket_bytes=300)
    assert len(many.shards()) > 2
    assert_frame_equal(many.scan().sort("subject_id", maintain_order=True).collect(), events_of(source))


def test_text_ids_become_the_same_integers_everywhere(tmp_path: Path) -> None:
    events = events_of(open_trinetx(write_trinetx(tmp_path / "raw", numeric=False), ALL))
    expected = pl.select(hash_ids(pl.lit(pl.Series(["p-0001", "p-0002"])))).to_series().to_list()
    assert set(expected) <= set(events["subject_id"])
    assert events["subject_id"].n_unique() == 5
    assert events["subject_id"].min() >= 0  # type: ignore[operator]
    assert "DIAGNOSIS//ICD//10//I50.9" in codes_of(events, expected[0])


def test_hash_is_the_published_fnv1a() -> None:
    # Vectors of the FNV reference (draft-eastlake-fnv), without the last bit.
    texts = pl.Series(["", "a", None, "foobar", "ä"])
    digests = pl.select(hash_ids(pl.lit(texts))).to_series().to_list()
    assert digests[:4] == [0xCBF29CE484222325 >> 1, 0xAF63DC4C8601EC8C >> 1, None, 0x85944171F73967E8 >> 1]
    assert pl.select(hash_ids(pl.lit(texts[3:]))).to_series().to_list() == digests[3:]


def test_birth_is_midyear_and_death_ends_its_month(root: Path) -> None:
    events = events_of(open_trinetx(root))
    times = {
        (subject, code): time
        for subject, code, time in events.filter(pl.col("code").str.starts_with("MEDS_"))
        .select("subject_id", "code", "time")
        .iter_rows()
    }
    assert times[1, "MEDS_BIRTH"] == datetime(1950, 7, 1)
    assert times[1, "MEDS_DEATH"] == datetime(2020, 2, 29, 23, 59, 59)
    assert times[3, "MEDS_DEATH"] == datetime(2019, 12, 31, 23, 59, 59)
    assert (3, "MEDS_BIRTH") not in times


def test_sex_and_race_have_one_spelling(root: Path) -> None:
    events = events_of(open_trinetx(root))
    assert [codes_of(events, subject)[:2] for subject in (2, 3)] == [
        ["GENDER//M", "RACE//UNKNOWN"],
        ["GENDER//UNKNOWN", "RACE//UNKNOWN"],
    ]


def test_visit_is_the_hash_of_the_encounter(root: Path) -> None:
    events = events_of(open_trinetx(root, ALL)).filter(subject_id=1)
    e1, e2 = pl.select(hash_ids(pl.lit(pl.Series(["e1", "e2"])))).to_series().to_list()
    assert events.filter(code="DIAGNOSIS//ICD//10//I50.9")["visit_id"].item() == e1
    assert events.filter(code="DIAGNOSIS//ICD//9//428.0")["visit_id"].item() == e2
    assert events.filter(code="LAB//TNX:9001//UNK")["visit_id"].item() is None


def test_undated_facts_and_strangers_are_dropped_and_counted(root: Path) -> None:
    dropped = dataset_of(open_trinetx(root)).counts["dropped"]
    assert dropped == {
        "encounter": {"a subject that the patient table lacks": 2},
        "diagnoses": {"no date (expected a date YYYYMMDD)": 1},
    }


def test_renamed_columns_are_mapped(root: Path) -> None:
    path = root / "diagnosis.csv"
    whole = events_of(open_trinetx(root))
    path.write_text(path.read_text().replace("code_system", "Coding Scheme", 1).replace(",date,", ",Onset,", 1))
    with pytest.raises(InputError, match="'code_system' is missing"):
        open_trinetx(root)
    source = open_trinetx(root, columns={"diagnoses": {"code_system": "Coding Scheme", "date": "onset"}})
    assert_frame_equal(events_of(source), whole)
    assert source.fingerprint() != open_trinetx(root, ["drugs"]).fingerprint()


@pytest.mark.parametrize(
    ("columns", "message"),
    [({"diagnosis": {}}, "unknown table 'diagnosis'"), ({"diagnoses": {"day": "x"}}, "unknown column 'day'")],
)
def test_mapping_of_what_does_not_exist_is_refused(
    root: Path, columns: dict[str, dict[str, str]], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        open_trinetx(root, columns=columns)


def test_missing_table_lists_the_names_it_may_have(root: Path) -> None:
    (root / "medication_ingredient.csv").unlink()
    with pytest.raises(InputError, match=r"medication_ingredient or .*medication_drug.*found diagnosis, encounter"):
        open_trinetx(root)


def test_patient_twice_is_refused(root: Path) -> None:
    path = root / "patient.csv"
    path.write_text(path.read_text() + "1,F,White,,1950,,s\n")
    with pytest.raises(InputError, match="one row per patient_id"):
        events_of(open_trinetx(root))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [("20190404,s", "2019044,s", "malformed date"), ("4280", "42-80", "malformed code")],
)
def test_malformed_dates_and_codes_are_refused_without_showing_them(
    root: Path, old: str, new: str, message: str
) -> None:
    path = root / "diagnosis.csv"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))
    with pytest.raises(InputError, match=message) as caught:
        events_of(open_trinetx(root))
    assert new.split(",")[0] not in str(caught.value)


def test_month_of_death_must_be_a_month(root: Path) -> None:
    path = root / "patient.csv"
    path.write_text(path.read_text().replace("202002", "202013"))
    with pytest.raises(InputError, match=r"malformed month_year_death \(expected a month YYYYMM\)"):
        events_of(open_trinetx(root))
