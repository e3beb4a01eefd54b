"""Fusion by concatenation: a multilayer perceptron on the vectors of both modalities side by side."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.spec import DataSpec
from ehrlab.nn.labs_and_text import LabsAndTextModel


class ConcatFusion(LabsAndTextModel):
    """logits = MLP([z_A, z_B]). Both paths are trained before as MEDFuse's; mltm and llm are its settings."""

    def __init__(
        self,
        spec: DataSpec,
        mltm: Mapping[str, Any],
        llm: Mapping[str, Any],
        hidden_dim: int = 64,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(spec, mltm, llm)
        self.norm_text = nn.LayerNorm(self.paths.text_dim)
        self.layers = nn.Sequential(
            nn.Linear(self.paths.labs_dim + self.paths.text_dim, hidden_dim),
            nn.GELU(),
            nn.Dropout(dropout),
            nn.Linear(hidden_dim, spec.num_labels),
        )

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        z_a, z_b = self.paths(batch)
        return self.layers(torch.cat([z_a, self.norm_text(z_b)], dim=1))
