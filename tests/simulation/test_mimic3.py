"""The MIMIC-III tables that the simulator writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_mimic
from ehrlab.simulation import codes, icu, labs, write_mimic3
from ehrlab.simulation.care import WORST
from ehrlab.simulation.population import simulate
from ehrlab.simulation.spec import BLOCK_SIZE
from raw_tables import events_of

# The columns of the release v1.4, in its order.
COLUMNS = {
    "PATIENTS": "ROW_ID SUBJECT_ID GENDER DOB DOD DOD_HOSP DOD_SSN EXPIRE_FLAG",
    "ADMISSIONS": "ROW_ID SUBJECT_ID HADM_ID ADMITTIME DISCHTIME DEATHTIME ADMISSION_TYPE ADMISSION_LOCATION "
    "DISCHARGE_LOCATION INSURANCE LANGUAGE RELIGION MARITAL_STATUS ETHNICITY EDREGTIME EDOUTTIME DIAGNOSIS "
    "HOSPITAL_EXPIRE_FLAG HAS_CHARTEVENTS_DATA",
    "ICUSTAYS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID DBSOURCE FIRST_CAREUNIT LAST_CAREUNIT FIRST_WARDID LAST_WARDID "
    "INTIME OUTTIME LOS",
    "DIAGNOSES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "PROCEDURES_ICD": "ROW_ID SUBJECT_ID HADM_ID SEQ_NUM ICD9_CODE",
    "PRESCRIPTIONS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTDATE ENDDATE DRUG_TYPE DRUG DRUG_NAME_POE "
    "DRUG_NAME_GENERIC FORMULARY_DRUG_CD GSN NDC PROD_STRENGTH DOSE_VAL_RX DOSE_UNIT_RX FORM_VAL_DISP FORM_UNIT_DISP "
    "ROUTE",
    "D_ICD_DIAGNOSES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
    "D_ICD_PROCEDURES": "ROW_ID ICD9_CODE SHORT_TITLE LONG_TITLE",
}
ADDED = {
    "D_LABITEMS": "ROW_ID ITEMID LABEL FLUID CATEGORY LOINC_CODE",
    "LABEVENTS": "ROW_ID SUBJECT_ID HADM_ID ITEMID CHARTTIME VALUE VALUENUM VALUEUOM FLAG",
    "D_ITEMS": "ROW_ID ITEMID LABEL ABBREVIATION DBSOURCE LINKSTO CATEGORY UNITNAME PARAM_TYPE CONCEPTID",
    "CHARTEVENTS": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID ITEMID CHARTTIME STORETIME CGID VALUE VALUENUM VALUEUOM "
    "WARNING ERROR RESULTSTATUS STOPPED",
    "INPUTEVENTS_MV": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID AMOUNT AMOUNTUOM RATE RATEUOM "
    "STORETIME CGID ORDERID LINKORDERID ORDERCATEGORYNAME SECONDARYORDERCATEGORYNAME ORDERCOMPONENTTYPEDESCRIPTION "
    "ORDERCATEGORYDESCRIPTION PATIENTWEIGHT TOTALAMOUNT TOTALAMOUNTUOM ISOPENBAG CONTINUEINNEXTDEPT CANCELREASON "
    "STATUSDESCRIPTION COMMENTS_EDITEDBY COMMENTS_CANCELEDBY COMMENTS_DATE ORIGINALAMOUNT ORIGINALRATE",
    "PROCEDUREEVENTS_MV": "ROW_ID SUBJECT_ID HADM_ID ICUSTAY_ID STARTTIME ENDTIME ITEMID VALUE VALUEUOM LOCATION "
    "LOCATIONCATEGORY STORETIME CGID ORDERID LINKORDERID ORDERCATEGORYNAME SECONDARYORDERCATEGORYNAME "
    "ORDERCATEGORYDESCRIPTION ISOPENBAG CONTINUEINNEXTDEPT CANCELREASON STATUSDESCRIPTION COMMENTS_EDITEDBY "
    "COMMENTS_CANCELEDBY COMMENTS_DATE",
}
NUM_PATIENTS = BLOCK_SIZE + 300  # two shards, the second cut
TIME = "%Y-%m-%d %H:%M:%S"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "mimic"
    write_mimic3(path, "heart_failure", NUM_PATIENTS, seed=7)
    return path


def read(root: Path, table: str) -> pl.DataFrame:
    frame = pl.read_csv(root / f"{table}.csv", infer_schema=False)
    times = [name for name in frame.columns if name.endswith(("TIME", "DATE")) or name.split("_")[0] in ("DOB", "DOD")]
    return frame.with_columns(pl.col(name).str.to_datetime(TIME) for name in times)


def test_tables_have_the_columns_of_the_release_in_their_order(root: Path) -> None:
    found = {path.stem: path.read_text().splitlines()[0] for path in root.glob("*.csv")}
    expected = {table: ",".join(f'"{name}"' for name in columns.split()) for table, columns in COLUMNS.items()}
    assert found == expected


def test_identifiers_are_unique_and_refer_to_each_other(root: Path) -> None:
    patients, admissions = read(root, "PATIENTS"), read(root, "ADMISSIONS")
    assert patients["SUBJECT_ID"].n_unique() == len(patients) == NUM_PATIENTS
    assert set(admissions["SUBJECT_ID"]) == set(patients["SUBJECT_ID"])
    assert admissions["HADM_ID"].n_unique() == len(admissions)
    assert set(read(root, "DIAGNOSES_ICD")["HADM_ID"]) == set(admissions["HADM_ID"])
    for table in COLUMNS:
        frame = read(root, table)
        assert frame["ROW_ID"].cast(pl.Int64).to_list() == list(range(1, len(frame) + 1))
        if "HADM_ID" in frame.columns:
            keys = frame.select("SUBJECT_ID", "HADM_ID").unique()
            assert len(keys.join(admissions, on=["SUBJECT_ID", "HADM_ID"])) == len(keys) > 0


def test_admissions_end_after_they_begin_and_none_follows_death(root: Path) -> None:
    rows = read(root, "ADMISSIONS").join(read(root, "PATIENTS"), on="SUBJECT_ID")
    assert (rows["DISCHTIME"] > rows["ADMITTIME"]).all()
    assert (rows["ADMITTIME"].dt.date() <= rows["DOD"].dt.date()).all()
    ordered = rows.sort("SUBJECT_ID", "ADMITTIME")
    following = ordered["ADMITTIME"].shift(-1)
    same = ordered["SUBJECT_ID"] == ordered["SUBJECT_ID"].shift(-1)
    assert (following > ordered["DISCHTIME"]).filter(same).all()
    assert (rows["EDREGTIME"] <= rows["EDOUTTIME"]).all()
    assert (rows["EDOUTTIME"] <= rows["ADMITTIME"]).all()


def test_death_in_hospital_is_told_by_every_column_alike(root: Path) -> None:
    rows = read(root, "ADMISSIONS").join(read(root, "PATIENTS"), on="SUBJECT_ID")
    died = rows["HOSPITAL_EXPIRE_FLAG"] == "1"
    assert 20 < died.sum() < len(rows) / 5
    assert (rows["DEATHTIME"].is_not_null() == died).all()
    assert ((rows["DISCHARGE_LOCATION"] == "DEAD/EXPIRED") == died).all()
    fatal = rows.filter(died)
    assert (fatal["DEATHTIME"] == fatal["DISCHTIME"]).all()
    assert (fatal["DOD_HOSP"] == fatal["DEATHTIME"].dt.truncate("1d")).all()
    patients = read(root, "PATIENTS")
    assert patients["DOD_HOSP"].is_not_null().sum() == died.sum()
    assert ((patients["EXPIRE_FLAG"] == "1") == patients["DOD"].is_not_null()).all()
    assert (patients["DOD"] == patients["DOD_SSN"].fill_null(patients["DOD_HOSP"])).all()


def test_dates_are_shifted_and_ages_above_89_are_300(root: Path) -> None:
    admissions = read(root, "ADMISSIONS")
    assert admissions["ADMITTIME"].dt.year().min() >= 2100
    assert admissions["DISCHTIME"].dt.year().max() < 2200
    rows = admissions.join(read(root, "PATIENTS"), on="SUBJECT_ID")
    age = (rows["ADMITTIME"] - rows["DOB"]).dt.total_days() / 365.25
    assert ((age < 89.1) | (age >= 299.9)).all()
    first = rows.group_by("SUBJECT_ID").agg(pl.col("ADMITTIME").min(), pl.col("DOB").first())
    first_age = (first["ADMITTIME"] - first["DOB"]).dt.total_days() / 365.25
    assert 0 < (first_age > 250).sum() < 0.1 * len(first)
    assert first_age.filter(first_age > 250).is_between(299.9, 300.1).all()


def test_intensive_care_lies_within_the_admission(root: Path) -> None:
    rows = read(root, "ICUSTAYS").join(read(root, "ADMISSIONS"), on="HADM_ID")
    assert (rows["ADMITTIME"] <= rows["INTIME"]).all()
    assert (rows["INTIME"] < rows["OUTTIME"]).all()
    assert (rows["OUTTIME"] <= rows["DISCHTIME"]).all()
    days = (rows["OUTTIME"] - rows["INTIME"]).dt.total_seconds() / 86_400
    assert (days - rows["LOS"].cast(pl.Float64)).abs().max() < 1e-4


def test_codes_are_undotted_numbered_from_one_and_in_the_dictionaries(root: Path) -> None:
    for kind in ("DIAGNOSES", "PROCEDURES"):
        rows = read(root, f"{kind}_ICD")
        assert set(rows["ICD9_CODE"]) <= set(read(root, f"D_ICD_{kind}")["ICD9_CODE"])
        number = rows.group_by("HADM_ID", maintain_order=True).agg(pl.col("SEQ_NUM").cast(pl.Int64))["SEQ_NUM"]
        assert all(numbers.to_list() == list(range(1, len(numbers) + 1)) for numbers in number)


def test_the_mark_says_that_nobody_is_real(root: Path) -> None:
    mark = json.loads((root / "SIMULATED.json").read_text())
    assert "no real patient" in mark["statement"]
    kept = {"layout": "mimic3", "preset": "heart_failure", "shape": "mimic", "num_patients": NUM_PATIENTS, "seed": 7}
    assert kept.items() <= mark.items()
    assert {"package_version", "specification"} <= mark.keys()


def test_fewer_patients_are_the_first_of_more(root: Path, tmp_path: Path) -> None:
    write_mimic3(tmp_path / "few", "heart_failure", 170, seed=7)
    for table in COLUMNS:
        few, many = ((path / f"{table}.csv").read_bytes() for path in (tmp_path / "few", root))
        assert many.startswith(few)


def test_compressed_tables_hold_the_same_bytes(tmp_path: Path) -> None:
    write_mimic3(tmp_path / "plain", "copd", 40, seed=1, shape="toy")
    write_mimic3(tmp_path / "packed", "copd", 40, seed=1, shape="toy", compress=True)
    names = sorted(path.name for path in (tmp_path / "packed").iterdir())
    assert names == sorted([*(f"{table}.csv.gz" for table in COLUMNS), "SIMULATED.json"])
    for table in COLUMNS:
        packed = gzip.decompress((tmp_path / "packed" / f"{table}.csv.gz").read_bytes())
        assert packed == (tmp_path / "plain" / f"{table}.csv").read_bytes()


def test_the_code_dictionaries_survive_being_written_twice(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_mimic3(tmp_path / name, "kidney", 3, seed=0)
    assert codes.diagnoses().columns == ["ICD9_CODE", "SHORT_TITLE", "LONG_TITLE"]


def test_a_folder_with_other_tables_is_refused(tmp_path: Path) -> None:
    (tmp_path / "ADMISSIONS.csv").write_text("somebody's table")
    with pytest.raises(InputError, match="new or empty"):
        write_mimic3(tmp_path, "kidney", 3, seed=0)
    assert [path.name for path in tmp_path.iterdir()] == ["ADMISSIONS.csv"]


def test_outpatient_care_has_no_mimic_tables(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 'trinetx'"):
        write_mimic3(tmp_path, "kidney", 3, seed=0, shape="trinetx")
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------- labs and charts
NUM_MEASURED = 150


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "measured"
    write_mimic3(path, "heart_failure", NUM_MEASURED, seed=7, modalities=("charts", "labs"))
    return path


def test_modalities_add_tables_with_the_columns_of_the_release(measured: Path) -> None:
    found = {path.stem: path.open().readline().strip() for path in measured.glob("*.csv")}
    columns = COLUMNS | ADDED
    assert found == {table: ",".join(f'"{name}"' for name in names.split()) for table, names in columns.items()}
    assert json.loads((measured / "SIMULATED.json").read_text())["modalities"] == "codes labs charts"


def test_modalities_leave_the_other_tables_as_they_are(measured: Path, root: Path) -> None:
    for table in COLUMNS.keys() - {"ADMISSIONS"}:
        assert (root / f"{table}.csv").read_bytes().startswith((measured / f"{table}.csv").read_bytes())
    plain, with_charts = (read(path, "ADMISSIONS") for path in (root, measured))
    kept = with_charts.drop("HAS_CHARTEVENTS_DATA")
    assert kept.equals(plain.drop("HAS_CHARTEVENTS_DATA").head(len(kept)))
    assert set(plain["HAS_CHARTEVENTS_DATA"]) == {"0"}
    has_stay = with_charts["HADM_ID"].is_in(read(measured, "ICUSTAYS")["HADM_ID"].implode())
    assert (with_charts["HAS_CHARTEVENTS_DATA"] == "1").equals(has_stay)


@pytest.mark.parametrize(
    ("table", "dictionary", "linked"),
    [
        ("LABEVENTS", "D_LABITEMS", None),
        ("CHARTEVENTS", "D_ITEMS", "chartevents"),
        ("INPUTEVENTS_MV", "D_ITEMS", "inputevents_mv"),
        ("PROCEDUREEVENTS_MV", "D_ITEMS", "procedureevents_mv"),
    ],
)
def test_events_name_items_and_stays_that_exist(
    measured: Path, table: str, dictionary: str, linked: str | None
) -> None:
    events, items = read(measured, table), read(measured, dictionary)
    assert items["ITEMID"].n_unique() == len(items)
    if linked:
        items = items.filter(pl.col("LINKSTO") == linked)
    assert set(events["ITEMID"]) <= set(items["ITEMID"])
    keys = ["SUBJECT_ID", "HADM_ID"] + (["ICUSTAY_ID"] if linked else [])
    place = read(measured, "ICUSTAYS" if linked else "ADMISSIONS")
    begin, end = ("INTIME", "OUTTIME") if linked else ("ADMITTIME", "DISCHTIME")
    joined = events.join(place, on=keys)
    assert len(joined) == len(events) > 0
    time = "CHARTTIME" if "CHARTTIME" in events.columns else "STARTTIME"
    assert (joined[begin] <= joined[time]).all()
    assert (joined[time] <= joined[end]).all()
    assert events["ROW_ID"].cast(pl.Int64).to_list() == list(range(1, len(events) + 1))


def test_labs_are_written_with_their_unit_and_flagged_beyond_their_range(measured: Path) -> None:
    rows = read(measured, "LABEVENTS").with_columns(pl.col("VALUENUM").cast(pl.Float64))
    assert rows["VALUE"].cast(pl.Float64).equals(rows["VALUENUM"], null_equal=False)
    sodium = rows.filter(pl.col("ITEMID") == "50983")
    assert set(sodium["VALUEUOM"]) == {"mEq/L"}
    assert sodium["VALUE"].str.contains(r"^1\d\d$").all()
    assert (sodium["FLAG"].fill_null("") == "abnormal").equals(~sodium["VALUENUM"].is_between(133, 145))


def test_ventilation_and_vasopressors_begin_at_the_onsets(measured: Path) -> None:
    shard = next(simulate("heart_failure", "mimic", NUM_MEASURED, seed=7))
    stays = icu.draw_stays(shard)
    course = icu.draw_course(shard, stays)
    into = read(measured, "ICUSTAYS").select("ICUSTAY_ID", "INTIME")
    for table, chain in (("PROCEDUREEVENTS_MV", 0), ("INPUTEVENTS_MV", 1)):
        first = read(measured, table).group_by("ICUSTAY_ID", maintain_order=True).agg(pl.col("STARTTIME").min())
        hours = into.join(first, on="ICUSTAY_ID", how="left", maintain_order="left")
        hours = (hours["STARTTIME"] - hours["INTIME"]).dt.total_minutes() // 60
        onset = pl.Series(icu.onset_hour(course, chain))
        assert hours.is_null().equals(onset == pl.Series(stays.num_hours))
        assert (hours == onset).drop_nulls().all()
    peep = read(measured, "CHARTEVENTS").filter(pl.col("ITEMID") == "220339")
    assert len(peep) == (course.states[:, 0] == WORST).sum()


def test_the_readers_take_labs_and_vitals_as_they_take_real_ones(measured: Path) -> None:
    events = events_of(open_mimic(measured, ["diagnoses", "labs", "vitals", "icu_stays"]))
    for prefix, table in (("LAB//", "LABEVENTS"), ("VITAL//", "CHARTEVENTS")):
        found, raw = events.filter(pl.col("code").str.starts_with(prefix)), read(measured, table)
        assert len(found) == len(raw)
        assert found["visit_id"].null_count() == found["numeric_value"].null_count() == 0
        expected = (prefix + raw["ITEMID"] + "//" + raw["VALUEUOM"].fill_null("UNK")).value_counts(sort=True)
        assert dict(expected.iter_rows()) == dict(found["code"].value_counts().iter_rows())
    assert "LAB//51237//UNK" in events["code"]  # no unit, as in the release
    names = open_mimic(measured, ["labs", "vitals"]).code_metadata()
    assert {"LAB//50912", "VITAL//220045"} <= set(names["code"])


def test_measured_tables_of_fewer_patients_are_the_first_of_more(measured: Path, tmp_path: Path) -> None:
    write_mimic3(tmp_path / "few", "heart_failure", 40, seed=7, modalities=("labs", "charts"))
    for table in ADDED:
        few, many = ((path / f"{table}.csv").read_bytes() for path in (tmp_path / "few", measured))
        assert many.startswith(few)


def test_labs_alone_bring_no_charts(tmp_path: Path) -> None:
    write_mimic3(tmp_path / "labs", "kidney", 4, seed=0, modalities=["labs"])
    assert {path.stem for path in (tmp_path / "labs").glob("*.csv")} == {*COLUMNS, "D_LABITEMS", "LABEVENTS"}
    assert set(read(tmp_path / "labs", "ADMISSIONS")["HAS_CHARTEVENTS_DATA"]) == {"0"}
    shard = next(simulate("kidney", "mimic", 4, seed=0))
    assert len(read(tmp_path / "labs", "LABEVENTS")) == len(labs.series(shard, labs.draw(shard)).visit)


def test_an_unknown_modality_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown modality 'images' for this layout: expected some of codes, labs"):
        write_mimic3(tmp_path, "kidney", 3, seed=0, modalities=("codes", "images"))
    assert not list(tmp_path.iterdir())
