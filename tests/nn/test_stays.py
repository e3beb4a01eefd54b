"""Which stay a model reads, and how several stays become one vector."""

from dataclasses import replace

import torch
from torch import Tensor

from ehrlab.core.batch import Stays
from ehrlab.nn.stays import last_stay, mean_over_stays
from modal_batches import modal_batch


def stays() -> Stays:
    found = modal_batch(num_samples=6).stays
    assert found is not None
    return found


def sum_of_hours(x: Tensor) -> Tensor:
    """An encoder that knows an empty stay from no stay: 1 more than the sum over hours."""
    return x.sum(1) + 1


def test_last_stay_is_the_last_real_one_or_empty() -> None:
    given = stays()
    for features, mask, found in zip(given.features, given.mask, last_stay(given)):
        real = features[mask]
        expected = real[-1].float() if len(real) else torch.zeros_like(found)
        assert torch.equal(found, expected)


def test_earlier_stays_and_what_padding_holds_are_not_read() -> None:
    given = stays()
    last = given.mask.sum(1, keepdim=True) - 1
    is_last = torch.arange(given.mask.shape[1]) == last
    noise = torch.where(is_last[:, :, None, None], given.features, 1 - given.features)
    assert torch.equal(last_stay(replace(given, features=noise)), last_stay(given))


def test_mean_is_over_real_stays_and_a_sample_without_any_has_an_empty_one() -> None:
    given = stays()
    for features, mask, found in zip(given.features, given.mask, mean_over_stays(sum_of_hours, given)):
        real = features[mask].float() if mask.any() else torch.zeros(1, *features.shape[1:])
        torch.testing.assert_close(found, torch.stack([sum_of_hours(x[None])[0] for x in real]).mean(0))


def test_padding_is_never_encoded() -> None:
    given, seen = stays(), []
    mean_over_stays(lambda x: seen.append(len(x)) or sum_of_hours(x), given)
    assert seen == [int(given.mask.sum(1).clamp(min=1).sum())]
    noise = torch.where(given.mask[:, :, None, None], given.features, 1)
    noisy = mean_over_stays(sum_of_hours, replace(given, features=noise))
    assert torch.equal(noisy, mean_over_stays(sum_of_hours, given))
