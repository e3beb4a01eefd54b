"""The intensive-care stays of a sample: the one that a model reads, and how several become one vector."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from ehrlab.core.batch import Stays


def last_stay(stays: Stays) -> Float[Tensor, "B H F"]:
    """The hourly features of each sample's last real stay; all 0, nothing measured, where it has none.

    >>> features = torch.ones(3, 2, 1, 1, dtype=torch.uint8) * torch.tensor([[1], [2]], dtype=torch.uint8)[..., None]
    >>> last_stay(Stays(features, torch.tensor([[True, True], [True, False], [False, False]]))).flatten()
    tensor([2., 1., 0.])
    """
    last = (stays.mask.sum(1) - 1).clamp(min=0)
    features = stays.features[torch.arange(len(last), device=last.device), last].float()
    return features * stays.mask.any(1)[:, None, None]


def mean_over_stays(
    encode: Callable[[Float[Tensor, "R H F"]], Float[Tensor, "R D"]], stays: Stays
) -> Float[Tensor, "B D"]:
    """The mean of what `encode` makes of each real stay. A sample without any has one in which nothing was measured."""
    shown = stays.mask.clone()
    shown[:, 0] = True
    # Padding is never encoded: most admissions have one stay, and the batch is as wide as its widest.
    encoded = encode(stays.features[shown].float() * stays.mask[shown][:, None, None])
    padded = encoded.new_zeros(*shown.shape, encoded.shape[-1])
    padded[shown] = encoded
    return padded.sum(1) / shown.sum(1, keepdim=True)
