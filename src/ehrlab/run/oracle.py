"""The exact risks of a simulated cohort: computed once per cohort, kept in the cache, compared with every run on it."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.data.cache import build_once, content_key
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.cohorts.admissions import InHospitalMortality, Readmission
from ehrlab.data.cohorts.conditions import Conditions
from ehrlab.data.cohorts.first_diagnosis import FirstDiagnosis
from ehrlab.data.cohorts.stays import DeathInHospital, OnsetInStay
from ehrlab.data.cohorts.task import Task
from ehrlab.data.meds import SPLITS
from ehrlab.data.prepare import KEY_DIGITS
from ehrlab.data.sources.ids import hash_ids
from ehrlab.data.sources.mimic_common import Mimic
from ehrlab.data.sources.source import SIMULATION_MARK, Source
from ehrlab.data.sources.trinetx import TriNetX
from ehrlab.evaluation.oracle import Oracle, compare
from ehrlab.evaluation.resampling import Predictions
from ehrlab.simulation import SPECIFICATION, oracle

log = logging.getLogger("ehrlab")

SCHEMA_VERSION = 1
"""Raised when the same cohort would get other exact risks although SPECIFICATION is the same."""

_TABLE, _REASON = "oracle.parquet", "reason.json"
_KINDS: dict[type[Task], str] = {
    FirstDiagnosis: "first_diagnosis",
    InHospitalMortality: "in_hospital_mortality",
    Readmission: "readmission",
    OnsetInStay: "stay_onset",
    DeathInHospital: "stay_death",
    Conditions: "conditions",
}
_GIVES = {
    "visits": ("codes", "time"),
    "stays": ("charts",),
    "labs": ("labs",),
    "notes": ("notes",),
    "text": ("labs", "notes"),
    "demographics": (),
}
"""What a Batch field tells of what the oracle knows. Every set knows the demographics."""
_ORDER = ("codes", "time", "charts", "labs", "notes")


@dataclass(frozen=True)
class ExactRisks:
    """The oracle of a simulated cohort, or why there is none; and what its samples' text tells."""

    table: Oracle | None
    reason: str | None = None
    text: tuple[str, ...] = _GIVES["text"]

    def judge(
        self, predictions: pl.DataFrame, requires: frozenset[str], *, num_bootstrap: int, seed: int
    ) -> tuple[dict[str, Any], pl.DataFrame | None]:
        """The entry "oracle" of metrics.json, {"reason": ...} where there is nothing to compare with; and the oracle's
        rows of these test samples."""
        if self.table is None:
            return {"reason": self.reason}, None
        reference = reference_set(requires, self.text)
        if reference not in self.table.sets:
            given = ", ".join(sorted(requires))
            return {"reason": f"the oracle knows no risk given {given}; it knows {', '.join(self.table.sets)}"}, None
        test = Predictions.read(predictions)
        entry = compare(test, self.table, reference, num_bootstrap=num_bootstrap, seed=seed)
        return entry, self.table.rows_of(test.keys)


def reference_set(requires: frozenset[str], text: Sequence[str] = _GIVES["text"]) -> str | None:
    """The information set that holds what a model with these requirements is given; None where no set does.

    text  what the field of this name tells: it may hold notes, laboratory tests in words, or both

    >>> reference_set(frozenset({"visits"})), reference_set(frozenset({"notes", "visits", "labs", "demographics"}))
    ('codes+time', 'codes+time+labs+notes')
    >>> reference_set(frozenset({"text"}), text=["notes"]), reference_set(frozenset({"stays", "demographics"}))
    ('notes', 'charts')
    """
    if requires - set(_GIVES):
        return None
    told = {name for field in requires for name in (text if field == "text" else _GIVES[field])}
    return "+".join(name for name in _ORDER if name in told) or None


def exact_risks(source: Source, task: Task, data: ClinicalData, cache_dir: Path) -> ExactRisks:
    """Exact risks of all samples of a cohort of ours: from the cache, or computed now. Not for real data."""
    subject_ids, mark = _subject_ids(source), json.loads((source.root / SIMULATION_MARK).read_text(encoding="utf-8"))
    kind = _KINDS.get(type(task))
    if kind is None:
        return ExactRisks(
            None, f"task '{task.name}' is not one whose exact risk is known ({', '.join(_KINDS.values())})"
        )
    if subject_ids is None:
        return ExactRisks(
            None, f"exact risks need the simulated raw tables, and data source '{source.name}' reads others"
        )
    if mark.get("specification") != SPECIFICATION:
        return ExactRisks(None, "the tables are of another simulator, or of another version of it")
    question = {"kind": kind, **asdict(task)}
    key = content_key(SCHEMA_VERSION, data.fingerprint, SPECIFICATION, mark, question)

    def build(out: Path) -> None:
        samples = pl.concat([data.samples(split) for split in SPLITS])
        log.info("computing the exact risks of %d simulated samples", len(samples))
        with _heard("ehrlab.simulation") as messages:
            known = oracle.write_oracle(source.root, question, samples, out / _TABLE, subject_ids=subject_ids)
        if known:
            keys = samples.select("subject_id", "prediction_time")
            if task.labels:
                keys = keys.join(pl.DataFrame({"label": task.labels}), how="cross")
            Oracle.read(out / _TABLE).rows_of(keys)  # now, not after hours of training
        else:
            reason = messages[-1] if messages else "the simulator does not know the exact risk of this question"
            (out / _REASON).write_text(json.dumps({"reason": reason}), encoding="utf-8")

    folder = build_once(cache_dir / "oracles" / f"{task.name}-{key[:KEY_DIGITS]}", build)
    if (folder / _REASON).exists():
        return ExactRisks(None, str(json.loads((folder / _REASON).read_text(encoding="utf-8"))["reason"]))
    return ExactRisks(Oracle.read(folder / _TABLE), text=_text_tells(data))


def _text_tells(data: ClinicalData) -> tuple[str, ...]:
    """Which of notes and laboratory tests the text of the samples is made of; both where there is no text."""
    for one in data.selected.get("samples", {}).get(SPLITS[0], ()):
        if one.modality.name == "text":
            settings = asdict(one.modality)  # type: ignore[call-overload]
            return tuple(name for name, setting in (("labs", "labtext"), ("notes", "notes")) if settings[setting])
    return _GIVES["text"]


def _subject_ids(source: Source) -> Callable[[pl.Series], pl.Series] | None:
    """Subject ids of our events from those of the simulated raw tables; None where the source reads other tables."""
    if isinstance(source, Mimic):
        return lambda raw: raw.cast(pl.Int64)
    if isinstance(source, TriNetX):
        return lambda raw: raw.to_frame("id").select(hash_ids(pl.col("id"))).to_series()
    return None


@contextmanager
def _heard(name: str) -> Iterator[list[str]]:
    """What is logged below `name` meanwhile."""
    messages: list[str] = []

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            messages.append(record.getMessage())

    logger, listener = logging.getLogger(name), Listener()
    logger.addHandler(listener)
    try:
        yield messages
    finally:
        logger.removeHandler(listener)
