"""Facts that the notes of an admission tell, their probabilities and what they say about the latent truth.

A note is facts put into language (`note_text`). The facts of a visit hang on the latent truth, each on one part of it:

* on the chain: symptom of the target (stage), chief complaint (event of the week), symptom of the moderator disease;
* on family history: one statement per patient, right or wrong once and for all, told at some visits and not at others:
  told a second time, it says nothing new;
* on each chronic condition: a symptom or mention, and its drug among the medications on admission;
* on each acute condition: a symptom.

Whether a fact comes up at all depends on nothing. Given the latent truth, facts are independent of each other and of
everything else that a visit shows: codes, orders, laboratory tests. So they may be wrong, and may disagree with a code.

`NOTES` holds all numbers. They are part of the specification of the simulator.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.chain import MODERATOR_OF, NUM_FAMILY, STAGE_OF
from ehrlab.simulation.evidence import Evidence, Floats
from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.population import Bools, Ints, Shard
from ehrlab.simulation.spec import ACUTE, BLOCK_SIZE
from ehrlab.simulation.streams import Stream, stream

NOT_TOLD, DENIED, AFFIRMED = -1, 0, 1
"""A fact as it is told."""

Told = NDArray[np.int8]


@dataclass(frozen=True)
class Mention:
    """A fact about a condition: comes up with `told`; is then affirmed or denied."""

    name: str
    told: float  # P(the note says yes or no to it)
    affirmed: tuple[float, float]  # P(yes | told), the condition absent and present
    listed: tuple[float, float] = (0.0, 0.0)  # P(its drug is a medication on admission), absent and present


@dataclass(frozen=True)
class NotesLaw:
    """P(fact | latent truth) at a visit."""

    symptom_told: float
    symptom: tuple[float, ...]  # P(affirmed | told), by stage
    complaint: tuple[tuple[float, ...], ...]  # [event, what the chief complaint sounds like], in the order of EVENTS
    moderator: Mention
    family_told: float
    family_wrong: float  # P(what the patient believes is wrong)
    conditions: tuple[Mention, ...]  # in the order of network.CONDITIONS
    acute: tuple[Mention, ...]  # in the order of spec.ACUTE


NOTES = NotesLaw(
    symptom_told=0.85,
    # Primed and refractory alike: the knob `order` makes equal what came of A first and of B first.
    symptom=(0.06, 0.08, 0.35, 0.60, 0.08),
    complaint=((0.94, 0.03, 0.03), (0.42, 0.52, 0.06), (0.38, 0.06, 0.56)),
    moderator=Mention("moderator", 0.55, (0.05, 0.75)),
    family_told=0.60,
    family_wrong=0.03,
    conditions=(
        Mention("hypertension", 0.55, (0.06, 0.80), listed=(0.05, 0.70)),
        Mention("lipids", 0.45, (0.05, 0.75), listed=(0.05, 0.70)),
        Mention("obesity", 0.25, (0.05, 0.80)),
        Mention("pain", 0.30, (0.15, 0.70), listed=(0.04, 0.45)),
        Mention("depression", 0.35, (0.10, 0.65), listed=(0.04, 0.60)),
        Mention("asthma", 0.35, (0.06, 0.60), listed=(0.03, 0.65)),
        Mention("thyroid", 0.20, (0.10, 0.45), listed=(0.01, 0.85)),
        Mention("osteoarthritis", 0.25, (0.12, 0.65)),
        Mention("ischemic", 0.55, (0.08, 0.55), listed=(0.15, 0.75)),
        Mention("afib", 0.50, (0.08, 0.60), listed=(0.02, 0.60)),
        Mention("stroke", 0.25, (0.03, 0.60)),
        Mention("reflux", 0.50, (0.10, 0.65), listed=(0.10, 0.65)),
        Mention("anemia", 0.30, (0.12, 0.50), listed=(0.03, 0.50)),
        Mention("cancer", 0.25, (0.05, 0.35)),
        Mention("osteoporosis", 0.0, (0.0, 0.0), listed=(0.01, 0.50)),
        Mention("neuropathy", 0.25, (0.08, 0.55)),
    ),
    acute=(
        Mention("kidney_injury", 0.60, (0.10, 0.60)),
        Mention("urinary_infection", 0.60, (0.06, 0.65)),
    ),
)


@dataclass(frozen=True)
class Facts:
    """What the notes of each visit tell: NOT_TOLD, DENIED or AFFIRMED unless said otherwise."""

    symptom: Told  # [visit]
    complaint: NDArray[np.int8]  # [visit] index into EVENTS; "none" = a complaint of something else
    moderator: Told  # [visit]
    family: Told  # [visit]
    condition: Told  # [visit, condition]; NOT_TOLD of a condition that does not exist in the population
    home_drug: Bools  # [visit, condition] the condition's drug is a medication on admission
    acute: Told  # [visit, acute]; NOT_TOLD as above


def facts(shard: Shard, law: NotesLaw = NOTES) -> Facts:
    """The facts of each visit's notes, drawn from a stream of their own."""
    visits, latent = shard.visits, shard.latent
    num_visits = len(visits.patient)
    rng = stream(shard.spec.disease.name, shard.seed, shard.block, Stream.NOTES)
    # The whole block's patients before the first visit, and then visit by visit: a cut shard gets the same numbers.
    is_wrong = rng.random(BLOCK_SIZE)[: shard.num_patients] < law.family_wrong
    stated = shard.patients.family_history ^ is_wrong
    widths = (2, 1, 2, 1, 3 * len(CONDITIONS), 2 * len(ACUTE))
    symptom, complaint, moderator, family, condition, acute = np.split(
        rng.random((num_visits, sum(widths))), np.cumsum(widths)[:-1], axis=1
    )
    state, event = latent.states[visits.patient, visits.week], latent.events[visits.patient, visits.week]
    condition = condition.reshape(num_visits, len(CONDITIONS), 3)
    acute = acute.reshape(num_visits, len(ACUTE), 2)
    present = latent.onset_day[visits.patient] <= visits.start_day[:, None]
    conditions_exist = np.array([span.size > 0 for span in shard.vocabulary.network])
    acute_exist = np.array([span.size > 0 for span in shard.vocabulary.acute])
    sounds_like = np.cumsum(np.array(law.complaint), axis=1)[event, :-1]
    return Facts(
        symptom=_told(symptom, law.symptom_told, np.array(law.symptom)[STAGE_OF[state]]),
        complaint=(complaint >= sounds_like).sum(1).astype(np.int8),
        moderator=_told(moderator, law.moderator.told, np.array(law.moderator.affirmed)[MODERATOR_OF[state]]),
        family=np.where(family[:, 0] < law.family_told, stated[visits.patient], NOT_TOLD).astype(np.int8),
        condition=_told(
            condition, conditions_exist * _shares_told(law.conditions), _given(_affirmed(law.conditions), present)
        ),
        home_drug=conditions_exist & (condition[..., 2] < _given(_listed(law.conditions), present)),
        acute=_told(acute, acute_exist * _shares_told(law.acute), _given(_affirmed(law.acute), latent.acute)),
    )


def evidence(shard: Shard, facts: Facts, law: NotesLaw = NOTES, *, each_alone: bool = False) -> Evidence:
    """P(facts of the visit | latent truth), up to the probability that they came up.

    `family` speaks at the first visit that tells it and is silent from then on; with `each_alone` at every one that
    tells it, for somebody who knows no other visit.
    """
    patient = shard.visits.patient
    exist = np.array([span.size > 0 for span in shard.vocabulary.network])
    by_stage = _factor(facts.symptom, np.array(law.symptom))
    by_moderator = _factor(facts.moderator, np.array(law.moderator.affirmed))
    by_event = np.array(law.complaint)[:, facts.complaint].T
    listed = _listed(law.conditions)
    drug = np.where(exist[:, None], np.where(facts.home_drug[..., None], listed, 1.0 - listed), 1.0)
    stated = np.where(facts.family[:, None] == np.arange(NUM_FAMILY), 1.0 - law.family_wrong, law.family_wrong)
    is_told = facts.family != NOT_TOLD
    speaks = is_told if each_alone else _first(patient, is_told)
    return Evidence(
        chain=by_event[:, :, None] * (by_stage[:, STAGE_OF] * by_moderator[:, MODERATOR_OF])[:, None, :],
        family=np.where(speaks[:, None], stated, 1.0),
        condition=_factor(facts.condition, _affirmed(law.conditions)) * drug,
        acute=_factor(facts.acute, _affirmed(law.acute)),
    )


def _shares_told(mentions: tuple[Mention, ...]) -> Floats:
    return np.array([mention.told for mention in mentions])


def _affirmed(mentions: tuple[Mention, ...]) -> Floats:
    return np.array([mention.affirmed for mention in mentions])


def _listed(mentions: tuple[Mention, ...]) -> Floats:
    return np.array([mention.listed for mention in mentions])


def _given(table: Floats, present: Bools) -> Floats:
    """[..., condition] from the table's [condition, absent or present]."""
    return np.where(present, table[:, 1], table[:, 0])


def _told(uniform: Floats, told: Floats | float, affirmed: Floats) -> Told:
    """uniform [..., 2 or more]: the first decides whether the fact comes up, the second what is said."""
    answer = np.where(uniform[..., 1] < affirmed, AFFIRMED, DENIED)
    return np.where(uniform[..., 0] < told, answer, NOT_TOLD).astype(np.int8)


def _factor(told: Told, affirmed: Floats) -> Floats:
    """P(what is told | value): [..., value] from `told` [...] and `affirmed` [(condition,) value]."""
    answer = told[..., None]
    return np.where(answer == AFFIRMED, affirmed, np.where(answer == DENIED, 1.0 - affirmed, 1.0))


def _first(patient: Ints, happens: Bools) -> Bools:
    """Which visits are their patient's first at which it happens."""
    which = np.flatnonzero(happens)
    earliest = np.ones(len(which), bool)
    earliest[1:] = patient[which[1:]] != patient[which[:-1]]
    first = np.zeros(len(patient), bool)
    first[which[earliest]] = True
    return first
