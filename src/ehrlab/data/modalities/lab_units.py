"""The unit of each laboratory test, factors between units, and adult ranges of reference of the commonest tests.

A conversion never needs to know the test: mg/dL to mmol/L, which does, is none, but for mEq/L and mmol/L of the
monovalent ions, which are equal. Ranges are those that hospital laboratories commonly print for adults, of women and
men together, rounded; they mark a value as worth a word, not more.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

import polars as pl

UNKNOWN_UNITS = frozenset({"", "unk", "unknown", "none", "null", "nan"})
"""Spellings that name no unit."""

# Kind of quantity -> factor of each spelling to the kind's own unit. `spelling` says how they are written.
_FACTORS: dict[str, dict[str, float]] = {
    "mass concentration (mg/L)": {
        "g/dl": 1e4, "gm/dl": 1e4, "g%": 1e4, "g/l": 1e3, "gm/l": 1e3, "mg/ml": 1e3, "mg/dl": 10.0, "mg%": 10.0,
        "mg/l": 1.0, "ug/ml": 1.0, "ug/dl": 1e-2, "ug/l": 1e-3, "ng/ml": 1e-3, "ng/dl": 1e-5, "ng/l": 1e-6,
        "pg/ml": 1e-6, "pg/dl": 1e-8,
    },
    "substance concentration (mmol/L)": {
        "mol/l": 1e3, "mmol/l": 1.0, "umol/l": 1e-3, "nmol/ml": 1e-3, "nmol/l": 1e-6, "pmol/ml": 1e-6, "pmol/l": 1e-9,
    },
    "charge concentration (mEq/L)": {"meq/l": 1.0, "ueq/l": 1e-3},
    "cells (1/uL)": {
        "/ul": 1.0, "#/ul": 1.0, "cells/ul": 1.0, "/mm3": 1.0, "/cumm": 1.0, "k/ul": 1e3, "k/mm3": 1e3, "k/cumm": 1e3,
        "th/ul": 1e3, "thousand/ul": 1e3, "10*3/ul": 1e3, "10*9/l": 1e3, "m/ul": 1e6, "m/mm3": 1e6, "m/cumm": 1e6,
        "mil/ul": 1e6, "million/ul": 1e6, "10*6/ul": 1e6, "10*12/l": 1e6,
    },
    "catalytic concentration (U/L)": {
        "u/l": 1.0, "iu/l": 1.0, "u/ml": 1e3, "iu/ml": 1e3, "miu/ml": 1.0, "mu/ml": 1.0, "miu/l": 1e-3, "mu/l": 1e-3,
        "uiu/ml": 1e-3, "uu/ml": 1e-3, "ukat/l": 60.0, "nkat/l": 0.06,
    },
    "pressure (mmHg)": {"mmhg": 1.0, "torr": 1.0, "kpa": 7.50062},
    "time (s)": {"sec": 1.0, "secs": 1.0, "second": 1.0, "seconds": 1.0, "s": 1.0, "min": 60.0, "minutes": 60.0},
    "volume (fL)": {"fl": 1.0, "um3": 1.0},
    "osmolality (mOsm/kg)": {"mosm/kg": 1.0, "mosmol/kg": 1.0, "mosm/kgh2o": 1.0},
    "ratio of masses (mg/g)": {"mg/g": 1.0, "ug/mg": 1.0, "mcg/mg": 1.0},
    "share (%)": {"%": 1.0, "percent": 1.0},
}  # fmt: skip
_KNOWN = {unit: (kind, factor) for kind, units in _FACTORS.items() for unit, factor in units.items()}

_ITEM = r"^(.+?//.+?)//(.+)$"  # LAB//50912//mg/dL -> LAB//50912, mg/dL; of other codes the whole is the item


class Reference(NamedTuple):
    """The range `low` .. `high` in `unit` (of `spelling`; None for a pure number)."""

    unit: str | None
    low: float
    high: float


_REFERENCES = (
    ("50983 50824 2951-2 2947-0", Reference("meq/l", 133, 145)),  # sodium
    ("50971 50822 2823-3 6298-4", Reference("meq/l", 3.3, 5.1)),  # potassium
    ("50902 50806 2075-0 2069-3", Reference("meq/l", 96, 108)),  # chloride
    ("50882 50803 1963-8 1959-6 2028-9", Reference("meq/l", 22, 32)),  # bicarbonate
    ("50868 1863-0 33037-3 10466-1", Reference("meq/l", 8, 20)),  # anion gap
    ("51006 3094-0", Reference("mg/dl", 6, 20)),  # urea nitrogen
    ("50912 2160-0", Reference("mg/dl", 0.5, 1.2)),  # creatinine
    ("50931 50809 2345-7 2339-0", Reference("mg/dl", 70, 140)),  # glucose, not fasting
    ("50893 17861-6 2000-8", Reference("mg/dl", 8.4, 10.3)),  # calcium
    ("50960 19123-9", Reference("mg/dl", 1.6, 2.6)),  # magnesium
    ("50970 2777-1", Reference("mg/dl", 2.7, 4.5)),  # phosphate
    ("50862 1751-7", Reference("g/dl", 3.5, 5.2)),  # albumin
    ("50885 1975-2", Reference("mg/dl", 0, 1.5)),  # bilirubin
    ("50861 1742-6", Reference("iu/l", 0, 40)),  # ALT
    ("50878 1920-8", Reference("iu/l", 0, 40)),  # AST
    ("50863 6768-6", Reference("iu/l", 35, 130)),  # alkaline phosphatase
    ("50954 2532-0 14804-9", Reference("iu/l", 94, 250)),  # lactate dehydrogenase
    ("51301 51300 6690-2 26464-8 804-5", Reference("k/ul", 4, 11)),  # white blood cells
    ("51222 50811 718-7", Reference("g/dl", 12, 18)),  # hemoglobin
    ("51221 50810 4544-3 20570-8", Reference("%", 36, 52)),  # hematocrit
    ("51265 777-3 26515-7", Reference("k/ul", 150, 440)),  # platelets
    ("51277 788-0", Reference("%", 10.5, 15.5)),  # red cell distribution width
    ("51250 787-2", Reference("fl", 82, 98)),  # mean corpuscular volume
    ("51237 6301-6 5895-7 34714-6", Reference(None, 0.9, 1.2)),  # INR
    ("51275 3173-2 14979-9", Reference("sec", 22, 36)),  # partial thromboplastin time
    ("50813 32693-4 2524-7", Reference("mmol/l", 0.5, 2)),  # lactate
    ("50821 2703-7 11556-8", Reference("mmhg", 85, 105)),  # pO2
    ("50818 2019-8 11557-6", Reference("mmhg", 35, 45)),  # pCO2
    ("50820 2744-1 11558-4", Reference(None, 7.35, 7.45)),  # pH
    ("50889 1988-5", Reference("mg/l", 0, 5)),  # C-reactive protein
    ("50963 33762-6", Reference("pg/ml", 0, 450)),  # NT-proBNP
    ("51003 6598-7", Reference("ng/ml", 0, 0.01)),  # troponin T
    ("50911 6773-6 13969-1", Reference("ng/ml", 0, 10)),  # creatine kinase MB
    ("50905 2090-9 13457-7", Reference("mg/dl", 0, 129)),  # LDL cholesterol
    ("51000 2571-8 1644-4", Reference("mg/dl", 0, 149)),  # triglycerides
    ("50852 4548-4", Reference("%", 4.8, 5.9)),  # hemoglobin A1c
    ("50993 3016-3 11579-0", Reference("uiu/ml", 0.27, 4.2)),  # thyrotropin
    ("50924 2276-4", Reference("ng/ml", 15, 400)),  # ferritin
    ("51516 5821-4", Reference("#/hpf", 0, 5)),  # white blood cells in urine
)
REFERENCES = {key: reference for keys, reference in _REFERENCES for key in keys.split()}
"""Range of reference by MIMIC's item (III and IV) and LOINC."""

_MONOVALENT = frozenset(key for key, known in REFERENCES.items() if known.unit == "meq/l")
_EQUIVALENT = {"substance concentration (mmol/L)", "charge concentration (mEq/L)"}


def spelling(unit: str | None) -> str | None:
    """A unit as the tables above write it; None for an unknown one.

    >>> [spelling(unit) for unit in ("mg/dL", "mm[Hg]", "10^3/uL", "x10E9/L", "[IU]/L", "UNK")]
    ['mg/dl', 'mmhg', '10*3/ul', '10*9/l', 'iu/l', None]
    """
    text = re.sub(r"[\s\[\]{}]", "", (unit or "").lower()).replace("µ", "u").replace("μ", "u").replace("mcg", "ug")
    text = re.sub(r"^x?10[*^e]", "10*", text)
    return None if text in UNKNOWN_UNITS else text


def factor(unit: str | None, wanted: str | None, test: str) -> float | None:
    """What a value in `unit` is to be multiplied with to be in `wanted` (both of `spelling`); None where unknown.

    test  MIMIC's item or LOINC

    >>> factor("g/l", "mg/dl", "50862"), factor("mmol/l", "meq/l", "2951-2"), factor("mmol/l", "mg/dl", "50931")
    (100.0, 1.0, None)
    """
    if unit == wanted:
        return 1.0
    if unit not in _KNOWN or wanted not in _KNOWN:
        return None
    (kind, own), (wanted_kind, other) = _KNOWN[unit], _KNOWN[wanted]
    if kind != wanted_kind and not (test in _MONOVALENT and {kind, wanted_kind} == _EQUIVALENT):
        return None
    return own / other


def reference(test: str, unit: str | None) -> tuple[float, float] | None:
    """The test's range of reference in `unit` (of `spelling`); None where it is not known, or not in that unit."""
    known = REFERENCES.get(test)
    if known is None or (scale := factor(known.unit, unit, test)) is None:
        return None
    return known.low * scale, known.high * scale


def units_of(codes: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    """code_id, candidate, factor of the codes whose values can be used; candidate, item, name, unit of each test.

    codes  code_id, code, description, num_values (in training)
    """
    by_item: dict[str, list[tuple[int, str | None, str | None, int]]] = {}
    for code_id, code, description, num_values in codes.select(
        "code_id", "code", "description", "num_values"
    ).iter_rows():
        parts = re.match(_ITEM, code)
        item, unit = (parts[1], parts[2]) if parts else (code, None)
        by_item.setdefault(item, []).append((code_id, unit, description, num_values))
    factors, tests = [], []
    for candidate, (item, members) in enumerate(by_item.items()):
        totals: dict[str | None, int] = {}
        for _, unit, _, num_values in members:
            totals[spelling(unit)] = totals.get(spelling(unit), 0) + num_values
        wanted = max(totals, key=lambda unit: (totals[unit], unit or ""))
        same = [member for member in members if spelling(member[1]) == wanted]
        _, printed, description, _ = max(same, key=lambda member: member[3])
        key = key_of(item)
        tests.append((candidate, item, description or key, None if wanted is None else printed))
        for code_id, unit, _, _ in members:
            if (scale := factor(spelling(unit), wanted, key)) is not None:
                factors.append((code_id, candidate, scale))
    return (
        pl.DataFrame(
            factors, schema={"code_id": pl.UInt32, "candidate": pl.UInt32, "factor": pl.Float64}, orient="row"
        ),
        pl.DataFrame(
            tests,
            schema={"candidate": pl.UInt32, "item": pl.String, "name": pl.String, "unit": pl.String},
            orient="row",
        ),
    )


def key_of(item: str) -> str:
    """LAB//50912 -> 50912, LOINC/2160-0 -> 2160-0"""
    return item.rsplit("/", 1)[-1]


def range_of(test: Mapping[str, Any]) -> tuple[float, float]:
    """The range of reference of a test, {item, unit, low, high}; where it is not known, the low and high it has."""
    return reference(key_of(test["item"]), spelling(test["unit"])) or (test["low"], test["high"])
