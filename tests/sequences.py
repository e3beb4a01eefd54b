"""Random sequences that keep the contract of Tokens, and changes to them."""

from collections.abc import Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F

from batches import SPEC
from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.spec import TokenSpec

TOKENS = TokenSpec(num_tokens=17, num_places=4, max_tokens=28, max_visits=5, first_code=8, targets=(11, 14))
GENERATOR_SPEC = replace(SPEC, tokens=TOKENS)
PAD, BOS, EOS, VISIT = TokenSpec.PAD, TokenSpec.BOS, TokenSpec.EOS, TokenSpec.VISIT


def tokens_of(
    sequences: Sequence[Sequence[int]], ages: Sequence[int] | None = None, places: Sequence[int] | None = None
) -> Tokens:
    """Sequences of ids, padded on the right. Visits are counted; each visit is `ages[i]` + its number old, and takes
    place 1 + its number modulo 3."""
    width = max(map(len, sequences))
    ids = torch.tensor([[*sequence, *[PAD] * (width - len(sequence))] for sequence in sequences])
    mask = torch.arange(width) < torch.tensor([len(sequence) for sequence in sequences])[:, None]
    visit = (ids == VISIT).cumsum(1) * mask
    base = torch.tensor(ages or range(40, 40 + len(sequences)))
    age = (base[:, None] + visit.clamp(min=1)) * mask
    place = torch.where(visit > 0, 1 + visit % 3, 0)
    return Tokens(ids=ids, visit=visit, age=age, place=place, mask=mask)


def random_sequences(visits: Sequence[int] = (3, 1, 4, 2), seed: int = 0, whole: bool = True) -> list[list[int]]:
    """One sequence per entry, with so many visits of 1 .. 3 different codes; every other one has a demographic."""
    generator = torch.Generator().manual_seed(seed)

    def integer(low: int, high: int) -> int:
        return int(torch.randint(low, high, (), generator=generator))

    found = []
    for i, num_visits in enumerate(visits):
        sequence = [BOS, *([5 + i % 3] if i % 2 == 0 else [])]
        for _ in range(num_visits):
            codes = TOKENS.first_code + torch.randperm(TOKENS.num_tokens - TOKENS.first_code, generator=generator)
            sequence += [VISIT, *codes[: integer(1, 4)].tolist()]
        found.append([*sequence, EOS] if whole else sequence)
    return found


def token_batch(visits: Sequence[int] = (3, 1, 4, 2), seed: int = 0) -> Batch:
    tokens = tokens_of(random_sequences(visits, seed))
    number = torch.arange(len(tokens.ids))
    return Batch(subject_id=number + 100, prediction_time=number, tokens=tokens)


def pad_tokens(tokens: Tokens, extra: int) -> Tokens:
    """More padding on the right, with arbitrary content: nobody may look at it."""
    padded = {name: F.pad(getattr(tokens, name), (0, extra), value=1) for name in ("ids", "visit", "age", "place")}
    return Tokens(mask=F.pad(tokens.mask, (0, extra)), **padded)


def cut(tokens: Tokens, lengths: Sequence[int]) -> Tokens:
    """The first so many tokens of each sequence."""
    width = max(lengths)
    mask = tokens.mask[:, :width] & (torch.arange(width) < torch.tensor(lengths)[:, None])
    kept = {name: getattr(tokens, name)[:, :width] * mask for name in ("ids", "visit", "age", "place")}
    return Tokens(mask=mask, **kept)


def sequences_of(tokens: Tokens) -> list[list[int]]:
    return [row[real].tolist() for row, real in zip(tokens.ids, tokens.mask)]
