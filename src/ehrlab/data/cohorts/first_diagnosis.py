"""First-diagnosis case-control cohorts: heart failure, kidney disease, COPD, amnesia.

Zhong et al. 2024 (MedDiffusion, arXiv 2310.02520), sec. 4.2: cases are patients with a first diagnosis, each with three
controls matched on age, gender and race; the history ends six months before the diagnosis. docs/tasks.md argues what
the paper leaves open: when a control's history ends, and the second reading of the six-month window.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.data.codes import icd_bare, icd_version
from ehrlab.data.cohorts.task import OLDEST, UNKNOWN, Cohort, Task, as_strings, finish, scrambled, visit_keys
from ehrlab.data.meds import MedsDataset

WINDOWS = ("until", "last_six_months")

_DAY = 86_400_000_000  # microseconds
_NEVER = -(2**62)


@dataclass(frozen=True)
class FirstDiagnosis(Task):
    """Will the target be diagnosed for the first time?

    icd9, icd10         regular expressions that whole target codes match; codes upper-case, without dots
    window              "until": the history ends `lead_days` before the diagnosis. "last_six_months": it is the
                        `lead_days` before the day of the diagnosis
    num_controls        controls per case, never diagnosed, each used once. A case with fewer is dropped
    age_band_years      cases and controls agree on the band of their age at their first visit, on gender and on race
    min_visits          visits with a diagnosis that a history must hold
    seed                order in which eligible controls are taken
    """

    icd9: Sequence[str]
    icd10: Sequence[str]
    window: str = "until"
    lead_days: int = 180
    num_controls: int = 3
    age_band_years: int = 5
    min_visits: int = 2
    seed: int = 0

    def __post_init__(self) -> None:
        for field in ("icd9", "icd10"):
            patterns = as_strings(getattr(self, field), f"task.{field}")
            for pattern in patterns:
                try:
                    re.compile(pattern)
                except re.error as error:
                    raise InputError(f"task.{field}: '{pattern}' is not a regular expression ({error})") from None
            object.__setattr__(self, field, patterns)
        if self.window not in WINDOWS:
            raise InputError(f"task.window: expected one of {', '.join(WINDOWS)}, found '{self.window}'")
        for field in ("lead_days", "num_controls", "age_band_years", "min_visits"):
            if getattr(self, field) < 1:
                raise InputError(f"task.{field}: expected at least 1, found {getattr(self, field)}")

    def target_codes(self, meds: MedsDataset) -> list[str]:
        """Those of the data set's diagnosis codes that mean the target, whatever their spelling."""
        # Diagnoses only: bare, the procedure 49.2 reads like the diagnosis 492.
        diagnoses = meds.codes().filter(meds.is_kind("diagnosis"))
        icd = diagnoses.select("code", version=icd_version(pl.col("code")), bare=icd_bare(pl.col("code"))).drop_nulls()
        patterns = {9: self.icd9, 10: self.icd10}
        return [
            code
            for code, version, bare in icd.iter_rows()
            if any(re.fullmatch(pattern, bare) for pattern in patterns[version])
        ]

    def cohort(self, meds: MedsDataset) -> Cohort:
        patients = _patients(meds, self.target_codes(meds), self.age_band_years)
        cases: list[int] = np.flatnonzero(patients.diagnosed != _NEVER).tolist()
        eligible = [i for i in cases if self._has_history(patients.visits_of(i), int(patients.diagnosed[i]))]
        matched = self._match(patients, eligible)
        rows = [
            (i, index_time, i == group[0])
            for group in matched
            for elapsed in (patients.diagnosed[group[0]] - patients.first_visit[group[0]],)
            for i in group
            for index_time in (int(patients.first_visit[i] + elapsed),)
        ]
        histories = [self._history(index_time) for _, index_time, _ in rows]
        samples = pl.DataFrame(
            {
                "subject_id": patients.subject_id[[i for i, _, _ in rows]],
                "prediction_time": pl.Series([end for _, end in histories], dtype=pl.Int64),
                "boolean_value": pl.Series([is_case for _, _, is_case in rows], dtype=pl.Boolean),
                "history_start": pl.Series([start for start, _ in histories], dtype=pl.Int64),
            }
        )
        return finish(
            samples,
            {
                f"cases with fewer than {self.min_visits} visits in the history": len(cases) - len(eligible),
                f"cases without {self.num_controls} matching controls": len(eligible) - len(matched),
            },
        )

    def _history(self, index_time: int) -> tuple[int | None, int]:
        """(start, end] of the history of somebody whose index date is `index_time`; microseconds, None = all before."""
        if self.window == "until":
            return None, index_time - self.lead_days * _DAY
        # The whole day of the diagnosis stays out: tables with bare dates give all codes of that visit midnight.
        day = index_time - index_time % _DAY
        return day - self.lead_days * _DAY - 1, day - 1

    def _has_history(self, visits: NDArray[np.int64], index_time: int) -> bool:
        """Enough visits in the history that this index date leaves."""
        start, end = self._history(index_time)
        before = 0 if start is None else visits.searchsorted(start, side="right")
        return bool(visits.searchsorted(end, side="right") - before >= self.min_visits)

    def _match(self, patients: _Patients, cases: Sequence[int]) -> list[list[int]]:
        """Greedy matching without replacement: rows [case, control, ...] of `patients`.

        Cases observed longest choose first, because the fewest controls are observed as long. Each takes eligible
        controls in scrambled order, so that the choice favours nobody.
        """
        order = np.argsort(scrambled(patients.subject_id, self.seed), kind="stable")
        wanted = np.isin(patients.stratum, np.unique(patients.stratum[list(cases)]))
        pools: dict[int, list[int]] = {}
        for i in order[(wanted & (patients.diagnosed == _NEVER))[order]].tolist():
            pools.setdefault(int(patients.stratum[i]), []).append(i)

        elapsed = patients.diagnosed - patients.first_visit
        matched: list[list[int]] = []
        for case in sorted(cases, key=lambda i: (-elapsed[i], patients.subject_id[i])):
            pool = pools.get(int(patients.stratum[case]), [])
            places: list[int] = []
            for place, control in enumerate(pool):
                visits, index_time = patients.visits_of(control), int(patients.first_visit[control] + elapsed[case])
                # A case is in care at its index date, the diagnosis; so must a control be.
                if visits[-1] >= index_time and self._has_history(visits, index_time):
                    places.append(place)
                    if len(places) == self.num_controls:
                        break
            if len(places) < self.num_controls:
                continue
            matched.append([case, *(pool[place] for place in places)])
            for place in reversed(places):
                del pool[place]
        return matched


@dataclass(frozen=True)
class _Patients:
    """Patients with a diagnosis of any kind, in the order of subject_id; times in microseconds since 1970.

    diagnosed  time of the first target diagnosis, or _NEVER
    stratum    number of the group (age band at the first visit, gender, race)
    """

    subject_id: NDArray[np.int64]
    first_visit: NDArray[np.int64]
    diagnosed: NDArray[np.int64]
    stratum: NDArray[np.int64]
    offsets: NDArray[np.int64]
    visits: NDArray[np.int64]

    def visits_of(self, i: int) -> NDArray[np.int64]:
        """Ascending times of the first diagnosis of each visit."""
        return self.visits[self.offsets[i] : self.offsets[i + 1]]


def _patients(meds: MedsDataset, targets: Sequence[str], age_band_years: int) -> _Patients:
    events = meds.scan()
    is_target = pl.col("code").is_in(pl.Series(targets, dtype=pl.String).implode())
    visits = (
        events.filter(meds.is_kind("diagnosis") & pl.col("time").is_not_null())
        .select("subject_id", "time", *visit_keys(), diagnosed=pl.when(is_target).then("time"))
        .group_by("subject_id", "visit_id", "day")
        .agg(pl.col("time").min(), pl.col("diagnosed").min())
        .group_by("subject_id")
        .agg(visits=pl.col("time").sort(), diagnosed=pl.col("diagnosed").min())
    )

    def value(kind: str) -> pl.Expr:
        return pl.col("code").filter(meds.is_kind(kind)).min().alias(kind)

    people = (
        events.filter(meds.is_kind("gender", "race", "birth"))
        .group_by("subject_id")
        .agg(value("gender"), value("race"), birth=pl.col("time").filter(meds.is_kind("birth")).min())
    )
    found, traits = pl.collect_all([visits.sort("subject_id"), people], engine="streaming")
    table = found.join(traits, on="subject_id", how="left", maintain_order="left").with_columns(
        first_visit=pl.col("visits").list.first()
    )
    years = (pl.col("first_visit") - pl.col("birth")).dt.total_days() / 365.25
    band = (years.clip(upper_bound=OLDEST) / age_band_years).floor().cast(pl.Int64)
    # Dense rank of the text: a missing trait is a group of its own.
    group = pl.concat_str(
        [
            band.cast(pl.String).fill_null(UNKNOWN),
            pl.col("gender").fill_null(UNKNOWN),
            pl.col("race").fill_null(UNKNOWN),
        ],
        separator="|",
    )
    lengths = table["visits"].list.len().to_numpy()
    return _Patients(
        subject_id=table["subject_id"].to_numpy(),
        first_visit=table["first_visit"].to_physical().to_numpy(),
        diagnosed=table["diagnosed"].to_physical().fill_null(_NEVER).to_numpy(),
        stratum=table.select(group.rank("dense").cast(pl.Int64)).to_series().to_numpy(),
        offsets=np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)]),
        visits=table["visits"].explode(empty_as_null=False, keep_nulls=False).to_physical().to_numpy(),
    )
