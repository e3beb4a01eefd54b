"""SAnD's windowed attention and dense interpolation against loops, and who sees whom."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from batches import SPEC, pad_visits, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.sand import Block, SAnD, interpolation_weights
from parity.naive import affine, code_sum, softmax

DIM, HEADS, WINDOW, FACTOR = 8, 2, 3, 4


def build(num_blocks: int = 2) -> SAnD:
    torch.manual_seed(0)
    sizes = {"num_heads": HEADS, "num_blocks": num_blocks, "window": WINDOW, "factor": FACTOR}
    model = SAnD(SPEC, embed_dim=DIM, **sizes).double().eval()
    for block in model.blocks:
        for norm in (block.attention_norm, block.feed_forward_norm):
            nn.init.normal_(norm.weight)  # type: ignore[arg-type]
            nn.init.normal_(norm.bias)  # type: ignore[arg-type]
    return model


@pytest.fixture
def batch() -> Batch:
    return random_batch(lengths=[5, 1, 4]).map(lambda t: t.double() if t.is_floating_point() else t)


def naive_norm(layer: nn.LayerNorm, x: Tensor) -> Tensor:
    centred = x - x.mean()
    return centred / torch.sqrt((centred**2).mean() + layer.eps) * layer.weight + layer.bias


def naive_attention(block: Block, x: list[Tensor]) -> list[Tensor]:
    size = DIM // HEADS
    w_q, w_k, w_v = block.query_key_value.weight.split(DIM)
    outputs = []
    for i in range(len(x)):
        seen = range(max(0, i - WINDOW + 1), i + 1)
        parts = []
        for head in range(HEADS):
            rows = slice(head * size, (head + 1) * size)
            q = w_q[rows] @ x[i]
            weights = softmax([q @ (w_k[rows] @ x[j]) / math.sqrt(size) for j in seen])
            part = torch.zeros(size, dtype=torch.float64)
            for weight, j in zip(weights, seen):
                part = part + weight * (w_v[rows] @ x[j])
            parts.append(part)
        outputs.append(affine(block.project, torch.cat(parts)))
    return outputs


def naive_sand(model: SAnD, visits: list[list[int]]) -> Tensor:
    h = [code_sum(model.codes.table.weight, codes) + model.position.weight[t] for t, codes in enumerate(visits)]
    for block in model.blocks:
        assert isinstance(block, Block)
        h = [naive_norm(block.attention_norm, x + a) for x, a in zip(h, naive_attention(block, h))]
        first, second = block.feed_forward[0], block.feed_forward[2]
        h = [naive_norm(block.feed_forward_norm, x + affine(second, torch.relu(affine(first, x)))) for x in h]  # type: ignore[arg-type]
    u = [torch.zeros(DIM, dtype=torch.float64) for _ in range(FACTOR)]
    for t in range(1, len(h) + 1):
        s = FACTOR * t / len(h)
        for m in range(1, FACTOR + 1):
            u[m - 1] = u[m - 1] + (1 - abs(s - m) / FACTOR) ** 2 * h[t - 1]
    return affine(model.head, torch.cat(u))


def test_logits_equal_the_equations(batch: Batch) -> None:
    model, visits = build(), visits_of(batch)
    expected = []
    for codes, mask in zip(visits.codes, visits.mask):
        expected.append(naive_sand(model, [[int(c) for c in row if c > 0] for row in codes[mask]]))
    # interpolation_weights works in float32
    torch.testing.assert_close(model(batch), torch.stack(expected), rtol=1e-6, atol=1e-6)


def test_a_visit_sees_itself_and_the_window_before_it_and_nothing_else(batch: Batch) -> None:
    model, visits = build(num_blocks=1), visits_of(pad_visits(batch, extra=2))
    e = model.embed(visits)
    h = model.encode(e, visits)
    for changed in range(7):
        other = e.clone()
        other[:, changed] += torch.randn(DIM).double()
        moved = (model.encode(other, visits) - h).abs().amax((0, 2)) > 1e-9
        assert moved.tolist() == [changed <= t < changed + WINDOW for t in range(7)]


def test_the_same_share_of_a_record_weighs_the_same_however_many_visits_it_holds() -> None:
    short, long = (interpolation_weights(torch.ones(1, length, dtype=torch.bool), FACTOR) for length in (3, 6))
    torch.testing.assert_close(long[..., 1::2], short)
    torch.testing.assert_close(short[0, :, -1], torch.tensor([1 / 16, 4 / 16, 9 / 16, 1]))


def test_the_last_place_looks_at_the_last_visit_most() -> None:
    weights = interpolation_weights(torch.tensor([[True] * 5 + [False] * 2]), FACTOR)[0, -1]
    assert (weights[:5].diff() > 0).all()
    assert (weights[5:] == 0).all()


def test_attention_is_pytorchs_own_multi_head_attention() -> None:
    """Public EHR code splits heads by a view without a transpose, so that a head holds pieces of several visits."""
    block = build(num_blocks=1).blocks[0]
    assert isinstance(block, Block)
    reference = nn.MultiheadAttention(DIM, HEADS, bias=False, batch_first=True).double()
    with torch.no_grad():
        reference.in_proj_weight.copy_(block.query_key_value.weight)
        reference.out_proj.weight.copy_(block.project.weight)
    x = F.normalize(torch.randn(3, 5, DIM).double())
    visible = torch.ones(5, 5, dtype=torch.bool).tril()
    torch.testing.assert_close(block.attention(x, visible), reference(x, x, x, attn_mask=~visible)[0])


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    with pytest.raises(InputError, match="divisible by num_heads=3, found 8"):
        SAnD(SPEC, embed_dim=8, num_heads=3)
