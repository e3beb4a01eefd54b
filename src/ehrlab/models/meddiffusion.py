"""MedDiffusion (Zhong et al. 2024, arXiv 2310.02520): a risk model trained beside a generator of its visits.

A composition: any SequenceRiskModel (the paper: LSTM with time embedding; sec. 6.4: any baseline) and any Augmenter
(the paper: Diffusion; sec. 4.5: GANs). Choices and differences from the authors' code: docs/papers/meddiffusion.md.
"""

from collections.abc import Callable, Iterable, Sequence

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, Augmenter, LossDict, Phase, RiskModel, SequenceRiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.masking import shift_right


class MedDiffusion(RiskModel):
    """L = L_risk + lambda_s L_risk_synthetic + lambda_d L_augmenter    (Eq. 3.15)

    backbone    called with (spec)
    augmenter   called with (spec, embed_dim, hidden_dim); may give None: the backbone alone
    lambda_s    0 is ablation AS-3: no synthetic visit is made

    The risk is predicted from the original visits alone; one set of weights reads original and synthetic visits.
    """

    def __init__(
        self,
        spec: DataSpec,
        backbone: Callable[..., SequenceRiskModel],
        augmenter: Callable[..., Augmenter | None],
        lambda_s: float = 0.5,
        lambda_d: float = 0.1,
    ) -> None:
        super().__init__()
        if lambda_s < 0 or lambda_d < 0:
            raise InputError(f"MedDiffusion: expected lambda_s, lambda_d >= 0, found {lambda_s}, {lambda_d}")
        self.backbone = backbone(spec=spec)
        if not isinstance(self.backbone, SequenceRiskModel):
            raise InputError(
                "MedDiffusion's backbone: expected a model with visit embeddings and hidden states, a "
                f"SequenceRiskModel, found {type(self.backbone).__name__}"
            )
        self.augmenter = augmenter(spec=spec, embed_dim=self.backbone.embed_dim, hidden_dim=self.backbone.hidden_dim)
        self.lambda_s, self.lambda_d = lambda_s, lambda_d

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.backbone(batch)

    def loss(self, batch: Batch) -> LossDict:
        """Eq. 3.15. Gradients of all three terms reach all weights, as in the paper's Algorithm 1, line 22."""
        if self.augmenter is None:
            return self.backbone.loss(batch)
        visits, labels = batch.visits, batch.labels
        assert visits is not None
        assert labels is not None
        e = self.backbone.embed(visits)
        h = self.backbone.encode(e, visits)
        h_prev = shift_right(h)
        risk = F.binary_cross_entropy_with_logits(self.backbone.classify(h, visits), labels)  # Eq. 3.13, 3.16
        augmenter = self.augmenter.loss(e, h_prev, visits.mask, labels)
        losses = {"loss": risk + self.lambda_d * augmenter["loss"], "risk": risk}
        losses |= {f"augmenter_{name}": value for name, value in augmenter.items()}
        if self.lambda_s > 0:
            synthetic = self.backbone.encode(self.augmenter.sample(e, h_prev, visits.mask, labels), visits)
            risk_synthetic = F.binary_cross_entropy_with_logits(self.backbone.classify(synthetic, visits), labels)
            losses["risk_synthetic"] = risk_synthetic  # Eq. 3.14
            losses["loss"] = losses["loss"] + self.lambda_s * risk_synthetic
        return losses

    def critic_loss(self, batch: Batch) -> LossDict:
        """The adversary's view: embeddings and states are data to it."""
        visits, labels, augmenter = batch.visits, batch.labels, self.augmenter
        assert visits is not None
        assert labels is not None
        assert augmenter is not None
        with torch.no_grad():
            e = self.backbone.embed(visits)
            h_prev = shift_right(self.backbone.encode(e, visits))
        return augmenter.critic_loss(e, h_prev, visits.mask, labels)

    def phases(self) -> Sequence[AnyPhase]:
        if self.augmenter is None or not self.augmenter.critic_parameters():
            return super().phases()
        critic, moves = self.augmenter.critic_parameters(), self.augmenter.critic_moves
        of_critic = {id(parameter) for parameter in critic}

        def others() -> Iterable[nn.Parameter]:
            return [parameter for parameter in self.parameters() if id(parameter) not in of_critic]

        return [Phase("fit", (Turn(self.critic_loss, lambda: critic, "critic", moves), Turn(self.loss, others)))]
