"""The TriNetX export that the simulator writes."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_trinetx
from ehrlab.simulation import write_trinetx
from ehrlab.simulation.analytes import CLINIC, LABS
from ehrlab.simulation.spec import BLOCK_SIZE
from raw_tables import events_of

COLUMNS = {
    "patient": "patient_id sex race ethnicity year_of_birth age_at_death patient_regional_location postal_code "
    "marital_status month_year_death source_id",
    "encounter": "encounter_id patient_id start_date end_date type start_date_derived_by_TriNetX "
    "end_date_derived_by_TriNetX derived_by_TriNetX source_id",
    "diagnosis": "patient_id encounter_id code_system code principal_diagnosis_indicator admitting_diagnosis "
    "reason_for_visit date derived_by_TriNetX source_id",
    "procedure": "patient_id encounter_id code_system code principal_procedure_indicator date derived_by_TriNetX "
    "source_id",
    "medication_ingredient": "patient_id encounter_id unique_id code_system code start_date route brand strength "
    "derived_by_TriNetX source_id",
}
ADDED = {
    "lab_result": "patient_id encounter_id code_system code date lab_result_num_val lab_result_text_val "
    "units_of_measure derived_by_TriNetX source_id",
    "vital_signs": "patient_id encounter_id code_system code date value text_value units_of_measure "
    "derived_by_TriNetX source_id",
}
NUM_PATIENTS = BLOCK_SIZE + 60


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "trinetx"
    write_trinetx(path, "copd", NUM_PATIENTS, seed=7)
    return path


def read(root: Path, table: str) -> pl.DataFrame:
    return pl.read_csv(root / f"{table}.csv", infer_schema=False)


def test_tables_have_the_columns_of_an_export_in_their_order(root: Path) -> None:
    found = {path.stem: path.open().readline().strip() for path in root.glob("*.csv")}
    assert found == {table: columns.replace(" ", ",") for table, columns in COLUMNS.items()}


def test_rows_refer_to_encounters_of_the_same_patient(root: Path) -> None:
    patient, encounter = read(root, "patient"), read(root, "encounter")
    assert patient["patient_id"].n_unique() == len(patient) == NUM_PATIENTS
    assert set(encounter["patient_id"]) == set(patient["patient_id"])
    assert encounter["encounter_id"].n_unique() == len(encounter)
    assert set(read(root, "diagnosis")["encounter_id"]) == set(encounter["encounter_id"])
    for table, date in (("diagnosis", "date"), ("procedure", "date"), ("medication_ingredient", "start_date")):
        rows = read(root, table)
        joined = rows.join(encounter, on=["patient_id", "encounter_id"], suffix="_of_encounter")
        assert len(joined) == len(rows) > 0
        of_encounter = "start_date" if date == "date" else "start_date_of_encounter"
        assert (joined[date] == joined[of_encounter]).all()


def test_dates_are_real_days_of_the_icd9_era(root: Path) -> None:
    encounter = read(root, "encounter").with_columns(pl.col("start_date", "end_date").str.to_date("%Y%m%d"))
    assert encounter["start_date"].dt.year().min() >= 2006
    assert encounter["end_date"].dt.year().max() < 2015
    assert (encounter["end_date"] >= encounter["start_date"]).all()
    ordered = encounter.sort("patient_id", "start_date")
    same = ordered["patient_id"] == ordered["patient_id"].shift(-1)
    assert (ordered["start_date"].shift(-1) > ordered["end_date"]).filter(same).all()


def test_nobody_is_seen_after_the_month_of_death(root: Path) -> None:
    last = read(root, "encounter").group_by("patient_id").agg(pl.col("end_date").max().str.slice(0, 6))
    rows = read(root, "patient").join(last, on="patient_id").drop_nulls("month_year_death")
    assert len(rows) > 10
    assert (rows["end_date"] <= rows["month_year_death"]).all()
    age = rows["month_year_death"].str.slice(0, 4).cast(pl.Int64) - rows["year_of_birth"].cast(pl.Int64)
    assert (age.clip(upper_bound=90) - rows["age_at_death"].cast(pl.Int64)).is_between(0, 1).all()


def test_encounters_are_mostly_ambulatory_with_some_stays(root: Path) -> None:
    share = read(root, "encounter")["type"].value_counts(normalize=True)
    share = dict(share.iter_rows())
    assert set(share) == {"AMB", "EMER", "IMP"}
    assert share["AMB"] > 0.8
    assert 0.02 < share["IMP"] < 0.1


def test_fewer_patients_are_the_first_of_more(root: Path, tmp_path: Path) -> None:
    write_trinetx(tmp_path / "few", "copd", 90, seed=7)
    for table in ("patient", "encounter", "diagnosis", "medication_ingredient"):
        few, many = ((path / f"{table}.csv").read_bytes() for path in (tmp_path / "few", root))
        assert many.startswith(few)
    few, many = read(tmp_path / "few", "procedure"), read(root, "procedure")
    assert many.join(few, on=["encounter_id", "code"], how="semi").height == few.height


def test_the_mark_names_the_population(root: Path) -> None:
    mark = json.loads((root / "SIMULATED.json").read_text())
    assert (mark["layout"], mark["preset"], mark["shape"], mark["seed"]) == ("trinetx", "copd", "trinetx", 7)


def test_hospital_stays_have_no_place_in_this_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 'mimic'"):
        write_trinetx(tmp_path, "copd", 3, seed=0, shape="mimic")


# ------------------------------------------------------------------------------------------- laboratory and clinic
@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "measured"
    write_trinetx(path, "copd", 120, seed=7, modalities=("labs",))
    return path


def test_labs_add_two_tables_and_leave_the_others(measured: Path, root: Path) -> None:
    found = {path.stem: path.open().readline().strip() for path in measured.glob("*.csv")}
    assert found == {table: columns.replace(" ", ",") for table, columns in (COLUMNS | ADDED).items()}
    for table in COLUMNS.keys() - {"procedure"}:
        assert (root / f"{table}.csv").read_bytes().startswith((measured / f"{table}.csv").read_bytes())


@pytest.mark.parametrize(("table", "tests"), [("lab_result", LABS), ("vital_signs", CLINIC)])
def test_measurements_belong_to_encounters_and_have_loinc_codes(measured: Path, table: str, tests: tuple) -> None:
    rows = read(measured, table)
    joined = rows.join(read(measured, "encounter"), on=["patient_id", "encounter_id"])
    assert len(joined) == len(rows) > 0
    assert (joined["date"] == joined["start_date"]).all()
    units = {(test.loinc, test.unit) for test in tests}
    assert set(rows.select("code", "units_of_measure").iter_rows()) <= units
    assert rows["code"].n_unique() > 0.8 * len(tests)


def test_the_readers_take_labs_and_vitals(measured: Path) -> None:
    events = events_of(open_trinetx(measured, ["diagnoses", "labs", "vitals"]))
    for prefix, table in (("LAB//", "lab_result"), ("VITAL//", "vital_signs")):
        found = events.filter(pl.col("code").str.starts_with(prefix))
        assert len(found) == len(read(measured, table))
        assert found["numeric_value"].null_count() == found["visit_id"].null_count() == 0
    assert {"LAB//2160-0//mg/dL", "VITAL//8480-6//mm[Hg]"} <= set(events["code"])


def test_measurements_of_fewer_patients_are_the_first_of_more(measured: Path, tmp_path: Path) -> None:
    write_trinetx(tmp_path / "few", "copd", 30, seed=7, modalities=("codes", "labs"))
    for table in ADDED:
        few, many = ((path / f"{table}.csv").read_bytes() for path in (tmp_path / "few", measured))
        assert many.startswith(few)


def test_charts_are_no_modality_of_this_layout(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="unknown modality 'charts' for this layout: expected some of codes, labs"):
        write_trinetx(tmp_path, "copd", 3, seed=0, modalities=("charts",))
