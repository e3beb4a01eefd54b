"""MedSkim (Cui et al. 2022, ICDM): reads a record while skipping codes and visits that do not matter to the target.

Departs from the authors' code: gates are deterministic at inference, a dropped code is gone from the attention, and the
target's embedding, a constant for one target, is left to the biases it is added to. Reasons: docs/papers/medskim.md.
"""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.core.model import LossDict, RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.embedding import TimeEmbedding
from ehrlab.nn.masking import masked_softmax, reverse_valid


def gate(logit: Float[Tensor, "..."], sample: bool) -> Float[Tensor, "..."]:
    """0 or 1. Sampled: 1 with probability sigmoid(logit), the gradient that of its relaxation. Otherwise logit > 0.

    The hard Gumbel softmax over (1, 0) with logits (logit, 0): the difference of two Gumbels is logistic.
    """
    if not sample:
        return (logit > 0).to(logit.dtype)
    soft = torch.sigmoid(logit + torch.logit(torch.rand_like(logit), eps=1e-6))
    return (soft > 0.5).to(soft.dtype) + (soft - soft.detach())


class Memory(nn.Module):
    """A state looks back at the states before it: attention, then a feed-forward block, each with a residual."""

    def __init__(self, dim: int, dropout: float) -> None:
        super().__init__()
        self.store = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))
        self.ask = nn.Sequential(nn.Linear(dim, dim), nn.ReLU(), nn.LayerNorm(dim))
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(dim)
        self.feed_forward = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.ReLU(), nn.Linear(4 * dim, dim), nn.Dropout(dropout)
        )
        self.norm_out = nn.LayerNorm(dim)

    def forward(self, h: Float[Tensor, "B E"], stored: list[Float[Tensor, "B E"]]) -> Float[Tensor, "B E"]:
        u, past = self.ask(h), torch.stack(stored, dim=1)
        weight = torch.einsum("be,bve->bv", u, past / u.shape[-1] ** 0.5).softmax(1)
        y = self.norm(u + self.dropout(torch.einsum("bv,bve->be", weight, past)))
        return self.norm_out(y + self.feed_forward(y))


class MedSkim(RiskModel):
    """No SequenceRiskModel: a visit is read through an attention over its codes that asks from the state before it, so
    there is no visit embedding made beforehand which an augmenter could replace; and its loss has a term of its own.
    """

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 256,
        probe_dim: int = 32,
        time_dim: int = 64,
        dropout: float = 0.1,
        skip_weight: float = 0.1,
        skip_target: float = 0.3,
    ) -> None:
        super().__init__()
        if not 0 <= skip_target <= 1 or skip_weight < 0:
            raise InputError(
                f"MedSkim: expected skip_target in [0, 1] and skip_weight >= 0, found {skip_target}, {skip_weight}"
            )
        self.skip_weight, self.skip_target = skip_weight, skip_target
        self.codes = nn.Embedding(spec.num_codes, embed_dim, padding_idx=0)
        self.time = TimeEmbedding(embed_dim, time_dim)
        self.keep = nn.Sequential(nn.Linear(embed_dim, embed_dim), nn.Tanh(), nn.Linear(embed_dim, 1))
        self.probe = nn.LSTM(embed_dim, probe_dim, batch_first=True)
        # What gate and query add from the visit itself and from the state before it; the former is known in advance.
        self.gate_visit = nn.Linear(embed_dim + probe_dim, embed_dim)
        self.gate_state = nn.Linear(embed_dim, embed_dim, bias=False)
        self.gate_head = nn.Linear(embed_dim, 1)
        self.query_visit = nn.Linear(probe_dim, embed_dim)
        self.query_state = nn.Linear(embed_dim, embed_dim, bias=False)
        self.read_codes = nn.Linear(embed_dim, embed_dim)
        self.cell = nn.GRUCell(embed_dim, embed_dim)
        self.memory = Memory(embed_dim, dropout)
        self.dropout = nn.Dropout(dropout)
        self.global_state = nn.Linear(embed_dim, embed_dim, bias=False)
        self.global_time = TimeEmbedding(embed_dim, time_dim)
        self.global_head = nn.Linear(embed_dim, 1, bias=False)  # the softmax over visits cancels a bias
        self.head = nn.Linear(embed_dim, spec.num_labels)

    def skim(self, visits: Visits) -> tuple[Float[Tensor, "B V E"], Float[Tensor, "B V C"], Float[Tensor, "B V"]]:
        """The states h_k; which codes are kept and which visits are read, as 0 and 1."""
        real = visits.codes > 0
        x = F.relu(self.dropout(self.codes(visits.codes)))
        # Code selection: one decision per code of the vocabulary, the same in all visits and patients of the batch.
        keep = gate(self.keep(self.codes.weight)[:, 0], self.training)[visits.codes] * real
        t = self.time(visits.days_before_last)
        s = torch.einsum("bvc,bvce->bve", keep, x) + t
        # Backward probing RNN: r_k has read the visits from the last one back to k.
        r = reverse_valid(self.probe(reverse_valid(s, visits.mask))[0], visits.mask)

        # Forward skipping RNN.
        gates, queries = self.gate_visit(torch.cat([s, r], dim=-1)), self.query_visit(r)
        h = torch.zeros_like(s[:, 0])
        states: list[Tensor] = []
        stored: list[Tensor] = []
        read: list[Tensor] = []
        # unbind, not an index per visit: the gradient of an index is as large as the whole record.
        steps = (part.unbind(1) for part in (gates, queries, x, real, keep, t))
        for gate_k, query_k, x_k, real_k, keep_k, t_k in zip(*steps):
            read_k = gate(self.gate_head(torch.tanh(gate_k + self.gate_state(h))), self.training)
            query = F.relu(query_k + self.query_state(h)) / h.shape[-1] ** 0.5
            weight = masked_softmax(torch.einsum("be,bce->bc", query, x_k), real_k, dim=1) * keep_k
            # Over the kept codes alone, by division and not by a mask: a dropped code must feel what it would add.
            total = weight.sum(1, keepdim=True)
            weight = weight / torch.where(total > 0, total, 1)
            z = self.read_codes(torch.einsum("bc,bce->be", weight, x_k)) + t_k
            h = read_k * self.cell(self.dropout(z), h) + (1 - read_k) * h
            if stored:
                h = self.memory(h, stored)
            else:  # DDP wants a gradient of every parameter, also where nobody in the batch has a second visit
                h = h + 0 * torch.stack([weight.sum() for weight in self.memory.parameters()]).sum()
            stored.append(self.memory.store(h))
            states.append(h)
            read.append(read_k[:, 0])
        return torch.stack(states, dim=1), keep, torch.stack(read, dim=1)

    def classify(self, h: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B K"]:
        """Attention over visits, told their days; a skipped visit takes part with the state that it left."""
        score = self.global_head(torch.tanh(self.global_state(h) + self.global_time(visits.days_before_last)))
        weight = masked_softmax(score, visits.mask[..., None], dim=1)
        return self.head((weight * h).sum(1))

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.visits is not None
        return self.classify(self.skim(batch.visits)[0], batch.visits)

    def loss(self, batch: Batch) -> LossDict:
        """Cross-entropy + skip_weight (skip_rate - skip_target)^2; a code is skipped if it or its visit is."""
        visits = batch.visits
        assert visits is not None
        assert batch.labels is not None
        h, keep, read = self.skim(visits)
        risk = F.binary_cross_entropy_with_logits(self.classify(h, visits), batch.labels)
        num_codes = (visits.codes > 0).sum().clamp(min=1)
        skip_rate = 1 - (keep * read[..., None]).sum() / num_codes
        loss = risk + self.skip_weight * (skip_rate - self.skip_target).square()
        return {"loss": loss, "risk": risk, "skip_rate": skip_rate}
