"""Blocks of a decoder-only transformer, what its tokens may see, and a cache of keys and values.

Pre-norm blocks as GPT-2's (Radford et al. 2019). Cached or not, a block computes the same numbers.
"""

from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrlab.core.errors import InputError


@runtime_checkable
class Cache(Protocol):
    """What attention needs of a cache; that of transformers has the same method."""

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int) -> tuple[Tensor, Tensor]:
        """Add the new keys and values ("B N Q D") of a layer; returns all of it so far, the new ones last."""


class PreallocatedCache:
    """Keys and values of up to `capacity` tokens, each written once: nothing that was stored is copied again."""

    def __init__(self, num_layers: int, num_heads: int, head_dim: int, capacity: int) -> None:
        self.shape = (num_heads, capacity, head_dim)
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.stored = [0] * num_layers

    def update(
        self, key_states: Float[Tensor, "B N Q D"], value_states: Float[Tensor, "B N Q D"], layer_idx: int
    ) -> tuple[Float[Tensor, "B N S D"], Float[Tensor, "B N S D"]]:
        begin = self.stored[layer_idx]
        end = self.stored[layer_idx] = begin + key_states.shape[2]
        found = []
        for store, new in ((self.keys, key_states), (self.values, value_states)):
            whole = store[layer_idx]
            if whole is None:
                whole = store[layer_idx] = new.new_empty(len(new), *self.shape)
            whole[:, :, begin:end] = new
            found.append(whole[:, :, :end])
        return found[0], found[1]

    def select(self, rows: Int[Tensor, " R"]) -> None:
        """Keep these rows, in this order; a row may come several times."""
        for store in (self.keys, self.values):
            store[:] = [None if whole is None else whole[rows] for whole in store]


class SelfAttention(nn.Module):
    """Softmax attention over `num_heads` heads, keys and values optionally from a cache.

    mask  True = may be seen, the keys of the cache first. None: each token sees itself and all before it.
    """

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        if dim % num_heads:
            raise InputError(
                f"attention: expected a width divisible by the number of heads, found {dim} and {num_heads}"
            )
        self.num_heads = num_heads
        self.dropout = nn.Dropout(dropout)  # a module, though only its p is read: TRL switches dropout off by modules
        self.query_key_value = nn.Linear(dim, 3 * dim)
        self.leave = nn.Linear(dim, dim)

    def forward(
        self, x: Float[Tensor, "B Q D"], mask: Bool[Tensor, "B 1 Q S"] | None, cache: Cache | None, layer: int
    ) -> Float[Tensor, "B Q D"]:
        # [B, Q, 3 D] -> three of [B, N, Q, D / N]
        q, k, v = self.query_key_value(x).unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        if cache is not None:
            k, v = cache.update(k, v, layer)
        # With one query the last of the keys is its own: it may see all.
        causal = mask is None and q.shape[2] > 1
        assert not causal or q.shape[2] == k.shape[2], "several tokens after a cache need a mask"
        dropout = self.dropout.p if self.training else 0.0
        seen = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout, is_causal=causal)
        return self.leave(seen.transpose(1, 2).flatten(2))


class Block(nn.Module):
    """x + attention(norm(x)), then x + W_2 gelu(W_1 norm(x)), the inner width four times the outer."""

    def __init__(self, dim: int, num_heads: int, dropout: float) -> None:
        super().__init__()
        self.norm_1 = nn.LayerNorm(dim)
        self.attention = SelfAttention(dim, num_heads, dropout)
        self.norm_2 = nn.LayerNorm(dim)
        self.enter = nn.Linear(dim, 4 * dim)
        self.leave = nn.Linear(4 * dim, dim)
        self.dropout = nn.Dropout(dropout)

    def forward(
        self,
        x: Float[Tensor, "B Q D"],
        mask: Bool[Tensor, "B 1 Q S"] | None = None,
        cache: Cache | None = None,
        layer: int = 0,
    ) -> Float[Tensor, "B Q D"]:
        x = x + self.dropout(self.attention(self.norm_1(x), mask, cache, layer))
        return x + self.dropout(self.leave(F.gelu(self.enter(self.norm_2(x)), approximate="tanh")))


def causal_mask(real: Bool[Tensor, "B S"], num_queries: int) -> Bool[Tensor, "B 1 {num_queries} S"]:
    """Each of the last `num_queries` tokens sees the real tokens before it, and itself.

    Padding sees itself, too: a softmax over nothing is not a number.

    >>> causal_mask(torch.tensor([[False, True, True]]), num_queries=2).int()
    tensor([[[[0, 1, 0],
              [0, 1, 1]]]], dtype=torch.int32)
    """
    num_keys = real.shape[1]
    key = torch.arange(num_keys, device=real.device)
    query = key[num_keys - num_queries :, None]
    return ((real[:, None] & (key <= query)) | (key == query))[:, None]


def hide_own_visit(
    mask: Bool[Tensor, "B 1 Q S"], visit: Int[Tensor, "B S"], opens: Bool[Tensor, "B S"]
) -> Bool[Tensor, "B 1 Q S"]:
    """`mask` without the other codes of a token's own visit: it keeps earlier visits, the token that opens its visit,
    and itself. What stands before the first visit (visit 0) is no visit and stays visible.

    opens  True = the token opens a visit

    >>> visit, opens = torch.tensor([[0, 1, 1, 1]]), torch.tensor([[False, True, False, False]])
    >>> hide_own_visit(causal_mask(torch.ones(1, 4, dtype=torch.bool), 4), visit, opens).int()[0, 0]
    tensor([[1, 0, 0, 0],
            [1, 1, 0, 0],
            [1, 1, 1, 0],
            [1, 1, 0, 1]], dtype=torch.int32)
    """
    num_queries, num_keys = mask.shape[2:]
    key = torch.arange(num_keys, device=mask.device)
    itself = key == key[num_keys - num_queries :, None]
    own = visit[:, num_keys - num_queries :, None]
    kept = (visit[:, None] < own) | opens[:, None] | (own == 0) | itself
    return mask & kept[:, None]


def right_align(x: Int[Tensor, "B T"] | Float[Tensor, "B T D"], mask: Bool[Tensor, "B T"]) -> Tensor:
    """Move padding from the right to the left, so that every row ends at the same place; padding is arbitrary.

    >>> right_align(torch.tensor([[5, 6, 0], [7, 8, 9]]), torch.tensor([[True, True, False], [True, True, True]]))
    tensor([[5, 5, 6],
            [7, 8, 9]])
    """
    width = mask.shape[1]
    source = (torch.arange(width, device=mask.device) - (width - mask.sum(1, keepdim=True))).clamp(min=0)
    if x.ndim == 2:
        return x.gather(1, source)
    return x.gather(1, source[..., None].expand_as(x))
