"""MIMIC-IV v1 to v3 (Johnson et al. 2023): hosp/ and icu/, and note/ from its own module."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.sources.mimic_common import ADMITTED, DONE, GIVEN, MEASURED, STAYED, Layout, Mimic
from ehrlab.data.sources.raw import Event, Events, Folder, RawTable, day_end
from ehrlab.data.sources.source import EventTable

_NOTE = {"subject_id": True, "hadm_id": True, "note_type": True, "charttime": True, "text": True}
_NOTE_TYPES = {
    "DS": "DISCHARGE SUMMARY",
    "AD": "DISCHARGE SUMMARY ADDENDUM",
    "RR": "RADIOLOGY",
    "AR": "RADIOLOGY ADDENDUM",
}
_NOTE_FILES = ("discharge", "radiology")
_CODED = {"subject_id": True, "hadm_id": True, "seq_num": True, "icd_code": True, "icd_version": True}


class Mimic4(Mimic):
    """MIMIC-IV. Age is anchor_age + (year - anchor_year): birth is New Year's Day of anchor_year - anchor_age.

    anchor_age is 91 for everyone over 89; those patients are taken to be 91 in their anchor year.
    """

    name = "mimic4"
    hosp = "hosp"
    icu = "icu"
    layouts: ClassVar = {
        "patients": Layout(
            ("patients",),
            {"subject_id": True, "gender": True, "anchor_age": True, "anchor_year": True, "dod": False},
            "hosp",
        ),
        "admissions": Layout(
            ("admissions",),
            {**ADMITTED, "race": False, "ethnicity": False},  # v1 calls it ethnicity
            "hosp",
        ),
        "diagnoses": Layout(("diagnoses_icd",), _CODED, "hosp"),
        "procedures": Layout(("procedures_icd",), _CODED, "hosp"),
        "drugs": Layout(
            ("prescriptions",), {"subject_id": True, "hadm_id": True, "starttime": True, "drug": True}, "hosp"
        ),
        "labs": Layout(("labevents",), MEASURED, "hosp"),
        "icu_stays": Layout(("icustays",), STAYED, "icu"),
        "vitals": Layout(("chartevents",), MEASURED, "icu"),
        "inputs": Layout(("inputevents",), {**GIVEN, "starttime": True}, "icu"),
        "icu_procedures": Layout(("procedureevents",), DONE, "icu"),
        "notes": Layout(_NOTE_FILES, _NOTE, "note"),
    }

    def birth(self, patients: Events) -> pl.Expr:
        age, year = patients.integer("anchor_age"), patients.integer("anchor_year")
        return pl.datetime(year - age, 1, 1, time_unit="us")

    def day_of_death(self, patients: Events) -> pl.Expr:
        return patients.time("dod", missing=None)

    def diagnoses(self) -> EventTable:
        return self._billed("diagnoses", "icd_code", "DIAGNOSIS", None)

    def procedures(self) -> EventTable:
        return self._billed("procedures", "icd_code", "PROCEDURE", None)

    def drugs(self) -> EventTable:
        return self._prescribed("starttime")

    def vitals(self) -> EventTable:
        return self._measured("vitals", "VITAL")

    def inputs(self) -> EventTable:
        return self._given("starttime")

    def notes(self) -> EventTable:
        """Discharge summaries have a date and no time, written as midnight: they close the day."""
        events = Events(self.raw["notes"])
        subject, visit = events.integer("subject_id"), events.integer("hadm_id", missing=None)
        charted = events.time("charttime", missing=1.0)
        time = pl.when(charted == charted.dt.truncate("1d")).then(day_end(charted)).otherwise(charted)
        events.refuse(pl.col("text").is_null(), "no text", 1.0)
        code = pl.lit("NOTE//") + events.label("note_type").replace(_NOTE_TYPES)
        return events.make("notes", subject, Event(code, time, text_value=pl.col("text")), visit_id=visit)

    def _open(self, folder: Folder, name: str) -> RawTable:
        if name != "notes":
            return super()._open(folder, name)
        layout = self.layouts["notes"]
        files = [path for note in layout.names for path in folder.find((note,), layout.subfolder)]
        if not files:
            raise InputError(
                f"{self.name}: table notes (was asked for in data.source.tables): expected discharge.csv.gz or "
                f"radiology.csv.gz of the MIMIC-IV-Note module in {self.root}/note, found neither. Put them there, or "
                "leave notes out of data.source.tables."
            )
        return RawTable("notes", files, layout.columns)
