"""RLTF (Lin et al. 2025): a pretrained generator, tuned to prefer records that are right about one rare target.

Pairs are made in training/pairs.py, the loss is in training/preference.py; equations and choices: docs/papers/rltf.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, LossDict, PreferencePhase, SequenceGenerator
from ehrlab.core.spec import DataSpec

OBJECTIVES = ("preference", "likelihood")
OWN = frozenset({"model.base", "model.objective", "model.tune"})
"""What sets RLTF and SFT apart from each other, and from the generator that they begin with beside what it ignores."""


class RLTF(SequenceGenerator):
    """The generator `base(spec=..., **settings)`, pretrained as ever and then tuned for the task's targets.

    base       a generator whose `lm` is a Hugging Face causal language model over TokenSpec's ids (CHIRon)
    objective  "preference": RLTF; "likelihood": the SFT control, the generator's own loss on the same records
    tune       settings of core.model.PreferencePhase
    settings   the generator's

    Weights have the names that they have in the generator, so that its pretrained weights are found by all.
    """

    def __init__(
        self,
        spec: DataSpec,
        base: Callable[..., SequenceGenerator],
        tune: Mapping[str, Any],
        objective: str = "preference",
        **settings: Any,
    ) -> None:
        super().__init__()
        if objective not in OBJECTIVES:
            raise InputError(f"model.objective: expected {' or '.join(OBJECTIVES)}, found {objective}")
        generator = base(spec=spec, **settings)
        lm = generator.lm
        assert isinstance(lm, nn.Module)
        self.lm = lm
        self._generator = [generator]  # in a list, nn.Module does not look: its weights would get a second name
        likelihood = self.loss if objective == "likelihood" else None
        self.tuning = PreferencePhase("tune", lambda: self.lm, likelihood=likelihood, **tune)

    @property
    def generator(self) -> SequenceGenerator:
        return self._generator[0]

    def train(self, mode: bool = True) -> RLTF:
        self.generator.train(mode)
        return super().train(mode)

    def loss(self, batch: Batch) -> LossDict:
        return self.generator.loss(batch)

    def log_prob(self, tokens: Tokens) -> Float[Tensor, " B"]:
        return self.generator.log_prob(tokens)

    def generate(
        self,
        prompt: Tokens,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
    ) -> Tokens:
        return self.generator.generate(prompt, max_new_tokens, generator, temperature, top_k)

    def target_probability(
        self, prompt: Tokens, max_new_tokens: int, num_draws: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " B"]:
        return self.generator.target_probability(prompt, max_new_tokens, num_draws, generator)

    def phases(self) -> Sequence[AnyPhase]:
        before = [replace(phase, ignores=phase.ignores | OWN) for phase in self.generator.phases()]
        return [*before, self.tuning]
