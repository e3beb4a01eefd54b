"""Case or control? The exact probability in the cohort of `ehrlab.data.cohorts.first_diagnosis`, window `until`.

Of a patient whose record is known up to the landmark, `lead_days` before the index moment T:
case     the visit that makes the first diagnosis is over exactly at T (a density);
control  no diagnosis in the whole record, and the last visit is over at T or later (a probability).
Both functionals are linear in the belief at the landmark. T falls within a week, so each is a sum over the lag between
the week of the decisive visit and that of T, with coefficients that depend on the moment within the week, and vectors
that do not: those are recursions backwards over the weeks, shared by all patients with the same weeks.

Each case is matched with `num_controls` controls of its stratum, cut at the same time e after their first visit. Hence
    odds(case | history) = (f / F) / (num_controls * g / G),
f, g the functionals of this history and F, G their means over all eligible histories of the stratum at this e: the rule
that at least `min_visits` visits are over by the landmark is inside the forward recursion that gives F and G.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ehrlab.simulation.filter import Law
from ehrlab.simulation.population import Floats, Ints

_MATCHING_STEP = 4  # weeks


@dataclass(frozen=True)
class Rule:
    """What the odds depend on besides the history.

    grain_days  a landmark counts as this much later: 1 where only dates are known, because what happens on the
                landmark's own date is part of the history; else 0
    """

    lead_days: int
    num_controls: int
    min_visits: int
    grain_days: int

    @property
    def gaps(self) -> tuple[int, int]:
        """Weeks from the landmark's week to that of the index moment; one or the other, as the weeks fall."""
        shortest = (self.lead_days - self.grain_days) // 7
        return shortest, shortest + 1

    def can_tell(self, law: Law) -> bool:
        """Is the lead so long that no visit begun by the landmark, or in its week, can be the decisive one?"""
        return self.gaps[0] > law.stays.longest


class Future:
    """The functionals of both outcomes for the patients of one law.

    `functionals(gap, week)` are [value, trait, ahead, state] for an index moment in `week`, `gap` weeks after the
    landmark's. The values are those of the case, lag 0, 1, ...; then of the control, lag 0, 1, ...; then the one of the
    control that needs no coefficient. `coefficients` are those of the former two.
    """

    def __init__(self, law: Law, rule: Rule, unchosen: Floats | None = None) -> None:
        # [week] weight of a control whose last visit begins in that week: see `matching`.
        self.law, self.rule = law, rule
        weeks, stays = law.before, law.stays
        self._unchosen = np.ones(law.weeks) if unchosen is None else unchosen
        self._num_lags, self._blocks = stays.longest + 1, stays.blocks()
        self.returns = [weeks.visit.sum(1) * law.survives[0]]  # a visit survived, then j blocked weeks
        for _ in range(stays.longest):
            self.returns.append(self.returns[-1] @ weeks.blocked)
        self.quiet = weeks.quiet * law.lives
        self._dies_at_visit = (weeks.visit.sum(1) * (1.0 - law.survives[0])).sum(-1)
        self._no_visit, self._only_visits = self._rest_of_record()
        reach = {gap: self._reach(gap) for gap in rule.gaps}
        made = weeks.diagnosis.sum((1, 3))
        # [lag, trait, ahead, state]
        self._case = {gap: np.einsum("lakst,kt->lkas", moves, made, optimize=True) for gap, moves in reach.items()}
        self._control = {gap: self._until_index(moves) for gap, moves in reach.items()}

    def functionals(self, gap: int, week: int) -> Floats:
        return np.concatenate([self._case[gap], self._control[gap][week]])

    def _rest_of_record(self) -> tuple[Floats, Floats]:
        """P(no visit), P(visits, none of them the diagnosis) from each week on, at home: [week, trait, state].

        The latter weighs the last visit by `unchosen`. Weeks go on beyond the record's, where nothing happens.
        """
        law = self.law
        shape = (law.weeks + 2 * self._num_lags, law.num_traits, law.num_states)
        no_visit, visits = np.ones(shape), np.zeros(shape)
        dies_elsewhere = law.before.quiet.sum(-1) * (1.0 - law.lives)
        # A visit, then all that it can block: [trait, state, blocks * state].
        returns = np.concatenate([share * moves for share, moves in zip(self._blocks, self.returns, strict=True)], -1)
        for week in range(law.weeks - 1, -1, -1):
            after = slice(week + 1, week + 1 + self._num_lags)
            later = np.moveaxis(visits[after] + self._unchosen[week] * no_visit[after], 0, 1)
            no_visit[week] = (self.quiet @ no_visit[week + 1, :, :, None])[..., 0] + dies_elsewhere
            visits[week] = (self.quiet @ visits[week + 1, :, :, None])[..., 0]
            visits[week] += (returns @ later.reshape(law.num_traits, -1, 1))[..., 0]
            visits[week] += self._unchosen[week] * self._dies_at_visit
        return no_visit, visits

    def _reach(self, gap: int) -> Floats:
        """P(undiagnosed and at home, state | state at the landmark): [lag, ahead, trait, state, state].

        At home before the week that lies `lag` weeks before that of the index moment.
        """
        nobody = np.zeros_like(self.quiet)
        home = [nobody + np.eye(self.law.num_states)]  # at home now -> at home before the week i weeks on
        for week in range(1, gap):
            step = self.quiet @ home[week - 1]
            for blocks, share in enumerate(self._blocks[:week]):
                step += share * (self.returns[blocks] @ home[week - 1 - blocks])
            home.append(step)
        out = np.zeros((self._num_lags, self._num_lags, *nobody.shape))
        for lag in range(self._num_lags):
            in_hospital = home[0]
            for ahead in range(min(self._num_lags, gap - lag)):
                out[lag, ahead] = in_hospital @ home[gap - lag - 1 - ahead]
                in_hospital = in_hospital @ self.law.before.blocked
        return out

    def _until_index(self, reach: Floats) -> Floats:
        """Per week of the index moment [value, trait, ahead, state].

        A control's last visit is over after the index moment. It begins after the week of that moment; or `lag` weeks
        before it, and blocks more weeks than `lag` (or dies there), or exactly `lag` and is over after the moment. Only
        the latter depends on when in its week the moment is.
        """
        law, num_lags = self.law, self._num_lags
        index = np.arange(law.weeks + law.stays.longest)
        unchosen = self._unchosen[np.minimum(index[:, None] - np.arange(num_lags), law.weeks - 1)]
        exact, anyhow = (np.zeros((num_lags, len(index), law.num_traits, law.num_states)) for _ in range(2))
        # By the weeks that a visit blocks and the week in which the patient is home again.
        last = [_value(moves, self._no_visit) + self._dies_at_visit for moves in self.returns]
        more = [_value(moves, self._only_visits) for moves in self.returns]
        for lag in range(num_lags):
            exact[lag] = unchosen[:, lag, None, None] * last[lag][index + 1]
            for blocks in range(lag, num_lags):
                # Weeks before the record's first wrap around; no landmark is so early.
                then = index - lag + blocks + 1
                anyhow[lag] += self._blocks[blocks] * more[blocks][then]
                if blocks > lag:
                    anyhow[lag] += self._blocks[blocks] * unchosen[:, lag, None, None] * last[blocks][then]
            if lag == 0:
                anyhow[lag] += _value(self.quiet, self._only_visits[index + 1])
            exact[lag, index - lag >= law.weeks] = anyhow[lag, index - lag >= law.weeks] = 0.0
        out = np.empty((len(index), num_lags + 1, law.num_traits, num_lags, law.num_states))
        for lag in range(num_lags):
            out[:, lag] = np.einsum("akst,nkt->nkas", reach[lag], exact[lag], optimize=True)
        out[:, num_lags] = np.einsum("lakst,lnkt->nkas", reach, anyhow, optimize=True)
        return out


def _value(moves: Floats, value: Floats) -> Floats:
    """[trait, state, state] @ [..., trait, state]."""
    return np.einsum("kst,...kt->...ks", moves, value, optimize=True)


def _times(weight: Floats, moves: Floats) -> Floats:
    """[..., trait, state] @ [trait, state, state]."""
    return np.einsum("...ks,kst->...kt", weight, moves, optimize=True)


def coefficients(law: Law, week: Ints, moment: Floats) -> tuple[Floats, Floats]:
    """Of the case's density and of the control's probability: each [patient, lag].

    week, moment  of the index moment: its week, and the days since that week began
    """
    lags = np.arange(law.stays.longest + 1)
    day = 7.0 * lags + moment[:, None]
    in_record = week[:, None] - lags < law.weeks
    control = law.stays.over_by(7.0 * lags + 7.0) - law.stays.over_by(day)
    return np.where(in_record, law.stays.over_at(day), 0.0), np.where(in_record, control, 0.0)


def _outcomes(values: Floats, case: Floats, control: Floats) -> Floats:
    """[..., 2] from values [..., value] and coefficients [..., lag]."""
    num_lags = case.shape[-1]
    by_lag = (values[..., num_lags:-1] * control).sum(-1)
    return np.stack([(values[..., :num_lags] * case).sum(-1), by_lag + values[..., -1]], axis=-1)


def likelihoods(future: Future, landmark_week: Ints, index: Floats, belief: Floats) -> Floats:
    """f and g of each patient: [patient, 2], up to a factor of the patient.

    index  day of the index moment; belief [patient, trait, ahead, state] after `landmark_week`
    """
    week = (index // 7.0).astype(np.int64)
    gap, flat = week - landmark_week, belief.reshape(len(belief), int(np.prod(belief.shape[1:])))
    values = np.empty((len(index), 2 * (future.law.stays.longest + 1) + 1))
    for g, w in sorted(set(zip(gap.tolist(), week.tolist(), strict=True))):
        rows = np.flatnonzero((gap == g) & (week == w))
        functionals = future.functionals(g, w)
        values[rows] = flat[rows] @ functionals.reshape(len(functionals), -1).T
    return _outcomes(values, *coefficients(future.law, week, index - 7.0 * week))


class Eligible:
    """All histories with enough visits, by the week of their landmark: the forward recursion without evidence."""

    def __init__(self, law: Law, rule: Rule) -> None:
        self._law, self._rule = law, rule
        num_lags, need = law.stays.longest + 1, rule.min_visits - 1
        self._num_weeks = law.weeks + num_lags
        shape = (self._num_weeks, num_lags)  # [week, weeks that the entry visit blocks, ...
        self._whatever = np.zeros((*shape, law.num_traits, num_lags, law.num_states))  # ... trait, ahead, state]
        self._lacking = np.zeros((*shape, num_lags, law.num_traits, law.num_states))  # ... ago, trait, state]
        after_visit = law.before.visit.sum(1) * law.survives[0]
        start = law.prior[:, None] * law.entry_visit.sum(1) * law.survives[0]
        home = np.zeros((num_lags, need + 1, *start.shape))  # [entry's blocked weeks, visits over since, trait, state]
        for entry in range(num_lags):
            home[entry, 0] = start
            if need == 0:
                self._whatever[entry, entry, :, 0] = start
            start = _times(start, law.before.blocked)
        hospital = np.zeros((num_lags, *home.shape))  # [weeks since begun, ...], whatever the stay's length will be
        shares = law.stays.blocks()
        for since in range(self._num_weeks - 1):
            begun = _times(home, after_visit)
            hospital = np.concatenate([begun[None], _times(hospital[:-1], law.before.blocked)])
            quiet = law.lives * _times(home, law.before.quiet)
            entries = np.arange(min(num_lags, self._num_weeks - 1 - since))
            weeks = entries + 1 + since
            self._whatever[weeks, entries, :, 0] = quiet[entries, need]
            for ago in range(num_lags):
                for ahead in range(num_lags - ago):
                    self._whatever[weeks, entries, :, ahead] += shares[ago + ahead] * hospital[ago, entries, need]
                if need:
                    self._lacking[weeks, entries, ago] = hospital[ago, entries, need - 1]
            over = np.einsum("l,lbcks->bcks", shares, hospital)
            home = quiet
            home[:, 1:] += over[:, :-1]
            home[:, need] += over[:, need]

    def values(self, future: Future) -> Floats:
        """The functionals' values: [gap, entry's blocked weeks, landmark's week, part, value].

        Part 0 are the histories that are eligible whatever the day of the landmark; 1 + k those that lack one visit,
        and whose visit of k weeks before the landmark's is over in the landmark's week.
        """
        law, num_lags = self._law, self._law.stays.longest + 1
        out = np.zeros((2, num_lags, self._num_weeks, 1 + num_lags, 2 * num_lags + 1))
        for i, gap in enumerate(self._rule.gaps):
            for week in range(min(self._num_weeks, law.weeks + law.stays.longest - gap)):
                functionals = future.functionals(gap, week + gap)
                whole, at_home = (f.reshape(len(functionals), -1).T for f in (functionals, functionals[:, :, 0]))
                out[i, :, week, 0] = self._whatever[week].reshape(num_lags, -1) @ whole
                out[i, :, week, 1:] = self._lacking[week].reshape(num_lags, num_lags, -1) @ at_home
        return out


def population_likelihoods(
    law: Law, rule: Rule, values: Sequence[Floats], elapsed: Floats, num_nodes: int = 6
) -> Floats:
    """F and G per time from the end of the first visit to the index moment, in days: [elapsed, law, 2].

    values     `eligible_values` of several laws, which share the law of stays; `law` is one of them
    num_nodes  Gauss nodes over the entry visit's length, between any two days at which a law of a visit is not smooth
    """
    stays, stacked = law.stays, np.stack(values, axis=3)  # [gap, blocks, week, law, part, value]
    out = np.empty((len(elapsed), len(values), 2))
    lags = 7.0 * np.arange(stays.longest + 1)
    for i, time in enumerate(elapsed):
        cut = time - rule.lead_days
        # Where the index moment or the landmark reaches a day of its week at which a visit's law is not smooth.
        breaks = np.concatenate([stays.kinks - moment % 7.0 for moment in (0.0, cut, time)])
        first, weight = stays.entry_nodes(breaks, num_nodes)
        landmark, index = first + cut + rule.grain_days, first + time
        blocks, week = (first // 7.0).astype(np.int64), np.ceil(landmark / 7.0).astype(np.int64) - 1
        index_week = (index // 7.0).astype(np.int64)
        over = stays.over_by(lags + (landmark - 7.0 * week)[:, None]) - stays.over_by(lags)
        parts = weight[:, None] * np.hstack([np.ones((len(first), 1)), over])
        of_node = stacked[index_week - week - rule.gaps[0], blocks, week]
        summed = (parts[:, None, None, :] @ of_node)[:, :, 0]
        case, control = coefficients(law, index_week, index - 7.0 * index_week)
        out[i] = _outcomes(summed, case[:, None], control[:, None]).sum(0)
    return out


def matching(
    laws: Sequence[Law], rule: Rule, eligible: Sequence[Eligible], *, tolerance: float = 0.01, most_rounds: int = 10
) -> list[Future]:
    """Per law the functionals that weigh a control by P(no earlier choice took it), by the week of its last visit.

    Controls are used once, and the cases observed longest choose first. So who is eligible at e is still free with the
    probability that no case at an e' between e and the control's last visit took it, which is W(last visit) / W(e):
    each of those cases takes `num_controls` of all that are free and eligible at e', hence
        d log W / de' = -num_controls * F(e') / (free and eligible at e'),
    and what is free depends on W: a fixed point, here of a stratum that holds one risk class. The limit of many
    patients; weeks stand for days, and the end of the first visit for the beginning of the record.
    """
    weeks, days = 7.0 * np.arange(laws[0].weeks), 7.0 * _MATCHING_STEP
    elapsed = np.arange(float(rule.lead_days), 7.0 * laws[0].weeks, days)
    log_weight = np.zeros((len(laws), len(weeks)))
    for _ in range(most_rounds):
        futures = [Future(law, rule, np.exp(log)) for law, log in zip(laws, log_weight, strict=True)]
        values = [e.values(future) for e, future in zip(eligible, futures, strict=True)]
        case, control = np.moveaxis(population_likelihoods(laws[0], rule, values, elapsed), -1, 0)
        weight = np.stack([np.exp(np.interp(elapsed, weeks, log)) for log in log_weight], axis=1)
        # Where cases want more controls than there are, nearly all are taken.
        left = np.maximum(1.0 - rule.num_controls * days * case * weight / np.maximum(control, 1e-300), 0.05)
        last, log_weight = (
            log_weight,
            np.stack([np.interp(weeks, elapsed, log) for log in np.cumsum(np.log(left), 0).T]),
        )
        if np.abs(log_weight - last).max() < tolerance:
            break
    return futures


def probability(history: Floats, population: Floats, num_controls: int) -> Floats:
    """P(case) of each patient from (f, g) and (F, G), each [patient, 2]."""
    case, control = history[:, 0] / population[:, 0], num_controls * history[:, 1] / population[:, 1]
    return case / (case + control)
