"""What a record tells about each block: the exact forward filter, and the chance of a target in what is still to come.

Blocks are independent of each other and of the visits, given the risk class, so each is filtered by itself. A week that
has no visit shows nothing; the state of a visit's week is seen through the visit's signals and through those targets of
the block that had not occurred before (the later ones say nothing).

A record is known up to the end of a *landmark day*, any number of days after entry. On that day the landmark's week may
be half over: the visit that it may still bring is part of the future.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrlab.simulation.population import Bools, Floats, Ints
from ehrlab.simulation.sequences import chain
from ehrlab.simulation.sequences.spec import Block, Spec


@dataclass(frozen=True)
class Observed:
    """A record as the filter reads it: visits by patient and day, at most one in a week, the first on day 0."""

    risk: Ints  # [patient, block] risk class
    patient: Ints  # [visit]
    day: Ints  # [visit]
    signals: tuple[Bools, ...]  # [block][visit, signal]
    targets: tuple[Bools, ...]  # [block][visit, target]

    @property
    def num_patients(self) -> int:
        return len(self.risk)


@dataclass(frozen=True)
class Landmark:
    """Where each patient's record is cut, and what the visits alone say there."""

    day: Ints  # [patient]
    week: Ints  # [patient]
    num_visits: Ints  # [patient] up to the landmark
    first_visit: Ints  # [patient] row of Observed
    frailty: Floats  # [patient, frailty] posterior
    pending: Floats  # [patient, frailty] P(the landmark's week still brings a visit | frailty)


def landmark(spec: Spec, observed: Observed, day: Ints) -> Landmark:
    """`day` [patient]: the last known day of each record, 0 <= day < 7 * weeks."""
    first = np.searchsorted(observed.patient, np.arange(observed.num_patients))
    known = observed.day <= day[observed.patient]
    num_visits = np.bincount(observed.patient[known], minlength=observed.num_patients)
    week, weekday = np.divmod(day, 7)
    seen = observed.day[first + num_visits - 1] // 7 == week  # the landmark's week has had its visit
    probability = np.array(spec.visit)
    elapsed = probability * ((weekday + 1) / 7.0)[:, None]  # P(visit in the part of the week that is over | frailty)
    gone = week - ~seen  # weeks after the first that are over, as far as visits go
    log = np.log(spec.frailty_share) + (num_visits - 1)[:, None] * np.log(probability)
    log = log + (gone - (num_visits - 1))[:, None] * np.log1p(-probability)
    log = log + np.where(seen[:, None], 0.0, np.log1p(-elapsed))
    frailty = np.exp(log - log.max(1, keepdims=True))
    # After the last visit that a record can hold nothing more is seen, and nothing is to come.
    closed = seen | (num_visits >= spec.max_visits)
    pending = np.where(closed[:, None], 0.0, (probability - elapsed) / (1.0 - elapsed))
    return Landmark(day, week, num_visits, first, frailty / frailty.sum(1, keepdims=True), pending)


def states(spec: Spec, observed: Observed, at: Landmark, index: int, *, use_signals: bool = True) -> Floats:
    """P(state of block `index` in the landmark's week | record up to the landmark): [patient, state].

    `use_signals=False` leaves the context codes out: what the targets of the block and the risk class say.
    """
    block = spec.blocks[index]
    powers, entry = chain.powers(spec, block), chain.start(spec, block)
    risk = observed.risk[:, index]
    likelihood = _likelihood(block, observed, index, use_signals)
    probability = entry[risk]
    last_week = np.zeros(observed.num_patients, np.int64)
    for ordinal in range(int(at.num_visits.max(initial=0))):
        who = np.flatnonzero(at.num_visits > ordinal)
        visit = at.first_visit[who] + ordinal
        week = observed.day[visit] // 7
        moved = np.einsum("ns,nst->nt", probability[who], powers[risk[who], week - last_week[who]])
        moved *= likelihood[visit]
        probability[who] = moved / moved.sum(1, keepdims=True)
        last_week[who] = week
    return np.einsum("ns,nst->nt", probability, powers[risk, at.week - last_week])


def _likelihood(block: Block, observed: Observed, index: int, use_signals: bool) -> Floats:
    """P(what the visit shows of the block | state): [visit, state]."""
    at_risk = [~had_before(observed, index, i) for i in range(len(block.targets))]
    coded = np.array([target.coded for target in block.targets])
    new = np.stack(at_risk, 1)
    log = new @ np.log1p(-coded) + (new & observed.targets[index]) @ _log_odds(coded)
    if use_signals and block.signals:
        coded = np.array([signal.coded for signal in block.signals])
        log += observed.signals[index] @ _log_odds(coded) + np.log1p(-coded).sum(0)
    return np.exp(log)


def _log_odds(probability: Floats) -> Floats:
    return np.log(probability) - np.log1p(-probability)


def had_before(observed: Observed, index: int, target: int) -> Bools:
    """True where the target occurred at an earlier visit of the patient: [visit]."""
    flag = observed.targets[index][:, target].astype(np.int64)
    before = np.cumsum(flag) - flag
    first = np.searchsorted(observed.patient, observed.patient)
    return before > before[first]


def occurs(spec: Spec, block: Block, target: int, risk: Ints, at: Landmark, state: Floats, frailty: Floats) -> Floats:
    """P(the block's target occurs for the first time after the landmark, within the record): [patient].

    risk     [patient] class in this block
    state    [patient, state], frailty [patient, frailty]: independent of each other given the record
    The patient has not had the target yet (the value means nothing where one has).
    """
    away = chain.first_stays_away(spec, block, target)
    visits = at.num_visits
    stays = away[risk, at.week, visits]  # patient, frailty, state
    more = np.minimum(visits + 1, spec.max_visits)
    at_once = (1.0 - np.array(block.targets[target].coded)) * away[risk, at.week, more]
    pending = at.pending[..., None]
    stays = (1.0 - pending) * stays + pending * at_once
    return _risk(np.einsum("nus,ns,nu->n", stays, state, frailty))


def returns(spec: Spec, at: Landmark, again: float, frailty: Floats) -> Floats:
    """P(a target that has occurred is coded once more after the landmark): [patient]."""
    away = chain.repeat_stays_away(spec, again)
    more = np.minimum(at.num_visits + 1, spec.max_visits)
    stays = (1.0 - at.pending) * away[at.week, at.num_visits] + at.pending * (1.0 - again) * away[at.week, more]
    return _risk((stays * frailty).sum(1))


def _risk(stays_away: Floats) -> Floats:
    """1 - P, where rounding may have put P a last digit above 1."""
    return np.maximum(1.0 - stays_away, 0.0)
