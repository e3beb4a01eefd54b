"""What an exact risk is asked for, and what has to be said to know the answer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import polars as pl

from ehrlab.simulation import icd10
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.population import Floats, Shard
from ehrlab.simulation.spec import Spec

_DIED = ["^HOSPITAL_DISCHARGE//DIED$"]  # as the tables' readers code what the simulators write


@dataclass(frozen=True, eq=False)
class Asked:
    """Samples of a folder of simulated tables, and what can be known of them.

    modalities  of records.SOURCES
    subject_ids, samples, task  as in oracle.write_oracle
    """

    spec: Spec
    layout: str
    shards: Iterator[Shard]
    samples: pl.DataFrame
    subject_ids: Callable[[pl.Series], pl.Series]
    modalities: Sequence[str]
    task: Mapping[str, Any]


def refuses_death(task: Mapping[str, Any]) -> str | None:
    """Why there is no exact risk where `task.died` means another end of a stay than the simulated death."""
    died = list(task.get("died", _DIED))
    return None if died == _DIED else f"no exact risk of stays that end otherwise than by {_DIED[0]} (task.died)"


class Question(ABC):
    """A kind of task whose exact risks are known."""

    @abstractmethod
    def refuses(self, spec: Spec, layout: str, task: Mapping[str, Any]) -> str | None:
        """Why the exact risk of this one is not known, if it is not."""

    def labels(self, task: Mapping[str, Any]) -> list[str]:
        """Names of the labels, where there are several."""
        return []

    @abstractmethod
    def __call__(self, asked: Asked) -> dict[str, Floats]:
        """Per information set the risk of each sample, [sample] or [sample, label]."""


def emitted(spec: Spec, layout: str, means: Callable[[int, str], bool]) -> set[str] | None:
    """Codes of the vocabulary for which `means(version, bare code)`; None where the versions of a layout disagree."""
    ninth = vocabulary(spec).codes
    found = {code for code in ninth if means(9, code.replace(".", ""))}
    if layout == "mimic4":
        tenth = {code for code, other in zip(ninth, icd10.counterparts(spec), strict=True) if means(10, other)}
        if tenth != found:
            return None
    return found
