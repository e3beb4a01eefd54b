"""The exact filter against the enumeration of every path of a tiny chain."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.integrate import quad

from ehrlab.simulation import admissions
from ehrlab.simulation.chain import NUM_EVENTS, NUM_FAMILY, NUM_STATES
from ehrlab.simulation.filter import Filter, Histories, Law, Weeks
from ehrlab.simulation.filter import law as law_of
from ehrlab.simulation.first_diagnosis import (
    Eligible,
    Future,
    Rule,
    likelihoods,
    population_likelihoods,
)
from ehrlab.simulation.knobs import Knobs, turn
from ehrlab.simulation.population import Floats, Ints
from ehrlab.simulation.spec import MIMIC, TRINETX, population
from ehrlab.simulation.stays import Stays
from ehrlab.simulation.untimed import Contour, Sums, UntimedFilter

TRAITS, EVENTS, STATES, WEEKS = 2, 2, 2, 5
LONG = Stays(replace(MIMIC, stay_days=(3.0, 2.2, 0.3, 6.0)))  # blocks at most one week
SHORT = Stays(TRINETX)


def _law(weeks: int, stays: Stays) -> Law:
    """A chain with nothing equal to anything, so that a transposed axis or a forgotten factor shows."""
    rng = np.random.default_rng(7)

    def random(*shape: int) -> np.ndarray:
        return 0.1 + 0.8 * rng.random(shape)

    moves = rng.dirichlet(np.ones(STATES), (TRAITS, EVENTS, STATES))
    events = rng.dirichlet(np.ones(EVENTS), TRAITS)[..., None, None]
    hazard, visit = 0.3 * random(STATES), random(TRAITS, EVENTS, STATES)[:, :, None]
    after = Weeks(
        quiet=(events * moves * (1 - visit)).sum(1),
        visit=events * moves * visit,
        diagnosis=np.zeros((TRAITS, EVENTS, STATES, STATES)),
        blocked=(events * moves).sum(1),
    )
    before = Weeks(
        quiet=(events * moves * (1 - visit) * (1 - hazard)).sum(1),
        visit=events * moves * visit * (1 - hazard),
        diagnosis=events * moves * hazard,
        blocked=after.blocked,
    )
    entry = rng.dirichlet(np.ones(EVENTS * STATES), TRAITS).reshape(TRAITS, EVENTS, STATES)
    return Law(
        weeks=weeks,
        prior=rng.dirichlet(np.ones(TRAITS)),
        has_family=np.arange(TRAITS),
        entry_visit=entry * (1 - hazard),
        entry_diagnosis=entry * hazard,
        before=before,
        after=after,
        survives=1.0 - 0.4 * random(2, STATES),
        lives=0.85,
        stays=stays,
    )


# ------------------------------------------------------------------------------------------- moments, by integration
def _length_by(stays: Stays, days: float) -> float:
    if stays is SHORT:
        return float(days >= 0)
    return 0.0 if days < 0.3 else 1.0 if days >= 6.0 else 1.0 / (1.0 + (days / 3.0) ** -2.2)


@functools.cache
def _chance(stays: Stays, blocks: int, begin: tuple[float, float], over: tuple[float, float]) -> float:
    """P(begun between two days of the week, over between two, blocking so many weeks)."""
    low, high = max(over[0], 7.0 * blocks), min(over[1], 7.0 * blocks + 7.0)
    if high <= low or begin[1] <= begin[0]:
        return 0.0
    edges = sorted({min(max(b, begin[0]), begin[1]) for e in (low, high) for b in (e, e - 0.3, e - 6.0, *begin)})
    return sum(
        quad(lambda u: (_length_by(stays, high - u) - _length_by(stays, low - u)) / 7.0, a, b, epsabs=1e-14)[0]
        for a, b in itertools.pairwise(edges)
    )


def _density(stays: Stays, blocks: int, day: float) -> float:
    """Of the day on which a visit is over that blocks so many weeks."""
    before = _length_by(stays, day - 7.0) if day >= 7.0 else 0.0
    return (_length_by(stays, day) - before) / 7.0 if blocks == day // 7 else 0.0


# --------------------------------------------------------------------------------------------------------- every path
@dataclass(frozen=True)
class Visit:
    week: int
    event: int
    state: int
    blocks: int
    is_diagnosis: bool
    is_fatal: bool


@dataclass(frozen=True)
class Path:
    trait: int
    visits: tuple[Visit, ...]
    died: int | None  # week of a death elsewhere
    weight: float  # without the law of the visits' moments


@functools.cache
def _paths(stays: Stays) -> tuple[Path, ...]:
    """Paths that differ only where no test looks (weeks without a visit, what the third visit shows) are one."""
    law, out = _law(WEEKS, stays), dict[Path, float]()
    for trait in range(TRAITS):
        for path in _extend(law, trait, (), law.prior[trait], 0, 0, 0, False):
            later = tuple(replace(visit, event=0, state=0) for visit in path.visits[2:])
            key = Path(trait, path.visits[:2] + later, path.died, 0.0)
            out[key] = out.get(key, 0.0) + path.weight
    return tuple(replace(path, weight=weight) for path, weight in out.items())


def _extend(
    law: Law, trait: int, visits: tuple[Visit, ...], weight: float, week: int, state: int, blocked: int, ill: bool
) -> Iterator[Path]:
    if weight == 0.0:
        return
    if week == law.weeks:
        yield Path(trait, visits, None, weight)
        return
    weeks = law.after if ill else law.before
    for new in range(STATES):
        if blocked:
            moved = weight * weeks.blocked[trait, state, new]
            yield from _extend(law, trait, visits, moved, week + 1, new, blocked - 1, ill)
            continue
        if week:
            quiet = weight * weeks.quiet[trait, state, new]
            yield from _extend(law, trait, visits, quiet * law.lives, week + 1, new, 0, ill)
            yield Path(trait, visits, week, quiet * (1.0 - law.lives))
        for event, makes in itertools.product(range(EVENTS), (False, True)):
            if week:
                came = weight * (weeks.diagnosis if makes else weeks.visit)[trait, event, state, new]
            else:
                came = weight * (law.entry_diagnosis if makes else law.entry_visit)[trait, event, new]
            survives = law.survives[int(ill or makes), new]
            for blocks in range(law.stays.longest + 1):
                visit = Visit(week, event, new, blocks, makes, False)
                yield Path(trait, (*visits, replace(visit, is_fatal=True)), None, came * (1.0 - survives))
                yield from _extend(law, trait, (*visits, visit), came * survives, week + 1, new, blocks, ill or makes)


Key = tuple[tuple[tuple[int, int, bool, bool], ...], int | None]


def _summed(stays: Stays, weigh: Callable[[Path], float]) -> dict[Key, float]:
    """Total weight of the paths with the same visits (week, blocked weeks, diagnosis, fatal) and the same death."""
    out: dict[Key, float] = {}
    for path in _paths(stays):
        if factor := weigh(path):
            key = tuple((v.week, v.blocks, v.is_diagnosis, v.is_fatal) for v in path.visits), path.died
            out[key] = out.get(key, 0.0) + path.weight * factor
    return out


# ------------------------------------------------------------------------------------------------------- what is seen
@dataclass(frozen=True)
class Seen:
    week: int
    start: float  # day of the week
    end: float  # day of the week; inf where it goes on at the landmark
    is_diagnosis: bool = False


@dataclass(frozen=True)
class History:
    stays: Stays
    landmark: float
    seen: tuple[Seen, ...]

    @property
    def week(self) -> int:
        return int(np.ceil(self.landmark / 7.0)) - 1

    @functools.cached_property
    def shown(self) -> np.ndarray:
        return 0.1 + np.random.default_rng(3).random((len(self.seen), EVENTS, STATES))

    @functools.cached_property
    def told(self) -> np.ndarray:
        return 0.1 + np.random.default_rng(4).random((len(self.seen), TRAITS))

    def filters(self, law: Law, *, ends: bool = False, survived: bool = True) -> tuple[Filter, UntimedFilter]:
        histories = Histories(
            landmark=np.array([self.landmark]),
            visit_patient=np.zeros(len(self.seen), np.int64),
            visit_week=np.array([s.week for s in self.seen]),
            visit_start=np.array([7 * s.week + s.start for s in self.seen]),
            visit_end=np.array([7 * s.week + s.end for s in self.seen]),
            visit_survived=np.ones(len(self.seen), bool),
            diagnosed=np.array([*(s.week for s in self.seen if s.is_diagnosis), law.weeks][:1]),
        )
        return Filter(law, histories), UntimedFilter(law, histories, ends_at_landmark=ends, is_survived=survived)

    def weigh(self, path: Path) -> float:
        """What the visits show, where the path's first visits can be those that are seen."""
        if len(path.visits) < len(self.seen):
            return 0.0
        weight = 1.0
        for i, (visit, seen) in enumerate(zip(path.visits, self.seen, strict=False)):
            if np.isinf(seen.end):
                continue
            if visit.is_diagnosis != seen.is_diagnosis:
                return 0.0
            weight *= self.shown[i, visit.event, visit.state] * self.told[i, path.trait]
        return weight

    def chance(self, key: Key, is_timed: bool, ends: bool) -> float:
        """P(moments as seen), times the density of what is seen exactly where it is not the same for all paths."""
        visits, died = key
        out = 1.0
        for i, ((week, blocks, _, _), seen) in enumerate(zip(visits, self.seen, strict=False)):
            edge = self.landmark - 7.0 * week
            if is_timed or i == 0:
                if week != seen.week:
                    return 0.0
                if np.isfinite(seen.end):
                    out *= float(blocks == seen.end // 7)
                else:
                    tail = [_length_by(self.stays, d - seen.start) for d in (7 * blocks + 7, max(7 * blocks, edge))]
                    out *= max(tail[0] - tail[1], 0.0)
            elif edge <= 0.0:
                return 0.0
            elif ends and i == len(self.seen) - 1:
                out *= _density(self.stays, blocks, edge)
            elif np.isfinite(seen.end):
                out *= _chance(self.stays, blocks, (0.0, 7.0), (0.0, edge))
            else:
                out *= _chance(self.stays, blocks, (0.0, min(7.0, edge)), (edge, 99.0))
        for week, blocks, makes, fatal in visits[len(self.seen) :]:
            if week < self.week or (ends and week == self.week):
                return 0.0
            if week == self.week:
                # Neither a case nor a control is diagnosed or dies within days of the landmark.
                out *= (
                    0.0
                    if makes or fatal
                    else _chance(self.stays, blocks, (self.landmark - 7.0 * week, 7.0), (0.0, 99.0))
                )
        if died is not None and died <= self.week:
            return 0.0
        return out


def _moment(stays: Stays, key: Key, first: int, last: int | None = None) -> float:
    """P(some moment or other) of the visits from number `first` on."""
    return float(np.prod([_chance(stays, v[1], (0.0, 7.0), (0.0, 99.0)) for v in key[0][first:last]]))


def _later(history: History, key: Key) -> int:
    """The number of the first visit whose moments `History.chance` has left open."""
    return next((i for i, v in enumerate(key[0]) if i >= len(history.seen) and v[0] > history.week), len(key[0]))


HISTORIES = {
    "nothing in the landmark's week": History(LONG, 15.5, (Seen(0, 0.0, 2.5), Seen(1, 1.0, 4.0))),
    "stay over in the landmark's week": History(LONG, 15.5, (Seen(0, 0.0, 5.0), Seen(1, 5.0, 7.9))),
    "visit in the landmark's week": History(LONG, 16.5, (Seen(0, 0.0, 2.5), Seen(2, 0.5, 1.5))),
    "stay that goes on": History(LONG, 16.5, (Seen(0, 0.0, 2.5), Seen(2, 1.0, np.inf))),
    "stay that goes on since the week before": History(LONG, 14.5, (Seen(0, 0.0, 2.5), Seen(1, 4.0, np.inf))),
    "landmark at a week's end": History(LONG, 14.0, (Seen(0, 0.0, 2.5),)),
    "dates only": History(SHORT, 16.0, (Seen(0, 0.0, 0.0), Seen(1, 3.0, 3.0))),
    "visit on the landmark's date": History(SHORT, 16.0, (Seen(0, 0.0, 0.0), Seen(2, 1.0, 1.0))),
}


@pytest.mark.parametrize("is_timed", [True, False])
@pytest.mark.parametrize("name", list(HISTORIES))
def test_case_and_control_weigh_as_in_the_enumeration_of_all_paths(name: str, is_timed: bool) -> None:
    history = HISTORIES[name]
    stays = history.stays
    law, grain = _law(WEEKS, stays), int(stays is SHORT)
    rule = Rule(lead_days=16 if stays is LONG else 14, num_controls=3, min_visits=2, grain_days=grain)
    index = history.landmark - grain + rule.lead_days
    expected = np.zeros(2)
    for key, weight in _summed(stays, history.weigh).items():
        weight *= history.chance(key, is_timed, ends=False)
        begin = _later(history, key)
        if weight and begin < len(key[0]):
            expected += weight * np.array(_outcome(stays, key, begin, index))
    exact = history.filters(law)[not is_timed]
    belief = exact.run(history.shown, history.told)
    np.testing.assert_allclose(belief.sum(), 1.0)
    found = likelihoods(Future(law, rule), np.array([history.week]), np.array([index]), belief)[0]
    assert min(expected) > 0
    np.testing.assert_allclose(found[0] / found[1], expected[0] / expected[1], rtol=1e-10 if is_timed else 1e-7)


def _outcome(stays: Stays, key: Key, begin: int, index: float) -> tuple[float, float]:
    """Density of a case and probability of a control at `index`, over the moments of the visits from `begin` on."""
    visits, _ = key
    for i, (week, blocks, makes, _) in enumerate(visits):
        if makes:
            if i < begin:
                return 0.0, 0.0
            others = _moment(stays, key, begin, i) * _moment(stays, key, i + 1)
            return others * _density(stays, blocks, index - 7.0 * week), 0.0
    week, blocks, _, _ = visits[-1]
    return 0.0, _moment(stays, key, begin, -1) * _chance(
        stays, blocks, (0.0, 7.0), (max(index - 7.0 * week, 0.0), 99.0)
    )


@pytest.mark.parametrize(
    ("stays", "elapsed", "min_visits"),
    [(LONG, 28.3, 2), (LONG, 30.0, 1), (LONG, 33.9, 3), (SHORT, 29.0, 3), (SHORT, 33.0, 2)],
)
def test_eligible_population_weighs_as_in_the_enumeration(stays: Stays, elapsed: float, min_visits: int) -> None:
    law, grain = _law(WEEKS, stays), int(stays is SHORT)
    rule = Rule(lead_days=16 if stays is LONG else 14, num_controls=3, min_visits=min_visits, grain_days=grain)
    total = _summed(stays, lambda path: float(not path.visits[0].is_diagnosis))
    expected = np.zeros(2)
    for first, share in _first_ends(stays, elapsed, rule.lead_days):
        landmark, index = first + elapsed - rule.lead_days + grain, first + elapsed
        week = int(np.ceil(landmark / 7)) - 1
        for key, weight in total.items():
            early = [v for v in key[0][1:] if v[0] <= week]
            if key[0][0][1] != first // 7 or any(makes for _, _, makes, _ in early) or len(early) + 1 == len(key[0]):
                continue
            # Every later visit up to the landmark's week is over by the landmark or not.
            for known in itertools.product((False, True), repeat=len(early)):
                if 1 + sum(known) >= min_visits:
                    chances = [
                        _chance(stays, j, (0.0, 7.0), (0.0, landmark - 7.0 * w) if over else (landmark - 7.0 * w, 99.0))
                        for (w, j, _, _), over in zip(early, known, strict=True)
                    ]
                    outcome = np.array(_outcome(stays, key, 1 + len(early), index))
                    expected += share * weight * np.prod(chances) * outcome
    values = Eligible(law, rule).values(Future(law, rule))
    found = population_likelihoods(law, rule, [values], np.array([elapsed]), num_nodes=16)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def _first_ends(stays: Stays, elapsed: float, lead_days: int) -> list[tuple[float, float]]:
    """Quadrature over the length of the entry stay, between all days at which a week or a clip changes."""
    if stays is SHORT:
        return [(0.0, 1.0)]
    corners = np.add.outer([0.0, 0.3, 6.0], 7.0 * np.arange(-1, 2)).ravel()
    breaks = np.unique([corners, corners - elapsed % 7.0, corners - (elapsed - lead_days) % 7.0])
    breaks = breaks[(breaks >= 0.3) & (breaks <= 6.0)]
    nodes = [(0.3, _length_by(stays, 0.3)), (6.0, 1.0 - _length_by(stays, 6.0 - 1e-12))]
    x, w = np.polynomial.legendre.leggauss(16)
    for a, b in itertools.pairwise(breaks):
        for day, weight in zip((a + b) / 2 + (b - a) / 2 * x, (b - a) / 2 * w, strict=True):
            odds = (day / 3.0) ** 2.2
            nodes.append((float(day), float(weight * 2.2 / day * odds / (1 + odds) ** 2)))
    return nodes


# ------------------------------------------------------------------------------------------- death and readmission
DISCHARGES = {
    "first stay": History(LONG, 2.5, (Seen(0, 0.0, 2.5),)),
    "second stay": History(LONG, 12.5, (Seen(0, 0.0, 2.5), Seen(1, 1.0, 5.5))),
    "over in the week after": History(LONG, 14.5, (Seen(0, 0.0, 2.5), Seen(1, 5.0, 7.5))),
    "diagnosed at the first": History(LONG, 12.5, (Seen(0, 0.0, 2.5, True), Seen(1, 1.0, 5.5))),
    "diagnosed at the second": History(LONG, 14.5, (Seen(0, 0.0, 2.5), Seen(1, 5.0, 7.5, True))),
}


def _risk(history: History, is_timed: bool, outcome: Callable[[Key], tuple[float, float]]) -> float:
    positive = negative = 0.0
    for key, weight in _summed(history.stays, history.weigh).items():
        if chance := history.chance(key, is_timed, ends=True):
            yes, no = outcome(key)
            positive, negative = positive + weight * chance * yes, negative + weight * chance * no
    return positive / (positive + negative)


@pytest.mark.parametrize("is_timed", [True, False])
@pytest.mark.parametrize("name", list(DISCHARGES))
def test_readmission_is_as_likely_as_in_the_enumeration(name: str, is_timed: bool) -> None:
    history = DISCHARGES[name]
    law, stays, number = _law(WEEKS, LONG), LONG, len(history.seen)
    belief = history.filters(law, ends=True)[not is_timed].run(history.shown, history.told)
    for days, keep_early_deaths in ((9, False), (16, True), (30, False)):
        end = history.landmark + days

        def outcome(key: Key, end: float = end, keep: bool = keep_early_deaths) -> tuple[float, float]:
            visits, died = key
            if visits[number - 1][3]:
                return 0.0, 0.0
            before = 0.0
            if len(visits) > number:
                week, blocks, _, _ = visits[number]
                before = _chance(stays, blocks, (0.0, min(max(end - 7.0 * week, 0.0), 7.0)), (0.0, 99.0))
                before *= _moment(stays, key, number + 1)
            after = _moment(stays, key, number) - before
            if died is not None and len(visits) == number and not keep:
                after *= 1.0 - min(max((np.floor(end) - 7.0 * died) / 7.0, 0.0), 1.0)
            return before, after

        week, diagnosed = int(history.landmark // 7), any(s.is_diagnosis for s in history.seen)
        found = admissions.readmission(
            law,
            belief[:, :, 0],
            np.array([week + 1]),
            np.array([end]),
            np.array([diagnosed]),
            keep_early_deaths=keep_early_deaths,
        )
        expected = _risk(history, is_timed, outcome)
        np.testing.assert_allclose(found, expected, rtol=1e-10 if is_timed else 1e-7)


@pytest.mark.parametrize("is_timed", [True, False])
@pytest.mark.parametrize("name", list(DISCHARGES))
def test_death_in_the_last_stay_is_as_likely_as_in_the_enumeration(name: str, is_timed: bool) -> None:
    history = DISCHARGES[name]
    law, number = _law(WEEKS, LONG), len(history.seen)
    week, diagnosed = np.array([int(history.landmark // 7)]), np.array([any(s.is_diagnosis for s in history.seen)])

    def of_next(key: Key) -> tuple[float, float]:
        visits, _ = key
        if len(visits) != number + 1:
            return 0.0, 0.0
        return (_moment(LONG, key, number), 0.0) if visits[-1][3] else (0.0, _moment(LONG, key, number))

    belief = history.filters(law, ends=True)[not is_timed].run(history.shown, history.told)
    found = admissions.LastStay(law).next(belief[:, :, 0], week + 1, diagnosed)
    np.testing.assert_allclose(found, _risk(history, is_timed, of_next), rtol=1e-10 if is_timed else 1e-7)

    def of_last(key: Key) -> tuple[float, float]:
        visits, _ = key
        return (float(visits[-1][3]), float(not visits[-1][3])) if len(visits) == number else (0.0, 0.0)

    if is_timed:
        last = history.seen[-1]
        begun = replace(
            history, landmark=7.0 * last.week + 7.0, seen=(*history.seen[:-1], replace(last, end=last.start))
        )
        exact = begun.filters(law)[0]
        exact.histories.visit_survived[-1] = False
        belief = np.zeros((1, TRAITS, LONG.longest + 1, STATES))
        belief[:, :, int(last.end // 7)] = exact.run(history.shown, history.told)[:, :, 0]
    else:
        belief = history.filters(law, ends=True, survived=False)[1].run(history.shown, history.told)
    found = admissions.LastStay(law).known(belief, week, diagnosed)
    np.testing.assert_allclose(found, _risk(history, is_timed, of_last), rtol=1e-10 if is_timed else 1e-7)


# ----------------------------------------------------------------------------------------------- many weeks, real laws
class ByWeeks(UntimedFilter):
    """The sums over all placements by the plain recursion over (weeks, visits) of the undiagnosed."""

    def _sums(self, rows: Ints, contour: Contour, known: Sequence[tuple[Floats, Floats]]) -> list[Sums]:
        found = [[self._of(row, home[row], seen) for row in rows] for home, seen in known]
        return [Sums(np.stack([s[0] for s in sums]), np.stack([s[1] for s in sums])) for sums in found]

    def _of(self, row: int, home: Floats, seen: Floats) -> tuple[Floats, Floats]:
        law, weeks, visits = self.law, self._weeks[row], self._visits[self._first[row] : self._first[row + 1]]
        quiet = law.before.quiet * law.lives
        now = np.zeros((weeks + 1, *home.shape))
        now[0] = home
        for week in range(weeks):
            now[week + 1] = np.einsum("ks,kst->kt", now[week], quiet)
        arrived = np.zeros_like(now)
        for visit in visits[1:]:
            moves = np.einsum("kest,et->kst", law.before.visit, seen[visit] / seen[visit].max()) * law.survives[0]
            arrived = np.einsum("wks,kst->wkt", now, moves)
            in_hospital, now = arrived, np.zeros_like(now)
            for blocks, share in enumerate(law.stays.blocks()):
                now[1 + blocks :] += share * in_hospital[: max(weeks - blocks, 0)]
                in_hospital = np.einsum("wks,kst->wkt", in_hospital, law.before.blocked)
            for week in range(weeks):
                now[week + 1] += np.einsum("ks,kst->kt", now[week], quiet)
        lags = range(law.stays.longest + 1)
        zero = np.zeros_like(home)
        scale = now[weeks].sum()
        return now[weeks] / scale, np.stack([arrived[weeks - k] if weeks >= k else zero for k in lags]) / scale


@pytest.mark.parametrize("time", [1.0, 0.0])
@pytest.mark.parametrize(("preset", "shape"), [("heart_failure", "mimic"), ("kidney", "trinetx")])
def test_contours_sum_over_placements_as_the_recursion_over_weeks_does(preset: str, shape: str, time: float) -> None:
    real = law_of(turn(population(preset, shape), Knobs(time=time)).shape, 1)
    rng = np.random.default_rng(1)
    records = [(1, 3), (2, 12), (4, 24), (12, 24), (1, 47), (3, 200), (0, 100), (9, 230), (12, 90), (40, 200), (38, 77)]
    patient, week = [], []
    for i, (visits, weeks) in enumerate(records):
        later = np.sort(rng.choice(np.arange(1, weeks), visits, replace=False))
        patient += [i] * (visits + 1)
        week += [0, *later.tolist()]
    start = 7.0 * np.array(week)
    histories = Histories(
        landmark=np.array([7.0 * weeks + 3.0 for _, weeks in records]),
        visit_patient=np.array(patient),
        visit_week=np.array(week),
        visit_start=start,
        visit_end=start,
        visit_survived=np.ones(len(week), bool),
        diagnosed=np.full(len(records), real.weeks),
    )
    seen, told = 0.05 + rng.random((len(week), NUM_EVENTS, NUM_STATES)) ** 2, np.ones((len(week), NUM_FAMILY))
    found, expected = (kind(real, histories).run(seen, told) for kind in (UntimedFilter, ByWeeks))
    np.testing.assert_allclose(found, expected, atol=1e-7)


@pytest.mark.parametrize("name", list(HISTORIES))
def test_several_kinds_of_evidence_are_each_judged_as_if_alone(name: str) -> None:
    history = HISTORIES[name]
    untimed = history.filters(_law(WEEKS, history.stays))[1]
    evidence = [(history.shown, history.told), (np.ones_like(history.shown), history.told)]
    for together, single in zip(untimed.runs(evidence), evidence, strict=True):
        np.testing.assert_allclose(together, untimed.run(*single), rtol=1e-12)
