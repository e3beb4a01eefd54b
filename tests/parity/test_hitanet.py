"""HiTANet's Transformer and its two kinds of weights against their equations, and what time may do."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from batches import SPEC, random_batch, reverse_visits, visits_of
from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.models import hitanet
from ehrlab.models.hitanet import HiTANet
from ehrlab.nn.embedding import TimeEmbedding
from parity.naive import affine, code_sum, softmax

HEADS = 2


@pytest.fixture
def model() -> HiTANet:
    torch.manual_seed(0)
    built = HiTANet(
        SPEC, embed_dim=8, time_dim=5, query_dim=9, feedforward_dim=7, num_heads=HEADS, num_layers=2
    ).double()
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):  # many start at 0, where a forgotten one goes unnoticed
            nn.init.normal_(parameter)
    return built.eval()


@pytest.fixture
def batch() -> Batch:
    return random_batch(num_samples=4, lengths=[5, 1, 3, 2]).map(lambda t: t.double() if t.is_floating_point() else t)


def attend(model: HiTANet, visits: Visits) -> tuple[Tensor, Tensor, Tensor]:
    overall, s = model.transform(model.embed(visits), visits)
    return model.attention(overall, s, visits)


def naive_time(layer: TimeEmbedding, days: float) -> Tensor:
    gap = torch.tensor([days / 180], dtype=torch.float64)
    return affine(layer.project, 1 - torch.tanh(affine(layer.frequency, gap) ** 2))


def naive_position(position: int, dim: int) -> Tensor:
    angles = [position / 10_000 ** (2 * i / dim) for i in range(dim // 2)]
    return torch.tensor([*map(math.cos, angles), *map(math.sin, angles)], dtype=torch.float64)


def naive_norm(norm: nn.LayerNorm, x: Tensor) -> Tensor:
    return (x - x.mean()) / torch.sqrt(x.var(unbiased=False) + norm.eps) * norm.weight + norm.bias


def naive_layer(layer: nn.TransformerEncoderLayer, xs: list[Tensor]) -> list[Tensor]:
    """Each head has its own slice of q, k, v and attends over visits; add and norm follow, then the two-layer net."""
    attention = layer.self_attn
    q, k, v = zip(*((attention.in_proj_weight @ x + attention.in_proj_bias).chunk(3) for x in xs))
    width = len(xs[0]) // HEADS
    states = []
    for x, query in zip(xs, q):
        heads = []
        for head in range(HEADS):
            part = slice(head * width, (head + 1) * width)
            weights = softmax([query[part] @ key[part] / math.sqrt(width) for key in k])
            heads.append(sum((w * value[part] for w, value in zip(weights, v)), torch.zeros_like(query[part])))
        y = naive_norm(layer.norm1, x + affine(attention.out_proj, torch.cat(heads)))
        states.append(naive_norm(layer.norm2, y + affine(layer.linear2, torch.relu(affine(layer.linear1, y)))))
    return states


def naive_hitanet(model: HiTANet, visits: list[list[int]], days: list[float]) -> Tensor:
    x = []
    for position, (codes, day) in enumerate(zip(visits, days)):
        e = code_sum(model.codes.table.weight, codes) + model.bias + naive_time(model.time, day)
        x.append(e + naive_position(position, 8))
    x.append(model.dummy + naive_position(len(visits), 8))
    for layer in model.layers:
        x = naive_layer(layer, x)
    *s, overall = x
    alpha = softmax([affine(model.local_score, s_k)[0] for s_k in s])
    query = torch.relu(affine(model.query, overall))
    beta = softmax([query @ torch.relu(naive_time(model.key, day)) / math.sqrt(9) for day in days])
    local, over_time = softmax(list(affine(model.mix, overall)))
    gamma = [local * a + over_time * b for a, b in zip(alpha, beta)]
    return affine(model.head, sum((g * s_k for g, s_k in zip(gamma, s)), torch.zeros_like(s[0])))


@pytest.mark.parametrize("grad", [True, False])  # without gradients torch takes another path through the layer
def test_logits_equal_the_equations(model: HiTANet, batch: Batch, grad: bool) -> None:
    visits = visits_of(batch)
    expected = []
    for codes, days, mask in zip(visits.codes, visits.days_before_last, visits.mask):
        rows = [[int(c) for c in row if c > 0] for row in codes[mask]]
        expected.append(naive_hitanet(model, rows, days[mask].tolist()))
    with torch.set_grad_enabled(grad):
        # The positions are computed in float32.
        torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-5, atol=1e-5)


def test_both_weights_and_their_mixture_sum_to_one_over_real_visits(model: HiTANet, batch: Batch) -> None:
    mask = visits_of(batch).mask
    alpha, beta, shares = attend(model, visits_of(batch))
    for weights in (alpha, beta):
        assert (weights[~mask] == 0).all()
        torch.testing.assert_close(weights.sum(1), torch.ones(4).double())
    torch.testing.assert_close(shares.sum(1), torch.ones(4).double())


def test_visits_of_one_day_get_one_global_weight_but_local_weights_of_their_own(model: HiTANet, batch: Batch) -> None:
    days = visits_of(batch).days_before_last.clone()
    days[0, 1] = days[0, 2]
    alpha, beta, _ = attend(model, replace(visits_of(batch), days_before_last=days))
    torch.testing.assert_close(beta[0, 1], beta[0, 2])
    assert not torch.isclose(alpha[0, 1], alpha[0, 2])
    assert not torch.isclose(beta[0, 0], beta[0, 1])


def test_the_patient_decides_what_time_weighs(model: HiTANet, batch: Batch) -> None:
    visits = visits_of(batch)
    codes = visits.codes.roll(1, 0) * visits.mask[..., None]
    assert not torch.allclose(attend(model, replace(visits, codes=codes))[1], attend(model, visits)[1])


def test_without_positions_the_order_of_visits_of_one_day_does_not_matter(
    model: HiTANet, batch: Batch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Heads that mix positions, as the release's do, fail here."""
    days = torch.zeros_like(visits_of(batch).days_before_last)
    same_day = replace(batch, visits=replace(visits_of(batch), days_before_last=days))
    assert not torch.allclose(model(reverse_visits(same_day)), model(same_day))
    monkeypatch.setattr(hitanet, "timestep_embedding", lambda n, dim: torch.zeros(len(n), dim))
    torch.testing.assert_close(model(reverse_visits(same_day)), model(same_day))


def test_a_width_that_the_heads_cannot_share_is_refused() -> None:
    with pytest.raises(InputError, match="divisible by num_heads=4; found 6"):
        HiTANet(SPEC, embed_dim=6)
