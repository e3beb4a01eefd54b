import torch

from batches import SPEC, random_batch, visits_of
from ehrlab.nn.embedding import CodeSum, TimeEmbedding, VisitEmbedding


def multi_hot(codes: torch.Tensor) -> torch.Tensor:
    hot = torch.zeros(*codes.shape[:2], SPEC.num_codes).scatter_(2, codes, 1.0)
    hot[..., 0] = 0  # the padding id is no code
    return hot


def test_visit_embedding_equals_dense_multi_hot_product() -> None:
    codes = visits_of(random_batch()).codes
    embedding = VisitEmbedding(SPEC.num_codes, 8)
    torch.nn.init.normal_(embedding.bias)
    dense = (multi_hot(codes) @ embedding.codes.table.weight + embedding.bias).relu()
    torch.testing.assert_close(embedding(codes), dense)


def test_gradient_of_the_gathered_rows_equals_that_of_the_dense_product() -> None:
    codes = visits_of(random_batch()).codes
    layer = CodeSum(SPEC.num_codes, 8)
    weight = layer.table.weight
    (gathered,) = torch.autograd.grad(layer(codes).square().sum(), weight)
    (dense,) = torch.autograd.grad((multi_hot(codes) @ weight).square().sum(), weight)
    torch.testing.assert_close(gathered, dense)


def test_a_visit_without_codes_is_zero_before_the_bias() -> None:
    assert (CodeSum(SPEC.num_codes, 8)(torch.zeros(2, 3, 4, dtype=torch.long)) == 0).all()


def test_visit_of_a_few_codes_has_unit_scale_whatever_the_vocabulary() -> None:
    torch.manual_seed(0)
    for num_codes in (50, 5_000):
        one_code = CodeSum(num_codes, 256)(torch.randint(1, num_codes, (1, 40, 1)))
        assert 0.9 < one_code.std() < 1.1


def test_time_embedding_equals_its_equation_element_by_element() -> None:
    layer = TimeEmbedding(embed_dim=4, time_dim=3).double()
    days = torch.tensor([[400.0, 90.0, 0.0]], dtype=torch.float64)
    w_f, b_f = layer.frequency.weight[:, 0].tolist(), layer.frequency.bias.tolist()
    result = layer(days)
    for k, day in enumerate(days[0].tolist()):
        features = torch.tensor([1 - torch.tensor((w * day / 180 + b) ** 2).tanh() for w, b in zip(w_f, b_f)])
        expected = layer.project.weight @ features.double() + layer.project.bias
        torch.testing.assert_close(result[0, k], expected, rtol=1e-6, atol=1e-6)


def test_visits_far_in_the_past_are_told_apart_from_recent_ones_but_not_from_each_other() -> None:
    layer = TimeEmbedding(embed_dim=4, time_dim=3)
    with torch.no_grad():
        layer.frequency.weight.fill_(1.0)
        recent, far, farther = layer(torch.tensor([[0.0, 2_000.0, 20_000.0]]))[0]
    assert (recent - far).abs().max() > 0.1
    torch.testing.assert_close(far, farther)  # 1 - tanh of a large square is 0: the embedding saturates
