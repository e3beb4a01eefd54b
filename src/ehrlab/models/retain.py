"""RETAIN (Choi et al. 2016, arXiv 1608.05745): reverse-time attention over visits and over embedding dimensions.

Written from the paper. Its release also halves the hidden states of both RNNs, which the paper does not mention: left
out. As a backbone (see `encode`) and for the public re-implementations' errors: docs/papers/retain.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import CodeSum
from ehrlab.nn.masking import last_valid, masked_softmax, reverse_valid


class Retain(SequenceRiskModel):
    """logit = W sum_j alpha_j beta_j * v_j + b. Step numbers are those of the paper's section 2.2."""

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        alpha_dim: int = 256,
        beta_dim: int = 256,
        dropout_embed: float = 0.5,
        dropout_context: float = 0.5,
    ) -> None:
        super().__init__()
        self.embed_dim = self.hidden_dim = embed_dim  # the states are contexts, in the space of the embeddings
        self.codes = CodeSum(spec.num_codes, embed_dim)
        self.alpha_rnn = nn.GRU(embed_dim, alpha_dim, batch_first=True)
        self.beta_rnn = nn.GRU(embed_dim, beta_dim, batch_first=True)
        # Without b_alpha: the softmax over visits cancels it, it would never get a gradient.
        self.alpha_head = nn.Linear(alpha_dim, 1, bias=False)
        self.beta_head = nn.Linear(beta_dim, embed_dim)
        self.dropout_embed = nn.Dropout(dropout_embed)
        self.dropout_context = nn.Dropout(dropout_context)
        self.head = nn.Linear(embed_dim, spec.num_labels)

    def attention(
        self, v: Float[Tensor, "B V E"], visits: Visits
    ) -> tuple[Float[Tensor, "B V 1"], Float[Tensor, "B V E"]]:
        """alpha, one weight per visit; beta, one per visit and dimension. Both RNNs read from the last visit back."""
        mask = visits.mask
        backwards = reverse_valid(v, mask)
        # g before it is turned round: alpha_head reads each state alone, and turning its one number costs less.
        scores = reverse_valid(self.alpha_head(self.alpha_rnn(backwards)[0]), mask)
        h = reverse_valid(self.beta_rnn(backwards)[0], mask)
        alpha = masked_softmax(scores, mask[..., None], dim=1)  # step 2
        return alpha, torch.tanh(self.beta_head(h))  # step 3

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        return self.dropout_embed(self.codes(visits.codes))  # step 1: v = W_emb x

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V E"]:
        """h_k = sum over j <= k of alpha_j beta_j * v_j: the context so far; the last one is the paper's c (step 4).

        The weights are those of the whole sequence, so h_k depends on later visits too.
        """
        alpha, beta = self.attention(e, visits)
        return (alpha * beta * e).cumsum(1)

    def classify(self, h: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B K"]:
        return self.head(self.dropout_context(last_valid(h, visits.mask)))  # step 5

    def contributions(self, visits: Visits) -> Float[Tensor, "B V C K"]:
        """What each code adds to each logit: alpha_j W (beta_j * W_emb[:, code])    (Eq. 5). 0 at padding.

        In eval mode they sum to the logit minus the head's bias.
        """
        alpha, beta = self.attention(self.embed(visits), visits)
        rows = F.embedding(visits.codes, self.codes.table.weight) * (visits.codes > 0)[..., None]
        return F.linear((alpha * beta)[:, :, None] * rows, self.head.weight)
