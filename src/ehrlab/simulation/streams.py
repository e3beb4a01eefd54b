"""Counter-based random streams: one per (seed, disease, block of patients, purpose).

Only uniform numbers are drawn, and every law is inverted from them here or at its place: a stream is then a matter of
Philox's counter alone, not of the algorithm that a release of numpy happens to use for normals or integers.
"""

from __future__ import annotations

import zlib
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What a stream is for. Numbers never change: a new purpose takes a new one and leaves the others' draws alone."""

    STATIC = 0
    CHAIN = 1
    NETWORK = 2
    CODES = 3
    ORDERS = 4
    LABS = 5
    NOTES = 6
    ACUTE = 7
    ICU = 8
    NOTE_TEXT = 9
    CLOCK = 10
    MIMIC_PATIENT = 16
    MIMIC_ADMISSION = 17
    MIMIC4_PATIENT = 18
    MIMIC4_ADMISSION = 19
    TRINETX_PATIENT = 32
    TRINETX_ENCOUNTER = 33
    TRINETX_LAB = 34
    ICU_HOUR = 40
    LAB_REPEAT = 41
    SEQUENCE_STATIC = 48
    SEQUENCE_BLOCKS = 49
    SEQUENCE_VISITS = 50
    SEQUENCE_CODES = 51
    SEQUENCE_LAYOUT = 52


def stream(disease: str, seed: int, block: int, purpose: Stream) -> np.random.Generator:
    """Disease and purpose sit in the high words of Philox's 256-bit counter, so streams of one key cannot overlap.

    With the disease in it, two tasks of one seed are two populations and not one with other codes.
    """
    counter = np.array([0, 0, zlib.crc32(disease.encode()), int(purpose)], np.uint64)
    return np.random.Generator(np.random.Philox(counter=counter, key=np.array([seed, block], np.uint64)))


def standard_normal(uniform: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Box-Muller from two independent uniforms in [0, 1)."""
    return np.sqrt(-2.0 * np.log1p(-uniform)) * np.cos(2.0 * np.pi * other)


def choose(shares: tuple[float, ...], uniform: NDArray[np.floating]) -> NDArray[np.int64]:
    """Index drawn in proportion to `shares` (any positive scale)."""
    cumulative = np.cumsum(shares)
    return np.searchsorted(cumulative[:-1] / cumulative[-1], uniform, side="right")
