"""Questions about one admission or one stay by itself: what happens later in a stay, which conditions are coded.

charts   what is charted of the stay until the landmark; the exact risks are those of icu_risk.py
labs, notes, labs+notes  of the admission; the exact risks are those of label_risk.py
latent   the true state of the chains and conditions, see there
Demographics are known in each; other admissions of the patient in none, since no model of these tasks is given them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.simulation import icu, icu_risk, labs, mimic_events, notes
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.label_risk import Admissions, Sign, latent_risk, sign_of
from ehrlab.simulation.population import Floats, Ints, Shard
from ehrlab.simulation.question import Asked, Question, emitted, refuses_death
from ehrlab.simulation.records import LAYOUTS, by_shard, minutes_since_entry
from ehrlab.simulation.spec import Spec

_ALONE: dict[str, Callable[[Shard], Evidence]] = {
    "labs": lambda shard: labs.evidence(shard, labs.draw(shard)),
    "notes": lambda shard: notes.evidence(shard, notes.facts(shard), each_alone=True),
}


# ---------------------------------------------------------------------------------------------------------------- stays
class StayOutcome(Question):
    """Onset of respiratory failure or shock, and death in hospital, after the first hours of intensive care."""

    def refuses(self, spec: Spec, layout: str, task: Mapping[str, Any]) -> str | None:
        if spec.shape.stay_days is None:
            return f"no exact risk of intensive care for tables of layout {layout}, which have none"
        if self._outcome(task) is None:
            return "no exact risk of an onset that is not all of respiratory failure or all of shock (task.onset)"
        return refuses_death(task)

    def _outcome(self, task: Mapping[str, Any]) -> str | None:
        """Of icu_risk.OUTCOMES."""
        if task["kind"] == "stay_death":
            return icu_risk.OUTCOMES[-1]
        asked = {(kind, int(item)) for kind, items in task["onset"].items() for item in items}
        for outcome, signs in zip(icu_risk.OUTCOMES[:-1], mimic_events.ONSETS, strict=True):
            others = {sign for all_signs in mimic_events.ONSETS for group in all_signs for sign in group}
            # One group is enough: whatever begins, something of each of them does.
            if any(group <= asked for group in signs) and not asked & (others - set().union(*signs)):
                return outcome
        return None

    def __call__(self, asked: Asked) -> dict[str, Floats]:
        outcome, hours = self._outcome(asked.task), int(asked.task["hours"])
        assert outcome is not None, "refused before"
        out = {name: np.full(asked.samples.height, np.nan) for name in ("charts", "latent")}
        for shard, mine, entry in by_shard(asked.shards, LAYOUTS[asked.layout], asked.samples, asked.subject_ids):
            stays = icu.draw_stays(shard)
            found = icu_risk.outcome_risk(shard, stays, icu.draw_course(shard, stays), hours)[outcome]
            landmark = stays.first_minute[found.stay] + 60 * hours
            row = _same(mine, entry, shard.visits.patient[stays.visit[found.stay]], landmark, "a stay that may have it")
            sample = mine["sample"].to_numpy()
            out["charts"][sample], out["latent"][sample] = found.charts[row], found.latent[row]
        return out


# ----------------------------------------------------------------------------------------------------------- conditions
class CodedConditions(Question):
    """Which conditions are coded in an admission, known at its end but for its codes."""

    def refuses(self, spec: Spec, layout: str, task: Mapping[str, Any]) -> str | None:
        if spec.shape.stay_days is None:
            return f"no exact risk of conditions of an admission for tables of layout {layout}, which have none"
        if task["admissions"] != "all":
            return "no exact risk of the conditions of an admission that is told to be the last (task.admissions)"
        for name, sign in self._signs(spec, layout, task).items():
            if sign is None:
                return (
                    f"no exact risk of the condition '{name}': its codes are not those of one part of the simulated "
                    f"population '{spec.disease.name}'"
                )
        return None

    def labels(self, task: Mapping[str, Any]) -> list[str]:
        return list(task["conditions"])

    def _signs(self, spec: Spec, layout: str, task: Mapping[str, Any]) -> dict[str, Sign | None]:
        out = {}
        for name, groups in task["conditions"].items():
            starts = {version: tuple(groups[f"icd{version}"]) for version in (9, 10)}
            codes = emitted(spec, layout, lambda version, bare, starts=starts: bare.startswith(starts[version]))  # type: ignore[misc]
            out[name] = None if codes is None else sign_of(vocabulary(spec), codes)
        return out

    def __call__(self, asked: Asked) -> dict[str, Floats]:
        signs = [sign for sign in self._signs(asked.spec, asked.layout, asked.task).values() if sign is not None]
        known = [name for name in _ALONE if name in asked.modalities]
        sets = [*known, "+".join(known)] if len(known) > 1 else known
        out = {name: np.full((asked.samples.height, len(signs)), np.nan) for name in (*sets, "latent")}
        for shard, mine, entry in by_shard(asked.shards, LAYOUTS[asked.layout], asked.samples, asked.subject_ids):
            over = np.floor(shard.visits.end_day * 1440.0).astype(np.int64)
            visit = _same(mine, entry, shard.visits.patient, over, "the end of an admission")
            sample = mine["sample"].to_numpy()
            told = {name: _ALONE[name](shard) for name in known}
            admissions = Admissions(shard, visit)
            for name in sets:
                first, *more = name.split("+")
                evidence = told[first]
                for other in more:
                    evidence = evidence * told[other]
                out[name][sample] = admissions.risk(signs, evidence)
            out["latent"][sample] = latent_risk(shard, visit, signs)
        return out


def _same(mine: pl.DataFrame, entry: np.ndarray, patient: Ints, minute: Ints, what: str) -> Ints:
    """For each sample the row with its patient and its prediction time as `minute`."""
    wanted = mine.select(pl.col("patient").cast(pl.Int64), minute=pl.Series(minutes_since_entry(mine, entry)))
    rows = pl.DataFrame({"patient": patient.astype(np.int64), "minute": minute}).with_row_index("row")
    found = wanted.join(rows, on=["patient", "minute"], how="left", maintain_order="left")["row"]
    if missing := found.null_count():
        raise InputError(
            f"exact risk: expected every prediction time to be that of {what}, but {missing} of {len(found)} are not; "
            "take the samples of the same tables and of the project's own task"
        )
    return found.to_numpy().astype(np.int64)
