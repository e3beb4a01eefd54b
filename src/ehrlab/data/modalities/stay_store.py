"""The features of stays on disk, as two bytes per feature that an hour has. See stays.py for the files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from numpy.typing import NDArray

from ehrlab.core.batch import Stays

_AT_ONCE = 256
"""Stays that are written into a batch at a time: bounds the memory of the indices, not of the batch."""


@dataclass(frozen=True)
class Part:
    """Features of some stays: as the files of the store, but with the numbers of the candidates."""

    stay: NDArray[np.int64]
    lengths: NDArray[np.uint16]  # [row of `stay`, hour]
    ids: NDArray[np.uint16]

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(**arrays)

    def num_stays(self, counted: NDArray[np.bool_], num_features: int) -> NDArray[np.int64]:
        """[feature]: how many of those of the stays that are `counted` show it in some hour."""
        shown = np.zeros((len(self.stay), num_features), dtype=bool)
        shown[np.repeat(np.arange(len(self.stay)), self.lengths.sum(1, dtype=np.int64)), self.ids] = True
        return shown[counted[self.stay]].sum(0)


def write(
    out: Path,
    parts: Sequence[Path],
    kept: NDArray[np.int64],
    num_stored: NDArray[np.int64],
    num_stays: int,
    num_hours: int,
) -> None:
    """ids.npy, lengths.npy and begin.npy of the saved `parts`, with the candidates `kept` (ascending) numbered anew.

    num_stored  [candidate]: how often it stands in the parts
    """
    new_id = np.full(len(num_stored), -1, dtype=np.int32)
    new_id[kept] = np.arange(len(kept))
    total = int(num_stored[kept].sum())
    ids = np.lib.format.open_memmap(out / "ids.npy", mode="w+", dtype=np.uint16, shape=(total,))
    lengths = np.zeros((num_stays, num_hours), dtype=np.uint16)
    begin = np.zeros(num_stays, dtype=np.int64)
    end = 0
    for path in parts:
        part = Part.load(path)
        renumbered = new_id[part.ids]
        is_kept = renumbered >= 0
        hour = np.repeat(np.arange(part.lengths.size), part.lengths.ravel())
        lengths[part.stay] = np.bincount(hour[is_kept], minlength=part.lengths.size).reshape(part.lengths.shape)
        of_stay = lengths[part.stay].sum(1, dtype=np.int64)
        begin[part.stay] = end + np.cumsum(of_stay) - of_stay
        ids[end : end + of_stay.sum()] = renumbered[is_kept]
        end += int(of_stay.sum())
    assert end == total
    ids.flush()
    np.save(out / "lengths.npy", lengths)
    np.save(out / "begin.npy", begin)


class StayReader:
    """Stays of the samples `rows`: features B S H F, S the most stays of one of them, at least 1."""

    def __init__(self, store: Path, selection: Path, num_features: int) -> None:
        self.num_features = num_features
        self._ids, self._lengths, self._begin = (
            np.load(store / f"{name}.npy", mmap_mode="r") for name in ("ids", "lengths", "begin")
        )
        self._offsets, self._stays = (
            np.load(selection / f"{name}.npy", mmap_mode="r") for name in ("offsets", "stays")
        )

    def __call__(self, rows: NDArray[np.int64]) -> Stays:
        first = self._offsets[rows]
        count = self._offsets[rows + 1] - first
        place = np.arange(max(1, int(count.max(initial=0))))
        mask = place < count[:, None]
        num_hours = self._lengths.shape[1]
        features = np.zeros((*mask.shape, num_hours, self.num_features), dtype=np.uint8)
        flat = features.reshape(-1)
        slots = np.flatnonzero(mask)  # of each stay: sample after sample, oldest first
        stays = self._stays[(first[:, None] + place)[mask]]
        for at in range(0, len(slots), _AT_ONCE):
            stay, slot = stays[at : at + _AT_ONCE], slots[at : at + _AT_ONCE]
            lengths = self._lengths[stay]
            of_stay = lengths.sum(1, dtype=np.int64)
            source = np.arange(of_stay.sum()) + np.repeat(self._begin[stay] - (np.cumsum(of_stay) - of_stay), of_stay)
            hour = np.repeat(slot[:, None] * num_hours + np.arange(num_hours), lengths.ravel())
            flat[hour * self.num_features + self._ids[source]] = 1
        return Stays(features=torch.from_numpy(features), mask=torch.from_numpy(mask))
