"""A multilayer perceptron on laboratory tests: values, 0 where not measured, beside whether they were."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import RiskModel
from ehrlab.core.spec import DataSpec


class LabsMlp(RiskModel):
    """One hidden layer. Values are in standard deviations, so that 0 is the training mean."""

    requires = frozenset({"labs"})
    reads_order = False

    def __init__(self, spec: DataSpec, hidden_dim: int = 128, dropout: float = 0.3) -> None:
        super().__init__()
        assert spec.labs is not None
        self.layers = nn.Sequential(
            nn.Linear(2 * spec.labs.num_tests, hidden_dim),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, spec.num_labels),
        )

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        labs = batch.labs
        assert labs is not None
        return self.layers(torch.cat([labs.values.where(labs.observed, 0.0), labs.observed.float()], dim=1))
