"""Preference pairs of RLTF (Lin et al. 2025): a record as it is, and the same record with a target removed or put in.

Where the paper's records are plain codes, ours have visits: docs/papers/rltf.md says what that makes of its rules.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec

FIELDS = ("ids", "visit", "age", "place")

ROOM = 2
"""Tokens by which a record is cut shorter than max_tokens: one code may be put in, and <eos> put behind it."""


@dataclass(frozen=True)
class Sequences:
    """Sequences of tokens laid end to end; sequence i is offsets[i] : offsets[i + 1] of each field (core.batch.Tokens).

    Every sequence has a token.
    """

    offsets: NDArray[np.int64]
    ids: NDArray[Any]
    visit: NDArray[Any]
    age: NDArray[Any]
    place: NDArray[Any]

    @classmethod
    def of(cls, frame: pl.DataFrame) -> Sequences:
        """From a column of lists per field."""
        flat = {name: frame[name].explode().to_numpy() for name in FIELDS}
        return cls(_offsets(frame["ids"].list.len().to_numpy()), **flat)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @property
    def lengths(self) -> NDArray[np.int64]:
        return np.diff(self.offsets)

    @property
    def row(self) -> NDArray[np.int64]:
        """The sequence of each token."""
        return np.repeat(np.arange(len(self)), self.lengths)

    def first(self, num_tokens: int) -> Sequences:
        """The first tokens of each sequence."""
        if self.lengths.max() <= num_tokens:
            return self
        return self.where(np.arange(len(self.ids)) - self.offsets[self.row] < num_tokens)

    def where(self, kept: NDArray[np.bool_]) -> Sequences:
        """The tokens for which `kept` is True, at least one in each sequence."""
        lengths = np.bincount(self.row[kept], minlength=len(self))
        return Sequences(_offsets(lengths), **{name: getattr(self, name)[kept] for name in FIELDS})

    def take(self, rows: NDArray[np.int64]) -> Sequences:
        """These sequences, in this order."""
        lengths = self.lengths[rows]
        offsets = _offsets(lengths)
        source = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], lengths)
        return Sequences(offsets, **{name: getattr(self, name)[source] for name in FIELDS})

    def insert(self, after: NDArray[np.int64], ids: NDArray[np.int64] | int) -> Sequences:
        """With new tokens behind those at the places `after`, of which they take over visit, age and place."""
        lengths = self.lengths + np.bincount(self.row[after], minlength=len(self))
        fields = {name: np.insert(getattr(self, name), after + 1, getattr(self, name)[after]) for name in FIELDS[1:]}
        return Sequences(_offsets(lengths), ids=np.insert(self.ids, after + 1, ids), **fields)

    def padded(self, rows: NDArray[np.int64], width: int) -> tuple[NDArray[np.bool_], dict[str, NDArray[np.int64]]]:
        """These sequences as arrays "B width", zeros (<pad>) on the right, and a mask: True = real."""
        column = np.arange(width)
        mask = column < self.lengths[rows][:, None]
        source = np.where(mask, self.offsets[rows][:, None] + column, 0)
        return mask, {name: np.where(mask, getattr(self, name)[source], 0).astype(np.int64) for name in FIELDS}


@dataclass(frozen=True)
class Pairs:
    """Pair i: two sequences that begin with the same prompt of prompt_length[i] tokens and are followed by C and R.

    chosen    the record
    rejected  the record with the edit
    positive  the record holds a target
    source    which of the given records it is
    """

    chosen: Sequences
    rejected: Sequences
    prompt_length: NDArray[np.int64]
    positive: NDArray[np.bool_]
    source: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.source)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of the longer of both."""
        return np.maximum(self.chosen.lengths, self.rejected.lengths)


def preference_pairs(
    records: Sequences, spec: TokenSpec, *, num_sequences: int, positive_share: float, seed: int
) -> Pairs:
    """N records, of which a share P hold a target, drawn without replacement; each is split and edited once.

    Where there are not enough records of a kind, N becomes as large as P allows. Records without a code are left out.

    The prompt ends after the j-th code: j in 0 .. r - 1 where code r is the first target, j in 0 .. L where there is
    none; what stands before the first visit is always of the prompt. R lacks every target, and the visits that held
    nothing else; or holds a target more, drawn by its frequency in `records`, at a random place within the visits of C
    or, behind the prompt's last code, in its visit. Where C or R would be empty, both get an <eos>.

    Errors: InputError where the task has no target, no record holds one, or N and P leave no pair.
    """
    assert num_sequences >= 1, num_sequences
    assert 0 < positive_share <= 1, positive_share
    if not spec.targets:
        raise InputError(
            "preference pairs: the task has no target codes. Choose a task about codes, for example "
            "task=rare_code/septicemia."
        )
    rng = np.random.default_rng(seed)
    records = records.first(spec.max_tokens - ROOM)
    is_target = np.zeros(spec.num_tokens, dtype=bool)
    is_target[list(spec.targets)] = True
    holds_target = _any(is_target[records.ids], records)
    holds_code = _any(records.ids >= spec.first_code, records)
    source = _draw(holds_target, holds_code, num_sequences, positive_share, rng)

    chosen, positive = records.take(source), holds_target[source]
    target, code = is_target[chosen.ids], chosen.ids >= spec.first_code
    prompt_length = _split(chosen, target, code, positive, rng)

    place = np.arange(len(chosen.ids)) - chosen.offsets[chosen.row]
    inside = code | (chosen.ids == TokenSpec.VISIT)
    candidates = np.flatnonzero(~positive[chosen.row] & inside & (place >= prompt_length[chosen.row] - 1))
    after = _one_of_each(candidates, chosen.row[candidates], len(chosen), rng)
    frequency = np.bincount(records.ids, minlength=spec.num_tokens)[list(spec.targets)]
    inserted = rng.choice(spec.targets, size=len(after), p=frequency / frequency.sum())
    # A record without a target has none to lose: one edit does not meet the other.
    rejected = _without(chosen.insert(after, inserted), is_target, ~positive, spec)

    degenerate = np.flatnonzero((chosen.lengths == prompt_length) | (rejected.lengths == prompt_length))
    chosen, rejected = (side.insert(side.offsets[degenerate + 1] - 1, TokenSpec.EOS) for side in (chosen, rejected))
    return Pairs(chosen, rejected, prompt_length, positive, source)


def _draw(
    holds_target: NDArray[np.bool_],
    holds_code: NDArray[np.bool_],
    num_sequences: int,
    positive_share: float,
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Which records: those with a target, then those without one."""
    with_target, without = np.flatnonzero(holds_target), np.flatnonzero(holds_code & ~holds_target)
    limits = [num_sequences, int(len(with_target) / positive_share)]
    if positive_share < 1:
        limits.append(int(len(without) / (1 - positive_share)))
    num_drawn = min(limits)
    num_positive = min(round(num_drawn * positive_share), len(with_target))
    if num_positive == 0:
        raise InputError(
            f"preference pairs: expected training records with a target, found {len(with_target):,} with and "
            f"{len(without):,} without one, which gives none for N={num_sequences:,} and P={positive_share:g}. Choose "
            "a commoner target, a larger cohort, or another model.tune.num_sequences or positive_share."
        )
    num_negative = min(num_drawn - num_positive, len(without))
    return np.concatenate(
        [
            rng.choice(with_target, num_positive, replace=False),
            rng.choice(without, num_negative, replace=False),
        ]
    )


def _split(
    chosen: Sequences,
    target: NDArray[np.bool_],
    code: NDArray[np.bool_],
    positive: NDArray[np.bool_],
    rng: np.random.Generator,
) -> NDArray[np.int64]:
    """Tokens of each prompt: up to the j-th code, or for j = 0 up to the first visit."""
    code_at = np.flatnonzero(code)
    num_codes = np.bincount(chosen.row[code_at], minlength=len(chosen))
    first_code = _offsets(num_codes)[:-1]  # of each sequence, as a place in code_at
    num_choices = num_codes + 1  # j = 0 .. L
    target_rank = np.flatnonzero(target[code_at])
    row, first = np.unique(chosen.row[code_at[target_rank]], return_index=True)
    num_choices[row] = target_rank[first] - first_code[row] + 1  # j = 0 .. r - 1; r counts from 1
    j = rng.integers(0, num_choices)
    num_before = np.bincount(chosen.row[chosen.visit == 0], minlength=len(chosen))
    last = code_at[np.maximum(first_code + j - 1, 0)]
    return np.where(j == 0, num_before, last + 1 - chosen.offsets[:-1])


def _without(
    sequences: Sequences, is_target: NDArray[np.bool_], kept_rows: NDArray[np.bool_], spec: TokenSpec
) -> Sequences:
    """Sequences without their targets, and without visits that held targets only; later visits move up.

    No record of the data has a visit without codes: a model would tell R by it, whatever it knows of the target.
    Sequences of `kept_rows` stay as they are.
    """
    row = sequences.row
    opens = sequences.ids == TokenSpec.VISIT
    visit = np.cumsum(opens)  # through all sequences
    dropped = is_target[sequences.ids] & ~kept_rows[row]
    stays = (sequences.ids >= spec.first_code) & ~dropped
    num_dropped, num_left = (np.bincount(visit, what, minlength=visit[-1] + 1) for what in (dropped, stays))
    emptied = opens & ((num_dropped > 0) & (num_left == 0))[visit]
    num_emptied = np.cumsum(emptied)
    before_row = (num_emptied - emptied)[sequences.offsets[:-1]]
    moved = Sequences(
        sequences.offsets,
        sequences.ids,
        sequences.visit - (num_emptied - before_row[row]),
        sequences.age,
        sequences.place,
    )
    return moved.where(~(dropped | emptied))


def _any(what: NDArray[np.bool_], sequences: Sequences) -> NDArray[np.bool_]:
    """Of each sequence: is it true of a token?"""
    found: NDArray[np.bool_] = np.logical_or.reduceat(what, sequences.offsets[:-1])
    return found


def _one_of_each(
    places: NDArray[np.int64], row: NDArray[np.int64], num_rows: int, rng: np.random.Generator
) -> NDArray[np.int64]:
    """One of the places of each row that has some, all equally likely; `row` ascends."""
    count = np.bincount(row, minlength=num_rows)
    start = _offsets(count)[:-1][count > 0]
    return places[start + rng.integers(0, count[count > 0])]


def _offsets(lengths: NDArray[Any]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
