"""Drawing tokens, the rules of a record, and the preallocated cache."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.core.batch import Tokens
from ehrlab.nn.decoder import Block, PreallocatedCache, causal_mask, hide_own_visit
from ehrlab.nn.generation import FIELDS, Grammar, append, draw
from sequences import BOS, EOS, PAD, TOKENS, VISIT, sequences_of, tokens_of


def test_drawn_frequencies_are_the_softmax() -> None:
    torch.manual_seed(0)
    logits = 2 * torch.randn(1, 6)
    # A regular grid instead of random numbers: the frequencies are exact to the grid's width.
    uniform = (torch.arange(20_000, dtype=torch.float64) + 0.5) / 20_000
    for temperature, top_k in ((1.0, None), (0.5, None), (1.0, 3), (2.0, 1)):
        found = draw(logits.expand(20_000, -1), uniform, temperature, top_k).bincount(minlength=6) / 20_000
        kept = (
            logits[0]
            if top_k is None
            else logits[0].masked_fill(logits[0] < logits[0].topk(top_k).values[-1], -torch.inf)
        )
        torch.testing.assert_close(found, (kept / temperature).softmax(-1), rtol=0, atol=2e-4)


@given(
    logits=st.lists(st.floats(-30, 30), min_size=2, max_size=7),
    forbidden=st.sets(st.integers(0, 6)),
    uniform=st.floats(0, 1, exclude_max=True),
)
def test_what_is_forbidden_is_never_drawn(logits: list[float], forbidden: set[int], uniform: float) -> None:
    values = torch.tensor([logits])
    allowed = [i for i in range(len(logits)) if i not in forbidden] or [0]
    masked = torch.full_like(values, -torch.inf)
    masked[:, allowed] = values[:, allowed]
    for temperature, top_k in ((1.0, None), (0.0, None), (0.3, len(allowed)), (5.0, None)):
        assert int(draw(masked, torch.tensor([uniform], dtype=torch.float64), temperature, top_k)) in allowed


def test_rare_tokens_of_a_large_vocabulary_keep_their_probability() -> None:
    """The cumulative sum ends in 10,000 tokens of 1e-9 each."""
    logits = torch.cat([torch.zeros(1), torch.full((10_000,), 1e-9).log()])[None]
    above = draw(logits, torch.tensor([1 - 5e-6], dtype=torch.float64), 1.0)
    assert int(above) == pytest.approx(5_000, abs=50)


@pytest.mark.parametrize(
    ("sequence", "allowed"),
    [
        ([BOS], {VISIT, 5, 6, 7}),
        ([BOS, 6], {VISIT, 5, 6, 7}),
        ([BOS, VISIT], set(range(8, 17))),
        ([BOS, VISIT, 9], {VISIT, EOS, *range(8, 17)}),
        ([BOS, *[VISIT, 9] * 5], {EOS, *range(8, 17)}),
    ],
)
def test_grammar_allows_what_a_record_may_go_on_with(sequence: list[int], allowed: set[int]) -> None:
    tokens = tokens_of([sequence])
    logits = Grammar(TOKENS, torch.device("cpu"))(torch.zeros(1, 17), tokens.ids[:, -1], tokens.visit[:, -1])
    assert set((logits[0] == 0).nonzero().flatten().tolist()) == allowed
    assert (logits[0] == -torch.inf).sum() == 17 - len(allowed)


@given(st.lists(st.tuples(st.integers(1, 5), st.integers(0, 4)), min_size=1, max_size=4))
def test_append_joins_each_row_without_a_gap(lengths: list[tuple[int, int]]) -> None:
    prompt = tokens_of([[9 + i] * length for i, (length, _) in enumerate(lengths)])
    prompt = Tokens(**{**vars(prompt), "ids": prompt.ids + ~prompt.mask * 77})  # arbitrary at padding
    new = {name: torch.arange(4).expand(len(lengths), -1) + 100 for name in FIELDS}
    found = append(prompt, new, torch.tensor([number for _, number in lengths]))
    expected = [[9 + i] * length + [100, 101, 102, 103][:number] for i, (length, number) in enumerate(lengths)]
    assert sequences_of(found) == expected
    assert (found.ids[~found.mask] == PAD).all()


@pytest.mark.parametrize("hidden", [False, True])
def test_a_block_with_a_cache_equals_the_block_without(hidden: bool) -> None:
    torch.manual_seed(0)
    block = Block(dim=6, num_heads=3, dropout=0.2).double().eval()
    x = torch.randn(2, 7, 6, dtype=torch.float64)
    visit = torch.tensor([[0, 1, 1, 1, 2, 2, 2], [0, 0, 1, 2, 2, 3, 3]])
    opens = visit.diff(dim=1, prepend=visit[:, :1]) > 0
    real = torch.ones(2, 7, dtype=torch.bool)
    real[1, 0] = False

    def mask(size: int, num_queries: int) -> torch.Tensor:
        found = causal_mask(real[:, :size], num_queries)
        return hide_own_visit(found, visit[:, :size], opens[:, :size]) if hidden else found

    whole = block(x, mask(7, 7))
    cache = PreallocatedCache(num_layers=1, num_heads=3, head_dim=2, capacity=9)
    parts = [block(x[:, :3], mask(3, 3), cache), block(x[:, 3:5], mask(5, 2), cache)]
    parts += [block(x[:, i : i + 1], mask(i + 1, 1), cache) for i in (5, 6)]
    torch.testing.assert_close(torch.cat(parts, dim=1), whole)


def test_rows_of_a_cache_can_be_dropped_and_repeated() -> None:
    torch.manual_seed(0)
    block = Block(dim=6, num_heads=3, dropout=0.0).eval()
    x = torch.randn(3, 4, 6)
    cache = PreallocatedCache(num_layers=1, num_heads=3, head_dim=2, capacity=4)
    block(x[:, :3], None, cache)
    rows = torch.tensor([2, 0, 2])
    cache.select(rows)
    torch.testing.assert_close(block(x[rows, 3:], None, cache), block(x)[rows, 3:])
