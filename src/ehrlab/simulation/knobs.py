"""Knobs: one mechanism of a population at a time is weakened or taken out, for controlled experiments.

spec = turn(population("heart_failure", "mimic"), Knobs(order=0.0))
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ehrlab.core.errors import InputError
from ehrlab.simulation import chain
from ehrlab.simulation.spec import PRIMED, REFRACTORY, Shape, Spec


@dataclass(frozen=True)
class Knobs:
    """What is switched off, and how far.

    time        1: the chain moves with the calendar. 0: gaps between visits carry no information, since everything
                happens at visits, whose times depend on nothing (chain.VisitClock). Between: a share of the weeks
    order       1: A then B commits to the disease, B then A protects. 0: both commit alike
    null        the future is independent of the past: one hazard of the diagnosis, one rate of visits and one of death
                for all, each the mean of the population's
    prevalence  factor on the hazard of the diagnosis
    """

    time: float = 1.0
    order: float = 1.0
    null: bool = False
    prevalence: float = 1.0

    def __post_init__(self) -> None:
        for name in ("time", "order"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise InputError(f"simulator: {name} should lie in [0, 1], found {getattr(self, name)}; change it")
        if not 0.0 < self.prevalence <= 10.0:
            raise InputError(f"simulator: prevalence should lie in (0, 10], found {self.prevalence}; change it")


def turn(spec: Spec, knobs: Knobs) -> Spec:
    shape = replace(spec.shape, time=knobs.time, order=knobs.order)
    shape = replace(shape, hazard=tuple(knobs.prevalence * hazard for hazard in shape.hazard))
    if knobs.order < 1.0:
        shape = _without_order(shape, knobs.order)
    if knobs.null:
        shape = _null(shape)
    return replace(spec, shape=shape)


def _without_order(shape: Shape, order: float) -> Shape:
    """REFRACTORY (B came first) becomes as PRIMED (A came first) is: in hazard, prodrome, death and duration.

    What B then A does to it is in chain.stage_kernel.
    """

    def mixed(values: tuple[float, ...], refractory: int, primed: int) -> tuple[float, ...]:
        changed = order * values[refractory] + (1.0 - order) * values[primed]
        return tuple(changed if i == refractory else value for i, value in enumerate(values))

    return replace(
        shape,
        hazard=mixed(shape.hazard, REFRACTORY, PRIMED),
        prodrome_code=mixed(shape.prodrome_code, REFRACTORY, PRIMED),
        death_at_visit=mixed(shape.death_at_visit, REFRACTORY, PRIMED),
        stage_weeks=mixed(shape.stage_weeks, REFRACTORY - 1, PRIMED - 1),  # STABLE has none
    )


def _null(shape: Shape) -> Shape:
    """What a visit shows still depends on the state; what happens later depends on nothing."""
    undiagnosed = np.mean([_undiagnosed(shape, family) for family in range(chain.NUM_FAMILY)], axis=0)
    states = undiagnosed.sum(0) / undiagnosed.sum()
    stages = states.reshape(chain.NUM_STAGES, -1).sum(1)
    ever = 1.0 - undiagnosed[-1].sum()
    visit_rate = float(np.array(shape.visit_rate)[chain.REGIME_OF] @ states)
    death = float(np.array(shape.death_at_visit) @ stages)
    return replace(
        shape,
        hazard=(float(1.0 - (1.0 - ever) ** (1.0 / shape.weeks)),) * chain.NUM_STAGES,
        risk_hazard=(1.0, 1.0, 1.0),
        frailty=(1.0,) * len(shape.frailty),
        visit_rate=(visit_rate, visit_rate, visit_rate),
        prodrome_visits=1.0,
        death_at_visit=(death,) * chain.NUM_STAGES,
        intense_death=1.0,
        diagnosed_death=1.0,
        risk_death=(1.0, 1.0, 1.0),
    )


def _undiagnosed(shape: Shape, family: int) -> chain.Array:
    """P(state, not diagnosed yet) after each week of a patient of middle risk who lives on: [week, state]."""
    moves, stays = chain.kernel(shape, 1, family), 1.0 - chain.diagnosis_hazard(shape, 1)
    probability, out = chain.start(shape, 1), np.empty((shape.weeks, chain.NUM_STATES))
    for week in range(shape.weeks):
        events = chain.event_probability(shape, entry=week == 0)
        probability = probability @ np.tensordot(events, moves, 1) * stays
        out[week] = probability
    return out
