"""MEDFuse (arXiv 2407.12309): laboratory tests and notes, learned one by one, fused into specific and common parts.

Parts and their equations: nn/mltm.py, nn/language.py, nn/disentangle.py, nn/vclub.py. The paper's text was not at hand;
what it leaves open, and what we know of it only at second hand: docs/papers/medfuse.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import LossDict, Needs, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.disentangle import DenseFusion, DisentangledTransformer, residual
from ehrlab.nn.labs_and_text import LabsAndTextModel, fields_read
from ehrlab.nn.vclub import VClub


class MedFuse(LabsAndTextModel):
    """L = BCE + lambda_mi max(0, I_vCLUB(S_A, S_B ; S_C)) / D

    BCE is a mean over labels, and so the information, a sum over the D entries of S_C, is a mean over these: lambda
    then weighs the same at every width. No mutual information is below 0: an estimate that is says that q has fallen
    behind, and is not lowered further.

    labs          mltm, scratch (without the masked pretraining) or none
    text          lora, frozen or none
    disentangle   false: the two vectors go into the dense fusion as they are; so does one vector alone
    lambda_mi     0: the mutual information is estimated and logged, but not lowered
    estimator_dim, estimator_moves   hidden width of q; its moves before each of the fusion's
    hidden_dim, depth, dropout       of the dense fusion
    """

    def __init__(
        self,
        spec: DataSpec,
        mltm: Mapping[str, Any],
        llm: Mapping[str, Any],
        transformer: Mapping[str, Any],
        labs: str = "mltm",
        text: str = "lora",
        disentangle: bool = True,
        lambda_mi: float = 0.1,
        estimator_dim: int = 64,
        estimator_moves: int = 3,
        hidden_dim: int = 64,
        depth: int = 2,
        dropout: float = 0.1,
    ) -> None:
        if lambda_mi < 0:
            raise InputError(f"model.lambda_mi: expected at least 0, found {lambda_mi}")
        super().__init__(spec, mltm, llm, labs, text)
        self.lambda_mi, self.estimator_moves = lambda_mi, estimator_moves
        a_dim, b_dim = self.paths.labs_dim, self.paths.text_dim
        self.disentangle: DisentangledTransformer | None = None
        self.vclub: VClub | None = None
        if disentangle and a_dim and b_dim:
            self.disentangle = DisentangledTransformer(a_dim, b_dim, **transformer)
            a_dim = b_dim = width = self.disentangle.width
            self.f_a, self.f_b = residual(width, dropout), residual(width, dropout)
            self.vclub = VClub(2 * width, width, estimator_dim)
        self.fusion = DenseFusion(a_dim + b_dim + (a_dim if self.vclub else 0), hidden_dim, depth, dropout)
        self.head = nn.Linear(self.fusion.out_dim, spec.num_labels)

    @classmethod
    def needs(cls, unit: str, settings: Mapping[str, Any]) -> Needs:
        return Needs(fields_read(settings.get("labs", "mltm"), settings.get("text", "lora")))

    def features(self, batch: Batch) -> tuple[Float[Tensor, "B D"], Float[Tensor, "B D"], Float[Tensor, "B D"]]:
        """(S_A, S_B, S_C): specific to the tests, specific to the text, common"""
        assert self.disentangle is not None
        z_a, z_b = self.paths(batch)
        found: tuple[Tensor, Tensor, Tensor] = self.disentangle(z_a, z_b)
        return found

    def classify(self, features: Sequence[Float[Tensor, "B _"]]) -> Float[Tensor, "B K"]:
        """f_A(S_A), S_C, f_B(S_B) side by side, dense layers, K logits"""
        if self.disentangle is not None:
            s_a, s_b, s_c = features
            features = [s_a + self.f_a(s_a), s_c, s_b + self.f_b(s_b)]
        return self.head(self.fusion(torch.cat(list(features), dim=1)))

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.classify(self.paths(batch) if self.disentangle is None else self.features(batch))

    def loss(self, batch: Batch) -> LossDict:
        assert batch.labels is not None
        if self.disentangle is None or self.vclub is None:
            return super().loss(batch)
        s_a, s_b, s_c = self.features(batch)
        risk = F.binary_cross_entropy_with_logits(self.classify((s_a, s_b, s_c)), batch.labels)
        information = self.vclub.bound(torch.cat([s_a, s_b], dim=1), s_c) / s_c.shape[1]
        return {
            "loss": risk + self.lambda_mi * information.clamp(min=0),
            "risk": risk,
            "mutual_information": information,
        }

    def estimator_loss(self, batch: Batch) -> LossDict:
        assert self.vclub is not None
        with torch.no_grad():
            s_a, s_b, s_c = self.features(batch)
        return {"loss": self.vclub.negative_log_likelihood(torch.cat([s_a, s_b], dim=1), s_c)}

    def turns(self) -> Sequence[Turn]:
        fuse = Turn(self.loss, self.trained_last)
        if self.vclub is None:
            return [fuse]
        return [Turn(self.estimator_loss, self.vclub.parameters, "estimator", self.estimator_moves), fuse]

    def trained_last(self) -> Iterable[nn.Parameter]:
        of_estimator = set() if self.vclub is None else set(self.vclub.parameters())
        return [parameter for parameter in super().trained_last() if parameter not in of_estimator]
