"""Text alone, read by a language model: with adapters tuned on the labels, or as it comes under a linear layer."""

from collections.abc import Mapping, Sequence
from typing import Any

from jaxtyping import Float
from torch import Tensor

from ehrlab.core.batch import Batch
from ehrlab.core.model import AnyPhase, Phase, RiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.language import LanguageModel, text_head


class TextLlm(RiskModel):
    """llm: settings of nn.language.LanguageModel; rank 0 freezes the language model."""

    requires = frozenset({"text"})
    reads_order = False

    def __init__(self, spec: DataSpec, llm: Mapping[str, Any]) -> None:
        super().__init__()
        assert spec.text is not None
        self.llm = LanguageModel(spec.text, **llm)
        self.head = text_head(self.llm, spec.num_labels)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert batch.text is not None
        is_tuned = len(self.llm.adapters) > 0
        return self.head(self.llm(batch.text) if is_tuned else self.llm.frozen(batch.text))

    def phases(self) -> Sequence[AnyPhase]:
        # "notes" is MEDFuse's phase of the same work, and so takes its recipe
        name = "notes" if len(self.llm.adapters) else "fit"
        return [Phase(name, (Turn(self.loss, self.parameters),))]
