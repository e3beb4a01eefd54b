"""LSAN's two attentions and two pathways against their equations, patient by patient, visit by visit."""

import math

import pytest
import torch
from torch import Tensor, nn

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.models.lsan import LSAN
from parity.naive import affine, softmax

EMBED, HEADS = 8, 2


@pytest.fixture
def model() -> LSAN:
    torch.manual_seed(0)
    model = LSAN(SPEC, embed_dim=EMBED, code_attention_dim=6, visit_attention_dim=10, num_heads=HEADS)
    return model.double().eval()


def double_batch(lengths: list[int] | None = None) -> Batch:
    return random_batch(lengths=lengths).map(lambda t: t.double() if t.is_floating_point() else t)


def score(layers: nn.Sequential, x: Tensor) -> Tensor:
    first, second, last = (layer for layer in layers if isinstance(layer, nn.Linear))
    return affine(last, torch.relu(affine(second, torch.relu(affine(first, x)))))[0]


def weighted_sum(weights: list[Tensor], vectors: list[Tensor], size: int) -> Tensor:
    return sum((w * v for w, v in zip(weights, vectors)), torch.zeros(size, dtype=torch.float64))


def position(k: int) -> Tensor:
    angles = [k / 10_000 ** (2 * i / EMBED) for i in range(EMBED // 2)]
    return torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=torch.float64)


def naive_transformer(layer: nn.TransformerEncoderLayer, x: list[Tensor]) -> list[Tensor]:
    attention, size = layer.self_attn, EMBED // HEADS
    query, key, value = zip(
        *((attention.in_proj_weight @ x_k + attention.in_proj_bias).view(3, HEADS, size) for x_k in x)
    )
    states = []
    for k, x_k in enumerate(x):
        heads = []
        for m in range(HEADS):
            weights = softmax([query[k][m] @ key[j][m] / size**0.5 for j in range(len(x))])
            heads.append(weighted_sum(weights, [v[m] for v in value], size))
        y = layer.norm1(x_k + affine(attention.out_proj, torch.cat(heads)))
        states.append(layer.norm2(y + affine(layer.linear2, torch.relu(affine(layer.linear1, y)))))
    return states


def naive_convolution(conv: nn.Conv1d, v: list[Tensor]) -> list[Tensor]:
    outside = torch.zeros(EMBED, dtype=torch.float64)
    around = [outside, *v, outside]
    assert conv.bias is not None
    return [conv.bias + sum(conv.weight[:, :, i] @ around[k + i] for i in range(3)) for k in range(len(v))]


def naive_logit(model: LSAN, visits: list[list[int]]) -> Tensor:
    v = []
    for codes in visits:
        e = [model.codes.weight[code] for code in codes]
        weights = softmax([score(model.code_scorer, e_c) for e_c in e]) if codes else []
        v.append(weighted_sum(weights, e, EMBED))
    long_term = naive_transformer(model.long_term, [v_k + position(k) for k, v_k in enumerate(v)])
    h = [torch.cat(pair) for pair in zip(long_term, naive_convolution(model.short_term, v))]
    return affine(model.head, weighted_sum(softmax([score(model.visit_scorer, h_k) for h_k in h]), h, 2 * EMBED))


def test_lsan_equals_its_equations(model: LSAN) -> None:
    batch = double_batch()
    v = visits_of(batch)
    expected = []
    for codes, mask in zip(v.codes, v.mask):
        expected.append(naive_logit(model, [[int(c) for c in visit if c > 0] for visit in codes[: int(mask.sum())]]))
    # Positions are float32 in the model.
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-5, atol=1e-6)
    with torch.inference_mode():  # PyTorch's fused Transformer layer, as in prediction
        torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-5, atol=1e-6)


def test_the_short_pathway_sees_a_visits_neighbours_and_the_long_one_every_visit(model: LSAN) -> None:
    visits = visits_of(double_batch(lengths=[5, 5, 5]))
    e = torch.randn(3, 5, EMBED, dtype=torch.float64)
    changed = e.clone()
    changed[:, 3] += 1
    moved = (model.encode(changed, visits) - model.encode(e, visits)).abs() > 1e-9
    assert moved[..., :EMBED].any(-1).all()
    assert moved[..., EMBED:].any(-1).tolist() == [[False, False, True, True, True]] * 3


def test_the_long_pathway_alone_knows_where_a_visit_stands(model: LSAN) -> None:
    """The same visit five times: away from the borders the convolution gives one vector, the Transformer does not."""
    visits = visits_of(double_batch(lengths=[5, 5, 5]))
    same = torch.randn(3, 1, EMBED, dtype=torch.float64).expand(3, 5, EMBED)
    long_term, short_term = model.encode(same, visits).split(EMBED, dim=-1)
    torch.testing.assert_close(short_term[:, 1], short_term[:, 3])
    assert ((long_term[:, 1] - long_term[:, 3]).abs().amax(1) > 1e-3).all()
