"""The exact forward filter: what a record up to its landmark says about the latent chain of its patient.

A hypothesis is (static traits, state): frailty and family history never change and appear in no table, the risk class
is known from demographics. Per week, what was seen of a patient at home is nothing, or a visit with what it showed; in
hospital, nothing can be seen. Three things are easily forgotten and are handled here:

* To have survived a visit, and not to have been diagnosed at it, is evidence too.
* A landmark falls within a week. That no visit has begun by the share x of a week has the probability 1 - x P(visit),
  and a visit may still begin in the rest of that week.
* A visit that goes on at the landmark is seen to have begun; what it shows and how long it lasts are unknown.

Death elsewhere does not depend on the state, so past weeks tell nothing by it.
"""

from __future__ import annotations

import functools
import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation import chain
from ehrlab.simulation.population import Bools, Floats, Ints
from ehrlab.simulation.spec import Shape
from ehrlab.simulation.stays import Stays


@dataclass(frozen=True, eq=False)
class Weeks:
    """chain.Week of every trait (frailty x family, [trait, ...]) after the entry week, for one diagnosis status."""

    quiet: Floats  # [trait, state, state]
    visit: Floats  # [trait, event, state, state]
    diagnosis: Floats  # [trait, event, state, state]
    blocked: Floats  # [trait, state, state]


@dataclass(frozen=True, eq=False)
class Law:
    """All that is known of the patients of one risk class."""

    weeks: int
    prior: Floats  # [trait]
    has_family: Ints  # [trait] 1 with family history
    entry_visit: Floats  # [trait, event, state] P(event, state at entry, no diagnosis); entry is a visit by rule
    entry_diagnosis: Floats
    before: Weeks  # until the first diagnosis
    after: Weeks
    survives: Floats  # [diagnosed before or at the visit, state] P(the visit does not end in death)
    lives: float  # P(no death elsewhere) in a week at home without a visit
    stays: Stays

    @property
    def num_traits(self) -> int:
        return len(self.prior)

    @property
    def num_states(self) -> int:
        return self.survives.shape[1]


def law(shape: Shape, risk: int) -> Law:
    traits = list(itertools.product(range(len(shape.frailty)), range(chain.NUM_FAMILY)))
    shares = np.array(shape.frailty_share) / sum(shape.frailty_share)
    family = np.array([1.0 - shape.family_share, shape.family_share])

    def weeks(is_diagnosed: bool) -> Weeks:
        each = [chain.week(shape, risk, *trait, is_diagnosed=is_diagnosed) for trait in traits]
        return Weeks(*(np.stack([getattr(w, name) for w in each]) for name in vars(each[0])))

    entry = [chain.week(shape, risk, *trait, entry=True) for trait in traits]
    start = chain.start(shape, risk)
    death = np.stack([chain.visit_death_probability(shape, risk, diagnosed) for diagnosed in (False, True)])
    return Law(
        weeks=shape.weeks,
        prior=np.array([shares[u] * family[g] for u, g in traits]),
        has_family=np.array([g for _, g in traits]),
        entry_visit=np.stack([start @ w.visit for w in entry]),
        entry_diagnosis=np.stack([start @ w.diagnosis for w in entry]),
        before=weeks(False),
        after=weeks(True),
        survives=1.0 - death,
        lives=1.0 - shape.death_elsewhere * shape.risk_death[risk],
        stays=Stays(shape),
    )


@dataclass(frozen=True, eq=False)
class Histories:
    """What is seen of patients of one risk class up to their landmarks. Days count from the start of the entry week.

    landmark        [patient] day: what ended by then is known, what begins later is not
    visit_patient   [visit], in any order; only visits that begin before the landmark, the entry visit (week 0) included
    visit_start     day
    visit_end       day; inf where the visit goes on at the landmark
    visit_survived  False where the record up to the landmark does not say, and the question leaves it open
    diagnosed       [patient] week of the first visit known to show the target; `weeks` of the law when none is
    """

    landmark: Floats
    visit_patient: Ints
    visit_week: Ints
    visit_start: Floats
    visit_end: Floats
    visit_survived: Bools
    diagnosed: Ints

    @property
    def num_patients(self) -> int:
        return len(self.landmark)

    @functools.cached_property
    def going_on(self) -> Bools:
        return ~np.isfinite(self.visit_end)

    @functools.cached_property
    def last_blocked_week(self) -> Ints:
        """[visit] last week that a visit is known to have blocked, its own included."""
        return (np.where(self.going_on, self.landmark[self.visit_patient], self.visit_end) // 7.0).astype(np.int64)

    @functools.cached_property
    def landmark_week(self) -> Ints:
        """The last week of which something is known; of a landmark at a week's first instant, the week before."""
        week = np.maximum(np.ceil(self.landmark / 7.0).astype(np.int64) - 1, 0)
        known = ~self.going_on
        np.maximum.at(week, self.visit_patient[known], self.last_blocked_week[known])
        return week


_QUIET, _VISIT, _BLOCKED, _OPEN = range(4)
_NORMALISE = 8  # steps: a belief shrinks by some three powers of ten at each
_WORTH_SORTING = 512  # visits at a time, from which on making matrices for equal evidence pays


@dataclass(frozen=True, eq=False)
class _Step:
    """The n-th thing that is seen of each patient who has as many: a visit, or weeks in which nothing can be seen."""

    patient: Ints
    action: Ints
    week: Ints  # the first
    weeks: Ints  # how many; 1 for a visit

    def __len__(self) -> int:
        return len(self.patient)

    def of(self, chosen: Bools) -> _Step:
        return _Step(*(values[chosen] for values in vars(self).values()))


class Filter:
    """Runs over histories from one visit to the next; once per set of evidence.

    A belief is [trait, weeks of hospital still ahead, state] after the landmark's week and sums to one. Where no visit
    has begun by the landmark, the rest of its week is in the belief already, given what every question about the future
    presumes: not diagnosed and not dead in it.
    """

    def __init__(self, law: Law, histories: Histories, dtype: type[np.floating] = np.float64) -> None:
        self.law, self.histories, self._dtype = law, histories, dtype
        self._weeks = {
            status: {name: value.astype(dtype) for name, value in vars(weeks).items()}
            for status, weeks in ((False, law.before), (True, law.after))
        }
        self._powers: dict[tuple[bool, str, int], Floats] = {}
        landmark, patient, week = histories.landmark_week, histories.visit_patient, histories.visit_week
        rows = np.arange(len(landmark))
        action = np.full((len(landmark), int(landmark.max(initial=0)) + 1), _QUIET, np.int8)
        self._visit = np.full(action.shape, -1)
        action[rows, landmark] = _OPEN
        for ahead in range(1, law.stays.longest + 1):
            inside = week + ahead <= np.minimum(histories.last_blocked_week, landmark[patient])
            action[patient[inside], week[inside] + ahead] = _BLOCKED
        action[patient, week] = _VISIT
        self._visit[patient, week] = np.arange(len(patient))
        self._landmark_week, self._is_open = landmark, action[rows, landmark] == _OPEN
        self._steps = _steps(action, landmark)

        days_left = np.zeros((len(landmark), law.stays.longest + 1))
        days_left[:, 0] = 1.0
        on = np.flatnonzero(histories.going_on)
        began, lasted = histories.visit_start[on] - 7.0 * week[on], histories.landmark[patient[on]]
        blocks = law.stays.blocks_given(began, lasted - histories.visit_start[on])
        passed = landmark[patient[on]] - week[on]
        for row, ahead, known in zip(patient[on], passed, blocks, strict=True):
            days_left[row] = np.pad(known[ahead:], (0, ahead))
        self._ahead = days_left  # [patient, weeks of hospital still ahead] unless the landmark's week is open

    def run(self, chain_evidence: Floats, family_evidence: Floats, same: Ints | None = None) -> Floats:
        """Beliefs [patient, trait, ahead, state] given likelihoods [visit, event, state] and [visit, family history].

        Visits that go on at the landmark have shown nothing yet: what is given for them is not read.
        same  [visit] equal numbers where the chain's evidence is equal: much faster where it takes few values
        """
        law, histories = self.law, self.histories
        n, going_on = histories.num_patients, histories.going_on
        family = np.where(going_on[:, None], 1.0, family_evidence)[:, law.has_family].astype(self._dtype)
        told = (family != 1.0).any(1)
        seen = chain_evidence.astype(self._dtype, copy=bool(going_on.any()))
        seen[going_on] = 1.0
        alike = None if same is None else np.where(going_on, -1, same)
        belief = np.zeros((law.num_traits, n, law.num_states), self._dtype)
        known_moves: dict[tuple[bool, bool, bool, int], Floats] = {}
        for number, step in enumerate(self._steps):
            was_diagnosed = histories.diagnosed[step.patient] < step.week
            for status in np.unique(was_diagnosed).tolist():
                mine = step.of(was_diagnosed == status)
                for action, name in ((_QUIET, "quiet"), (_BLOCKED, "blocked")):
                    if (waiting := mine.action == action).any():
                        self._wait(belief, mine.of(waiting), status, name)
                is_first = histories.diagnosed[mine.patient] == mine.week
                for first in (False, True):
                    if not (chosen := (mine.action == _VISIT) & (is_first == first)).any():
                        continue
                    visiting = mine.of(chosen)
                    survived = histories.visit_survived[self._visit[visiting.patient, visiting.week]]
                    for known in (False, True):
                        self._see(
                            belief, visiting.of(survived == known), (status, first, known), seen, alike, known_moves
                        )
            visit = self._visit[step.patient, step.week]
            tells = (step.action == _VISIT) & told[visit]
            belief[:, step.patient[tells]] *= family[visit[tells]].T[:, :, None]
            if number % _NORMALISE == 0:
                total = belief.sum((0, 2))
                belief /= np.where(total > 0, total, 1.0)[:, None]
        out = np.einsum("kns,nj->nkjs", belief, self._ahead)
        for status in (False, True):
            rows = np.flatnonzero(self._is_open & ((histories.diagnosed < self._landmark_week) == status))
            if len(rows):
                out[rows] = self._open_week(belief[:, rows], rows, status)
        return out / out.sum((1, 2, 3), keepdims=True)

    def _wait(self, belief: Floats, step: _Step, was_diagnosed: bool, name: str) -> None:
        """Weeks in which nothing is seen, by the binary digits of their number."""
        for digit in range(int(step.weeks.max(initial=0)).bit_length()):
            rows = step.patient[(step.weeks >> digit) & 1 == 1]
            if len(rows):
                belief[:, rows] = belief[:, rows] @ self._power(was_diagnosed, name, digit)

    def _power(self, was_diagnosed: bool, name: str, digit: int) -> Floats:
        """The matrices of 2^digit weeks."""
        key = (was_diagnosed, name, digit)
        if key not in self._powers:
            if digit == 0:
                self._powers[key] = self._weeks[was_diagnosed][name]
            else:
                half = self._power(was_diagnosed, name, digit - 1)
                self._powers[key] = half @ half
        return self._powers[key]

    def _see(
        self,
        belief: Floats,
        step: _Step,
        status: tuple[bool, bool, bool],
        seen: Floats,
        alike: Ints | None,
        known_moves: dict[tuple[bool, bool, bool, int], Floats],
    ) -> None:
        """Visits and what they showed; status: diagnosed before, the first diagnosis, known to be survived."""
        if not len(step):
            return
        law, (was_diagnosed, is_first, survived) = self.law, status
        lives = law.survives[int(was_diagnosed or is_first)].astype(self._dtype) if survived else 1.0
        moves = self._weeks[was_diagnosed]["diagnosis" if is_first else "visit"]
        visit = self._visit[step.patient, step.week]
        if step.week[0] == 0:  # the entry visit is everybody's first step
            entry = law.prior[:, None, None] * (law.entry_diagnosis if is_first else law.entry_visit)
            belief[:, step.patient] = np.einsum("kes,nes->kns", entry, seen[visit], optimize=True) * lives
        elif alike is None or len(step) < _WORTH_SORTING:
            flat = np.moveaxis(moves, 1, 2).reshape(law.num_traits, law.num_states, -1)
            arrived = (belief[:, step.patient] @ flat).reshape(law.num_traits, len(step), -1, law.num_states)
            belief[:, step.patient] = np.einsum("knes,nes->kns", arrived, seen[visit] * lives)
        else:
            order = np.argsort(alike[visit], kind="stable")
            values, begin = np.unique(alike[visit[order]], return_index=True)
            for value, group in zip(values.tolist(), np.split(order, begin[1:]), strict=True):
                if (*status, value) not in known_moves:
                    shown = seen[visit[group[0]]] * lives
                    known_moves[*status, value] = np.einsum("kest,et->kst", moves, shown)
                rows = step.patient[group]
                belief[:, rows] = belief[:, rows] @ known_moves[*status, value]

    def _open_week(self, belief: Floats, rows: Ints, was_diagnosed: bool) -> Floats:
        """The landmark's week when no visit has begun by it: [patient, trait, ahead, state]."""
        law, weeks = self.law, self._weeks[was_diagnosed]
        begin = self.histories.landmark[rows] - 7.0 * self._landmark_week[rows]
        later = np.einsum("kns,kest->knt", belief, weeks["visit"], optimize=True) * law.survives[int(was_diagnosed)]
        out = np.einsum("kns,nj->nkjs", later, law.stays.blocks_after(begin))
        out[:, :, 0] += np.moveaxis(belief @ weeks["quiet"], 0, 1) * law.lives
        return out

    def truth(self, traits: Ints, states: Ints) -> Floats:
        """As `run`, of somebody who knows the traits [patient] and the states [patient, week] of all weeks so far."""
        law, week = self.law, self._landmark_week
        rows, trait = np.arange(len(week)), traits
        # A stay may go on beyond the record's last week, where the state matters no more.
        now, before = (states[rows, np.clip(week - ago, 0, states.shape[1] - 1)] for ago in (0, 1))
        out = np.zeros((len(week), law.num_traits, law.stays.longest + 1, law.num_states))
        out[rows, trait, :, now] = self._ahead
        for was_diagnosed in (False, True):
            mine = self._is_open & ((self.histories.diagnosed < week) == was_diagnosed)
            open_rows = np.flatnonzero(mine)
            if len(open_rows):
                belief = np.zeros((law.num_traits, len(open_rows), law.num_states), self._dtype)
                belief[trait[open_rows], np.arange(len(open_rows)), before[open_rows]] = 1.0
                reached = self._open_week(belief, open_rows, was_diagnosed)
                known = np.zeros_like(reached)
                at = (np.arange(len(open_rows)), trait[open_rows], slice(None), now[open_rows])
                known[at] = reached[at]
                out[open_rows] = known
        return out / out.sum((1, 2, 3), keepdims=True)


def _steps(action: NDArray[np.int8], landmark: Ints) -> list[_Step]:
    """Runs of equal weeks, each visit by itself, up to the landmark's week; that week's where it is not open."""
    patient, week = np.nonzero((np.arange(action.shape[1]) <= landmark[:, None]) & (action != _OPEN))
    what = action[patient, week]
    begins = np.ones(len(what), bool)
    begins[1:] = (patient[1:] != patient[:-1]) | (what[1:] != what[:-1]) | (what[1:] == _VISIT)
    first = np.flatnonzero(begins)
    weeks = np.diff(np.append(first, len(what)))
    patient, week, what = patient[first], week[first], what[first].astype(np.int64)
    place = np.arange(len(patient)) - np.searchsorted(patient, patient)
    order = np.argsort(place, kind="stable")
    edges = np.searchsorted(place[order], np.arange(1, int(place.max(initial=0)) + 1))
    parts = [np.split(values[order], edges) for values in (patient, what, week, weeks)]
    return [_Step(*values) for values in zip(*parts, strict=True)]
