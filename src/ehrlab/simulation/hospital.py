"""What the layouts of MIMIC share: when a patient's record lies, and how admissions are numbered.

Dates are shifted into 2100-2200. The same patient enters on the same day in both layouts.
"""

from __future__ import annotations

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.simulation.population import Floats, Ints, Shard
from ehrlab.simulation.streams import choose

Times = NDArray[np.datetime64]

# A record of at most ten years that begins before 2190 ends before 2200.
_FIRST_DATE, _LAST_ENTRY = np.datetime64("2101-01-01"), np.datetime64("2189-12-31")
_ADMISSIONS_PER_PATIENT = 1_000  # room in the identifiers, which so depend on the patient alone


def entry_dates(shard: Shard) -> Times:
    """The day on which each patient's record begins: [patient] datetime64[D]."""
    days = (_LAST_ENTRY - _FIRST_DATE).astype(np.int64)
    return _FIRST_DATE + np.floor(shard.patients.entry * days).astype("timedelta64[D]")


def patient_numbers(shard: Shard) -> Ints:
    """The place of each patient in the population: [patient]."""
    return shard.first_patient + np.arange(shard.num_patients)


def admission_numbers(shard: Shard) -> Ints:
    """A number for each visit that no other visit of the population has: [visit]."""
    patient = shard.visits.patient
    ordinal = np.arange(len(patient)) - np.searchsorted(patient, np.arange(shard.num_patients))[patient]
    return patient_numbers(shard)[patient] * _ADMISSIONS_PER_PATIENT + ordinal


def moment(entry: Times, day: Floats) -> Times:
    """`day` days after the start of the date `entry`, to the minute as the releases have it: datetime64[us]."""
    return at_minute(entry, np.floor(day * 1440.0).astype(np.int64))


def at_minute(entry: Times, minute: Ints) -> Times:
    """`minute` minutes after the start of the date `entry`: datetime64[us]."""
    return (entry.astype("datetime64[m]") + minute.astype("timedelta64[m]")).astype("datetime64[us]")


def drawn(shares: dict[str, float], uniform: Floats) -> pl.Series:
    """Names drawn in proportion to their shares."""
    return pl.Series(list(shares)).gather(choose(tuple(shares.values()), uniform))


def numbers_within(group: Ints) -> Ints:
    """1, 2, 3, ... within each run of equal values of the ascending `group`."""
    return np.arange(len(group)) - np.searchsorted(group, group) + 1
