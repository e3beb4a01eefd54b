"""DCMN (Feng et al. 2019, ICDM): two gated memory cores, each asked with what the other one answered.

The paper's cores are waveforms and clinical series. MEDHMP gives it an hourly series and demographics: those are the
two cores here, and the demographics' memory has a slot for each of them: docs/papers/dcmn.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.stays import last_stay


class MemoryCore(nn.Module):
    """One hop: p = softmax_j(q . E m_j), o = sum_j p_j F m_j, answer = g * o + (1 - g) * q, g = sigmoid(G q + b)."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.keys = nn.Linear(hidden_dim, hidden_dim, bias=False)  # E
        self.values = nn.Linear(hidden_dim, hidden_dim, bias=False)  # F
        self.gate = nn.Linear(hidden_dim, hidden_dim)  # G, b

    def forward(self, query: Float[Tensor, "B D"], memory: Float[Tensor, "B M D"]) -> Float[Tensor, "B D"]:
        p = (self.keys(memory) @ query[..., None]).softmax(1)  # B M 1
        answer = (p * self.values(memory)).sum(1)
        g = torch.sigmoid(self.gate(query))
        return g * answer + (1 - g) * query


class DCMN(RiskModel):
    """`num_hops` times: the series' memory is asked q_s, that of the demographics q_d, and the answers change places.

    series         x_j = ReLU(W u_j + b), memory m_j = LSTM(x)_j, first question to the demographics: LSTM'(x)_H
    demographics   memory d_f e_f for each of them, first question to the series: tanh(W_d d + b_d)
    risk           logit = W [q_s; q_d] + b after the last hop
    """

    requires = frozenset({"stays", "demographics"})

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        num_hops: int = 2,
        dropout: float = 0.3,
    ) -> None:
        super().__init__()
        assert spec.stays is not None
        self.num_hops = num_hops
        self.embed = nn.Linear(spec.stays.num_features, embed_dim)
        self.series_memory = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.series_question = nn.LSTM(embed_dim, hidden_dim, batch_first=True)
        self.slots = nn.Parameter(torch.randn(spec.num_demographics, hidden_dim) / hidden_dim**0.5)  # e_f
        self.demographics_question = nn.Linear(spec.num_demographics, hidden_dim)
        self.series_core = MemoryCore(hidden_dim)
        self.demographics_core = MemoryCore(hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(2 * hidden_dim, spec.num_labels)

    def encode(self, u: Float[Tensor, "B H F"], demographics: Float[Tensor, "B P"]) -> Float[Tensor, "B C"]:
        """[q_s; q_d] after the last hop."""
        x = self.dropout(F.relu(self.embed(u)))
        of_series = self.series_memory(x)[0]
        of_demographics = demographics[..., None] * self.slots
        to_demographics = self.series_question(x)[0][:, -1]
        to_series = torch.tanh(self.demographics_question(demographics))
        for _ in range(self.num_hops):
            answer, other = (
                self.series_core(to_series, of_series),
                self.demographics_core(to_demographics, of_demographics),
            )
            to_series, to_demographics = other, answer
        return torch.cat([to_series, to_demographics], dim=-1)

    def risk(self, u: Float[Tensor, "B H F"], demographics: Float[Tensor, "B P"]) -> Float[Tensor, "B K"]:
        return self.head(self.dropout(self.encode(u, demographics)))

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        assert batch.demographics is not None
        return self.risk(last_stay(batch.stays), batch.demographics)
