"""Random batches that keep the contract of core/batch.py, and changes to them that no prediction may notice."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.spec import DataSpec

SPEC = DataSpec(num_codes=19, num_labels=1, max_visits=9, max_codes=7, num_demographics=2, positive_rate=(0.5,))


def random_batch(
    spec: DataSpec = SPEC,
    num_samples: int = 3,
    num_visits: int = 5,
    num_codes: int = 4,
    seed: int = 0,
    lengths: Sequence[int] | None = None,
) -> Batch:
    """Patients with `lengths` visits of 1 .. num_codes codes each, the first one with num_visits unless told otherwise.

    Labels alternate, so that both classes occur. Where a patient has several visits, one in ten holds no code.
    """
    generator = torch.Generator().manual_seed(seed)

    def integers(low: int, high: int, *shape: int) -> torch.Tensor:
        return torch.randint(low, high, shape, generator=generator)

    length = torch.tensor(lengths) if lengths is not None else integers(1, num_visits + 1, num_samples)
    if lengths is None:
        length[0] = num_visits
    mask = torch.arange(num_visits) < length[:, None]
    # Distinct within a visit: the first entries of a random permutation of all codes.
    order = torch.rand(num_samples, num_visits, spec.num_codes - 1, generator=generator).argsort(-1)
    shuffled = order[..., :num_codes] + 1
    size = integers(1, num_codes + 1, num_samples, num_visits, 1)
    empty = torch.rand(num_samples, num_visits, 1, generator=generator) < 0.1
    empty &= (length > 1)[:, None, None]
    codes = shuffled * (torch.arange(num_codes) < size) * ~empty * mask[..., None]
    gaps = integers(1, 400, num_samples, num_visits) * mask
    days = gaps.flip(1).cumsum(1).flip(1) - gaps  # the gaps still to come
    labels = (torch.arange(num_samples)[:, None] + torch.arange(spec.num_labels) + 1) % 2
    return Batch(
        subject_id=torch.arange(num_samples) + 100,
        prediction_time=integers(0, 10**15, num_samples),
        visits=Visits(codes=codes, days_before_last=days.float(), mask=mask),
        demographics=torch.rand(num_samples, spec.num_demographics, generator=generator),
        labels=labels.float(),
    )


def with_visits(batch: Batch, visits: Visits) -> Batch:
    return replace(batch, visits=visits)


def visits_of(batch: Batch) -> Visits:
    assert batch.visits is not None
    return batch.visits


def pad_visits(batch: Batch, extra: int) -> Batch:
    v = visits_of(batch)
    return with_visits(
        batch,
        Visits(
            codes=F.pad(v.codes, (0, 0, 0, extra)),
            days_before_last=F.pad(v.days_before_last, (0, extra)),
            mask=F.pad(v.mask, (0, extra)),
        ),
    )


def pad_codes(batch: Batch, extra: int) -> Batch:
    v = visits_of(batch)
    return with_visits(batch, replace(v, codes=F.pad(v.codes, (0, extra))))


def shuffle_codes(batch: Batch) -> Batch:
    """Every visit's codes, and its padding among them, in another order."""
    v = visits_of(batch)
    return with_visits(batch, replace(v, codes=v.codes.flip(-1).roll(1, -1)))


def reverse_visits(batch: Batch) -> Batch:
    """The real visits' codes in reverse order, on the same days."""
    v = visits_of(batch)
    codes = v.codes.clone()
    for row, real in zip(codes, v.mask):
        row[real] = row[real].flip(0)
    return with_visits(batch, replace(v, codes=codes))


def take(batch: Batch, samples: Sequence[int]) -> Batch:
    return batch.map(lambda t: t[list(samples)])


def without_labels(batch: Batch) -> Batch:
    return replace(batch, labels=None)


def with_flipped_labels(batch: Batch) -> Batch:
    assert batch.labels is not None
    return replace(batch, labels=1 - batch.labels)
