"""A pretrained causal language model as a reader of text: one vector per text, adapters (LoRA) for the task.

Hu et al. 2021 (arXiv 2106.09685) for the adapters, through peft. The cost of everything that reads text is here:

* Texts of one batch are read in passes of similar length, without attention masks: padding is on the right, and a
  causal model's earlier tokens do not see it.
* Of a model that stands still, each text is read once in a process, whichever method asks: its vector is kept under the
  hashes of the weights and of its tokens.
* The model's own weights are in no state dict. They come from their files, never change, and are 540 MB even of the
  smallest model here.
"""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext, redirect_stderr
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
import transformers
from jaxtyping import Float, Int
from numpy.typing import NDArray
from peft import LoraConfig, inject_adapter_in_model
from torch import Tensor, nn
from transformers import AutoModel, BitsAndBytesConfig, LlamaConfig, LlamaModel, PreTrainedModel

from ehrlab.core.batch import Text
from ehrlab.core.errors import InputError
from ehrlab.core.language import TINY, resolve
from ehrlab.core.spec import TextSpec

log = logging.getLogger(__name__)

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}
MOST_KEPT = 2**30
"""Bytes of vectors in memory: those of models that stood still before are dropped, the oldest first."""


def load_language_model(
    name: str, spec: TextSpec, *, dtype: str = "float32", four_bit: bool = False
) -> PreTrainedModel:
    """The model `name` without its head over the vocabulary, frozen, in eval mode.

    name      "tiny" (random weights, always the same ones), or what `core.language.resolve` knows
    dtype     of its weights. bfloat16 halves memory, and time where the processor has instructions for it
    four_bit  weights as 4-bit numbers (NF4): an 8B model in 6 GB of a GPU, this process's own. Needs CUDA and
              bitsandbytes; "tiny" has none

    Errors: InputError where the model is not to be had, or does not fit the texts' tokens.
    """
    if dtype not in DTYPES:
        raise InputError(f"llm.dtype: expected one of {', '.join(DTYPES)}, found {dtype}")
    if four_bit and not (torch.cuda.is_available() and find_spec("bitsandbytes")):
        raise InputError(
            "llm.four_bit: expected a CUDA device and the package bitsandbytes, found "
            f"{'no bitsandbytes' if torch.cuda.is_available() else 'no CUDA device'}. Set it to false, or install "
            "bitsandbytes on a machine with a GPU."
        )
    model = _tiny(spec, DTYPES[dtype]) if name == TINY else _from_files(name, DTYPES[dtype], four_bit)
    known = model.get_input_embeddings().num_embeddings
    assert isinstance(known, int)
    if known < spec.num_tokens:
        raise InputError(
            f"language model '{name}': expected to know the {spec.num_tokens} tokens of text.model={spec.model}, found "
            f"{known}. Give model and tokenizer from the same place."
        )
    longest = getattr(model.config, "max_position_embeddings", None)
    if longest is not None and longest < spec.max_tokens:
        raise InputError(
            f"text.max_tokens: expected at most the {longest} that language model '{name}' reads, found "
            f"{spec.max_tokens}. Lower it."
        )
    model.requires_grad_(False)
    return model.eval()


def _from_files(name: str, dtype: torch.dtype, four_bit: bool) -> PreTrainedModel:
    path, gguf_file = resolve(name)
    # Weights of a GGUF file are unpacked in float32 whatever is asked for.
    settings: dict[str, Any] = {"dtype": dtype} if gguf_file is None else {"gguf_file": gguf_file}
    if four_bit:
        settings["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=torch.bfloat16
        )
        settings["device_map"] = {"": _own_gpu()}
    transformers.logging.disable_progress_bar()
    try:
        with redirect_stderr(io.StringIO()) if gguf_file is not None else nullcontext():  # a bar without a switch
            model: PreTrainedModel = AutoModel.from_pretrained(path, **settings)
    except (OSError, ImportError, ValueError) as error:
        raise InputError(
            f"language model '{name}': expected a causal language model that transformers loads, found: "
            f"{str(error).strip().splitlines()[0]}. Install what is missing, or choose another model."
        ) from error
    return model if gguf_file is None else _cast(model, dtype)


def _own_gpu() -> int:
    """This process's GPU: under DDP every rank has its own, known before Lightning moves anything there."""
    return int(os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or 0)


def _cast(model: PreTrainedModel, dtype: torch.dtype) -> PreTrainedModel:
    """Weights only: the frequencies of rotary positions are buffers, and need all their digits."""
    for weight in model.parameters():
        weight.data = weight.data.to(dtype)
    return model


def _tiny(spec: TextSpec, dtype: torch.dtype) -> PreTrainedModel:
    """Random weights, the same in every process: they stand for files."""
    config = LlamaConfig(
        vocab_size=spec.num_tokens,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=max(spec.max_tokens, 64),
        pad_token_id=spec.pad_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return _cast(LlamaModel(config), dtype)


def passes(lengths: Int[Tensor, " B"], tokens_per_pass: int, slack: float = 1.25) -> Iterator[list[int]]:
    """Rows to be read together: none is `slack` times as long as another, and their padded area is bounded.

    Rows of length 0 are left out. A row that is longer than the bound has a pass of its own.

    >>> list(passes(torch.tensor([3, 100, 0, 90, 4, 95]), tokens_per_pass=250))
    [[1, 5], [3], [4], [0]]
    """
    group: list[int] = []
    longest = 0
    for row in lengths.argsort(descending=True, stable=True).tolist():
        length = int(lengths[row])
        if length == 0:
            break
        if group and (length * slack < longest or longest * (len(group) + 1) > tokens_per_pass):
            yield group
            group = []
        longest = longest if group else length
        group.append(row)
    if group:
        yield group


class LanguageModel(nn.Module):
    """text -> vector of the model's last layer. Its parameters are the adapters, and nothing else.

    rank             r of the adapters W + alpha / r B A; 0 = none: the model is frozen for good
    targets          names of the linear layers that get adapters (GPT-2's: [c_attn])
    pooling          "last": of the last real token, the only one that has seen all; "mean": over the real tokens
    tokens_per_pass  padded tokens read at once: what bounds memory
    dtype, four_bit  of `load_language_model`

    A text without tokens has the vector 0.
    """

    def __init__(
        self,
        spec: TextSpec,
        rank: int = 8,
        alpha: int = 16,
        dropout: float = 0.05,
        targets: Sequence[str] = ("q_proj", "v_proj"),
        pooling: str = "last",
        tokens_per_pass: int = 4096,
        dtype: str = "float32",
        four_bit: bool = False,
    ) -> None:
        super().__init__()
        if pooling not in ("last", "mean"):
            raise InputError(f"llm.pooling: expected last or mean, found {pooling}")
        base = load_language_model(spec.model, spec, dtype=dtype, four_bit=four_bit)
        if rank:
            settings = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=list(targets))
            try:
                inject_adapter_in_model(settings, base)
            except ValueError as error:
                linear = sorted({n.rsplit(".", 1)[-1] for n, m in base.named_modules() if isinstance(m, nn.Linear)})
                raise InputError(
                    f"llm.targets: expected linear layers of language model '{spec.model}', one of "
                    f"{', '.join(linear)}, found {', '.join(targets)}"
                ) from error
        # In a list nn.Module does not look: state dicts, checkpoints and optimisers are the adapters' alone.
        self._base = [base]
        self.adapters = nn.ParameterDict()
        for name, weight in base.named_parameters():
            if "lora_" in name:
                weight.data = weight.data.float()  # steps are too small for bfloat16
                self.adapters[name.replace(".", "/")] = weight.requires_grad_()
        self.pooling, self.tokens_per_pass = pooling, tokens_per_pass
        self.is_fixed_in_place = four_bit and spec.model != TINY
        self.out_dim = int(base.config.hidden_size)
        num_adapted = sum(weight.numel() for weight in self.adapters.values())
        log.info(
            "language model %s: %.1f million weights, frozen, %.2f million in adapters; texts of at most %d tokens",
            *(spec.model, base.num_parameters() / 1e6 - num_adapted / 1e6, num_adapted / 1e6, spec.max_tokens),
        )
        self._reader = repr((spec, dtype, four_bit, rank, alpha, pooling)).encode()

    @property
    def base(self) -> PreTrainedModel:
        """The language model, adapters inside."""
        return self._base[0]

    def train(self, mode: bool = True) -> "LanguageModel":
        self.base.train(mode)
        return super().train(mode)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "LanguageModel":
        # Devices and types: the adapters are tensors of both, and `fn` changes nothing the second time.
        super()._apply(fn, recurse)
        if not self.is_fixed_in_place:
            self.base._apply(fn)
        return self

    def forward(self, text: Text) -> Float[Tensor, "B D"]:
        """Read every text, with gradients for the adapters; of texts without tokens they are 0."""
        if self.is_fixed_in_place and text.ids.device != self.base.device:
            raise InputError(
                f"llm.four_bit=true: expected batches on {self.base.device}, where the 4-bit weights were loaded and "
                f"stay, found them on {text.ids.device}. Set trainer=gpu (CUDA_VISIBLE_DEVICES chooses the GPU), or "
                "llm.four_bit=false."
            )
        lengths = text.mask.sum(1)
        vectors = torch.zeros(len(lengths), self.out_dim, device=text.ids.device)
        for rows in passes(lengths.cpu(), self.tokens_per_pass):
            mask = text.mask[rows, : int(lengths[rows[0]])]
            ids = text.ids[rows, : mask.shape[1]].to(self.base.device)
            states = self.base(input_ids=ids, use_cache=False).last_hidden_state.to(vectors)
            vectors = vectors.index_copy(0, torch.tensor(rows, device=vectors.device), self._pooled(states, mask))
        if len(self.adapters) and torch.is_grad_enabled() and not vectors.requires_grad:
            # Nothing was read. DDP waits for every adapter's gradient on every rank, also where it is 0.
            vectors = vectors + 0 * torch.stack([weight.sum() for weight in self.adapters.values()]).sum()
        return vectors

    def _pooled(self, states: Tensor, mask: Tensor) -> Float[Tensor, "B D"]:
        if self.pooling == "last":
            return states[torch.arange(len(states), device=states.device), mask.sum(1) - 1]
        return (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)

    @torch.no_grad()
    def frozen(self, text: Text) -> Float[Tensor, "B D"]:
        """The same without dropout or gradients. Each text is read once, as long as the adapters stay what they are.

        Vectors are kept in memory (4 kB each for a width of 1,000) and written nowhere.
        """
        # By content: fused optimisers write to a tensor without raising its version.
        weights = (weight.cpu().numpy() for weight in self.adapters.values())
        known = _vectors.of(_digest(np.frombuffer(self._reader, np.uint8), *weights))
        ids, lengths = text.ids.cpu().numpy(), text.mask.sum(1).tolist()
        keys = [_digest(row[:length]) for row, length in zip(ids, lengths)]
        new = {key: row for row, key in enumerate(keys) if key not in known}
        if new:
            was_training = self.training
            rows = list(new.values())
            vectors = self.eval()(Text(text.ids[rows], text.mask[rows])).cpu()
            known.update({key: vector.clone() for key, vector in zip(new, vectors)})
            self.train(was_training)
        return torch.stack([known[key] for key in keys]).to(text.ids.device)


class _Vectors:
    """What models that stand still have read in this process: reader -> text -> vector."""

    def __init__(self) -> None:
        self._read: dict[bytes, dict[bytes, Tensor]] = {}

    def of(self, reader: bytes) -> dict[bytes, Tensor]:
        """The texts of a reader, which becomes the last to be dropped."""
        known = self._read.pop(reader, {})
        while self._read and self._size() > MOST_KEPT:
            del self._read[next(iter(self._read))]
        self._read[reader] = known
        return known

    def _size(self) -> int:
        return sum(len(known) * next(iter(known.values())).nbytes for known in self._read.values() if known)


_vectors = _Vectors()


def _digest(*arrays: NDArray[Any]) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    for array in arrays:
        digest.update(array.tobytes())
    return digest.digest()


def text_head(llm: LanguageModel, num_labels: int) -> nn.Sequential:
    """A linear layer on vectors of mean 0 and variance 1: those of a language model differ by orders of magnitude."""
    return nn.Sequential(nn.LayerNorm(llm.out_dim, elementwise_affine=False), nn.Linear(llm.out_dim, num_labels))
