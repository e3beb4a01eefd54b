"""From next-token predictions to whole sequences: sampling in batches, and beam search.

A model brings a Stepper; the rules of a sequence (what may follow what, visit numbers, ages that never fall) are here.
"""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from ehrlab.core.batch import Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec

FIELDS = ("ids", "visit", "age", "place")

CHECK_EVERY = 8
"""Steps between two looks at how many sequences still grow: on a GPU each look waits for the device."""


@dataclass
class Element:
    """One token of each of B sequences, as in Tokens; `position` counts from 0."""

    ids: Int[Tensor, " B"]
    visit: Int[Tensor, " B"]
    age: Int[Tensor, " B"]
    place: Int[Tensor, " B"]
    position: Int[Tensor, " B"]

    def select(self, rows: Int[Tensor, " R"]) -> "Element":
        return Element(*(value[rows] for value in (self.ids, self.visit, self.age, self.place, self.position)))


@dataclass
class Prediction:
    """Logits of what comes next. age and place: of a visit that would open now; None = the model has no such heads."""

    code: Float[Tensor, "B T"]
    age: Float[Tensor, "B A"] | None = None
    place: Float[Tensor, "B P"] | None = None

    def select(self, rows: Int[Tensor, " R"]) -> "Prediction":
        age, place = (None if x is None else x[rows] for x in (self.age, self.place))
        return Prediction(self.code[rows], age, place)


@runtime_checkable
class Stepper(Protocol):
    """A model reading sequences token by token; it holds the state of each."""

    def start(self, prompt: Tokens) -> Prediction:
        """Read the prompts from their first token."""

    def step(self, element: Element) -> Prediction:
        """Read one more token of each."""

    def select(self, rows: Int[Tensor, " R"]) -> None:
        """Keep these sequences, in this order; one may come several times."""


class Grammar:
    """Which token may come next. A model learns it from the data almost, and almost is not enough to write a record.

    Before the first visit: demographics, or <visit>. After <visit>: a code. Within a visit: a code, <visit> or <eos>;
    no <visit> once there are max_visits. Never <pad>, <bos>, <unk>.
    """

    def __init__(self, spec: TokenSpec, device: torch.device) -> None:
        self.max_visits = spec.max_visits
        before, opened, within, last = (torch.zeros(spec.num_tokens, dtype=torch.bool) for _ in range(4))
        before[TokenSpec.UNK + 1 : spec.first_code] = True
        before[TokenSpec.VISIT] = True
        for row in (opened, within, last):
            row[spec.first_code :] = True
        within[TokenSpec.VISIT] = True
        within[TokenSpec.EOS] = last[TokenSpec.EOS] = True
        allowed = torch.stack([before, opened, within, last]).to(device)
        self.penalty = torch.zeros(allowed.shape, device=device).masked_fill(~allowed, float("-inf"))

    def __call__(
        self, logits: Float[Tensor, "B T"], ids: Int[Tensor, " B"], visit: Int[Tensor, " B"]
    ) -> Float[Tensor, "B T"]:
        """Logits with -inf at what may not follow the token `ids` of visit `visit`."""
        state = torch.where(visit < self.max_visits, 2, 3)
        state = torch.where(ids == TokenSpec.VISIT, 1, state)
        return logits + self.penalty[torch.where(visit == 0, 0, state)].to(logits.dtype)


def draw(
    logits: Float[Tensor, "B T"], uniform: Float[Tensor, " B"], temperature: float, top_k: int | None = None
) -> Int[Tensor, " B"]:
    """One token per row from softmax(logits / temperature), the k most probable ones only; temperature 0: the best.

    By the inverse of the cumulative distribution: one random number per row, not one per token of the vocabulary.
    """
    if temperature == 0:
        return logits.argmax(-1)
    chosen = None
    if top_k is not None and top_k < logits.shape[1]:
        logits, chosen = logits.topk(top_k)
    # float64: in float32 the sum over thousands of tokens would round rare ones away.
    cumulative = (logits / temperature).softmax(-1).cumsum(-1, dtype=torch.float64)
    point = uniform[:, None] * cumulative[:, -1:]
    # right: the first place that lies above the point, so never one of probability 0
    found = torch.searchsorted(cumulative, point, right=True)
    return (found if chosen is None else chosen.gather(1, found)).squeeze(1)


def last_element(prompt: Tokens) -> Element:
    position = prompt.mask.sum(1) - 1
    rows = torch.arange(len(position), device=position.device)
    ids, visit, age, place = (x[rows, position] for x in (prompt.ids, prompt.visit, prompt.age, prompt.place))
    return Element(ids, visit, age, place, position)


def follow(last: Element, ids: Int[Tensor, " B"], age: Tensor | None, place: Tensor | None) -> Element:
    """The token `ids` after `last`. Where it opens a visit, the number rises, and `age` and `place` are the visit's;
    without heads the age stays, and the place is unknown (0)."""
    opens = ids == TokenSpec.VISIT
    return Element(
        ids=ids,
        visit=last.visit + opens,
        age=last.age if age is None else torch.where(opens, age, last.age),
        place=torch.where(opens, torch.zeros_like(ids) if place is None else place, last.place),
        position=last.position + 1,
    )


def room_after(prompt: Tokens, spec: TokenSpec, max_new_tokens: int) -> Int[Tensor, " B"]:
    """How many tokens may follow each prompt; 0 after <eos>.

    Errors: InputError for a prompt that is empty, longer than the context or of another vocabulary, and for
    max_new_tokens < 0.
    """
    length = prompt.mask.sum(1)
    if max_new_tokens < 0:
        raise InputError(f"generate: expected max_new_tokens >= 0, found {max_new_tokens}")
    if int(length.min()) == 0:
        raise InputError("generate: expected prompts of at least one token, found an empty one. Begin with <bos>.")
    if int(length.max()) > spec.max_tokens:
        raise InputError(
            f"generate: expected prompts of at most {spec.max_tokens} tokens, the model's context, found "
            f"{int(length.max())}. Cut the prompts, or train with a larger tokens.max_tokens."
        )
    if int(prompt.visit.max()) > spec.max_visits:
        raise InputError(
            f"generate: expected prompts of at most {spec.max_visits} visits, found {int(prompt.visit.max())}. "
            "Cut the prompts, or train with a larger tokens.max_visits."
        )
    if int(prompt.ids.max()) >= spec.num_tokens:
        raise InputError(
            f"generate: expected the vocabulary that the model was trained on, {spec.num_tokens} tokens, found the id "
            f"{int(prompt.ids.max())}. Tokenize the prompts with the tokenizer beside the model."
        )
    room = (spec.max_tokens - length).clamp(max=max_new_tokens)
    return room * (last_element(prompt).ids != TokenSpec.EOS)


def check_sampling(temperature: float, top_k: int | None) -> None:
    if temperature < 0:
        raise InputError(f"generate: expected temperature >= 0, found {temperature}")
    if top_k is not None and top_k < 1:
        raise InputError(f"generate: expected top_k >= 1 or none, found {top_k}")


@torch.no_grad()
def sample(
    stepper: Stepper,
    prompt: Tokens,
    spec: TokenSpec,
    max_new_tokens: int,
    generator: torch.Generator | None,
    temperature: float,
    top_k: int | None,
) -> Tokens:
    """The prompts with their continuations, up to <eos>, the context's end or max_new_tokens.

    What a sequence becomes depends on its prompt, its row and the generator, not on when other rows end.
    """
    check_sampling(temperature, top_k)
    new, num_new, _ = _grow(stepper, prompt, spec, max_new_tokens, generator, temperature, top_k)
    return append(prompt, new, num_new)


@torch.no_grad()
def target_probability(
    stepper: Stepper,
    prompt: Tokens,
    spec: TokenSpec,
    max_new_tokens: int,
    num_draws: int,
    generator: torch.Generator | None,
) -> Float[Tensor, " B"]:
    """P(a continuation by `sample` at temperature 1 holds a target code | prompt), from `num_draws` continuations each.

    They are drawn without targets, and each is asked at every token how probable one was there: the mean over draws of
    1 - prod_t (1 - P(target | all before t)). Its expectation is the probability, whatever their number. To count draws
    with a target has the same expectation, but of a rare target most counts are 0.
    """
    _, _, absent = _grow(
        stepper, repeated(prompt, num_draws), spec, max_new_tokens, generator, 1.0, None, without=spec.targets
    )
    return -absent.unflatten(0, (-1, num_draws)).expm1().mean(1)


def repeated(prompt: Tokens, num: int) -> Tokens:
    """Each prompt `num` times, one after the other."""
    return prompt.map(lambda x: x.repeat_interleave(num, dim=0))


def _grow(
    stepper: Stepper,
    prompt: Tokens,
    spec: TokenSpec,
    max_new_tokens: int,
    generator: torch.Generator | None,
    temperature: float,
    top_k: int | None,
    without: tuple[int, ...] = (),
) -> tuple[dict[str, Int[Tensor, "B N"]], Int[Tensor, " B"], Float[Tensor, " B"]]:
    """New tokens, how many of them count, and the log-probability that none was one of `without`.

    without  tokens that are never drawn
    """
    room = room_after(prompt, spec, max_new_tokens)
    num_rows, num_steps = len(room), int(room.max())
    device = prompt.ids.device
    grammar = Grammar(spec, device)
    new = {name: torch.zeros(num_rows, num_steps, dtype=torch.long, device=device) for name in FIELDS}
    num_new = torch.zeros_like(room)
    absent = torch.zeros(num_rows, dtype=torch.float64, device=device)
    forbidden = torch.tensor(without, dtype=torch.long, device=device)
    rows = torch.arange(num_rows, device=device)  # of the sequences that still grow, and some that just ended
    last = last_element(prompt)
    growing = room > 0
    prediction = _read(stepper, prompt) if num_steps else None
    ages = torch.arange(TokenSpec.NUM_AGES, device=device)
    for i in range(num_steps):
        if i % CHECK_EVERY == 0:
            remaining = int(growing.sum())
            if remaining == 0:
                break
            if remaining <= 0.75 * len(rows) and i > 0:
                kept = growing.nonzero().squeeze(1)
                stepper.select(kept)
                rows, last, growing = rows[kept], last.select(kept), growing[kept]
                prediction = None
        if prediction is None:
            prediction = stepper.step(last)
        # For all rows, also those that ended: the others' numbers then do not depend on them.
        where = generator.device if generator is not None else device
        uniform = torch.rand(3, num_rows, dtype=torch.float64, generator=generator, device=where).to(device)[:, rows]
        logits = grammar(prediction.code, last.ids, last.visit)
        if without:
            log_share, logits = _forbid(logits, forbidden)
            absent[rows] += log_share.where(growing, 0.0)
        ids = draw(logits, uniform[0], temperature, top_k)
        age = place = None
        if prediction.age is not None:
            younger = ages < last.age[:, None]  # age never falls
            age = draw(prediction.age.masked_fill(younger, float("-inf")), uniform[1], temperature)
        if prediction.place is not None:
            place = draw(prediction.place, uniform[2], temperature)
        last = follow(last, ids, age, place)
        for name, store in new.items():
            store[rows, i] = getattr(last, name)
        num_new[rows] += growing
        growing = growing & (ids != TokenSpec.EOS) & (i + 1 < room[rows])
        prediction = None
    return new, num_new, absent


@dataclass
class Copies:
    """Prompts of which some repeat the one before them. To read a prompt costs most of what a short continuation does.

    first   True = not a repetition
    source  which of the first ones each prompt is
    """

    first: Bool[Tensor, " B"]
    source: Int[Tensor, " B"]

    @classmethod
    def of(cls, prompt: Tokens) -> "Copies":
        fields = [getattr(prompt, name) for name in FIELDS]
        same = torch.stack([*fields, prompt.mask.long()], dim=2).flatten(1)
        first = torch.ones(len(same), dtype=torch.bool, device=same.device)
        first[1:] = (same[1:] != same[:-1]).any(1)
        return cls(first, first.cumsum(0) - 1)


def _read(stepper: Stepper, prompt: Tokens) -> Prediction:
    """`stepper.start`, each prompt read once."""
    copies = Copies.of(prompt)
    if bool(copies.first.all()):
        return stepper.start(prompt)
    prediction = stepper.start(prompt.map(lambda x: x[copies.first]))
    stepper.select(copies.source)
    return prediction.select(copies.source)


def _forbid(
    logits: Float[Tensor, "B T"], forbidden: Int[Tensor, " F"]
) -> tuple[Float[Tensor, " B"], Float[Tensor, "B T"]]:
    """log of the probability of all other tokens, and logits with -inf at the forbidden ones."""
    share = (logits[:, forbidden].logsumexp(1) - logits.logsumexp(1)).double().exp().clamp(max=1)
    left = logits.index_fill(1, forbidden, float("-inf"))
    # Where nothing else is left the continuation has probability 0, and its next token is of no matter.
    nothing = left.amax(1, keepdim=True) == float("-inf")
    return (-share).log1p(), torch.where(nothing, logits, left)


def append(prompt: Tokens, new: dict[str, Int[Tensor, "B N"]], num_new: Int[Tensor, " B"]) -> Tokens:
    """Prompt and the first `num_new` new tokens of each row, with padding (0) on the right of both."""
    length = prompt.mask.sum(1)
    total = length + num_new
    position = torch.arange(int(total.max()), device=total.device).expand(len(total), -1)
    mask = position < total[:, None]
    own = position < length[:, None]
    before = position.clamp(max=prompt.ids.shape[1] - 1)

    def joined(old: Tensor, added: Tensor) -> Tensor:
        found = old.gather(1, before)
        if added.shape[1]:
            after = (position - length[:, None]).clamp(0, added.shape[1] - 1)
            found = torch.where(own, found, added.gather(1, after))
        return found * mask

    return Tokens(mask=mask, **{name: joined(getattr(prompt, name), new[name]) for name in FIELDS})


@torch.no_grad()
def beam_search(stepper: Stepper, prompt: Tokens, spec: TokenSpec, max_new_tokens: int, num_beams: int) -> Tokens:
    """The most probable continuation that a search with `num_beams` beams finds; see `sample` for where it ends.

    The score of a continuation is the sum of its log-probabilities, as long as it is or not: short ones are favoured.
    A model with heads for age and place gives each visit the most probable ones.
    """
    if num_beams < 1:
        raise InputError(f"beam search: expected num_beams >= 1, found {num_beams}")
    room = room_after(prompt, spec, max_new_tokens)
    num_rows, num_steps, device = len(room), int(room.max()), prompt.ids.device
    if num_steps == 0:
        return append(
            prompt, {name: torch.zeros(num_rows, 0, dtype=torch.long, device=device) for name in FIELDS}, room
        )
    grammar, ages = Grammar(spec, device), torch.arange(TokenSpec.NUM_AGES, device=device)
    first = torch.arange(num_rows, device=device)[:, None] * num_beams  # row of each prompt's first beam

    prediction = stepper.start(prompt)
    # The beams of a prompt are equal at first: all but one are worth nothing, so that they do not fill the search.
    last = last_element(prompt)
    copies = torch.arange(num_rows, device=device).repeat_interleave(num_beams)
    stepper.select(copies)
    last = last.select(copies)
    prediction = prediction.select(copies)
    score = torch.full((num_rows, num_beams), float("-inf"), device=device, dtype=torch.float64)
    score[:, 0] = 0
    ended = (room == 0)[:, None].expand(-1, num_beams).clone()
    num_new = torch.zeros_like(ended, dtype=torch.long)
    new = {name: torch.zeros(num_rows * num_beams, num_steps, dtype=torch.long, device=device) for name in FIELDS}
    for i in range(num_steps):
        logits = grammar(prediction.code, last.ids, last.visit)
        step_score = F.log_softmax(logits.double(), dim=-1).unflatten(0, (num_rows, num_beams))
        # An ended beam goes on as itself, at no cost: in the column of <pad>, which nothing else uses.
        step_score = step_score.masked_fill(ended[..., None], float("-inf"))
        step_score[..., TokenSpec.PAD] = step_score[..., TokenSpec.PAD].masked_fill(ended, 0.0)
        num_tokens = step_score.shape[-1]
        score, best = (score[..., None] + step_score).flatten(1).topk(num_beams)
        source, ids = (first + best // num_tokens).flatten(), (best % num_tokens).flatten()
        last = last.select(source)
        age = place = None
        prediction = prediction.select(source)
        if prediction.age is not None:
            age = prediction.age.masked_fill(ages < last.age[:, None], float("-inf")).argmax(-1)
        if prediction.place is not None:
            place = prediction.place.argmax(-1)
        last = follow(last, ids, age, place)
        ended, num_new = (x.flatten()[source].unflatten(0, (num_rows, num_beams)) for x in (ended, num_new))
        for name, store in new.items():
            new[name] = store = store[source]
            store[:, i] = getattr(last, name)
        num_new = num_new + ~ended
        ended = ended | (ids == TokenSpec.EOS).view_as(ended) | (i + 1 >= room[:, None])
        # Scores only fall: once a prompt's best beam has ended, no other can overtake it.
        if i + 1 == num_steps or bool(ended[:, 0].all()):
            break
        stepper.select(source)
        prediction = stepper.step(last)
    best_beam = first.squeeze(1)
    return append(prompt, {name: store[best_beam] for name, store in new.items()}, num_new[:, 0])


def next_token_log_prob(logits: Float[Tensor, "B T K"], tokens: Tokens) -> Float[Tensor, " B"]:
    """Sum of log P(token | tokens before it) over the real tokens after the first."""
    steps = F.log_softmax(logits[:, :-1].float(), dim=-1).gather(-1, tokens.ids[:, 1:, None]).squeeze(-1)
    return (steps * tokens.mask[:, 1:]).sum(1)
