"""F-LSTM: the LSTM of FIDDLE (Tang et al. 2020, JAMIA 27(12)) on its hourly binary features.

The demographics are repeated beside every hour. Sizes, which FIDDLE searches at random: docs/papers/fiddle.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.hourly import LSTMEncoder
from ehrlab.nn.stays import last_stay


class FLSTM(RiskModel):
    """logit = W ReLU(W' h_H + b') + b, h from an LSTM over [x_j; d]."""

    requires = frozenset({"stays", "demographics"})

    def __init__(
        self,
        spec: DataSpec,
        hidden_dim: int = 256,
        dense_dim: int = 64,
        num_layers: int = 1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        assert spec.stays is not None
        num_features = spec.stays.num_features + spec.num_demographics
        self.encoder = LSTMEncoder(num_features, hidden_dim, dense_dim, num_layers, dropout)
        self.head = nn.Linear(dense_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        assert batch.demographics is not None
        x = last_stay(batch.stays)
        d = batch.demographics[:, None].expand(-1, x.shape[1], -1)
        return self.head(self.encoder(torch.cat([x, d], dim=-1)))
