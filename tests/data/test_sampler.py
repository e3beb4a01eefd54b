"""Laws of the batch sampler, over all sizes, batch sizes and numbers of ranks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ehrlab.core.errors import InputError
from ehrlab.data.sampler import BUCKET_BATCHES, BucketedBatches

LENGTHS = st.lists(st.integers(1, 50), min_size=1, max_size=80)
WORLD = st.integers(1, 4)


def ranks(lengths: list[int], batch_size: int, world: int, epoch: int = 0, **kwargs: object) -> list[list[list[int]]]:
    """Batches of each rank."""
    samplers = [BucketedBatches(lengths, batch_size, rank=r, world=world, **kwargs) for r in range(world)]  # type: ignore[arg-type]
    for sampler in samplers:
        sampler.set_epoch(epoch)
    found = [list(sampler) for sampler in samplers]
    assert [len(sampler) for sampler in samplers] == [len(batches) for batches in found]
    return found


@given(LENGTHS, st.integers(1, 12), WORLD, st.booleans(), st.integers(0, 3), st.integers(-5, 5))
def test_each_sample_comes_once_and_every_rank_has_a_share_of_every_batch(lengths, size, world, shuffle, epoch, seed):
    assume(size >= world and len(lengths) >= world)
    found = ranks(lengths, size, world, epoch, shuffle=shuffle, seed=seed)
    assert sorted(i for batches in found for batch in batches for i in batch) == list(range(len(lengths)))
    assert len({len(batches) for batches in found}) == 1
    for shares in zip(*found):
        sizes = [len(share) for share in shares]
        assert min(sizes) > 0
        assert max(sizes) - min(sizes) <= 1


@given(LENGTHS, st.integers(1, 12), WORLD, st.booleans())
def test_ranks_together_are_the_batches_of_one_process(lengths, size, world, shuffle):
    assume(size >= world and len(lengths) >= world)
    left = len(lengths) % size
    assume(left == 0 or left >= world)  # else the last batch is merged, so that no rank is without
    together = [
        sorted(i for batch in batches for i in batch) for batches in zip(*ranks(lengths, size, world, shuffle=shuffle))
    ]
    alone = [sorted(batch) for batch in ranks(lengths, size, 1, shuffle=shuffle)[0]]
    assert together == alone


@given(st.integers(0, 5), st.integers(0, 5))
def test_order_depends_on_seed_and_epoch_only(seed, epoch):
    lengths = list(range(1, 41))
    first, again = (
        BucketedBatches(lengths, 8, shuffle=True, seed=seed),
        BucketedBatches(lengths, 8, shuffle=True, seed=seed),
    )
    for earlier in range(epoch):  # one sampler has been through the epochs before, the other resumes
        first.set_epoch(earlier)
        list(first)
    first.set_epoch(epoch)
    again.set_epoch(epoch)
    assert list(first) == list(again)
    again.set_epoch(epoch + 1)
    assert list(first) != list(again)
    assert list(first) != list(BucketedBatches(lengths, 8, shuffle=True, seed=seed + 100))


def test_batches_hold_samples_of_similar_length():
    lengths = np.random.default_rng(0).integers(1, 51, size=64 * BUCKET_BATCHES * 2)
    sampler = BucketedBatches(lengths, 64, shuffle=True)
    padded = sum(len(batch) * lengths[batch].max() for batch in sampler)
    assert padded < 1.05 * lengths.sum()  # unsorted batches pad to nearly twice


def test_training_batches_come_in_no_order_of_length():
    lengths = np.repeat(np.arange(1, 51), 64)
    means = [lengths[batch].mean() for batch in BucketedBatches(lengths, 64, shuffle=True)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.4


def test_lightning_reaches_set_epoch_through_the_attribute_sampler():
    sampler = BucketedBatches([1, 2, 3], 2, shuffle=True)
    assert sampler.sampler is sampler


def test_batch_that_cannot_be_shared_and_too_few_samples_are_refused():
    with pytest.raises(InputError, match=r"batch_size=2.*3 devices.*training\.batch_size=3"):
        BucketedBatches([1] * 20, 2, shuffle=True, world=3)
    with pytest.raises(InputError, match="2 samples cannot be shared by 3 devices"):
        BucketedBatches([1, 2], 6, shuffle=False, world=3)
