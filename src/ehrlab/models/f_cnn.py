"""F-CNN: the convolutional network of FIDDLE (Tang et al. 2020, JAMIA 27(12)) on its hourly binary features.

The demographics are repeated beside every hour: docs/papers/fiddle.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.hourly import CNNEncoder
from ehrlab.nn.stays import last_stay


class FCNN(RiskModel):
    """logit = W ReLU(W' [c_1 .. c_{H/4}] + b') + b, c from two convolutions over the hours of [x_j; d]."""

    requires = frozenset({"stays", "demographics"})

    def __init__(
        self,
        spec: DataSpec,
        num_filters: int = 64,
        dense_dim: int = 64,
        num_layers: int = 2,
        dropout: float = 0.1,
    ) -> None:
        super().__init__()
        assert spec.stays is not None
        num_features = spec.stays.num_features + spec.num_demographics
        self.encoder = CNNEncoder(num_features, spec.stays.num_hours, num_filters, dense_dim, num_layers, dropout)
        self.head = nn.Linear(dense_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        assert batch.demographics is not None
        x = last_stay(batch.stays)
        d = batch.demographics[:, None].expand(-1, x.shape[1], -1)
        return self.head(self.encoder(torch.cat([x, d], dim=-1)))
