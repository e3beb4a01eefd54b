"""What the laboratory tests and the notes of a visit say about the latent truth, as likelihood factors.

Given (event, state) of the week, the family history, the conditions and the acute conditions that are present, all
observations of a visit are independent of each other, and each hangs on one of these alone. The factors of several
sources therefore multiply, and an exact filter needs nothing else of them.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.chain import NUM_EVENTS, NUM_FAMILY, NUM_STATES
from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.spec import ACUTE

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Evidence:
    """p(observations of the visit | latent value), each up to a factor that no latent value changes; 1 where silent."""

    chain: Floats  # [visit, event, state]
    family: Floats  # [visit, without or with family history]
    condition: Floats  # [visit, condition, absent or present]
    acute: Floats  # [visit, acute condition, absent or present]

    @classmethod
    def silent(cls, num_visits: int) -> Evidence:
        return cls(
            np.ones((num_visits, NUM_EVENTS, NUM_STATES)),
            np.ones((num_visits, NUM_FAMILY)),
            np.ones((num_visits, len(CONDITIONS), 2)),
            np.ones((num_visits, len(ACUTE), 2)),
        )

    def __mul__(self, other: Evidence) -> Evidence:
        return Evidence(
            self.chain * other.chain,
            self.family * other.family,
            self.condition * other.condition,
            self.acute * other.acute,
        )
