"""Laboratory tests alone: MEDFuse's masked autoencoder, then its encoder and a linear layer on the labels."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.model import AnyPhase, Phase, RiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.labs_and_text import LabsAndText


class LabsMltm(RiskModel):
    """mltm: settings as MEDFuse's."""

    requires = frozenset({"labs"})
    reads_order = False

    def __init__(self, spec: DataSpec, mltm: Mapping[str, Any], labs: str = "mltm") -> None:
        super().__init__()
        self.paths = LabsAndText(spec, labs, "none", mltm, {})
        self.head = nn.Linear(self.paths.labs_dim, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        return self.head(self.paths.labs(batch))

    def phases(self) -> Sequence[AnyPhase]:
        fit = Turn(self.loss, lambda: [*self.paths.trained_with_the_fusion(), *self.head.parameters()])
        return [*self.paths.phases(frozenset({"training.phases.fuse"})), Phase("fit", (fit,))]
