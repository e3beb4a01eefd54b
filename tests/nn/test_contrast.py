from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ehrlab.nn.contrast import in_chunks, info_nce


def test_second_pass_over_a_chunk_has_the_dropout_of_the_first() -> None:
    torch.manual_seed(0)
    layer, x = nn.Sequential(nn.Linear(5, 6), nn.Dropout(0.5)), torch.randn(7, 5)

    def loss(vectors: Tensor) -> Tensor:
        return info_nce(vectors, vectors.roll(1, 1))

    torch.manual_seed(1)
    (chunked,) = in_chunks(lambda rows: (layer(x[rows]),), 7, 3, x.device)
    found = torch.autograd.grad(loss(chunked), list(layer.parameters()))
    torch.manual_seed(1)
    kept = torch.cat([layer(x[:3]), layer(x[3:6]), layer(x[6:])])
    assert torch.equal(chunked, kept)
    torch.testing.assert_close(found, torch.autograd.grad(loss(kept), list(layer.parameters())))


def test_second_pass_is_told_of_the_device_whose_dropout_it_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch keeps the random states of its tensor arguments' devices: without one, a GPU would draw other masks."""
    seen = []

    def recorded(make: Callable[..., Any], *arguments: Any, **how: Any) -> Any:
        seen.append([a.device for a in arguments if isinstance(a, Tensor)])
        return checkpoint(make, *arguments, **how)

    monkeypatch.setattr("ehrlab.nn.contrast.checkpoint", recorded)
    in_chunks(lambda rows: (torch.ones(3)[rows],), 3, 2, torch.device("cpu"))
    assert seen == [[torch.device("cpu")]] * 2


def test_contrast_of_fewer_than_two_is_zero_with_zero_gradient() -> None:
    x = torch.randn(1, 4, requires_grad=True)
    assert info_nce(x, x) == 0
    assert (torch.autograd.grad(info_nce(x, x), x)[0] == 0).all()
