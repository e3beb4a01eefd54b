"""The two paths of MEDFuse and of its rivals: a vector from laboratory tests, a vector from text, trained one by one.

Phase "labs" pretrains the encoder of tests by masking (nn/mltm.py); phase "notes" tunes the language model's adapters
on the labels (nn/language.py). What comes after them reads `forward`, in which the language model stands still.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, LossDict, Phase, RiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.language import LanguageModel, text_head
from ehrlab.nn.mltm import LabDecoder, LabEncoder, draw_mask, masked_lab_loss
from ehrlab.nn.phase_weights import PhaseWeights

LABS = ("mltm", "scratch", "none")
TEXT = ("lora", "frozen", "none")
LEAVES = {"labs": ("paths.encoder", "paths.decoder"), "notes": ("paths.llm", "paths.note_head")}
"""Submodules whose weights a phase leaves for other models."""


def fields_read(labs: str, text: str) -> frozenset[str]:
    """Batch fields that the paths read. InputError for an unknown setting, and where nothing is read."""
    for key, value, known in (("labs", labs, LABS), ("text", text, TEXT)):
        if value not in known:
            raise InputError(f"model.{key}: expected one of {', '.join(known)}, found {value}")
    if labs == text == "none":
        raise InputError("model.labs=none and model.text=none: expected something to read. Set one of them otherwise.")
    return frozenset({field for field, value in (("labs", labs), ("text", text)) if value != "none"})


@contextmanager
def _weights_from(seed: int) -> Iterator[None]:
    """Modules built inside draw their weights from `seed`, and leave the state of the generator as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


class LabsAndText(nn.Module):
    """labs "mltm": pretrained by masking; "scratch": the same encoder from random weights; "none"
    text "lora": adapters tuned on the labels; "frozen": the language model as it comes; "none"
    mltm  settings of the encoder and decoder of tests; llm  settings of `nn.language.LanguageModel`
    """

    def __init__(self, spec: DataSpec, labs: str, text: str, mltm: Mapping[str, Any], llm: Mapping[str, Any]) -> None:
        super().__init__()
        fields_read(labs, text)
        self.encoder: LabEncoder | None = None
        self.decoder: LabDecoder | None = None
        self.llm: LanguageModel | None = None
        self.note_head: nn.Sequential | None = None
        self.mask_ratio = 0.75
        # Drawn whatever is built: what a phase begins with must not depend on which of its models comes first.
        of_labs, of_text = torch.randint(2**31, (2,)).tolist()
        if labs != "none":
            with _weights_from(of_labs):
                self._build_labs(spec, pretrained=labs == "mltm", **mltm)
        if text != "none":
            assert spec.text is not None
            with _weights_from(of_text):
                self.llm = LanguageModel(spec.text, **{**llm, **({} if text == "lora" else {"rank": 0})})
                if len(self.llm.adapters):
                    self.note_head = text_head(self.llm, spec.num_labels)

    def _build_labs(
        self,
        spec: DataSpec,
        pretrained: bool,
        width: int = 64,
        depth: int = 4,
        decoder_depth: int = 1,
        num_heads: int = 4,
        dropout: float = 0.0,
        mask_ratio: float = 0.75,
    ) -> None:
        assert spec.labs is not None
        if not 0 < mask_ratio < 1:
            raise InputError(f"model.mltm.mask_ratio: expected 0 < ratio < 1, found {mask_ratio}")
        if depth <= decoder_depth:
            raise InputError(
                f"model.mltm: expected a deep encoder and a shallow decoder, found depth {depth} and decoder_depth "
                f"{decoder_depth}"
            )
        self.mask_ratio = mask_ratio
        self.encoder = LabEncoder(spec.labs.num_tests, width, depth, num_heads, dropout)
        if pretrained:
            self.decoder = LabDecoder(spec.labs.num_tests, width, decoder_depth, num_heads, dropout)

    @property
    def labs_dim(self) -> int:
        return 0 if self.encoder is None else self.encoder.width

    @property
    def text_dim(self) -> int:
        return 0 if self.llm is None else self.llm.out_dim

    def labs(self, batch: Batch) -> Float[Tensor, "B D"]:
        assert self.encoder is not None
        assert batch.labs is not None
        whole: Tensor = self.encoder(batch.labs.values, batch.labs.observed)[0]
        return whole

    def text(self, batch: Batch) -> Float[Tensor, "B E"]:
        """Of the frozen language model: no gradient reaches the adapters."""
        assert self.llm is not None
        assert batch.text is not None
        return self.llm.frozen(batch.text)

    def forward(self, batch: Batch) -> list[Float[Tensor, "B _"]]:
        """[labs, text], or the one that there is."""
        found = [self.labs(batch)] if self.encoder is not None else []
        return [*found, self.text(batch)] if self.llm is not None else found

    # ---- what is trained before the fusion
    def masked_lab_loss(self, batch: Batch) -> LossDict:
        assert self.encoder is not None
        assert self.decoder is not None
        assert batch.labs is not None
        hidden = draw_mask(batch.labs.observed, self.mask_ratio)
        return {"loss": masked_lab_loss(self.encoder, self.decoder, batch.labs, hidden)}

    def note_logits(self, batch: Batch) -> Float[Tensor, "B K"]:
        assert self.llm is not None
        assert self.note_head is not None
        assert batch.text is not None
        return self.note_head(self.llm(batch.text))

    def note_loss(self, batch: Batch) -> LossDict:
        assert batch.labels is not None
        return {"loss": F.binary_cross_entropy_with_logits(self.note_logits(batch), batch.labels)}

    def phases(self) -> list[Phase]:
        """Of each path that has something to learn before the fusion."""
        found = []
        if self.decoder is not None:
            turn = Turn(self.masked_lab_loss, self._lab_parameters)
            ignores = frozenset({"training.phases.notes", "training.phases.fuse"})
            found.append(Phase("labs", (turn,), select="loss", ignores=ignores, reads=frozenset({"mltm"})))
        if self.note_head is not None:
            turn = Turn(self.note_loss, self._note_parameters)
            ignores = frozenset({"training.phases.labs", "training.phases.fuse"})
            # "loss": the model's forward is the fusion's, of which nothing is trained yet
            found.append(Phase("notes", (turn,), select="loss", ignores=ignores, reads=frozenset({"llm"})))
        return found

    def _lab_parameters(self) -> Sequence[nn.Parameter]:
        assert self.encoder is not None
        assert self.decoder is not None
        return [*self.encoder.parameters(), *self.decoder.parameters()]

    def _note_parameters(self) -> Sequence[nn.Parameter]:
        assert self.llm is not None
        assert self.note_head is not None
        return [*self.llm.parameters(), *self.note_head.parameters()]

    def trained_with_the_fusion(self) -> list[nn.Parameter]:
        return [] if self.encoder is None else list(self.encoder.parameters())


class LabsAndTextModel(RiskModel):
    """Both paths, and what a model builds on them, which is trained in the last phase with the encoder of tests.

    The phases before are the same for all such models that agree in `mltm` and `llm`, and are trained once for them.
    A subclass calls super().__init__ before it builds anything: then the paths begin with the same weights in all.
    """

    requires = frozenset({"labs", "text"})
    reads_order = False
    last_phase: ClassVar[str] = "fuse"

    def __init__(
        self, spec: DataSpec, mltm: Mapping[str, Any], llm: Mapping[str, Any], labs: str = "mltm", text: str = "lora"
    ) -> None:
        super().__init__()
        self.paths = LabsAndText(spec, labs, text, mltm, llm)
        self._weights = PhaseWeights(self, LEAVES)

    def turns(self) -> Sequence[Turn]:
        """Of the last phase."""
        return [Turn(self.loss, self.trained_last)]

    def trained_last(self) -> Iterable[nn.Parameter]:
        own = [p for name, child in self.named_children() if name != "paths" for p in child.parameters()]
        return [*self.paths.trained_with_the_fusion(), *own]

    def phases(self) -> Sequence[AnyPhase]:
        last = Phase(self.last_phase, tuple(self.turns()))
        return [
            replace(phase, begin=partial(self._weights.enter, phase.name)) for phase in (*self.paths.phases(), last)
        ]
