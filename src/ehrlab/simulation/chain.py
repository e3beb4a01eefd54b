"""The latent weekly chain of one patient, as exact matrices.

State = (stage, care regime, moderator disease): 5 x 3 x 2 = 30 states, index (stage * 3 + regime) * 2 + moderator.
In a week: a trigger event (none, A, B) happens; the state moves given the event; then, given event and *new* state,
the diagnosis, the visit, its codes and death are drawn. What a week shows therefore depends on (event, state) only,
which is what makes an exact forward filter possible.

The mechanisms that a model has to find: A primes, and priming fades with calendar time; B on a primed patient commits
to the disease, B on a stable one protects for a while (so A -> B harms and B -> A does not); the care regime decides
how often a patient is seen, so that the number of visits says little about the time that has passed.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.spec import EARLY, LATE, PRIMED, REFRACTORY, REGIMES, STABLE, STAGES, Shape

Array = NDArray[np.float64]

NUM_STAGES, NUM_REGIMES, NUM_MODERATOR, NUM_EVENTS = len(STAGES), len(REGIMES), 2, 3
NUM_STATES = NUM_STAGES * NUM_REGIMES * NUM_MODERATOR
NUM_RISK, NUM_FAMILY = 3, 2

_INDEX = np.arange(NUM_STATES)
STAGE_OF = _INDEX // (NUM_REGIMES * NUM_MODERATOR)
REGIME_OF = _INDEX // NUM_MODERATOR % NUM_REGIMES
MODERATOR_OF = _INDEX % NUM_MODERATOR
INTENSE = REGIMES.index("intense")


def _stay(mean_weeks: float) -> float:
    return float(np.exp(-1.0 / mean_weeks))


def event_probability(shape: Shape, entry: bool = False) -> Array:
    """P(none), P(A), P(B) in a week; `entry` is the first week, whose visit brings the patient into the record."""
    a, b = shape.entry_events if entry else (shape.rate_a, shape.rate_b)
    return np.array([1.0 - a - b, a, b])


def stage_kernel(shape: Shape, family: int) -> Array:
    """P(new stage | event, moderator, stage): [event, moderator, stage, stage]."""
    idle = np.eye(NUM_STAGES)
    primed, early, late, refractory = (_stay(weeks) for weeks in shape.stage_weeks)
    for stage, stay in ((PRIMED, primed), (LATE, late), (REFRACTORY, refractory)):
        idle[stage] = 0.0
        idle[stage, stage], idle[stage, STABLE] = stay, 1.0 - stay
    idle[EARLY] = 0.0
    idle[EARLY, LATE] = 1.0 - early
    idle[EARLY, STABLE] = early * (1.0 - late)
    idle[EARLY, EARLY] = early * late
    kernel = np.empty((NUM_EVENTS, NUM_MODERATOR, NUM_STAGES, NUM_STAGES))
    reversible = 1.0 - shape.order
    for moderator in range(NUM_MODERATOR):
        commit = shape.commit[moderator] * (1.0 if family else shape.without_family)
        committed = commit * np.eye(NUM_STAGES)[EARLY] + (1.0 - commit) * np.eye(NUM_STAGES)[STABLE]
        a, b = idle.copy(), idle.copy()
        a[STABLE] = a[PRIMED] = np.eye(NUM_STAGES)[PRIMED]  # A on a primed patient renews the priming
        b[STABLE] = np.eye(NUM_STAGES)[REFRACTORY]
        b[PRIMED] = committed
        # Without order, B first is to A what A first is to B: it primes, and B renews it.
        a[REFRACTORY] = shape.order * idle[REFRACTORY] + reversible * committed
        b[REFRACTORY] = shape.order * idle[REFRACTORY] + reversible * np.eye(NUM_STAGES)[REFRACTORY]
        kernel[:, moderator] = idle, a, b
    return kernel


def regime_kernel(shape: Shape) -> Array:
    """P(new regime | event, regime): [event, regime, regime]. A trigger event may escalate care to intense."""
    idle = np.empty((NUM_REGIMES, NUM_REGIMES))
    for regime, weeks in enumerate(shape.regime_weeks):
        idle[regime] = (1.0 - _stay(weeks)) / (NUM_REGIMES - 1)
        idle[regime, regime] = _stay(weeks)
    escalated = (1.0 - shape.escalate) * idle
    escalated[:, INTENSE] += shape.escalate
    return np.stack([idle, escalated, escalated])


def kernel(shape: Shape, risk: int, family: int) -> Array:
    """P(new state | event, state): [event, state, state]. The moderator disease stays and acts from the week after."""
    onset = shape.moderator_onset[risk]
    moderator = np.array([[1.0 - onset, onset], [0.0, 1.0]])
    joint = np.einsum("ekab,ecd,kl->eackbdl", stage_kernel(shape, family), regime_kernel(shape), moderator)
    return joint.reshape(NUM_EVENTS, NUM_STATES, NUM_STATES)


def start(shape: Shape, risk: int) -> Array:
    """State before the entry week: regimes in proportion to their mean stay, moderator at its prevalence: [state]."""
    regimes = np.array(shape.regime_weeks) / sum(shape.regime_weeks)
    moderator = np.array([1.0 - shape.moderator_start[risk], shape.moderator_start[risk]])
    return np.einsum("z,m,k->zmk", np.array(shape.start_stage), regimes, moderator).reshape(NUM_STATES)


def diagnosis_hazard(shape: Shape, risk: int) -> Array:
    """P(first diagnosis this week | state, not yet diagnosed, at home): [state]. It is always made at a visit."""
    return np.array(shape.hazard)[STAGE_OF] * shape.risk_hazard[risk]


def visit_probability(shape: Shape, frailty: int) -> Array:
    """P(visit this week | event, state, at home): [event, state]. The entry week and a diagnosis are visits by rule."""
    rate = shape.frailty[frailty] * np.array(shape.visit_rate)[REGIME_OF]
    rate = rate * np.where((STAGE_OF == EARLY) | (STAGE_OF == LATE), shape.prodrome_visits, 1.0)
    routine = 1.0 - np.exp(-rate)
    triggered = 1.0 - (1.0 - routine) * (1.0 - shape.event_visit)
    return np.stack([routine, triggered, triggered])


def flag_probability(shape: Shape) -> Array:
    """P(flag | visit, event, state) for A, B, prodrome, moderator, independent of each other: [flag, event, state]."""
    flags = np.zeros((4, NUM_EVENTS, NUM_STATES))
    flags[0] = shape.false_code[0]
    flags[1] = shape.false_code[1]
    flags[0, 1] = flags[1, 2] = shape.hit
    flags[2] = np.array(shape.prodrome_code)[STAGE_OF]
    flags[3] = np.array(shape.moderator_code)[MODERATOR_OF]
    return flags


def visit_death_probability(shape: Shape, risk: int, diagnosed: bool) -> Array:
    """P(the visit ends in death | state): [state]."""
    probability = np.array(shape.death_at_visit)[STAGE_OF] * shape.risk_death[risk]
    probability = probability * np.where(REGIME_OF == INTENSE, shape.intense_death, 1.0)
    return np.minimum(probability * (shape.diagnosed_death if diagnosed else 1.0), 1.0)


def marginal(shape: Shape, risk: int, family: int, weeks: int) -> Array:
    """Exact distribution of the state after each of the first `weeks` weeks: [weeks, state]."""
    moves = kernel(shape, risk, family)
    probability, out = start(shape, risk), np.empty((weeks, NUM_STATES))
    for week in range(weeks):
        probability = probability @ np.tensordot(event_probability(shape, entry=week == 0), moves, 1)
        out[week] = probability
    return out


# ------------------------------------------------------------------------------------------------------- visit clock
@dataclass(frozen=True, eq=False)
class VisitClock:
    """The law of weeks in which time passes at visits only (Shape.time < 1 mixes such weeks in).

    Whether a patient comes does not depend on the state; events, moves and the diagnosis happen at a visit, which moves
    the chain by as many weeks as visits lie apart on average. So gaps between visits carry no information.
    """

    visit: float  # P(visit) in a week
    weeks: int  # by which a visit moves the chain
    event: Array  # P(none), P(A), P(B) at a visit


@functools.lru_cache(maxsize=64)
def visit_clock(shape: Shape, frailty: int) -> VisitClock:
    """As many visits and events as in the calendar's weeks: their mean over the record of a patient of middle risk."""
    states = np.mean([marginal(shape, 1, family, shape.weeks) for family in range(NUM_FAMILY)], axis=(0, 1))
    events = event_probability(shape)
    visit = float(events @ visit_probability(shape, frailty) @ states)
    at_visit = np.minimum(events[1:] * shape.event_visit / visit, 0.5)
    return VisitClock(visit, max(round(1.0 / visit), 1), np.array([1.0 - at_visit.sum(), *at_visit]))


def visit_clock_kernel(shape: Shape, risk: int, frailty: int, family: int) -> Array:
    """P(new state | event at the visit, state) of the visit clock: [event, state, state]."""
    moves = kernel(shape, risk, family)
    waiting = np.linalg.matrix_power(moves[0], visit_clock(shape, frailty).weeks - 1)
    return waiting @ moves


def visit_clock_hazard(shape: Shape, risk: int, frailty: int) -> Array:
    """P(first diagnosis at the visit | state after its move, not yet diagnosed): [state]."""
    return 1.0 - (1.0 - diagnosis_hazard(shape, risk)) ** visit_clock(shape, frailty).weeks


# ------------------------------------------------------------------------------------------------- a week as matrices
@dataclass(frozen=True, eq=False)
class Week:
    """P(what happens, new state | state) of a patient who is alive and at home; death elsewhere comes on top.

    quiet      no visit, and so no diagnosis: [state, state]
    visit      visit with this event that does not make the first diagnosis: [event, state, state]
    diagnosis  visit with this event that makes the first diagnosis: [event, state, state]; zero once diagnosed
    blocked    of a patient in hospital, to whom nothing else happens: [state, state]
    """

    quiet: Array
    visit: Array
    diagnosis: Array
    blocked: Array


def week(
    shape: Shape, risk: int, frailty: int, family: int, *, entry: bool = False, is_diagnosed: bool = False
) -> Week:
    """All that an exact filter needs to know of a week, with the knobs in it. `entry`: the first, a visit by rule."""
    moves = kernel(shape, risk, family)
    hazard = np.zeros(NUM_STATES) if is_diagnosed else diagnosis_hazard(shape, risk)
    events = event_probability(shape, entry)[:, None, None]
    visit = np.ones((NUM_EVENTS, NUM_STATES)) if entry else visit_probability(shape, frailty)
    idle = np.tensordot(event_probability(shape), moves, 1)
    calendar = Week(
        quiet=(events * moves * ((1.0 - visit) * (1.0 - hazard))[:, None, :]).sum(0),
        visit=events * moves * (visit * (1.0 - hazard))[:, None, :],
        diagnosis=events * moves * hazard,
        blocked=idle,
    )
    if entry or shape.time == 1.0:
        return calendar
    clock = visit_clock(shape, frailty)
    hazard = np.zeros(NUM_STATES) if is_diagnosed else visit_clock_hazard(shape, risk, frailty)
    arrives = clock.visit * clock.event[:, None, None] * visit_clock_kernel(shape, risk, frailty, family)
    return Week(
        quiet=shape.time * calendar.quiet + (1.0 - shape.time) * (1.0 - clock.visit) * np.eye(NUM_STATES),
        visit=shape.time * calendar.visit + (1.0 - shape.time) * arrives * (1.0 - hazard),
        diagnosis=shape.time * calendar.diagnosis + (1.0 - shape.time) * arrives * hazard,
        blocked=shape.time * calendar.blocked + (1.0 - shape.time) * np.eye(NUM_STATES),
    )
