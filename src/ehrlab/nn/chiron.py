"""CHIRon (Hill et al. 2023): a decoder-only transformer over medical codes, as a Hugging Face model.

A token is a code; its visit's number, the patient's age and the place of service are embeddings beside it. TRL, peft
and `generate` of transformers take the model as it is; models/chiron.py makes it a generator of this project. It is
here and not there because models do not import each other, and the preference phase needs it too. No code is public:
what the papers leave open is in docs/papers/chiron.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, no_type_check

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import DynamicCache, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers import initialization as init
from transformers.cache_utils import Cache
from transformers.modeling_outputs import BaseModelOutputWithPast
from transformers.utils import ModelOutput

from ehrlab.core.batch import Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.nn.decoder import Block, PreallocatedCache, causal_mask, hide_own_visit, right_align
from ehrlab.nn.generation import Element, Prediction

PRESETS: Mapping[str, Mapping[str, int]] = {
    "tiny": {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 3},
    "small": {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6},
    "base": {"hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12},
}
"""Width, depth and heads: not published. tiny for tests, small for two CPU cores, base (as GPT-2 small) for a GPU."""

WITHIN_VISIT = ("visible", "hidden")
UNKNOWN_AGE = TokenSpec.NUM_AGES
IGNORED = -100  # a label that is not predicted, as everywhere in transformers


@no_type_check  # transformers wraps __init__ to take settings that it does not declare; jaxtyping would refuse them
class ChironConfig(PreTrainedConfig):
    """Sizes and choices.

    num_ages        rows of the age embedding: 0 .. 120 years, and one for an unknown age
    within_visit    "visible": a token sees earlier visits and the earlier tokens of its own visit
                    "hidden": of its own visit it sees <visit> and itself, not the other codes
    age_weight, place_weight
                    of both heads in the loss; not published. 1, 1 is the likelihood of codes, ages and places
    context_dropout share of training sequences whose ages and places are withheld as `unknown`, so that a caller who
                    has ids only (TRL, `generate` of transformers) does not meet a model that never saw that
    """

    model_type = "chiron"
    keys_to_ignore_at_inference = ("past_key_values",)

    vocab_size: int = 8_000
    max_position_embeddings: int = 512
    max_visits: int = 48
    num_ages: int = TokenSpec.NUM_AGES + 1
    num_places: int = 1
    hidden_size: int = PRESETS["small"]["hidden_size"]
    num_hidden_layers: int = PRESETS["small"]["num_hidden_layers"]
    num_attention_heads: int = PRESETS["small"]["num_attention_heads"]
    dropout: float = 0.1
    within_visit: str = "visible"
    age_weight: float = 1.0
    place_weight: float = 1.0
    context_dropout: float = 0.1
    initializer_range: float = 0.02
    visit_token_id: int = TokenSpec.VISIT
    pad_token_id: int | None = TokenSpec.PAD
    bos_token_id: int | None = TokenSpec.BOS
    eos_token_id: int | None = TokenSpec.EOS
    tie_word_embeddings: bool = True
    use_cache: bool = True

    def __post_init__(self, **kwargs: Any) -> None:
        if self.within_visit not in WITHIN_VISIT:
            raise InputError(f"CHIRon: expected within_visit one of {WITHIN_VISIT}, found {self.within_visit!r}")
        super().__post_init__(**kwargs)


@dataclass
class ChironOutput(ModelOutput):
    """logits "B T K" of the next token; age_logits, place_logits of the visit that would open next.

    loss: -log P per predicted token: (codes + age_weight * ages + place_weight * places) / number of predicted codes.
    losses: its parts, unweighted, each over the number of predicted codes.
    """

    loss: Tensor | None = None
    logits: Tensor | None = None
    past_key_values: Cache | None = None
    age_logits: Tensor | None = None
    place_logits: Tensor | None = None
    losses: dict[str, Tensor] | None = None


class ChironPreTrainedModel(PreTrainedModel):
    config: ChironConfig
    config_class = ChironConfig  # transformers would look for it in the annotation, which is a string here
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["Block"]  # noqa: RUF012 (as transformers reads it)
    _supports_sdpa = True

    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, Block):
            # GPT-2: what a residual path adds shrinks with the number of paths.
            std = self.config.initializer_range / math.sqrt(2 * self.config.num_hidden_layers)
            for layer in (module.attention.leave, module.leave):
                init.normal_(layer.weight, mean=0.0, std=std)


class ChironModel(ChironPreTrainedModel):
    """Embeddings and blocks."""

    def __init__(self, config: ChironConfig) -> None:
        super().__init__(config)
        self.embed_tokens = nn.Embedding(config.vocab_size, config.hidden_size)
        self.embed_position = nn.Embedding(config.max_position_embeddings, config.hidden_size)
        self.embed_visit = nn.Embedding(config.max_visits + 1, config.hidden_size)
        self.embed_age = nn.Embedding(config.num_ages, config.hidden_size)
        self.embed_place = nn.Embedding(config.num_places, config.hidden_size)
        self.dropout = nn.Dropout(config.dropout)
        self.context_dropout = nn.Dropout(config.context_dropout)  # a module: TRL switches dropout off by modules
        self.layers = nn.ModuleList(
            Block(config.hidden_size, config.num_attention_heads, config.dropout)
            for _ in range(config.num_hidden_layers)
        )
        self.norm = nn.LayerNorm(config.hidden_size)
        self.gradient_checkpointing = False
        self.post_init()

    def visit_numbers(self, input_ids: Tensor) -> Tensor:
        """The running count of <visit>: 0 before the first."""
        return (input_ids == self.config.visit_token_id).cumsum(1)

    def visibility(self, real: Tensor | None, input_ids: Tensor, visit: Tensor, num_queries: int) -> Tensor | None:
        """Which of all tokens the last `num_queries` see ("B 1 Q S"); None where that is all before them.

        real  "B S", None = all are real
        """
        hidden = self.config.within_visit == "hidden"
        if real is None and not hidden:
            return None
        mask = causal_mask(torch.ones_like(input_ids, dtype=torch.bool) if real is None else real.bool(), num_queries)
        return hide_own_visit(mask, visit, input_ids == self.config.visit_token_id) if hidden else mask

    def embed(self, ids: Tensor, visit: Tensor, age: Tensor | None, place: Tensor | None, position: Tensor) -> Tensor:
        """Sum of the five embeddings; an age or place that is None is unknown."""
        if age is None:
            age = torch.full_like(ids, UNKNOWN_AGE)
        if place is None:
            place = torch.zeros_like(ids)
        if self.training:
            withheld = self.context_dropout(torch.ones(len(ids), 1, device=ids.device)) == 0
            age, place = age.masked_fill(withheld, UNKNOWN_AGE), place.masked_fill(withheld, 0)
        x = self.embed_tokens(ids) + self.embed_position(position)
        x = x + self.embed_visit(visit.clamp(max=self.config.max_visits))
        return self.dropout(x + self.embed_age(age) + self.embed_place(place))

    def run(self, x: Tensor, mask: Tensor | None, cache: Any = None) -> Tensor:
        """Blocks and the last norm."""
        for index, layer in enumerate(self.layers):
            if self.gradient_checkpointing and self.training:
                assert cache is None
                x = self._gradient_checkpointing_func(layer.__call__, x, mask)
            else:
                x = layer(x, mask, cache, index)
        return self.norm(x)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visit: Tensor | None = None,
        age: Tensor | None = None,
        place: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
    ) -> BaseModelOutputWithPast:
        """States "B T D".

        attention_mask  "B S", 1 = real, the cached tokens included; or "B 1 T S", True = may be seen
        visit           "B T"; None: counted from input_ids, which then have to be whole sequences
        age, place      "B T"; None: unknown
        """
        use_cache = bool(use_cache) and not (self.gradient_checkpointing and self.training)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        num_past = past_key_values.get_seq_length() if past_key_values is not None else 0
        num_new = input_ids.shape[1]
        if num_past + num_new > self.config.max_position_embeddings:
            raise InputError(
                f"CHIRon: expected sequences of at most {self.config.max_position_embeddings} tokens, its context, "
                f"found {num_past + num_new}. Cut them, or train with a larger tokens.max_tokens."
            )
        if visit is None:
            if num_past:
                raise InputError("CHIRon: with a cache, expected the new tokens' visit; ids alone do not tell it")
            visit = self.visit_numbers(input_ids)
        if attention_mask is None or attention_mask.ndim == 2:
            if num_past and (self.config.within_visit == "hidden" or (num_new > 1 and attention_mask is None)):
                raise InputError("CHIRon: with a cache, expected an attention_mask of shape (B, 1, new tokens, all)")
            mask = self.visibility(attention_mask, input_ids, visit, num_new)
        else:
            mask = attention_mask.bool()
        if position_ids is None:
            position_ids = torch.arange(num_past, num_past + num_new, device=input_ids.device).expand_as(input_ids)
            if attention_mask is not None and attention_mask.ndim == 2:  # padding on the left does not count
                position_ids = (attention_mask.long().cumsum(1) - 1).clamp(min=0)[:, -num_new:]
        x = self.run(self.embed(input_ids, visit, age, place, position_ids), mask, past_key_values)
        return BaseModelOutputWithPast(last_hidden_state=x, past_key_values=past_key_values)


class ChironForCausalLM(ChironPreTrainedModel, GenerationMixin):
    """Next code, and age and place of the visit that opens next."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}  # noqa: RUF012 (as transformers reads it)

    def __init__(self, config: ChironConfig) -> None:
        super().__init__(config)
        self.model = ChironModel(config)
        self.lm_head = nn.Linear(config.hidden_size, config.vocab_size, bias=False)
        self.age_head = nn.Linear(config.hidden_size, TokenSpec.NUM_AGES)
        self.place_head = nn.Linear(config.hidden_size, config.num_places)
        self.post_init()

    @classmethod
    def from_sizes(cls, spec: TokenSpec, size: str, **settings: Any) -> ChironForCausalLM:
        """A fresh model of a preset for a vocabulary. InputError for another size."""
        if size not in PRESETS:
            raise InputError(f"CHIRon: expected size one of {tuple(PRESETS)}, found {size!r}")
        config = ChironConfig(
            vocab_size=spec.num_tokens,
            max_position_embeddings=spec.max_tokens,
            max_visits=spec.max_visits,
            num_places=spec.num_places,
            **{**PRESETS[size], **settings},
        )
        return cls(config)

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        visit: Tensor | None = None,
        age: Tensor | None = None,
        place: Tensor | None = None,
        position_ids: Tensor | None = None,
        past_key_values: Cache | None = None,
        labels: Tensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | Tensor = 0,
        return_dict: bool | None = None,
    ) -> ChironOutput:
        """See ChironModel.forward.

        labels          "B T" like input_ids (-100 = not predicted), shifted here
        logits_to_keep  the last so many positions only; 0 = all
        """
        found = self.model(
            input_ids, attention_mask, visit, age, place, position_ids, past_key_values, use_cache=use_cache
        )
        states = found.last_hidden_state
        kept = states
        if not isinstance(logits_to_keep, int):
            kept = states[:, logits_to_keep]
        elif logits_to_keep:
            kept = states[:, -logits_to_keep:]
        loss, losses = (None, None) if labels is None else self._loss(states, input_ids, labels, age, place)
        return ChironOutput(
            loss=loss,
            logits=self.lm_head(kept),
            past_key_values=found.past_key_values,
            age_logits=self.age_head(kept),
            place_logits=self.place_head(kept),
            losses=losses,
        )

    def _loss(
        self, states: Tensor, input_ids: Tensor, labels: Tensor, age: Tensor | None, place: Tensor | None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """-log P(codes, ages, places), see ChironOutput. An age and place are those of the visit that a token opens."""
        before, labels = states[:, :-1], labels[:, 1:]
        predicted = labels != IGNORED
        count = predicted.sum().clamp(min=1)
        opens = predicted & (input_ids[:, 1:] == self.config.visit_token_id)

        def nll(head: nn.Linear, where: Tensor, target: Tensor) -> Tensor:
            # Only positions with a target: the vocabulary is the most expensive layer.
            return F.cross_entropy(head(before[where]).float(), target[where], reduction="sum") / count

        losses = {"code": nll(self.lm_head, predicted, labels)}
        loss = losses["code"]
        heads = (
            ("age", self.age_head, age, self.config.age_weight),
            ("place", self.place_head, place, self.config.place_weight),
        )
        for name, head, target, weight in heads:
            if target is not None:
                losses[name] = nll(head, opens, target[:, 1:])
                loss = loss + weight * losses[name]
        return loss, losses

    def prepare_inputs_for_generation(  # type: ignore[override]  # `generate` names what the signature names
        self,
        input_ids: Tensor,
        next_sequence_length: int | None = None,
        past_key_values: Cache | None = None,
        attention_mask: Tensor | None = None,
        visit: Tensor | None = None,
        age: Tensor | None = None,
        place: Tensor | None = None,
        position_ids: Tensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """For `generate` of transformers: visits are counted; the prompt's last age stays, and a new visit's place is
        unknown. `sample` in nn/generation.py asks the heads instead."""
        num_new = input_ids.shape[1] if next_sequence_length is None else next_sequence_length
        visit = self.model.visit_numbers(input_ids)
        num_generated = input_ids.shape[1] - (0 if age is None else age.shape[1])
        if age is not None:
            age = torch.cat([age, age[:, -1:].expand(-1, num_generated)], dim=1)
        if place is not None:
            num_given = place.shape[1]
            same = visit[:, num_given:] == visit[:, num_given - 1 : num_given]
            place = torch.cat([place, place[:, -1:] * same], dim=1)
        if self.config.within_visit == "hidden" or (past_key_values is not None and attention_mask is not None):
            attention_mask = self.model.visibility(attention_mask, input_ids, visit, num_new)
        return {
            "input_ids": input_ids[:, -num_new:],
            "attention_mask": attention_mask,
            "visit": visit[:, -num_new:],
            "age": None if age is None else age[:, -num_new:],
            "place": None if place is None else place[:, -num_new:],
            "position_ids": None if position_ids is None else position_ids[:, -num_new:],
            "past_key_values": past_key_values,
            "use_cache": use_cache,
            "logits_to_keep": 1,
        }


class ChironStepper:
    """A CHIRon reading token by token, with a preallocated cache (nn/generation.py: Stepper).

    Prompts are moved to the right, so that each new token has the same place in the cache of all rows.
    """

    def __init__(self, lm: ChironForCausalLM, capacity: int) -> None:
        config = lm.config
        self.lm, self.capacity = lm, capacity
        self.cache = PreallocatedCache(
            config.num_hidden_layers,
            config.num_attention_heads,
            config.hidden_size // config.num_attention_heads,
            capacity,
        )
        self.ids = self.visit = self.real = torch.empty(0)
        self.size = 0
        self.padded = False

    def start(self, prompt: Tokens) -> Prediction:
        model, mask = self.lm.model, prompt.mask
        num_rows, self.size = mask.shape
        ids, visit, age, place = (right_align(x, mask) for x in (prompt.ids, prompt.visit, prompt.age, prompt.place))
        padding = self.size - mask.sum(1, keepdim=True)
        self.padded = not bool(mask.all())
        real = torch.arange(self.size, device=mask.device) >= padding
        position = (torch.arange(self.size, device=mask.device) - padding).clamp(min=0)
        self.ids, self.visit = (x.new_zeros(num_rows, self.capacity) for x in (ids, visit))
        self.real = real.new_ones(num_rows, self.capacity)
        self.ids[:, : self.size], self.visit[:, : self.size], self.real[:, : self.size] = ids, visit, real
        return self._predict(model.embed(ids, visit, age, place, position), num_new=self.size)

    def step(self, element: Element) -> Prediction:
        self.ids[:, self.size], self.visit[:, self.size] = element.ids, element.visit
        self.size += 1
        # Rows that have ended run along until they are dropped: past the context's end their position is no position.
        position = element.position.clamp(max=self.lm.config.max_position_embeddings - 1)
        columns = (element.ids, element.visit, element.age, element.place, position)
        return self._predict(self.lm.model.embed(*(x[:, None] for x in columns)), num_new=1)

    def select(self, rows: Tensor) -> None:
        self.cache.select(rows)
        self.ids, self.visit, self.real = self.ids[rows], self.visit[rows], self.real[rows]

    def _predict(self, x: Tensor, num_new: int) -> Prediction:
        real, ids, visit = (store[:, : self.size] for store in (self.real, self.ids, self.visit))
        mask = self.lm.model.visibility(real if self.padded else None, ids, visit, num_new)
        state = self.lm.model.run(x, mask, self.cache)[:, -1]
        return Prediction(self.lm.lm_head(state), self.lm.age_head(state), self.lm.place_head(state))
