"""Masked lab-test modelling (MEDFuse, arXiv 2407.12309): a masked autoencoder on a row of lab tests.

He et al. 2022's asymmetry, on a table as in ReMasker (Du et al. 2023): the deep encoder sees the visible tests only,
the shallow decoder restores the rest. What the paper leaves open: docs/papers/medfuse.md.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.batch import Labs
from ehrlab.core.errors import InputError


def draw_mask(observed: Bool[Tensor, "B F"], ratio: float) -> Bool[Tensor, "B F"]:
    """floor(ratio n) of each sample's n observed tests, at random; True = hidden.

    A sample keeps at least one of its tests, so that there is something to restore the others from.

    >>> draw_mask(torch.tensor([[True, True, False, True, True], [False, True, False, False, False]]), 0.75).sum(1)
    tensor([3, 0])
    """
    noise = torch.rand(observed.shape, device=observed.device).masked_fill(~observed, 2.0)
    rank = noise.argsort(1).argsort(1)  # the observed ones come first
    return rank < (ratio * observed.sum(1, keepdim=True)).floor()


class Transformer(nn.Module):
    """Pre-norm blocks, four times as wide inside, and a last norm. real: True = may be attended to; None: all may."""

    def __init__(self, width: int, depth: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if width % num_heads:
            raise InputError(
                f"attention: expected a width divisible by the number of heads, found {width} and {num_heads}"
            )
        # Not nn.TransformerEncoder: it copies one block, so that all begin with the same weights.
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, num_heads, 4 * width, dropout, activation="gelu", batch_first=True, norm_first=True
            )
            for _ in range(depth)
        )
        self.norm = nn.LayerNorm(width)

    def forward(self, x: Float[Tensor, "B T D"], real: Bool[Tensor, "B T"] | None = None) -> Float[Tensor, "B T D"]:
        hidden = None if real is None else ~real
        for block in self.blocks:
            x = block(x, src_key_padding_mask=hidden)
        return self.norm(x)


class LabEncoder(nn.Module):
    """Visible tests as tokens t_f = x_f w_f + e_f, after a token of the whole sample, through a transformer.

    Tokens of tests that are hidden or missing are never made: their values cannot matter.
    """

    def __init__(self, num_tests: int, width: int, depth: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.width = width
        self.scale = nn.Parameter(torch.randn(num_tests, width) * 0.02)  # w_f
        self.test = nn.Parameter(torch.randn(num_tests, width) * 0.02)  # e_f
        self.whole = nn.Parameter(torch.randn(width) * 0.02)
        self.blocks = Transformer(width, depth, num_heads, dropout)

    def forward(
        self, values: Float[Tensor, "B F"], visible: Bool[Tensor, "B F"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B F D"]]:
        """(of the whole sample, of each visible test; 0 elsewhere)"""
        most = int(visible.sum(1).max())
        order = (~visible).int().argsort(dim=1, stable=True)[:, :most]  # visible ones first, in their order
        real = visible.gather(1, order)
        tokens = values.gather(1, order)[..., None] * self.scale[order] + self.test[order]
        x = torch.cat([self.whole.expand(len(values), 1, -1), tokens], dim=1)
        x = self.blocks(x, torch.cat([real.new_ones(len(real), 1), real], dim=1))
        at = order[..., None].expand(-1, -1, self.width)
        seen = x.new_zeros(*values.shape, self.width).scatter(1, at, x[:, 1:] * real[..., None])
        return x[:, 0], seen


class LabDecoder(nn.Module):
    """Every test from the encoder's tokens, mask tokens in place of what is hidden or was never measured.

    Needed in pretraining only.
    """

    def __init__(self, num_tests: int, width: int, depth: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.randn(width) * 0.02)
        self.test = nn.Parameter(torch.randn(num_tests, width) * 0.02)
        self.enter = nn.Linear(width, width)
        self.blocks = Transformer(width, depth, num_heads, dropout)
        self.head = nn.Linear(width, 1)

    def forward(
        self, whole: Float[Tensor, "B D"], seen: Float[Tensor, "B F D"], visible: Bool[Tensor, "B F"]
    ) -> Float[Tensor, "B F"]:
        tests = torch.where(visible[..., None], self.enter(seen), self.mask_token) + self.test
        x = self.blocks(torch.cat([self.enter(whole)[:, None], tests], dim=1))
        return self.head(x[:, 1:]).squeeze(-1)


def masked_lab_loss(
    encoder: LabEncoder, decoder: LabDecoder, labs: Labs, hidden: Bool[Tensor, "B F"]
) -> Float[Tensor, ""]:
    """Mean squared error over the tests that were measured and hidden; 0 where there are none."""
    visible = labs.observed & ~hidden
    wrong = (decoder(*encoder(labs.values, visible), visible) - labs.values).square()
    counted = labs.observed & hidden
    # where, not a product: a missing test may hold anything
    return torch.where(counted, wrong, 0.0).sum() / counted.sum().clamp(min=1)
