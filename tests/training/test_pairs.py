"""Preference pairs obey RLTF's rules, whatever the records."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.training.pairs import FIELDS, ROOM, Pairs, Sequences, preference_pairs

PAD, BOS, EOS, VISIT = TokenSpec.PAD, TokenSpec.BOS, TokenSpec.EOS, TokenSpec.VISIT
SPEC = TokenSpec(num_tokens=16, num_places=3, max_tokens=17, max_visits=9, first_code=7, targets=(9, 12, 13))
PLAIN = [code for code in range(SPEC.first_code, SPEC.num_tokens) if code not in SPEC.targets]


class Token(NamedTuple):
    id: int
    visit: int
    age: int
    place: int


Record = list[Token]


def record(visits: list[list[int]], traits: int = 0, end: list[int] | None = None) -> Record:
    """<bos>, demographics, visits, and `end`: <eos>, or nothing where the record was cut. The age tells the visit."""
    tokens = [Token(i, 0, 51, 0) for i in [BOS, 5, 6][: 1 + traits]]
    for number, codes in enumerate(visits, 1):
        tokens += [Token(i, number, 50 + number, number % 3) for i in [VISIT, *codes]]
    return tokens + [tokens[-1]._replace(id=i) for i in ([EOS] if end is None else end)]


def sequences(records: list[Record]) -> Sequences:
    rows = [dict(zip(FIELDS, map(list, zip(*tokens)))) for tokens in records]
    return Sequences.of(pl.DataFrame(rows))


def read(found: Sequences) -> list[Record]:
    bounds = zip(found.offsets[:-1], found.offsets[1:])
    return [[Token(*row) for row in zip(*(getattr(found, name)[a:b].tolist() for name in FIELDS))] for a, b in bounds]


def pairs_of(records: list[Record], number: int = 1_000, share: float = 0.5, seed: int = 0) -> Pairs:
    return preference_pairs(sequences(records), SPEC, num_sequences=number, positive_share=share, seed=seed)


def holds_target(tokens: Record) -> bool:
    return any(token.id in SPEC.targets for token in tokens)


def without_targets(tokens: Record) -> Record:
    """The rule, token by token: targets go, and so do visits that held nothing else; later visits move up."""
    kept: Record = []
    moved = 0
    for i, token in enumerate(tokens):
        if token.id == VISIT:
            codes = []
            for later in tokens[i + 1 :]:
                if later.id in (VISIT, EOS):
                    break
                codes.append(later.id)
            if codes and set(codes) <= set(SPEC.targets):
                moved += 1
                continue
        if token.id not in SPEC.targets:
            kept.append(token._replace(visit=token.visit - moved))
    return kept


visits = st.lists(
    st.lists(st.integers(SPEC.first_code, SPEC.num_tokens - 1), min_size=1, max_size=4, unique=True),
    min_size=1,
    max_size=5,
)
ends = st.sampled_from([None, [], [VISIT]])
records = st.builds(record, visits, st.integers(0, 2), ends)
healthy = st.builds(
    record,
    st.lists(st.lists(st.sampled_from(PLAIN), min_size=1, max_size=4, unique=True), min_size=1, max_size=5),
    end=ends,
)
cohorts = st.tuples(
    st.lists(records, min_size=1, max_size=8),
    st.just(record([[7, 8], [9]])),  # at least one record of each kind
    healthy,
).map(lambda parts: [*parts[0], *parts[1:]])
seeds = st.integers(0, 2**40)


@given(cohorts, seeds)
def test_prompt_and_chosen_are_the_record(cohort: list[Record], seed: int) -> None:
    """But for the last tokens of a record that fills the context, and an <eos> where C or R would be empty."""
    pairs = pairs_of(cohort, seed=seed)
    for source, length, chosen, rejected in zip(
        pairs.source, pairs.prompt_length, read(pairs.chosen), read(pairs.rejected)
    ):
        original = cohort[source][: SPEC.max_tokens - ROOM]
        if chosen != original:
            assert (chosen[:-1], chosen[-1].id) == (original, EOS)
            assert len(original) == length or len(rejected) == length + 1


@given(cohorts, seeds)
def test_no_prompt_holds_a_target_and_none_is_empty(cohort: list[Record], seed: int) -> None:
    pairs = pairs_of(cohort, seed=seed)
    for length, chosen, rejected in zip(pairs.prompt_length, read(pairs.chosen), read(pairs.rejected)):
        prompt = chosen[:length]
        assert prompt[0].id == BOS
        assert not holds_target(prompt)
        assert rejected[:length] == prompt
        # it ends with a code, or before the first visit
        assert prompt[-1].id >= SPEC.first_code or all(token.visit == 0 for token in prompt)


@given(cohorts, seeds)
def test_rejected_differs_by_the_stated_edit_and_nothing_else(cohort: list[Record], seed: int) -> None:
    pairs = pairs_of(cohort, seed=seed)
    for source, positive, length, chosen, rejected in zip(
        pairs.source, pairs.positive, pairs.prompt_length, read(pairs.chosen), read(pairs.rejected)
    ):
        assert positive == holds_target(chosen)
        if positive:
            expected = without_targets(cohort[source][: SPEC.max_tokens - ROOM])
            assert rejected[: len(expected)] == expected
            assert rejected[len(expected) :] in ([], [expected[-1]._replace(id=EOS)])
            assert [token.id for token in rejected] == [token.id for token in without_targets(chosen)]
            continue
        added = [i for i, token in enumerate(rejected) if token.id in SPEC.targets]
        assert len(added) == 1
        (i,) = added
        assert i >= length
        assert rejected[:i] + rejected[i + 1 :] == chosen
        before = rejected[i - 1]
        assert before.id == VISIT or before.id >= SPEC.first_code
        assert rejected[i][1:] == before[1:]  # its visit, age and place are those where it stands


@given(cohorts, seeds)
def test_both_continuations_have_tokens_and_fit_into_the_context(cohort: list[Record], seed: int) -> None:
    pairs = pairs_of(cohort, seed=seed)
    for side in (pairs.chosen, pairs.rejected):
        assert (side.lengths > pairs.prompt_length).all()
        assert side.lengths.max() <= SPEC.max_tokens
        assert side.visit.min() >= 0


@given(cohorts, st.integers(1, 20), st.sampled_from([0.3, 0.5, 0.75, 1.0]), seeds)
def test_share_of_positives_is_kept_and_no_record_comes_twice(
    cohort: list[Record], number: int, share: float, seed: int
) -> None:
    if round(number * share) == 0:
        return
    with_target = sum(holds_target(tokens[: SPEC.max_tokens - ROOM]) for tokens in cohort)
    without = len(cohort) - with_target
    most = min(number, int(with_target / share), int(without / (1 - share)) if share < 1 else number)
    if round(most * share) == 0:
        return
    pairs = pairs_of(cohort, number, share, seed)
    assert len(set(pairs.source)) == len(pairs) == most
    assert abs(pairs.positive.sum() - most * share) <= 0.5


def test_records_without_codes_are_never_drawn() -> None:
    empty = [Token(BOS, 0, 51, 0), Token(VISIT, 1, 51, 1), Token(EOS, 1, 51, 1)]
    pairs = pairs_of([empty] * 5 + [record([[9]]), record([[7]])])
    assert sorted(pairs.source) == [5, 6]


def test_a_record_that_is_one_target_leaves_an_end_to_compare_with() -> None:
    """Cut records have no <eos>: C would be the target, R nothing."""
    pairs = pairs_of([record([[9]], end=[])], share=1.0)
    (chosen,), (rejected,) = read(pairs.chosen), read(pairs.rejected)
    assert [token.id for token in chosen] == [BOS, VISIT, 9, EOS]
    assert [token.id for token in rejected] == [BOS, EOS]


def test_a_record_that_fills_the_context_has_room_for_a_code_and_an_end() -> None:
    """It was cut, and its prompt may be all of it: C is <eos>, R a target and <eos>."""
    full = record([PLAIN * 3], end=[])
    assert len(full) > SPEC.max_tokens - ROOM
    pairs = pairs_of([full] * 200 + [record([[9]])] * 200, 400)
    assert (pairs.rejected.ids[pairs.rejected.offsets[1:] - 1] == EOS).sum() > 200  # of the 200 positives, and more
    assert pairs.lengths.max() == SPEC.max_tokens


def test_pairs_depend_on_the_seed_and_on_nothing_else() -> None:
    cohort = [record([[7, 9], [8]]), record([[10, 7, 8], [11]])] * 30
    first, again, other = (pairs_of(cohort, seed=seed) for seed in (1, 1, 2))
    assert read(first.rejected) == read(again.rejected)
    assert (first.prompt_length == again.prompt_length).all()
    assert read(first.rejected) != read(other.rejected)


# ---- what is drawn at random is drawn evenly
COPIES = 6_000


def counts(values: np.ndarray) -> Counter[int]:
    return Counter(values.tolist())


def even(found: Counter[int], expected: set[int]) -> bool:
    """Five standard deviations of a binomial."""
    n, p = found.total(), 1 / len(expected)
    return set(found) == expected and all(abs(k - n * p) < 5 * np.sqrt(n * p * (1 - p)) for k in found.values())


def test_split_points_are_uniform_up_to_the_first_target() -> None:
    """Codes 7 8 | 10 9 | 11: the first target is code r = 4, so j = 0, 1, 2, 3."""
    pairs = pairs_of([record([[7, 8], [10, 9], [11, 12]], traits=2)] * COPIES, COPIES, 1.0)
    assert even(counts(pairs.prompt_length), {3, 5, 6, 8})


def test_split_points_are_uniform_over_the_whole_record_without_a_target() -> None:
    """L = 3 codes: j = 0 .. 3; after the last code only <eos> is left."""
    cohort = [record([[7, 8], [10]])] * COPIES + [record([[9]])] * COPIES
    pairs = pairs_of(cohort, 2 * COPIES)
    assert even(counts(pairs.prompt_length[~pairs.positive]), {1, 3, 4, 6})


def test_inserted_codes_follow_their_frequency_and_places_are_uniform() -> None:
    """9 is three times as common as 12; 13 never occurs, and so is never put in."""
    cohort = [record([[7, 8], [10]])] * COPIES + [record([[9]]), record([[9], [9]]), record([[12]])] * (COPIES // 3)
    pairs = pairs_of(cohort, 2 * COPIES)
    rejected = pairs.rejected.take(np.flatnonzero(~pairs.positive))
    at = np.flatnonzero(np.isin(rejected.ids, SPEC.targets))
    found = counts(rejected.ids[at])
    assert set(found) == {9, 12}
    assert found[9] / found.total() == pytest.approx(0.75, abs=0.03)
    whole = pairs.prompt_length[~pairs.positive] == 1  # C is the whole record: <visit> 7 8 <visit> 10
    place = at - rejected.offsets[:-1]
    assert even(counts(place[whole]), {2, 3, 4, 5, 6})


# ---- what cannot be made is refused
def test_a_target_that_never_occurs_is_refused_without_a_word_about_patients() -> None:
    with pytest.raises(InputError, match=r"found 0 with and 2 without one.*commoner target"):
        pairs_of([record([[7]]), record([[8]])])


def test_a_task_without_targets_is_refused() -> None:
    with pytest.raises(InputError, match="no target codes"):
        preference_pairs(
            sequences([record([[7]])]), replace(SPEC, targets=()), num_sequences=1, positive_share=0.5, seed=0
        )
