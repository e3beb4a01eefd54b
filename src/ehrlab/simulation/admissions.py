"""Death in hospital and readmission: exact probabilities in the cohorts of `ehrlab.data.cohorts.admissions`.

Beliefs are over (trait, state) of patients whose last known stay is over, [patient, trait, state] where nothing else is
said; before and after the first diagnosis the weeks have different laws, and which of them holds is known.
"""

from __future__ import annotations

import functools

import numpy as np

from ehrlab.simulation.filter import Law, Weeks
from ehrlab.simulation.population import Bools, Floats, Ints


class LastStay:
    """P(the last stay of the record ends in death), for somebody who is told that no other follows.

    Tables are per week [week, trait, state] at home before it, of the diagnosed and of the undiagnosed.
    """

    def __init__(self, law: Law) -> None:
        self.law = law
        self._none = {status: self._no_stay(weeks) for status, weeks in ((False, law.before), (True, law.after))}

    @functools.cached_property
    def _one(self) -> dict[bool, tuple[Floats, Floats]]:
        return {status: self._one_stay(status) for status in (False, True)}

    def known(self, belief: Floats, week: Ints, is_diagnosed: Bools) -> Floats:
        """P(death) where the stay is known but not how it ended: [patient].

        belief  [patient, trait, blocked, state] in the week of the stay, `blocked` weeks before that of its end
        week    of its end
        """
        law, out = self.law, np.empty(len(belief))
        for status, weeks in ((False, law.before), (True, law.after)):
            rows = np.flatnonzero(is_diagnosed == status)
            mine, survives = belief[rows], law.survives[int(status)]
            died = (mine * (1.0 - survives)).sum((1, 2, 3))
            alive = np.zeros_like(mine[:, :, 0])
            for blocked in range(belief.shape[2] - 1, -1, -1):
                alive = mine[:, :, blocked] * survives + alive
                if blocked:
                    alive = np.einsum("nks,kst->nkt", alive, weeks.blocked, optimize=True)
            left = (alive * self._none[status][week[rows] + 1]).sum((1, 2))
            out[rows] = died / (died + left)
        return out

    def next(self, belief: Floats, week: Ints, is_diagnosed: Bools) -> Floats:
        """P(death) in the stay that follows, and is known to be the last: [patient]; at home before `week`."""
        out = np.empty(len(belief))
        for status in (False, True):
            rows = np.flatnonzero(is_diagnosed == status)
            died, left = ((belief[rows] * table[week[rows]]).sum((1, 2)) for table in self._one[status])
            out[rows] = died / (died + left)
        return out

    def _no_stay(self, weeks: Weeks) -> Floats:
        law = self.law
        out = np.ones((law.weeks + law.stays.longest + 2, law.num_traits, law.num_states))
        for week in range(law.weeks - 1, -1, -1):
            later = law.lives * out[week + 1] + (1.0 - law.lives)
            out[week] = np.einsum("kst,kt->ks", weeks.quiet, later)
        return out

    def _one_stay(self, was_diagnosed: bool) -> tuple[Floats, Floats]:
        """P(exactly one stay from each week on, and it is fatal; and it is not)."""
        law = self.law
        weeks, shares = law.after if was_diagnosed else law.before, law.stays.blocks()
        died, left = (np.zeros((law.weeks + 1, law.num_traits, law.num_states)) for _ in range(2))
        kinds = [(weeks.visit.sum(1), was_diagnosed), (weeks.diagnosis.sum(1), True)]
        for week in range(law.weeks - 1, -1, -1):
            died[week] = law.lives * np.einsum("kst,kt->ks", weeks.quiet, died[week + 1])
            left[week] = law.lives * np.einsum("kst,kt->ks", weeks.quiet, left[week + 1])
            for moves, status in kinds:
                blocked = (law.after if status else law.before).blocked
                died[week] += (moves * (1.0 - law.survives[int(status)])).sum(-1)
                stay = moves * law.survives[int(status)]
                for ahead, share in enumerate(shares):
                    left[week] += share * np.einsum("kst,kt->ks", stay, self._none[status][week + 1 + ahead])
                    stay = stay @ blocked
        return died, left


def readmission(
    law: Law,
    belief: Floats,
    week: Ints,
    window_end: Floats,
    is_diagnosed: Bools,
    *,
    keep_early_deaths: bool,
) -> Floats:
    """P(another stay begins by `window_end`): [patient].

    belief      at home before `week`, the first in which a stay can begin
    window_end  day. Who dies elsewhere on a date before that of the window's end, without a stay, is in the cohort only
                with `keep_early_deaths`: a date of death has no time of day, and closes its day
    """
    out = np.empty(len(belief))
    last = (window_end // 7.0).astype(np.int64)
    share = window_end / 7.0 - last
    share_of_deaths = np.floor(window_end) / 7.0 - last
    for status, weeks in ((False, law.before), (True, law.after)):
        stays = (weeks.visit + weeks.diagnosis).sum((1, 3))
        quiet = weeks.quiet.sum(-1)
        rows = np.flatnonzero(is_diagnosed == status)
        now, at = belief[rows].copy(), week[rows].copy()
        readmitted, not_readmitted = np.zeros(len(rows)), np.zeros(len(rows))
        going = np.arange(len(rows))
        while len(going):
            of_all = rows[going]
            # After the record's last week nothing happens any more.
            over = (at[going] >= law.weeks) | (at[going] > last[of_all])
            not_readmitted[going[over]] += now[going[over]].sum((1, 2))
            going = going[~over]
            of_all, mine = rows[going], now[going]
            comes, stays_away = (mine * stays).sum((1, 2)), (mine * quiet).sum((1, 2))
            dies = (1.0 - law.lives) * stays_away
            ends = at[going] == last[of_all]
            part = np.where(ends, share[of_all], 1.0)
            readmitted[going] += part * comes
            within = np.where(ends, comes * (1.0 - part) + stays_away - share_of_deaths[of_all] * dies, 0.0)
            early = np.where(ends, share_of_deaths[of_all] * dies, dies)
            not_readmitted[going] += within + (early if keep_early_deaths else 0.0)
            going, mine = going[~ends], mine[~ends]
            now[going] = law.lives * np.einsum("nks,kst->nkt", mine, weeks.quiet, optimize=True)
            at[going] += 1
        out[rows] = readmitted / (readmitted + not_readmitted)
    return out
