"""Contrast within batches that are larger than memory.

A contrastive loss needs all of its batch at once, but only as vectors. `in_chunks` makes the vectors slice by slice and
forgets how; in the backward pass each slice is made once more (with the same dropout), given its gradient, and
forgotten again. Loss and gradients are those of the whole batch, memory that of one slice; it costs a second forward
pass.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from ehrlab.core.errors import InputError


def in_chunks(
    make: Callable[[slice], tuple[Tensor, ...]], num_rows: int, chunk: int, device: torch.device
) -> tuple[Tensor, ...]:
    """`make` over consecutive slices of at most `chunk` rows, its outputs (rows first) concatenated."""
    if chunk < 1:
        raise InputError(f"chunk: expected at least 1 row, found {chunk}")
    if num_rows <= chunk:
        return make(slice(0, num_rows))
    slices = [slice(start, min(start + chunk, num_rows)) for start in range(0, num_rows, chunk)]
    # `checkpoint` keeps the random state of the devices of its arguments, and a slice has none.
    there = torch.empty(0, device=device)
    made = [checkpoint(lambda rows, _: make(rows), rows, there, use_reentrant=False) for rows in slices]
    return tuple(torch.cat(parts) for parts in zip(*made, strict=True))


def info_nce(
    anchor: Float[Tensor, "N E"], other: Float[Tensor, "N E"], temperature: float = 0.1, chunk: int = 1024
) -> Float[Tensor, ""]:
    """mean over i of -log(exp(s_ii) / sum_{j != i} exp(s_ij)), s_ij = cos(anchor_i, other_j) / temperature.

    The pair itself is not in the denominator (MedHMP; elsewhere "decoupled"), so the loss may be negative. 0 for fewer
    than two rows: there is nothing to tell them from. Of the N x N scores `chunk` rows are held at a time.
    """
    if len(anchor) < 2:
        return (anchor.sum() + other.sum()) * 0
    a, b = F.normalize(anchor, dim=1), F.normalize(other, dim=1)
    position = torch.arange(len(b), device=b.device)

    def denominator(rows: slice) -> tuple[Tensor]:
        scores = a[rows] @ b.T / temperature
        return (scores.masked_fill(position[rows, None] == position, float("-inf")).logsumexp(1),)

    (others,) = in_chunks(denominator, len(a), chunk, a.device)
    return (others - (a * b).sum(1) / temperature).mean()
