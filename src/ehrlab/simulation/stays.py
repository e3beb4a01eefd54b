"""When within weeks a visit begins and ends: the exact laws that an observer who stops in mid-week needs.

A visit begins at a moment that is uniform in its week (the entry visit: at the week's first instant) and lasts a stay
of log-logistic length, clipped at both ends. It is over 7 U + length days after its week began, and it blocks as many
following weeks as end before it does. Visits of shapes without stays are over as they begin: with days as the unit of
observation, that is what a bare date tells.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.interpolate import CubicHermiteSpline
from scipy.special import hyp2f1

from ehrlab.simulation.spec import Shape

Floats = NDArray[np.float64]

_NUM_KNOTS = 10_001


class Stays:
    """The law of a stay's length in days, and of the day (counted from its week's beginning) on which a visit is over.

    longest  most weeks that a visit can block after its own
    kinks    days near a week at which a law of this class is not smooth, over all weeks that a stay can reach
    """

    def __init__(self, shape: Shape) -> None:
        self._median, self._steepness, self._least, self._most = shape.stay_days or (1.0, 1.0, 0.0, 0.0)
        self.longest = int(np.ceil(self._most / 7.0 + 1.0)) - 1
        weeks = 7.0 * np.arange(-1, self.longest + 3)
        self.kinks = np.add.outer(weeks, [0.0, self._least % 7.0, self._most % 7.0]).ravel()

    # -------------------------------------------------------------------------------------------------- the length
    def length_by(self, days: ArrayLike) -> Floats:
        """P(length <= days)."""
        days = np.asarray(days, np.float64)
        ratio = (np.clip(days, self._least, self._most) / self._median) ** self._steepness
        return np.where(days >= self._most, 1.0, np.where(days >= self._least, ratio / (1.0 + ratio), 0.0))

    def _area(self, days: ArrayLike) -> Floats:
        """Integral of `length_by` from 0 to `days`."""
        days = np.asarray(days, np.float64)
        return self._inside(np.clip(days, self._least, self._most)) + np.maximum(days - self._most, 0.0)

    @functools.cached_property
    def _inside(self) -> Callable[[Floats], Floats]:
        """`_area` between the least and the most days. Cubics between exact values and slopes: to 1e-12 (tested)."""
        if self._most == self._least:
            return np.zeros_like
        days = np.linspace(self._least, self._most, _NUM_KNOTS)
        ratio, order = (days / self._median) ** self._steepness, 1.0 / self._steepness
        area = days * ratio * hyp2f1(1.0, 1.0 + order, 2.0 + order, -ratio) / (1.0 + self._steepness)
        return CubicHermiteSpline(days, area - area[0], ratio / (1.0 + ratio))

    def entry_nodes(self, breaks: ArrayLike, num_nodes: int) -> tuple[Floats, Floats]:
        """Quadrature over the entry visit's length: nodes and weights. Gauss between `breaks`, atoms at both ends."""
        if self._most == 0.0:
            return np.zeros(1), np.ones(1)
        breaks = np.asarray(breaks, np.float64)
        inner = breaks[(breaks > self._least) & (breaks < self._most)]
        edges = np.unique(np.concatenate([[self._least], inner, [self._most]]))
        x, w = np.polynomial.legendre.leggauss(num_nodes)
        half = np.diff(edges)[:, None] / 2.0
        nodes = (edges[:-1, None] + half * (1.0 + x)).ravel()
        ratio = (nodes / self._median) ** self._steepness
        density = self._steepness / nodes * ratio / (1.0 + ratio) ** 2
        least, most = self.length_by(self._least), 1.0 - self.length_by(np.nextafter(self._most, 0.0))
        return (
            np.concatenate([[self._least], nodes, [self._most]]),
            np.concatenate([[least], density * (half * w).ravel(), [most]]),
        )

    # ------------------------------------------------------------------------------------------------- the whole visit
    def over_by(self, day: ArrayLike) -> Floats:
        """P(the visit is over by `day` of its week), begun uniformly: 7 U + length <= day."""
        day = np.asarray(day, np.float64)
        return (self._area(day) - self._area(day - 7.0)) / 7.0

    def over_at(self, day: ArrayLike) -> Floats:
        """Density per day of the moment at which a visit is over."""
        day = np.asarray(day, np.float64)
        # A length of 0 or of the least is an atom; the density of the sum counts it from below.
        return (self.length_by(day) - np.where(day < 7.0, 0.0, self.length_by(day - 7.0))) / 7.0

    def blocks(self) -> Floats:
        """P(weeks blocked = j): [longest + 1]."""
        return np.diff(self.over_by(7.0 * np.arange(self.longest + 2)))

    def blocks_after(self, days: ArrayLike) -> Floats:
        """P(the visit begins after `days` of its week, and blocks j weeks): [..., longest + 1]."""
        days = np.asarray(days, np.float64)[..., None]
        edges = 7.0 * np.arange(self.longest + 2)
        return np.diff(self._area(edges - days) - self._area(edges - 7.0)) / 7.0

    def blocks_given(self, begun: ArrayLike, lasted: ArrayLike) -> Floats:
        """P(weeks blocked = j | begun on day `begun` of its week, longer than `lasted` days): [..., longest + 1]."""
        begun, lasted = np.asarray(begun, np.float64)[..., None], np.asarray(lasted, np.float64)[..., None]
        edges = 7.0 * np.arange(self.longest + 2) - begun
        tail = np.diff(self.length_by(np.maximum(edges, lasted)))
        return tail / tail.sum(-1, keepdims=True)
