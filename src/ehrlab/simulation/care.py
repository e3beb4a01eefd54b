"""The numbers of intensive care: hourly laws of two organ systems, vital signs, how long a stay lasts. See icu.py.

Item numbers, labels and units are those of MIMIC-III (MetaVision); means and spreads those of adults, rounded. The laws
of the chains were set by what happens, not by any model: shares of ARF, shock and death near MEDHMP's cohorts, and
exact risks (icu_risk.py) given the charts with an AUROC of about .74, .71 and .85.
"""

from __future__ import annotations

from dataclasses import dataclass

from ehrlab.simulation.measure import Scale

NUM_LEVELS = 3  # of a chain: well, strained, failing or shock
WORST = 2
NUM_CLASSES = 4  # 2 * fatal + trigger B
NUM_BASELINES = 3


@dataclass(frozen=True)
class Chain:
    """Hourly law of one organ system. Probabilities are for a stay of the mildest class.

    start     P(well), P(strained), P(worst) in the first hour, by class: alive, alive with B, fatal, fatal with B
    worsen    P(well -> strained), P(strained -> worst) in an hour;  x worse of the class
    recover   P(strained -> well), P(worst -> strained) in an hour;  / worse of the class
    baseline  shares of the hidden levels -1, 0, 1
    """

    start: tuple[tuple[float, ...], ...]
    worsen: tuple[float, float]
    recover: tuple[float, float]
    worse: tuple[float, ...]
    baseline: tuple[float, ...] = (0.25, 0.5, 0.25)


@dataclass(frozen=True)
class Vital:
    """A vital sign: a Gaussian around `scale.mean` + shift[state] + baseline level x `offset`, in standard deviations.

    chain    0: respiratory, 1: circulatory
    charted  P(charted in an hour), by state
    texts    what the chart says beside the number, from the lowest number on
    """

    name: str
    itemid: int
    label: str
    abbreviation: str
    category: str
    unit: str | None
    scale: Scale
    chain: int
    shift: tuple[float, float, float]
    offset: float
    charted: tuple[float, float, float]
    texts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Care:
    """All numbers of intensive care.

    admitted   P(an admission has a stay)
    boarding   days from admission to the unit at most. It fits in what a stay leaves free of the shortest admission
    share      of the admission that the stay lasts, uniform between two numbers: alive, fatal
    """

    chains: tuple[Chain, Chain]
    vitals: tuple[Vital, ...]
    admitted: float = 0.95
    boarding: float = 0.025
    share: tuple[tuple[float, float], tuple[float, float]] = ((0.08, 0.56), (0.65, 0.90))


RESPIRATORY = Chain(
    start=((0.44, 0.11, 0.45), (0.24, 0.17, 0.59), (0.14, 0.26, 0.60), (0.08, 0.26, 0.66)),
    worsen=(0.0013, 0.014),
    recover=(0.016, 0.020),
    worse=(1.0, 1.7, 2.6, 3.0),
)
CIRCULATORY = Chain(
    start=((0.60, 0.14, 0.26), (0.50, 0.18, 0.32), (0.22, 0.30, 0.48), (0.20, 0.30, 0.50)),
    worsen=(0.0017, 0.019),
    recover=(0.014, 0.030),
    worse=(1.0, 1.3, 2.6, 2.8),
)
MOTOR = ("No response", "Abnormal extension", "Abnormal Flexion", "Flex-withdraws", "Localizes Pain", "Obeys Commands")
_ROUTINE = "Routine Vital Signs"
VITALS = (
    Vital(
        "respiratory_rate", 220210, "Respiratory Rate", "RR", "Respiratory", "insp/min", Scale(19, 4.5, 4, 60, 0), 0,
        (0.0, 0.8, 0.9), 0.6, (0.80, 0.88, 0.95),
    ),
    Vital(
        "spo2", 220277, "O2 saturation pulseoxymetry", "SpO2", "Respiratory", "%", Scale(97.2, 2.0, 50, 100, 0), 0,
        (0.0, -0.8, -0.6), -0.5, (0.80, 0.88, 0.95),
    ),
    Vital(
        "gcs_motor", 223901, "GCS - Motor Response", "Motor Response", "Neurological", None, Scale(6.2, 0.9, 1, 6, 0),
        0, (0.0, -0.4, -1.8), -0.4, (0.22, 0.27, 0.32), MOTOR,
    ),
    Vital(
        "heart_rate", 220045, "Heart Rate", "HR", _ROUTINE, "bpm", Scale(84, 11, 20, 220, 0), 1,
        (0.0, 0.6, 1.1), 0.9, (0.82, 0.90, 0.97),
    ),
    Vital(
        "systolic", 220179, "Non Invasive Blood Pressure systolic", "NBPs", _ROUTINE, "mmHg",
        Scale(122, 15, 30, 250, 0), 1, (0.0, -0.7, -1.1), -0.8, (0.50, 0.62, 0.50),
    ),
    Vital(
        "mean_pressure", 220181, "Non Invasive Blood Pressure mean", "NBPm", _ROUTINE, "mmHg",
        Scale(79, 11, 15, 180, 0), 1, (0.0, -0.6, -1.0), -0.8, (0.50, 0.62, 0.50),
    ),
    Vital(
        "temperature", 223761, "Temperature Fahrenheit", "Temperature F", _ROUTINE, "?F", Scale(98.3, 0.9, 85, 109, 1),
        1, (0.0, 0.4, 0.4), 0.3, (0.25, 0.30, 0.40),
    ),
)  # fmt: skip
CARE = Care((RESPIRATORY, CIRCULATORY), VITALS)
