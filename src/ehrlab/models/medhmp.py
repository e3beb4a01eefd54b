"""MedHMP (Wang et al., EMNLP 2023, arXiv 2310.07871): stays, then admissions are learned without labels, then a task.

One module of three phases. What of it a task uses follows from what a sample is (DataSpec.unit): b of the stay encoder,
the admission's pooled modalities, or the encoder of diagnoses below a model of visits. Choices and departures:
docs/papers/medhmp.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, LossDict, Needs, Phase, RiskModel, SequenceRiskModel, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.nn.code_sets import CodeSetEncoder, MaskedCodes
from ehrlab.nn.contrast import in_chunks, info_nce
from ehrlab.nn.embedding import CodeSum, VisitEmbedding
from ehrlab.nn.encode import masked_mean
from ehrlab.nn.fusion import AttentionPool, FeedForward
from ehrlab.nn.phase_weights import PhaseWeights, mark, take_weights
from ehrlab.nn.stay_encoder import StayDecoder, StayEncoder
from ehrlab.nn.stays import last_stay

LEVELS = ("stay", "admission")
LOSSES = ("mcp", "contrast")
READS = {
    "stay": frozenset({"stays", "demographics"}),
    "admission": frozenset({"stays", "demographics", "codes", "notes"}),
    "patient": frozenset({"visits"}),
}

VIEWS = {"stay": "stays", "admission": "admissions"}
"""Where a level is learned without labels."""

TASK = frozenset(
    {"task", "data", "visits", "vocabularies", "tokens", "labs", "text", "labels", "bootstrap", "completion"}
    | {"training.phases.finetune", "training.phases.fit", "model.body", "model.dropout_head"}
)
"""Config keys on which no pretraining depends."""
ADMISSION = frozenset(
    {"codes", "notes", "training.phases.admission"}
    | {f"model.{name}" for name in ("pretrain", "losses", "mask_rate", "mask_count", "targets", "lambda_")}
    | {f"model.{name}" for name in ("temperature", "chunk")}
)
"""And those on which that of stays does not depend either."""

ENCODERS = ("diagnoses", "drugs", "notes", "stays", "modalities")
TRAINS = {
    "stay": ("stay_encoder", "stay_decoder"),
    "admission": ("stay_encoder", *ENCODERS, "mcp_diagnoses", "mcp_drugs", "contrast_streams"),
    "stay task": ("stay_encoder", "head"),
    "admission task": ("stay_encoder", *ENCODERS, "head"),
    "patient task": ("diagnoses", "body"),
}
"""Children that a phase trains. The rest of the model gets no gradient in it."""
LEAVES = {"stay": TRAINS["stay"], "admission": ("stay_decoder", *TRAINS["admission"])}
"""Children whose weights a pretraining phase leaves for other runs."""

NOTES, DIAGNOSES, DRUGS, STAYS = range(4)
"""Order of an admission's tokens."""


class Admission(NamedTuple):
    """{g, c, l, s} of admissions, and which of them are there."""

    tokens: Float[Tensor, "B T E"]
    present: Bool[Tensor, "B T"]

    def but(self, modality: int) -> Admission:
        rest = [other for other in range(4) if other != modality]
        return Admission(self.tokens[:, rest], self.present[:, rest])

    def seen_as(self, modality: int, token: Float[Tensor, "B E"]) -> Admission:
        tokens = [token if other == modality else self.tokens[:, other] for other in range(4)]
        return Admission(torch.stack(tokens, dim=1), self.present)


class DiagnosesOfVisits(nn.Module):
    """What takes the place of a body's embedding of visits: the encoder of diagnoses, which stays MedHMP's."""

    diagnosis: Tensor

    def __init__(self, encoder: CodeSetEncoder, of_visit_codes: Sequence[int]) -> None:
        super().__init__()
        self._encoder = [encoder]  # in a list nn.Module does not look: its weights would get a second name
        self.register_buffer("diagnosis", torch.tensor(of_visit_codes), persistent=False)

    def forward(self, codes: Int[Tensor, "B V C"]) -> Float[Tensor, "B V E"]:
        return self._encoder[0](self.diagnosis[codes])


class MedHMP(RiskModel):
    """L_stay, then L_MCP + lambda_ L_CL, then the task.

    body           called with (spec): a SequenceRiskModel, for tasks whose samples are patients
    pretrain       levels that are learned without labels before the task: any of stay, admission (Tables 4 - 6)
    pretrained     weights of a run or phase, from which these levels are taken instead (Table 11)
    num_layers     of the stays' LSTM: 1 in the paper, 3 in the authors' code
    feedforward    blocks after attention: authors' code, not the paper
    decoder        where the stay decoder gets b: "state" (paper) or "input" (authors' code)
    dropout_head   before the classifier of stays and admissions
    losses         of the admission level: mcp, contrast or both (Table 7)
    mask_rate, targets, mask_count   of masked code prediction: nn.code_sets.MaskedCodes
    chunk          admissions whose activations are held at a time; the loss is that of the whole batch
    """

    requires: ClassVar[frozenset[str]] = READS["admission"]
    pretrains_on: ClassVar[Mapping[str, frozenset[str]]] = {VIEWS[level]: READS[level] for level in LEVELS}

    @classmethod
    def needs(cls, unit: str, settings: Mapping[str, Any]) -> Needs:
        learned = settings["pretrain"] if settings.get("pretrained") is None else ()
        of_views = {VIEWS[level]: READS[level] for level in learned if level in LEVELS}
        # A patient's visits are read by way of the vocabulary of diagnoses, pretrained or not.
        return Needs(READS[unit], of_views, frozenset({"codes"} if unit == "patient" else ()))

    def __init__(
        self,
        spec: DataSpec,
        body: Callable[..., SequenceRiskModel],
        pretrain: Sequence[str] = LEVELS,
        pretrained: str | None = None,
        embed_dim: int = 256,
        demographics_dim: int = 64,
        num_heads: int = 4,
        num_layers: int = 1,
        feedforward: bool = False,
        decoder: str = "state",
        dropout: float = 0.1,
        dropout_head: float = 0.2,
        losses: Sequence[str] = LOSSES,
        mask_rate: float = 0.15,
        targets: str = "vocabulary",
        mask_count: bool = False,
        lambda_: float = 0.1,
        temperature: float = 0.1,
        chunk: int = 128,
    ) -> None:
        super().__init__()
        _check(spec.unit, pretrain, pretrained, losses)
        self.unit, self.pretrain, self.pretrained = spec.unit, frozenset(pretrain), pretrained
        self.losses = frozenset(losses)
        self.lambda_, self.temperature, self.chunk = lambda_, temperature, chunk
        self.learned = self.pretrain if pretrained is None else frozenset()
        stays, codes, notes, of_admission = spec.stays, spec.codes, spec.notes, spec.unit == "admission"

        def project(wide: int) -> nn.Module:
            return nn.Sequential(nn.Linear(wide, embed_dim), nn.LayerNorm(embed_dim), nn.ReLU())

        # In the order of the levels: then all runs that share a phase begin it with the same weights.
        if spec.unit != "patient" or self.learned:
            assert stays is not None
            sizes = (stays.num_features, spec.num_demographics, embed_dim, demographics_dim)
            self.stay_encoder = StayEncoder(*sizes, num_heads, num_layers, dropout, feedforward)
            if "stay" in self.learned:
                self.stay_decoder = StayDecoder(stays.num_features, stays.num_hours, embed_dim, decoder)
        if spec.unit != "stay" or "admission" in self.learned:
            assert codes is not None
            self.diagnoses = CodeSetEncoder(codes.num_diagnoses, embed_dim)
        if of_admission or "admission" in self.learned:
            assert stays is not None
            assert codes is not None
            assert notes is not None
            self.drugs = CodeSetEncoder(codes.num_drugs, embed_dim)
            self.notes = project(notes.dim)
            self.num_slots, self.stays = stays.max_stays, project(stays.max_stays * embed_dim)
            self.modalities = AttentionPool(embed_dim, num_heads, dropout)
        if "admission" in self.learned and "mcp" in losses:
            assert codes is not None
            settings = (embed_dim, mask_rate, targets, mask_count, feedforward)
            self.mcp_diagnoses = MaskedCodes(codes.num_diagnoses, *settings)
            self.mcp_drugs = MaskedCodes(codes.num_drugs, *settings)

        def stream() -> nn.Module:
            return FeedForward(embed_dim) if feedforward else nn.Identity()

        if "admission" in self.learned and "contrast" in losses:
            self.contrast_streams = nn.ModuleList(stream() for _ in (NOTES, DIAGNOSES, DRUGS))
        if spec.unit == "patient":
            assert codes is not None
            self.body = body(spec=spec)
            _embed_by(self.body, DiagnosesOfVisits(self.diagnoses, codes.of_visit_codes), embed_dim)
        else:
            first = [stream()] if of_admission else []
            self.head = nn.Sequential(*first, nn.Dropout(dropout_head), nn.Linear(embed_dim, spec.num_labels))
        contents = {
            "stay_encoder": stays.content if stays else "",
            **dict.fromkeys(("diagnoses", "drugs"), codes.content if codes else ""),
            "notes": notes.encoder if notes else "",
        }
        for name, child in self.named_children():
            if name in contents:
                mark(child, contents[name])
        self._weights = PhaseWeights(self, LEAVES)

    # ---- the task
    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        if self.unit == "patient":
            return self.body(batch)
        if self.unit == "stay":
            return self.head(self._last_stay(batch)[1])
        return self.head(self.modalities(*self.encode(batch)))

    def _last_stay(self, batch: Batch) -> tuple[Float[Tensor, "B H F"], Float[Tensor, "B E"]]:
        """Each sample's last stay and its b."""
        assert batch.stays is not None
        assert batch.demographics is not None
        x = last_stay(batch.stays).to(batch.demographics.dtype)
        return x, self.stay_encoder(x, batch.demographics)

    def encode(self, batch: Batch) -> Admission:
        """g, c, l, s. A modality is missing where it holds nothing: no note, no code, no stay."""
        stays, codes, notes = batch.stays, batch.codes, batch.notes
        assert stays is not None
        assert codes is not None
        assert notes is not None
        assert batch.demographics is not None
        b = self.stay_encoder.each(stays, batch.demographics)
        # Stays fill the slots of W_s from the oldest on; an empty slot adds nothing.
        b = F.pad(b, (0, 0, 0, self.num_slots - b.shape[1]))
        tokens = [
            self.notes(masked_mean(notes.vectors, notes.mask)),
            self.diagnoses.one(codes.diagnoses),
            self.drugs.one(codes.drugs),
            self.stays(b.flatten(1)),
        ]
        present = [notes.mask, codes.diagnoses > 0, codes.drugs > 0, stays.mask]
        return Admission(torch.stack(tokens, dim=1), torch.stack([one.any(1) for one in present], dim=1))

    # ---- stays without labels
    def reconstruction(self, batch: Batch) -> LossDict:
        """L_stay: the squared error of a stay's hours, made from b, over all hours and features."""
        assert batch.stays is not None
        x, b = self._last_stay(batch)
        error, real = (self.stay_decoder(b) - x).square().mean((1, 2)), batch.stays.mask.any(1)
        return {"loss": (error * real).sum() / real.sum().clamp(min=1)}

    # ---- admissions without labels
    def masked_codes_and_contrast(self, batch: Batch) -> LossDict:
        """L_MCP + lambda_ L_CL of the whole batch, `chunk` admissions at a time (nn.contrast)."""
        assert batch.codes is not None
        kinds: list[tuple[int, CodeSetEncoder, MaskedCodes, Tensor, Tensor, Tensor | None]] = []
        if "mcp" in self.losses:
            diagnoses, drugs = batch.codes.diagnoses, batch.codes.drugs
            # Drawn once, for the whole batch: both passes over a chunk must hide the same codes.
            kinds.append(
                (DIAGNOSES, self.diagnoses, self.mcp_diagnoses, diagnoses, *self.mcp_diagnoses.draw(diagnoses))
            )
            kinds.append((DRUGS, self.drugs, self.mcp_drugs, drugs, *self.mcp_drugs.draw(drugs)))

        def make(rows: slice) -> tuple[Tensor, ...]:
            admission = self.encode(batch.map(lambda t: t[rows]))
            made: list[Tensor] = []
            for modality, encoder, mcp, codes, hidden, mask in kinds:
                seen = admission.seen_as(modality, mcp.see(encoder, codes[rows], hidden[rows]))
                own_mask = None if mask is None else mask[rows]
                error, num = mcp.errors(self.modalities(*seen), codes[rows], hidden[rows], own_mask)
                there = admission.present[:, modality]  # an empty set has nothing to hide
                made += [error * there, num * there]
            return (*made, *(self._views(admission) if "contrast" in self.losses else ()))

        made = in_chunks(make, len(batch), self.chunk, batch.codes.diagnoses.device)
        losses: LossDict = {}
        if "mcp" in self.losses:
            error, num, error_drugs, num_drugs = (one.sum() for one in made[:4])
            losses["mcp"] = (error / num.clamp(min=1) + error_drugs / num_drugs.clamp(min=1)) / 2
        if "contrast" in self.losses:
            own, rest, valid = made[-3:]
            pairs = [(own[valid[:, r], r], rest[valid[:, r], r]) for r in range(own.shape[1])]
            losses["contrast"] = torch.stack([info_nce(r, a, self.temperature) for r, a in pairs]).mean()
        weights = {"mcp": 1.0, "contrast": self.lambda_}
        return {"loss": torch.stack([weights[name] * loss for name, loss in losses.items()]).sum(), **losses}

    def _views(
        self, admission: Admission
    ) -> tuple[Float[Tensor, "B 3 E"], Float[Tensor, "B 3 E"], Bool[Tensor, "B 3"]]:
        """r and a without r, r = notes, diagnoses, drugs (stays are never left out); and whether both are there."""
        rest = [admission.but(r) for r in (NOTES, DIAGNOSES, DRUGS)]
        pooled = [stream(self.modalities(*others)) for stream, others in zip(self.contrast_streams, rest, strict=True)]
        both = torch.stack([others.present.any(1) for others in rest], 1) & admission.present[:, :STAYS]
        return admission.tokens[:, :STAYS], torch.stack(pooled, 1), both

    # ---- the order of it all
    def phases(self) -> Sequence[AnyPhase]:
        found: list[AnyPhase] = []
        for level, loss, view, ignores in (
            ("stay", self.reconstruction, "stays", TASK | ADMISSION),
            ("admission", self.masked_codes_and_contrast, "admissions", TASK),
        ):
            if level in self.learned:
                begin = partial(self._weights.enter, level)
                found.append(Phase(level, (self._turn(loss, level),), view, "loss", ignores, begin=begin))
        return [*found, Phase("finetune", (self._turn(self.loss, f"{self.unit} task"),), begin=self._begin_task)]

    def _turn(self, loss: Callable[[Batch], LossDict], trains: str) -> Turn:
        def params() -> Iterable[nn.Parameter]:
            return [p for name, child in self.named_children() if name in TRAINS[trains] for p in child.parameters()]

        return Turn(loss, params)

    def _begin_task(self) -> None:
        self._weights.enter("finetune")
        if self.pretrained is not None:
            children = ("stay_encoder", *(ENCODERS if "admission" in self.pretrain else ()))
            remedy = (
                "Give the vocabularies of the data that it was trained on (stays.vocabulary, codes.vocabulary), the "
                "same notes.encoder and model settings, or leave its level out of model.pretrain."
            )
            take_weights(self, children, Path(self.pretrained), "model.pretrained", remedy, _age_alone)


def _age_alone(name: str, given: Tensor, own: Tensor) -> Tensor:
    """Of the demographics' first layer the columns of age: gender and race have other values in other data."""
    if name != "stay_encoder.demographics.0.weight":
        return given
    return torch.cat([given[:, :2], own[:, 2:]], dim=1)


def _check(unit: str, pretrain: Sequence[str], pretrained: str | None, losses: Sequence[str]) -> None:
    if unit not in READS:
        raise InputError(f"MedHMP: expected samples that are one of {', '.join(READS)}, found {unit!r}")
    if not set(pretrain) <= set(LEVELS):
        raise InputError(f"model.pretrain: expected any of {', '.join(LEVELS)} in a list, found {list(pretrain)}")
    if not losses or not set(losses) <= set(LOSSES):
        raise InputError(f"model.losses: expected one or both of {', '.join(LOSSES)} in a list, found {list(losses)}")
    if pretrained is not None and not pretrain:
        raise InputError("model.pretrained: expected the levels to take from there in model.pretrain, found none")


def _embed_by(body: nn.Module, embedding: nn.Module, embed_dim: int) -> None:
    """Let `embedding` take the place of the body's own embedding of a visit's codes, and of nothing else in it: what
    `embed` adds to that (times, dropout) is the body's."""
    if not isinstance(body, SequenceRiskModel):
        raise InputError(f"model.body: expected a SequenceRiskModel, found {type(body).__name__}")
    own = {name: child for name, child in body.named_children() if isinstance(child, CodeSum | VisitEmbedding)}
    sums = [child.codes if isinstance(child, VisitEmbedding) else child for child in own.values()]
    if not sums or any(one.table.embedding_dim != embed_dim for one in sums):
        raise InputError(
            f"model.body {type(body).__name__}: expected an embedding of visits, {embed_dim} wide, that the encoder of "
            f"diagnoses can replace, found widths {[one.table.embedding_dim for one in sums]}. Set "
            "model.body.embed_dim to model.embed_dim, or choose one of lstm, dipole, retain, adacare, hitanet."
        )
    for name in own:
        setattr(body, name, embedding)
