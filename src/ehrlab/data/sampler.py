"""Batches of samples of similar length, the same on every rank."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import Sampler

from ehrlab.core.errors import InputError

BUCKET_BATCHES = 50
"""Batches sorted by length together: enough that a batch is nearly even, few enough that the order is random."""


class BucketedBatches(Sampler[list[int]]):
    """Indices of one rank's share of each global batch; every rank has the same number of batches.

    A global batch of `batch_size` samples is the same whatever the number of ranks (`world`); rank r takes every
    world-th sample of it from the r-th on, so shares differ by one sample at most. Each sample comes exactly once an
    epoch. A last batch with fewer samples than ranks is merged into the one before it, so that no rank is without.

    shuffle=True   training: a new order each epoch, which depends on (seed, epoch) only
    shuffle=False  evaluation: longest first
    """

    def __init__(
        self, lengths: ArrayLike, batch_size: int, *, shuffle: bool, seed: int = 0, rank: int = 0, world: int = 1
    ) -> None:
        self.lengths: NDArray[Any] = np.asarray(lengths)
        self.batch_size, self.shuffle, self.seed, self.rank, self.world = batch_size, shuffle, seed, rank, world
        self.epoch = 0
        assert 0 <= rank < world, f"rank {rank} of {world}"
        if batch_size < world:
            raise InputError(
                f"batch_size={batch_size}: it is the batch over all {world} devices, and each needs a sample; "
                f"set training.batch_size={world} or more"
            )
        if len(self.lengths) < world:
            raise InputError(
                f"{len(self.lengths)} samples cannot be shared by {world} devices; use fewer devices or a larger cohort"
            )

    @property
    def sampler(self) -> BucketedBatches:
        """Lightning looks for `set_epoch` at `loader.batch_sampler.sampler`."""
        return self

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __len__(self) -> int:
        return len(self._bounds()) - 1

    def __iter__(self) -> Iterator[list[int]]:
        for batch in self.global_batches():
            yield batch[self.rank :: self.world].tolist()

    def global_batches(self) -> list[NDArray[np.int64]]:
        """This epoch's batches before they are shared out."""
        bounds = self._bounds()
        if not self.shuffle:
            order = np.argsort(-self.lengths, kind="stable")
            return [order[a:b] for a, b in pairwise(bounds)]
        rng = np.random.default_rng([self.seed % 2**64, self.epoch])
        order = rng.permutation(len(self.lengths))
        bucket = np.arange(len(order)) // (self.batch_size * BUCKET_BATCHES)
        order = order[np.lexsort((self.lengths[order], bucket))]
        batches = [order[a:b] for a, b in pairwise(bounds)]
        return [batches[i] for i in rng.permutation(len(batches))]

    def _bounds(self) -> list[int]:
        """Where the global batches begin in the epoch's order, and the end."""
        num_samples = len(self.lengths)
        bounds = [*range(0, num_samples, self.batch_size), num_samples]
        if len(bounds) > 2 and bounds[-1] - bounds[-2] < self.world:
            del bounds[-2]
        return bounds
