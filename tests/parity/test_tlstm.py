"""T-LSTM's cell against its equations, and what elapsed time does to the memory."""

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from batches import SPEC, random_batch, visits_of
from ehrlab.core.batch import Batch
from ehrlab.models.tlstm import TLSTM, TimeAwareLSTM, days_since_previous
from parity.naive import affine, code_sum


@pytest.fixture
def model() -> TLSTM:
    torch.manual_seed(0)
    built = TLSTM(SPEC, embed_dim=8, hidden_dim=6, head_dim=5).double()
    torch.nn.init.normal_(built.visit.bias)
    return built


@pytest.fixture
def batch() -> Batch:
    return random_batch(num_samples=4, lengths=[5, 1, 3, 2]).map(lambda t: t.double() if t.is_floating_point() else t)


def naive_states(cell: TimeAwareLSTM, inputs: list[Tensor], days: list[float]) -> list[Tensor]:
    """Gate by gate; days_before_last of each visit, the gap taken from the visit before."""
    zero = torch.zeros(cell.hidden_dim, dtype=torch.float64)
    w = dict(zip("ifco", cell.of_visit.weight.view(4, cell.hidden_dim, -1)))
    u = dict(zip("ifco", cell.of_state.weight.view(4, cell.hidden_dim, -1)))
    b = dict(zip("ifco", cell.of_visit.bias.view(4, -1)))
    h, c, states = zero, zero, []
    for k, x in enumerate(inputs):
        elapsed = days[k - 1] - days[k] if k > 0 else 0.0
        short = torch.tanh(affine(cell.short_term, c))
        long = c - short
        adjusted = long + short * (1 / math.log(math.e + elapsed))
        i, f, o = (torch.sigmoid(w[gate] @ x + u[gate] @ h + b[gate]) for gate in "ifo")
        c = f * adjusted + i * torch.tanh(w["c"] @ x + u["c"] @ h + b["c"])
        h = o * torch.tanh(c)
        states.append(h)
    return states


def test_logits_equal_the_equations(model: TLSTM, batch: Batch) -> None:
    visits = visits_of(batch)
    expected = []
    for codes, days, mask in zip(visits.codes, visits.days_before_last, visits.mask):
        table, bias = model.visit.codes.table.weight, model.visit.bias
        e = [torch.relu(code_sum(table, [int(c) for c in row if c > 0]) + bias) for row in codes[mask]]
        h = naive_states(model.rnn, e, days[mask].tolist())[-1]
        expected.append(affine(model.head[2], torch.relu(affine(model.head[0], h))))
    torch.testing.assert_close(model(batch), torch.stack(expected))


def test_without_elapsed_time_it_is_an_lstm(model: TLSTM) -> None:
    e = torch.randn(3, 5, 8, dtype=torch.float64)
    lstm = nn.LSTM(8, 6, batch_first=True).double()
    with torch.no_grad():
        lstm.weight_ih_l0.copy_(model.rnn.of_visit.weight)
        lstm.weight_hh_l0.copy_(model.rnn.of_state.weight)
        lstm.bias_ih_l0.copy_(model.rnn.of_visit.bias)
        lstm.bias_hh_l0.zero_()
    torch.testing.assert_close(model.rnn(e, torch.zeros(3, 5).double()), lstm(e)[0])
    assert not torch.allclose(model.rnn(e, torch.full((3, 5), 30.0).double()), lstm(e)[0])


def test_gaps_are_those_to_the_previous_visit() -> None:
    batch = random_batch(num_samples=2, num_visits=4, lengths=[4, 2])
    days = torch.tensor([[100.0, 70.0, 70.0, 0.0], [9.0, 0.0, 0.0, 0.0]])
    visits = replace(visits_of(batch), days_before_last=days)
    expected = torch.tensor([[0.0, 30.0, 0.0, 70.0], [0.0, 9.0, 0.0, 0.0]])
    assert torch.equal(days_since_previous(visits), expected)


def test_a_longer_wait_before_the_last_visit_changes_no_earlier_state(model: TLSTM, batch: Batch) -> None:
    # Unlike a gap to the last visit, which would grow for every earlier one.
    visits = visits_of(batch)
    before_last = torch.arange(5) < visits.mask.sum(1, keepdim=True) - 1
    later = replace(visits, days_before_last=visits.days_before_last + 500 * before_last)
    e = model.embed(visits)
    h, h_later = model.encode(e, visits), model.encode(e, later)
    torch.testing.assert_close(h_later[before_last], h[before_last])
    for k, length in enumerate(visits.mask.sum(1).tolist()):
        assert torch.allclose(h_later[k, length - 1], h[k, length - 1]) == (length == 1)


def test_time_erases_the_short_term_memory_and_leaves_the_long_term_one() -> None:
    torch.manual_seed(0)
    cell = TimeAwareLSTM(1, 3).double()
    with torch.no_grad():  # keep all of C*, take nothing in, show all: h = tanh(C*)
        for weight in (cell.of_visit.weight, cell.of_state.weight):
            weight.zero_()
        gates = {"i": 0.0, "f": 40.0, "c": 40.0, "o": 40.0}
        cell.of_visit.bias.copy_(torch.tensor([gate for gate in gates.values() for _ in range(3)]))
        cell.of_visit.weight[:3] = torch.tensor([[40.0], [40.0], [40.0]])  # i opens at e = 1 and closes at e = -1
    e = torch.tensor([[[1.0], [-1.0]]]).double()
    stored = torch.ones(3).double()  # C_1 = 1 * tanh(40)
    short = torch.tanh(affine(cell.short_term, stored))
    for days, kept in ((0.0, 1.0), (math.e**2 - math.e, 0.5), (1e200, 1 / math.log(1e200))):
        state = cell(e, torch.tensor([[0.0, days]], dtype=torch.float64))[0, -1]
        torch.testing.assert_close(state, torch.tanh(stored - short + kept * short))
