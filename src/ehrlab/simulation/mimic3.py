"""Simulated patients as the raw tables of MIMIC-III v1.4: names, columns, order, spellings and dates of the release.

What the layout adds to the shard (ethnicity, insurance, ward, hours of the day) is drawn from its own streams and is
independent of the latent chain given the codes.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.simulation import codes, icu, mimic_events
from ehrlab.simulation.drugs import DRUGS
from ehrlab.simulation.folder import RawFolder, Value, check_modalities, frame
from ehrlab.simulation.hospital import admission_numbers, at_minute, drawn, entry_dates, moment, patient_numbers
from ehrlab.simulation.knobs import Knobs, turn
from ehrlab.simulation.mimic_events import Dates, Keys
from ehrlab.simulation.note_text import noteevents
from ehrlab.simulation.population import Bools, Floats, Ints, Shard, check_size, simulate_spec
from ehrlab.simulation.spec import population
from ehrlab.simulation.specification import SPECIFICATION
from ehrlab.simulation.streams import Stream, choose, stream

_FIRST_SUBJECT = 10_000
_FIRST_HADM = 100_000_000
_FIRST_ICUSTAY = 200_000_000

_DEIDENTIFIED_AGE = 89.0
_SHIFTED_YEARS = 300

_ETHNICITY = ("WHITE", "BLACK/AFRICAN AMERICAN", "ASIAN", "HISPANIC OR LATINO", "OTHER")  # in the order of spec.RACES
_UNKNOWN_ETHNICITY = "UNKNOWN/NOT SPECIFIED"
_ADMISSION_TYPES = {"EMERGENCY": 0.83, "ELECTIVE": 0.14, "URGENT": 0.03}
_ADMISSION_LOCATIONS = {
    "EMERGENCY ROOM ADMIT": "EMERGENCY",
    "PHYS REFERRAL/NORMAL DELI": "ELECTIVE",
    "TRANSFER FROM HOSP/EXTRAM": "URGENT",
}
_DISCHARGE_LOCATIONS = {"HOME": 0.40, "HOME HEALTH CARE": 0.30, "SNF": 0.18, "REHAB/DISTINCT PART HOSP": 0.12}
_DIED = "DEAD/EXPIRED"
_MARITAL = {"MARRIED": 0.50, "SINGLE": 0.25, "WIDOWED": 0.15, "DIVORCED": 0.10}
_RELIGION = {"CATHOLIC": 0.45, "NOT SPECIFIED": 0.30, "PROTESTANT QUAKER": 0.15, "JEWISH": 0.10}
_LANGUAGE = {"ENGL": 0.85, "SPAN": 0.05, "RUSS": 0.04, "PTUN": 0.03, "CANT": 0.03}
_UNITS = {"MICU": 0.45, "CCU": 0.25, "SICU": 0.15, "CSRU": 0.10, "TSICU": 0.05}
_WARDS = (50, 7, 33, 14, 23)


def _notes(shard: Shard, keys: Keys, entry: Dates) -> dict[str, pl.DataFrame]:
    of_visit = entry[shard.visits.patient]
    admit, discharge = moment(of_visit, shard.visits.start_day), moment(of_visit, shard.visits.end_day)
    return {"NOTEEVENTS": noteevents(shard, keys, admit, discharge)}


# What a modality adds: its dictionaries, and its rows of a shard.
_MODALITIES: dict[
    str, tuple[Callable[[], dict[str, pl.DataFrame]], Callable[[Shard, Keys, Dates], dict[str, pl.DataFrame]]]
] = {
    "labs": (mimic_events.lab_dictionary, mimic_events.lab_tables),
    "charts": (mimic_events.chart_dictionary, mimic_events.chart_tables),
    "notes": (dict, _notes),
}
MODALITIES = ("codes", *_MODALITIES)


def write_mimic3(
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
    """Writes PATIENTS, ADMISSIONS, ICUSTAYS, DIAGNOSES_ICD, PROCEDURES_ICD, PRESCRIPTIONS and the two ICD dictionaries.

    preset       a task's name; shape "mimic" or "toy"; time, order, null, prevalence: see knobs.Knobs
    modalities   of MODALITIES; the tables above are always written. "labs" adds D_LABITEMS and LABEVENTS, "charts"
                 D_ITEMS, CHARTEVENTS, INPUTEVENTS_MV and PROCEDUREEVENTS_MV, "notes" NOTEEVENTS
    `compress` writes .csv.gz, several times slower than .csv
    Raises InputError for unknown names, impossible sizes and a folder that is not empty.
    """
    check_size(num_patients, seed)
    chosen = check_modalities(modalities, MODALITIES)
    knobs = Knobs(time, order, null, prevalence)
    spec = turn(population(preset, shape), knobs)
    if spec.shape.stay_days is None:
        raise InputError(
            f"simulator: MIMIC-III tables need shape 'mimic' or 'toy' (hospital stays), found '{shape}'; change it"
        )
    description: dict[str, Value] = {
        "specification": SPECIFICATION,
        "layout": "mimic3",
        "preset": preset,
        "shape": shape,
        "num_patients": num_patients,
        "seed": seed,
        "modalities": " ".join(chosen),
        **asdict(knobs),
    }
    with RawFolder(root, description, compress=compress) as folder:
        num_rows: dict[str, int] = {}
        dictionaries = {"D_ICD_DIAGNOSES": codes.diagnoses(), "D_ICD_PROCEDURES": codes.procedures()}
        for name in chosen[1:]:
            dictionaries |= _MODALITIES[name][0]()
        shards = simulate_spec(spec, num_patients, seed)
        for tables in itertools.chain([dictionaries], (mimic3_tables(shard, chosen) for shard in shards)):
            for table, rows in tables.items():
                begin = num_rows.get(table, 0) + 1
                num_rows[table] = num_rows.get(table, 0) + len(rows)
                folder.append(table, rows.with_row_index("ROW_ID", offset=begin), "non_numeric")


def mimic3_tables(shard: Shard, modalities: Sequence[str] = ("codes",)) -> dict[str, pl.DataFrame]:
    """The rows of one shard for each table, in the release's columns without ROW_ID."""
    visits, num_visits = shard.visits, len(shard.visits.patient)
    first_visit = np.searchsorted(visits.patient, np.arange(shard.num_patients))
    subject, offset, entry = _FIRST_SUBJECT + patient_numbers(shard), admission_numbers(shard), entry_dates(shard)
    admit = moment(entry[visits.patient], visits.start_day)
    discharge = moment(entry[visits.patient], visits.end_day)
    disease = shard.spec.disease.name
    patient_draws = stream(disease, shard.seed, shard.block, Stream.MIMIC_PATIENT).random((shard.num_patients, 4))
    # The width is part of the specification; of the columns 0 to 5 and 8 are in use.
    visit_draws = stream(disease, shard.seed, shard.block, Stream.MIMIC_ADMISSION).random((num_visits, 10))

    keys = {
        "SUBJECT_ID": pl.Series(subject[visits.patient]),
        "HADM_ID": pl.Series(_FIRST_HADM + offset),
        "ICUSTAY_ID": pl.Series(_FIRST_ICUSTAY + offset),
    }
    stays = icu.draw_stays(shard)
    has_charts = np.isin(np.arange(num_visits), stays.visit) & ("charts" in modalities)
    tables = {
        "PATIENTS": _patients(shard, subject, entry, admit, first_visit, patient_draws),
        "ADMISSIONS": _admissions(shard, keys, admit, discharge, patient_draws, visit_draws, has_charts),
        "ICUSTAYS": _icu_stays(shard, stays, keys, entry, visit_draws),
        "DIAGNOSES_ICD": _coded(keys, shard.codes.visit, shard.codes.code, shard.vocabulary.codes),
        "PROCEDURES_ICD": _coded(
            keys, shard.procedures.visit, shard.procedures.code, [code for _, code in shard.spec.disease.procedures]
        ),
        "PRESCRIPTIONS": _prescriptions(shard, keys, admit, discharge),
    }
    for name in modalities:
        if name in _MODALITIES:
            tables |= _MODALITIES[name][1](shard, keys, entry)
    return tables


def _patients(
    shard: Shard,
    subject: Ints,
    entry: Dates,
    admit: Dates,
    first_visit: Ints,
    draws: Floats,
) -> pl.DataFrame:
    patients, visits, death_day = shard.patients, shard.visits, shard.latent.death_day
    birth = entry - np.floor(patients.age * 365.25).astype("timedelta64[D]")
    last_visit = np.append(first_visit[1:], len(visits.patient)) - 1
    oldest = patients.age + visits.end_day[last_visit] / 365.25
    # The release moves the birth of anybody seen above 89 so that the first admission is at the age of 300.
    first_day = admit[first_visit].astype("datetime64[D]")
    shifted = first_day - np.floor(_SHIFTED_YEARS * 365.25).astype("timedelta64[D]")
    birth = np.where(oldest > _DEIDENTIFIED_AGE, shifted, birth)

    has_died = np.isfinite(death_day)
    death = entry + np.floor(np.where(has_died, death_day, 0.0)).astype("timedelta64[D]")
    in_hospital = visits.is_fatal[last_visit]
    reported = has_died & (~in_hospital | (draws[:, 3] < 0.6))  # to the social security registry
    died = pl.Series(death.astype("datetime64[us]"))

    def when(mask: NDArray[np.bool_]) -> pl.Series:
        return pl.select(pl.when(pl.Series(mask)).then(died)).to_series()

    return frame(
        {
            "SUBJECT_ID": subject,
            "GENDER": pl.Series(["M", "F"]).gather(patients.is_female.astype(np.int64)),
            "DOB": birth.astype("datetime64[us]"),
            "DOD": when(has_died),
            "DOD_HOSP": when(in_hospital),
            "DOD_SSN": when(reported),
            "EXPIRE_FLAG": has_died.astype(np.int64),
        }
    )


def _admissions(
    shard: Shard,
    keys: Keys,
    admit: Dates,
    discharge: Dates,
    patient_draws: Floats,
    draws: Floats,
    has_charts: Bools,
) -> pl.DataFrame:
    patients, visits = shard.patients, shard.visits
    of_patient = patient_draws[visits.patient]
    kind = choose(tuple(_ADMISSION_TYPES.values()), draws[:, 0])
    is_emergency = pl.Series(kind == list(_ADMISSION_TYPES).index("EMERGENCY"))
    locations = {kind: location for location, kind in _ADMISSION_LOCATIONS.items()}
    # Hours in the emergency room stay within the week of the admission, where no other stay can be.
    registered = visits.start_day - draws[:, 1] * np.minimum(0.25, visits.start_day - 7 * visits.week)
    hours = (visits.start_day - registered) * (0.5 + 0.5 * draws[:, 2])
    age = patients.age[visits.patient] + visits.start_day / 365.25
    insurance = np.where(age >= 65, 0, 1 + choose((0.75, 0.2, 0.05), draws[:, 3]))
    ethnicity = np.where(draws[:, 4] < 0.08, len(_ETHNICITY), patients.race[visits.patient])
    first_code = shard.codes.code[np.searchsorted(shard.codes.visit, np.arange(len(visits.patient)))]
    titles = dict(codes.diagnoses().select("ICD9_CODE", "SHORT_TITLE").iter_rows())
    first_titles = pl.Series([titles[code.replace(".", "")].upper() for code in shard.vocabulary.codes])
    is_fatal = pl.Series(visits.is_fatal)
    minutes = (admit - moment(admit, registered - visits.start_day)).astype("timedelta64[m]")
    table = frame(
        {
            "SUBJECT_ID": keys["SUBJECT_ID"],
            "HADM_ID": keys["HADM_ID"],
            "ADMITTIME": admit,
            "DISCHTIME": discharge,
            "DEATHTIME": discharge,
            "ADMISSION_TYPE": pl.Series(list(_ADMISSION_TYPES)).gather(kind),
            "ADMISSION_LOCATION": pl.Series([locations[kind] for kind in _ADMISSION_TYPES]).gather(kind),
            "DISCHARGE_LOCATION": drawn(_DISCHARGE_LOCATIONS, draws[:, 5]),
            "INSURANCE": pl.Series(["Medicare", "Private", "Medicaid", "Government"]).gather(insurance),
            "LANGUAGE": drawn(_LANGUAGE, of_patient[:, 0]),
            "RELIGION": drawn(_RELIGION, of_patient[:, 1]),
            "MARITAL_STATUS": drawn(_MARITAL, of_patient[:, 2]),
            "ETHNICITY": pl.Series([*_ETHNICITY, _UNKNOWN_ETHNICITY]).gather(ethnicity),
            "EDREGTIME": admit - minutes,
            "EDOUTTIME": admit - minutes + (hours * 1440.0).astype("timedelta64[m]"),
            "DIAGNOSIS": first_titles.gather(first_code),
            "HOSPITAL_EXPIRE_FLAG": visits.is_fatal.astype(np.int64),
            "HAS_CHARTEVENTS_DATA": has_charts.astype(np.int64),
        }
    )
    return table.with_columns(
        pl.when(is_fatal).then("DEATHTIME").alias("DEATHTIME"),
        pl.when(is_fatal).then(pl.lit(_DIED)).otherwise("DISCHARGE_LOCATION").alias("DISCHARGE_LOCATION"),
        *(pl.when(is_emergency).then(name).alias(name) for name in ("EDREGTIME", "EDOUTTIME")),
    )


def _icu_stays(shard: Shard, stays: icu.Stays, keys: Keys, entry: Dates, draws: Floats) -> pl.DataFrame:
    """One stay within nearly every admission, as the release is made of patients of intensive care."""
    into = at_minute(entry[shard.visits.patient[stays.visit]], stays.first_minute)
    unit = choose(tuple(_UNITS.values()), draws[stays.visit, 8])
    ward = np.array(_WARDS)[unit]
    name = pl.Series(list(_UNITS)).gather(unit)
    return frame(
        {
            **{key: values.gather(stays.visit) for key, values in keys.items()},
            "DBSOURCE": "metavision",
            "FIRST_CAREUNIT": name,
            "LAST_CAREUNIT": name,
            "FIRST_WARDID": ward,
            "LAST_WARDID": ward,
            "INTIME": into,
            "OUTTIME": into + stays.num_minutes.astype("timedelta64[m]"),
            "LOS": np.round(stays.num_minutes / icu.DAY, 4),
        }
    )


def _coded(keys: Keys, visit: Ints, code: Ints, names: Sequence[str]) -> pl.DataFrame:
    """SEQ_NUM counts from 1 within an admission in the order of the vocabulary."""
    begin = np.searchsorted(visit, np.arange(len(keys["HADM_ID"])))
    bare = pl.Series([name.replace(".", "") for name in names], dtype=pl.String)
    return frame(
        {
            "SUBJECT_ID": keys["SUBJECT_ID"].gather(visit),
            "HADM_ID": keys["HADM_ID"].gather(visit),
            "SEQ_NUM": np.arange(len(visit)) - begin[visit] + 1,
            "ICD9_CODE": bare.gather(code),
        }
    )


def _prescriptions(shard: Shard, keys: Keys, admit: Dates, discharge: Dates) -> pl.DataFrame:
    visit, drug = shard.drugs.visit, shard.drugs.code

    def of(attribute: str) -> pl.Series:
        return pl.Series([getattr(d, attribute) for d in DRUGS]).gather(drug)

    return frame(
        {
            "SUBJECT_ID": keys["SUBJECT_ID"].gather(visit),
            "HADM_ID": keys["HADM_ID"].gather(visit),
            "ICUSTAY_ID": None,
            "STARTDATE": admit[visit].astype("datetime64[D]").astype("datetime64[us]"),
            "ENDDATE": discharge[visit].astype("datetime64[D]").astype("datetime64[us]"),
            "DRUG_TYPE": "MAIN",
            "DRUG": of("title"),
            "DRUG_NAME_POE": of("title"),
            "DRUG_NAME_GENERIC": of("title"),
            "FORMULARY_DRUG_CD": None,
            "GSN": None,
            "NDC": "0",
            "PROD_STRENGTH": None,
            "DOSE_VAL_RX": of("dose"),
            "DOSE_UNIT_RX": of("unit"),
            "FORM_VAL_DISP": "1",
            "FORM_UNIT_DISP": of("form"),
            "ROUTE": of("route"),
        }
    )


def clock(shard: Shard) -> tuple[Ints, NDArray[np.datetime64]]:
    """Of each patient the SUBJECT_ID and the start of day 0: [patient] int64, datetime64[us]."""
    return _FIRST_SUBJECT + patient_numbers(shard), entry_dates(shard).astype("datetime64[us]")
