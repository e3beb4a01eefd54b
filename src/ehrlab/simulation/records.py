"""What the records of a cohort's samples show up to their landmarks, beside the latent truth of the same patients.

The patients of a folder of simulated tables are drawn anew: nothing is read from the tables but their mark.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.simulation import chain, labs, mimic3, mimic4, notes, trinetx
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.filter import Histories
from ehrlab.simulation.population import Bools, Floats, Ints, Shard
from ehrlab.simulation.spec import Shape

_MINUTES = 1440

SOURCES: dict[str, Callable[[Shard], Evidence]] = {
    "labs": lambda shard: labs.evidence(shard, labs.draw(shard)),
    "notes": lambda shard: notes.evidence(shard, notes.facts(shard)),
}
"""Evidence beside the codes, by modality."""


@dataclass(frozen=True)
class Layout:
    """How a layout tells time.

    clock     subject ids of the raw tables and the date of entry of a shard's patients
    is_dated  only dates are known: a visit is over on the date on which it began, and all of the landmark's own date is
              part of the history. Else times are known to the minute
    """

    clock: Callable[[Shard], tuple[NDArray[np.generic], NDArray[np.datetime64]]]
    is_dated: bool

    @property
    def grain_days(self) -> int:
        return int(self.is_dated)


LAYOUTS = {
    "mimic3": Layout(mimic3.clock, is_dated=False),
    "mimic4": Layout(mimic4.clock, is_dated=False),
    "trinetx": Layout(trinetx.clock, is_dated=True),
}


@dataclass(frozen=True, eq=False)
class Records:
    """One row per sample, in the order of the samples, and one per visit begun before a sample's landmark.

    entry        [sample] date on which the record begins; days count from it
    landmark     [sample] day up to which the record is known; with bare dates, the day after that of the landmark
    trait        [sample] index into the traits of filter.Law
    states       [sample, week] true state
    visit_*      [visit] by sample and time; days. visit_end is inf where the visit goes on at the landmark
    evidence     modality -> (chain [visit, event, state], family [visit, family history]); silent for visits going on
    """

    age: Floats
    is_female: Bools
    race: Ints
    risk: Ints
    trait: Ints
    entry: NDArray[np.datetime64]
    landmark: Floats
    states: NDArray[np.int8]
    visit_sample: Ints
    visit_week: Ints
    visit_start: Floats
    visit_end: Floats
    visit_flags: Bools
    visit_is_diagnosis: Bools
    evidence: dict[str, tuple[NDArray[np.float32], Floats]]

    @property
    def num_samples(self) -> int:
        return len(self.risk)

    @property
    def num_visits(self) -> Ints:
        """[sample]"""
        return np.bincount(self.visit_sample, minlength=self.num_samples)

    @property
    def first_end(self) -> Floats:
        """[sample] day on which the first visit is over."""
        return self.visit_end[np.searchsorted(self.visit_sample, np.arange(self.num_samples))]

    def histories(self, rows: Ints, weeks: int, *, in_last_visit: bool = False) -> tuple[Histories, Ints]:
        """Those of some samples, and which visits are theirs; `weeks` of the record.

        in_last_visit  up to the week of the last visit, whose evidence is known but not whether it is survived
        """
        place = np.full(self.num_samples, -1)
        place[rows] = np.arange(len(rows))
        visits = np.flatnonzero(place[self.visit_sample] >= 0)
        patient, week = place[self.visit_sample[visits]], self.visit_week[visits]
        is_last = np.append(patient[1:] != patient[:-1], True)
        diagnosed = np.full(len(rows), weeks)
        known = self.visit_is_diagnosis[visits] & np.isfinite(self.visit_end[visits])
        diagnosed[patient[known]] = week[known]
        landmark, end = self.landmark[rows], self.visit_end[visits]
        if in_last_visit:
            landmark[patient[is_last]] = 7.0 * (week[is_last] + 1)
            end[is_last] = self.visit_start[visits[is_last]]
        histories = Histories(
            landmark=landmark,
            visit_patient=patient,
            visit_week=week,
            visit_start=self.visit_start[visits],
            visit_end=end,
            visit_survived=~(is_last & in_last_visit),
            diagnosed=diagnosed,
        )
        return histories, visits


def read(
    shards: Iterable[Shard],
    layout: Layout,
    samples: pl.DataFrame,
    modalities: Sequence[str],
    subject_ids: Callable[[pl.Series], pl.Series],
) -> Records:
    """Records of `samples` (subject_id, prediction_time). InputError where a sample is nobody's in this population."""
    parts = [
        _of_shard(shard, layout, mine, entry, modalities)
        for shard, mine, entry in by_shard(shards, layout, samples, subject_ids)
    ]
    found = np.concatenate([part["sample"] for part in parts]) if parts else np.empty(0, np.int64)
    order = np.argsort(found, kind="stable")
    place = np.empty_like(order)
    place[order] = np.arange(len(order))
    begin = np.concatenate([[0], np.cumsum([len(part["sample"]) for part in parts])])
    visit_sample = place[np.concatenate([part["visit_row"] + at for part, at in zip(parts, begin[:-1], strict=True)])]
    of_visit = np.argsort(visit_sample, kind="stable")

    def samples_of(name: str) -> Any:
        return np.concatenate([part[name] for part in parts])[order]

    def visits_of(name: str) -> Any:
        return np.concatenate([part[name] for part in parts])[of_visit]

    return Records(
        **{name: samples_of(name) for name in ("age", "is_female", "race", "risk", "trait", "entry", "landmark")},
        states=samples_of("states"),
        visit_sample=visit_sample[of_visit],
        **{f"visit_{name}": visits_of(name) for name in ("week", "start", "end", "flags", "is_diagnosis")},
        evidence={name: (visits_of(f"{name} chain"), visits_of(f"{name} family")) for name in modalities},
    )


def by_shard(
    shards: Iterable[Shard],
    layout: Layout,
    samples: pl.DataFrame,
    subject_ids: Callable[[pl.Series], pl.Series],
) -> Iterator[tuple[Shard, pl.DataFrame, NDArray[np.datetime64]]]:
    """Shards that have samples, with these and the date of entry of each patient.

    The samples have the columns sample (their row), subject_id, prediction_time and patient (row of the shard).
    InputError, at the end, where a sample is nobody's in this population.
    """
    keys = samples.select("subject_id", "prediction_time").with_row_index("sample")
    num_found = 0
    for shard in shards:
        raw, entry = layout.clock(shard)
        subjects = subject_ids(pl.Series("subject_id", raw)).alias("subject_id").to_frame().with_row_index("patient")
        mine = keys.join(subjects, on="subject_id", how="inner", maintain_order="left")
        num_found += mine.height
        if mine.height:
            yield shard, mine, entry
    if num_found != samples.height:
        raise InputError(
            f"exact risk: expected every sample to be a patient of the simulated tables, found {num_found} of "
            f"{samples.height}; take the samples of the same tables"
        )


def minutes_since_entry(samples: pl.DataFrame, entry: NDArray[np.datetime64]) -> Ints:
    """Whole minutes from the start of the record to the prediction time of samples of `by_shard`."""
    begin = entry[samples["patient"].to_numpy().astype(np.int64)].astype("datetime64[us]")
    since = samples["prediction_time"].cast(pl.Datetime("us")).to_numpy() - begin
    return np.floor(since / np.timedelta64(1, "m")).astype(np.int64)


def _of_shard(
    shard: Shard, layout: Layout, samples: pl.DataFrame, entry: NDArray[np.datetime64], modalities: Sequence[str]
) -> dict[str, NDArray[np.generic]]:
    patients, visits = shard.patients, shard.visits
    patient = samples["patient"].to_numpy().astype(np.int64)
    begin = entry[patient].astype("datetime64[us]")
    landmark = (samples["prediction_time"].to_numpy() - begin) / np.timedelta64(1, "m") + layout.grain_days * _MINUTES
    start = np.floor(visits.start_day) * _MINUTES if layout.is_dated else np.floor(visits.start_day * _MINUTES)
    end = start if layout.is_dated else np.floor(visits.end_day * _MINUTES)

    first = np.searchsorted(visits.patient, np.arange(shard.num_patients + 1))
    count = first[patient + 1] - first[patient]
    row = np.repeat(np.arange(len(patient)), count)
    visit = np.arange(len(row)) - np.repeat(np.cumsum(count) - count, count) + first[patient][row]
    begun = start[visit] < landmark[row]
    row, visit = row[begun], visit[begun]
    is_over = end[visit] <= landmark[row]
    out: dict[str, NDArray[np.generic]] = {
        "sample": samples["sample"].to_numpy().astype(np.int64),
        "age": patients.age[patient],
        "is_female": patients.is_female[patient],
        "race": patients.race[patient],
        "risk": patients.risk_class[patient],
        "trait": patients.frailty[patient] * chain.NUM_FAMILY + patients.family_history[patient],
        "entry": begin,
        "landmark": landmark / _MINUTES,
        "states": shard.latent.states[patient],
        "visit_row": row,
        "week": visits.week[visit],
        "start": start[visit] / _MINUTES,
        "end": np.where(is_over, end[visit] / _MINUTES, np.inf),
        "flags": visits.flags[visit],
        "is_diagnosis": visits.is_first_diagnosis[visit] & is_over,
    }
    for name in modalities:
        told = SOURCES[name](shard)
        out[f"{name} chain"] = np.where(is_over[:, None, None], told.chain[visit], 1.0).astype(np.float32)
        out[f"{name} family"] = np.where(is_over[:, None], told.family[visit], 1.0)
    return out


def code_likelihood(shape: Shape, flags: Bools) -> Floats:
    """P(flags [visit, flag] | event, state): [visit, event, state]. Of the latent chain, codes show the flags alone."""
    probability = chain.flag_probability(shape)
    num_flags = len(probability)
    patterns = (np.arange(2**num_flags)[:, None] >> np.arange(num_flags)) & 1
    table = np.prod(np.where(patterns[:, :, None, None] == 1, probability, 1.0 - probability), axis=1)
    return table[flags @ (1 << np.arange(num_flags))]
