"""What MIMIC-III and MIMIC-IV share: one set of tables under two layouts.

Choices that hold for both (argued in docs/data.md):
* A billing code (diagnosis, procedure) happens at its admission's discharge, when it was coded; never before.
* Where only a day is known (death in the state's records, a note's date), the event closes that day.
* A stay that ends before it begins ends when it begins.
* What was given or done in intensive care happens when it begins, with the rate of then. How long it lasted is not
  known at that time, so it is no event.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.codes import bare, dotted
from ehrlab.data.sources.raw import RARE, Event, Events, Folder, RawTable, day_end
from ehrlab.data.sources.source import DEFAULT_TABLES, EventTable, Source, check_tables, modalities

ALWAYS = ("patients", "admissions")
OPTIONAL = ("diagnoses", "procedures", "drugs", "labs", "icu_stays", "vitals", "inputs", "icu_procedures", "notes")

_ITEM = {"itemid": True, "label": True}
_TITLE = {"icd9_code": False, "icd_code": False, "icd_version": False, "long_title": True}

_ITEMS = {"lab_items": ("LAB//",), "chart_items": ("VITAL//", "INPUT//", "ICU_PROCEDURE//")}
_BILLED = {"diagnosis_names": "DIAGNOSIS", "procedure_names": "PROCEDURE"}

_NO_RACE = r"^(UNKNOWN|UNK$|UNABLE TO OBTAIN|PATIENT DECLINED|DECLINED)"
# "Rewritten": another row replaced this one; what it says was not given (MIMIC's documentation of INPUTEVENTS_MV).
_STANDS = pl.col("statusdescription").fill_null("") != "Rewritten"
_DIED = ("DEAD/EXPIRED", "DIED", "EXPIRED")


@dataclass(frozen=True)
class Layout:
    """Where a release keeps a table, and the columns we read: name -> True where needed."""

    names: tuple[str, ...]
    columns: Mapping[str, bool]
    subfolder: str | None = None


# What both releases keep, by the same names.
ADMITTED = {
    "subject_id": True,
    "hadm_id": True,
    "admittime": True,
    "dischtime": True,
    "deathtime": False,
    "admission_type": True,
    "discharge_location": True,
    "hospital_expire_flag": False,
}
MEASURED = {
    "subject_id": True,
    "hadm_id": True,
    "itemid": True,
    "charttime": True,
    "value": True,
    "valuenum": True,
    "valueuom": True,
}
GIVEN = {
    "subject_id": True,
    "hadm_id": True,
    "itemid": True,
    "amount": True,
    "amountuom": True,
    "rate": True,
    "rateuom": True,
    "statusdescription": False,
}
DONE = {"subject_id": True, "hadm_id": True, "itemid": True, "starttime": True, "statusdescription": False}
STAYED = {
    "subject_id": True,
    "hadm_id": True,
    "intime": True,
    "outtime": True,
    "first_careunit": True,
    "last_careunit": True,
}


class Mimic(Source):
    """A MIMIC release; `tables` are some of OPTIONAL (patients and admissions are always read).

    layouts    where each table lies; hosp, icu = the sub-folders of the hospital-wide and the ICU tables

    Errors: InputError where a table or column is missing, or a table that was asked for is empty.
    """

    layouts: ClassVar[Mapping[str, Layout]]
    hosp: ClassVar[str | None] = None
    icu: ClassVar[str | None] = None

    def __init__(self, root: Path | str, tables: Sequence[str] = DEFAULT_TABLES) -> None:
        self.root = Path(root)
        chosen = check_tables(tables, OPTIONAL)
        folder = Folder(self.root)
        self.raw = {name: self._open(folder, name) for name in (*ALWAYS, *chosen)}
        dictionaries = {
            "lab_items": Layout(("d_labitems",), _ITEM, self.hosp),
            "chart_items": Layout(("d_items",), _ITEM, self.icu),
            "diagnosis_names": Layout(("d_icd_diagnoses",), _TITLE, self.hosp),
            "procedure_names": Layout(("d_icd_procedures",), _TITLE, self.hosp),
        }
        self._dictionaries = {
            name: RawTable(name, files, layout.columns, may_be_empty=True)
            for name, layout in dictionaries.items()
            if (files := folder.find(layout.names, layout.subfolder))
        }
        self.provides = modalities(chosen)

    def files(self) -> list[Path]:
        return [path for table in (*self.raw.values(), *self._dictionaries.values()) for path in table.files]

    def settings(self) -> dict[str, Any]:
        return {"tables": sorted(self.raw)}

    def tables(self) -> Iterator[EventTable]:
        makers = {
            "diagnoses": self.diagnoses,
            "procedures": self.procedures,
            "drugs": self.drugs,
            "labs": self.labs,
            "icu_stays": self.icu_stays,
            "vitals": self.vitals,
            "inputs": self.inputs,
            "icu_procedures": self.icu_procedures,
            "notes": self.notes,
        }
        yield self.patients()
        yield self.admissions()
        for name, make in makers.items():
            if name in self.raw:
                yield make()

    # ------------------------------------------------------------------------------------ per release

    @abstractmethod
    def birth(self, patients: Events) -> pl.Expr:
        """MEDS_BIRTH's time; may read the column first_admitted, and note faults."""

    @abstractmethod
    def day_of_death(self, patients: Events) -> pl.Expr:
        """The day of death in the patient table."""

    @abstractmethod
    def diagnoses(self) -> EventTable: ...

    @abstractmethod
    def procedures(self) -> EventTable: ...

    @abstractmethod
    def drugs(self) -> EventTable: ...

    @abstractmethod
    def vitals(self) -> EventTable: ...

    @abstractmethod
    def inputs(self) -> EventTable: ...

    @abstractmethod
    def notes(self) -> EventTable: ...

    # ------------------------------------------------------------------------------------ shared

    @cached_property
    def _admissions(self) -> Events:
        events = Events(self.raw["admissions"])
        events.frame = events.frame.with_columns(race=pl.coalesce("race", "ethnicity"))
        events.integer("subject_id")
        events.integer("hadm_id")
        admitted = events.time("admittime")
        died = events.time("deathtime", missing=None)
        left = pl.coalesce(events.time("dischtime", missing=None), died)
        events.frame = events.frame.with_columns(
            admitted=admitted, died=died, left=pl.when(left.is_not_null()).then(pl.max_horizontal(admitted, left))
        )
        rows = events.collect()
        if rows["hadm_id"].drop_nulls().is_duplicated().any():
            raise InputError(
                f"table admissions ({events.table.files[0]}): expected one row per hadm_id, found some twice; "
                "export the table again"
            )
        return events

    @cached_property
    def _stays(self) -> pl.DataFrame:
        """hadm_id, left (time of discharge, null where unknown): what billing tables lack."""
        return self._admissions.frame.select(pl.col("hadm_id typed").alias("stay"), "left").drop_nulls("stay").collect()

    def patients(self) -> EventTable:
        events = Events(self.raw["patients"])
        subject = events.integer("subject_id")
        race = pl.col("race").str.to_uppercase()
        seen = (
            self._admissions.frame.sort("admitted", maintain_order=True)
            .group_by(pl.col("subject_id typed").alias("subject"))
            .agg(
                first_admitted=pl.col("admitted").min(),
                died=pl.col("died").max(),
                race=race.filter(~race.str.contains(_NO_RACE)).first(),
            )
            .drop_nulls("subject")
            .collect()
        )
        events.join(seen, left=subject, key="subject")
        birth = self.birth(events)
        death = pl.coalesce("died", day_end(self.day_of_death(events)))
        rows = events.collect()
        if rows["subject_id"].drop_nulls().is_duplicated().any():
            raise InputError(
                f"table patients ({events.table.files[0]}): expected one row per subject_id, found some twice; "
                "export the table again"
            )
        return events.make(
            "patients",
            subject,
            Event(pl.lit("GENDER//") + events.label("gender", unknown="UNKNOWN")),
            Event(pl.lit("RACE//") + pl.col("race").fill_null("UNKNOWN")),
            Event(pl.when(birth.is_not_null()).then(pl.lit("MEDS_BIRTH")), time=birth),
            Event(pl.when(death.is_not_null()).then(pl.lit("MEDS_DEATH")), time=death),
            is_roster=True,
        )

    def admissions(self) -> EventTable:
        events = self._admissions
        location = events.label("discharge_location")
        dead = (
            location.is_in(_DIED) | (pl.col("hospital_expire_flag") == "1") | pl.col("died").is_not_null()
        ).fill_null(False)
        to = pl.when(dead).then(pl.lit("DIED")).otherwise(location)
        return events.make(
            "admissions",
            pl.col("subject_id typed"),
            Event(pl.lit("HOSPITAL_ADMISSION//") + events.label("admission_type"), time=pl.col("admitted")),
            Event(pl.when(pl.col("left").is_not_null()).then(pl.lit("HOSPITAL_DISCHARGE//") + to), time=pl.col("left")),
            visit_id=pl.col("hadm_id typed"),
        )

    def _billed(self, name: str, code: str, kind: str, version: int | None) -> EventTable:
        """A billing table; `version` None = the column icd_version says which."""
        events = Events(self.raw[name])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id")
        which = events.integer("icd_version") if version is None else version
        value = events.icd(code, kind, which)
        sequence = events.integer("seq_num", missing=None)
        events.join(self._stays, left=visit, key="stay")
        events.refuse(pl.col("left").is_null(), "a hadm_id without a discharge in the admissions table", RARE)
        return events.make(name, subject, Event(value, time=pl.col("left")), visit_id=visit, sequence=sequence)

    def _prescribed(self, start: str) -> EventTable:
        # The name and not the NDC: "0" stands for "none" in a seventh of the demo's rows.
        events = Events(self.raw["drugs"])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id", missing=None)
        events.refuse(pl.col("drug").is_null(), "no drug", 1.0)
        time = events.time(start, missing=1.0)
        return events.make("drugs", subject, Event(pl.lit("DRUG//") + events.label("drug"), time=time), visit_id=visit)

    def labs(self) -> EventTable:
        """A lab without hadm_id (18.7 % of the demo's) is kept as an event outside any visit."""
        return self._measured("labs", "LAB")

    def _measured(self, name: str, prefix: str, keep: pl.Expr | None = None) -> EventTable:
        events = Events(self.raw[name])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id", missing=None)
        time = events.time("charttime", missing=1.0)
        item = pl.col("itemid")
        events.refuse(item.is_null(), "no itemid", RARE)
        number = events.number("valuenum")
        code = pl.concat_str(pl.lit(prefix + "//"), item, pl.lit("//"), pl.col("valueuom").fill_null("UNK"))
        text = pl.when(number.is_null()).then(pl.col("value"))  # the number says it better where there is one
        return events.make(name, subject, Event(code, time, number, text), visit_id=visit, keep=keep)

    def icu_stays(self) -> EventTable:
        events = Events(self.raw["icu_stays"])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id")
        entered, left = events.time("intime"), events.time("outtime", missing=None)
        end = pl.when(left.is_not_null()).then(pl.max_horizontal(entered, left))
        return events.make(
            "icu_stays",
            subject,
            Event(pl.lit("ICU_ADMISSION//") + events.label("first_careunit"), time=entered),
            Event(
                pl.when(left.is_not_null()).then(pl.lit("ICU_DISCHARGE//") + events.label("last_careunit")), time=end
            ),
            visit_id=visit,
        )

    def _given(self, *starts: str) -> EventTable:
        """Infusions, boluses, feeds; `starts` are the columns of which a row has one that says when it began.

        The number is the rate, else the amount, and the code's unit is its unit.
        """
        events = Events(self.raw["inputs"])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id", missing=None)
        time = pl.coalesce(events.time(start, missing=None) for start in starts)
        events.refuse(time.is_null(), f"no {' or '.join(starts)}", RARE)
        item = pl.col("itemid")
        events.refuse(item.is_null(), "no itemid", RARE)
        rate, amount = events.number("rate"), events.number("amount")
        unit = pl.when(rate.is_not_null()).then("rateuom").otherwise("amountuom")
        code = pl.concat_str(pl.lit("INPUT//"), item, pl.lit("//"), unit.fill_null("UNK"))
        event = Event(code, time, pl.coalesce(rate, amount))
        return events.make("inputs", subject, event, visit_id=visit, keep=_STANDS)

    def icu_procedures(self) -> EventTable:
        events = Events(self.raw["icu_procedures"])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id", missing=None)
        time = events.time("starttime", missing=RARE)
        item = pl.col("itemid")
        events.refuse(item.is_null(), "no itemid", RARE)
        event = Event(pl.lit("ICU_PROCEDURE//") + item, time)
        return events.make("icu_procedures", subject, event, visit_id=visit, keep=_STANDS)

    def code_metadata(self) -> pl.DataFrame:
        """Names from the release's own dictionaries, which know codes that the last CMS lists have dropped."""
        named = [super().code_metadata()]
        for name, table in self._dictionaries.items():
            rows = table.scan()
            if name in _ITEMS:
                named += [_names(rows, pl.lit(prefix) + pl.col("itemid"), "label") for prefix in _ITEMS[name]]
                continue
            for version in (9, 10):
                vocabulary = f"{_BILLED[name]}//ICD//{version}"
                code = pl.lit(vocabulary + "//") + dotted(vocabulary, bare(pl.coalesce("icd9_code", "icd_code")))
                version_of_row = pl.col("icd_version").fill_null("9")  # MIMIC-III has no other
                named.append(_names(rows.filter(version_of_row == str(version)), code, "long_title"))
        return pl.concat(named)

    def _open(self, folder: Folder, name: str) -> RawTable:
        layout = self.layouts[name]
        files = folder.find(layout.names, layout.subfolder)
        if not files:
            place = f"{self.root}/{layout.subfolder}" if layout.subfolder else str(self.root)
            need = "is always needed" if name in ALWAYS else "was asked for in data.source.tables"
            raise InputError(
                f"{self.name}: table {layout.names[0]} ({need}): expected {layout.names[0]}.csv or .csv.gz in {place} "
                f"(any case), found {folder.listing()}. Add the file, or correct data.root or data.source.tables."
            )
        return RawTable(name, files, layout.columns)


def _names(rows: pl.LazyFrame, code: pl.Expr, description: str) -> pl.DataFrame:
    return rows.select(code=code, description=pl.col(description)).drop_nulls().collect()
