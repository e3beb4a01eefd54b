"""Texts to vectors with a frozen transformers model: the mean of its last states over real tokens.

A model with an encoder and a decoder (T5) is used up to its encoder. Texts are batched by length, longest first: a
batch holds few long or many short ones, padding is small, and a batch that does not fit into memory fails at once.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ehrlab.core.errors import InputError
from ehrlab.core.language import resolve

log = logging.getLogger(__name__)

PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16}


def masked_mean(states: Float[Tensor, "B L E"], mask: Bool[Tensor, "B L"]) -> Float[Tensor, "B E"]:
    """The mean over real tokens; 0 where there is none.

    >>> masked_mean(torch.tensor([[[1.0], [3.0], [9.0]]]), torch.tensor([[True, True, False]]))
    tensor([[2.]])
    """
    # A selection and not a product: padding may hold inf or nan, and 0 * nan is nan.
    return torch.where(mask[..., None], states, 0.0).sum(1) / mask.sum(1, keepdim=True).clamp(min=1)


def length_batches(lengths: Sequence[int], batch_tokens: int) -> Iterator[list[int]]:
    """Indices of texts, each in one batch, longest first; a padded batch has at most `batch_tokens`, or one text.

    >>> list(length_batches([2, 5, 1, 3], batch_tokens=6))
    [[1], [3, 0], [2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    at = 0
    while at < len(order):
        size = max(1, batch_tokens // max(1, lengths[order[at]]))
        yield order[at : at + size]
        at += size


def encode_ids(
    model: nn.Module,
    ids: Sequence[Sequence[int]],
    *,
    dim: int,
    batch_tokens: int,
    pad_id: int = 0,
    on_batch: Callable[[int], None] | None = None,
) -> Float[Tensor, "N E"]:
    """A float32 vector per text of token ids, on the CPU, in their order; 0 for a text without tokens.

    The model is called with input_ids and attention_mask, without gradient, on its own device and as it is: put it into
    eval mode before, and set `config.use_cache` of a causal one to False.

    dim           E, the width of its last_hidden_state
    batch_tokens  most tokens of a batch, padding included
    on_batch      is told the number of texts after each batch
    """
    device = next(model.parameters()).device
    vectors = torch.zeros(len(ids), dim)
    with torch.inference_mode():
        for rows in length_batches([len(text) for text in ids], batch_tokens):
            longest = len(ids[rows[0]])
            if longest:
                padded = torch.tensor([[*ids[i], *[pad_id] * (longest - len(ids[i]))] for i in rows], device=device)
                count = torch.tensor([len(ids[i]) for i in rows], device=device)
                mask = torch.arange(longest, device=device) < count[:, None]
                states = model(input_ids=padded, attention_mask=mask.long()).last_hidden_state
                vectors[rows] = masked_mean(states.float(), mask).cpu()
            if on_batch is not None:
                on_batch(len(rows))
    return vectors


@dataclass(frozen=True)
class TextEncoder:
    """A frozen model with its tokenizer.

    max_tokens  of a text, special tokens included; the first ones are kept
    batch_size  texts of max_tokens in a batch; of shorter ones it holds more
    """

    model: nn.Module
    tokenizer: Any
    dim: int
    max_tokens: int
    batch_size: int

    def encode(self, texts: Sequence[str], on_batch: Callable[[int], None] | None = None) -> Float[Tensor, "N E"]:
        """A vector per text, as `encode_ids`."""
        if not texts:
            return torch.zeros(0, self.dim)
        tokens = self.tokenizer(list(texts), truncation=True, max_length=self.max_tokens, return_attention_mask=False)
        return encode_ids(
            self.model,
            tokens["input_ids"],
            dim=self.dim,
            batch_tokens=self.batch_size * self.max_tokens,
            pad_id=self.tokenizer.pad_token_id or 0,
            on_batch=on_batch,
        )


def load_encoder(
    name: str, *, max_tokens: int, batch_size: int, precision: str = "fp32", device: str | None = None
) -> TextEncoder:
    """The frozen encoder `name` (of `core.language.resolve`), in eval mode, on the GPU where there is one.

    precision  "fp32" or "bf16": half the memory and, where the processor multiplies it, twice the speed or more

    Errors: InputError where it is not on disk or cannot be read, and where it reads fewer than `max_tokens` tokens.
    """
    # Here, as transformers takes seconds to import and a cached run does without.
    import transformers

    transformers.logging.disable_progress_bar()  # of reading the file of weights
    path, gguf_file = resolve(name)
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = load_tokenizer(name)
    try:
        model = transformers.AutoModel.from_pretrained(path, gguf_file=gguf_file, dtype=PRECISIONS[precision])
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise unreadable(name, "model", error) from None
    if getattr(model.config, "is_encoder_decoder", False):
        model = model.get_encoder()
    most = getattr(model.config, "max_position_embeddings", None)
    # RoBERTa has two positions more than it reads. T5 has relative positions, and no limit.
    if most is not None and max_tokens > (most := min(most, tokenizer.model_max_length)):
        raise InputError(
            f"max_tokens={max_tokens}: the encoder '{name}' reads at most {most} tokens. Set max_tokens={most} or less."
        )
    model.config.use_cache = False  # nobody asks for the next word
    model = model.eval().requires_grad_(False).to(device)
    return TextEncoder(model, tokenizer, int(model.config.hidden_size), max_tokens, batch_size)


def load_tokenizer(name: str) -> Any:
    """The tokenizer of the model `name`; InputError where it is not on disk or cannot be read."""
    from transformers import AutoTokenizer

    path, gguf_file = resolve(name)
    try:
        return AutoTokenizer.from_pretrained(path, gguf_file=gguf_file)
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        raise unreadable(name, "tokenizer", error) from None


def unreadable(name: str, part: str, error: Exception) -> InputError:
    """What to say of a model whose files transformers cannot read."""
    lines = str(error).strip().splitlines()
    return InputError(
        f"language model '{name}': expected a {part} that transformers can load, found {type(error).__name__}"
        f"{': ' + lines[0][:200] if lines else ''}. Complete its folder as `save_pretrained` writes it (a .gguf file "
        "needs the package gguf, a .model file the package sentencepiece), or choose another model."
    )
