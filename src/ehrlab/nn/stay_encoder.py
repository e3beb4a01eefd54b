"""An intensive-care stay as a vector, and back (MedHMP, arXiv 2310.07871, section 2.2; docs/papers/medhmp.md)."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Stays
from ehrlab.core.errors import InputError
from ehrlab.nn.fusion import AttentionPool


class DeepLSTM(nn.Module):
    """An LSTM over the hours, read at its last cell state; more than one layer: as the authors' code stacks them,
    with dropout and LayerNorm between the first and the rest."""

    def __init__(self, num_features: int, dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        if num_layers < 1:
            raise InputError(f"stay encoder: expected num_layers >= 1, found {num_layers}")
        self.first = nn.LSTM(num_features, dim, batch_first=True)
        self.between = nn.Sequential(nn.Dropout(dropout), nn.LayerNorm(dim)) if num_layers > 1 else None
        self.rest = nn.LSTM(dim, dim, num_layers - 1, batch_first=True) if num_layers > 1 else None

    def forward(self, x: Float[Tensor, "N H F"]) -> Float[Tensor, "N E"]:
        h, (_, cell) = self.first(x)
        if self.between is not None and self.rest is not None:
            _, (_, cell) = self.rest(self.between(h))
        return cell[-1]


class StayEncoder(nn.Module):
    """b = max over {h', d'} of attention([h; d]), h the LSTM's last cell state, d = MLP(demographics).

    num_layers    of the LSTM; the paper draws one, the authors' code has 1 + 2
    feedforward   a feed-forward block after the attention: the authors' code, not the paper
    """

    def __init__(
        self,
        num_features: int,
        num_demographics: int,
        embed_dim: int = 256,
        demographics_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 1,
        dropout: float = 0.1,
        feedforward: bool = False,
    ) -> None:
        super().__init__()
        self.hours = DeepLSTM(num_features, embed_dim, num_layers, dropout)
        self.demographics = nn.Sequential(
            nn.Linear(num_demographics, demographics_dim), nn.ReLU(), nn.Linear(demographics_dim, embed_dim)
        )
        self.fusion = AttentionPool(embed_dim, num_heads, dropout, feedforward)

    def forward(self, features: Float[Tensor, "N H F"], demographics: Float[Tensor, "N G"]) -> Float[Tensor, "N E"]:
        tokens = torch.stack([self.hours(features), self.demographics(demographics)], dim=1)
        return self.fusion(tokens, torch.ones(tokens.shape[:2], dtype=torch.bool, device=tokens.device))

    def each(self, stays: Stays, demographics: Float[Tensor, "B G"]) -> Float[Tensor, "B S E"]:
        """b of every real stay; 0 at padding, which costs nothing."""
        real = stays.mask.flatten()
        if not real.any():  # an LSTM takes no empty batch; the padding that is encoded instead is masked below
            real = torch.arange(len(real), device=real.device) == 0
        of_patient = demographics.repeat_interleave(stays.mask.shape[1], dim=0)
        features = stays.features.flatten(0, 1)[real].to(demographics.dtype)
        encoded = self(features, of_patient[real])
        found = encoded.new_zeros(len(real), encoded.shape[1]).index_put((real.nonzero().squeeze(1),), encoded)
        return found.unflatten(0, stays.mask.shape) * stays.mask[..., None]


class StayDecoder(nn.Module):
    """The hours of a stay from b: LSTM states through a linear layer.

    start   "state"   b is the initial hidden state (paper); what is read at each hour is which hour it is, 0 to 1
            "input"   b is the first hour's input, all later inputs are 0 (authors' code)
    """

    def __init__(self, num_features: int, num_hours: int, embed_dim: int, start: str = "state") -> None:
        super().__init__()
        if start not in ("state", "input"):
            raise InputError(f"stay decoder: expected start state or input, found {start!r}")
        self.start, self.num_hours = start, num_hours
        self.rnn = nn.LSTM(1 if start == "state" else embed_dim, embed_dim, batch_first=True)
        self.output = nn.Linear(embed_dim, num_features)

    def forward(self, b: Float[Tensor, "N E"]) -> Float[Tensor, "N H F"]:
        if self.start == "state":
            hour = torch.linspace(0, 1, self.num_hours, dtype=b.dtype, device=b.device)
            inputs = hour[None, :, None].expand(len(b), -1, -1).contiguous()
            return self.output(self.rnn(inputs, (b[None], torch.zeros_like(b)[None]))[0])
        return self.output(self.rnn(F.pad(b[:, None], (0, 0, 0, self.num_hours - 1)))[0])
