"""T-LSTM (Baytas et al., KDD 2017, Patient Subtyping via Time-Aware LSTM Networks): the short-term memory fades.

Departs from the paper: visits are embedded first (there the cell reads the multi-hot vector), as in all rows of
MedDiffusion's table. The MedDiffusion group's row is another model: docs/papers/tlstm.md.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import VisitEmbedding
from ehrlab.nn.masking import last_valid


def days_since_previous(visits: Visits) -> Float[Tensor, "B V"]:
    """Delta_k = t_k - t_{k-1}; 0 for the first visit, which has no previous one, and at padding."""
    days = visits.days_before_last
    gaps = torch.cat([torch.zeros_like(days[:, :1]), days[:, :-1] - days[:, 1:]], dim=1)
    return gaps * visits.mask


class TimeAwareLSTM(nn.Module):
    """One LSTM layer that splits its memory before each visit and discounts the short-term part by elapsed time.

    S = tanh(W_d C_{k-1} + b_d)                  short-term memory
    C* = (C_{k-1} - S) + g(Delta_k) S            g(Delta) = 1 / log(e + Delta), Delta in days
    i, f, o = sigmoid(W x_k + U h_{k-1} + b)     one (W, U, b) for each
    C_k = f * C* + i * tanh(W_c x_k + U_c h_{k-1} + b_c)
    h_k = o * tanh(C_k)
    """

    def __init__(self, embed_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.hidden_dim = hidden_dim
        # Rows of both: i, f, candidate, o (torch.nn.LSTM's order).
        self.of_visit = nn.Linear(embed_dim, 4 * hidden_dim)
        self.of_state = nn.Linear(hidden_dim, 4 * hidden_dim, bias=False)
        self.short_term = nn.Linear(hidden_dim, hidden_dim)  # W_d, b_d

    def forward(self, e: Float[Tensor, "B V E"], gaps: Float[Tensor, "B V"]) -> Float[Tensor, "B V D"]:
        """h_1 .. h_V from h_0 = C_0 = 0."""
        # All that does not depend on the previous step, for all visits at once.
        from_visits = self.of_visit(e).unbind(1)
        faded = (1 - 1 / torch.log(math.e + gaps))[..., None].unbind(1)  # 1 - g
        h = c = e.new_zeros(len(e), self.hidden_dim)
        states = []
        for from_visit, fade in zip(from_visits, faded):
            c = c - fade * torch.tanh(self.short_term(c))  # C* = C - (1 - g) S
            i, f, candidate, o = (from_visit + self.of_state(h)).chunk(4, dim=1)
            c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(candidate)
            h = torch.sigmoid(o) * torch.tanh(c)
            states.append(h)
        return torch.stack(states, dim=1)


class TLSTM(SequenceRiskModel):
    """h_V of the time-aware LSTM, a ReLU layer, a linear one."""

    def __init__(self, spec: DataSpec, embed_dim: int = 256, hidden_dim: int = 256, head_dim: int = 64) -> None:
        super().__init__()
        self.embed_dim, self.hidden_dim = embed_dim, hidden_dim
        self.visit = VisitEmbedding(spec.num_codes, embed_dim)
        self.rnn = TimeAwareLSTM(embed_dim, hidden_dim)
        self.head = nn.Sequential(nn.Linear(hidden_dim, head_dim), nn.ReLU(), nn.Linear(head_dim, spec.num_labels))

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        return self.visit(visits.codes)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        return self.rnn(e, days_since_previous(visits))

    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]:
        return self.head(last_valid(h, visits.mask))
