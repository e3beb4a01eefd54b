"""Laboratory tests alone: MEDFuse's masked autoencoder, then its encoder and a linear layer on the labels."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.spec import DataSpec
from ehrlab.nn.labs_and_text import LabsAndTextModel


class LabsMltm(LabsAndTextModel):
    """mltm: settings as MEDFuse's."""

    requires = frozenset({"labs"})
    last_phase = "fit"

    def __init__(self, spec: DataSpec, mltm: Mapping[str, Any], labs: str = "mltm") -> None:
        super().__init__(spec, mltm, {}, labs, "none")
        self.head = nn.Linear(self.paths.labs_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.head(self.paths.labs(batch))
