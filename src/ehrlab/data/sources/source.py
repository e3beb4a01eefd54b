"""What every data source gives: tables of events in the MEDS columns, as lazy frames that stream."""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.cache import content_key
from ehrlab.data.codes import DEFAULT_KINDS

EVENT_SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "time": pl.Datetime("us"),
        "code": pl.String(),
        "numeric_value": pl.Float32(),
        "text_value": pl.String(),
        "visit_id": pl.Int64(),
        "sequence": pl.Int32(),
    }
)
"""MEDS data columns, then ours: visit_id (null = no visit) and sequence (rank of a code in its visit, or null)."""

DEFAULT_TABLES = ("diagnoses", "procedures", "drugs")
"""Optional tables that are read unless others are asked for: what a visit's set of codes is made of."""

SIMULATION_MARK = "SIMULATED.json"
"""Lies in a folder of simulated raw tables, wherever it is copied to."""

MIB = 2**20


@dataclass(frozen=True)
class Fault:
    """A way in which a raw row can be unusable.

    what       ends the sentence "N of M rows have ..."; names the column and what was expected, never a value
    tolerance  rows with the fault are dropped and counted while their share of the table is below this: 0 = none may
               have it, 1 = any number may (the raw release is known to have such rows)
    """

    what: str
    tolerance: float


@dataclass(frozen=True)
class EventTable:
    """One table on its way to MEDS.

    frame      streams; columns of EVENT_SCHEMA, then `fault`: UInt8, 1 + the row's place in `faults`, null = sound
    files      where it is read from
    is_roster  its subjects are the data set's subjects: rows of other subjects in later tables are dropped and counted
    """

    name: str
    frame: pl.LazyFrame
    faults: tuple[Fault, ...]
    files: tuple[Path, ...]
    is_roster: bool = False


class Source(ABC):
    """A folder of raw tables, checked when it is opened: tables and columns are there, and are not empty.

    provides  modalities (names of core.batch.Batch fields) that its tables can fill
    kinds     kind of event ("diagnosis", "drug", ...) -> regular expressions of the codes that mean it
    """

    name: ClassVar[str]
    root: Path
    provides: frozenset[str]
    kinds: Mapping[str, tuple[str, ...]] = DEFAULT_KINDS

    @property
    def simulated(self) -> bool:
        """The folder says that a program made its records; everything that follows from them must say so too."""
        return (self.root / SIMULATION_MARK).exists()

    @abstractmethod
    def files(self) -> list[Path]:
        """Every file that is read."""

    @abstractmethod
    def settings(self) -> dict[str, Any]:
        """What, besides the files, decides the events; JSON-able."""

    @abstractmethod
    def tables(self) -> Iterator[EventTable]:
        """Tables in a fixed order; at equal times a subject's events keep this order, then that of the raw rows."""

    def code_metadata(self) -> pl.DataFrame:
        """Columns code, description: what the source's own dictionaries say.

        A measurement may be named without its unit: LAB//50868 describes LAB//50868//mEq/L.
        """
        return pl.DataFrame(schema={"code": pl.String, "description": pl.String})

    def splits(self) -> pl.DataFrame | None:
        """Columns subject_id, split where the source brings its own split; None = the seeded one is used."""
        return None

    def fingerprint(self) -> str:
        """Changes when a raw file does: names, sizes, modification times, first and last MiB, and the settings."""
        files = [(p.relative_to(self.root).as_posix(), *_identity(p)) for p in sorted(self.files())]
        return content_key(self.name, self.settings(), files)


def _identity(path: Path) -> tuple[int, int, str]:
    stat = path.stat()
    digest = hashlib.sha256()
    with path.open("rb") as file:
        digest.update(file.read(MIB))
        file.seek(max(0, stat.st_size - MIB))
        digest.update(file.read(MIB))
    return stat.st_size, stat.st_mtime_ns, digest.hexdigest()


def check_tables(tables: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The distinct `tables` in the order of `known`; InputError for one that is not known."""
    wrong = sorted(set(tables) - set(known))
    if wrong:
        raise InputError(f"data.source.tables: unknown table {wrong[0]!r}; expected some of {', '.join(known)}")
    return tuple(name for name in known if name in tables)


TABLES_OF: Mapping[str, tuple[str, ...]] = {
    "stays": ("icu_stays", "vitals", "inputs", "icu_procedures"),
    "codes": ("diagnoses", "drugs"),
    "labs": ("labs",),
    "notes": ("notes",),
    "text": ("notes", "labs"),  # abnormal labs are told in words
}
"""The optional tables that each Batch field beside visits is made of."""

_SIMULATED_AS = {
    "labs": "labs",
    "notes": "notes",
    **dict.fromkeys(("icu_stays", "vitals", "inputs", "icu_procedures"), "charts"),
}


def tables_for(needs: Iterable[str]) -> tuple[str, ...]:
    """The optional tables that serve `needs`, names of Batch fields or of tables, after DEFAULT_TABLES.

    >>> tables_for({"text", "visits", "icu_stays"})
    ('diagnoses', 'procedures', 'drugs', 'icu_stays', 'labs', 'notes')
    """
    fields = {"visits", "tokens", "demographics"}
    asked = {table for need in set(needs) - fields for table in TABLES_OF.get(need, (need,))}
    return (*DEFAULT_TABLES, *sorted(asked - set(DEFAULT_TABLES)))


def simulated_for(tables: Iterable[str], known: Sequence[str]) -> list[str]:
    """The modalities that a simulator has to write so that `tables` are there, of those that it knows.

    >>> simulated_for(["diagnoses", "vitals", "icu_stays", "notes"], ["codes", "labs", "charts"])
    ['codes', 'charts']
    """
    wanted = {"codes", *(_SIMULATED_AS[table] for table in tables if table in _SIMULATED_AS)}
    return [name for name in known if name in wanted]


def modalities(tables: Sequence[str]) -> frozenset[str]:
    """The Batch fields that the tables can fill.

    Hourly stays need the stays and what was measured in them; what was given and done there may be added. Sets of
    codes are of two kinds, diagnoses and drugs.
    """
    found = {"visits", "demographics"}
    if "diagnoses" in tables and "drugs" in tables:
        found.add("codes")
    if "labs" in tables:
        found.add("labs")
    if "icu_stays" in tables and "vitals" in tables:
        found.add("stays")
    if "notes" in tables:
        found |= {"notes", "text"}
    return frozenset(found)
