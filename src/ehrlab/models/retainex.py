"""RetainEX (Kwon et al. 2018, RetainVis, arXiv 1805.10724): RETAIN with time, two embeddings and both directions.

Departs from the paper: the interval enters in half years beside its two decays, which read days; same-day visits count
as one day apart. As a backbone (see `encode`), what the paper leaves open, the release: docs/papers/retainex.md.
"""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import CodeSum
from ehrlab.nn.masking import last_valid, masked_softmax, reverse_valid


def interval_features(days_before_last: Float[Tensor, "B V"]) -> Float[Tensor, "B V 3"]:
    """[Delta, 1 / Delta, 1 / log(e + Delta)] of the days Delta since the previous visit.

    Delta is 1 at the first visit, as in the paper, and never less. The first entry is in units of 180 days: the LSTM's
    input weights absorb a scale, but raw days close its gates from the start.
    """
    previous = torch.cat([days_before_last[:, :1], days_before_last[:, :-1]], dim=1)
    days = (previous - days_before_last).clamp(min=1)
    return torch.stack([days / 180, 1 / days, 1 / torch.log(math.e + days)], dim=-1)


class BiLSTM(nn.Module):
    """Forward and backward states of each visit side by side; the backward one starts at the last real visit."""

    def __init__(self, input_dim: int, hidden_dim: int) -> None:
        super().__init__()
        self.ahead = nn.LSTM(input_dim, hidden_dim, batch_first=True)
        self.back = nn.LSTM(input_dim, hidden_dim, batch_first=True)

    def forward(self, x: Float[Tensor, "B V I"], visits: Visits) -> Float[Tensor, "B V O"]:
        # reverse_valid instead of packing: packed lengths live on the CPU, a wait for the device in every step.
        back = reverse_valid(self.back(reverse_valid(x, visits.mask))[0], visits.mask)
        return torch.cat([self.ahead(x)[0], back], dim=-1)


class RetainEX(SequenceRiskModel):
    """logit = W sum_j alpha_j beta_j * v^b_j + b, where alpha and beta read v^a and the intervals, and never v^b."""

    def __init__(self, spec: DataSpec, embed_dim: int = 256, alpha_dim: int = 256, beta_dim: int = 256) -> None:
        super().__init__()
        self.embed_dim = 2 * embed_dim  # what an augmenter generates: [v^a; v^b]
        self.hidden_dim = embed_dim
        self.attention_codes = CodeSum(spec.num_codes, embed_dim)
        self.context_codes = CodeSum(spec.num_codes, embed_dim)
        self.alpha_rnn = BiLSTM(embed_dim + 3, alpha_dim)
        self.beta_rnn = BiLSTM(embed_dim + 3, beta_dim)
        # Without b_alpha: the softmax over visits cancels it, it would never get a gradient.
        self.alpha_head = nn.Linear(2 * alpha_dim, 1, bias=False)
        self.beta_head = nn.Linear(2 * beta_dim, embed_dim)
        self.head = nn.Linear(embed_dim, spec.num_labels)

    def attention(
        self, v_attention: Float[Tensor, "B V H"], visits: Visits
    ) -> tuple[Float[Tensor, "B V 1"], Float[Tensor, "B V H"]]:
        """alpha, one weight per visit; beta, one per visit and dimension."""
        timed = torch.cat([v_attention, interval_features(visits.days_before_last)], dim=-1)
        g = self.alpha_rnn(timed, visits)
        h = self.beta_rnn(timed, visits)
        alpha = masked_softmax(self.alpha_head(g), visits.mask[..., None], dim=1)
        return alpha, torch.tanh(self.beta_head(h))

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        return torch.cat([self.attention_codes(visits.codes), self.context_codes(visits.codes)], dim=-1)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V H"]:
        """h_k = sum over j <= k of alpha_j beta_j * v^b_j: the context so far; the last one is the paper's.

        The weights are those of the whole sequence, so h_k depends on later visits too.
        """
        v_attention, v_context = e.chunk(2, dim=-1)
        alpha, beta = self.attention(v_attention, visits)
        return (alpha * beta * v_context).cumsum(1)

    def classify(self, h: Float[Tensor, "B V H"], visits: Visits) -> Float[Tensor, "B K"]:
        return self.head(last_valid(h, visits.mask))

    def contributions(self, visits: Visits) -> Float[Tensor, "B V C K"]:
        """What each code adds to each logit: alpha_j W (beta_j * W^b[:, code]). 0 at padding.

        They sum to the logit minus the head's bias.
        """
        alpha, beta = self.attention(self.attention_codes(visits.codes), visits)
        rows = F.embedding(visits.codes, self.context_codes.table.weight) * (visits.codes > 0)[..., None]
        return F.linear((alpha * beta)[:, :, None] * rows, self.head.weight)
