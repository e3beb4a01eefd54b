"""CHIRon (Hill et al. 2023; Lin et al. 2025): codes as tokens, read from the left; the generator that RLTF tunes.

The transformer is nn/chiron.py, a Hugging Face model. What the papers leave open: docs/papers/chiron.md.
"""

from typing import Any, ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.model import LossDict, SequenceGenerator
from ehrlab.core.spec import DataSpec
from ehrlab.nn.chiron import IGNORED, ChironForCausalLM, ChironStepper
from ehrlab.nn.generation import next_token_log_prob, sample, target_probability


class Chiron(SequenceGenerator):
    """size: "tiny", "small" or "base"; `settings` are those of ChironConfig.

    Ages and places of a prompt are read; those of generated visits come from the heads: an age at least the last one,
    a place that stays through the visit.
    """

    # Of RLTF and SFT, which begin with these weights: they wrap the model and tune it afterwards.
    ignores: ClassVar[frozenset[str]] = SequenceGenerator.ignores | {"model._target_", "training.phases.tune"}

    def __init__(self, spec: DataSpec, size: str = "small", **settings: Any) -> None:
        super().__init__()
        assert spec.tokens is not None
        self.tokens = spec.tokens
        self.lm = ChironForCausalLM.from_sizes(spec.tokens, size, **settings)

    def logits(self, tokens: Tokens) -> Float[Tensor, "B T K"]:
        """Of the token after each. Padding is on the right, where no real token sees it."""
        found = self.lm(tokens.ids, visit=tokens.visit, age=tokens.age, place=tokens.place).logits
        assert found is not None
        return found

    def loss(self, batch: Batch) -> LossDict:
        """-log P per token of codes, and of the ages and places of visits (weighted)."""
        tokens = batch.tokens
        assert tokens is not None
        labels = tokens.ids.masked_fill(~tokens.mask, IGNORED)
        found = self.lm(
            tokens.ids, visit=tokens.visit, age=tokens.age, place=tokens.place, labels=labels, logits_to_keep=1
        )
        return {"loss": found.loss, **found.losses}

    def log_prob(self, tokens: Tokens) -> Float[Tensor, " B"]:
        """Of the codes, given their ages and places."""
        return next_token_log_prob(self.logits(tokens), tokens)

    def generate(
        self,
        prompt: Tokens,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
    ) -> Tokens:
        capacity = prompt.ids.shape[1] + max(max_new_tokens, 0)
        stepper = ChironStepper(self.lm, capacity)
        temperature = 1.0 if temperature is None else temperature  # the paper does not say how it decodes
        return sample(stepper, prompt, self.tokens, max_new_tokens, generator, temperature, top_k)

    def target_probability(
        self, prompt: Tokens, max_new_tokens: int, num_draws: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " B"]:
        """See nn/generation.py."""
        stepper = ChironStepper(self.lm, prompt.ids.shape[1] + max(max_new_tokens, 0))
        return target_probability(stepper, prompt, self.tokens, max_new_tokens, num_draws, generator)
