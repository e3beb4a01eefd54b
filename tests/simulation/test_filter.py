"""The exact filter against the enumeration of every path of a tiny chain."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest
from scipy.integrate import quad

from ehrlab.simulation.filter import Filter, Histories, Law, Weeks
from ehrlab.simulation.first_diagnosis import (
    Eligible,
    Future,
    Rule,
    likelihoods,
    population_likelihoods,
)
from ehrlab.simulation.spec import MIMIC, TRINETX
from ehrlab.simulation.stays import Stays

TRAITS, EVENTS, STATES = 2, 2, 2
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


def _chance(
    stays: Stays, blocks: int, begin: tuple[float, float], over: tuple[float, float], *, entry: bool = False
) -> float:
    """P(begun between two days of the week, over between two, blocking so many weeks)."""
    low, high = max(over[0], 7.0 * blocks), min(over[1], 7.0 * blocks + 7.0)
    if high <= low:
        return 0.0
    if entry:
        return _length_by(stays, high) - _length_by(stays, low)
    edges = sorted({min(max(b, begin[0]), begin[1]) for e in (low, high) for b in (e, e - 0.3, e - 6.0, *begin)})
    return sum(
        quad(lambda u: (_length_by(stays, high - u) - _length_by(stays, low - u)) / 7.0, a, b, epsabs=1e-13)[0]
        for a, b in itertools.pairwise(edges)
    )


def _density(stays: Stays, day: float) -> float:
    """Of the day on which a visit is over."""
    return (_length_by(stays, day) - (_length_by(stays, day - 7.0) if day >= 7.0 else 0.0)) / 7.0


# --------------------------------------------------------------------------------------------------------- every path
@dataclass(frozen=True)
class Visit:
    week: int
    event: int
    state: int
    blocks: int
    is_first_diagnosis: bool
    is_fatal: bool


@dataclass(frozen=True)
class Path:
    trait: int
    visits: tuple[Visit, ...]
    states: tuple[int, ...]
    weight: float  # without the law of the visits' moments


def _paths(law: Law) -> Iterator[Path]:
    for trait in range(law.num_traits):
        yield from _extend(law, trait, (), (), law.prior[trait], 0, 0, False)


def _extend(
    law: Law,
    trait: int,
    visits: tuple[Visit, ...],
    states: tuple[int, ...],
    weight: float,
    week: int,
    blocked: int,
    diagnosed: bool,
) -> Iterator[Path]:
    if weight == 0.0:
        return
    if week == law.weeks:
        yield Path(trait, visits, states, weight)
        return
    weeks = law.after if diagnosed else law.before
    for new in range(STATES):
        path = (*states, new)
        if blocked:
            yield from _extend(
                law,
                trait,
                visits,
                path,
                weight * weeks.blocked[trait, states[-1], new],
                week + 1,
                blocked - 1,
                diagnosed,
            )
            continue
        if week:
            quiet = weight * weeks.quiet[trait, states[-1], new]
            yield from _extend(law, trait, visits, path, quiet * law.lives, week + 1, 0, diagnosed)
            yield Path(trait, visits, path, quiet * (1.0 - law.lives))
        for event, first in itertools.product(range(EVENTS), (False, True)):
            if week:
                move = (weeks.diagnosis if first else weeks.visit)[trait, event, states[-1], new]
            else:
                move = (law.entry_diagnosis if first else law.entry_visit)[trait, event, new]
            ill = diagnosed or first
            survives = law.survives[int(ill), new]
            for blocks in range(law.stays.longest + 1):
                visit = Visit(week, event, new, blocks, first, False)
                dead = replace(visit, is_fatal=True)
                yield Path(trait, (*visits, dead), path, weight * move * (1.0 - survives))
                yield from _extend(law, trait, (*visits, visit), path, weight * move * survives, week + 1, blocks, ill)


Key = tuple[tuple[int, int, bool, bool], ...]


def _summed(law: Law, weigh: Callable[[Path], float]) -> dict[Key, float]:
    """Total weight of the paths with the same visits: (week, blocked weeks, first diagnosis, fatal) each."""
    out: dict[Key, float] = {}
    for path in _paths(law):
        if (weight := path.weight * weigh(path)) > 0.0:
            key = tuple((v.week, v.blocks, v.is_first_diagnosis, v.is_fatal) for v in path.visits)
            out[key] = out.get(key, 0.0) + weight
    return out


def _outcome(stays: Stays, key: Key, index: float, moments: dict[int, Callable[[int], float]]) -> tuple[float, float]:
    """Density of a case and probability of a control at `index`; `moments`: week -> P(what is seen of it | blocks)."""

    def chance(week: int, blocks: int) -> float:
        return moments[week](blocks) if week in moments else _chance(stays, blocks, (0.0, 7.0), (0.0, 99.0))

    chances = [chance(week, blocks) for week, blocks, _, _ in key]
    for i, (week, blocks, first, _) in enumerate(key):
        if first:
            day = index - 7.0 * week
            made = _density(stays, day) if week not in moments and blocks == day // 7 else 0.0
            return float(np.prod(chances[:i] + chances[i + 1 :])) * made, 0.0
    week, blocks, _, _ = key[-1]
    if week in moments and blocks == 0 and stays is SHORT:
        return 0.0, 0.0
    late = _chance(stays, blocks, (0.0, 7.0), (index - 7.0 * week, 99.0)) if week not in moments else 0.0
    return 0.0, float(np.prod(chances[:-1])) * late


@dataclass(frozen=True)
class Seen:
    week: int
    start: float  # day of the week
    end: float  # day of the week; inf where it goes on at the landmark


def _likelihood(visit: int) -> np.ndarray:
    return 0.1 + np.random.default_rng(visit).random((EVENTS, STATES))


CASES = {
    "quiet": (LONG, 15.5, [Seen(0, 0.0, 2.5), Seen(1, 1.0, 4.0)]),
    "stay over in the landmark's week": (LONG, 15.5, [Seen(0, 0.0, 5.0), Seen(1, 5.0, 7.9)]),
    "visit in the landmark's week": (LONG, 16.5, [Seen(0, 0.0, 2.5), Seen(2, 0.5, 1.5)]),
    "stay that goes on": (LONG, 16.5, [Seen(0, 0.0, 2.5), Seen(2, 1.0, np.inf)]),
    "stay that goes on from the week before": (LONG, 14.5, [Seen(0, 0.0, 2.5), Seen(1, 4.0, np.inf)]),
    "landmark at a week's end": (LONG, 14.0, [Seen(0, 0.0, 2.5)]),
    "dates only": (SHORT, 16.0, [Seen(0, 0.0, 0.0), Seen(1, 3.0, 3.0)]),
    "visit on the landmark's date": (SHORT, 16.0, [Seen(0, 0.0, 0.0), Seen(2, 1.0, 1.0)]),
}
WEEKS = 5


@pytest.mark.parametrize("name", list(CASES))
def test_history_weighs_outcomes_as_the_enumeration_of_all_paths_does(name: str) -> None:
    stays, landmark, seen = CASES[name]
    law, grain = _law(WEEKS, stays), int(stays is SHORT)
    rule = Rule(lead_days=16 if stays is LONG else 14, num_controls=3, min_visits=2, grain_days=grain)
    index = landmark - grain + rule.lead_days
    week = int(np.ceil(landmark / 7)) - 1
    shown = np.stack([_likelihood(i) for i in range(len(seen))])
    family = np.array([[0.3, 0.9], [0.8, 0.5]])[: len(seen)]
    going_on = [not np.isfinite(s.end) for s in seen]

    moments: dict[int, Callable[[int], float]] = {}
    for s in seen:
        if np.isfinite(s.end):
            moments[s.week] = lambda blocks, s=s: float(blocks == s.end // 7)
        else:
            lasted = landmark - 7 * s.week - s.start
            moments[s.week] = lambda blocks, s=s, lasted=lasted: max(
                _length_by(stays, 7 * blocks + 7 - s.start) - _length_by(stays, max(7 * blocks - s.start, lasted)), 0.0
            )
    if week not in moments:
        moments_open = landmark - 7.0 * week

    def weigh(path: Path) -> float:
        weight = 1.0
        begun = [v for v in path.visits if v.week < week or (v.week == week and week in moments)]
        if [v.week for v in begun] != [s.week for s in seen]:
            return 0.0
        for i, visit in enumerate(begun):
            if visit.is_first_diagnosis and not going_on[i]:
                return 0.0
            if not going_on[i]:
                weight *= shown[i, visit.event, visit.state] * family[i, path.trait]
        return weight

    expected = np.zeros(2)
    for key, weight in _summed(law, weigh).items():
        known = dict(moments)
        if week not in moments:
            known_open = lambda blocks: _chance(stays, blocks, (moments_open, 7.0), (0.0, 99.0))  # noqa: E731
            if any(w == week and first for w, _, first, _ in key):
                continue  # a diagnosis within days of the landmark is neither outcome
            known[week] = known_open
        expected += weight * np.array(_outcome(stays, key, index, known))

    histories = Histories(
        landmark=np.array([landmark]),
        visit_patient=np.zeros(len(seen), np.int64),
        visit_week=np.array([s.week for s in seen]),
        visit_start=np.array([7 * s.week + s.start for s in seen]),
        visit_end=np.array([7 * s.week + s.end for s in seen]),
        visit_survived=np.ones(len(seen), bool),
        diagnosed=np.array([law.weeks]),
    )
    belief = Filter(law, histories).run(shown, family)
    np.testing.assert_allclose(belief.sum(), 1.0)
    found = likelihoods(Future(law, rule), histories.landmark_week, np.array([index]), belief)[0]
    assert min(expected) > 0
    np.testing.assert_allclose(found[0] / found[1], expected[0] / expected[1], rtol=1e-10)


@pytest.mark.parametrize("min_visits", [1, 2, 3])
@pytest.mark.parametrize(("stays", "elapsed"), [(LONG, 28.3), (LONG, 30.0), (LONG, 33.9), (SHORT, 29.0), (SHORT, 33.0)])
def test_eligible_population_weighs_outcomes_as_the_enumeration_does(
    stays: Stays, elapsed: float, min_visits: int
) -> None:
    law, grain = _law(WEEKS, stays), int(stays is SHORT)
    rule = Rule(lead_days=16 if stays is LONG else 14, num_controls=3, min_visits=min_visits, grain_days=grain)
    total = _summed(law, lambda path: 1.0)
    corners = np.add.outer([0.0, 0.3, 6.0], 7.0 * np.arange(-1, 2)).ravel()
    breaks = np.concatenate([corners, corners - elapsed % 7.0, corners - (elapsed - rule.lead_days) % 7.0])
    breaks = np.unique(breaks)
    breaks = breaks[(breaks >= 0.3) & (breaks <= 6.0)]
    if stays is SHORT:
        nodes = [(0.0, 1.0)]
    else:
        x, w = np.polynomial.legendre.leggauss(24)
        nodes = [(0.3, _length_by(stays, 0.3)), (6.0, 1.0 - _length_by(stays, 6.0 - 1e-12))]
        for a, b in itertools.pairwise(breaks):
            for node, weight in zip((a + b) / 2 + (b - a) / 2 * x, (b - a) / 2 * w, strict=True):
                ratio = (node / 3.0) ** 2.2
                nodes.append((float(node), float(weight * 2.2 / node * ratio / (1 + ratio) ** 2)))
    expected = np.zeros(2)
    for first, share in nodes:
        landmark = first + elapsed - rule.lead_days + grain
        index = first + elapsed
        week = int(np.ceil(landmark / 7)) - 1
        for key, weight in total.items():
            if key[0][1] != first // 7 or key[0][2]:
                continue
            # Every later visit up to the landmark's week is over by the landmark or not.
            early = [v for v in key[1:] if v[0] <= week]
            for known in itertools.product((False, True), repeat=len(early)):
                if 1 + sum(known) < min_visits:
                    continue
                moments: dict[int, Callable[[int], float]] = {0: lambda blocks: 1.0}
                for (w, _, diagnosed, _), over in zip(early, known, strict=True):
                    edge = landmark - 7.0 * w
                    bounds = (0.0, edge) if over else (edge, 99.0)
                    if diagnosed:
                        continue
                    moments[w] = lambda blocks, bounds=bounds: _chance(stays, blocks, (0.0, 7.0), bounds)
                if any(d for _, _, d, _ in early):
                    continue
                expected += share * weight * np.array(_outcome(stays, key, index, moments))
    values = Eligible(law, rule).values(Future(law, rule))
    found = population_likelihoods(law, rule, [values], np.array([elapsed]), num_nodes=16)[0, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-9)
