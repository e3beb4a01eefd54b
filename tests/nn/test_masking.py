import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.nn.masking import last_valid, masked_softmax, reverse_valid, shift_right

LENGTHS = st.lists(st.integers(1, 5), min_size=1, max_size=4)


def ragged(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Random values, also at padding, "B 5 3", and the mask."""
    mask = torch.arange(5) < torch.tensor(lengths)[:, None]
    return torch.randn(len(lengths), 5, 3), mask


@given(LENGTHS)
def test_masked_softmax_is_the_softmax_of_the_real_entries_and_zero_at_padding(lengths: list[int]) -> None:
    scores, mask = ragged(lengths)
    weights = masked_softmax(scores, mask[..., None], dim=1)
    for row, score, length in zip(weights, scores, lengths):
        torch.testing.assert_close(row[:length], score[:length].softmax(0))
        assert (row[length:] == 0).all()


def test_masked_softmax_without_real_entries_is_zero_with_a_finite_gradient() -> None:
    scores = torch.randn(2, 3, requires_grad=True)
    weights = masked_softmax(scores, torch.zeros(2, 3, dtype=torch.bool), dim=1)
    weights.sum().backward()
    assert (weights == 0).all()
    assert scores.grad is not None
    assert (scores.grad == 0).all()


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_masked_softmax_holds_in_every_precision(dtype: torch.dtype) -> None:
    weights = masked_softmax(torch.tensor([[300.0, -300.0, 9.0]], dtype=dtype), torch.tensor([[True, True, False]]), 1)
    assert weights.tolist() == [[1, 0, 0]]


@given(LENGTHS)
def test_reverse_valid_reverses_real_visits_and_leaves_padding(lengths: list[int]) -> None:
    x, mask = ragged(lengths)
    reversed_x = reverse_valid(x, mask)
    for row, original, length in zip(reversed_x, x, lengths):
        assert torch.equal(row[:length], original[:length].flip(0))
        assert torch.equal(row[length:], original[length:])
    assert torch.equal(reverse_valid(reversed_x, mask), x)


@given(LENGTHS)
def test_last_valid_is_the_last_real_visit(lengths: list[int]) -> None:
    x, mask = ragged(lengths)
    for picked, row, length in zip(last_valid(x, mask), x, lengths):
        assert torch.equal(picked, row[length - 1])


def test_shift_right_gives_the_state_before_each_visit_and_zero_before_the_first() -> None:
    h = torch.randn(2, 4, 3)
    before = shift_right(h)
    assert (before[:, 0] == 0).all()
    assert torch.equal(before[:, 1:], h[:, :-1])
