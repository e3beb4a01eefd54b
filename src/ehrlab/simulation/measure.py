"""The law of a number that is measured and written: a Gaussian, cut to a range and rounded.

A written number stands for the interval that rounds to it, and a number at the end of the range for the whole tail
beyond. `Scale.probability` is the exact probability of what is written, however coarse the rounding, so that an exact
filter may read the tables as they are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Scale:
    """Gaussian with this mean and standard deviation (`is_log`: its logarithm is, `mean` is the median).

    lowest, highest  of what is written, multiples of 10 ** -decimals
    """

    mean: float
    spread: float
    lowest: float
    highest: float
    decimals: int
    is_log: bool = False

    @property
    def step(self) -> float:
        return 10.0**-self.decimals

    def written(self, z: Floats) -> Floats:
        """The number written for a standard score."""
        location = np.log(self.mean) if self.is_log else self.mean
        value = location + self.spread * z
        return self._round(np.exp(value) if self.is_log else value)

    def again(self, value: Floats, z: Floats, share: float) -> Floats:
        """A number measured after `value`: that number and noise with `share` of the standard deviation."""
        noise = share * self.spread * z
        return self._round(value * np.exp(noise) if self.is_log else value + noise)

    def probability(self, value: Floats, shift: Floats | float) -> Floats:
        """P(this number is written | the mean is moved by `shift` standard deviations); the two broadcast."""
        half = 0.5 * self.step
        below = np.where(value <= self.lowest + half, -np.inf, self._score(value - half))
        above = np.where(value >= self.highest - half, np.inf, self._score(value + half))
        below, above = below - shift, above - shift
        # In the upper tail 1 - ndtr cancels; by symmetry the interval is moved to the lower one.
        flip = below > 0.0
        return np.where(flip, ndtr(-below) - ndtr(-above), ndtr(above) - ndtr(below))

    def _round(self, value: Floats) -> Floats:
        return np.asarray(np.round(np.clip(value, self.lowest, self.highest), self.decimals), np.float64)

    def _score(self, value: Floats) -> Floats:
        if self.is_log:
            return (np.log(np.maximum(value, 1e-300)) - np.log(self.mean)) / self.spread
        return (value - self.mean) / self.spread


def split(uniform: Floats, probability: Floats) -> tuple[NDArray[np.bool_], Floats]:
    """One uniform number as a coin and a standard score: whether it fell below `probability`, and where below.

    The scores belong to the hits alone, in their order.
    """
    hit = uniform < probability
    return hit, ndtri(uniform[hit] / np.broadcast_to(probability, uniform.shape)[hit])
