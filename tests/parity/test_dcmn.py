"""DCMN's hops against their equations: each core is asked with what the other one answered."""

import pytest
import torch
from torch import Tensor, nn

from ehrlab.models.dcmn import DCMN, MemoryCore
from modal_batches import DEMOGRAPHICS, FEATURES, HOURS, MODAL_SPEC
from parity.naive import affine, lstm_states, softmax

SAMPLES = 3


def make(num_hops: int) -> DCMN:
    torch.manual_seed(0)
    built = DCMN(MODAL_SPEC, embed_dim=8, hidden_dim=5, num_hops=num_hops).double()
    for name, parameter in built.named_parameters():
        if name.endswith("bias"):
            nn.init.normal_(parameter)
    return built.eval()


@pytest.fixture
def hours() -> Tensor:
    return (torch.rand(SAMPLES, HOURS, FEATURES, generator=torch.Generator().manual_seed(1)) < 0.4).double()


@pytest.fixture
def demographics() -> Tensor:
    return torch.rand(SAMPLES, DEMOGRAPHICS, generator=torch.Generator().manual_seed(2)).double()


def naive_core(core: MemoryCore, query: Tensor, memory: list[Tensor]) -> Tensor:
    p = softmax([query @ affine(core.keys, m) for m in memory])
    answer = sum((p_j * affine(core.values, m) for p_j, m in zip(p, memory)), torch.zeros_like(query))
    g = affine(core.gate, query).sigmoid()
    return answer * g + query * (1 - g)


def naive_dcmn(model: DCMN, u: Tensor, demographics: Tensor) -> Tensor:
    x = [torch.relu(affine(model.embed, hour)) for hour in u]
    memory_s = lstm_states(model.series_memory, x)
    memory_d = [value * slot for value, slot in zip(demographics, model.slots)]
    query_s = torch.tanh(affine(model.demographics_question, demographics))
    query_d = lstm_states(model.series_question, x)[-1]
    for _ in range(model.num_hops):
        out_s = naive_core(model.series_core, query_s, memory_s)
        out_d = naive_core(model.demographics_core, query_d, memory_d)
        query_s, query_d = out_d, out_s
    return affine(model.head, torch.cat([query_s, query_d]))


@pytest.mark.parametrize("num_hops", [1, 2, 3])
def test_logits_equal_the_equations(num_hops: int, hours: Tensor, demographics: Tensor) -> None:
    model = make(num_hops)
    expected = [naive_dcmn(model, u, d) for u, d in zip(hours, demographics)]
    torch.testing.assert_close(model.risk(hours, demographics), torch.stack(expected))


def test_an_open_gate_answers_from_memory_and_a_shut_one_returns_the_question() -> None:
    core = make(1).series_core
    query, memory = torch.randn(2, 5).double(), torch.randn(2, 4, 5).double()
    with torch.no_grad():
        core.gate.weight.zero_()
        core.gate.bias.fill_(-1e9)
        assert torch.equal(core(query, memory), query)
        core.gate.bias.fill_(1e9)
        other = core(query, 2 * memory)
    assert not torch.allclose(other, query)


def test_questions_cross_over(hours: Tensor, demographics: Tensor) -> None:
    """With shut gates nothing is read and the two first questions change places with every hop."""
    model = make(1)
    for core in (model.series_core, model.demographics_core):
        nn.init.zeros_(core.gate.weight)
        nn.init.constant_(core.gate.bias, -1e9)
    once = model.encode(hours, demographics)
    model.num_hops = 2
    assert torch.equal(model.encode(hours, demographics), once.roll(5, 1))


def test_a_demographic_that_is_0_has_an_empty_slot(hours: Tensor, demographics: Tensor) -> None:
    model, absent = make(2), demographics.clone()
    absent[:, 2] = 0
    logits = model.risk(hours, absent)
    with torch.no_grad():
        model.slots[2] += 1
    assert torch.equal(model.risk(hours, absent), logits)
    assert not torch.allclose(model.risk(hours, demographics), logits)
