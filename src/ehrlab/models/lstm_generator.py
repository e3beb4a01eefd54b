"""LSTM generator of the RLTF paper's appendix (Lin et al. 2025): embedding 128, hidden 256, 3 layers, beam search.

It reads codes and <visit>; no ages, no places. Choices: docs/papers/lstm_generator.md.
"""

from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.model import LossDict, SequenceGenerator
from ehrlab.core.spec import DataSpec
from ehrlab.nn.generation import Element, Prediction, beam_search, next_token_log_prob, sample, target_probability


class LSTMGenerator(SequenceGenerator):
    """P(next token | tokens so far) = softmax(W h_t + b)"""

    ignores: ClassVar[frozenset[str]] = SequenceGenerator.ignores | {"training.phases.tune"}  # of RLTF beside it

    def __init__(
        self,
        spec: DataSpec,
        embed_dim: int = 128,
        hidden_dim: int = 256,
        num_layers: int = 3,
        dropout: float = 0.1,
        num_beams: int = 4,
    ) -> None:
        super().__init__()
        assert spec.tokens is not None
        self.tokens, self.num_beams = spec.tokens, num_beams
        self.embed = nn.Embedding(spec.tokens.num_tokens, embed_dim)
        self.rnn = nn.LSTM(embed_dim, hidden_dim, num_layers, batch_first=True, dropout=dropout)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(hidden_dim, spec.tokens.num_tokens)

    def states(self, tokens: Tokens) -> Float[Tensor, "B T D"]:
        # Padding is on the right and the LSTM reads rightwards: no real state sees it.
        return self.dropout(self.rnn(self.dropout(self.embed(tokens.ids)))[0])

    def logits(self, tokens: Tokens) -> Float[Tensor, "B T K"]:
        """Of the token after each."""
        return self.head(self.states(tokens))

    def loss(self, batch: Batch) -> LossDict:
        """Cross-entropy per real token."""
        tokens = batch.tokens
        assert tokens is not None
        real = tokens.mask[:, 1:]
        # Only where there is a token to predict: the head is the most expensive layer.
        logits = self.head(self.states(tokens)[:, :-1][real])
        return {"loss": F.cross_entropy(logits, tokens.ids[:, 1:][real])}

    def log_prob(self, tokens: Tokens) -> Float[Tensor, " B"]:
        return next_token_log_prob(self.logits(tokens), tokens)

    def generate(
        self,
        prompt: Tokens,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
    ) -> Tokens:
        """By beam search, as the paper; a temperature samples. The age stays, the place of a new visit is unknown."""
        stepper = LSTMStepper(self)
        if temperature is None:
            return beam_search(stepper, prompt, self.tokens, max_new_tokens, self.num_beams)
        return sample(stepper, prompt, self.tokens, max_new_tokens, generator, temperature, top_k)

    def target_probability(
        self, prompt: Tokens, max_new_tokens: int, num_draws: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " B"]:
        """See nn/generation.py; of what is sampled, not of what a beam search finds."""
        return target_probability(LSTMStepper(self), prompt, self.tokens, max_new_tokens, num_draws, generator)


class LSTMStepper:
    """The generator reading token by token (nn/generation.py: Stepper)."""

    def __init__(self, model: LSTMGenerator) -> None:
        self.model = model
        self.h = self.c = torch.empty(0)

    def start(self, prompt: Tokens) -> Prediction:
        lengths = prompt.mask.sum(1).cpu()
        packed = pack_padded_sequence(self.model.embed(prompt.ids), lengths, batch_first=True, enforce_sorted=False)
        _, (self.h, self.c) = self.model.rnn(packed)  # each row's state after its own last token
        return Prediction(self.model.head(self.h[-1]))

    def step(self, element: Element) -> Prediction:
        _, (self.h, self.c) = self.model.rnn(self.model.embed(element.ids[:, None]), (self.h, self.c))
        return Prediction(self.model.head(self.h[-1]))

    def select(self, rows: Int[Tensor, " R"]) -> None:
        self.h, self.c = self.h[:, rows], self.c[:, rows]
