"""MIMIC-III v1.4 (Johnson et al. 2016): one folder of tables, upper- or lower-case names and headers."""

from __future__ import annotations

from typing import ClassVar

import polars as pl

from ehrlab.data.sources.mimic_common import ADMITTED, DONE, GIVEN, MEASURED, STAYED, Layout, Mimic
from ehrlab.data.sources.raw import Event, Events, Folder, RawTable, day_end
from ehrlab.data.sources.source import EventTable

OLDEST = 120
"""Years; an age above it at the first admission is the mark of a date of birth shifted by 300 years."""


_CODED = {"subject_id": True, "hadm_id": True, "seq_num": True, "icd9_code": True}


class Mimic3(Mimic):
    """MIMIC-III. Ages over 89 are hidden by the release; such patients are taken to be 90 at their first admission."""

    name = "mimic3"
    layouts: ClassVar = {
        "patients": Layout(("patients",), {"subject_id": True, "gender": True, "dob": True, "dod": True}),
        "admissions": Layout(("admissions",), {**ADMITTED, "ethnicity": True, "race": False}),
        "diagnoses": Layout(("diagnoses_icd",), _CODED),
        "procedures": Layout(("procedures_icd",), _CODED),
        "drugs": Layout(("prescriptions",), {"subject_id": True, "hadm_id": True, "startdate": True, "drug": True}),
        "labs": Layout(("labevents",), MEASURED),
        "icu_stays": Layout(("icustays",), STAYED),
        "vitals": Layout(("chartevents",), {**MEASURED, "error": False}),
        # Two charting systems, two tables: MetaVision has a start and an end, CareVue a time.
        "inputs": Layout(("inputevents_mv", "inputevents_cv"), {**GIVEN, "starttime": False, "charttime": False}),
        "icu_procedures": Layout(("procedureevents_mv",), DONE),
        "notes": Layout(
            ("noteevents",),
            {
                "subject_id": True,
                "hadm_id": True,
                "chartdate": True,
                "charttime": True,
                "category": True,
                "iserror": True,
                "text": True,
            },
        ),
    }

    def birth(self, patients: Events) -> pl.Expr:
        born, first = patients.time("dob"), pl.col("first_admitted")
        years = (first - born).dt.total_days() / 365.25
        return pl.when(years > OLDEST).then(first.dt.offset_by("-90y")).otherwise(born)

    def day_of_death(self, patients: Events) -> pl.Expr:
        return patients.time("dod", missing=None)  # the release's own choice of DOD_HOSP, then DOD_SSN

    def diagnoses(self) -> EventTable:
        return self._billed("diagnoses", "icd9_code", "DIAGNOSIS", 9)

    def procedures(self) -> EventTable:
        return self._billed("procedures", "icd9_code", "PROCEDURE", 9)

    def drugs(self) -> EventTable:
        return self._prescribed("startdate")

    def vitals(self) -> EventTable:
        # ERROR = 1: the caregiver struck the value out. Only one of the two charting systems has the flag.
        return self._measured("vitals", "VITAL", keep=pl.col("error").fill_null("0") != "1")

    def inputs(self) -> EventTable:
        return self._given("starttime", "charttime")

    def notes(self) -> EventTable:
        return notes(Events(self.raw["notes"]))

    def _open(self, folder: Folder, name: str) -> RawTable:
        layout = self.layouts[name]
        files = [path for table in layout.names for path in folder.find((table,))] if name == "inputs" else []
        return RawTable(name, files, layout.columns) if files else super()._open(folder, name)


def notes(events: Events) -> EventTable:
    """Notes that were not retracted (ISERROR = 1). Discharge summaries have a date and no time: they close the day."""
    subject, visit = events.integer("subject_id"), events.integer("hadm_id", missing=None)
    time = pl.coalesce(events.time("charttime", missing=None), day_end(events.time("chartdate", missing=1.0)))
    events.refuse(pl.col("text").is_null(), "no text", 1.0)
    code = pl.lit("NOTE//") + events.label("category")
    keep = pl.col("iserror").fill_null("0") != "1"
    return events.make("notes", subject, Event(code, time, text_value=pl.col("text")), visit_id=visit, keep=keep)
