"""Simulated patients as the raw tables of MIMIC-IV v3: hosp/, icu/ and note/, columns, order and spellings as there.

The patients, their visits, codes and dates are those of the MIMIC-III layout. What this layout adds is drawn from
streams of its own and independent of the latent chain given the codes:

* The year in which a patient's shifted record really began, of which anchor_year_group tells three years. An admission
  that ended on or after 1 October 2015 is coded in ICD-10-CM (icd10.py) and ICD-10-PCS, else in ICD-9-CM, so that the
  versions mix within a record. Where they change tells something of when the visits were: a model that reads these
  codes is given more than "codes", and its reference is "codes+time".
* The anchor year is the year of the entry; ages over 89 in it are 91. Deaths more than a year after the last discharge
  are not known.
* Some specimens lack the hadm_id of their stay. They are never its first, and the later ones tell nothing that the
  first has not told: reading the results of a stay by hadm_id loses no information.

Where the layout departs from the release: identifiers are wider, providers and caregivers are empty, radiology is
absent, and a discharge summary is charted at the minute of the discharge (there: at the midnight before, though it
tells what came after).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.simulation import codes, icd10, mimic_events
from ehrlab.simulation.analytes import LABS
from ehrlab.simulation.drugs import DRUGS
from ehrlab.simulation.folder import RawFolder, Value, check_modalities, frame
from ehrlab.simulation.hospital import (
    Times,
    admission_numbers,
    at_minute,
    drawn,
    entry_dates,
    moment,
    numbers_within,
    patient_numbers,
)
from ehrlab.simulation.icu import Stays, draw_stays
from ehrlab.simulation.knobs import Knobs, turn
from ehrlab.simulation.note_text import SUMMARY, write_notes
from ehrlab.simulation.notes import facts
from ehrlab.simulation.population import Bools, Floats, Ints, Orders, Shard, check_size, simulate_spec
from ehrlab.simulation.spec import population
from ehrlab.simulation.specification import SPECIFICATION
from ehrlab.simulation.streams import Stream, choose, stream

MODALITIES = ("codes", "labs", "charts", "notes")

_FIRST_SUBJECT, _FIRST_HADM, _FIRST_STAY = 10_000_000, 200_000_000, 300_000_000
_SPECIMENS_PER_VISIT, _ORDERS_PER_STAY = 100, 1_000  # room in the identifiers

_TOP_AGE, _TOP_CODE = 89, 91
_KNOWN_DEATH_DAYS = 365  # after the last discharge
# Real years of entry and their shares. A record of seven years that begins before 2016 ends before 2023.
_ENTRY_YEARS = {2008: 2, 2009: 2, 2010: 2, 2011: 3, 2012: 3, 2013: 3, 2014: 7, 2015: 7}
_YEAR_GROUPS = ("2008 - 2010", "2011 - 2013", "2014 - 2016")
_ICD10_YEAR, _ICD10_MONTH = 2015, 10

_RACE = ("WHITE", "BLACK/AFRICAN AMERICAN", "ASIAN", "HISPANIC OR LATINO", "OTHER")  # in the order of spec.RACES
_UNKNOWN_RACE = "UNKNOWN"
_ADMISSION_TYPES = {"EW EMER.": 0.83, "ELECTIVE": 0.14, "URGENT": 0.03}
_ADMISSION_LOCATIONS = ("EMERGENCY ROOM", "PHYSICIAN REFERRAL", "TRANSFER FROM HOSPITAL")  # in the order of the types
_DISCHARGE_LOCATIONS = {"HOME": 0.40, "HOME HEALTH CARE": 0.30, "SKILLED NURSING FACILITY": 0.18, "REHAB": 0.12}
_DIED = "DIED"
_MARITAL = {"MARRIED": 0.50, "SINGLE": 0.25, "WIDOWED": 0.15, "DIVORCED": 0.10}
_LANGUAGE = {"English": 0.85, "Spanish": 0.05, "Russian": 0.04, "Portuguese": 0.03, "Chinese": 0.03}
_CARE_UNITS = {
    "Medical Intensive Care Unit (MICU)": 0.45,
    "Coronary Care Unit (CCU)": 0.25,
    "Surgical Intensive Care Unit (SICU)": 0.15,
    "Cardiac Vascular Intensive Care Unit (CVICU)": 0.10,
    "Trauma SICU (TSICU)": 0.05,
}
_UNLINKED = 0.27  # of the specimens after the first: of all results, the 18.7 % of the release's demo
_GOLDEN = 0.6180339887498949  # spreads one uniform number of a visit over its specimens

_UNIT_NAMES = {"?F": "°F"}  # MIMIC-III's spelling -> MIMIC-IV's
_CHART_COLUMNS = {
    "chartevents": "subject_id hadm_id stay_id caregiver_id charttime storetime itemid value valuenum valueuom warning",
    "inputevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid amount amountuom rate "
    "rateuom orderid linkorderid ordercategoryname secondaryordercategoryname ordercomponenttypedescription "
    "ordercategorydescription patientweight totalamount totalamountuom isopenbag continueinnextdept statusdescription "
    "originalamount originalrate",
    "procedureevents": "subject_id hadm_id stay_id caregiver_id starttime endtime storetime itemid value valueuom "
    "location locationcategory orderid linkorderid ordercategoryname ordercategorydescription patientweight isopenbag "
    "continueinnextdept statusdescription originalamount originalrate",
}


def write_mimic4(
    root: Path,
    preset: str,
    num_patients: int,
    seed: int,
    *,
    shape: str = "mimic",
    modalities: Sequence[str] = ("codes",),
    time: float = 1.0,
    order: float = 1.0,
    null: bool = False,
    prevalence: float = 1.0,
    compress: bool = False,
) -> None:
    """Writes patients, admissions, diagnoses_icd, procedures_icd, prescriptions, the ICD dictionaries and icustays.

    preset       a task's name; shape "mimic" or "toy"; time, order, null, prevalence: see knobs.Knobs
    modalities   of MODALITIES; the tables above are always written. "labs" adds labevents and d_labitems, "charts"
                 chartevents, inputevents, procedureevents and d_items, "notes" discharge
    `compress` writes .csv.gz, several times slower than .csv
    Raises InputError for unknown names, impossible sizes and a folder that is not empty.
    """
    check_size(num_patients, seed)
    chosen = check_modalities(modalities, MODALITIES)
    knobs = Knobs(time, order, null, prevalence)
    spec = turn(population(preset, shape), knobs)
    if spec.shape.stay_days is None:
        raise InputError(
            f"simulator: MIMIC-IV tables need shape 'mimic' or 'toy' (hospital stays), found '{shape}'; change it"
        )
    description: dict[str, Value] = {
        "specification": SPECIFICATION,
        "layout": "mimic4",
        "preset": preset,
        "shape": shape,
        "num_patients": num_patients,
        "seed": seed,
        "modalities": " ".join(chosen),
        **asdict(knobs),
    }
    with RawFolder(root, description, compress=compress) as folder:
        for module in ("hosp", "icu", "note"):
            if module != "note" or "notes" in chosen:
                (root / module).mkdir()
        num_results = 0
        shards = simulate_spec(spec, num_patients, seed)
        for tables in itertools.chain([_dictionaries(chosen)], (mimic4_tables(shard, chosen) for shard in shards)):
            for table, rows in tables.items():
                if table == "hosp/labevents":
                    rows = rows.with_row_index("labevent_id", offset=num_results + 1)
                    num_results += len(rows)
                folder.append(table, rows, "non_numeric")


def clock(shard: Shard) -> tuple[Ints, Times]:
    """Of each patient the subject_id and the start of day 0: [patient] int64, datetime64[us]."""
    return _FIRST_SUBJECT + patient_numbers(shard), entry_dates(shard).astype("datetime64[us]")


def _dictionaries(modalities: Sequence[str]) -> dict[str, pl.DataFrame]:
    """Every code of both versions; every laboratory test and everything charted, where these are written."""

    def both(ninth: pl.DataFrame, tenth: pl.DataFrame) -> pl.DataFrame:
        versions = ((ninth.rename({"ICD9_CODE": "icd_code"}), 9), (tenth.rename({"ICD10_CODE": "icd_code"}), 10))
        parts = (rows.select("icd_code", icd_version=version, long_title="LONG_TITLE") for rows, version in versions)
        return pl.concat(parts).sort("icd_code", "icd_version")

    tables = {
        "hosp/d_icd_diagnoses": both(codes.diagnoses(), icd10.diagnoses()),
        "hosp/d_icd_procedures": both(codes.procedures(), icd10.procedures()),
    }
    if "labs" in modalities:
        items = _lower(mimic_events.lab_dictionary()["D_LABITEMS"])
        tables["hosp/d_labitems"] = items.select("itemid", "label", "fluid", "category")
    if "charts" in modalities:
        items = _lower(mimic_events.chart_dictionary()["D_ITEMS"])
        tables["icu/d_items"] = items.select(
            "itemid",
            "label",
            "abbreviation",
            pl.col("linksto").str.strip_suffix("_mv"),
            "category",
            pl.col("unitname").replace(_UNIT_NAMES),
            "param_type",
            lownormalvalue=None,
            highnormalvalue=None,
        )
    return tables


def mimic4_tables(shard: Shard, modalities: Sequence[str] = ("codes",)) -> dict[str, pl.DataFrame]:
    """The rows of one shard for each table, in the release's columns; of labevents without labevent_id."""
    visits, disease = shard.visits, shard.spec.disease
    num_visits = len(visits.patient)
    subject, day_zero = clock(shard)
    number, entry = admission_numbers(shard), day_zero[visits.patient]
    admit, discharge = moment(entry, visits.start_day), moment(entry, visits.end_day)
    patient_draws = stream(disease.name, shard.seed, shard.block, Stream.MIMIC4_PATIENT).random((shard.num_patients, 3))
    visit_draws = stream(disease.name, shard.seed, shard.block, Stream.MIMIC4_ADMISSION).random((num_visits, 9))

    keys = {"subject_id": pl.Series(subject[visits.patient]), "hadm_id": pl.Series(_FIRST_HADM + number)}
    entry_year = day_zero.astype("datetime64[Y]").astype(np.int64) + 1970
    real_year = np.array(list(_ENTRY_YEARS))[choose(tuple(_ENTRY_YEARS.values()), patient_draws[:, 0])]
    is_tenth = discharge >= _start_of_icd10(entry_year - real_year)[visits.patient]
    tables = {
        "hosp/patients": _patients(shard, subject, day_zero, entry_year, real_year),
        "hosp/admissions": _admissions(shard, keys, admit, discharge, patient_draws, visit_draws),
        "hosp/diagnoses_icd": _diagnoses(shard, keys, is_tenth),
        "hosp/procedures_icd": _procedures(shard, keys, admit, discharge, is_tenth, visit_draws[:, 6]),
        "hosp/prescriptions": _prescriptions(shard, keys, number, admit, discharge),
        "icu/icustays": _icu_stays(draw_stays(shard), keys, number, entry, visit_draws[:, 7]),
    }
    # Keys as mimic_events names them, in both layouts.
    raw_keys = {name.upper(): key for name, key in keys.items()} | {"ICUSTAY_ID": pl.Series(_FIRST_STAY + number)}
    if "labs" in modalities:
        results = mimic_events.lab_tables(shard, raw_keys, day_zero)["LABEVENTS"]
        tables["hosp/labevents"] = _lab_results(results, number, visit_draws[:, 8])
    if "charts" in modalities:
        for name, rows in mimic_events.chart_tables(shard, raw_keys, day_zero).items():
            table = name.lower().removesuffix("_mv")
            tables[f"icu/{table}"] = _charts(table, rows)
    if "notes" in modalities:
        tables["note/discharge"] = _summaries(shard, keys, discharge)
    return tables


def _start_of_icd10(shift_years: Ints) -> Times:
    """The day on which ICD-10 came into use, in dates shifted by so many years."""
    months = 12 * (_ICD10_YEAR + shift_years - 1970) + _ICD10_MONTH - 1
    return months.astype("datetime64[M]").astype("datetime64[us]")


def _patients(shard: Shard, subject: Ints, day_zero: Times, entry_year: Ints, real_year: Ints) -> pl.DataFrame:
    patients, visits, death_day = shard.patients, shard.visits, shard.latent.death_day
    age = np.floor(patients.age).astype(np.int64)
    last_visit = np.searchsorted(visits.patient, np.arange(shard.num_patients), side="right") - 1
    is_known = death_day <= visits.end_day[last_visit] + _KNOWN_DEATH_DAYS
    died = day_zero.astype("datetime64[D]") + np.floor(np.where(is_known, death_day, 0.0)).astype("timedelta64[D]")
    table = frame(
        {
            "subject_id": subject,
            "gender": pl.Series(["M", "F"]).gather(patients.is_female.astype(np.int64)),
            "anchor_age": np.where(age > _TOP_AGE, _TOP_CODE, age),
            "anchor_year": entry_year,
            "anchor_year_group": pl.Series(_YEAR_GROUPS).gather((real_year - min(_ENTRY_YEARS)) // 3),
            "dod": died,
        }
    )
    return table.with_columns(pl.when(pl.Series(is_known)).then("dod").alias("dod"))


def _admissions(
    shard: Shard, keys: dict[str, pl.Series], admit: Times, discharge: Times, patient_draws: Floats, draws: Floats
) -> pl.DataFrame:
    patients, visits = shard.patients, shard.visits
    of_patient = patient_draws[visits.patient]
    kind = choose(tuple(_ADMISSION_TYPES.values()), draws[:, 0])
    # Hours in the emergency room stay within the week of the admission, where no other stay can be.
    waited = draws[:, 1] * np.minimum(0.25, visits.start_day - 7 * visits.week)
    registered = admit - np.floor(waited * 1440.0).astype("timedelta64[m]")
    left = registered + np.floor(waited * (0.5 + 0.5 * draws[:, 2]) * 1440.0).astype("timedelta64[m]")
    age = patients.age[visits.patient] + visits.start_day / 365.25
    insurance = np.where(age >= 65, 0, 1 + choose((0.75, 0.2, 0.05), draws[:, 3]))
    race = np.where(draws[:, 4] < 0.08, len(_RACE), patients.race[visits.patient])
    table = frame(
        {
            **keys,
            "admittime": admit,
            "dischtime": discharge,
            "deathtime": discharge,
            "admission_type": pl.Series(list(_ADMISSION_TYPES)).gather(kind),
            "admit_provider_id": None,
            "admission_location": pl.Series(_ADMISSION_LOCATIONS).gather(kind),
            "discharge_location": drawn(_DISCHARGE_LOCATIONS, draws[:, 5]),
            "insurance": pl.Series(["Medicare", "Private", "Medicaid", "Other"]).gather(insurance),
            "language": drawn(_LANGUAGE, of_patient[:, 1]),
            "marital_status": drawn(_MARITAL, of_patient[:, 2]),
            "race": pl.Series([*_RACE, _UNKNOWN_RACE]).gather(race),
            "edregtime": registered,
            "edouttime": left,
            "hospital_expire_flag": visits.is_fatal.astype(np.int64),
        }
    )
    is_fatal, is_emergency = pl.col("hospital_expire_flag") == 1, pl.Series(kind == 0)
    return table.with_columns(
        pl.when(is_fatal).then("deathtime").alias("deathtime"),
        pl.when(is_fatal).then(pl.lit(_DIED)).otherwise("discharge_location").alias("discharge_location"),
        *(pl.when(is_emergency).then(name).alias(name) for name in ("edregtime", "edouttime")),
    )


def _diagnoses(shard: Shard, keys: dict[str, pl.Series], is_tenth: Bools) -> pl.DataFrame:
    """seq_num counts from 1 within an admission in the order of the vocabulary; codes that became one count once."""
    ninth = [code.replace(".", "") for code in shard.vocabulary.codes]
    tenth = icd10.counterparts(shard.spec)
    first: dict[str, int] = {}
    same = np.array([first.setdefault(code, i) for i, code in enumerate(tenth)])
    visit, code = shard.codes.visit, shard.codes.code
    merged = np.where(is_tenth[visit], same[code], code)
    distinct = Orders(*np.divmod(np.unique(visit * len(ninth) + merged), len(ninth)))
    return _coded(keys, distinct, ninth, tenth, is_tenth)


def _procedures(
    shard: Shard, keys: dict[str, pl.Series], admit: Times, discharge: Times, is_tenth: Bools, uniform: Floats
) -> pl.DataFrame:
    ninth = [code for _, code in shard.spec.disease.procedures]
    orders = shard.procedures
    performed = (admit + ((discharge - admit) * uniform)).astype("datetime64[D]")[orders.visit]
    bare = [code.replace(".", "") for code in ninth]
    table = _coded(keys, orders, bare, [icd10.PROCEDURES[code] for code in ninth], is_tenth)
    return table.insert_column(table.columns.index("icd_code"), pl.Series("chartdate", performed))


def _coded(
    keys: dict[str, pl.Series], orders: Orders, ninth: Sequence[str], tenth: Sequence[str], is_tenth: Bools
) -> pl.DataFrame:
    version = is_tenth[orders.visit].astype(np.int64)
    printed = pl.Series([*ninth, *tenth], dtype=pl.String)
    return frame(
        {
            **{name: key.gather(orders.visit) for name, key in keys.items()},
            "seq_num": numbers_within(orders.visit),
            "icd_code": printed.gather(orders.code + len(ninth) * version),
            "icd_version": 9 + version,
        }
    )


def _prescriptions(
    shard: Shard, keys: dict[str, pl.Series], number: Ints, admit: Times, discharge: Times
) -> pl.DataFrame:
    visit, drug = shard.drugs.visit, shard.drugs.code
    order = number[visit] * len(DRUGS) + drug
    # Whole hours, as in most of the release; the shortest stay is longer than one.
    start = (admit.astype("datetime64[h]") + np.timedelta64(1, "h")).astype("datetime64[us]")
    stop = discharge.astype("datetime64[h]").astype("datetime64[us]")
    subject = keys["subject_id"].gather(visit)
    sequence = numbers_within(shard.visits.patient[visit])

    def of(attribute: str) -> pl.Series:
        return pl.Series([getattr(d, attribute) for d in DRUGS]).gather(drug)

    return frame(
        {
            "subject_id": subject,
            "hadm_id": keys["hadm_id"].gather(visit),
            "pharmacy_id": order,
            "poe_id": subject.cast(pl.String) + "-" + pl.Series(sequence).cast(pl.String),
            "poe_seq": sequence,
            "order_provider_id": None,
            "starttime": start[visit],
            "stoptime": stop[visit],
            "drug_type": "MAIN",
            "drug": of("title"),
            "formulary_drug_cd": None,
            "gsn": None,
            "ndc": "0",
            "prod_strength": None,
            "form_rx": None,
            "dose_val_rx": of("dose"),
            "dose_unit_rx": of("unit"),
            "form_val_disp": "1",
            "form_unit_disp": of("form"),
            "doses_per_24_hrs": 1,
            "route": of("route"),
        }
    )


def _icu_stays(stays: Stays, keys: dict[str, pl.Series], number: Ints, entry: Times, uniform: Floats) -> pl.DataFrame:
    visit = stays.visit
    into = at_minute(entry[visit], stays.first_minute)
    unit = drawn(_CARE_UNITS, uniform[visit])
    return frame(
        {
            **{name: key.gather(visit) for name, key in keys.items()},
            "stay_id": _FIRST_STAY + number[visit],
            "first_careunit": unit,
            "last_careunit": unit,
            "intime": into,
            "outtime": into + stays.num_minutes.astype("timedelta64[m]"),
            "los": np.round(stays.num_minutes / 1440.0, 4),
        }
    )


def _lower(rows: pl.DataFrame) -> pl.DataFrame:
    return rows.rename(str.lower)


def _lab_results(results: pl.DataFrame, number: Ints, uniform: Floats) -> pl.DataFrame:
    """labevents from MIMIC-III's LABEVENTS, whose rows are ordered by visit and time; `uniform` of each visit."""
    rows = _lower(results)
    visit = np.searchsorted(number, rows["hadm_id"].to_numpy() - _FIRST_HADM)
    ranges = pl.DataFrame(
        [(test.itemid, *map(float, test.normal)) for test in LABS],
        schema=["itemid", "ref_range_lower", "ref_range_upper"],
        orient="row",
    )
    rows = rows.join(ranges, on="itemid", how="left", maintain_order="left")
    specimen = rows.select(pl.col("charttime").rank("dense").over("hadm_id")).to_series().to_numpy().astype(np.int64)
    is_unlinked = (specimen > 1) & ((uniform[visit] + specimen * _GOLDEN) % 1.0 < _UNLINKED)
    return frame(
        {
            "subject_id": rows["subject_id"],
            "hadm_id": rows.select(pl.when(pl.Series(~is_unlinked)).then("hadm_id")).to_series(),
            "specimen_id": number[visit] * _SPECIMENS_PER_VISIT + specimen,
            "itemid": rows["itemid"],
            "order_provider_id": None,
            "charttime": rows["charttime"],
            "storetime": rows["charttime"].dt.offset_by("1h"),
            "value": rows["value"],
            "valuenum": rows["valuenum"],
            "valueuom": rows["valueuom"],
            "ref_range_lower": rows["ref_range_lower"],
            "ref_range_upper": rows["ref_range_upper"],
            "flag": rows["flag"],
            "priority": "ROUTINE",
            "comments": None,
        }
    )


def _charts(table: str, rows: pl.DataFrame) -> pl.DataFrame:
    """A table of icu/ from its counterpart in MIMIC-III."""
    rows = _lower(rows).rename({"icustay_id": "stay_id", "cgid": "caregiver_id"})
    if table == "chartevents":
        rows = rows.with_columns(pl.col("valueuom").replace(_UNIT_NAMES))
    else:
        order = pl.col("stay_id") * _ORDERS_PER_STAY + pl.int_range(pl.len()).over("stay_id")
        rows = rows.with_columns(orderid=order, linkorderid=order)
    if table == "procedureevents":
        rows = rows.with_columns(patientweight=None, originalamount="value", originalrate=1)
    return rows.select(_CHART_COLUMNS[table].split())


def _summaries(shard: Shard, keys: dict[str, pl.Series], discharge: Times) -> pl.DataFrame:
    """discharge: one summary of every admission. MIMIC-IV has no notes of nurses."""
    notes = write_notes(shard, facts(shard)).filter(category=SUMMARY)
    visit = notes["visit"].to_numpy()
    subject = keys["subject_id"].gather(visit)
    sequence = numbers_within(shard.visits.patient[visit])
    return frame(
        {
            "note_id": subject.cast(pl.String) + "-DS-" + pl.Series(sequence).cast(pl.String),
            "subject_id": subject,
            "hadm_id": keys["hadm_id"].gather(visit),
            "note_type": "DS",
            "note_seq": sequence,
            "charttime": discharge[visit],
            "storetime": discharge[visit] + np.timedelta64(1, "h"),
            "text": notes["text"],
        }
    )
