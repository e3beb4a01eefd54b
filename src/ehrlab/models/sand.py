"""SAnD (Song et al. 2018, arXiv 1711.03905): self-attention to earlier visits, then dense interpolation.

Departs from the paper: its inputs are ICU measurements, here the codes of visits. Its sizes are tuned for each task, so
some are chosen here. They, and what is left of SAnD in the MedDiffusion group's row: docs/papers/sand.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import CodeSum


def interpolation_weights(mask: Bool[Tensor, "B V"], factor: int) -> Float[Tensor, "B M V"]:
    """w_mt = (1 - |s_t - m| / M)^2, s_t = M t / T: how much visit t of T counts for place m = 1 .. M of the record.

    The last visit stands at the last place, s_T = M, whatever T. 0 at padding.

    >>> interpolation_weights(torch.tensor([[True, True, False]]), factor=2)
    tensor([[[1.0000, 0.2500, 0.0000],
             [0.2500, 1.0000, 0.0000]]])
    """
    t = torch.arange(1, mask.shape[1] + 1, device=mask.device)
    m = torch.arange(1, factor + 1, device=mask.device)
    s = factor * t / mask.sum(1, keepdim=True)
    return (1 - (s[:, None] - m[:, None]).abs() / factor).square() * mask[:, None]


class Block(nn.Module):
    """x = norm(x + attention(x)); x = norm(x + W_2 ReLU(W_1 x + b_1) + b_2): normed after each sum."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.num_heads = num_heads
        # Without biases: the softmax cancels the keys', it would never get a gradient.
        self.query_key_value = nn.Linear(dim, 3 * dim, bias=False)
        self.project = nn.Linear(dim, dim, bias=False)
        self.attention_norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(nn.Linear(dim, 2 * dim), nn.ReLU(), nn.Linear(2 * dim, dim))
        self.feed_forward_norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)

    def attention(self, x: Float[Tensor, "B V D"], visible: Bool[Tensor, "V V"]) -> Float[Tensor, "B V D"]:
        """softmax(Q K^T / sqrt(d)) V in each head, d = D / num_heads; `visible`[i, j]: visit i sees visit j."""
        heads = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1))  # B V 3 H d
        q, k, v = heads.permute(2, 0, 3, 1, 4)  # each B H V d
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=visible)
        return self.project(seen.transpose(1, 2).flatten(2))

    def forward(self, x: Float[Tensor, "B V D"], visible: Bool[Tensor, "V V"]) -> Float[Tensor, "B V D"]:
        x = self.attention_norm(x + self.dropout(self.attention(x, visible)))
        return self.feed_forward_norm(x + self.dropout(self.feed_forward(x)))


class SAnD(SequenceRiskModel):
    """logit = W [u_1; ...; u_M] + b, u_m = sum_t w_mt h_t, h the output of the last block.

    num_blocks    N of the paper
    window        r of the paper: a visit sees itself and the window - 1 visits before it
    factor        M of the paper, the number of places that a record of any length is interpolated to
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        num_heads: int = 4,
        num_blocks: int = 1,
        window: int = 50,
        factor: int = 12,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads:
            raise InputError(f"SAnD: expected embed_dim divisible by num_heads={num_heads}, found {embed_dim}")
        if window < 1 or factor < 1:
            raise InputError(f"SAnD: expected window, factor >= 1, found {window}, {factor}")
        self.embed_dim = self.hidden_dim = embed_dim  # residual: states live in the space of the embeddings
        self.window, self.factor = window, factor
        self.codes = CodeSum(spec.num_codes, embed_dim)
        self.position = nn.Embedding(spec.max_visits, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, dropout) for _ in range(num_blocks))
        self.head = nn.Linear(factor * embed_dim, spec.num_labels)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        return self.codes(visits.codes)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V E"]:
        """Positions are added here, not in `embed`: generated visits stand at their twin's place."""
        order = torch.arange(e.shape[1], device=e.device)
        back = order[:, None] - order
        visible = (back >= 0) & (back < self.window)  # padding is on the right: no real visit sees it
        h = self.dropout(e + self.position(order))
        for block in self.blocks:
            h = block(h, visible)
        return h

    def classify(self, h: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B K"]:
        u = interpolation_weights(visits.mask, self.factor).to(h.dtype) @ h  # B M E
        return self.head(u.flatten(1))
