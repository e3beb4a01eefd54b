"""Laboratory tests and intensive-care charts of a shard, as the event tables and dictionaries of MIMIC-III v1.4.

Item numbers, labels, units and spellings are the release's (MetaVision). What is added here, such as the dose of a
vasopressor, depends on nothing hidden.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.simulation import analytes, icu, labs
from ehrlab.simulation.care import CARE
from ehrlab.simulation.folder import Column, frame
from ehrlab.simulation.icu import Course, Episodes, Stays
from ehrlab.simulation.population import Floats, Ints, Shard
from ehrlab.simulation.streams import choose

Keys = dict[str, pl.Series]
"""SUBJECT_ID, HADM_ID and ICUSTAY_ID of each visit of a shard."""

Dates = NDArray[np.datetime64]

_RESPIRATORY, _CIRCULATORY = 0, 1
_PEEP = 220339
_PEEP_LEVELS = (5.0, 8.0, 10.0)
_PEEP_UNIT = "cmH2O"
_VENTILATION = ((225792, "Invasive Ventilation", 0.85), (225794, "Non-invasive Ventilation", 0.15))
_WEIGHT = 80  # kg, for all


@dataclass(frozen=True)
class _Pressor:
    itemid: int
    label: str
    share: float
    rate: float
    rate_unit: str
    amount_unit: str


_PRESSORS = (
    _Pressor(221906, "Norepinephrine", 0.70, 0.10, "mcg/kg/min", "mg"),
    _Pressor(221749, "Phenylephrine", 0.14, 1.5, "mcg/kg/min", "mg"),
    _Pressor(221662, "Dopamine", 0.08, 5.5, "mcg/kg/min", "mg"),
    _Pressor(222315, "Vasopressin", 0.05, 2.4, "units/hour", "units"),
    _Pressor(221289, "Epinephrine", 0.03, 0.05, "mcg/kg/min", "mg"),
)

ONSETS: tuple[tuple[frozenset[tuple[str, int]], ...], ...] = (
    (frozenset({("vital", _PEEP)}), frozenset(("icu_procedure", item) for item, _, _ in _VENTILATION)),
    (frozenset(("input", pressor.itemid) for pressor in _PRESSORS),),
)
"""Per chain of care.CARE, groups of events (kind of our vocabulary, item), of each of which the worst state brings one
in its first hour."""


# --------------------------------------------------------------------------------------------------------- dictionaries
def lab_dictionary() -> dict[str, pl.DataFrame]:
    rows = [
        {
            "ITEMID": test.itemid,
            "LABEL": test.label,
            "FLUID": test.fluid,
            "CATEGORY": test.category,
            "LOINC_CODE": test.loinc,
        }
        for test in analytes.LABS
    ]
    return {"D_LABITEMS": pl.DataFrame(rows).sort("ITEMID")}


def chart_dictionary() -> dict[str, pl.DataFrame]:
    """D_ITEMS: what is charted, given and done."""
    items = [
        (vital.itemid, vital.label, vital.abbreviation, "chartevents", vital.category, vital.unit,
         "Text" if vital.texts else "Numeric")
        for vital in CARE.vitals
    ]  # fmt: skip
    items.append((_PEEP, "PEEP set", "PEEP set", "chartevents", "Respiratory", _PEEP_UNIT, "Numeric"))
    items += [
        (p.itemid, p.label, p.label, "inputevents_mv", "Medications", p.amount_unit, "Solution") for p in _PRESSORS
    ]
    items += [
        (item, name, name, "procedureevents_mv", "2-Ventilation", "None", "Process") for item, name, _ in _VENTILATION
    ]
    columns = ("ITEMID", "LABEL", "ABBREVIATION", "LINKSTO", "CATEGORY", "UNITNAME", "PARAM_TYPE")
    table = pl.DataFrame(items, schema=columns, orient="row").sort("ITEMID")
    return {
        "D_ITEMS": table.select(
            *columns[:3], pl.lit("metavision").alias("DBSOURCE"), *columns[3:], pl.lit(None).alias("CONCEPTID")
        )
    }


# ----------------------------------------------------------------------------------------------------------- laboratory
def lab_tables(shard: Shard, keys: Keys, entry: Dates) -> dict[str, pl.DataFrame]:
    """LABEVENTS. entry: first day of each patient's record."""
    measured = labs.series(shard, labs.draw(shard))
    tests = [analyte.test for analyte in labs.analytes_of(shard.spec)]
    visit, which = measured.visit, measured.analyte

    def of(values: list[object]) -> pl.Series:
        return pl.Series(values).gather(which)

    low, high = (np.array([test.normal[end] for test in tests])[which] for end in (0, 1))
    is_abnormal = (measured.value < low) | (measured.value > high)
    return {
        "LABEVENTS": frame(
            {
                "SUBJECT_ID": keys["SUBJECT_ID"].gather(visit),
                "HADM_ID": keys["HADM_ID"].gather(visit),
                "ITEMID": of([test.itemid for test in tests]),
                "CHARTTIME": _at(entry, shard.visits.patient[visit], measured.minute),
                "VALUE": _text(measured.value),
                "VALUENUM": measured.value,
                "VALUEUOM": of([test.unit for test in tests]),
                "FLAG": pl.Series([None, "abnormal"]).gather(is_abnormal.astype(np.int64)),
            }
        )
    }


# ------------------------------------------------------------------------------------------------------- intensive care
def chart_tables(shard: Shard, keys: Keys, entry: Dates) -> dict[str, pl.DataFrame]:
    """CHARTEVENTS, INPUTEVENTS_MV and PROCEDUREEVENTS_MV. entry: first day of each patient's record."""
    stays = icu.draw_stays(shard)
    course = icu.draw_course(shard, stays)
    return {
        "CHARTEVENTS": _charted(shard, stays, course, keys, entry),
        "INPUTEVENTS_MV": _given(shard, stays, icu.episodes(stays, course, _CIRCULATORY), keys, entry),
        "PROCEDUREEVENTS_MV": _done(shard, stays, icu.episodes(stays, course, _RESPIRATORY), keys, entry),
    }


def _charted(shard: Shard, stays: Stays, course: Course, keys: Keys, entry: Dates) -> pl.DataFrame:
    """Hour by hour the vital signs in the order of CARE, then PEEP in the hours of ventilation."""
    level = np.array(_PEEP_LEVELS)[(len(_PEEP_LEVELS) * course.uniform[:, _RESPIRATORY]).astype(np.int64)]
    peep = np.where(icu.is_worst(course)[:, _RESPIRATORY], level, np.nan)
    values = np.column_stack([course.values, peep])
    hour, which = np.nonzero(~np.isnan(values))
    value = values[hour, which]
    text = _text(value)
    for v, vital in enumerate(CARE.vitals):
        if vital.texts:
            rows = np.flatnonzero(which == v)
            number = (value[rows] - vital.scale.lowest).astype(np.int64)
            text = text.scatter(rows, pl.Series(vital.texts).gather(number))
    visit = np.repeat(stays.visit, np.diff(course.begin))[hour]
    time = _at(entry, shard.visits.patient[visit], course.minute[hour])
    return frame(
        {
            **_of_visit(keys, visit),
            "ITEMID": pl.Series([*(vital.itemid for vital in CARE.vitals), _PEEP]).gather(which),
            "CHARTTIME": time,
            "STORETIME": time,
            "CGID": None,
            "VALUE": text,
            "VALUENUM": value,
            "VALUEUOM": pl.Series([*(vital.unit for vital in CARE.vitals), _PEEP_UNIT]).gather(which),
            "WARNING": 0,
            "ERROR": 0,
            "RESULTSTATUS": None,
            "STOPPED": None,
        }
    )


def _given(shard: Shard, stays: Stays, shock: Episodes, keys: Keys, entry: Dates) -> pl.DataFrame:
    """One vasopressor, at one rate, per run of hours in shock."""
    which = choose(tuple(p.share for p in _PRESSORS), shock.uniform)

    def of(attribute: str) -> pl.Series:
        return pl.Series([getattr(p, attribute) for p in _PRESSORS]).gather(which)

    visit = stays.visit[shock.stay]
    patient = shard.visits.patient[visit]
    by_weight = np.array([p.rate_unit == "mcg/kg/min" for p in _PRESSORS])[which]
    rate = np.array([p.rate for p in _PRESSORS])[which]
    amount = np.round(rate * (shock.end - shock.start) * np.where(by_weight, _WEIGHT / 1000.0, 1.0 / 60.0), 6)
    return frame(
        {
            **_of_visit(keys, visit),
            "STARTTIME": _at(entry, patient, shock.start),
            "ENDTIME": _at(entry, patient, shock.end),
            "ITEMID": of("itemid"),
            "AMOUNT": amount,
            "AMOUNTUOM": of("amount_unit"),
            "RATE": rate,
            "RATEUOM": of("rate_unit"),
            "STORETIME": _at(entry, patient, shock.end),
            "CGID": None,
            "ORDERID": None,
            "LINKORDERID": None,
            "ORDERCATEGORYNAME": "01-Drips",
            "SECONDARYORDERCATEGORYNAME": "02-Fluids (Crystalloids)",
            "ORDERCOMPONENTTYPEDESCRIPTION": "Main order parameter",
            "ORDERCATEGORYDESCRIPTION": "Continuous Med",
            "PATIENTWEIGHT": _WEIGHT,
            "TOTALAMOUNT": 250,
            "TOTALAMOUNTUOM": "ml",
            "ISOPENBAG": 0,
            "CONTINUEINNEXTDEPT": 0,
            "CANCELREASON": 0,
            "STATUSDESCRIPTION": "FinishedRunning",
            "COMMENTS_EDITEDBY": None,
            "COMMENTS_CANCELEDBY": None,
            "COMMENTS_DATE": None,
            "ORIGINALAMOUNT": amount,
            "ORIGINALRATE": rate,
        }
    )


def _done(shard: Shard, stays: Stays, failure: Episodes, keys: Keys, entry: Dates) -> pl.DataFrame:
    """One ventilation per run of hours in failure."""
    visit = stays.visit[failure.stay]
    patient = shard.visits.patient[visit]
    return frame(
        {
            **_of_visit(keys, visit),
            "STARTTIME": _at(entry, patient, failure.start),
            "ENDTIME": _at(entry, patient, failure.end),
            "ITEMID": pl.Series([item for item, _, _ in _VENTILATION]).gather(
                choose(tuple(share for _, _, share in _VENTILATION), failure.uniform)
            ),
            "VALUE": failure.end - failure.start,
            "VALUEUOM": "min",
            "LOCATION": None,
            "LOCATIONCATEGORY": None,
            "STORETIME": _at(entry, patient, failure.end),
            "CGID": None,
            "ORDERID": None,
            "LINKORDERID": None,
            "ORDERCATEGORYNAME": "Ventilation",
            "SECONDARYORDERCATEGORYNAME": None,
            "ORDERCATEGORYDESCRIPTION": "Task",
            "ISOPENBAG": 1,
            "CONTINUEINNEXTDEPT": 0,
            "CANCELREASON": 0,
            "STATUSDESCRIPTION": "FinishedRunning",
            "COMMENTS_EDITEDBY": None,
            "COMMENTS_CANCELEDBY": None,
            "COMMENTS_DATE": None,
        }
    )


# --------------------------------------------------------------------------------------------------------------- common
def _of_visit(keys: Keys, visit: Ints) -> dict[str, Column]:
    return {name: key.gather(visit) for name, key in keys.items()}


def _at(entry: Dates, patient: Ints, minute: Ints) -> Dates:
    return (entry.astype("datetime64[m]")[patient] + minute).astype("datetime64[us]")


def _text(value: Floats) -> pl.Series:
    """Numbers as the release spells them: 139 and 4.2."""
    return pl.Series(value).cast(pl.String).str.strip_suffix(".0")
