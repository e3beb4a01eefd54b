"""Simulated patients as a TriNetX export: flat CSV files, string identifiers, dates as YYYYMMDD, ICD-9-CM only.

What the layout adds (type of encounter, ethnicity, region) follows from the codes or from its own streams, never from
the latent chain. The one exception is a fatal encounter, which is always inpatient.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.simulation import labs
from ehrlab.simulation.drugs import DRUGS
from ehrlab.simulation.folder import Column, RawFolder, Value, check_modalities, frame
from ehrlab.simulation.knobs import Knobs, turn
from ehrlab.simulation.population import Floats, Ints, Shard, check_size, simulate_spec
from ehrlab.simulation.spec import RACES, population
from ehrlab.simulation.specification import SPECIFICATION
from ehrlab.simulation.streams import Stream, choose, stream

# A record of at most five years that begins before 2010 ends before ICD-10 came into use in October 2015.
_FIRST_DATE, _LAST_ENTRY = np.datetime64("2006-01-01"), np.datetime64("2009-12-31")
_TOP_CODED_AGE = 90

_RACE = {
    "white": "White",
    "black": "Black or African American",
    "asian": "Asian",
    "hispanic": "White",  # an ethnicity in this layout, not a race
    "other": "Unknown",
}
_REGIONS = {"South": 0.38, "Northeast": 0.27, "Midwest": 0.20, "West": 0.15}
_MARITAL = {"Married": 0.5, "Single": 0.3, "Unknown": 0.2}
# P(type | a trigger is coded), P(type | none is): the type says nothing that the codes do not.
_TYPES = ("AMB", "EMER", "IMP")
_TYPE_SHARES = {True: (0.50, 0.20, 0.30), False: (0.93, 0.04, 0.03)}
_CPT = ("99213", "99284", "99223")  # the visit's own procedure, by type
_CPT_SHARE = 0.4  # of the visits have it
_SOURCE = "SIM"
_DERIVED: dict[str, Column] = {"derived_by_TriNetX": "F", "source_id": _SOURCE}

MODALITIES = ("codes", "labs")


def write_trinetx(
    root: Path,
    preset: str,
    num_patients: int,
    seed: int,
    *,
    shape: str = "trinetx",
    modalities: Sequence[str] = ("codes",),
    time: float = 1.0,
    order: float = 1.0,
    null: bool = False,
    prevalence: float = 1.0,
    compress: bool = False,
) -> None:
    """Writes patient, encounter, diagnosis, procedure and medication_ingredient.

    preset       a task's name; time, order, null, prevalence: see knobs.Knobs
    modalities   of MODALITIES; the tables above are always written, "labs" adds lab_result and vital_signs
    `compress` writes .csv.gz, several times slower than .csv
    Raises InputError for unknown names, impossible sizes and a folder that is not empty.
    """
    check_size(num_patients, seed)
    chosen = check_modalities(modalities, MODALITIES)
    knobs = Knobs(time, order, null, prevalence)
    spec = turn(population(preset, shape), knobs)
    if spec.shape.stay_days is not None:
        raise InputError(
            f"simulator: a TriNetX export needs the outpatient shape 'trinetx', found '{shape}'; change it"
        )
    description: dict[str, Value] = {
        "specification": SPECIFICATION,
        "layout": "trinetx",
        "preset": preset,
        "shape": shape,
        "num_patients": num_patients,
        "seed": seed,
        "modalities": " ".join(chosen),
        **asdict(knobs),
    }
    with RawFolder(root, description, compress=compress) as folder:
        for shard in simulate_spec(spec, num_patients, seed):
            for table, rows in trinetx_tables(shard, chosen).items():
                folder.append(table, rows, "never")  # no value holds a comma


def trinetx_tables(shard: Shard, modalities: Sequence[str] = ("codes",)) -> dict[str, pl.DataFrame]:
    """The rows of one shard for each table, in the columns of an export."""
    patients, visits = shard.patients, shard.visits
    num_visits = len(visits.patient)
    disease = shard.spec.disease.name
    patient_draws = stream(disease, shard.seed, shard.block, Stream.TRINETX_PATIENT).random((shard.num_patients, 2))
    visit_draws = stream(disease, shard.seed, shard.block, Stream.TRINETX_ENCOUNTER).random((num_visits, 3))

    days = (_LAST_ENTRY - _FIRST_DATE).astype(np.int64)
    entry = np.floor(patients.entry * days).astype(np.int64)  # days since _FIRST_DATE
    calendar = _calendar(int(days) + 7 * shard.spec.shape.weeks + 14)

    patient_id = "P" + pl.Series(np.arange(shard.num_patients) + shard.first_patient).cast(pl.String)
    ordinal = np.arange(num_visits) - np.searchsorted(visits.patient, np.arange(shard.num_patients))[visits.patient]
    of_visit = patient_id.gather(visits.patient)
    encounter_id = of_visit + "E" + pl.Series(ordinal).cast(pl.String)

    kind = _encounter_types(shard, visit_draws[:, 0])
    weekday = np.floor(visits.start_day).astype(np.int64) - 7 * visits.week
    # A stay ends within its week, so that it can neither overlap the next encounter nor foretell it.
    nights = np.floor(visit_draws[:, 1] * (7 - weekday)).astype(np.int64)
    nights = np.where((kind == _TYPES.index("IMP")) & ~visits.is_fatal, nights, 0)
    start = entry[visits.patient] + np.floor(visits.start_day).astype(np.int64)
    date = calendar[start]

    def ids(visit: Ints) -> dict[str, Column]:
        return {"patient_id": of_visit.gather(visit), "encounter_id": encounter_id.gather(visit)}

    diagnosis, drug, procedure = shard.codes, shard.drugs, shard.procedures
    is_first = np.concatenate([[True], diagnosis.visit[1:] != diagnosis.visit[:-1]])
    evaluated = np.flatnonzero(visit_draws[:, 2] < _CPT_SHARE)
    procedure_visit = np.concatenate([procedure.visit, evaluated])
    is_cpt = np.arange(len(procedure_visit)) >= len(procedure.visit)
    procedure_codes = pl.Series([*(code for _, code in shard.spec.disease.procedures), *_CPT])
    procedure_code = np.concatenate([procedure.code, len(shard.spec.disease.procedures) + kind[evaluated]])
    tables = {
        "patient": _patients(shard, patient_id, entry, calendar, patient_draws),
        "encounter": frame(
            {
                "encounter_id": encounter_id,
                "patient_id": of_visit,
                "start_date": date,
                "end_date": calendar[start + nights],
                "type": pl.Series(_TYPES).gather(kind),
                "start_date_derived_by_TriNetX": "F",
                "end_date_derived_by_TriNetX": "F",
                **_DERIVED,
            }
        ),
        "diagnosis": frame(
            {
                **ids(diagnosis.visit),
                "code_system": "ICD-9-CM",
                "code": pl.Series(shard.vocabulary.codes).gather(diagnosis.code),
                "principal_diagnosis_indicator": pl.Series(["S", "P"]).gather(is_first.astype(np.int64)),
                "admitting_diagnosis": "U",
                "reason_for_visit": "U",
                "date": date[diagnosis.visit],
                **_DERIVED,
            }
        ),
        "procedure": frame(
            {
                **ids(procedure_visit),
                "code_system": pl.Series(["ICD-9-CM", "CPT"]).gather(is_cpt.astype(np.int64)),
                "code": procedure_codes.gather(procedure_code),
                "principal_procedure_indicator": "U",
                "date": date[procedure_visit],
                **_DERIVED,
            }
        ),
        "medication_ingredient": frame(
            {
                **ids(drug.visit),
                "unique_id": encounter_id.gather(drug.visit) + "M" + pl.Series(drug.code).cast(pl.String),
                "code_system": "RxNorm",
                "code": pl.Series([d.rxnorm for d in DRUGS]).gather(drug.code),
                "start_date": date[drug.visit],
                "route": "Unknown",
                "brand": None,
                "strength": None,
                **_DERIVED,
            }
        ),
    }
    if "labs" in modalities:
        tables |= _measurements(shard, ids, date)
    return tables


def _measurements(
    shard: Shard, ids: Callable[[Ints], dict[str, Column]], date: NDArray[np.int64]
) -> dict[str, pl.DataFrame]:
    """Laboratory results and clinic measurements on the first day of their encounter, by LOINC."""
    measured = labs.draw(shard)
    tests = [analyte.test for analyte in labs.analytes_of(shard.spec)]
    is_lab = np.array([test.itemid is not None for test in tests])[measured.analyte]
    loinc, units = pl.Series([test.loinc for test in tests]), pl.Series([test.unit for test in tests])
    tables = {}
    for table, rows, number, text in (
        ("lab_result", np.flatnonzero(is_lab), "lab_result_num_val", "lab_result_text_val"),
        ("vital_signs", np.flatnonzero(~is_lab), "value", "text_value"),
    ):
        visit, which = measured.visit[rows], measured.analyte[rows]
        tables[table] = frame(
            {
                **ids(visit),
                "code_system": "LOINC",
                "code": loinc.gather(which),
                "date": date[visit],
                number: measured.value[rows],
                text: None,
                "units_of_measure": units.gather(which),
                **_DERIVED,
            }
        )
    return tables


def _encounter_types(shard: Shard, uniform: Floats) -> Ints:
    """Index into _TYPES of each visit."""
    has_trigger = shard.visits.flags[:, :2].any(1)
    kind = np.where(has_trigger, choose(_TYPE_SHARES[True], uniform), choose(_TYPE_SHARES[False], uniform))
    kind[shard.visits.is_fatal] = _TYPES.index("IMP")
    return kind


def _drawn(shares: dict[str, float], uniform: Floats) -> pl.Series:
    return pl.Series(list(shares)).gather(choose(tuple(shares.values()), uniform))


def _calendar(num_days: int) -> NDArray[np.int64]:
    """YYYYMMDD as a number of each day from _FIRST_DATE on."""
    day = _FIRST_DATE + np.arange(num_days)
    month = day.astype("datetime64[M]")
    year = day.astype("datetime64[Y]")
    month_of_year = (month - year.astype("datetime64[M]")).astype(np.int64) + 1
    day_of_month = (day - month.astype("datetime64[D]")).astype(np.int64) + 1
    return ((year.astype(np.int64) + 1970) * 100 + month_of_year) * 100 + day_of_month


def _patients(
    shard: Shard, patient_id: pl.Series, entry: Ints, calendar: NDArray[np.int64], draws: Floats
) -> pl.DataFrame:
    patients, death_day = shard.patients, shard.latent.death_day
    has_died = np.isfinite(death_day)
    death_day = np.where(has_died, death_day, 0.0)
    birth = _FIRST_DATE + entry - np.floor(patients.age * 365.25).astype("timedelta64[D]")
    age_at_death = np.minimum(np.floor(patients.age + death_day / 365.25), _TOP_CODED_AGE)
    is_hispanic = patients.race == RACES.index("hispanic")
    ethnicity = pl.Series(["Not Hispanic or Latino", "Hispanic or Latino"]).gather(is_hispanic.astype(np.int64))
    table = frame(
        {
            "patient_id": patient_id,
            "sex": pl.Series(["M", "F"]).gather(patients.is_female.astype(np.int64)),
            "race": pl.Series([_RACE[race] for race in RACES]).gather(patients.race),
            "ethnicity": ethnicity,
            "year_of_birth": birth.astype("datetime64[Y]").astype(np.int64) + 1970,
            "age_at_death": age_at_death.astype(np.int64),
            "patient_regional_location": _drawn(_REGIONS, draws[:, 0]),
            "postal_code": None,
            "marital_status": _drawn(_MARITAL, draws[:, 1]),
            "month_year_death": calendar[entry + np.floor(death_day).astype(np.int64)] // 100,
            "source_id": _SOURCE,
        }
    )
    return table.with_columns(
        pl.when(pl.Series(has_died)).then(name).alias(name) for name in ("age_at_death", "month_year_death")
    )


def clock(shard: Shard) -> tuple[NDArray[np.str_], NDArray[np.datetime64]]:
    """Of each patient the patient_id and the start of day 0: [patient] text, datetime64[us]."""
    days = (_LAST_ENTRY - _FIRST_DATE).astype(np.int64)
    entry = _FIRST_DATE + np.floor(shard.patients.entry * days).astype("timedelta64[D]")
    numbers = np.arange(shard.num_patients) + shard.first_patient
    return np.char.add("P", numbers.astype(str)), entry.astype("datetime64[us]")
