"""One idea: a method is one nn.Module trained through an ordered list of phases; in a step, players take turns.

A baseline's author writes `RiskModel.forward` and sees neither word.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Tokens, Visits

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
    select   how validation scores an epoch: "risk" = forward() against the labels, "loss" = the last turn's loss
    ignores  dotted config keys that do not influence this phase. Not empty: the phase is shared. It is trained once
             per content hash of everything else and found again by every run that agrees on the rest.
    begin    called once before the phase's first step (freeze, initialise from an earlier phase, ...)
    """

    name: str
    turns: tuple[Turn, ...]
    view: str = "samples"
    select: Literal["risk", "loss"] = "risk"
    ignores: frozenset[str] = frozenset()
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


class Model(nn.Module, ABC):
    """Any method of the project."""

    requires: ClassVar[frozenset[str]]
    """Batch fields that the model reads; checked against the data at start-up."""

    @abstractmethod
    def loss(self, batch: Batch) -> LossDict: ...

    def phases(self) -> Sequence[Phase | EstimatorPhase]:
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
    """A generator of medical-code sequences (LSTM, HALO, CHIRon)."""

    requires: ClassVar[frozenset[str]] = frozenset({"tokens"})

    @abstractmethod
    def log_prob(self, tokens: Tokens) -> Float[Tensor, " B"]: ...

    @abstractmethod
    def generate(
        self, prompt: Tokens, max_new_tokens: int, generator: torch.Generator | None = None
    ) -> Int[Tensor, "B T"]: ...
