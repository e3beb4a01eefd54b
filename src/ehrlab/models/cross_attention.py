"""Fusion by cross-attention without disentangling: each modality asks the other; nothing is kept apart or joint."""

from collections.abc import Mapping
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.spec import DataSpec
from ehrlab.nn.disentangle import CrossAttention
from ehrlab.nn.labs_and_text import LabsAndTextModel


class CrossAttentionFusion(LabsAndTextModel):
    """num_slots projections of each vector are its tokens, as in MEDFuse's transformer, of which the joint C = A (x) B,
    the mutual information and the dense fusion are left out.

    Both paths are trained before as MEDFuse's; mltm and llm are its settings.
    """

    def __init__(
        self,
        spec: DataSpec,
        mltm: Mapping[str, Any],
        llm: Mapping[str, Any],
        width: int = 64,
        num_slots: int = 4,
        num_heads: int = 4,
        dropout: float = 0.1,
    ) -> None:
        super().__init__(spec, mltm, llm)
        self.slots = (num_slots, width)

        def project(dim: int) -> nn.Sequential:
            return nn.Sequential(nn.LayerNorm(dim), nn.Linear(dim, num_slots * width))

        self.project_a, self.project_b = project(self.paths.labs_dim), project(self.paths.text_dim)
        self.a_asks_b = CrossAttention(width, num_heads, dropout)
        self.b_asks_a = CrossAttention(width, num_heads, dropout)
        self.head = nn.Linear(2 * width, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        z_a, z_b = self.paths(batch)
        a, b = self.project_a(z_a).unflatten(1, self.slots), self.project_b(z_b).unflatten(1, self.slots)
        return self.head(torch.cat([self.a_asks_b(a, b).mean(1), self.b_asks_a(b, a).mean(1)], dim=1))
