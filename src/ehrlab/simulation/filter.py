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


class Filter:
    """Runs over histories week by week; once per set of evidence.

    A belief is [trait, weeks of hospital still ahead, state] after the landmark's week and sums to one. Where no visit
    has begun by the landmark, the rest of its week is in the belief already, given what every question about the future
    presumes: not diagnosed and not dead in it.
    """

    def __init__(self, law: Law, histories: Histories, dtype: type[np.floating] = np.float64) -> None:
        self.law, self.histories = law, histories
        self._weeks = {
            status: {name: value.astype(dtype) for name, value in vars(weeks).items()}
            for status, weeks in ((False, law.before), (True, law.after))
        }
        self._dtype = dtype
        landmark = histories.landmark_week
        # Longest first, so that those whose landmark is still ahead are always the first rows.
        self._order = np.argsort(-landmark, kind="stable")
        place = np.empty_like(self._order)
        place[self._order] = np.arange(len(place))
        self._landmark_week = landmark[self._order]
        self._diagnosed = histories.diagnosed[self._order]

        width = int(landmark.max(initial=0)) + 1
        patient, week = place[histories.visit_patient], histories.visit_week
        self._action = np.full((len(landmark), width), _QUIET, np.int8)
        self._visit = np.full((len(landmark), width), -1)
        self._action[np.arange(len(landmark)), self._landmark_week] = _OPEN
        for ahead in range(1, law.stays.longest + 1):
            inside = week + ahead <= np.minimum(histories.last_blocked_week, landmark[histories.visit_patient])
            self._action[patient[inside], week[inside] + ahead] = _BLOCKED
        self._action[patient, week] = _VISIT
        self._visit[patient, week] = np.arange(len(patient))

        days_left = np.zeros((len(landmark), law.stays.longest + 1))
        days_left[:, 0] = 1.0
        on = np.flatnonzero(histories.going_on)
        began, lasted = histories.visit_start[on] - 7.0 * week[on], histories.landmark[histories.visit_patient[on]]
        blocks = law.stays.blocks_given(began, lasted - histories.visit_start[on])
        passed = landmark[histories.visit_patient[on]] - week[on]
        for row, ahead, known in zip(patient[on], passed, blocks, strict=True):
            days_left[row] = np.pad(known[ahead:], (0, ahead))
        self._ahead = days_left  # [patient, weeks of hospital still ahead] unless the landmark's week is open

    def run(self, chain_evidence: Floats, family_evidence: Floats) -> Floats:
        """Beliefs [patient, trait, ahead, state] given likelihoods [visit, event, state] and [visit, family history].

        Visits that go on at the landmark have shown nothing yet: what is given for them is not read.
        """
        law, histories = self.law, self.histories
        n, going_on = histories.num_patients, histories.going_on
        family = np.where(going_on[:, None], 1.0, family_evidence)[:, law.has_family].astype(self._dtype)
        seen = np.where(going_on[:, None, None], 1.0, chain_evidence).astype(self._dtype)
        belief = np.zeros((law.num_traits, n, law.num_states), self._dtype)
        out = np.zeros((n, law.num_traits, law.stays.longest + 1, law.num_states))
        for week in range(self._action.shape[1]):
            active = int(np.searchsorted(-self._landmark_week, -week, side="right"))
            action = self._action[:active, week]
            for was_diagnosed in (False, True):
                mine = (self._diagnosed[:active] < week) == was_diagnosed
                matrices = self._weeks[was_diagnosed]
                for kind, name in ((_QUIET, "quiet"), (_BLOCKED, "blocked")):
                    rows = np.flatnonzero(mine & (action == kind))
                    if len(rows):
                        belief[:, rows] = belief[:, rows] @ matrices[name]
                rows = np.flatnonzero(mine & (action == _OPEN))
                if len(rows):
                    out[rows] = self._open_week(belief[:, rows], rows, was_diagnosed)
                is_first = self._diagnosed[:active] == week
                for first in (False, True):
                    rows = np.flatnonzero(mine & (action == _VISIT) & (is_first == first))
                    if not len(rows):
                        continue
                    arrived = self._arrive(belief[:, rows], week, was_diagnosed, first)
                    visit = self._visit[rows, week]
                    survives = np.where(
                        histories.visit_survived[visit, None], law.survives[int(was_diagnosed or first)], 1.0
                    ).astype(self._dtype)
                    shown = seen[visit] * survives[:, None]
                    belief[:, rows] = np.einsum("knes,nes->kns", arrived, shown) * family[visit].T[:, :, None]
            leaving = np.flatnonzero((self._landmark_week[:active] == week) & (action != _OPEN))
            out[leaving] = np.einsum("kns,nj->nkjs", belief[:, leaving], self._ahead[leaving])
            total = belief[:, :active].sum((0, 2))
            belief[:, :active] /= np.where(total > 0, total, 1.0)[:, None]
        result = np.empty_like(out)
        result[self._order] = out / out.sum((1, 2, 3), keepdims=True)
        return result

    def _arrive(self, belief: Floats, week: int, was_diagnosed: bool, first: bool) -> Floats:
        """P(visit, event, new state): [trait, patient, event, state]."""
        law, shape = self.law, belief.shape
        if week == 0:
            entry = law.entry_diagnosis if first else law.entry_visit
            start = (law.prior[:, None, None] * entry).astype(self._dtype)
            return np.broadcast_to(start[:, None], (*shape[:2], *start.shape[1:]))
        moves = self._weeks[was_diagnosed]["diagnosis" if first else "visit"]
        flat = np.moveaxis(moves, 1, 2).reshape(law.num_traits, law.num_states, -1)
        return (belief @ flat).reshape(*shape[:2], -1, law.num_states)

    def _open_week(self, belief: Floats, rows: Ints, was_diagnosed: bool) -> Floats:
        """The landmark's week when no visit has begun by it: [patient, trait, ahead, state]."""
        law, weeks = self.law, self._weeks[was_diagnosed]
        begin = self.histories.landmark[self._order[rows]] - 7.0 * self._landmark_week[rows]
        later = np.einsum("kns,kest->knt", belief, weeks["visit"], optimize=True) * law.survives[int(was_diagnosed)]
        out = np.einsum("kns,nj->nkjs", later, law.stays.blocks_after(begin))
        out[:, :, 0] += np.moveaxis(belief @ weeks["quiet"], 0, 1) * law.lives
        return out

    def truth(self, traits: Ints, states: Ints) -> Floats:
        """As `run`, of somebody who knows the traits [patient] and the states [patient, week] of all weeks so far."""
        law, week = self.law, self._landmark_week
        rows = np.arange(len(week))
        trait, path = traits[self._order], states[self._order]
        # A stay may go on beyond the record's last week, where the state matters no more.
        now, before = (path[rows, np.clip(week - ago, 0, path.shape[1] - 1)] for ago in (0, 1))
        out = np.zeros((len(week), law.num_traits, law.stays.longest + 1, law.num_states))
        out[rows, trait, :, now] = self._ahead
        for was_diagnosed in (False, True):
            mine = (self._action[rows, week] == _OPEN) & ((self._diagnosed < week) == was_diagnosed)
            open_rows = np.flatnonzero(mine)
            if len(open_rows):
                belief = np.zeros((law.num_traits, len(open_rows), law.num_states), self._dtype)
                belief[trait[open_rows], np.arange(len(open_rows)), before[open_rows]] = 1.0
                reached = self._open_week(belief, open_rows, was_diagnosed)
                known = np.zeros_like(reached)
                at = (np.arange(len(open_rows)), trait[open_rows], slice(None), now[open_rows])
                known[at] = reached[at]
                out[open_rows] = known
        result = np.empty_like(out)
        result[self._order] = out / out.sum((1, 2, 3), keepdims=True)
        return result
