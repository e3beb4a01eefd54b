"""Dipole's three attentions against their formulas, and what they may look at."""

import pytest
import torch
from torch import Tensor

from batches import SPEC, pad_visits, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.models.dipole import ConcatScore, Dipole, GeneralScore, LocationScore
from parity.naive import affine, code_sum, gru_states, softmax

ATTENTIONS = ("location", "general", "concat")


@pytest.fixture(params=ATTENTIONS)
def model(request: pytest.FixtureRequest) -> Dipole:
    torch.manual_seed(0)
    built = Dipole(SPEC, embed_dim=8, hidden_dim=6, attention=request.param, attention_dim=3).double().eval()
    torch.nn.init.normal_(built.visit.bias)
    return built


@pytest.fixture
def batch() -> Batch:
    return random_batch(num_samples=4, lengths=[5, 1, 3, 2]).map(lambda t: t.double() if t.is_floating_point() else t)


def naive_score(score: object, h_i: Tensor, h_t: Tensor) -> Tensor:
    if isinstance(score, LocationScore):
        return score.weight.weight[0] @ h_i
    if isinstance(score, GeneralScore):
        return h_t @ score.weight.weight @ h_i
    assert isinstance(score, ConcatScore)
    w = torch.cat([score.of_last.weight, score.of_state.weight], dim=1)
    return score.score.weight[0] @ torch.tanh(w @ torch.cat([h_t, h_i]))


def naive_dipole(model: Dipole, visits: list[list[int]]) -> Tensor:
    v = [torch.relu(code_sum(model.visit.codes.table.weight, codes) + model.visit.bias) for codes in visits]
    forward = gru_states(model.forward_rnn, v)
    backward = gru_states(model.backward_rnn, v[::-1])[::-1]
    h = [torch.cat(pair) for pair in zip(forward, backward)]
    context = torch.zeros_like(h[0])
    if len(h) > 1:
        alpha = softmax([naive_score(model.score, h_i, h[-1]) for h_i in h[:-1]])
        for alpha_i, h_i in zip(alpha, h):
            context = context + alpha_i * h_i
    return affine(model.head, torch.tanh(affine(model.combine, torch.cat([context, h[-1]]))))


def test_logits_equal_the_equations(model: Dipole, batch: Batch) -> None:
    visits = visits_of(batch)
    expected = []
    for codes, mask in zip(visits.codes, visits.mask):
        expected.append(naive_dipole(model, [[int(c) for c in row if c > 0] for row in codes[mask]]))
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_attention_is_shared_among_the_visits_before_the_last(model: Dipole, batch: Batch) -> None:
    visits = visits_of(batch)
    alpha = model.attention(model.encode(model.embed(visits), visits), visits.mask)
    for weights, length in zip(alpha, visits.mask.sum(1).tolist()):
        assert (weights[: length - 1] > 0).all()
        assert (weights[length - 1 :] == 0).all()
        torch.testing.assert_close(weights.sum(), torch.tensor(float(length > 1), dtype=torch.float64))


def test_only_the_location_score_ignores_the_last_visit(model: Dipole) -> None:
    h, last, other = torch.randn(3, 5, 12).double(), torch.randn(3, 12).double(), torch.randn(3, 12).double()
    assert torch.equal(model.score(h, last), model.score(h, other)) == isinstance(model.score, LocationScore)


def test_every_attention_ignores_padding_and_reaches_all_weights_even_from_single_visits(
    model: Dipole, batch: Batch
) -> None:
    torch.testing.assert_close(model(pad_visits(batch, extra=2)), model(batch))
    single = random_batch(num_visits=1).map(lambda t: t.double() if t.is_floating_point() else t)
    # Distributed training waits for each weight's gradient, be it 0.
    grads = torch.autograd.grad(model.loss(single)["loss"], list(model.parameters()), allow_unused=True)
    assert all(grad is not None and grad.isfinite().all() for grad in grads)


def test_an_unknown_attention_is_refused() -> None:
    with pytest.raises(InputError, match="expected location, general or concat, found 'dot'"):
        Dipole(SPEC, attention="dot")
