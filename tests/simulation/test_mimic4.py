"""The MIMIC-IV tables that the simulator writes: the patients of the MIMIC-III layout, coded in two versions of ICD."""

from __future__ import annotations

import csv
import gzip
import json
import re
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.admissions import InHospitalMortality, Readmission
from ehrlab.data.cohorts.first_diagnosis import FirstDiagnosis
from ehrlab.data.meds import MedsDataset
from ehrlab.data.sources import open_mimic
from ehrlab.simulation import codes, icd10, mimic3, mimic4, simulate, write_mimic3, write_mimic4
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.population import Shard
from ehrlab.simulation.spec import BLOCK_SIZE, population
from raw_tables import dataset_of

# The columns of the release v3, in its order.
COLUMNS = {
    "hosp/patients": "subject_id gender anchor_age anchor_year anchor_year_group dod",
    "hosp/admissions": "subject_id hadm_id admittime dischtime deathtime admission_type admit_provider_id "
    "admission_location discharge_location insurance language marital_status race edregtime edouttime "
    "hospital_expire_flag",
    "hosp/diagnoses_icd": "subject_id hadm_id seq_num icd_code icd_version",
    "hosp/procedures_icd": "subject_id hadm_id seq_num chartdate icd_code icd_version",
    "hosp/prescriptions": "subject_id hadm_id pharmacy_id poe_id poe_seq order_provider_id starttime stoptime "
    "drug_type drug formulary_drug_cd gsn ndc prod_strength form_rx dose_val_rx dose_unit_rx form_val_disp "
    "form_unit_disp doses_per_24_hrs route",
    "hosp/d_icd_diagnoses": "icd_code icd_version long_title",
    "hosp/d_icd_procedures": "icd_code icd_version long_title",
    "icu/icustays": "subject_id hadm_id stay_id first_careunit last_careunit intime outtime los",
}
OF_MODALITY = {
    "labs": {
        "hosp/labevents": "labevent_id subject_id hadm_id specimen_id itemid order_provider_id charttime storetime "
        "value valuenum valueuom ref_range_lower ref_range_upper flag priority comments",
        "hosp/d_labitems": "itemid label fluid category",
    },
    "charts": {
        "icu/chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom "
        "warning",
        "icu/inputevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid amount "
        "amountuom rate rateuom orderid linkorderid ordercategoryname secondaryordercategoryname "
        "ordercomponenttypedescription ordercategorydescription patientweight totalamount totalamountuom isopenbag "
        "continueinnextdept statusdescription originalamount originalrate",
        "icu/procedureevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid value "
        "valueuom location locationcategory orderid linkorderid ordercategoryname ordercategorydescription "
        "patientweight isopenbag continueinnextdept statusdescription originalamount originalrate",
        "icu/d_items": "itemid label abbreviation linksto category unitname param_type lownormalvalue highnormalvalue",
    },
    "notes": {"note/discharge": "note_id subject_id hadm_id note_type note_seq charttime storetime text"},
}
ALL = COLUMNS | OF_MODALITY["labs"] | OF_MODALITY["charts"] | OF_MODALITY["notes"]
TARGETS = ("heart_failure", "kidney", "copd", "amnesia")
NUM_PATIENTS, SEED = BLOCK_SIZE + 60, 7  # two shards, the second cut
TOY_PATIENTS = 400
TIMES = (
    "admittime",
    "dischtime",
    "deathtime",
    "edregtime",
    "edouttime",
    "charttime",
    "starttime",
    "stoptime",
    "intime",
)


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "mimic4"
    write_mimic4(path, "heart_failure", NUM_PATIENTS, SEED)
    return path


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few patients with everything."""
    path = tmp_path_factory.mktemp("raw") / "mimic4"
    write_mimic4(path, "kidney", 60, SEED, shape="toy", modalities=mimic4.MODALITIES)
    return path


@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    return list(simulate("heart_failure", "mimic", NUM_PATIENTS, SEED))


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> tuple[MedsDataset, MedsDataset]:
    """The same patients read back from either layout."""
    folder = tmp_path_factory.mktemp("layouts")
    write_mimic3(folder / "mimic3", "heart_failure", TOY_PATIENTS, SEED, shape="toy")
    write_mimic4(folder / "mimic4", "heart_failure", TOY_PATIENTS, SEED, shape="toy")
    third, fourth = (dataset_of(open_mimic(folder / name)) for name in ("mimic3", "mimic4"))
    return third, fourth


def read(root: Path, table: str) -> pl.DataFrame:
    frame = pl.read_csv(root / f"{table}.csv", infer_schema=False)
    times = [name for name in frame.columns if name in (*TIMES, "outtime")]
    return frame.with_columns(pl.col(name).str.to_datetime("%Y-%m-%d %H:%M:%S") for name in times)


def patterns(task: str) -> dict[int, list[str]]:
    settings = yaml.safe_load((Path(__file__).parents[2] / "conf" / "task" / f"{task}.yaml").read_text("utf-8"))
    return {9: settings["icd9"], 10: settings["icd10"]}


def means_target(code: str, expressions: list[str]) -> bool:
    return any(re.fullmatch(expression, code) for expression in expressions)


# -------------------------------------------------------------------------------------------------------------- tables
@pytest.mark.parametrize(("modalities", "expected"), [((), COLUMNS), (mimic4.MODALITIES, ALL)])
def test_tables_have_the_columns_of_the_release_in_their_order(
    tmp_path: Path, modalities: tuple[str, ...], expected: dict[str, str]
) -> None:
    write_mimic4(tmp_path / "raw", "copd", 3, 0, modalities=modalities)
    found = {}
    for path in (tmp_path / "raw").rglob("*.csv"):
        with path.open(newline="", encoding="utf-8") as lines:
            found[f"{path.parent.name}/{path.stem}"] = " ".join(next(csv.reader(lines)))
    assert found == expected


def test_identifiers_are_unique_and_refer_to_each_other(whole: Path) -> None:
    patients, admissions = read(whole, "hosp/patients"), read(whole, "hosp/admissions")
    assert patients["subject_id"].n_unique() == len(patients) == 60
    assert set(admissions["subject_id"]) == set(patients["subject_id"])
    assert admissions["hadm_id"].n_unique() == len(admissions)
    stays = read(whole, "icu/icustays")
    for table in ALL:
        frame = read(whole, table)
        for key, known in (("hadm_id", admissions), ("stay_id", stays)):
            if key in frame.columns:
                keys = frame.select("subject_id", key).drop_nulls().unique()
                assert len(keys.join(known, on=["subject_id", key])) == len(keys) > 0
    for table, key in (("hosp/labevents", "labevent_id"), ("hosp/prescriptions", "pharmacy_id")):
        assert not read(whole, table)[key].is_duplicated().any()


def test_ages_above_89_are_91(root: Path, shards: list[Shard]) -> None:
    age = np.concatenate([shard.patients.age for shard in shards])
    anchored = read(root, "hosp/patients")["anchor_age"].cast(pl.Int64).to_numpy()
    old = age >= 90
    assert 0 < old.sum() < 0.1 * len(old)
    assert (anchored[old] == 91).all()
    assert (anchored[~old] == np.floor(age[~old])).all()


def test_the_clock_says_when_each_record_begins(root: Path, shards: list[Shard]) -> None:
    first = read(root, "hosp/admissions").group_by("subject_id").agg(pl.col("admittime").min())
    begun = {int(subject): time for subject, time in first.iter_rows()}
    for shard in shards:
        subjects, starts = mimic4.clock(shard)
        assert starts.dtype == np.dtype("datetime64[us]")
        assert [begun[subject] for subject in subjects.tolist()] == starts.tolist()  # the entry visit opens day 0


def test_deaths_are_known_for_a_year_after_the_last_discharge(root: Path, shards: list[Shard]) -> None:
    rows = read(root, "hosp/patients").with_columns(pl.col("dod").str.to_date())
    last = read(root, "hosp/admissions").group_by("subject_id").agg(
        pl.col("dischtime").max().dt.date(), pl.col("deathtime").max().dt.date()
    )  # fmt: skip
    rows = rows.join(last, on="subject_id", maintain_order="left")
    died = np.concatenate([np.isfinite(shard.latent.death_day) for shard in shards])
    after = (rows["dod"] - rows["dischtime"]).dt.total_days()
    assert after.drop_nulls().is_between(0, 366).all()
    assert 0 < (died & rows["dod"].is_null().to_numpy()).sum() < died.sum()
    fatal = rows.filter(pl.col("deathtime").is_not_null())
    assert len(fatal) > 20
    assert (fatal["dod"] == fatal["deathtime"]).all()


def test_what_happens_in_a_stay_happens_within_the_admission(whole: Path) -> None:
    admissions = read(whole, "hosp/admissions")
    assert (admissions["dischtime"] > admissions["admittime"]).all()
    for table, begin, end in (
        ("icu/icustays", "intime", "outtime"),
        ("hosp/prescriptions", "starttime", "stoptime"),
        ("hosp/labevents", "charttime", "charttime"),
        ("note/discharge", "charttime", "charttime"),
    ):
        rows = read(whole, table).select("hadm_id", b=begin, e=end).join(admissions, on="hadm_id")
        assert ((rows["admittime"] <= rows["b"]) & (rows["b"] <= rows["e"]) & (rows["e"] <= rows["dischtime"])).all()
    charted = read(whole, "icu/chartevents").join(read(whole, "icu/icustays"), on="stay_id")
    assert charted["charttime"].is_between(charted["intime"], charted["outtime"]).all()


def test_some_results_lack_the_admission_but_never_those_of_the_first_specimen(whole: Path) -> None:
    results = read(whole, "hosp/labevents")
    assert results["hadm_id"].null_count() / len(results) == pytest.approx(0.187, abs=0.05)
    first = results.filter(pl.col("specimen_id").str.ends_with("01"))
    assert first["hadm_id"].null_count() == 0
    assert set(results["itemid"]) <= set(read(whole, "hosp/d_labitems")["itemid"])


def test_everything_written_is_read_back(whole: Path) -> None:
    source = open_mimic(whole, ["diagnoses", "procedures", "drugs", "labs", "icu_stays", "vitals", "notes"])
    assert source.name == "mimic4"
    dataset = dataset_of(source)
    events = dataset.scan().collect()
    for table, prefix in (("hosp/diagnoses_icd", "DIAGNOSIS"), ("hosp/labevents", "LAB"), ("note/discharge", "NOTE"),
                          ("icu/chartevents", "VITAL"), ("hosp/prescriptions", "DRUG")):  # fmt: skip
        assert events["code"].str.starts_with(f"{prefix}//").sum() == len(read(whole, table))
    assert dataset.codes().filter(pl.col("code").str.contains("ICD|LAB|VITAL"))["description"].null_count() == 0


def test_the_mark_says_that_nobody_is_real(root: Path) -> None:
    mark = json.loads((root / "SIMULATED.json").read_text())
    assert "no real patient" in mark["statement"]
    kept = {"layout": "mimic4", "preset": "heart_failure", "shape": "mimic", "num_patients": NUM_PATIENTS, "seed": SEED}
    assert kept.items() <= mark.items()


def test_both_layouts_are_marked_with_the_same_settings(tmp_path: Path) -> None:
    marks = []
    for name, write in (("three", write_mimic3), ("four", write_mimic4)):
        write(tmp_path / name, "copd", 2, 3, shape="toy", modalities=("labs",), time=0.5, null=True, prevalence=2.0)
        marks.append(json.loads((tmp_path / name / "SIMULATED.json").read_text()))
    assert marks[0] | {"layout": "mimic4"} == marks[1]


def test_fewer_patients_are_the_first_of_more(whole: Path, tmp_path: Path) -> None:
    write_mimic4(tmp_path / "few", "kidney", 23, SEED, shape="toy", modalities=mimic4.MODALITIES)
    for table in ALL:
        few, many = ((path / f"{table}.csv").read_bytes() for path in (tmp_path / "few", whole))
        assert many.startswith(few)
        assert len(few) < len(many) or "/d_" in table


def test_compressed_tables_hold_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    write_mimic4(tmp_path / "packed", "kidney", 60, SEED, shape="toy", modalities=mimic4.MODALITIES, compress=True)
    for table in ALL:
        packed = gzip.decompress((tmp_path / "packed" / f"{table}.csv.gz").read_bytes())
        assert packed == (whole / f"{table}.csv").read_bytes()


def test_what_the_layout_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="found 'trinetx'"):
        write_mimic4(tmp_path, "kidney", 3, 0, shape="trinetx")
    with pytest.raises(InputError, match="unknown modality 'scans'"):
        write_mimic4(tmp_path, "kidney", 3, 0, modalities=("scans",))
    assert not list(tmp_path.iterdir())


# ------------------------------------------------------------------------------------------------------- two versions
def test_an_admission_has_one_version_and_many_records_have_both(root: Path) -> None:
    rows = read(root, "hosp/diagnoses_icd")
    versions = rows.group_by("subject_id", "hadm_id").agg(pl.col("icd_version").unique())
    assert (versions["icd_version"].list.len() == 1).all()
    versions = versions.with_columns(pl.col("icd_version").list.first())
    assert 0.3 < (versions["icd_version"] == "10").mean() < 0.6
    per_patient = versions.group_by("subject_id").agg(pl.col("icd_version").n_unique())
    assert 0.3 < (per_patient["icd_version"] == 2).mean() < 0.7
    procedures = read(root, "hosp/procedures_icd").select("hadm_id", "icd_version").unique()
    both = procedures.join(versions, on="hadm_id", suffix="_diagnosis")
    assert (both["icd_version"] == both["icd_version_diagnosis"]).all()


def test_no_record_returns_to_icd9_and_none_changes_outside_its_year_group(root: Path) -> None:
    """1 October 2015 is one day of each shifted calendar, which the year group tells to within three years."""
    versions = read(root, "hosp/diagnoses_icd").select("hadm_id", version=pl.col("icd_version").cast(pl.Int64)).unique()
    rows = read(root, "hosp/admissions").join(versions, on="hadm_id").join(read(root, "hosp/patients"), on="subject_id")
    rows = rows.sort("subject_id", "dischtime")
    changes = rows["version"].diff().filter(rows["subject_id"] == rows["subject_id"].shift(1))
    assert (changes >= 0).all()
    first_year = rows["anchor_year_group"].str.slice(0, 4).cast(pl.Int64)
    left = rows["dischtime"].dt.offset_by("-9mo").dt.year()  # 2015 for the twelve months from October 2015 on
    since = first_year + left - rows["anchor_year"].cast(pl.Int64)  # the year if the record began in the group's first
    assert (rows["version"] == 10).filter(since >= 2015).all()
    assert (rows["version"] == 9).filter(since + 2 < 2015).all()


def test_codes_are_in_the_dictionaries_and_numbered_from_one(root: Path) -> None:
    for kind in ("diagnoses", "procedures"):
        rows = read(root, f"hosp/{kind}_icd")
        names = read(root, f"hosp/d_icd_{kind}")
        assert not names.select("icd_code", "icd_version").is_duplicated().any()
        assert len(rows.join(names, on=["icd_code", "icd_version"])) == len(rows)
        assert not rows.select("hadm_id", "icd_code").is_duplicated().any()
        numbers = rows.group_by("hadm_id", maintain_order=True).agg(pl.col("seq_num").cast(pl.Int64))["seq_num"]
        assert all(number.to_list() == list(range(1, len(number) + 1)) for number in numbers)


@pytest.mark.parametrize("shape", ["mimic", "toy"])
@pytest.mark.parametrize("preset", TARGETS)
def test_no_icd10_code_stands_for_two_groups(preset: str, shape: str) -> None:
    words = vocabulary(population(preset, shape))
    tenth = icd10.counterparts(population(preset, shape))
    assert len(tenth) == len(words.codes)
    ends = [span.start for span in (words.target, *words.flags, *words.network, *words.acute) if span.size]
    groups = [set(tenth[a:b]) for a, b in zip(ends, [*ends[1:], words.background], strict=True)]
    groups.append(set(tenth[words.background :]))
    assert len(groups) > 18
    assert sum(map(len, groups)) == len(set.union(*groups))


@pytest.mark.parametrize("preset", TARGETS)
def test_the_target_and_nothing_else_means_the_target_in_either_version(preset: str) -> None:
    spec = population(preset, "mimic")
    words, tenth = vocabulary(spec), icd10.counterparts(spec)
    expressions = patterns(preset)
    for index, (ninth, code) in enumerate(zip(words.codes, tenth, strict=True)):
        is_target = index < words.target.size
        assert means_target(code, expressions[10]) == is_target
        assert means_target(ninth.replace(".", ""), expressions[9]) == is_target


def test_conversion_follows_the_mapping_and_leaves_it_for_few_codes() -> None:
    words, tenth = vocabulary(population("kidney", "mimic")), icd10.counterparts(population("kidney", "mimic"))
    of = dict(zip(words.codes, tenth, strict=True))
    names = dict(icd10.diagnoses().iter_rows())
    assert names[of["584.9"]] == "Acute kidney failure, unspecified"
    assert of["585.3"] == "N1830"  # N18.3 until 2020
    assert of["782.3"] == "R609"  # of three that lead back to it, the unspecified one
    assert of["E947.8"].startswith("T508")  # has no choice; an adverse effect leads back to it
    assert set(tenth) <= names.keys()
    choices = icd10._mapping(icd10._FORWARD)
    kept = [code in choices.get(nine.replace(".", ""), ()) for nine, code in of.items()]
    assert np.mean(kept) > 0.97


def test_procedures_have_distinct_counterparts_that_exist() -> None:
    known, ninth = set(icd10.procedures()["ICD10_CODE"]), set(codes.procedures()["ICD9_CODE"])
    ordered = {code for preset in TARGETS for _, code in population(preset, "mimic").disease.procedures}
    assert ordered == icd10.PROCEDURES.keys()
    assert {code.replace(".", "") for code in ordered} <= ninth
    assert set(icd10.PROCEDURES.values()) <= known
    assert len(set(icd10.PROCEDURES.values())) == len(ordered)


def test_either_version_shows_the_same_groups(root: Path, shards: list[Shard]) -> None:
    """What an exact filter reads: which groups a visit codes, whatever the version."""
    rows = read(root, "hosp/diagnoses_icd")
    words, tenth = shards[0].vocabulary, icd10.counterparts(shards[0].spec)
    spans = (words.target, *words.flags, *words.network, *words.acute)
    group = {"9": {}, "10": {}}
    for number, span in enumerate(spans):
        for i in range(span.start, span.start + span.size):
            group["9"][words.codes[i].replace(".", "")] = group["10"][tenth[i]] = number
    shown: dict[str, set[int]] = {name: set() for name in read(root, "hosp/admissions")["hadm_id"]}
    for hadm, code, version in rows.select("hadm_id", "icd_code", "icd_version").iter_rows():
        if code in group[version]:
            shown[hadm].add(group[version][code])
    expected: list[set[int]] = []
    number_of = np.full(len(words.codes), -1)
    for number, span in enumerate(spans):
        number_of[span.start : span.start + span.size] = number
    for shard in shards:
        sets: list[set[int]] = [set() for _ in shard.visits.patient]
        for visit, number in zip(shard.codes.visit.tolist(), number_of[shard.codes.code].tolist(), strict=True):
            if number >= 0:
                sets[visit].add(number)
        expected += sets
    assert list(shown.values()) == expected


# --------------------------------------------------------------------------------------------------------- same people
def to_third(subjects: pl.Series) -> pl.Series:
    return subjects - mimic4._FIRST_SUBJECT + mimic3._FIRST_SUBJECT


@pytest.mark.parametrize("task", [InHospitalMortality("in_hospital_mortality"), Readmission("readmission_30d")])
def test_outcomes_of_admissions_are_those_of_the_mimic3_layout(
    task: InHospitalMortality | Readmission, layouts: tuple[MedsDataset, MedsDataset]
) -> None:
    third, fourth = (task.cohort(dataset).samples for dataset in layouts)
    assert fourth.with_columns(to_third(fourth["subject_id"]).alias("subject_id")).equals(third)
    assert third["boolean_value"].sum() > 50


def test_first_diagnoses_are_those_of_the_mimic3_layout(layouts: tuple[MedsDataset, MedsDataset]) -> None:
    expressions = patterns("heart_failure")
    task = FirstDiagnosis("heart_failure", icd9=expressions[9], icd10=expressions[10])
    first = []
    for dataset in layouts:
        targets = task.target_codes(dataset)
        events = dataset.scan().filter(pl.col("code").is_in(targets)).collect()
        first.append(events.group_by("subject_id").agg(pl.col("time").min()).sort("subject_id"))
    assert first[1].with_columns(to_third(first[1]["subject_id"]).alias("subject_id")).equals(first[0])
    assert {code.split("//")[2] for code in task.target_codes(layouts[1])} == {"9", "10"}

    third, fourth = (task.cohort(dataset) for dataset in layouts)
    too_short = "cases with fewer than 2 visits in the history"
    assert third.dropped[too_short] == fourth.dropped[too_short]
    # Which cases find controls depends on the order of the identifiers; who is a case does not.
    cases, others = (cohort.samples.filter("boolean_value")["subject_id"] for cohort in (third, fourth))
    assert len(set(cases) & set(to_third(others))) > 0.8 * len(cases) > 20


def test_race_age_and_sex_are_those_of_the_mimic3_layout(layouts: tuple[MedsDataset, MedsDataset]) -> None:
    told = []
    for dataset in layouts:
        events = dataset.scan().filter(pl.col("code").str.contains("^(GENDER|RACE|MEDS_BIRTH)")).collect()
        of = events.with_columns(kind=pl.col("code").str.extract("^([A-Z_]+)")).sort("subject_id")
        told.append({str(kind): rows for (kind,), rows in of.group_by("kind")})
    third, fourth = told
    assert (third["GENDER"]["code"] == fourth["GENDER"]["code"]).all()
    assert (third["MEDS_BIRTH"]["time"].dt.year() - fourth["MEDS_BIRTH"]["time"].dt.year()).abs().max() <= 1
    # Whether any admission asked for the race is the layout's.
    is_known = ~(third["RACE"]["code"].str.contains("UNKNOWN") | fourth["RACE"]["code"].str.contains("UNKNOWN"))
    assert (third["RACE"]["code"] == fourth["RACE"]["code"]).filter(is_known).all()
    assert is_known.mean() > 0.9
