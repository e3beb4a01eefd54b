"""Timeline (Bai et al. 2018, KDD, doi 10.1145/3219819.3219904): every code fades with time at a pace of its own.

Departs from the paper: that predicts the next visit's diagnosis and counts time back from it, here one risk, and time
back from the last visit. Written from the release; its slips and the unit of time: docs/papers/timeline.md.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.masking import last_valid, masked_softmax, reverse_valid


class Timeline(SequenceRiskModel):
    """e_k = sum_c delta_c(Delta_k) a_c: a_c is code c in the light of its visit, delta_c what is left of it today.

    a_c              = sum over the visit's codes i of alpha_ci v_i, alpha = softmax_i((W_Q v_c) . (W_K v_i) / sqrt(d))
    delta_c(Delta)   = sigmoid(theta_c Delta + mu_c); theta_c < 0 fades, near 0 is chronic
    hidden_dim       of each direction of the LSTM; a state is twice as wide
    days_per_unit    Delta = days to the last visit / days_per_unit
    theta, mu        where theta_c and mu_c start, the same for every code
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        attention_dim: int = 256,
        hidden_dim: int = 256,
        days_per_unit: float = 30.0,
        theta: float = -0.1,
        mu: float = 1.0,
        dropout: float = 0.2,
    ) -> None:
        super().__init__()
        if days_per_unit <= 0:
            raise InputError(f"Timeline's days_per_unit: expected a number of days > 0, found {days_per_unit}")
        self.embed_dim, self.hidden_dim = embed_dim, 2 * hidden_dim
        self.days_per_unit = days_per_unit
        self.codes = nn.Embedding(spec.num_codes, embed_dim, padding_idx=0)
        self.theta = nn.Embedding.from_pretrained(torch.full((spec.num_codes, 1), theta), freeze=False)
        self.mu = nn.Embedding.from_pretrained(torch.full((spec.num_codes, 1), mu), freeze=False)
        self.dropout = nn.Dropout(dropout)
        self.query = nn.Linear(embed_dim, attention_dim, bias=False)
        self.key = nn.Linear(embed_dim, attention_dim, bias=False)
        self.forward_rnn = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.backward_rnn = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.head = nn.Linear(self.hidden_dim, spec.num_labels)

    def decay(self, visits: Visits) -> Float[Tensor, "B V C"]:
        """delta: what is left of each code at the last visit, 0 to 1; exactly 0 at padding."""
        delta = visits.days_before_last[..., None] / self.days_per_unit
        theta, mu = self.theta(visits.codes).squeeze(-1), self.mu(visits.codes).squeeze(-1)
        return torch.sigmoid(theta * delta + mu) * (visits.codes > 0)

    def attention(self, v: Float[Tensor, "B V C E"], visits: Visits) -> Float[Tensor, "B V C C"]:
        """alpha[c, i]: how much code c takes from code i of its visit; rows sum to 1 over the real codes."""
        q, k = self.query(v), self.key(v)
        scores = q @ k.transpose(-1, -2) / math.sqrt(q.shape[-1])
        return masked_softmax(scores, (visits.codes > 0)[..., None, :], dim=-1)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        v = self.dropout(self.codes(visits.codes))
        # sum_c delta_c sum_i alpha_ci v_i, with the scalars multiplied first: no vector a_c is ever made.
        share = self.decay(visits)[..., None, :] @ self.attention(v, visits)  # B V 1 C
        return (share @ v).squeeze(-2)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        """h_k = [forward; backward]; the backward LSTM starts at the last real visit, so h_k knows later visits."""
        backward = reverse_valid(self.backward_rnn(reverse_valid(e, visits.mask))[0], visits.mask)
        return torch.cat([self.forward_rnn(e)[0], backward], dim=-1)

    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]:
        """From each direction's state once it has read all visits: at the last one and at the first one."""
        forward, backward = h.chunk(2, dim=-1)
        return self.head(torch.cat([last_valid(forward, visits.mask), backward[:, 0]], dim=-1))

    def progression(self, days: Float[Tensor, " T"]) -> Float[Tensor, "N T"]:
        """delta_c after so many days, for every code of the vocabulary: the paper's disease progression functions."""
        return torch.sigmoid(F.linear(self.theta.weight, days[:, None] / self.days_per_unit) + self.mu.weight)
