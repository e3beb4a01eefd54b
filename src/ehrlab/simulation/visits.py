"""The law of a visit that is taken at random from a population: expected numbers of visits, without sampling.

The weekly chain is carried forward with death, diagnosis and the weeks that a stay takes.
"""

from __future__ import annotations

import functools

import numpy as np

from ehrlab.simulation import chain
from ehrlab.simulation.filter import law
from ehrlab.simulation.population import Floats
from ehrlab.simulation.spec import Shape

BEFORE, AT, AFTER = range(3)
"""Kinds of visit: before the first diagnosis of the target, the visit that makes it, after it."""

NUM_KINDS = 3
IS_DIAGNOSED = np.array([0, 1, 1])
"""Of each kind, whether the target has been diagnosed by the end of the visit."""


@functools.lru_cache(maxsize=48)
def expected_visits(shape: Shape, risk: int) -> Floats:
    """Visits that a patient of a risk class can be expected to make: [week, kind, family history, event, state].

    An average over frailty and family history, so that the sum over all is the mean number of visits of a record.
    """
    of_risk = law(shape, risk)
    before, after, stays = of_risk.before, of_risk.after, of_risk.stays
    # The entry visit begins with its week.
    at_entry, later = stays.blocks_given(0.0, 0.0), stays.blocks()
    survives = of_risk.survives[IS_DIAGNOSED][:, None]
    family = np.eye(chain.NUM_FAMILY)[of_risk.has_family]
    out = np.empty((shape.weeks, NUM_KINDS, chain.NUM_FAMILY, chain.NUM_EVENTS, chain.NUM_STATES))
    # [weeks still in hospital, trait, diagnosed, state]
    mass = np.zeros((stays.longest + 1, of_risk.num_traits, 2, chain.NUM_STATES))
    for week in range(shape.weeks):
        home = mass[0]
        if week:
            came = np.stack(
                [
                    np.einsum("ks,kest->ket", home[:, status], moves)
                    for status, moves in ((0, before.visit), (0, before.diagnosis), (1, after.visit))
                ],
                axis=1,
            )
            quiet = (before.quiet, after.quiet)
            stayed = np.stack([np.einsum("ks,kst->kt", home[:, d], moves) for d, moves in enumerate(quiet)], 1)
        else:  # a visit by rule
            none = np.zeros_like(of_risk.entry_visit)
            came = np.stack([of_risk.entry_visit, of_risk.entry_diagnosis, none], 1)
            came *= of_risk.prior[:, None, None, None]
            stayed = np.zeros_like(home)
        out[week] = np.einsum("kcet,kf->cfet", came, family)
        alive = (came * survives).sum(2)
        mass = np.concatenate([mass[1:] @ before.blocked, np.zeros((1, *home.shape))])
        mass[0] += of_risk.lives * stayed
        blocks = (later if week else at_entry)[:, None, None, None]
        mass += blocks * np.stack([alive[:, BEFORE], alive[:, AT:].sum(1)], 1)
    return out
