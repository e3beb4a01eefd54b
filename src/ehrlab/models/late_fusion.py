"""Late fusion: each modality has its logits, and their mean is trained."""

from collections.abc import Mapping
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.spec import DataSpec
from ehrlab.nn.labs_and_text import LabsAndTextModel
from ehrlab.nn.language import text_head


class LateFusion(LabsAndTextModel):
    """logits = (W_A z_A + W_B z_B) / 2. Both paths are trained before as MEDFuse's; mltm and llm are its settings."""

    def __init__(self, spec: DataSpec, mltm: Mapping[str, Any], llm: Mapping[str, Any]) -> None:
        super().__init__(spec, mltm, llm)
        assert self.paths.llm is not None
        self.labs_head = nn.Linear(self.paths.labs_dim, spec.num_labels)
        self.text_head = text_head(self.paths.llm, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        z_a, z_b = self.paths(batch)
        return (self.labs_head(z_a) + self.text_head(z_b)) / 2
