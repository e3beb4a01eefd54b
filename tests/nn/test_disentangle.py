import pytest
import torch

from ehrlab.core.errors import InputError
from ehrlab.nn.disentangle import CrossAttention, DenseFusion, DisentangledTransformer, kronecker


def transformer() -> DisentangledTransformer:
    torch.manual_seed(0)
    return DisentangledTransformer(5, 7, width=8, num_slots=3, slot_dim=4, num_heads=2, dropout=0.0).eval()


def test_kronecker_is_torchs_of_each_sample() -> None:
    a, b = torch.randn(3, 2, 4), torch.randn(3, 5, 6)
    for row, found in enumerate(kronecker(a, b)):
        torch.testing.assert_close(found, torch.kron(a[row], b[row]))


def test_a_token_of_the_joint_is_the_outer_product_of_two_slots() -> None:
    a, b = torch.randn(3, 2, 4), torch.randn(3, 5, 6)
    joint = kronecker(a, b)
    for m in range(2):
        for n in range(5):
            expected = torch.einsum("bp,bq->bpq", a[:, m], b[:, n]).flatten(1)
            torch.testing.assert_close(joint[:, m * 5 + n], expected)


def test_specific_features_see_their_own_modality_and_the_common_one_both() -> None:
    model = transformer()
    z_a, z_b = torch.randn(4, 5, requires_grad=True), torch.randn(4, 7, requires_grad=True)
    reads = []
    for feature in model(z_a, z_b):
        gradients = torch.autograd.grad(feature.square().sum(), [z_a, z_b], retain_graph=True, allow_unused=True)
        reads.append([gradient is not None and bool(gradient.abs().sum() > 0) for gradient in gradients])
    assert reads == [[True, False], [False, True], [True, True]]


def test_each_feature_has_the_same_width() -> None:
    assert [tuple(f.shape) for f in transformer()(torch.randn(4, 5), torch.randn(4, 7))] == [(4, 8)] * 3


def test_features_cannot_grow_however_large_the_vectors_are() -> None:
    model = transformer()
    for feature in model(1e3 * torch.randn(4, 5), 1e3 * torch.randn(4, 7)):
        torch.testing.assert_close(feature.square().mean(1), torch.ones(4), rtol=1e-2, atol=1e-2)


def test_a_projection_above_64_is_refused_with_the_remedy() -> None:
    with pytest.raises(InputError, match=r"<= 64, found 5 x 16.*Lower"):
        DisentangledTransformer(5, 7, num_slots=5, slot_dim=16)


def test_order_of_the_memory_does_not_matter_to_cross_attention() -> None:
    torch.manual_seed(0)
    attention = CrossAttention(8, 2, 0.0).eval()
    x, memory = torch.randn(2, 3, 8), torch.randn(2, 5, 8)
    torch.testing.assert_close(attention(x, memory), attention(x, memory.flip(1)))
    assert not torch.allclose(attention(x, memory), attention(x, memory + 1 * torch.randn(2, 5, 8)))


def test_every_dense_layer_passes_on_all_that_came_before() -> None:
    fusion = DenseFusion(5, 3, depth=2, dropout=0.0)
    x = torch.randn(4, 5)
    found = fusion(x)
    assert found.shape == (4, fusion.out_dim) == (4, 11)
    torch.testing.assert_close(found[:, :5], x)
    torch.testing.assert_close(found[:, 5:8], fusion.layers[0](x))
    torch.testing.assert_close(found[:, 8:], fusion.layers[1](found[:, :8]))
