"""Intensive-care stays, hour by hour: breathing and circulation, what is charted of them, and how they are treated.

A stay has two hidden hourly chains, respiratory {well, strained, failing} and circulatory {well, strained, shock}. They
are independent given the class of the stay: whether the admission ends in death, and whether trigger B brought it. The
class acts on the law of the first hour and on how fast things get worse, so that death, respiratory failure and shock
can be foreseen from the vital signs. Each vital sign hangs on one chain: its mean on the state and on a baseline of
the stay that nothing shows (three levels), whether it is charted on the state.

In every hour of failing the patient is ventilated (PEEP is charted), in every hour of shock a vasopressor runs: the
worst state of a chain is in the open, the other two are not. First hours are the onsets of respiratory failure (ARF)
and shock.

Times are whole minutes. How long a stay lasts depends on the class through death alone, and on the chains not at all.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ehrlab.simulation.care import CARE, NUM_BASELINES, NUM_CLASSES, NUM_LEVELS, WORST, Care, Chain, Vital
from ehrlab.simulation.chain import Array
from ehrlab.simulation.measure import split
from ehrlab.simulation.population import Bools, Floats, Ints, Shard
from ehrlab.simulation.spec import EVENTS
from ehrlab.simulation.streams import Stream, choose, stream

DAY = 1440  # minutes

_TRIGGER_B = EVENTS.index("trigger_b")


# ------------------------------------------------------------------------------------------------------------- matrices
def start_law(chain: Chain) -> Array:
    """[class, state]"""
    return np.array(chain.start)


def kernel(chain: Chain) -> Array:
    """P(state of the next hour | class, state): [class, state, state]."""
    out = np.zeros((NUM_CLASSES, NUM_LEVELS, NUM_LEVELS))
    for k, worse in enumerate(chain.worse):
        for level in range(NUM_LEVELS - 1):
            out[k, level, level + 1] = chain.worsen[level] * worse
            out[k, level + 1, level] = chain.recover[level] / worse
        out[k] += np.diag(1.0 - out[k].sum(1))
    return out


def charted_law(vital: Vital, value: Floats) -> Array:
    """P(charted, and this number | state, baseline): [..., state, baseline]; NaN means not charted."""
    value = np.asarray(value, np.float64)[..., None, None]
    shift = np.array(vital.shift)[:, None] + vital.offset * (np.arange(NUM_BASELINES) - 1.0)
    charted = np.array(vital.charted)[:, None]
    missing = np.isnan(value)
    shown = charted * vital.scale.probability(np.where(missing, vital.scale.mean, value), shift)
    return np.where(missing, 1.0 - charted, shown)


# -------------------------------------------------------------------------------------------------------------- drawing
@dataclass(frozen=True, eq=False)
class Stays:
    """One entry per stay, by visit. Minutes since the start of the patient's entry week."""

    visit: Ints  # row of Visits, ascending; at most one stay each
    first_minute: Ints
    num_minutes: Ints
    baseline: Ints  # [stay, chain] 0, 1, 2; hidden

    @property
    def num_hours(self) -> Ints:
        """Hours begun: hour t is [60 t, 60 t + 60) minutes into the stay."""
        return -(-self.num_minutes // 60)


@dataclass(frozen=True, eq=False)
class Course:
    """What happens in the stays: the hours of stay i are rows begin[i] to begin[i + 1]."""

    begin: Ints  # [stay + 1]
    states: np.ndarray  # [hour, chain] int8; hidden but for the worst
    minute: Ints  # [hour] of charting, since the start of the patient's entry week
    values: Floats  # [hour, vital] as charted, NaN where not
    uniform: Floats  # [hour, chain] free for the details of a treatment that begins in the hour


def draw_stays(shard: Shard, care: Care = CARE) -> Stays:
    """No stay where visits are no hospital stays."""
    visits, shape = shard.visits, shard.spec.shape
    if shape.stay_days is None:
        return Stays(*(np.zeros(size, np.int64) for size in (0, 0, 0, (0, len(care.chains)))))
    rng = stream(shard.spec.disease.name, shard.seed, shard.block, Stream.ICU)
    u = rng.random((len(visits.patient), 3 + len(care.chains)))
    low, high = np.array(care.share)[visits.is_fatal.astype(np.int64)].T
    length = (low + (high - low) * u[:, 0]) * (visits.end_day - visits.start_day)
    first = np.floor((visits.start_day + care.boarding * u[:, 1]) * DAY).astype(np.int64)
    minutes = np.maximum(np.floor(length * DAY).astype(np.int64), 1)
    baseline = np.stack([choose(chain.baseline, u[:, 3 + c]) for c, chain in enumerate(care.chains)], 1)
    visit = np.flatnonzero(u[:, 2] < care.admitted)
    return Stays(visit, first[visit], minutes[visit], baseline[visit])


def stay_class(shard: Shard, visit: Ints) -> Ints:
    """2 * fatal + trigger B of each visit."""
    visits = shard.visits
    is_b = shard.latent.events[visits.patient[visit], visits.week[visit]] == _TRIGGER_B
    return 2 * visits.is_fatal[visit] + is_b


def draw_course(shard: Shard, stays: Stays, care: Care = CARE) -> Course:
    num_hours = stays.num_hours
    begin = np.concatenate([[0], np.cumsum(num_hours)])
    classes = stay_class(shard, stays.visit)
    # One row per hour, in the order of the stays: an hour does not depend on how many stays follow.
    rng = stream(shard.spec.disease.name, shard.seed, shard.block, Stream.ICU_HOUR)
    num_chains, num_vitals = len(care.chains), len(care.vitals)
    u = rng.random((begin[-1], 2 * num_chains + 1 + num_vitals))
    states = np.stack([_run(chain, classes, begin, u[:, c]) for c, chain in enumerate(care.chains)], 1)
    stay = np.repeat(np.arange(len(num_hours)), num_hours)
    hour = np.arange(begin[-1]) - begin[stay]
    left = np.minimum(stays.num_minutes[stay] - 60 * hour, 60)
    minute = stays.first_minute[stay] + 60 * hour + np.floor(u[:, num_chains] * left).astype(np.int64)
    values = np.full((begin[-1], num_vitals), np.nan)
    for v, vital in enumerate(care.vitals):
        state = states[:, vital.chain]
        hit, score = split(u[:, num_chains + 1 + v], np.array(vital.charted)[state])
        shift = np.array(vital.shift)[state[hit]] + vital.offset * (stays.baseline[stay[hit], vital.chain] - 1.0)
        values[hit, v] = vital.scale.written(score + shift)
    return Course(begin, states, minute, values, u[:, -num_chains:])


def _run(chain: Chain, classes: Ints, begin: Ints, uniform: Floats) -> np.ndarray:
    """States of one chain in every hour: low uniforms make it worse, high ones better."""
    moves = kernel(chain)
    worse = np.concatenate([moves[:, :-1, 1:].diagonal(axis1=1, axis2=2), np.zeros((NUM_CLASSES, 1))], 1)
    better = np.concatenate([np.zeros((NUM_CLASSES, 1)), moves[:, 1:, :-1].diagonal(axis1=1, axis2=2)], 1)
    out = np.empty(len(uniform), np.int8)
    # Longest stays first: those that still run in an hour are then a slice.
    num_hours = np.diff(begin)
    order = np.argsort(-num_hours, kind="stable")
    row, of_class = begin[:-1][order], classes[order]
    running = len(order) - np.searchsorted(num_hours[order][::-1], np.arange(1, num_hours.max(initial=0) + 1))
    starts = np.cumsum(start_law(chain), 1)[:, :-1]
    state = (uniform[row][:, None] >= starts[of_class]).sum(1)
    out[row] = state
    worse, better = worse.ravel(), 1.0 - better.ravel()
    base = of_class * NUM_LEVELS
    for hour, n in enumerate(running[1:].tolist(), start=1):
        now, u = base[:n] + state[:n], uniform[row[:n] + hour]
        state[:n] += (u < worse[now]).astype(np.int64) - (u >= better[now])
        out[row[:n] + hour] = state[:n]
    return out


# ------------------------------------------------------------------------------------------------------------ treatment
@dataclass(frozen=True, eq=False)
class Episodes:
    """Runs of hours in the worst state of a chain, by stay and time: how long a treatment lasts."""

    stay: Ints
    hour: Ints  # row of the course: the first
    start: Ints  # minute
    end: Ints  # minute, after the start
    uniform: Floats


def episodes(stays: Stays, course: Course, chain: int) -> Episodes:
    num_hours = np.diff(course.begin)
    stay = np.repeat(np.arange(len(num_hours)), num_hours)
    bad = course.states[:, chain] == WORST
    is_new = np.concatenate([[True], stay[1:] != stay[:-1]]) if len(stay) else np.zeros(0, bool)
    first = np.flatnonzero(bad & (is_new | ~np.concatenate([[False], bad[:-1]])))
    is_last = np.concatenate([is_new[1:], [True]]) if len(stay) else is_new
    last = np.flatnonzero(bad & (is_last | ~np.concatenate([bad[1:], [False]])))
    of = stay[first]
    end_of_hour = stays.first_minute[of] + np.minimum(60 * (last - course.begin[of] + 1), stays.num_minutes[of])
    return Episodes(of, first, course.minute[first], np.maximum(end_of_hour, course.minute[first] + 1),
                    course.uniform[first, chain])  # fmt: skip


def onset_hour(course: Course, chain: int) -> Ints:
    """First hour of each stay in the worst state; the number of its hours where there is none."""
    num_hours = np.diff(course.begin)
    hour = np.arange(course.begin[-1]) - np.repeat(course.begin[:-1], num_hours)
    never = np.repeat(num_hours, num_hours)
    candidate = np.where(course.states[:, chain] == WORST, hour, never)
    return np.minimum.reduceat(candidate, course.begin[:-1]) if len(num_hours) else num_hours


def is_worst(course: Course) -> Bools:
    """[hour, chain]: what the treatments show of the chains."""
    return course.states == WORST
