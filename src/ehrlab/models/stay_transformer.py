"""Transformer encoder (Vaswani et al. 2017) over the hours of a stay; demographics are not read.

One layer and the maximum over hours, as in the MEDHMP group's baseline of that name; unlike it, hours have positions
and heads are standard: docs/papers/stay_unimodal.md.
"""

from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.nn.hourly import TransformerEncoder
from ehrlab.nn.stays import last_stay


class StayTransformer(RiskModel):
    """logit = W max_j h_j + b"""

    requires = frozenset({"stays"})

    def __init__(
        self,
        spec: DataSpec,
        width: int = 256,
        head_dim: int = 64,
        feedforward_dim: int = 1024,
        num_layers: int = 1,
        dropout_encoder: float = 0.1,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        assert spec.stays is not None
        self.encoder = TransformerEncoder(
            spec.stays.num_features, width, head_dim, num_layers, dropout_encoder, feedforward_dim
        )
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.stays is not None
        h = self.encoder.states(last_stay(batch.stays))
        return self.head(self.dropout(h).amax(1))
