"""HALO (Theodorou et al. 2023, Nature Communications 14:5305): a transformer over visits, a masked head over codes.

A patient is a list of sets: the order of codes within a visit, ages and places of service are not represented. Written
from the paper and the facts of its release (Apache-2.0): docs/papers/halo.md.
"""

import itertools
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.model import LossDict, SequenceGenerator
from ehrlab.core.spec import DataSpec, TokenSpec
from ehrlab.nn.decoder import Block, PreallocatedCache, causal_mask, right_align
from ehrlab.nn.generation import FIELDS, Copies, append, check_sampling, follow, last_element, repeated, room_after

NUM_SPECIALS = TokenSpec.UNK + 1  # ids without an entry in a row


class MaskedLinear(nn.Linear):
    """Output i reads inputs 0 .. i only."""

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim)

    def forward(self, x: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
        return F.linear(x, self.weight.tril(), self.bias)


class FineHead(nn.Module):
    """Logit of code k from the history and codes 0 .. k - 1 of the same visit: two masked layers over both."""

    def __init__(self, dim: int, row_dim: int) -> None:
        super().__init__()
        self.dim = dim
        self.first, self.second = MaskedLinear(dim + row_dim), MaskedLinear(dim + row_dim)

    def forward(self, history: Float[Tensor, "N D"], row: Float[Tensor, "N W"]) -> Float[Tensor, "N W"]:
        found = self.second(F.relu(self.first(torch.cat([history, row], dim=1))))
        return found[:, self.dim - 1 : -1]  # shifted by one: what reads code k predicts code k + 1


class FrozenHead:
    """A FineHead for generation, which asks it a few times a row and changes no weight: the same logits, faster.

    Masked once; a layer over sets costs what their few codes cost; and half of a triangle is not multiplied.
    """

    BLOCK = 512

    def __init__(self, head: FineHead) -> None:
        first, size = head.first.weight.tril(), len(head.second.bias)
        self.of_history, self.of_codes = first[:, : head.dim], first[:, head.dim :].t().contiguous()
        self.bias = head.first.bias
        ends = [*range(head.dim - 1, size - 1, self.BLOCK), size - 1]
        self.blocks = [
            (head.second.weight[begin:end, :end].tril(begin), head.second.bias[begin:end])
            for begin, end in itertools.pairwise(ends)
        ]

    def __call__(self, history: Float[Tensor, "N D"], row: Float[Tensor, "N W"]) -> Float[Tensor, "N W"]:
        hidden = F.linear(history, self.of_history, self.bias)
        patient, code = row.nonzero(as_tuple=True)
        hidden = hidden.index_add(0, patient, self.of_codes[code]).relu()
        return torch.cat([F.linear(hidden[:, : w.shape[1]], w, bias) for w, bias in self.blocks], dim=1)


class Halo(SequenceGenerator):
    """P(record) = prod over rows t, codes k of P(x_tk | rows before t, x_t1 .. x_t(k-1))

    A row is a multi-hot: demographics and codes by id, the label (a target code of the task occurs in the record), and
    the flags START, END, PAD. Row 0 is START; row 1 the demographics and the label; then a row per visit, END on the
    last, if the record ends there.
    """

    # Of the task the label is taken; how RLTF beside it is tuned is of no matter.
    ignores: ClassVar[frozenset[str]] = (SequenceGenerator.ignores - {"task"}) | {"training.phases.tune"}

    def __init__(
        self, spec: DataSpec, embed_dim: int = 128, num_layers: int = 4, num_heads: int = 4, dropout: float = 0.1
    ) -> None:
        super().__init__()
        assert spec.tokens is not None
        self.tokens = tokens = spec.tokens
        self.num_codes = tokens.num_tokens - NUM_SPECIALS
        self.label, self.start, self.end, self.pad = range(self.num_codes, self.num_codes + 4)
        self.row_dim = self.num_codes + 4
        self.num_rows = tokens.max_visits + 2
        self.num_layers, self.num_heads, self.embed_dim = num_layers, num_heads, embed_dim
        self.register_buffer("targets", torch.tensor(tokens.targets, dtype=torch.long), persistent=False)
        self.embed = nn.Linear(self.row_dim, embed_dim, bias=False)
        self.position = nn.Embedding(self.num_rows, embed_dim)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(embed_dim, num_heads, dropout) for _ in range(num_layers))
        self.norm = nn.LayerNorm(embed_dim)
        self.fine = FineHead(embed_dim, self.row_dim)

    targets: Tensor

    # ---- records as rows
    def rows(self, tokens: Tokens) -> tuple[Float[Tensor, "B R W"], Bool[Tensor, "B R"]]:
        """Rows of the records, and which are real; padding rows have the flag PAD."""
        num_samples = len(tokens.ids)
        num_real = 2 + (tokens.visit * tokens.mask).amax(1)
        width = int(num_real.max())
        found = self.embed.weight.new_zeros(num_samples, width, self.row_dim)
        row = tokens.visit + 1
        sample = torch.arange(num_samples, device=row.device)[:, None].expand_as(row)
        coded = tokens.mask & (tokens.ids >= NUM_SPECIALS)
        found[sample[coded], row[coded], tokens.ids[coded] - NUM_SPECIALS] = 1
        ends = tokens.mask & (tokens.ids == TokenSpec.EOS)
        found[sample[ends], row[ends], self.end] = 1
        found[:, 0, self.start] = 1
        found[:, 1, self.label] = self._holds_target(tokens).to(found.dtype)
        real = torch.arange(width, device=row.device) < num_real[:, None]
        found[..., self.pad] = (~real).to(found.dtype)
        return found, real

    def _holds_target(self, tokens: Tokens) -> Bool[Tensor, " B"]:
        return (torch.isin(tokens.ids, self.targets) & tokens.mask).any(1)

    # ---- likelihood
    def history(self, rows: Float[Tensor, "B R W"]) -> Float[Tensor, "B R D"]:
        """State after each row. Padding is on the right, where no real row sees it."""
        position = torch.arange(rows.shape[1], device=rows.device)
        return self._coarse(self.dropout(self.embed(rows) + self.position(position)))

    def _coarse(
        self,
        x: Float[Tensor, "B Q D"],
        mask: Bool[Tensor, "B 1 Q S"] | None = None,
        cache: PreallocatedCache | None = None,
    ) -> Float[Tensor, "B Q D"]:
        for layer, block in enumerate(self.blocks):
            x = block(x, mask, cache, layer)
        return self.norm(x)

    def logits(self, tokens: Tokens) -> tuple[Float[Tensor, "N W"], Float[Tensor, "N W"], Bool[Tensor, "B R"]]:
        """Logits and values of the real rows after START, one after the other, and where they stand."""
        rows, real = self.rows(tokens)
        predicted = real[:, 1:]
        values = rows[:, 1:][predicted]  # before the head: it is by far the most expensive layer
        return self.fine(self.history(rows)[:, :-1][predicted], values), values, predicted

    def loss(self, batch: Batch) -> LossDict:
        """Binary cross-entropy, the mean over real rows and their entries."""
        assert batch.tokens is not None
        logits, values, _ = self.logits(batch.tokens)
        return {"loss": F.binary_cross_entropy_with_logits(logits, values)}

    def log_prob(self, tokens: Tokens) -> Float[Tensor, " B"]:
        """Of the record as sets, and of its label."""
        logits, values, predicted = self.logits(tokens)
        per_row = -F.binary_cross_entropy_with_logits(logits, values, reduction="none").sum(1)
        return torch.zeros_like(predicted, dtype=per_row.dtype).masked_scatter(predicted, per_row).sum(1)

    # ---- generation
    @torch.no_grad()
    def generate(
        self,
        prompt: Tokens,
        max_new_tokens: int,
        generator: torch.Generator | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
    ) -> Tokens:
        """Visit by visit; codes of a visit in the order of their ids, the commonest first.

        The prompt's last visit is open: it keeps its codes, and more are drawn. The label, unknown for a prompt, is
        drawn from P(label | demographics and closed visits), unless the prompt holds a target. Visits that turn out
        empty are left out, as in the release. The age stays, the place of a new visit is unknown.

        temperature  0 = every entry whose probability is above one half
        """
        if top_k is not None:
            raise InputError("HALO draws each code on its own: expected no top_k, found one. Leave it out.")
        temperature = 1.0 if temperature is None else temperature
        check_sampling(temperature, top_k)
        room = room_after(prompt, self.tokens, max_new_tokens)
        written, first, _ = self._grow(prompt, room, _Draws(generator, temperature, room.device))
        return self._write(prompt, written, first, room)

    @torch.no_grad()
    def target_probability(
        self, prompt: Tokens, max_new_tokens: int, num_draws: int, generator: torch.Generator | None = None
    ) -> Float[Tensor, " B"]:
        """As nn/generation.py: visits are drawn without targets, and each is asked how probable one was there."""
        prompt = repeated(prompt, num_draws)
        room = room_after(prompt, self.tokens, max_new_tokens)
        *_, absent = self._grow(prompt, room, _Draws(generator, 1.0, room.device), without=self.targets - NUM_SPECIALS)
        return -absent.unflatten(0, (-1, num_draws)).expm1().mean(1)

    def _grow(
        self, prompt: Tokens, room: Int[Tensor, " B"], draws: "_Draws", without: Int[Tensor, " F"] | None = None
    ) -> tuple[list[Bool[Tensor, "B W"]], Int[Tensor, " B"], Float[Tensor, " B"]]:
        """New entries row by row, the number of each patient's first drawn row, and the log-probability that none of
        `without`, which are never drawn, was among the first `room` tokens."""
        rows, real = self.rows(prompt)
        rows = F.pad(rows, (0, 0, 0, 1))  # the row to draw may be the one after the prompt's last
        demographics = (prompt.ids >= NUM_SPECIALS) & (prompt.visit == 0) & prompt.mask
        # The number of the row to draw first. A prompt with demographics tells them all; <bos> alone tells nothing.
        number = torch.where(demographics.any(1), 2, 1).maximum(real.sum(1) - 1)
        holds_target = self._holds_target(prompt)
        fine = FrozenHead(self.fine)
        self._draw_labels(rows, number, holds_target, draws, fine, Copies.of(prompt))
        given = rows[torch.arange(len(rows), device=rows.device), number]
        given[:, self.num_codes :] = 0
        given[:, self.label] = (holds_target & (number == 1)).to(given.dtype)

        width = int(number.max())
        head_dim = self.embed_dim // self.num_heads
        cache = PreallocatedCache(self.num_layers, self.num_heads, head_dim, width + self.num_rows)
        position = torch.arange(width, device=rows.device)
        closed = position < number[:, None]
        x = right_align(self.embed(rows[:, :width]) + self.position(position), closed)
        seen = position >= width - number[:, None]
        last = last_element(prompt)
        begun = (number == 1) | (last.visit > 0)  # no <visit> has to be written before the row's codes
        written, growing, num_new = [], room > 0, torch.zeros_like(room)
        absent = torch.zeros(len(room), dtype=torch.float64, device=room.device)
        first = number
        while bool(growing.any()):
            history = self._coarse(x, causal_mask(seen, x.shape[1]), cache)[:, -1]
            row = self._sweep(history, given, number == 1, growing, draws, fine, without)
            new = ((row - given) * growing[:, None]).bool()
            if without is not None:
                asked = (growing & (number > 1)).nonzero().squeeze(1)
                before = (num_new + ~begun)[asked, None] + new[asked].cumsum(1)[
                    :, without
                ]  # tokens before each of them
                possible = (before < room[asked, None]) & (given[asked][:, without] == 0)
                logits = fine(history[asked], row[asked])[:, without].double()
                absent[asked] += F.logsigmoid(-logits).where(possible, 0.0).sum(1)
            written.append(new)
            codes = new[:, : self.num_codes].sum(1)
            num_new = num_new + codes + ((codes > 0) & ~begun) + new[:, self.end]
            growing = growing & (row[:, self.end] == 0) & (num_new < room) & (number + 1 < self.num_rows)
            # A prompt that ends with <visit> waits for its codes, should the first row have none.
            begun = (last.ids == TokenSpec.VISIT) & (num_new == 0)
            # Patients that have ended run along.
            x = (self.embed(row) + self.position(number.clamp(max=self.num_rows - 1)))[:, None]
            seen = F.pad(seen, (0, 1), value=True)
            given, number = torch.zeros_like(given), number + 1
        return written, first, absent

    def _draw_labels(
        self,
        rows: Float[Tensor, "B R W"],
        number: Int[Tensor, " B"],
        holds: Bool[Tensor, " B"],
        draws: "_Draws",
        fine: FrozenHead,
        copies: Copies,
    ) -> None:
        """Set the label in row 1: by Bayes' rule over the rows before `number`, or 1 where a target was seen."""
        once = rows[copies.first]
        closed = torch.arange(1, rows.shape[1], device=rows.device) < number[copies.first][:, None]
        score = []
        for label in (0.0, 1.0):
            once[:, 1, self.label] = label
            values = once[:, 1:][closed]
            logits = fine(self.history(once[:, :-1])[closed], values)
            per_row = -F.binary_cross_entropy_with_logits(logits, values, reduction="none").sum(1)
            score.append(torch.zeros_like(closed, dtype=per_row.dtype).masked_scatter(closed, per_row).sum(1))
        drawn = draws.bernoulli((score[1] - score[0])[copies.source], draws.uniform(len(rows)))
        rows[:, 1, self.label] = (drawn | holds).to(rows.dtype)

    def _sweep(
        self,
        history: Float[Tensor, "B D"],
        given: Float[Tensor, "B W"],
        first: Bool[Tensor, " B"],
        drawn: Bool[Tensor, " B"],
        draws: "_Draws",
        fine: FrozenHead,
        without: Int[Tensor, " F"] | None = None,
    ) -> Float[Tensor, "B W"]:
        """A row: entry after entry in the order of ids, each from P(x_k | history, x_1 .. x_(k-1)).

        given    entries that are 1, whatever is drawn
        first    True = row 1, where demographics and the label may be drawn; else codes and END
        drawn    False = nothing is drawn for this patient
        without  entries that are not drawn
        """
        entry = torch.arange(self.row_dim, device=given.device)
        first_code = self.tokens.first_code - NUM_SPECIALS
        static = (entry < first_code) | (entry == self.label)
        of_visit = ((entry >= first_code) & (entry < self.num_codes)) | (entry == self.end)
        allowed = torch.where(first[:, None], static, of_visit)
        if without is not None:
            allowed[:, without] = False
        uniform = draws.uniform(*given.shape)
        row = given.clone()
        # x_k = [u_k < P(x_k = 1 | x_1 .. x_(k-1))] for all k has one solution, the sweep's: round k settles entry k at
        # the latest. In practice few entries change their minds, and a few rounds do.
        open_rows = drawn.nonzero().squeeze(1)
        while len(open_rows):
            before = row[open_rows]
            chosen = draws.bernoulli(fine(history[open_rows], before), uniform[open_rows])
            after = (chosen & allowed[open_rows]).to(given.dtype).maximum(given[open_rows])
            row[open_rows] = after
            open_rows = open_rows[(after != before).any(1)]
        return row

    def _write(
        self, prompt: Tokens, written: list[Bool[Tensor, "B W"]], first: Int[Tensor, " B"], room: Int[Tensor, " B"]
    ) -> Tokens:
        """The drawn entries as tokens, cut to `room`. first: the number of each patient's first drawn row."""
        last = last_element(prompt)
        ids = torch.zeros(len(room), int(room.max()), dtype=torch.long)
        drawn = [row.cpu() for row in written]
        numbers, opened, visits = first.tolist(), (last.ids == TokenSpec.VISIT).tolist(), last.visit.tolist()
        num_new = []
        for i, limit in enumerate(room.tolist()):
            found: list[int] = []
            for step, entries in enumerate(drawn):
                codes = (entries[i, : self.num_codes].nonzero().squeeze(1) + NUM_SPECIALS).tolist()
                begun = numbers[i] + step == 1 or (step == 0 and visits[i] > 0) or opened[i]
                if codes and not begun:
                    found.append(TokenSpec.VISIT)
                opened[i] = opened[i] and not codes
                found += codes
                if entries[i, self.end]:
                    found.append(TokenSpec.EOS)
            num_new.append(min(len(found), limit))
            ids[i, : num_new[i]] = torch.tensor(found[:limit], dtype=torch.long)
        ids = ids.to(room.device)
        new = {name: torch.zeros_like(ids) for name in FIELDS}
        for step in range(ids.shape[1]):
            last = follow(last, ids[:, step], None, None)
            for name, store in new.items():
                store[:, step] = getattr(last, name)
        return append(prompt, new, torch.tensor(num_new, dtype=torch.long, device=room.device))


class _Draws:
    """Random decisions from one generator; temperature 0 decides for the more probable."""

    def __init__(self, generator: torch.Generator | None, temperature: float, device: torch.device) -> None:
        self.generator, self.temperature, self.device = generator, temperature, device

    def uniform(self, *shape: int) -> Tensor:
        where = self.device if self.generator is None else self.generator.device
        return torch.rand(*shape, generator=self.generator, device=where).to(self.device)

    def bernoulli(self, logits: Float[Tensor, "..."], uniform: Float[Tensor, "..."]) -> Bool[Tensor, "..."]:
        if self.temperature == 0:
            return logits > 0
        return uniform < (logits / self.temperature).sigmoid()
