"""Tokenizers and the room that a text's parts get: what `text` needs beside notes and labs."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

PAD, UNKNOWN = "<pad>", "<unk>"


@dataclass(frozen=True)
class SpecialTokens:
    """Ids that a tokenizer puts before and after a text, and those that part two paragraphs."""

    before: tuple[int, ...]
    after: tuple[int, ...]
    between: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any) -> SpecialTokens:
        whole = tokenizer("a", return_special_tokens_mask=True)
        ids, special = whole["input_ids"], whole["special_tokens_mask"]
        first = special.index(0) if 0 in special else len(special)
        last = len(special) - special[::-1].index(0) if 0 in special else len(special)
        between = tokenizer("\n", add_special_tokens=False)["input_ids"]
        return cls(tuple(ids[:first]), tuple(ids[last:]), tuple(between))


def share_out(lengths: Sequence[int], room: int) -> list[int]:
    """Divide `room` evenly among parts of these lengths; what a short one leaves goes to the longer.

    >>> share_out([3, 50, 10], room=30), share_out([40, 50], room=31), share_out([4, 5], room=30)
    ([3, 17, 10], [15, 16], [4, 5])
    """
    shares = [0] * len(lengths)
    left = max(0, room)
    # The shortest first: what it leaves is known before the next gets its share.
    for number, i in enumerate(sorted(range(len(lengths)), key=lambda i: (lengths[i], i))):
        shares[i] = min(lengths[i], left // (len(lengths) - number))
        left -= shares[i]
    return shares


def word_tokenizer(texts: Iterable[str], max_words: int) -> Any:
    """A transformers tokenizer of the commonest words of `texts`, in lower case; digits stand alone. 0 is padding."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Whitespace(), pre_tokenizers.Digits(True)])
    trainer = trainers.WordLevelTrainer(vocab_size=max_words + 2, special_tokens=[PAD, UNKNOWN], show_progress=False)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token=PAD, unk_token=UNKNOWN)
