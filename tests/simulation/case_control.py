"""The cohorts of MedDiffusion sec. 4.2, drawn from simulated shards in memory.

A plain approximation of the project's own rule on the written tables, so that the simulator can be judged alone. A
case's history ends 180 days before its first diagnosis. Its three controls, never diagnosed, of the same age band, sex
and race, still in care as long after their first visit, take the same cut. `python tests/simulation/case_control.py`
prints the statistics that docs/simulation.md shows beside the paper's Table 1.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.population import Shard, simulate

LEAD_DAYS = 180.0
MIN_VISITS = 2
RATIO = 3
AGE_BAND_YEARS = 5
MAX_VISITS = 50


@dataclass(frozen=True)
class Record:
    """One patient's record. Days count from the first visit; `diagnosis_day` is inf for the never diagnosed."""

    shard: Shard
    patient: int
    diagnosis_day: float
    stratum: tuple[int, bool, int]
    days: NDArray[np.floating]
    codes: list[NDArray[np.integer]]

    @property
    def is_case(self) -> bool:
        return bool(np.isfinite(self.diagnosis_day))

    def history(self, index_day: float) -> slice:
        """The visits (at most the last 50) that a model may see."""
        end = int(np.searchsorted(self.days, index_day - LEAD_DAYS, side="right"))
        return slice(max(0, end - MAX_VISITS), end)

    def is_eligible(self, index_day: float) -> bool:
        return self.days[-1] >= index_day and self.history(index_day).stop >= MIN_VISITS


@dataclass(frozen=True)
class Sample:
    record: Record
    index_day: float

    @property
    def label(self) -> bool:
        return self.record.is_case

    @property
    def codes(self) -> list[NDArray[np.integer]]:
        return self.record.codes[self.record.history(self.index_day)]

    @property
    def days(self) -> NDArray[np.floating]:
        return self.record.days[self.record.history(self.index_day)]


def records(shards: Iterable[Shard]) -> list[Record]:
    out = []
    for shard in shards:
        visits = shard.visits
        first = np.searchsorted(visits.patient, np.arange(shard.num_patients + 1))
        codes = np.split(shard.codes.code, np.searchsorted(shard.codes.visit, np.arange(1, len(visits.patient))))
        for patient in range(shard.num_patients):
            rows = slice(first[patient], first[patient + 1])
            days = visits.end_day[rows] - visits.end_day[rows.start]
            diagnosed = days[visits.is_first_diagnosis[rows]]
            patients = shard.patients
            band = int(patients.age[patient] // AGE_BAND_YEARS)
            stratum = (band, bool(patients.is_female[patient]), int(patients.race[patient]))
            day = float(diagnosed[0]) if len(diagnosed) else np.inf
            out.append(Record(shard, patient, day, stratum, days, codes[rows]))
    return out


def eligible_cases(pool: list[Record]) -> list[Record]:
    return [record for record in pool if record.is_case and record.is_eligible(record.diagnosis_day)]


def match(pool: list[Record]) -> list[Sample]:
    """Per matched case its sample and those of its three controls, each control used once."""
    controls: dict[tuple[int, bool, int], list[Record]] = {}
    for record in pool:
        if not record.is_case:
            controls.setdefault(record.stratum, []).append(record)
    samples = []
    # The longest observed choose first: the fewest controls are observed as long.
    for case in sorted(eligible_cases(pool), key=lambda record: -record.diagnosis_day):
        free = controls.get(case.stratum, [])
        found = [control for control in free if control.is_eligible(case.diagnosis_day)][:RATIO]
        if len(found) == RATIO:
            samples += [Sample(record, case.diagnosis_day) for record in (case, *found)]
            controls[case.stratum] = [control for control in free if not any(control is used for used in found)]
    return samples


def statistics(samples: list[Sample]) -> dict[str, float]:
    num_visits = sum(len(sample.days) for sample in samples)
    codes = np.concatenate([codes for sample in samples for codes in sample.codes])
    num_cases = sum(sample.label for sample in samples)
    return {
        "positive_cases": num_cases,
        "negative_cases": len(samples) - num_cases,
        "visits_per_patient": num_visits / len(samples),
        "codes_per_visit": len(codes) / num_visits,
        "unique_codes": len(np.unique(codes)),
    }


def main() -> None:
    for layout, preset, num_patients in (
        ("mimic", "heart_failure", 12_000),
        ("trinetx", "heart_failure", 12_000),
        ("trinetx", "kidney", 12_000),
        ("trinetx", "copd", 12_000),
        ("trinetx", "amnesia", 12_000),
    ):
        pool = records(simulate(preset, layout, num_patients, seed=0))
        table = {name: round(value, 2) for name, value in statistics(match(pool)).items()}
        print(f"{layout} {preset}: {num_patients} patients, {len(eligible_cases(pool))} eligible cases, {table}")


if __name__ == "__main__":
    main()
