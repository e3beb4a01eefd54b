"""Exact laws of a block: kernel, start, and the chance that a target stays away for the rest of a record.

A week: the state moves, then a visit is made with a probability that depends on frailty alone, and what the visit shows
depends on the new state. The record ends with the last week or with the visit `max_visits`.

Shapes: C risk classes, S states, U frailties, W weeks, K = max_visits + 1 (index = number of visits made so far).
"""

from __future__ import annotations

import functools

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from ehrlab.simulation.sequences.spec import Block, Spec

Array = NDArray[np.float64]


def kernel(block: Block) -> Array:
    """P(next week's state | state) in each risk class: [C, S, S]."""
    num_states = len(block.states)
    out = np.tile(np.eye(num_states), (len(block.worsening), 1, 1))
    for risk, factor in enumerate(block.worsening):
        for start, end, rate in block.moves:
            probability = rate * (factor if end > start else 1.0)
            out[risk, start, end] += probability
            out[risk, start, start] -= probability
    return out


def start(spec: Spec, block: Block) -> Array:
    """P(state in the week of entry), after a burn-in from birth's law: [C, S]."""
    born = np.zeros((len(block.worsening), len(block.states)))
    born[:, 1] = block.congenital[: len(born)]
    born[:, 0] = 1.0 - born[:, 1]
    return np.einsum("cs,cst->ct", born, np.linalg.matrix_power(kernel(block), spec.burn_in_weeks))


@functools.lru_cache(maxsize=64)
def powers(spec: Spec, block: Block) -> Array:
    """The kernel of 0, 1, ..., W - 1 weeks: [C, W, S, S]."""
    one = kernel(block)
    out = np.empty((len(one), spec.weeks, *one.shape[1:]))
    out[:, 0] = np.eye(one.shape[1])
    for week in range(1, spec.weeks):
        out[:, week] = out[:, week - 1] @ one
    return out


def never(spec: Spec, moves: Array, coded: Array) -> Array:
    """P(not coded in the rest of the record | week, visits so far, frailty, state): [C, W, K, U, S].

    The week is over: its visit, if any, is among the visits so far.

    moves  [C, S, S] kernel
    coded  [S] P(coded at a visit | state)
    """
    num_visits = spec.max_visits + 1
    visit = np.array(spec.visit)[:, None]
    out = np.ones((len(moves), spec.weeks, num_visits, len(spec.visit), moves.shape[1]))
    for week in range(spec.weeks - 2, -1, -1):
        after = out[:, week + 1]
        seen = (1.0 - visit) * after[:, :-1] + visit * (1.0 - coded) * after[:, 1:]
        flat = seen.reshape(len(moves), -1, moves.shape[1])
        out[:, week, :-1] = (flat @ moves.transpose(0, 2, 1)).reshape(seen.shape)
    return out


@functools.lru_cache(maxsize=32)
def first_stays_away(spec: Spec, block: Block, target: int) -> Array:
    """`never` for the first occurrence of the block's target: [C, W, K, U, S]."""
    return never(spec, kernel(block), np.array(block.targets[target].coded))


@functools.lru_cache(maxsize=32)
def repeat_stays_away(spec: Spec, again: float) -> Array:
    """`never` for a target that has occurred and returns with probability `again`: [W, K, U]."""
    return never(spec, np.ones((1, 1, 1)), np.array([again]))[0, ..., 0]


def prevalence(spec: Spec, block: Block, coded: Array) -> float:
    """P(a patient's record holds the target | P(coded at a visit | state)), over risk classes, frailties and visits."""
    away = (1.0 - coded) * never(spec, kernel(block), coded)[:, 0, 1]  # C U S; the entry is a visit
    law = np.einsum("c,cs,u->cus", np.array(spec.risk_share(block)), start(spec, block), np.array(spec.frailty_share))
    return 1.0 - float((law * away).sum())


def solve(spec: Spec, block: Block, target: int) -> float:
    """The `at_visit` that gives a target its prevalence exactly: the root of the exact probability, not of a sample."""
    wanted, relative = block.targets[target].prevalence, np.array(block.targets[target].relative)
    highest = 1.0 / relative.max()
    assert prevalence(spec, block, highest * relative) > wanted, "states of high risk are too rare for this prevalence"
    root = brentq(lambda x: prevalence(spec, block, x * relative) - wanted, 0.0, highest, xtol=1e-15, rtol=1e-14)
    return float(root)
