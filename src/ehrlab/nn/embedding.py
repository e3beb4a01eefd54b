"""Visits as vectors: their codes (MedDiffusion Eq. 3.2) and their distance in time (Eq. 3.3)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn


class CodeSum(nn.Module):
    """W x for the multi-hot vector x of a visit's codes, by gathering rows: the sum of the visit's code embeddings.

    Never dense: with 8,800 codes the product costs about 30 times as much. A visit without codes gives 0.
    Rows start as N(0, 1) and not at the 1 / sqrt(num_codes) of a dense layer, which is blind to x being sparse: a visit
    of a few codes then has unit scale, whatever the vocabulary, and is comparable with the unit noise of a diffusion.
    """

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.table = nn.EmbeddingBag(num_codes, embed_dim, mode="sum", padding_idx=0)

    def forward(self, codes: Int[Tensor, "B V C"]) -> Float[Tensor, "B V E"]:
        return self.table(codes.flatten(0, 1)).unflatten(0, codes.shape[:2])


class VisitEmbedding(nn.Module):
    """v_k = ReLU(W_v x_k + b_v)    (MedDiffusion Eq. 3.2)"""

    def __init__(self, num_codes: int, embed_dim: int) -> None:
        super().__init__()
        self.codes = CodeSum(num_codes, embed_dim)
        self.bias = nn.Parameter(torch.zeros(embed_dim))

    def forward(self, codes: Int[Tensor, "B V C"]) -> Float[Tensor, "B V E"]:
        return F.relu(self.codes(codes) + self.bias)


class TimeEmbedding(nn.Module):
    """t_k = W_t (1 - tanh((W_f Delta_k / 180 + b_f)^2)) + b_t    (MedDiffusion Eq. 3.3, from HiTANet)

    Delta_k is the gap to the last visit, so the unit is half a year. Padding returns the embedding of 0 days; readers
    mask it.
    """

    def __init__(self, embed_dim: int, time_dim: int) -> None:
        super().__init__()
        self.frequency = nn.Linear(1, time_dim)
        self.project = nn.Linear(time_dim, embed_dim)

    def forward(self, days_before_last: Float[Tensor, "B V"]) -> Float[Tensor, "B V E"]:
        features = 1 - torch.tanh(self.frequency(days_before_last[..., None] / 180).square())
        return self.project(features)
