"""Notes alone: the vectors of a frozen encoder, averaged over an admission's notes, and a two-layer network.

Which encoder (ClinicalT5, ClinicalBERT, MiniLM, ...) is the data's setting notes.encoder: docs/papers/notes_mlp.md.
"""

import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.encode import masked_mean


class NotesMLP(RiskModel):
    """logit = W ReLU(W' mean_n v_n + b') + b; the mean over no note is 0."""

    requires = frozenset({"notes"})

    def __init__(self, spec: DataSpec, hidden_dim: int = 256, dropout: float = 0.1) -> None:
        super().__init__()
        assert spec.notes is not None
        self.hidden = nn.Linear(spec.notes.dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.notes is not None
        mean = masked_mean(batch.notes.vectors, batch.notes.mask)
        return self.head(self.dropout(F.relu(self.hidden(mean))))
