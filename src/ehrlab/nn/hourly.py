"""Encoders of one intensive-care stay, H hours of F features, into one vector of `out_dim`.

The four that Yang & Wu 2021 put beside a note encoder; the first two are also FIDDLE's (Tang et al. 2020).
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.errors import InputError
from ehrlab.nn.ddpm import timestep_embedding
from ehrlab.nn.star import StarTransformer


class LSTMEncoder(nn.Module):
    """ReLU(W h_H + b), h_H the LSTM's last state."""

    def __init__(self, num_features: int, hidden_dim: int, out_dim: int, num_layers: int, dropout: float) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.rnn = nn.LSTM(num_features, hidden_dim, num_layers, batch_first=True)
        self.project = nn.Linear(hidden_dim, out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "R H F"]) -> Float[Tensor, "R D"]:
        return F.relu(self.dropout(self.project(self.rnn(x)[0][:, -1])))


class CNNEncoder(nn.Module):
    """`num_layers` times convolution over 3 hours, ReLU, maximum of every 2 hours; then ReLU(W [all hours] + b)."""

    def __init__(
        self, num_features: int, num_hours: int, num_filters: int, out_dim: int, num_layers: int, dropout: float
    ) -> None:
        super().__init__()
        if num_hours < 2**num_layers:
            raise InputError(
                f"{num_layers} convolutions that halve the hours: expected stays.hours >= {2**num_layers}, found "
                f"{num_hours}. Take more hours or fewer layers"
            )
        self.out_dim = out_dim
        channels = [num_features] + [num_filters] * num_layers
        self.convolutions = nn.ModuleList(nn.Conv1d(n, num_filters, 3, padding=1) for n in channels[:-1])
        self.project = nn.Linear(num_filters * (num_hours // 2**num_layers), out_dim)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Float[Tensor, "R H F"]) -> Float[Tensor, "R D"]:
        x = x.transpose(1, 2)
        for convolution in self.convolutions:
            x = F.max_pool1d(F.relu(convolution(x)), 2)
        return F.relu(self.dropout(self.project(x.flatten(1))))


class HourEmbedding(nn.Module):
    """ReLU(W x_j + b) plus the position of hour j, as sines and cosines."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        if dim % 2:
            raise InputError(f"positions of hours are sines and cosines: expected an even width, found {dim}")
        self.project = nn.Linear(num_features, dim)

    def forward(self, x: Float[Tensor, "R H F"]) -> Float[Tensor, "R H E"]:
        e = F.relu(self.project(x))
        return e + timestep_embedding(torch.arange(e.shape[1], device=e.device), e.shape[2]).to(e.dtype)


class StarEncoder(nn.Module):
    """W (max over hours of the satellites + the relay) + b    (Star-Transformer)"""

    def __init__(
        self, num_features: int, width: int, head_dim: int, out_dim: int, num_cycles: int, dropout: float
    ) -> None:
        super().__init__()
        self.out_dim = out_dim
        self.embed = HourEmbedding(num_features, width)
        self.star = StarTransformer(width, head_dim, num_cycles, dropout)
        self.project = nn.Linear(width, out_dim)

    def forward(self, x: Float[Tensor, "R H F"]) -> Float[Tensor, "R D"]:
        h, s = self.star(self.embed(x))
        return self.project(h.amax(1) + s)


class TransformerEncoder(nn.Module):
    """The mean over hours of a Transformer's states; out_dim = width."""

    def __init__(
        self, num_features: int, width: int, head_dim: int, num_layers: int, dropout: float, feedforward_dim: int
    ) -> None:
        super().__init__()
        if width % head_dim:
            raise InputError(f"Transformer encoder: expected a width divisible by head_dim={head_dim}, found {width}")
        self.out_dim = width
        self.embed = HourEmbedding(num_features, width)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(width, width // head_dim, feedforward_dim, dropout, batch_first=True)
            for _ in range(num_layers)
        )

    def states(self, x: Float[Tensor, "R H F"]) -> Float[Tensor, "R H E"]:
        h = self.embed(x)
        for layer in self.layers:
            h = layer(h)
        return h

    def forward(self, x: Float[Tensor, "R H F"]) -> Float[Tensor, "R E"]:
        return self.states(x).mean(1)
