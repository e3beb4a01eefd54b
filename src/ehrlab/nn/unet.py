"""The 1-D U-Net of the authors' code: visits are channels, the axis that is convolved is the visit embedding."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from ehrlab.core.errors import InputError
from ehrlab.core.spec import DataSpec
from ehrlab.nn.ddpm import timestep_embedding


def zeroed(layer: nn.Conv1d) -> nn.Conv1d:
    """The layer with weights 0: its residual branch starts as the identity."""
    nn.init.zeros_(layer.weight)
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


class ConvBlock(nn.Module):
    """Residual block: norm, silu, conv, plus the step, norm, silu, conv (zero-initialised)."""

    def __init__(self, channels_in: int, channels_out: int, time_dim: int, groups: int) -> None:
        super().__init__()
        self.enter = nn.Sequential(
            nn.GroupNorm(groups, channels_in), nn.SiLU(), nn.Conv1d(channels_in, channels_out, 3, padding=1)
        )
        self.time = nn.Linear(time_dim, channels_out)
        self.leave = nn.Sequential(
            nn.GroupNorm(groups, channels_out), nn.SiLU(), zeroed(nn.Conv1d(channels_out, channels_out, 3, padding=1))
        )
        self.skip = nn.Identity() if channels_in == channels_out else nn.Conv1d(channels_in, channels_out, 1)

    def forward(self, x: Float[Tensor, "B I L"], t: Float[Tensor, "B T"]) -> Float[Tensor, "B O L"]:
        return self.skip(x) + self.leave(self.enter(x) + self.time(F.silu(t))[..., None])


class SelfAttention(nn.Module):
    """One head over the length axis, residual, projection zero-initialised."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.query_key_value = nn.Conv1d(channels, 3 * channels, 1)
        self.project = zeroed(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Float[Tensor, "B C L"]) -> Float[Tensor, "B C L"]:
        q, k, v = self.query_key_value(self.norm(x)).transpose(1, 2).chunk(3, dim=-1)
        return x + self.project(F.scaled_dot_product_attention(q, k, v).transpose(1, 2))


class UNet(nn.Module):
    """eps_theta of the authors' code: 88 M parameters at base_channels 128, multipliers 1, 2, 4, 8 and 50 visits.

    Each level has `blocks_per_level` blocks, then a strided convolution halves the length; on the way up the lengths
    double (nearest neighbour, convolution) and each block also reads its twin on the way down. Self-attention is in
    the middle only: the authors' setting asks for it at a depth that their four levels never reach.

    It mixes visits, later with earlier and real with padding (which its caller sets to 0). The prediction never passes
    through it; only the augmenter's loss and its samples depend on a patient's number of padded visits, and hardly: it
    always sees spec.max_visits channels.
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int,
        base_channels: int,
        multipliers: Sequence[int],
        blocks_per_level: int,
        groups: int,
    ) -> None:
        super().__init__()
        halvings = len(multipliers) - 1
        if embed_dim % 2**halvings:
            raise InputError(
                f"U-Net denoiser: expected embed_dim to be divisible by {2**halvings} (it is halved {halvings} times), "
                f"found {embed_dim}. Use fewer multipliers or another embed_dim."
            )
        if base_channels % groups or base_channels % 2:
            raise InputError(
                f"U-Net denoiser: expected base_channels even, divisible by groups={groups}; found {base_channels}"
            )
        self.max_visits = spec.max_visits
        self.base_channels = base_channels
        time_dim = 4 * base_channels
        self.time = nn.Sequential(nn.Linear(base_channels, time_dim), nn.SiLU(), nn.Linear(time_dim, time_dim))
        self.enter = nn.Conv1d(spec.max_visits, base_channels, 3, padding=1)

        widths = [base_channels * m for m in multipliers]
        skips = [base_channels]  # channels of each stored activation, in order
        channels = base_channels
        self.down = nn.ModuleList()
        for level, width in enumerate(widths):
            for _ in range(blocks_per_level):
                self.down.append(ConvBlock(channels, width, time_dim, groups))
                channels = width
                skips.append(channels)
            if level < halvings:
                self.down.append(nn.Conv1d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)

        self.middle_in = ConvBlock(channels, channels, time_dim, groups)
        self.middle_attention = SelfAttention(channels, groups)
        self.middle_out = ConvBlock(channels, channels, time_dim, groups)

        self.up = nn.ModuleList()
        for level, width in reversed(list(enumerate(widths))):
            for _ in range(blocks_per_level + 1):
                self.up.append(ConvBlock(channels + skips.pop(), width, time_dim, groups))
                channels = width
            if level > 0:
                self.up.append(
                    nn.Sequential(nn.Upsample(scale_factor=2.0), nn.Conv1d(channels, channels, 3, padding=1))
                )

        self.leave = nn.Sequential(
            nn.GroupNorm(groups, channels), nn.SiLU(), nn.Conv1d(channels, spec.max_visits, 3, padding=1)
        )

    def forward(self, x: Float[Tensor, "B V E"], n: Int[Tensor, " B"]) -> Float[Tensor, "B V E"]:
        num_visits = x.shape[1]
        assert num_visits <= self.max_visits, (num_visits, self.max_visits)
        t = self.time(timestep_embedding(n, self.base_channels))
        y = self.enter(F.pad(x, (0, 0, 0, self.max_visits - num_visits)))
        stored = [y]
        for layer in self.down:
            y = layer(y, t) if isinstance(layer, ConvBlock) else layer(y)
            stored.append(y)
        y = self.middle_out(self.middle_attention(self.middle_in(y, t)), t)
        for layer in self.up:
            y = layer(torch.cat([y, stored.pop()], dim=1), t) if isinstance(layer, ConvBlock) else layer(y)
        return self.leave(y)[:, :num_visits]
