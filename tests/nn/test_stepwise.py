import pytest
import torch

from ehrlab.core.errors import InputError
from ehrlab.nn.masking import shift_right
from ehrlab.nn.stepwise import CONDITIONS, StepwiseAttention


def inputs(num_visits: int = 5) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    return torch.randn(3, num_visits, 8), shift_right(torch.randn(3, num_visits, 6))


def layer(condition: str) -> StepwiseAttention:
    torch.manual_seed(1)
    return StepwiseAttention(embed_dim=8, hidden_dim=6, attention_dim=4, condition=condition)


@pytest.mark.parametrize("condition", CONDITIONS)
def test_first_visit_has_no_history(condition: str) -> None:
    e, h_prev = inputs()
    assert torch.equal(layer(condition)(e, h_prev)[:, 0], e[:, 0])


def test_each_visit_reads_itself_and_the_state_before_it_only() -> None:
    """The authors' release reads the first visit at every position: changing visit 2 would leave e_hat_2 as it was."""
    e, h_prev = inputs()
    attention = layer("attention")
    before = attention(e, h_prev)
    e[:, 2] += 1
    changed = (attention(e, h_prev) - before).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, False, True, False, False]
    h_prev[:, 3] += 1
    changed = (attention(e, h_prev) - before).abs().amax((0, 2)) > 0
    assert changed.tolist() == [False, False, True, True, False]


def test_equal_condition_is_the_plain_average() -> None:
    e, h_prev = inputs()
    attention = layer("equal")
    torch.testing.assert_close(attention(e, h_prev)[:, 1:], ((e + attention.project(h_prev)) / 2)[:, 1:])


def test_visit_only_condition_ignores_the_history() -> None:
    e, h_prev = inputs()
    assert torch.equal(layer("visit_only")(e, h_prev + 1), e)


def test_weights_keep_a_gradient_when_every_patient_has_one_visit() -> None:
    attention = layer("attention")
    attention(*inputs(num_visits=1)).sum().backward()
    assert all(parameter.grad is not None for parameter in attention.parameters())


def test_unknown_condition_is_refused() -> None:
    with pytest.raises(InputError, match=r"expected one of .*visit_only.*found 'uniform'"):
        layer("uniform")
