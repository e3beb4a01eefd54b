"""LSAN (Ye et al. 2020, CIKM): attention over the codes of a visit and over visits; a Transformer beside a convolution.

HAM is the paper's hierarchical attention module (both attentions), TAM its temporal aggregation module (Transformer for
long-term dependencies, convolution for short-term correlations). Departs from the authors' code in what padding does:
no attention sees it. What the paper leaves open: docs/papers/lsan.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.ddpm import timestep_embedding
from ehrlab.nn.masking import masked_softmax


def scorer(input_dim: int, width: int, dropout: float, bias: bool) -> nn.Sequential:
    """Three layers that score one vector. The last has no bias: the softmax over the scores cancels it."""
    return nn.Sequential(
        nn.Linear(input_dim, width, bias=bias),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width, width // 2, bias=bias),
        nn.ReLU(),
        nn.Dropout(dropout),
        nn.Linear(width // 2, 1, bias=False),
    )


class LSAN(SequenceRiskModel):
    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        code_attention_dim: int = 64,
        visit_attention_dim: int = 128,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        self.embed_dim, self.hidden_dim = embed_dim, 2 * embed_dim  # the states are [long-term; short-term]
        self.codes = nn.Embedding(spec.num_codes, embed_dim, padding_idx=0)
        self.code_scorer = scorer(embed_dim, code_attention_dim, dropout, bias=False)
        self.dropout = nn.Dropout(dropout)
        self.long_term = nn.TransformerEncoderLayer(embed_dim, num_heads, 4 * embed_dim, dropout, batch_first=True)
        self.short_term = nn.Conv1d(embed_dim, embed_dim, kernel_size=3, padding=1)
        self.visit_scorer = scorer(2 * embed_dim, visit_attention_dim, dropout, bias=True)
        self.head = nn.Linear(2 * embed_dim, spec.num_labels)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        """HAM, codes: v_k = sum_c a_kc e_c, the weights a softmax over the visit's codes. 0 for a visit without any."""
        e = self.codes(visits.codes)
        weight = masked_softmax(self.code_scorer(e), (visits.codes > 0)[..., None], dim=2)
        return self.dropout((weight * e).sum(2))

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        """TAM: h_k = [Transformer(v + p)_k; Conv(v)_k]; both look ahead. Positions p count from the first visit."""
        # The convolution's window reaches over the last visit, where it must find what lies before the first one: 0.
        v = e * visits.mask[..., None]
        position = timestep_embedding(torch.arange(v.shape[1], device=v.device), self.embed_dim)
        long_term = self.long_term(v + position, src_key_padding_mask=~visits.mask)
        short_term = self.short_term(v.transpose(1, 2)).transpose(1, 2)
        return torch.cat([long_term, short_term], dim=-1)

    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]:
        """HAM, visits: W sum_k b_k h_k, the weights a softmax over the patient's visits."""
        weight = masked_softmax(self.visit_scorer(h), visits.mask[..., None], dim=1)
        return self.head((weight * h).sum(1))
