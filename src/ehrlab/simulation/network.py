"""The multimorbidity network: sixteen chronic conditions that bring each other on, beside and apart from the target.

They make records look like records. Given sex and age they are independent of the latent chain, so that leaving them
out of the exact filter loses nothing.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

WARM_UP_YEARS = 5.0  # conditions may begin this long before entry


@dataclass(frozen=True)
class Condition:
    """Yearly hazard: yearly_hazard * exp(age * (age - 50) / 10 + female * is_female + parents' weights)."""

    name: str
    codes: tuple[str, ...]
    yearly_hazard: float
    age: float = 0.0
    female: float = 0.0
    parents: dict[str, float] = field(default_factory=dict)
    drug: str | None = None


# Parents stand before their children.
CONDITIONS = (
    Condition("hypertension", ("401.9", "401.1"), 0.030, 0.45, 0.0, drug="lisinopril"),
    Condition("lipids", ("272.4", "272.2"), 0.035, 0.35, -0.1, drug="atorvastatin"),
    Condition("obesity", ("278.00", "278.01"), 0.020, 0.0, 0.2),
    Condition("pain", ("724.2", "338.29", "719.46"), 0.030, 0.15, 0.2, {"obesity": 0.3}, drug="gabapentin"),
    Condition("depression", ("311", "296.30"), 0.018, 0.0, 0.5, {"pain": 0.5}, drug="sertraline"),
    Condition("asthma", ("493.90",), 0.006, -0.05, 0.2, {"obesity": 0.3}, drug="albuterol"),
    Condition("thyroid", ("244.9",), 0.010, 0.25, 1.2, drug="levothyroxine"),
    Condition("osteoarthritis", ("715.90", "715.96"), 0.020, 0.55, 0.3, {"obesity": 0.6}),
    Condition("ischemic", ("414.01", "412"), 0.006, 0.7, -0.5, {"hypertension": 0.6, "lipids": 0.5}, drug="aspirin"),
    Condition("afib", ("427.31",), 0.004, 0.9, -0.2, {"hypertension": 0.4, "ischemic": 0.6}, drug="warfarin"),
    Condition("stroke", ("438.9", "V12.54"), 0.003, 0.7, 0.0, {"hypertension": 0.6, "afib": 0.9}),
    Condition("reflux", ("530.81",), 0.025, 0.1, 0.0, {"obesity": 0.3}, drug="omeprazole"),
    Condition("anemia", ("285.9", "280.9"), 0.012, 0.2, 0.5, drug="ferrous sulfate"),
    Condition("cancer", ("162.9", "153.9", "V10.05"), 0.005, 0.7, 0.0),
    Condition("osteoporosis", ("733.00",), 0.004, 0.7, 1.3, drug="alendronate"),
    Condition("neuropathy", ("355.9", "356.9"), 0.006, 0.3, 0.0, {"pain": 0.3}),
)


def onset_days(
    uniform: NDArray[np.floating], age: NDArray[np.floating], is_female: NDArray[np.bool_]
) -> NDArray[np.float64]:
    """Day of onset relative to entry of each condition: [patient, condition]; far beyond any record when late.

    Exact for the piecewise constant hazard: an exponential budget is spent segment by segment between the onsets of the
    (at most two) parents.
    """
    num_patients = len(age)
    position = {condition.name: i for i, condition in enumerate(CONDITIONS)}
    onset = np.empty((num_patients, len(CONDITIONS)))
    for i, condition in enumerate(CONDITIONS):
        budget = -np.log1p(-uniform[:, i])
        rate = np.exp(condition.age * (age - 50.0) / 10.0 + condition.female * is_female)
        rate = rate * condition.yearly_hazard / 365.25
        columns = [position[parent] for parent in condition.parents]
        weights = np.array(list(condition.parents.values()))
        begin = np.full(num_patients, -365.25 * WARM_UP_YEARS)
        order = np.argsort(onset[:, columns], axis=1)
        for step in range(len(columns)):
            parent = order[:, step]
            end = np.take_along_axis(onset[:, columns], parent[:, None], 1)[:, 0]
            spent = rate * (end - begin)
            inside = budget < spent
            # A budget that ends inside the segment stays where it ends: later segments must not move it.
            onset_here = begin + np.divide(budget, rate)
            begin = np.where(inside, onset_here, end)
            budget = np.where(inside, 0.0, budget - spent)
            rate = rate * np.where(inside, 1.0, np.exp(weights[parent]))
        onset[:, i] = begin + budget / rate
    return onset
