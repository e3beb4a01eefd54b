"""Dipole (Ma et al. 2017, arXiv 1706.05764): a bidirectional GRU whose last state attends to the states before it.

Departs from the paper: that predicts the codes of the next visit after each visit, here one risk after the last; the
location score has no bias. The MedDiffusion group's row is a simpler model: docs/papers/dipole.md.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import VisitEmbedding
from ehrlab.nn.masking import last_valid, masked_softmax, reverse_valid


class LocationScore(nn.Module):
    """w . h_i. Without the paper's b: the softmax cancels it, it would never get a gradient."""

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(state_dim, 1, bias=False)

    def forward(self, h: Float[Tensor, "B V D"], last: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        return self.weight(h).squeeze(-1)


class GeneralScore(nn.Module):
    """h_t^T W h_i"""

    def __init__(self, state_dim: int) -> None:
        super().__init__()
        self.weight = nn.Linear(state_dim, state_dim, bias=False)

    def forward(self, h: Float[Tensor, "B V D"], last: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        # (W^T h_t) . h_i: one product for each patient, not for each visit.
        return (h @ (last @ self.weight.weight)[..., None]).squeeze(-1)


class ConcatScore(nn.Module):
    """v . tanh(W [h_t; h_i])"""

    def __init__(self, state_dim: int, attention_dim: int) -> None:
        super().__init__()
        # W in its two halves, so that h_t is projected once and not once for each visit.
        self.of_last = nn.Linear(state_dim, attention_dim, bias=False)
        self.of_state = nn.Linear(state_dim, attention_dim, bias=False)
        self.score = nn.Linear(attention_dim, 1, bias=False)

    def forward(self, h: Float[Tensor, "B V D"], last: Float[Tensor, "B D"]) -> Float[Tensor, "B V"]:
        return self.score(torch.tanh(self.of_last(last)[:, None] + self.of_state(h))).squeeze(-1)


class Dipole(SequenceRiskModel):
    """logit = W_s tanh(W_c [c; h_t]) + b_s, c = sum_{i<t} alpha_i h_i, alpha = softmax(score), t the last visit.

    hidden_dim      of each direction; a state h_i = [forward; backward] is twice as wide
    attention       "location", "general" or "concat": how alpha is scored
    attention_dim   length of v; read by "concat" alone
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        hidden_dim: int = 256,
        attention: str = "location",
        attention_dim: int = 256,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.embed_dim, self.hidden_dim = embed_dim, 2 * hidden_dim
        self.visit = VisitEmbedding(spec.num_codes, embed_dim)
        self.forward_rnn = nn.GRU(embed_dim, hidden_dim, batch_first=True)
        self.backward_rnn = nn.GRU(embed_dim, hidden_dim, batch_first=True)
        self.score: nn.Module
        if attention == "location":
            self.score = LocationScore(self.hidden_dim)
        elif attention == "general":
            self.score = GeneralScore(self.hidden_dim)
        elif attention == "concat":
            self.score = ConcatScore(self.hidden_dim, attention_dim)
        else:
            raise InputError(f"Dipole's attention: expected location, general or concat, found {attention!r}")
        self.combine = nn.Linear(2 * self.hidden_dim, hidden_dim, bias=False)  # W_c
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, spec.num_labels)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        return self.visit(visits.codes)  # v_i = ReLU(W_v x_i + b_v)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        """h_i = [forward; backward]; the backward GRU starts at the last real visit."""
        backward = reverse_valid(self.backward_rnn(reverse_valid(e, visits.mask))[0], visits.mask)
        return torch.cat([self.forward_rnn(e)[0], backward], dim=-1)

    def attention(self, h: Float[Tensor, "B V D"], mask: Bool[Tensor, "B V"]) -> Float[Tensor, "B V"]:
        """alpha: sums to 1 over the visits before the last one; all 0 where there is none."""
        earlier = torch.arange(mask.shape[1], device=mask.device) < mask.sum(1, keepdim=True) - 1
        return masked_softmax(self.score(h, last_valid(h, mask)), earlier, dim=1)

    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]:
        alpha = self.attention(h, visits.mask)
        context = (alpha[..., None] * h).sum(1)  # 0 for a single visit
        combined = torch.tanh(self.combine(torch.cat([context, last_valid(h, visits.mask)], dim=-1)))
        return self.head(self.dropout(combined))
