"""Sequences as a TriNetX export: ICD-10, places of service as types of encounter, integers as patients' identifiers.

Dates lie between 2016 and 2021, after ICD-10-CM came into use in October 2015. Codes are those of FY2024 and the
paper's, whatever the year of the visit. Nobody dies.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.simulation.folder import Column, RawFolder, frame
from ehrlab.simulation.population import Ints
from ehrlab.simulation.sequences.blocks import SPECIFICATION
from ehrlab.simulation.sequences.codes import CPT, HCPCS, ICD10CM, ICD10PCS, RXNORM
from ehrlab.simulation.sequences.population import Shard, simulate
from ehrlab.simulation.sequences.spec import PLACES
from ehrlab.simulation.spec import RACES

_FIRST_DATE, _LAST_ENTRY = np.datetime64("2016-01-01"), np.datetime64("2018-12-31")
_RACE = {
    "white": "White",
    "black": "Black or African American",
    "asian": "Asian",
    "hispanic": "White",  # an ethnicity in this layout, not a race
    "other": "Unknown",
}
_SOURCE = "SIM"


def write_sequences(root: Path, num_patients: int, seed: int, *, compress: bool = False) -> None:
    """Writes patient, encounter, diagnosis, procedure and medication_ingredient.

    compress  writes .csv.gz, several times slower than .csv
    Raises InputError for impossible sizes and a folder that is not empty.
    """
    shards = simulate(num_patients, seed)
    description: dict[str, str | int] = {
        "layout": "trinetx",
        "preset": "sequences",
        "specification": SPECIFICATION,
        "num_patients": num_patients,
        "seed": seed,
    }
    with RawFolder(root, description, compress=compress) as folder:
        for shard in shards:
            for table, rows in sequence_tables(shard).items():
                folder.append(table, rows, "never")  # no value holds a comma


def entry_dates(shard: Shard) -> NDArray[np.datetime64]:
    """Date of each patient's first visit: [patient]."""
    days = (_LAST_ENTRY - _FIRST_DATE).astype(np.int64)
    return _FIRST_DATE + np.floor(shard.patients.entry * days).astype("timedelta64[D]")


def sequence_tables(shard: Shard) -> dict[str, pl.DataFrame]:
    """The rows of one shard for each table, in the columns of an export."""
    visits, words = shard.visits, shard.vocabulary
    entry = entry_dates(shard)
    patient_id = pl.Series(np.arange(shard.num_patients) + shard.first_patient).cast(pl.String)
    ordinal = np.arange(len(visits.patient)) - np.searchsorted(visits.patient, visits.patient)
    of_visit = patient_id.gather(visits.patient)
    encounter_id = of_visit + "E" + pl.Series(ordinal).cast(pl.String)
    start = entry[visits.patient] + visits.day.astype("timedelta64[D]")
    date = _yyyymmdd(start)
    derived: dict[str, Column] = {"derived_by_TriNetX": "F", "source_id": _SOURCE}

    system, code = pl.Series(words.system), pl.Series(words.code)
    system_of_code = np.array(words.system)[shard.codes.code]

    def rows_of(*systems: str) -> tuple[Ints, dict[str, pl.Series]]:
        rows = np.flatnonzero(np.isin(system_of_code, systems))
        visit, index = shard.codes.visit[rows], shard.codes.code[rows]
        return visit, {
            "patient_id": of_visit.gather(visit),
            "encounter_id": encounter_id.gather(visit),
            "code_system": system.gather(index),
            "code": code.gather(index),
        }

    diagnosed, diagnosis = rows_of(ICD10CM)
    done, procedure = rows_of(ICD10PCS, CPT, HCPCS)
    taken, drug = rows_of(RXNORM)
    # A visit has at least one diagnosis.
    is_first = np.concatenate([[True], diagnosed[1:] != diagnosed[:-1]])
    return {
        "patient": _patients(shard, patient_id, entry),
        "encounter": frame(
            {
                "encounter_id": encounter_id,
                "patient_id": of_visit,
                "start_date": date,
                "end_date": _yyyymmdd(start + visits.nights.astype("timedelta64[D]")),
                "type": pl.Series(PLACES).gather(visits.place),
                "start_date_derived_by_TriNetX": "F",
                "end_date_derived_by_TriNetX": "F",
                **derived,
            }
        ),
        "diagnosis": frame(
            {
                **diagnosis,
                "principal_diagnosis_indicator": pl.Series(["S", "P"]).gather(is_first.astype(np.int64)),
                "admitting_diagnosis": "U",
                "reason_for_visit": "U",
                "date": date[diagnosed],
                **derived,
            }
        ),
        "procedure": frame({**procedure, "principal_procedure_indicator": "U", "date": date[done], **derived}),
        "medication_ingredient": frame(
            {
                "patient_id": drug["patient_id"],
                "encounter_id": drug["encounter_id"],
                "unique_id": drug["encounter_id"] + "M" + drug["code"],
                "code_system": drug["code_system"],
                "code": drug["code"],
                "start_date": date[taken],
                "route": "Unknown",
                "brand": None,
                "strength": None,
                **derived,
            }
        ),
    }


def _patients(shard: Shard, patient_id: pl.Series, entry: NDArray[np.datetime64]) -> pl.DataFrame:
    patients = shard.patients
    is_hispanic = (patients.race == RACES.index("hispanic")).astype(np.int64)
    return frame(
        {
            "patient_id": patient_id,
            "sex": pl.Series(["M", "F"]).gather(patients.is_female.astype(np.int64)),
            "race": pl.Series([_RACE[race] for race in RACES]).gather(patients.race),
            "ethnicity": pl.Series(["Not Hispanic or Latino", "Hispanic or Latino"]).gather(is_hispanic),
            "year_of_birth": entry.astype("datetime64[Y]").astype(np.int64) + 1970 - patients.age,
            "age_at_death": None,
            "patient_regional_location": "Unknown",
            "postal_code": None,
            "marital_status": "Unknown",
            "month_year_death": None,
            "source_id": _SOURCE,
        }
    )


def _yyyymmdd(day: NDArray[np.datetime64]) -> NDArray[np.int64]:
    month, year = day.astype("datetime64[M]"), day.astype("datetime64[Y]")
    month_of_year = (month - year.astype("datetime64[M]")).astype(np.int64) + 1
    day_of_month = (day - month.astype("datetime64[D]")).astype(np.int64) + 1
    return ((year.astype(np.int64) + 1970) * 100 + month_of_year) * 100 + day_of_month
