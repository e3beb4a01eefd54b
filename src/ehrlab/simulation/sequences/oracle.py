"""The exact risk of each of the sixteen cohorts in the rest of a record, for what is known of it up to a landmark.

    shard = next(simulate(1_024, seed=0))
    known = observe(shard)
    risk = oracle(shard, visit_days(known, ordinal=8))
    risk.first["codes+time"]        # [patient, target] P(first occurrence after the landmark)

Information sets, each with the demographics:
    targets+time  dates of the visits and at which of them the cohorts' own codes stood, context codes unread
    codes+time    all codes and dates: what a model is given
    latent        the true states in the landmark's week and the true frailty
The codes of the background, the places and the nights carry nothing on top of these.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import polars as pl

from ehrlab.simulation.population import Bools, Floats, Ints
from ehrlab.simulation.sequences.layout import entry_dates
from ehrlab.simulation.sequences.population import Shard, risk_class
from ehrlab.simulation.sequences.posterior import Observed, landmark, occurs, returns, states

INFORMATION = ("targets+time", "codes+time", "latent")


@dataclass(frozen=True)
class Risk:
    """Risks and truth after each patient's landmark; arrays are [patient, target] in the order of spec.targets."""

    day: Ints  # [patient] landmark
    is_known: Bools  # [patient] False where the record has no such landmark
    had: Bools  # the target has occurred up to the landmark
    occurs: Bools  # the target is coded after the landmark (the first time where not `had`)
    first: dict[str, Floats]  # P(first occurrence after the landmark); 0 where `had`
    any: dict[str, Floats]  # P(any occurrence after the landmark)


def observe(shard: Shard) -> Observed:
    """What the filter reads, taken from the codes of the record and nothing else."""
    spec, words = shard.spec, shard.vocabulary
    group = np.full(len(words), -1)
    spans = [*words.targets, *(span for block in words.signals for span in block)]
    for i, span in enumerate(spans):
        group[span.start : span.start + span.size] = i
    shown = np.zeros((len(shard.visits.patient), len(spans)), bool)
    of_code = group[shard.codes.code]
    speaks = of_code >= 0
    shown[shard.codes.visit[speaks], of_code[speaks]] = True
    targets, signals, target, signal = [], [], 0, len(words.targets)
    for block in spec.blocks:
        targets.append(shown[:, target : target + len(block.targets)])
        signals.append(shown[:, signal : signal + len(block.signals)])
        target, signal = target + len(block.targets), signal + len(block.signals)
    patients = shard.patients
    risk = np.stack([risk_class(block, patients.age_band, patients.race) for block in spec.blocks], 1)
    return Observed(risk, shard.visits.patient, shard.visits.day, tuple(signals), tuple(targets))


def visit_days(observed: Observed, ordinal: int) -> Ints:
    """Day of each patient's visit number `ordinal` (from 1), -1 where the record has fewer: a landmark for `oracle`."""
    first = np.searchsorted(observed.patient, np.arange(observed.num_patients))
    enough = np.bincount(observed.patient, minlength=observed.num_patients) >= ordinal
    return np.where(enough, observed.day[np.minimum(first + ordinal - 1, len(observed.day) - 1)], -1)


def oracle(shard: Shard, day: Ints | int) -> Risk:
    """Exact risks after the end of `day` (since entry; one for all or one per patient, -1: none)."""
    spec, observed = shard.spec, observe(shard)
    day = np.broadcast_to(np.asarray(day, np.int64), shard.num_patients)
    is_known = (day >= 0) & (day < 7 * spec.weeks)
    at = landmark(spec, observed, np.where(is_known, day, 0))
    true_frailty = np.eye(len(spec.visit))[shard.patients.frailty]
    shape = (shard.num_patients, len(spec.targets))
    first: dict[str, Floats] = {name: np.zeros(shape) for name in INFORMATION}
    ever: dict[str, Floats] = {name: np.zeros(shape) for name in INFORMATION}
    had, after = np.zeros(shape, bool), np.zeros(shape, bool)
    past = observed.day <= at.day[observed.patient]
    column = 0
    for index, block in enumerate(spec.blocks):
        truth = shard.latent.states[np.arange(shard.num_patients), index, at.week]
        belief = {
            "targets+time": states(spec, observed, at, index, use_signals=False),
            "codes+time": states(spec, observed, at, index),
            "latent": np.eye(len(block.states))[truth],
        }
        for i, target in enumerate(block.targets):
            flag = observed.targets[index][:, i]
            np.logical_or.at(had[:, column], observed.patient[flag & past], True)
            np.logical_or.at(after[:, column], observed.patient[flag & ~past], True)
            for name in INFORMATION:
                frailty = true_frailty if name == "latent" else at.frailty
                risk = occurs(spec, block, i, observed.risk[:, index], at, belief[name], frailty)
                first[name][:, column] = np.where(had[:, column], 0.0, risk)
                again = returns(spec, at, target.again, frailty)
                ever[name][:, column] = np.where(had[:, column], again, risk)
            column += 1
    return Risk(at.day, is_known, had, after, first, ever)


def oracle_table(shards: Iterator[Shard], ordinal: int, kind: Literal["first", "any"] = "first") -> pl.DataFrame:
    """The hand-over to evaluation: one row per patient with `ordinal` visits and target, risks after that visit.

    Columns subject_id, prediction_time (end of the visit's day), label (cohort), boolean_value, then INFORMATION.
    `first` leaves out the rows of targets that a patient has had.
    """
    parts = []
    for shard in shards:
        risk = oracle(shard, visit_days(observe(shard), ordinal))
        asked = ~risk.had if kind == "first" else np.ones_like(risk.had)
        rows, columns = np.nonzero(asked & risk.is_known[:, None])
        date = entry_dates(shard) + risk.day.astype("timedelta64[D]")
        moment = date.astype("datetime64[us]") + np.timedelta64(86_399, "s")
        cohorts = pl.Series([target.cohort for target in shard.spec.targets])
        parts.append(
            pl.DataFrame(
                {
                    "subject_id": (shard.first_patient + rows).astype(np.int64),
                    "prediction_time": moment[rows],
                    "label": cohorts.gather(columns),
                    "boolean_value": risk.occurs[rows, columns],
                    **{name: getattr(risk, kind)[name][rows, columns] for name in INFORMATION},
                }
            )
        )
    return pl.concat(parts)
