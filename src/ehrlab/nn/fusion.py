"""One vector from a handful of tokens, each a modality's vector, some of which may be missing."""

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.errors import InputError


def masked_max(x: Float[Tensor, "B T E"], present: Bool[Tensor, "B T"]) -> Float[Tensor, "B E"]:
    """The largest value of each dimension over the tokens that are there; 0 where none is.

    >>> masked_max(torch.tensor([[[-2.0], [5.0]], [[1.0], [1.0]]]), torch.tensor([[True, False], [False, False]]))
    tensor([[-2.],
            [ 0.]])
    """
    pooled = x.masked_fill(~present[..., None], torch.finfo(x.dtype).min).amax(1)
    return torch.where(present.any(1, keepdim=True), pooled, torch.zeros_like(pooled))


class FeedForward(nn.Module):
    """LayerNorm(x + W_2 ReLU(W_1 x + b_1) + b_2), four times as wide inside."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.widen, self.narrow = nn.Linear(dim, 4 * dim), nn.Linear(4 * dim, dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Float[Tensor, "*rows E"]) -> Float[Tensor, "*rows E"]:
        return self.norm(x + self.narrow(F.relu(self.widen(x))))


class AttentionPool(nn.Module):
    """max over tokens of LayerNorm(x + dropout(attention(x))), heads without bias; missing tokens take no part.

    feedforward   a FeedForward on each token before the maximum
    """

    def __init__(self, dim: int, num_heads: int = 4, dropout: float = 0.1, feedforward: bool = False) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(f"attention over modalities: expected a width divisible by {num_heads} heads, found {dim}")
        self.attention = nn.MultiheadAttention(dim, num_heads, bias=False, batch_first=True)
        self.norm = nn.LayerNorm(dim)
        self.dropout = nn.Dropout(dropout)
        self.feedforward = nn.Sequential(nn.Dropout(dropout), FeedForward(dim)) if feedforward else nn.Identity()

    def attend(self, x: Float[Tensor, "B T E"], present: Bool[Tensor, "B T"]) -> Float[Tensor, "B T E"]:
        """The tokens after the attention; values at missing ones are arbitrary."""
        # Where nothing is there everything is looked at: a softmax over nothing would be NaN, and so its gradient.
        hidden = ~present & present.any(1, keepdim=True)
        mixed, _ = self.attention(x, x, x, key_padding_mask=hidden, need_weights=False)
        return self.norm(x + self.dropout(mixed))

    def forward(self, x: Float[Tensor, "B T E"], present: Bool[Tensor, "B T"]) -> Float[Tensor, "B E"]:
        """0 where no token is there."""
        return masked_max(self.feedforward(self.attend(x, present)), present)
