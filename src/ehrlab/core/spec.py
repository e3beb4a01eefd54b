"""The one thing that flows from data to model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class TokenSpec:
    """Sizes of the sequences of tokens (Batch.tokens).

    num_tokens  size of the vocabulary: the five ids below, then demographics, then codes from `first_code` on
    num_places  places of service, 0 = unknown included
    max_tokens  no sequence is longer (T <= max_tokens)
    max_visits  no sequence has more visits: Tokens.visit is in 0 .. max_visits
    first_code  the first id that is a code: what may be generated within a visit
    targets     ids of the task's target codes, the commonest first; empty where the task has none
    """

    PAD, BOS, EOS, VISIT, UNK = range(5)
    NUM_AGES = 121
    """Tokens.age is in 0 .. 120 years."""

    num_tokens: int
    num_places: int
    max_tokens: int
    max_visits: int
    first_code: int
    targets: tuple[int, ...] = ()


@dataclass(frozen=True)
class DataSpec:
    """Sizes only; no model ever holds a dataset.

    num_codes         size of the visit-code vocabulary, padding id 0 included
    num_labels        K
    max_visits        no sample has more visits (V <= max_visits)
    max_codes         no visit has more codes (C <= max_codes)
    num_demographics  F of Batch.demographics
    positive_rate     share of positives per label in the training split
    tokens            sizes of the sequences of tokens, where a model asked for them
    """

    num_codes: int
    num_labels: int
    max_visits: int
    max_codes: int
    num_demographics: int
    positive_rate: tuple[float, ...]
    tokens: TokenSpec | None = None
