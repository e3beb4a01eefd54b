"""One idea: a method is one nn.Module trained through an ordered list of phases; in a step, players take turns.

A baseline's author writes `RiskModel.forward` and sees neither word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Tokens, Visits
from ehrlab.core.errors import InputError

LossDict = dict[str, Tensor]
"""Scalars by name. The entry "loss" is optimised; every entry is logged under its name."""


@dataclass(frozen=True)
class Turn:
    """One player's move in a step: lower `loss` with respect to `params`, and nothing else.

    `repeat` moves are made on the same batch before the next player moves (medGAN: two critic moves).
    """

    loss: Callable[[Batch], LossDict]
    params: Callable[[], Iterable[nn.Parameter]]
    name: str = "model"
    repeat: int = 1


@dataclass(frozen=True)
class Phase:
    """A stretch of training with its own view of the data, players and selection.

    view     which samples the data layer serves: "samples" = the labelled samples of the task
    select   which epoch is kept, by validation: "risk" = forward() against the labels, by the recipe's score; "loss" =
             the last turn's loss, the lowest; "last" = the last epoch, where no score says how good the players are
    ignores  dotted config keys that do not influence this phase. Not empty: the phase is shared. It is trained once
             per content hash of everything else and found again by every run that agrees on the rest.
    reads    keys of `model` that influence a shared phase, where other models have the same one; None: all
    begin    called once before the phase's first step (freeze, initialise from an earlier phase, ...)
    """

    name: str
    turns: tuple[Turn, ...]
    view: str = "samples"
    select: Literal["risk", "loss", "last"] = "risk"
    ignores: frozenset[str] = frozenset()
    reads: frozenset[str] | None = None
    begin: Callable[[], None] = lambda: None


@dataclass(frozen=True)
class EstimatorPhase:
    """A phase without gradients: `fit` sees all training and tuning batches and sets the module's own tensors.

    It returns scalars to log (the chosen regularisation, its tuning score, ...).
    """

    name: str
    fit: Callable[[Iterable[Batch], Iterable[Batch]], dict[str, float]]
    view: str = "samples"
    ignores: frozenset[str] = frozenset()


@dataclass(frozen=True)
class PreferencePhase:
    """A phase that TRL trains: of a record and the same record with a target code removed or put in, a language model
    learns to prefer the real one (RLTF, Lin et al. 2025; direct preference optimisation with a positive term).

    Of the recipe it follows batch size, epochs, optimiser and gradient clipping. The learning rate falls linearly to 0
    and the last weights are kept, as TRL does; there is no selection.

    language_model  the Hugging Face causal language model inside the module, which is trained in place
    num_sequences   N: records drawn from the training split; fewer where there are not as many
    positive_share  P: the share of them that holds a target
    beta            scale of the log-ratios to the model that the phase began with
    lambda_         weight of the positive term p = max(0, log ref(C|P) - log policy(C|P))
    dpop_mode       "outside": -log sigmoid(beta D) + lambda p (RLTF); "inside": -log sigmoid(beta (D - lambda p))
                    (DPO-Positive, Pal et al. 2024)
    lora_rank       0: all weights are trained; else adapters of this rank beside the linear layers, merged at the end
    likelihood      given: no preferences, but this loss on the same records (the SFT control)
    """

    name: str
    language_model: Callable[[], nn.Module]
    num_sequences: int = 10_000
    positive_share: float = 0.5
    beta: float = 0.1
    lambda_: float = 0.1
    dpop_mode: str = "outside"
    lora_rank: int = 0
    likelihood: Callable[[Batch], LossDict] | None = None
    view: str = "tokens"
    ignores: frozenset[str] = frozenset()

    def __post_init__(self) -> None:
        # At once, and not after the hours of pretraining that come before.
        for setting, holds, expected in (
            ("num_sequences", self.num_sequences >= 1, "at least 1"),
            ("positive_share", 0 < self.positive_share <= 1, "0 < P <= 1"),
            ("beta", self.beta > 0, "more than 0"),
            ("lambda_", self.lambda_ >= 0, "at least 0"),
            ("dpop_mode", self.dpop_mode in ("outside", "inside"), "outside or inside"),
            ("lora_rank", self.lora_rank >= 0, "0 (all weights) or a rank"),
        ):
            if not holds:
                raise InputError(f"model.tune.{setting}: expected {expected}, found {getattr(self, setting)}")


AnyPhase = Phase | EstimatorPhase | PreferencePhase


@dataclass(frozen=True)
class Needs:
    """Names of what a model reads, mostly Batch fields.

    samples       of labelled samples
    views         view without labels -> what is read of its samples; the task need not offer it
    vocabularies  modalities that give the model its sizes (DataSpec) and are not read otherwise
    """

    samples: frozenset[str] = frozenset({"visits"})
    views: Mapping[str, frozenset[str]] = field(default_factory=dict)
    vocabularies: frozenset[str] = frozenset()

    @property
    def fields(self) -> frozenset[str]:
        return self.samples.union(*self.views.values())

    def __or__(self, other: Needs) -> Needs:
        views = {
            view: self.views.get(view, frozenset()) | other.views.get(view, frozenset())
            for view in sorted({*self.views, *other.views})
        }
        return Needs(self.samples | other.samples, views, self.vocabularies | other.vocabularies)


class Model(nn.Module, ABC):
    """Any method of the project."""

    requires: ClassVar[frozenset[str]]
    """Batch fields that the model reads of a labelled sample; checked against data and task at start-up."""

    pretrains_on: ClassVar[Mapping[str, frozenset[str]]] = MappingProxyType({})
    """View without labels -> Batch fields that its earlier phases read there; the task need not offer them."""

    @classmethod
    def needs(cls, unit: str, settings: Mapping[str, Any]) -> Needs:
        """What is read where a sample is a `unit` and the model's config says `settings`."""
        return Needs(cls.requires, cls.pretrains_on)

    @abstractmethod
    def loss(self, batch: Batch) -> LossDict: ...

    def phases(self) -> Sequence[AnyPhase]:
        return [Phase("fit", (Turn(self.loss, self.parameters),))]


class RiskModel(Model):
    """A predictor of K risks. A baseline writes `forward` and is done.

    The papers write a two-class softmax and cross-entropy; one logit and binary cross-entropy is the same function of
    the logit difference.
    """

    requires: ClassVar[frozenset[str]] = frozenset({"visits"})
    reads_order: ClassVar[bool] = True
    """False: the order of visits cannot change a prediction (bags of codes)."""

    @abstractmethod
    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        """Logits. Deterministic in eval mode."""

    def loss(self, batch: Batch) -> LossDict:
        assert batch.labels is not None
        return {"loss": F.binary_cross_entropy_with_logits(self(batch), batch.labels)}


class SequenceRiskModel(RiskModel):
    """A risk model that splits naturally into embed, encode, classify: it can carry an augmenter (MedDiffusion 6.4)."""

    embed_dim: int
    hidden_dim: int

    @abstractmethod
    def embed(self, visits: Visits) -> Float[Tensor, "B V E"]:
        """Visit embeddings e_k. Values at padding are arbitrary; readers mask them."""

    @abstractmethod
    def encode(self, e: Float[Tensor, "B V E"], visits: Visits) -> Float[Tensor, "B V D"]:
        """Hidden states h_k; h_k may depend on e_1 .. e_k (and, where the method is bidirectional, on all)."""

    @abstractmethod
    def classify(self, h: Float[Tensor, "B V D"], visits: Visits) -> Float[Tensor, "B K"]: ...

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        visits = batch.visits
        assert visits is not None
        return self.classify(self.encode(self.embed(visits), visits), visits)


class Augmenter(nn.Module, ABC):
    """Generates synthetic visit embeddings during training (MedDiffusion 3.3 and its GAN rivals).

    All methods take visit embeddings e ("B V E"), the states before each visit h_prev ("B V D", h_prev[:, 0] = 0),
    the mask of real visits and the labels (some rivals generate per class).
    """

    @abstractmethod
    def loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """The generator's own loss; "loss" is weighted by lambda_D."""

    @abstractmethod
    def sample(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> Float[Tensor, "B V E"]:
        """Synthetic visit embeddings e'."""

    critic_moves: int = 1
    """Critic moves per step (medGAN: 2)."""

    def critic_parameters(self) -> list[nn.Parameter]:
        """Parameters of the adversary, trained in a turn of their own; empty where there is none."""
        return []

    def critic_loss(
        self,
        e: Float[Tensor, "B V E"],
        h_prev: Float[Tensor, "B V D"],
        mask: Bool[Tensor, "B V"],
        labels: Float[Tensor, "B K"],
    ) -> LossDict:
        """The adversary's loss; only called where `critic_parameters` is not empty."""
        raise TypeError(f"{type(self).__name__} has no critic")


class SequenceGenerator(Model):
    """A generator of medical-code sequences (LSTM, HALO, CHIRon), trained once on records, whatever the task."""

    requires: ClassVar[frozenset[str]] = frozenset({"tokens"})
    ignores: ClassVar[frozenset[str]] = frozenset({"task", "data", "visits", "bootstrap", "completion"})
    """Config keys on which the weights do not depend; a generator that is told the task's targets takes "task" out."""

    @abstractmethod
    def log_prob(self, tokens: Tokens) -> Float[Tensor, " B"]:
        """log P(sequence | its first token): the sum over the real tokens that follow it."""

    @abstractmethod
    def generate(
        self,
        prompt: Tokens,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
    ) -> Tokens:
        """Prompts and their continuations, padded on the right; a continuation ends with <eos>, or is cut.

        Cut at max_new_tokens, and at the longest sequence that the model knows (TokenSpec.max_tokens, max_visits).
        Visit numbers follow from <visit>; ages and places come from the model's heads, or from rules where it has none.
        The model should be in eval mode.

        temperature  None = as the method's paper decodes; 0 = no randomness, always the most probable; else sampling
        top_k        draw among the k most probable tokens only

        Errors: InputError for an empty prompt and for one that is longer than the context.
        """

    @abstractmethod
    def target_probability(
        self, prompt: Tokens, max_new_tokens: int, num_draws: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " B"]:
        """P(one of the task's targets is in the continuation | prompt), estimated from so many continuations each."""

    def phases(self) -> Sequence[AnyPhase]:
        return [
            Phase("pretrain", (Turn(self.loss, self.parameters),), view="tokens", select="loss", ignores=self.ignores)
        ]
