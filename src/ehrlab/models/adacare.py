"""AdaCare (Ma et al. 2020, arXiv 1911.12205): visits and their trends at several scales, all recalibrated.

Departs from the paper: its inputs are lab values with a risk after every step; here embedded codes, with one risk after
the last visit. Written from the release's equations; its gates look at their own step alone, so its loop over time is
one pass. What it leaves optional and what the MedDiffusion group changed: docs/papers/adacare.md.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import CodeSum
from ehrlab.nn.masking import last_valid


class CausalConv(nn.Module):
    """y_t = b + sum over i < kernel_size of W_i x_{t - i dilation}; x is 0 before the first visit."""

    def __init__(self, input_dim: int, output_dim: int, kernel_size: int, dilation: int) -> None:
        super().__init__()
        self.reach = (kernel_size - 1) * dilation
        self.conv = nn.Conv1d(input_dim, output_dim, kernel_size, dilation=dilation)

    def forward(self, x: Float[Tensor, "B I V"]) -> Float[Tensor, "B O V"]:
        return self.conv(F.pad(x, (self.reach, 0)))


class Recalibration(nn.Module):
    """x * sigmoid(W_2 ReLU(W_1 x + b_1) + b_2), each visit alone; W_1 squeezes by `reduction`."""

    def __init__(self, dim: int, reduction: int) -> None:
        super().__init__()
        if not 1 <= reduction <= dim:
            raise InputError(f"AdaCare's reduction: expected 1 .. {dim}, the features it squeezes, found {reduction}")
        self.squeeze = nn.Linear(dim, dim // reduction)
        self.excite = nn.Linear(dim // reduction, dim)

    def gates(self, x: Float[Tensor, "B V F"]) -> Float[Tensor, "B V F"]:
        """How much of each feature passes, 0 to 1: its importance at this visit."""
        return self.excite(F.relu(self.squeeze(x))).sigmoid()

    def forward(self, x: Float[Tensor, "B V F"]) -> Float[Tensor, "B V F"]:
        return self.gates(x) * x


class AdaCare(SequenceRiskModel):
    """h_t = GRU([recalibrated trends; recalibrated visit], h_{t-1}), logit = W h_T + b.

    conv_dim           filters for each dilation
    dilations          how many visits back a trend looks; with kernel_size 2 visit t is set against visit t - dilation
    reduction_conv     r of the trends' recalibration
    reduction_input    r of the visits' recalibration
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        conv_dim: int = 64,
        kernel_size: int = 2,
        dilations: Sequence[int] = (1, 3, 5),
        reduction_conv: int = 4,
        reduction_input: int = 4,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embed_dim, self.hidden_dim = embed_dim, hidden_dim
        trend_dim = len(dilations) * conv_dim
        self.codes = CodeSum(spec.num_codes, embed_dim)
        self.convs = nn.ModuleList(CausalConv(embed_dim, conv_dim, kernel_size, dilation) for dilation in dilations)
        self.recalibrate_trends = Recalibration(trend_dim, reduction_conv)
        self.recalibrate_visit = Recalibration(embed_dim, reduction_input)
        self.rnn = nn.GRU(trend_dim + embed_dim, hidden_dim, batch_first=True)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, spec.num_labels)

    def trends(self, e: Float[Tensor, "B V E"]) -> Float[Tensor, "B V F"]:
        """The convolutions' features, dilation by dilation; visit t's see visits t, t - dilation, ... and no other."""
        x = e.transpose(1, 2)
        return F.relu(torch.cat([conv(x) for conv in self.convs], dim=1)).transpose(1, 2)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        return self.codes(visits.codes)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        # Padding is on the right, convolutions and GRU look left: no real state sees it.
        return self.rnn(torch.cat([self.recalibrate_trends(self.trends(e)), self.recalibrate_visit(e)], dim=-1))[0]

    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]:
        return self.head(self.dropout(last_valid(h, visits.mask)))
