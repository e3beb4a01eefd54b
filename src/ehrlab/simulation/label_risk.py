"""The exact risk that an admission is coded with a condition, from what this admission alone shows beside its codes.

MEDFuse's task (arXiv 2407.12309) is ten labels of one admission from its laboratory tests and notes. Who predicts them
knows age, sex and race and the admission's tests and notes; not other admissions, nor where in the record it lies. So
the admission is one taken at random from the population, and the sum goes over the weeks in which it can lie, each
weighted with the law of visits (visits.py) and with the law of the age that the patient then had at entry. Given the
week and that age, the chain, each component of the network and each acute condition are independent of each other.

The sum over weeks is exact. The network's law is carried to Chebyshev nodes of (age, time since entry) and interpolated
between them, to 1e-8; within a week it is that of its middle.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.polynomial import chebyshev
from scipy.special import ndtr

from ehrlab.simulation import chain
from ehrlab.simulation.codes import Vocabulary
from ehrlab.simulation.conditions import carry, components, daily_rates
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.network import WARM_UP_YEARS
from ehrlab.simulation.population import Floats, Ints, Shard
from ehrlab.simulation.spec import ACUTE, RACES, Shape
from ehrlab.simulation.visits import AFTER, AT, NUM_KINDS, expected_visits

_YEAR = 365.25
_NUM_AGES, _NUM_TIMES = 40, 12  # Chebyshev nodes

TARGET, FLAG, CONDITION, ACUTE_CONDITION = "target", "flag", "condition", "acute"


@dataclass(frozen=True)
class Sign:
    """The part of the truth that a label's codes come from, which of its kind, and P(one of them | it is coded)."""

    part: str
    index: int
    share: float


def sign_of(words: Vocabulary, codes: Collection[str]) -> Sign | None:
    """The part of the truth that emits these codes of the vocabulary; None unless there is exactly one."""
    spans = [(TARGET, 0, words.target)]
    for part, of_part in ((FLAG, words.flags), (CONDITION, words.network), (ACUTE_CONDITION, words.acute)):
        spans += [(part, i, span) for i, span in enumerate(of_part)]
    places = [i for i, code in enumerate(words.codes) if code in codes]
    for part, i, span in spans:
        if places and all(span.start <= place < span.start + span.size for place in places):
            return Sign(part, i, min(sum(span.share(place) for place in places), 1.0))
    return None


def is_coded(shard: Shard, visit: Ints, codes: Sequence[Collection[str]]) -> np.ndarray:
    """The labels themselves: [visit, label] bool."""
    out = np.zeros((len(shard.visits.patient), len(codes)), bool)
    for label, of_label in enumerate(codes):
        places = [i for i, code in enumerate(shard.vocabulary.codes) if code in of_label]
        out[shard.codes.visit[np.isin(shard.codes.code, places)], label] = True
    return out[visit]


class Admissions:
    """Some visits of a shard, each as somebody sees it who knows no other.

    network        per component, its law of the visit's patient at nodes of the time since entry: [visit, node, set]
    between_weeks  from these nodes to weeks: [node, week]
    """

    def __init__(self, shard: Shard, visit: Ints) -> None:
        self._shape, self._visit = shard.spec.shape, visit
        self.between_weeks = _between_weeks(shard.spec.shape)
        self._when = _when(shard, visit)
        self.network = [_network(shard, visit, which) for which in range(len(components()))]

    def risk(self, signs: Sequence[Sign], evidence: Evidence) -> Floats:
        """P(the label is coded at the visit | demographics and evidence): [visit, label].

        evidence  of every visit of the shard, each as if it were the only one
        """
        shape, visit, risks = self._shape, self._visit, range(chain.NUM_RISK)
        told = evidence.family[visit, :, None, None] * evidence.chain[visit, None]
        told = told.reshape(len(visit), -1)  # [visit, family x event x state]
        laws = [_by_week(shape, risk) for risk in risks]
        told_of_chain = sum(self._when[risk] * (told @ laws[risk][0].T) for risk in risks)  # [visit, week]

        told_of_network = np.ones_like(told_of_chain)
        wanted = {sign.index for sign in signs if sign.part == CONDITION}
        # P(evidence of its component and the condition present) / P(evidence of its component): [visit, week]
        present: dict[int, Floats] = {}
        for component, law in zip(components(), self.network, strict=True):
            shown = law
            for member in component.members:
                shown = shown * evidence.condition[visit, member][:, None, component.holds(member).astype(np.int64)]
            asked = [member for member in component.members if member in wanted]
            sets = np.stack([np.ones(component.num_sets), *map(component.holds, asked)], axis=1)
            of_all, *of_members = np.moveaxis(shown @ sets, 2, 0) @ self.between_weeks
            told_of_network *= of_all
            present |= {member: found / of_all for member, found in zip(asked, of_members, strict=True)}
        posterior = told_of_chain * told_of_network
        total = posterior.sum(1)

        # Of the chain, given all: [of any visit or one that codes the target, visit, event x state]
        of_chain = told * sum((self._when[risk] * told_of_network) @ laws[risk] for risk in risks) / total[:, None]
        of_chain = of_chain.reshape(2, len(visit), chain.NUM_FAMILY, -1).sum(2)
        flags = chain.flag_probability(shape)
        out = np.empty((len(visit), len(signs)))
        for label, sign in enumerate(signs):
            if sign.part == TARGET:
                coded = of_chain[1].sum(1)
            elif sign.part == FLAG:
                coded = of_chain[0] @ flags[sign.index].ravel()
            elif sign.part == CONDITION:
                coded = shape.network_code * (posterior * present[sign.index]).sum(1) / total
            else:
                prior = ACUTE[sign.index].probability
                acute = evidence.acute[visit, sign.index] * np.array([1.0 - prior, prior])
                coded = (acute / acute.sum(1, keepdims=True)) @ np.array(shape.acute_code)
            out[:, label] = sign.share * coded
        return np.clip(out, 0.0, 1.0)


def latent_risk(shard: Shard, visit: Ints, signs: Sequence[Sign]) -> Floats:
    """P(the label is coded at the visit | the latent truth of the visit, the diagnosis included): [visit, label]."""
    shape, visits, latent = shard.spec.shape, shard.visits, shard.latent
    patient, week = visits.patient[visit], visits.week[visit]
    after = np.where(latent.diagnosis_week[patient] < week, shape.target_again, 0.0)
    flags = chain.flag_probability(shape)[:, latent.events[patient, week], latent.states[patient, week]]
    present = latent.onset_day[patient] <= visits.start_day[visit, None]
    acute = np.array(shape.acute_code)[latent.acute[visit].astype(np.int64)]
    coded = {
        TARGET: np.where(visits.is_first_diagnosis[visit], 1.0, after)[:, None],
        FLAG: flags.T,
        CONDITION: shape.network_code * present,
        ACUTE_CONDITION: acute,
    }
    return np.stack([sign.share * coded[sign.part][:, sign.index] for sign in signs], axis=1)


@functools.lru_cache(maxsize=48)
def _by_week(shape: Shape, risk: int) -> Floats:
    """Expected visits, and those of them that code the target: [2, week, family x event x state]."""
    came = expected_visits(shape, risk).reshape(shape.weeks, NUM_KINDS, -1)
    return np.stack([came.sum(1), came[:, AT] + shape.target_again * came[:, AFTER]])


# ------------------------------------------------------------------------------------------------------- age and week
def _when(shard: Shard, visit: Ints) -> Floats:
    """P(this age in whole days, sex and race, and the risk class | the visit lies in the week): [risk, visit, week].

    Up to a factor of the visit. Tables date birth and admission: the whole days of the age at entry, and the whole days
    from there to the admission, which begins on any of the seven of its week alike (the entry visit on the first).
    """
    shape, patients = shard.spec.shape, shard.patients
    patient = shard.visits.patient[visit]
    known = _known_days(shard, visit)
    score = 0.2 * ~patients.is_female[patient] + 0.3 * (patients.race[patient] == RACES.index("black"))
    # Ages between which the risk class stays the same.
    edges = np.array([-np.inf, *shape.risk_cut, np.inf])[:, None]
    edges = shape.age[0] + (edges - score) / 0.05  # [risk + 1, visit]
    first = known[:, None] - 7.0 * np.arange(shape.weeks + 1)
    out = np.empty((chain.NUM_RISK, len(visit), shape.weeks))
    for risk in range(chain.NUM_RISK):
        low, high = edges[risk][:, None], edges[risk + 1][:, None]
        # P(whole days of the age at entry < first + 1, risk class), of which a week's seven are a difference.
        below = _younger(shape, np.clip((first + 1.0) / _YEAR, low, high))
        out[risk] = (below[:, :-1] - below[:, 1:]) / 7.0
        at_entry = _younger(shape, np.clip(first[:, :1] / _YEAR, low, high))
        out[risk, :, 0] = (below[:, :1] - at_entry)[:, 0]
    return out


def _known_days(shard: Shard, visit: Ints) -> Floats:
    """Age at the visit in whole days, as the tables tell it."""
    patient = shard.visits.patient[visit]
    return np.floor(shard.patients.age[patient] * _YEAR) + np.floor(shard.visits.start_day[visit])


def _younger(shape: Shape, age: Floats) -> Floats:
    """P(age at entry < age): a Gaussian whose tails are moved to the lowest and the highest age."""
    mean, spread, lowest, highest = shape.age
    inside = ndtr((age - mean) / spread)
    return np.where(age <= lowest, 0.0, np.where(age > highest, 1.0, inside))


# ------------------------------------------------------------------------------------------------------------- network
def _network(shard: Shard, visit: Ints, which: int) -> Floats:
    """Law of a component's set at the nodes of the time since entry: [visit, node, set]."""
    shape, patient = shard.spec.shape, shard.visits.patient[visit]
    span = (shape.age[2], shape.age[3] + shape.weeks * 7.0 / _YEAR)
    by_age = _weights((_known_days(shard, visit) + 0.5) / _YEAR, *span, _NUM_AGES)
    tables = _tables(which, *span, 7.0 * shape.weeks)
    law = np.empty((len(visit), *tables.shape[2:]))
    for is_female in (False, True):
        rows = np.flatnonzero(shard.patients.is_female[patient] == is_female)
        law[rows] = np.tensordot(by_age[rows], tables[int(is_female)], 1)
    return law


def _between_weeks(shape: Shape) -> Floats:
    """From the nodes of the time since entry to each week's middle; the entry visit is at time 0: [node, week]."""
    days = 7.0 * np.arange(shape.weeks) + 3.5
    days[0] = 0.0
    return _weights(days, 0.0, 7.0 * shape.weeks, _NUM_TIMES).T


def _nodes(low: float, high: float, number: int) -> Floats:
    return np.asarray(low + (high - low) * (chebyshev.chebpts1(number) + 1.0) / 2.0)


def _weights(at: Floats, low: float, high: float, number: int) -> Floats:
    """What the values at the nodes count in the interpolation `at`: [at, node]."""
    own = chebyshev.chebvander(chebyshev.chebpts1(number), number - 1)
    weights = chebyshev.chebvander(2.0 * (at - low) / (high - low) - 1.0, number - 1) @ np.linalg.inv(own)
    return np.asarray(weights)


@functools.lru_cache(maxsize=32)
def _tables(which: int, youngest: float, oldest: float, longest: float) -> Floats:
    """Law of a component's set at the nodes: [sex, age, days since entry, set]. `age` is that of the visit."""
    component = components()[which]
    age, days = np.meshgrid(_nodes(youngest, oldest, _NUM_AGES), _nodes(0.0, longest, _NUM_TIMES), indexing="ij")
    none = np.zeros((age.size, component.num_sets))
    none[:, 0] = 1.0
    tables, since = [], days.ravel() + _YEAR * WARM_UP_YEARS
    for is_female in (False, True):
        rates = daily_rates((age - days / _YEAR).ravel(), np.full(age.size, is_female))
        law = carry(component, none, rates, np.asarray(since, np.float64))
        tables.append(law.reshape(*age.shape, component.num_sets))
    return np.stack(tables)
