"""What MEDFuse (arXiv 2407.12309) fuses two modalities with: a joint by Kronecker product, attention, dense layers.

The paper names the parts; sizes and the exact keys of the cross-attention are ours (docs/papers/medfuse.md).
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.errors import InputError
from ehrlab.nn.mltm import Transformer


def kronecker(a: Float[Tensor, "B M P"], b: Float[Tensor, "B N Q"]) -> Float[Tensor, "B MN PQ"]:
    """A (x) B of each sample's matrices: row m N + n, column p Q + q holds a_mp b_nq.

    >>> kronecker(torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[1.0, 10.0], [0.0, 3.0]]]))[0]
    tensor([[ 1., 10.,  2., 20.],
            [ 0.,  3.,  0.,  6.]])
    """
    return torch.einsum("bmp,bnq->bmnpq", a, b).flatten(1, 2).flatten(2, 3)


class CrossAttention(nn.Module):
    """x + attention(norm(x), keys and values norm(memory)), then x + W_2 gelu(W_1 norm(x))."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(
                f"attention: expected a width divisible by the number of heads, found {dim} and {num_heads}"
            )
        self.norm_query, self.norm_memory, self.norm = nn.LayerNorm(dim), nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.attention = nn.MultiheadAttention(dim, num_heads, dropout, batch_first=True)
        self.inner = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "B Q D"], memory: Float[Tensor, "B M D"]) -> Float[Tensor, "B Q D"]:
        keys = self.norm_memory(memory)
        x = x + self.dropout(self.attention(self.norm_query(x), keys, keys, need_weights=False)[0])
        return x + self.dropout(self.inner(self.norm(x)))


class DisentangledTransformer(nn.Module):
    """Two vectors into features that are specific to each, and features common to both.

        A = W_A z_A, B = W_B z_B               each num_slots x slot_dim <= 64 numbers
        C = A (x) B                            num_slots^2 tokens, the joint of every pair of slots
        S_A = SA(A), S_B = SA(B)               specific: self-attention over slots
        S_C = CrossAttn(query C; keys and values S_A, S_B)       common

    A, B and C are projected to `width` first. Every feature is the mean over its tokens, brought to mean 0 and variance
    1: longer vectors could else lower a bound on mutual information without end.
    """

    MAX_PROJECTION = 64
    """Of A and of B: the Kronecker product has the square of it."""

    def __init__(
        self,
        a_dim: int,
        b_dim: int,
        width: int = 64,
        num_slots: int = 4,
        slot_dim: int = 16,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if num_slots * slot_dim > self.MAX_PROJECTION:
            raise InputError(
                f"disentangled transformer: expected num_slots x slot_dim <= {self.MAX_PROJECTION}, found "
                f"{num_slots} x {slot_dim}: the Kronecker product has the square of it. Lower one of them"
            )
        self.slots, self.width = (num_slots, slot_dim), width
        self.project_a = nn.Sequential(nn.LayerNorm(a_dim), nn.Linear(a_dim, num_slots * slot_dim))
        self.project_b = nn.Sequential(nn.LayerNorm(b_dim), nn.Linear(b_dim, num_slots * slot_dim))
        self.widen_a, self.widen_b = nn.Linear(slot_dim, width), nn.Linear(slot_dim, width)
        self.widen_c = nn.Linear(slot_dim**2, width)
        self.self_a = Transformer(width, 1, num_heads, dropout)
        self.self_b = Transformer(width, 1, num_heads, dropout)
        self.cross = CrossAttention(width, num_heads, dropout)
        self.norm = nn.LayerNorm(width, elementwise_affine=False)

    def forward(
        self, z_a: Float[Tensor, "B P"], z_b: Float[Tensor, "B Q"]
    ) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """(S_A, S_B, S_C)"""
        a = self.project_a(z_a).unflatten(1, self.slots)
        b = self.project_b(z_b).unflatten(1, self.slots)
        c = self.widen_c(kronecker(a, b))
        s_a, s_b = self.self_a(self.widen_a(a)), self.self_b(self.widen_b(b))
        s_c = self.cross(c, torch.cat([s_a, s_b], dim=1))
        return self.norm(s_a.mean(1)), self.norm(s_b.mean(1)), self.norm(s_c.mean(1))


def residual(width: int, dropout: float) -> nn.Sequential:
    """f of `x + f(x)`: norm, two layers of the same width."""
    return nn.Sequential(
        nn.LayerNorm(width), nn.Linear(width, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width)
    )


class DenseFusion(nn.Module):
    """h_l = gelu(W_l [x, h_1, .., h_l-1]): every layer, and the reader of the result, sees all that came before."""

    def __init__(self, in_dim: int, hidden_dim: int, depth: int, dropout: float) -> None:
        super().__init__()
        widths = [in_dim + i * hidden_dim for i in range(depth + 1)]
        self.layers = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden_dim), nn.GELU(), nn.Dropout(dropout))
            for width in widths[:-1]
        )
        self.out_dim = widths[-1]

    def forward(self, x: Float[Tensor, "B I"]) -> Float[Tensor, "B O"]:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], dim=1)
        return x
