"""HiTANet (Luo et al., KDD 2020): a Transformer over visits, pooled by local weights and by weights of time.

Follows its release (GitHub's HiTANet2020/HiTANet) where that is sound, with two departures: standard attention heads
(the release's mix positions) and no renormalisation of weights that already sum to 1. As a backbone (see `encode`) and
for the MedDiffusion group's row: docs/papers/hitanet.md.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.ddpm import timestep_embedding
from ehrlab.nn.embedding import CodeSum, TimeEmbedding
from ehrlab.nn.masking import last_valid, masked_softmax


class HiTANet(SequenceRiskModel):
    """logit = W sum_k gamma_k s_k + b, s_k the Transformer's states, gamma mixed from local and global weights.

    query_dim   length of the global query and of its keys, which are functions of time alone
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        time_dim: int = 64,
        query_dim: int = 64,
        feedforward_dim: int = 1024,
        num_heads: int = 4,
        num_layers: int = 1,
        dropout_encoder: float = 0.0,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        if embed_dim % num_heads or embed_dim % 2:
            raise InputError(f"HiTANet: expected embed_dim even, divisible by num_heads={num_heads}; found {embed_dim}")
        self.embed_dim = self.hidden_dim = embed_dim
        self.codes = CodeSum(spec.num_codes, embed_dim)
        self.bias = nn.Parameter(torch.zeros(embed_dim))
        self.time = TimeEmbedding(embed_dim, time_dim)
        # The dummy visit: its code, bias and time are constants, one learned vector.
        self.dummy = nn.Parameter(torch.randn(embed_dim))
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(embed_dim, num_heads, feedforward_dim, dropout_encoder, batch_first=True)
            for _ in range(num_layers)
        )
        # Without a bias: the softmax over visits cancels it, it would never get a gradient.
        self.local_score = nn.Linear(embed_dim, 1, bias=False)
        self.query = nn.Linear(embed_dim, query_dim)
        self.key = TimeEmbedding(query_dim, time_dim)
        self.mix = nn.Linear(embed_dim, 2)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(embed_dim, spec.num_labels)

    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        """e_k = W x_k + b + time_k, from the days to the last visit."""
        return self.codes(visits.codes) + self.bias + self.time(visits.days_before_last)

    def transform(
        self, e: Float[Tensor, "B V E"], visits: Visits
    ) -> tuple[Float[Tensor, "B E"], Float[Tensor, "B V E"]]:
        """s*, the state of a dummy visit after the last one, which stands for the patient; and s_1 .. s_V."""
        num_visits = visits.mask.sum(1)
        # Attention knows the order from the positions alone: the dummy may stand first where padding is on the right.
        x = torch.cat(
            [
                (self.dummy + timestep_embedding(num_visits, self.embed_dim).to(e.dtype))[:, None],
                e + timestep_embedding(torch.arange(e.shape[1], device=e.device), self.embed_dim).to(e.dtype),
            ],
            dim=1,
        )
        padding = torch.cat([torch.zeros_like(visits.mask[:, :1]), ~visits.mask], dim=1)
        for layer in self.layers:
            x = layer(x, src_key_padding_mask=padding)
        return x[:, 0], x[:, 1:]

    def attention(
        self, overall: Float[Tensor, "B E"], s: Float[Tensor, "B V E"], visits: Visits
    ) -> tuple[Float[Tensor, "B V"], Float[Tensor, "B V"], Float[Tensor, "B 2"]]:
        """alpha, local weights of the states; beta, global weights of the days as s* asks for them; the shares of both.

        alpha and beta sum to 1 over the real visits, the shares over the two.
        """
        alpha = masked_softmax(self.local_score(s).squeeze(-1), visits.mask, dim=1)
        query = torch.relu(self.query(overall))
        keys = torch.relu(self.key(visits.days_before_last))
        scores = (keys @ query[..., None]).squeeze(-1) / math.sqrt(query.shape[1])
        beta = masked_softmax(scores, visits.mask, dim=1)
        return alpha, beta, self.mix(overall).softmax(-1)

    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V E"]:
        """h_k = sum over j <= k of gamma_j s_j: the patient so far; the last one is HiTANet's whole patient.

        States and weights are those of the whole sequence, so h_k depends on later visits too.
        """
        overall, s = self.transform(e, visits)
        alpha, beta, shares = self.attention(overall, s, visits)
        gamma = shares[:, :1] * alpha + shares[:, 1:] * beta
        return (gamma[..., None] * s).cumsum(1)

    def classify(self, h: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B K"]:
        return self.head(self.dropout(last_valid(h, visits.mask)))
