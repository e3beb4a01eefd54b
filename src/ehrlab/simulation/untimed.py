"""The filter for somebody who knows what the visits showed, in order, but not when they fell.

Known: the first visit, which opens the record, with its times; what each visit showed; whether the last one goes on at
the landmark; the landmark. Unknown: when within the record the later visits fell and how long they took. So the belief
at the landmark is a sum over all placements of the visits in the weeks.

With z marking weeks, that sum is a coefficient of a power series which a patient's visits build factor by factor:
    start (1 - z Q)^-1  V_1 z B(z) (1 - z Q)^-1  V_2 z B(z) (1 - z Q)^-1 ...
Q a week at home without a visit, V_i visit i with what it showed, B(z) the weeks that a visit blocks. Instead of a
recursion over (weeks x visits), the coefficient is Cauchy's integral, on a contour on which few points are enough:

parabola  of -log z around the poles, which are 1 / the eigenvalues of Q, real in [0, 1]: the error falls exponentially
          with the number of points, of which 26 are enough (Weideman and Trefethen, Math. Comp. 2007)
circle    with a few points per week, where the weeks are few: exact but for what lies beyond the weeks
Against the recursion over weeks, both are exact to 1e-7 (tested).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.filter import Histories, Law
from ehrlab.simulation.population import Bools, Floats, Ints

Complex = NDArray[np.complex128]

_MANY_WEEKS = 40  # for the parabola
_ALIKE = 1.25  # patients whose weeks and visits agree up to this factor share a contour
_MOST_ROWS = 512
_AT_ONCE = 256  # points x patients


@dataclass(frozen=True, eq=False)
class Contour:
    """Coefficient of z^k of a real power series G = Re sum weight * z^-k * G(z). The first point is real."""

    z: Complex
    weight: Complex

    @classmethod
    def parabola(cls, weeks: float, num_visits: int, most: float) -> Contour:
        """For coefficients of z^k, k about `weeks`, of a function whose poles lie on the real axis from 1 / most on.

        -log z = log(most) + mu (1 + i u)^2, u real. Weideman and Trefethen's mu * weeks is pi N / 12, some 5, and their
        step 3 / N. Visits are further poles: mu grows towards the saddle point, and what counts shrinks around u = 0.
        """
        size = 5.2 + 0.8 * num_visits
        mu, step = size / weeks, 0.25 / np.sqrt(size)
        u = step * np.arange(int(min(6.5 / np.sqrt(size), 3.0) / step) + 1)
        weight = (2.0 * mu * step / np.pi * (1.0 + 1j * u)).astype(np.complex128)
        weight[0] *= 0.5
        return cls(np.exp(-np.log(most) - mu * (1.0 + 1j * u) ** 2), weight)

    @classmethod
    def circle(cls, most_weeks: int, most_visits: int) -> Contour:
        """For coefficients of z^k, k up to `most_weeks`: others enter with the radius to the power of num_points."""
        num_points = 4 * most_weeks + 8
        log_radius = np.log(10.0) * (-11.0 - most_visits) / num_points
        angle = 2.0 * np.pi / num_points * np.arange(num_points // 2 + 1)
        weight = np.full(len(angle), 2.0 / num_points, np.complex128)
        weight[[0, -1]] = 1.0 / num_points
        return cls(np.exp(log_radius + 1j * angle), weight)


class _Status:
    """Matrices of the undiagnosed or of the diagnosed: [trait, state, ...]."""

    def __init__(self, law: Law, is_diagnosed: bool) -> None:
        weeks = law.after if is_diagnosed else law.before
        self.quiet, self.blocked = weeks.quiet * law.lives, weeks.blocked
        powers = [np.broadcast_to(np.eye(law.num_states), weeks.blocked.shape)]
        for _ in range(law.stays.longest):
            powers.append(powers[-1] @ weeks.blocked)
        self._blocks = law.stays.blocks()[:, None, None, None] * np.stack(powers)  # [blocks, trait, state, state]
        self.later_visit = weeks.visit.sum(1) * law.survives[int(is_diagnosed)]
        self.visit, self.diagnosis = (
            np.moveaxis(moves, 1, 2).reshape(law.num_traits, law.num_states, -1)
            for moves in (weeks.visit, weeks.diagnosis)
        )

    def at(self, points: Complex) -> tuple[Floats, Floats]:
        """(1 - z Q)^-1 and z B(z) (1 - z Q)^-1: [trait, point, state, 2 * state], the real, then the imaginary part."""
        unit, z = np.eye(self.quiet.shape[-1]), points[:, None, None]
        home = np.linalg.inv(unit - z * self.quiet[:, None])
        powers = points[:, None] ** np.arange(1, len(self._blocks) + 1)
        blocks = np.tensordot(powers.real, self._blocks, 1) + 1j * np.tensordot(powers.imag, self._blocks, 1)
        after = np.moveaxis(blocks, 0, 1) @ home
        both = (np.concatenate([m.real, m.imag], -1) for m in (home, after))
        return next(both), next(both)


@dataclass(frozen=True, eq=False)
class Sums:
    """Sums over all placements, up to a factor of the patient.

    home      [patient, trait, state] at home before the landmark's week, all visits over
    arrivals  [patient, weeks ago, trait, state] in the week of the last visit, so many weeks before the landmark's
    """

    home: Floats
    arrivals: Floats


class UntimedFilter:
    """As filter.Filter, without the times of the visits after the first.

    ends_at_landmark  the landmark is the end of the last visit; else the landmark is any moment
    is_survived       False: it is not known how the last visit ended. Then the belief is that in the visit's own week,
                      and its third axis are the weeks that the visit has blocked
    """

    def __init__(
        self, law: Law, histories: Histories, *, ends_at_landmark: bool = False, is_survived: bool = True
    ) -> None:
        self.law, self._histories = law, histories
        self._ends, self._is_survived = ends_at_landmark, is_survived
        n = histories.num_patients
        self._visits = np.lexsort((histories.visit_week, histories.visit_patient))
        patient = histories.visit_patient[self._visits]
        self._first = np.searchsorted(patient, np.arange(n + 1))
        self._num_later = np.diff(self._first) - 1
        # Which visit made the diagnosis: 0, 1, ...; beyond all of them where none did.
        made = histories.visit_week[self._visits] == histories.diagnosed[patient]
        self._diagnosed = np.full(n, len(patient) + 1)
        self._diagnosed[patient[made]] = (np.arange(len(patient)) - self._first[patient])[made]
        week = (histories.landmark // 7.0).astype(np.int64) if ends_at_landmark else histories.landmark_week
        self._entry_blocks = histories.last_blocked_week[self._visits[self._first[:-1]]]
        self._day = histories.landmark - 7.0 * week
        self._goes_on = np.zeros(n, bool)
        self._goes_on[histories.visit_patient[histories.going_on]] = True
        self._weeks = week - self._entry_blocks - 1  # from the first at home to the landmark's
        self._status = {is_diagnosed: _Status(law, is_diagnosed) for is_diagnosed in (False, True)}

    def run(self, chain_evidence: Floats, family_evidence: Floats) -> Floats:
        """Beliefs [patient, trait, ahead, state]; arguments as of Filter.run."""
        return self.runs([(chain_evidence, family_evidence)])[0]

    def runs(self, evidence: Sequence[tuple[Floats, Floats]]) -> list[Floats]:
        """As `run`, for several of its arguments: what depends on times alone is computed once for all."""
        law, n = self.law, self._histories.num_patients
        going_on = self._histories.going_on
        alone = (self._num_later == 0) & (self._weeks < 0)
        only = np.flatnonzero(alone)
        known: list[tuple[Floats, Floats]] = []
        beliefs: list[Floats] = []
        for chain_evidence, family_evidence in evidence:
            seen = np.where(going_on[:, None, None], 1.0, chain_evidence)
            family = np.where(going_on[:, None], 1.0, family_evidence)[:, law.has_family]
            start = self._start(seen, family)
            out: Floats = np.zeros((n, law.num_traits, law.stays.longest + 1, law.num_states))
            home = self._blocked_entry(start)
            if self._is_survived:
                out[only, :, 0] = home[only]
            else:
                out[only, :, self._entry_blocks[only]] = start[only]
            known.append((home, seen))
            beliefs.append(out)
        for rows, contour in self._groups(np.flatnonzero(~alone)):
            for out, sums in zip(beliefs, self._sums(rows, contour, known), strict=True):
                out[rows] = self._at_landmark(rows, sums)
        # Of what is next to impossible, rounding may leave less than nothing.
        for out in beliefs:
            np.maximum(out, 0.0, out=out)
            out /= out.sum((1, 2, 3), keepdims=True)
        return beliefs

    def _start(self, seen: Floats, family: Floats) -> Floats:
        """[patient, trait, state] in the entry week."""
        law, entry = self.law, self._visits[self._first[:-1]]
        made = self._diagnosed == 0
        moves = np.where(made[:, None, None, None], law.entry_diagnosis, law.entry_visit)
        start = law.prior[:, None] * np.einsum("nkes,nes->nks", moves, seen[entry])
        if self._is_survived:
            start *= law.survives[made.astype(np.int64)][:, None]
        else:
            survives = law.survives[made.astype(np.int64)]
            start *= np.where((self._num_later == 0)[:, None], 1.0, survives)[:, None]
        log_family = np.log(family[self._visits])
        total = np.add.reduceat(log_family, self._first[:-1])
        return start * np.exp(total - total.max(1, keepdims=True))[:, :, None]

    def _blocked_entry(self, start: Floats) -> Floats:
        """After the weeks that the first visit blocks: [patient, trait, state]."""
        home = start.copy()
        for status in (False, True):
            for step in range(self.law.stays.longest):
                rows = np.flatnonzero((self._entry_blocks > step) & ((self._diagnosed == 0) == status))
                home[rows] = np.einsum("nks,kst->nkt", home[rows], self._status[status].blocked, optimize=True)
        return home

    def _at_landmark(self, rows: Ints, sums: Sums) -> Floats:
        law, stays, day = self.law, self.law.stays, self._day[rows]
        num_lags = stays.longest + 1
        lags = 7.0 * np.arange(num_lags)
        out = np.zeros((len(rows), law.num_traits, num_lags, law.num_states))
        if self._ends:
            over = stays.over_at(lags + day[:, None])
        else:
            over = stays.over_by(lags + day[:, None]) - stays.over_by(lags)
        if not self._is_survived:
            out += np.einsum("nl,nlks->nkls", over, sums.arrivals)
            return out
        for status in (False, True):
            mine = np.flatnonzero((self._diagnosed[rows] <= self._num_later[rows]) == status)
            if not len(mine):
                continue
            matrices, open_rows = self._status[status], np.zeros(len(rows), bool)
            open_rows[mine] = True
            goes_on = np.flatnonzero(open_rows & self._goes_on[rows])
            ended = np.flatnonzero(open_rows & ~self._goes_on[rows])
            has_later = (self._num_later[rows] > 0)[:, None, None]
            begun = np.where(has_later[..., None], sums.arrivals, 0.0)
            for ago in range(num_lags):
                out[ended, :, 0] += over[ended, ago, None, None] * begun[ended, ago]
                if ago == 0:
                    law_of_ahead = stays.blocks() - stays.blocks_after(day[goes_on])
                else:
                    law_of_ahead = np.broadcast_to(stays.blocks(), (len(goes_on), num_lags))
                ahead = np.pad(law_of_ahead[:, ago:], ((0, 0), (0, ago))).copy()
                ahead[:, 0] -= over[goes_on, ago]
                out[goes_on] += np.einsum("na,nks->nkas", ahead, begun[goes_on, ago])
                begun[mine] = np.einsum("nlks,kst->nlkt", begun[mine], matrices.blocked, optimize=True)
            if self._ends:
                continue
            later = np.einsum("nks,kst->nkt", sums.home[ended], matrices.later_visit, optimize=True)
            out[ended] += np.einsum("nks,na->nkas", later, stays.blocks_after(day[ended]))
            out[ended, :, 0] += np.einsum("nks,kst->nkt", sums.home[ended], matrices.quiet, optimize=True)
        return out

    # ------------------------------------------------------------------------------------------ sums over placements
    def _groups(self, rows: Ints) -> Iterator[tuple[Ints, Contour]]:
        """Patients for whom one contour serves, with as many visits and weeks up to some 25 %."""
        if not len(rows):
            return
        most = max(float(np.abs(np.linalg.eigvals(status.quiet)).max()) for status in self._status.values())
        later, weeks = self._num_later[rows], self._weeks[rows]
        of_weeks = np.floor(np.log(weeks + 1) / np.log(_ALIKE)).astype(np.int64)
        of_visits = np.floor(np.log(later + 4) / np.log(_ALIKE)).astype(np.int64)
        keys = np.stack([of_weeks, of_visits], axis=1)
        for key in np.unique(keys, axis=0):
            group = rows[(keys == key).all(1)]
            # Most visits first, so that those with visits to come are always the first rows.
            group = group[np.argsort(-self._num_later[group], kind="stable")]
            most_weeks, most_visits = int(self._weeks[group].max()), int(self._num_later[group].max())
            contour = Contour.circle(most_weeks, most_visits)
            if most_weeks >= _MANY_WEEKS:
                middle = float(np.exp(np.log(self._weeks[group]).mean()))
                contour = Contour.parabola(middle, most_visits, most)
            for begin in range(0, len(group), _MOST_ROWS):
                yield group[begin : begin + _MOST_ROWS], contour

    def _sums(self, rows: Ints, contour: Contour, known: Sequence[tuple[Floats, Floats]]) -> list[Sums]:
        """For each (home, seen) of `known`."""
        law, num_lags, later = self.law, self.law.stays.longest + 1, self._num_later[rows]
        statuses = (False, True) if (self._diagnosed[rows] <= later).any() else (False,)
        found = [
            Sums(
                np.zeros((len(rows), law.num_traits, law.num_states)),
                np.zeros((len(rows), num_lags, law.num_traits, law.num_states)),
            )
            for _ in known
        ]
        scales: list[dict[int, Floats]] = [{} for _ in known]
        at_once = int(np.clip(_AT_ONCE // len(rows), 2, len(contour.z)))
        for begin in range(0, len(contour.z), at_once):
            z, weight = contour.z[begin : begin + at_once], contour.weight[begin : begin + at_once]
            at = {status: self._status[status].at(z) for status in statuses}
            for out, own_scales, (home, seen) in zip(found, scales, known, strict=True):
                for ordinal, (arrived, at_home) in enumerate(self._series(rows, at, home, seen, own_scales)):
                    ends = slice(*np.searchsorted(-later, (-ordinal, 1 - ordinal)))
                    power = weight[:, None] * np.exp(-np.log(z)[:, None] * self._weeks[rows[ends]])
                    out.home[ends] += _real(power, at_home[:, :, :, ends])
                    for ago in range(num_lags if ordinal else 0):
                        out.arrivals[ends, ago] += _real(power * z[:, None] ** ago, arrived[:, :, :, ends])
        return found

    def _series(
        self,
        rows: Ints,
        at: Mapping[bool, tuple[Floats, Floats]],
        home: Floats,
        seen: Floats,
        scales: dict[int, Floats],
    ) -> Iterator[tuple[Floats, Floats]]:
        """After 0, 1, ... later visits: in the week of that visit, and at home after it.

        Each [trait, point, 2, patient, state], where the 2 are the real and the imaginary part and the patients those
        with so many later visits, the first of `rows`. The first pass fills `scales`, by which it and all further ones
        divide. `at` is _Status.at of the points, by status.
        """
        law, later, made = self.law, self._num_later[rows], self._diagnosed[rows]
        num_points = next(iter(at.values()))[0].shape[1]
        now = np.empty((law.num_traits, num_points, 2, len(rows), law.num_states))
        start = np.moveaxis(home[rows], 1, 0)[:, None]
        for status, (stays_home, _) in at.items():
            mine = _which((made == 0) == status)
            now[:, :, :, mine] = _split(start[:, :, mine] @ stays_home)
        self._rescale(now, 0, scales)
        yield now, now
        for ordinal in range(1, int(later.max(initial=0)) + 1):
            active = int(np.searchsorted(-later, -ordinal, side="right"))
            made = made[:active]
            shown = seen[self._visits[self._first[rows[:active]] + ordinal]]
            survives = law.survives[(made <= ordinal).astype(np.int64)]
            if not self._is_survived:
                survives = np.where((later[:active] == ordinal)[:, None], 1.0, survives)
            shown = shown * survives[:, None]
            arrived = np.empty((*now.shape[:3], active, law.num_states))
            for status, name, chosen in (
                (False, "visit", made > ordinal),
                (False, "diagnosis", made == ordinal),
                (True, "visit", made < ordinal),
            ):
                if chosen.any():
                    mine = _which(chosen)
                    before = now[:, :, :, :active][:, :, :, mine]
                    moved = before.reshape(law.num_traits, -1, law.num_states) @ getattr(self._status[status], name)
                    moved = moved.reshape(*before.shape[:4], -1, law.num_states)
                    arrived[:, :, :, mine] = np.einsum("kpines,nes->kpins", moved, shown[mine])
            self._rescale(arrived, ordinal, scales)
            now = np.empty_like(arrived)
            for status, (_, returns) in at.items():
                mine = _which((made <= ordinal) == status)
                real, imaginary = (_split(arrived[:, :, part, mine] @ returns) for part in (0, 1))
                now[:, :, 0, mine] = real[:, :, 0] - imaginary[:, :, 1]
                now[:, :, 1, mine] = real[:, :, 1] + imaginary[:, :, 0]
            yield arrived, now

    @staticmethod
    def _rescale(values: Floats, ordinal: int, scales: dict[int, Floats]) -> None:
        if ordinal not in scales:
            scales[ordinal] = np.abs(values[:, 0]).sum((0, 1, 3)).astype(values.dtype)
        values /= scales[ordinal][:, None]


def _which(chosen: Bools) -> Ints | slice:
    """A slice, which copies nothing, where all are chosen."""
    return slice(None) if chosen.all() else np.flatnonzero(chosen)


def _split(values: Floats) -> Floats:
    """[trait, point, patient, 2 * state] -> [trait, point, 2, patient, state]."""
    return np.moveaxis(values.reshape(*values.shape[:3], 2, values.shape[3] // 2), 3, 2)


def _real(factor: Complex, values: Floats) -> Floats:
    """Re(factor [point, patient] * values [trait, point, 2, patient, state]), summed: [patient, trait, state]."""
    real = np.einsum("pn,kpns->nks", factor.real, values[:, :, 0])
    return real - np.einsum("pn,kpns->nks", factor.imag, values[:, :, 1])
