"""Exact probability that a chronic condition of the network is present, given what the record has shown so far.

Given age and sex, the conditions are a continuous-time Markov chain on sets of present ones (network.onset_days draws
from it): each begins at its own rate, which present parents multiply, and none ends. The network falls into components
that share no parent, so at most 2^7 sets are followed at a time. Between observations the law of the set is carried on
by uniformisation (a Poisson mixture of jump chains); an observation multiplies it by its likelihood.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.simulation.drugs import INDEX
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.network import CONDITIONS, WARM_UP_YEARS
from ehrlab.simulation.population import Shard

Floats = NDArray[np.float64]
Ints = NDArray[np.integer]

_TAIL = 1e-13  # of the Poisson law that is left out


@dataclass(frozen=True, eq=False)
class Component:
    """Conditions that are linked by parenthood; a set of present ones is the sum of 2^position."""

    members: tuple[int, ...]  # indices into CONDITIONS, parents before children
    moves: tuple[tuple[Ints, Ints, Floats], ...]  # per member: sets without it, the same with it, parents' factor

    @property
    def num_sets(self) -> int:
        return 2 ** len(self.members)

    def holds(self, member: int) -> NDArray[np.bool_]:
        """Which sets hold the condition: [set]."""
        return (np.arange(self.num_sets) >> self.members.index(member)) & 1 == 1


@functools.cache
def components() -> tuple[Component, ...]:
    position = {condition.name: i for i, condition in enumerate(CONDITIONS)}
    group = list(range(len(CONDITIONS)))
    for i, condition in enumerate(CONDITIONS):
        for parent in condition.parents:
            old, new = group[position[parent]], group[i]
            group = [new if label == old else label for label in group]
    found = []
    for label in dict.fromkeys(group):
        members = tuple(i for i, other in enumerate(group) if other == label)
        sets = np.arange(2 ** len(members))
        moves = []
        for place, member in enumerate(members):
            without = sets[(sets >> place) & 1 == 0]
            factor = np.ones(len(without))
            for parent, weight in CONDITIONS[member].parents.items():
                factor *= np.exp(weight * ((without >> members.index(position[parent])) & 1))
            moves.append((without, without + 2**place, factor))
        found.append(Component(members, tuple(moves)))
    return tuple(found)


def daily_rates(age: NDArray[np.floating], is_female: NDArray[np.bool_]) -> Floats:
    """Rate of onset per day without any parent: [patient, condition]."""
    yearly = np.array([condition.yearly_hazard for condition in CONDITIONS])
    by_age = np.array([condition.age for condition in CONDITIONS])
    by_sex = np.array([condition.female for condition in CONDITIONS])
    return yearly * np.exp(np.outer((age - 50.0) / 10.0, by_age) + np.outer(is_female, by_sex)) / 365.25


def carry(component: Component, law: Floats, rates: Floats, days: Floats) -> Floats:
    """Law of the set of present conditions after `days`: [patient, set]; rates [patient, condition]."""
    members = np.array(component.members)
    pace = sum(rates[:, m, None] * factor.max() for m, (_, _, factor) in zip(members, component.moves))
    jumps = np.asarray(pace)[:, 0] * days
    most = int(np.ceil(jumps.max(initial=0.0) + 8.0 * np.sqrt(jumps.max(initial=0.0)) + 20.0))
    weight = np.exp(-jumps)
    total, out, current = weight.copy(), weight[:, None] * law, law
    for step in range(1, most + 1):
        following = current.copy()
        for member, (without, with_it, factor) in zip(members, component.moves):
            flow = current[:, without] * (rates[:, member, None] / pace) * factor
            following[:, without] -= flow
            following[:, with_it] += flow
        current, weight = following, weight * jumps / step
        out += weight[:, None] * current
        total += weight
        if (1.0 - total).max(initial=0.0) < _TAIL:
            break
    return out / out.sum(1, keepdims=True)


def presence(shard: Shard, evidence: Evidence | None = None) -> Floats:
    """P(condition present at the start of the visit | the past and the visit's `evidence`): [visit, condition].

    The past: diagnosis codes, drugs and evidence of the patient's earlier visits. Of the visit itself only the evidence
    (labs, notes) counts, so that this is what its codes are to be predicted from.
    """
    visits, patients = shard.visits, shard.patients
    rates = daily_rates(patients.age, patients.is_female)
    shown = _shown(shard)
    first = np.searchsorted(visits.patient, np.arange(shard.num_patients + 1))
    counts = np.diff(first)
    out = np.empty((len(visits.patient), len(CONDITIONS)))
    for component in components():
        holds = {member: component.holds(member).astype(np.int64) for member in component.members}
        law = np.zeros((shard.num_patients, component.num_sets))
        law[:, 0] = 1.0
        now = np.full(shard.num_patients, -365.25 * WARM_UP_YEARS)
        for ordinal in range(int(counts.max(initial=0))):
            who = np.flatnonzero(counts > ordinal)
            visit = first[who] + ordinal
            start = visits.start_day[visit]
            at_visit = carry(component, law[who], rates[who], start - now[who])
            if evidence is not None:
                for member, held in holds.items():
                    at_visit *= evidence.condition[visit, member][:, held]
                at_visit /= at_visit.sum(1, keepdims=True)
            for member, held in holds.items():
                out[visit, member] = at_visit @ held
            for member, held in holds.items():
                at_visit *= shown[visit, member][:, held]
            law[who], now[who] = at_visit / at_visit.sum(1, keepdims=True), start
    return out


def coding_probability(shard: Shard, present: Floats, code: str) -> Floats:
    """P(the visit codes this diagnosis of the network): [visit]; `present` from `presence`. Zero where nothing can."""
    index = shard.vocabulary.codes.index(code)
    for condition, span in enumerate(shard.vocabulary.network):
        if span.start <= index < span.start + span.size:
            return present[:, condition] * shard.spec.shape.network_code * span.share(index)
    raise InputError(f"simulator: '{code}' is no code of the chronic conditions in this population; choose another")


def _shown(shard: Shard) -> Floats:
    """Likelihood of what a visit's codes and drugs show: [visit, condition, absent or present].

    A drug that the target disease brings, too, is not read.
    """
    shape, words = shard.spec.shape, shard.vocabulary
    likelihood = np.ones((len(shard.visits.patient), len(CONDITIONS), 2))
    for i, (condition, span) in enumerate(zip(CONDITIONS, words.network)):
        signs = []
        if span.size:
            of_span = (shard.codes.code >= span.start) & (shard.codes.code < span.start + span.size)
            signs.append((shard.codes.visit[of_span], shape.network_code))
        if condition.drug is not None and condition.drug not in shard.spec.disease.drugs:
            given = shard.drugs.code == INDEX[condition.drug]
            signs.append((shard.drugs.visit[given], shape.condition_drug))
        for visit, chance in signs:
            is_shown = np.zeros(len(likelihood), bool)
            is_shown[visit] = True
            likelihood[:, i, 0] *= np.where(is_shown, 0.0, 1.0)
            likelihood[:, i, 1] *= np.where(is_shown, chance, 1.0 - chance)
    return likelihood
