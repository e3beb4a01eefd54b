"""RAIM (Xu et al. 2018, arXiv 1807.08820): at every hour, attention over the hours so far and over channels.

Hourly features and demographics as in MEDHMP's Table 1, so that nobody says which hours hold the clinical events that
guide the attention: here a gate learns it. Where release and re-implementations differ: docs/papers/raim.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.masking import masked_softmax, shift_right
from ehrlab.nn.stays import last_stay


class Raim(RiskModel):
    """x_j = ReLU(W_x u_j + b_x) for the features u_j of hour j; its dimensions are the channels.

        guide      g_j = sigmoid(w_g . u_j + b_g) for hours j < t, 1 for the hour t itself
        hours      alpha_t = softmax_{j <= t} tanh(w_a . g_j x_j + (W_a h_{t-1} + b_a)_j)
        channels   beta_t = softmax_c tanh(sum_{j <= t} w_j g_j x_jc + (W_b h_{t-1} + b_b)_c)
        state      h_t = GRU(E beta_t * sum_{j <= t} alpha_tj x_j, h_{t-1})
        risk       logit = W (h_H + S d) + b for the demographics d

    The E = embed_dim before beta makes equal weights leave x as it is.
    """

    requires = frozenset({"stays", "demographics"})

    def __init__(self, spec: DataSpec, embed_dim: int = 256, hidden_dim: int = 256) -> None:
        super().__init__()
        assert spec.stays is not None
        num_hours = spec.stays.num_hours
        self.embed = nn.Linear(spec.stays.num_features, embed_dim)
        self.guide = nn.Linear(spec.stays.num_features, 1)
        self.hour_of_input = nn.Linear(embed_dim, 1, bias=False)  # w_a
        self.hour_of_state = nn.Linear(hidden_dim, num_hours)  # W_a, b_a
        self.channel_of_input = nn.Parameter(torch.randn(num_hours, 1) / num_hours**0.5)  # w_1 .. w_H
        self.channel_of_state = nn.Linear(hidden_dim, embed_dim)  # W_b, b_b
        self.cell = nn.GRUCell(embed_dim, hidden_dim)
        self.demographics = nn.Linear(spec.num_demographics, hidden_dim, bias=False)  # S; the head has a bias
        self.head = nn.Linear(hidden_dim, spec.num_labels)

    def encode(self, u: Float[Tensor, "B H F"]) -> Float[Tensor, "B D"]:
        """h_H"""
        x, g = F.relu(self.embed(u)), torch.sigmoid(self.guide(u))
        # What does not depend on the state is the same at every t and is made once: the scores of hours as a past and
        # as the present one, and the sums over j <= t.
        of_past, of_present = self.hour_of_input(g * x).squeeze(-1), self.hour_of_input(x).squeeze(-1)
        w = self.channel_of_input
        of_channels = shift_right((w * g * x).cumsum(1)) + w * x
        hours = torch.arange(x.shape[1], device=x.device)
        h = x.new_zeros(len(x), self.cell.hidden_size)
        for t in range(x.shape[1]):
            scores = torch.where(hours == t, of_present, of_past) + self.hour_of_state(h)
            alpha = masked_softmax(torch.tanh(scores), hours <= t, dim=1)
            beta = torch.tanh(of_channels[:, t] + self.channel_of_state(h)).softmax(-1)
            h = self.cell(x.shape[2] * beta * (alpha[:, None] @ x).squeeze(1), h)
        return h

    def risk(self, u: Float[Tensor, "B H F"], demographics: Float[Tensor, "B P"]) -> Float[Tensor, "B K"]:
        return self.head(self.encode(u) + self.demographics(demographics))

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        assert batch.demographics is not None
        return self.risk(last_stay(batch.stays), batch.demographics)
