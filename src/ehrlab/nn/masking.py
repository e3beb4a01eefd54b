"""What padding does to a tensor. Masks are True where the entry is real; padding is always on the right."""

import torch
from jaxtyping import Bool, Float
from torch import Tensor


def masked_softmax(scores: Float[Tensor, "..."], mask: Bool[Tensor, "..."], dim: int) -> Float[Tensor, "..."]:
    """Softmax over the real entries along `dim`; padding gets exactly 0, and so does everything where nothing is real.

    `mask` broadcasts against `scores`.

    >>> masked_softmax(torch.tensor([[0.0, 0.0, 9.0]]), torch.tensor([[True, True, False]]), dim=1)
    tensor([[0.5000, 0.5000, 0.0000]])
    """
    # The lowest finite number instead of -inf: a row without real entries stays finite, and its gradient too.
    lowest = torch.finfo(scores.dtype).min
    return scores.masked_fill(~mask, lowest).softmax(dim) * mask


def reverse_valid(x: Float[Tensor, "B V E"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, "B V E"]:
    """Reverse the real visits of each sample in place; padding stays on the right. Its own inverse.

    >>> x = torch.tensor([[[1.0], [2.0], [3.0], [0.0]]])
    >>> reverse_valid(x, torch.tensor([[True, True, True, False]])).flatten()
    tensor([3., 2., 1., 0.])
    """
    position = torch.arange(mask.shape[1], device=mask.device)
    source = torch.where(mask, mask.sum(1, keepdim=True) - 1 - position, position)
    return x.gather(1, source[..., None].expand_as(x))


def last_valid(x: Float[Tensor, "B V D"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, "B D"]:
    """The entry of each sample's last real visit. Every sample has at least one.

    >>> last_valid(torch.tensor([[[1.0], [2.0], [0.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    return x[torch.arange(len(x), device=x.device), mask.sum(1) - 1]


def shift_right(h: Float[Tensor, "B V D"]) -> Float[Tensor, "B V D"]:
    """h_{k-1} at position k: the state before each visit, 0 before the first.

    >>> shift_right(torch.tensor([[[1.0], [2.0], [3.0]]])).flatten()
    tensor([0., 1., 2.])
    """
    return torch.cat([torch.zeros_like(h[:, :1]), h[:, :-1]], dim=1)
