"""Star-Transformer against its equations, one node at a time, and what its ring and its relay carry."""

import math

import pytest
import torch
from torch import Tensor, nn

from ehrlab.core.errors import InputError
from ehrlab.nn.hourly import StarEncoder
from ehrlab.nn.star import NodeAttention, StarTransformer
from parity.naive import affine, softmax

DIM, HEAD, NODES = 6, 3, 7


def make(num_cycles: int) -> StarTransformer:
    torch.manual_seed(0)
    built = StarTransformer(DIM, HEAD, num_cycles, dropout=0.1).double()
    for name, parameter in built.named_parameters():
        if name.endswith("bias") or "norm" in name:
            nn.init.normal_(parameter)
    return built.eval()


@pytest.fixture
def e() -> Tensor:
    return torch.randn(3, NODES, DIM, generator=torch.Generator().manual_seed(1)).double()


def naive_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + norm.eps) * norm.weight + norm.bias


def naive_attention(unit: NodeAttention, query: Tensor, nodes: list[Tensor]) -> Tensor:
    q, k, v = affine(unit.query, query), [affine(unit.key, n) for n in nodes], [affine(unit.value, n) for n in nodes]
    heads = []
    for head in range(DIM // HEAD):
        part = slice(head * HEAD, (head + 1) * HEAD)
        weights = softmax([q[part] @ key[part] / math.sqrt(HEAD) for key in k])
        heads.append(sum((w * value[part] for w, value in zip(weights, v)), torch.zeros(HEAD).double()))
    return affine(unit.out, torch.cat(heads))


def naive_star(model: StarTransformer, e: list[Tensor]) -> tuple[list[Tensor], Tensor]:
    h, s = e, sum(e, torch.zeros(DIM).double()) / len(e)
    for _ in range(model.num_cycles):
        h = [
            naive_norm(
                model.norm_satellite,
                torch.relu(naive_attention(model.satellite, h[i], [h[i - 1], h[i], h[(i + 1) % len(h)], e[i], s])),
            )
            for i in range(len(h))
        ]
        s = naive_norm(model.norm_relay, torch.relu(naive_attention(model.relay, s, [s, *h])))
    return h, s


@pytest.mark.parametrize("num_cycles", [1, 3])
def test_satellites_and_relay_equal_the_equations(num_cycles: int, e: Tensor) -> None:
    model = make(num_cycles)
    h, s = model(e)
    for row, satellites, relay in zip(e, h, s):
        expected_h, expected_s = naive_star(model, list(row))
        torch.testing.assert_close(satellites, torch.stack(expected_h))
        torch.testing.assert_close(relay, expected_s)


def test_within_a_cycle_a_node_is_seen_by_its_neighbours_on_the_ring_alone(e: Tensor) -> None:
    model, s = make(1), torch.randn(3, DIM).double()
    other = e.clone()
    other[:, 0] += 1

    def around(x: Tensor) -> Tensor:
        return model.around(x, (model.satellite.key(x), model.satellite.value(x)), s)

    changed = (around(other) - around(e)).abs().amax((0, 2)) > 1e-9
    assert changed.tolist() == [True, True, *[False] * (NODES - 3), True]


def test_the_relay_carries_a_node_to_all_others(e: Tensor) -> None:
    model = make(2)
    other = e.clone()
    other[:, 0] += torch.randn(DIM).double()
    assert ((model(other)[0] - model(e)[0]).abs().amax((0, 2)) > 1e-9).all()


def test_the_encoder_knows_the_direction_of_time() -> None:
    """Ring and relay alone do not: a ring read backwards is a ring."""
    torch.manual_seed(0)
    encoder = StarEncoder(4, width=DIM, head_dim=HEAD, out_dim=5, num_cycles=2, dropout=0.0).eval()
    x = torch.rand(2, NODES, 4)
    assert not torch.allclose(encoder(x.flip(1)), encoder(x), atol=1e-4)
    h, s = encoder.star(torch.relu(encoder.embed.project(x)))
    backwards, same = encoder.star(torch.relu(encoder.embed.project(x.flip(1))))
    torch.testing.assert_close(backwards.flip(1), h)
    torch.testing.assert_close(same, s)


def test_a_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="divisible by head_dim=4, found 6"):
        StarTransformer(6, 4, 1, dropout=0.0)
