"""Which risk classes meet in a matching stratum (age band, sex, race): P(risk class | stratum), from the laws alone.

The cohort's age is that of the tables at the first visit with a known diagnosis, which is coarser than the age that the
risk class follows: a band can hold several classes, and a class several bands.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtr, ndtri

from ehrlab.simulation.chain import NUM_RISK
from ehrlab.simulation.population import Bools, Floats, Ints
from ehrlab.simulation.spec import Shape
from ehrlab.simulation.stays import Stays

_OLDEST = 90.0  # above, the cohorts know one age
_DAYS = 365.25
_NUM_AGES, _NUM_DATES = 4_000, 24  # of the midpoint rules over the laws of age and of the date of entry


def known_age(layout: str, age: Floats, year_share: Floats, first_end: Floats) -> Floats:
    """Age in years that the tables give at the end of the first visit.

    age, year_share  at entry: the true age, and the share of the calendar year that has passed
    first_end        day on which the first visit is over
    """
    later = age + first_end / _DAYS
    if layout == "mimic3":
        return np.where(later > 89.0, _OLDEST, later)
    if layout == "mimic4":  # born on New Year's Day
        return np.minimum(np.floor(age) + year_share + first_end / _DAYS, _OLDEST)
    return np.minimum(later + (year_share - age) % 1.0 - 0.5, _OLDEST)  # born on July 1


def year_share(entry: NDArray[np.datetime64]) -> Floats:
    first = entry.astype("datetime64[Y]")
    begin, end = first.astype("datetime64[us]"), (first + np.timedelta64(1, "Y")).astype("datetime64[us]")
    return (entry - begin).astype(np.float64) / (end - begin).astype(np.float64)


class Strata:
    """P(risk class | age band, sex, black or not) in one layout of a population."""

    def __init__(self, shape: Shape, layout: str, band_years: int) -> None:
        self._layout, self._band_years, self._shape = layout, band_years, shape
        mean, spread, lowest, highest = shape.age
        inside = ndtr((np.array([lowest, highest]) - mean) / spread)
        quantiles = inside[0] + (inside[1] - inside[0]) * (np.arange(_NUM_AGES) + 0.5) / _NUM_AGES
        # Ages beyond the lowest and the highest are clipped to them.
        ages = np.concatenate([[lowest], mean + spread * ndtri(quantiles), [highest]])
        weight = np.concatenate([[inside[0]], np.full(_NUM_AGES, (inside[1] - inside[0]) / _NUM_AGES), [1 - inside[1]]])
        dates = (np.arange(_NUM_DATES) + 0.5) / _NUM_DATES
        stays, shares = Stays(shape).entry_nodes(np.arange(0.0, 70.0, 7.0), 4)
        known = known_age(layout, ages[:, None, None], dates[:, None], stays)
        weights = weight[:, None, None] * np.full((_NUM_DATES, 1), 1.0 / _NUM_DATES) * shares
        band = np.broadcast_to((known // band_years).astype(np.int64), weights.shape)
        self._first = int(band.min())
        self._shares = np.zeros((int(band.max()) - self._first + 1, 2, 2, NUM_RISK))
        for is_female in (0, 1):
            for is_black in (0, 1):
                score = 0.05 * (ages - mean) + 0.2 * (1 - is_female) + 0.3 * is_black
                risk = np.digitize(score, shape.risk_cut)
                for r in range(NUM_RISK):
                    mine = weights * (risk == r)[:, None, None]
                    self._shares[:, is_female, is_black, r] = np.bincount(
                        (band - self._first).ravel(), mine.ravel(), minlength=len(self._shares)
                    )
        total = self._shares.sum(-1, keepdims=True)
        self._shares /= np.where(total > 0, total, 1.0)

    def of(
        self, age: Floats, share_of_year: Floats, first_end: Floats, is_female: Bools, is_black: Bools, risk: Ints
    ) -> Floats:
        """[patient, risk class]; `risk`, the patient's own, stands where the laws know of no such stratum."""
        band = (known_age(self._layout, age, share_of_year, first_end) // self._band_years).astype(np.int64)
        inside = np.clip(band - self._first, 0, len(self._shares) - 1)
        shares = self._shares[inside, is_female.astype(np.int64), is_black.astype(np.int64)]
        own = np.eye(NUM_RISK)[risk]
        return np.where((shares * own).sum(1, keepdims=True) > 0, shares, own)
