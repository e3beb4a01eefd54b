"""TriNetX exports: a patient table, an encounter table and coded facts with dates.

Exports differ in folder names, column names and date spellings: tables are found under all the names below, `columns`
maps the rest. Ids become integers: those of patients as they are where all are integers, all others by a hash that is
the same on every machine (63 bits of FNV-1a), so that predictions can be joined between sites.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.sources.ids import hash_ids
from ehrlab.data.sources.raw import Event, Events, Folder, RawTable, reading
from ehrlab.data.sources.source import DEFAULT_TABLES, EventTable, Source, check_tables, modalities

OPTIONAL = ("diagnoses", "procedures", "drugs", "labs", "vitals")

# Our name -> the export's names, in order of preference.
NAMES: dict[str, tuple[str, ...]] = {
    "patient": ("patient", "patients"),
    "encounter": ("encounter", "encounters"),
    "diagnoses": ("diagnosis", "diagnoses"),
    "procedures": ("procedure", "procedures"),
    "drugs": ("medication_ingredient", "medication_ingredients", "medication_drug", "medication", "medications"),
    "labs": ("lab_result", "lab_results"),
    "vitals": ("vitals_signs", "vital_signs", "vitals_sign", "vital_sign"),
}
COLUMNS: dict[str, dict[str, bool]] = {
    "patient": {
        "patient_id": True,
        "sex": True,
        "race": True,
        "year_of_birth": True,
        "month_year_death": False,
    },
    "encounter": {"encounter_id": True, "patient_id": True, "start_date": True, "end_date": True, "type": True},
    "diagnoses": {"patient_id": True, "encounter_id": True, "code_system": True, "code": True, "date": True},
    "procedures": {"patient_id": True, "encounter_id": True, "code_system": True, "code": True, "date": True},
    "drugs": {"patient_id": True, "encounter_id": True, "code_system": True, "code": True, "start_date": True},
    "labs": {
        "patient_id": True,
        "encounter_id": True,
        "code_system": True,
        "code": True,
        "date": True,
        "lab_result_num_val": True,
        "lab_result_text_val": False,
        "units_of_measure": False,
    },
    "vitals": {
        "patient_id": True,
        "encounter_id": True,
        "code_system": True,
        "code": True,
        "date": True,
        "value": True,
        "text_value": False,
        "units_of_measure": False,
    },
}

_ICD = {"ICD9CM": 9, "ICD10CM": 10, "ICD9PCS": 9, "ICD10PCS": 10, "ICD9": 9, "ICD10": 10}
_SEX = {"F": "F", "FEMALE": "F", "M": "M", "MALE": "M"}
_NO_RACE = ("UNKNOWN", "UNK", "NOT REPORTED", "UNKNOWN RACE")


class TriNetX(Source):
    """A TriNetX export; `tables` are some of OPTIONAL (patient and encounter are always read).

    columns  table (a key of COLUMNS) -> {our column name: the export's}, for what is named otherwise

    Errors: InputError where a table or column is missing or empty, or `columns` names what does not exist.
    """

    name = "trinetx"

    def __init__(
        self,
        root: Path | str,
        tables: Sequence[str] = DEFAULT_TABLES,
        columns: Mapping[str, Mapping[str, str]] | None = None,
    ) -> None:
        self.root = Path(root)
        chosen = check_tables(tables, OPTIONAL)
        self.columns = {table: dict(names) for table, names in (columns or {}).items()}
        _check_columns(self.columns)
        folder = Folder(self.root)
        self.raw = {name: self._open(folder, name) for name in ("patient", "encounter", *chosen)}
        self.provides = modalities(chosen)

    def files(self) -> list[Path]:
        return [path for table in self.raw.values() for path in table.files]

    def settings(self) -> dict[str, Any]:
        return {"tables": sorted(self.raw), "columns": self.columns}

    def tables(self) -> Iterator[EventTable]:
        yield self.patients()
        yield self.encounters()
        makers = {
            "diagnoses": self.diagnoses,
            "procedures": self.procedures,
            "drugs": self.drugs,
            "labs": self.labs,
            "vitals": self.vitals,
        }
        for name, make in makers.items():
            if name in self.raw:
                yield make()

    def patients(self) -> EventTable:
        """Birth is put on July 1st, the middle of the year of birth; death at the end of its month."""
        events = Events(self.raw["patient"])
        subject = self._subject(events)
        year = events.integer("year_of_birth", missing=None)
        birth = pl.datetime(year, 7, 1, time_unit="us")
        death = events.month_end("month_year_death")
        race = events.label("race", unknown="UNKNOWN")
        return events.make(
            "patient",
            subject,
            Event(pl.lit("GENDER//") + events.label("sex", unknown="UNKNOWN").replace(_SEX)),
            Event(pl.lit("RACE//") + pl.when(race.is_in(_NO_RACE)).then(pl.lit("UNKNOWN")).otherwise(race)),
            Event(pl.when(year.is_not_null()).then(pl.lit("MEDS_BIRTH")), time=birth),
            Event(pl.when(death.is_not_null()).then(pl.lit("MEDS_DEATH")), time=death),
            is_roster=True,
        )

    def encounters(self) -> EventTable:
        events = Events(self.raw["encounter"])
        subject = self._subject(events)
        events.refuse(pl.col("encounter_id").is_null(), "no encounter_id", 0.0)
        start, end = events.time("start_date", missing=1.0), events.time("end_date", missing=None)
        kind = events.label("type")
        return events.make(
            "encounter",
            subject,
            Event(pl.lit("ENCOUNTER_START//") + kind, time=start),
            Event(
                pl.when(end.is_not_null()).then(pl.lit("ENCOUNTER_END//") + kind), time=pl.max_horizontal(start, end)
            ),
            visit_id=hash_ids(pl.col("encounter_id")),
        )

    def diagnoses(self) -> EventTable:
        return self._coded("diagnoses", "DIAGNOSIS", "date")

    def procedures(self) -> EventTable:
        return self._coded("procedures", "PROCEDURE", "date")

    def drugs(self) -> EventTable:
        return self._coded("drugs", "DRUG", "start_date")

    def labs(self) -> EventTable:
        return self._coded("labs", "LAB", "date", "lab_result_num_val", "lab_result_text_val")

    def vitals(self) -> EventTable:
        return self._coded("vitals", "VITAL", "date", "value", "text_value")

    def _coded(
        self, name: str, prefix: str, date: str, number_column: str | None = None, text_column: str | None = None
    ) -> EventTable:
        """A table of facts: ICD codes of diagnoses and procedures are checked and dotted, others are taken as found."""
        events = Events(self.raw[name])
        subject = self._subject(events)
        time = events.time(date, missing=1.0)
        system = pl.col("code_system").str.to_uppercase().str.replace_all("[^A-Z0-9]", "").fill_null("UNK")
        events.frame = events.frame.with_columns(system=system)
        own = pl.col("code").str.to_uppercase()
        number = text = None
        if prefix in ("DIAGNOSIS", "PROCEDURE"):
            version = pl.col("system").replace_strict(_ICD, default=None, return_dtype=pl.Int64)
            code = events.icd("code", prefix, version, where=version.is_not_null())
            code = pl.coalesce(
                code, pl.when(version.is_null()).then(pl.concat_str(pl.lit(f"{prefix}//"), "system", pl.lit("//"), own))
            )
        elif number_column is None:
            events.refuse(own.is_null(), "no code", 1.0)
            code = pl.concat_str(pl.lit(f"{prefix}//"), "system", pl.lit("//"), own)
        else:
            events.refuse(own.is_null(), "no code", 1.0)
            # LOINC is the rule and stays bare; other systems mark their codes: TNX:9000.
            mark = pl.when((pl.col("system") == "LOINC") | own.str.starts_with("TNX:")).then(pl.lit(""))
            item = pl.concat_str(mark.otherwise(pl.col("system") + ":"), own)
            unit = pl.col("units_of_measure").fill_null("UNK")
            code = pl.concat_str(pl.lit(f"{prefix}//"), item, pl.lit("//"), unit)
            number = events.number(number_column)
            text = pl.when(number.is_null()).then(pl.col(text_column or "text_value"))
        return events.make(name, subject, Event(code, time, number, text), visit_id=hash_ids(pl.col("encounter_id")))

    def _subject(self, events: Events) -> pl.Expr:
        if self._ids_are_integers:
            return events.integer("patient_id")
        events.refuse(pl.col("patient_id").is_null(), "no patient_id", 0.0)
        return hash_ids(pl.col("patient_id"))

    @cached_property
    def _ids_are_integers(self) -> bool:
        """True where every patient_id of the patient table is a plain integer; checks that no two ids coincide."""
        table = self.raw["patient"]
        with reading(table.name, table.files):
            ids = table.scan().select("patient_id").drop_nulls().collect(engine="streaming")["patient_id"]
        where = f"table patient ({table.files[0]})"
        if ids.is_duplicated().any():
            raise InputError(f"{where}: expected one row per patient_id, found some twice; export the table again")
        if ids.str.contains(r"^(0|[1-9][0-9]{0,17})$").all():
            return True
        if pl.select(hash_ids(pl.lit(ids))).to_series().is_duplicated().any():
            raise InputError(
                f"{where}: two patient_id have the same 63-bit hash; number the patients with integers instead"
            )
        return False

    def _open(self, folder: Folder, name: str) -> RawTable:
        files = folder.find(NAMES[name])
        if not files:
            need = "was asked for in data.source.tables" if name in OPTIONAL else "is always needed"
            raise InputError(
                f"{self.name}: table {NAMES[name][0]} ({need}): expected {' or '.join(NAMES[name])}.csv (.csv.gz, "
                f"numbered parts, any case) in {self.root} or its folders, found {folder.listing()}. Add the file, or "
                "correct data.root or data.source.tables."
            )
        return RawTable(name, files, COLUMNS[name], self.columns.get(name))


def open_trinetx(
    root: Path | str,
    tables: Sequence[str] = DEFAULT_TABLES,
    columns: Mapping[str, Mapping[str, str]] | None = None,
) -> TriNetX:
    """A TriNetX export; see TriNetX."""
    return TriNetX(root, tables, columns)


def _check_columns(columns: Mapping[str, Mapping[str, str]]) -> None:
    for table, names in columns.items():
        if table not in COLUMNS:
            raise InputError(f"data.source.columns: unknown table {table!r}; expected some of {', '.join(COLUMNS)}")
        unknown = sorted(set(names) - set(COLUMNS[table]))
        if unknown:
            raise InputError(
                f"data.source.columns.{table}: unknown column {unknown[0]!r}; expected some of "
                f"{', '.join(COLUMNS[table])}"
            )
