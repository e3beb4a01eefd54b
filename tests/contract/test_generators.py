"""What every generator of conf/model obeys."""

import itertools
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from batches import take
from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceGenerator
from other_device import There, other_device
from sequences import (
    BOS,
    EOS,
    PAD,
    TOKENS,
    VISIT,
    cut,
    pad_tokens,
    random_sequences,
    sequences_of,
    token_batch,
    tokens_of,
)
from steps import gradient_phases, set_gradients
from tiny import GENERATORS, build_generator

SETS = ("halo",)
"""Visits are sets: tests/models/test_halo.py says what their predictions may see."""
SOME_STEPS = 3
MANY_STEPS = 1_400


@pytest.fixture(params=GENERATORS)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def pretrain(
    model: SequenceGenerator, batch: Batch, steps: int, learning_rate: float = 0.02, seed: int = 0
) -> list[float]:
    torch.manual_seed(seed)
    model.train()
    losses = []
    for phase in gradient_phases(model):
        (turn,) = phase.turns
        optimizer = torch.optim.Adam(turn.params(), lr=learning_rate)
        for _ in range(steps):
            loss = turn.loss(batch)["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
    model.eval()
    return losses


@pytest.fixture
def trained(name: str) -> SequenceGenerator:
    model = build_generator(f"model={name}")
    pretrain(model, token_batch(), SOME_STEPS)
    return model.double()


def tokens_in(batch: Batch) -> Tokens:
    assert batch.tokens is not None
    return batch.tokens


def logits_of(model: Any, tokens: Tokens) -> Tensor:
    """Of the token after each; a model that wraps a generator predicts as it does."""
    return getattr(model, "generator", model).logits(tokens)


def assert_same(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-8)


def test_pretraining_is_one_shared_phase_on_tokens(trained: SequenceGenerator) -> None:
    (phase,) = gradient_phases(trained)
    assert (phase.name, phase.view, phase.select) == ("pretrain", "tokens", "loss")
    assert "data" in phase.ignores


def test_losses_are_finite_and_scalar(trained: SequenceGenerator) -> None:
    assert all(value.isfinite() and value.ndim == 0 for value in trained.loss(token_batch()).values())


def test_gradients_reach_every_parameter(name: str) -> None:
    model = build_generator(f"model={name}")
    reached: set[str] = set()
    for _ in range(SOME_STEPS):
        params = list(model.parameters())
        set_gradients(params, model.loss(token_batch())["loss"])
        torch.optim.SGD(params, lr=0.1).step()
        reached |= {n for n, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert {n for n, _ in model.named_parameters()} - reached == set()


def test_what_a_generator_makes_is_on_its_batchs_device(name: str) -> None:
    model = build_generator(f"model={name}")
    with other_device() as device:
        assert pretrain(model.to(device), token_batch().to(device), SOME_STEPS)
        assert all(isinstance(value, There) for value in model.loss(token_batch().to(device)).values())


def test_bfloat16_gives_nearly_the_same_losses(name: str) -> None:
    expected = pretrain(build_generator(f"model={name}"), token_batch(), SOME_STEPS, learning_rate=1e-3)
    with torch.autocast("cpu", torch.bfloat16):
        found = pretrain(build_generator(f"model={name}"), token_batch(), SOME_STEPS, learning_rate=1e-3)
    torch.testing.assert_close(found, expected, rtol=0.05, atol=0.05)


@pytest.mark.parametrize("field", ["ids", "age", "place"])
def test_logits_ignore_everything_after_their_position(name: str, trained: SequenceGenerator, field: str) -> None:
    if name in SETS:
        pytest.skip("predicts rows, not tokens")
    tokens = tokens_in(token_batch())
    logits = logits_of(trained, tokens)
    sizes = {"ids": TOKENS.num_tokens, "age": 121, "place": TOKENS.num_places}
    for t in range(1, tokens.ids.shape[1]):
        changed = getattr(tokens, field).clone()
        changed[:, t:] = (changed[:, t:] + 1) % sizes[field]
        assert_same(logits_of(trained, replace(tokens, **{field: changed}))[:, :t], logits[:, :t])


def test_log_prob_is_the_sum_of_stepwise_log_softmax(name: str, trained: SequenceGenerator) -> None:
    if name in SETS:
        pytest.skip("predicts rows, not tokens")
    tokens = tokens_in(token_batch())
    for sequence, row, found in zip(sequences_of(tokens), range(len(tokens.ids)), trained.log_prob(tokens)):
        total = 0.0
        for t in range(1, len(sequence)):
            seen = tokens.map(lambda x, row=row, t=t: x[row : row + 1, :t])
            total += logits_of(trained, seen)[0, -1].log_softmax(-1)[sequence[t]].item()
        assert found.item() == pytest.approx(total, rel=1e-5)


def test_padding_changes_neither_loss_nor_likelihood(trained: SequenceGenerator) -> None:
    batch = token_batch()
    padded = replace(batch, tokens=pad_tokens(tokens_in(batch), 3))
    assert_same(trained.loss(padded)["loss"], trained.loss(batch)["loss"])
    assert_same(trained.log_prob(tokens_in(padded)), trained.log_prob(tokens_in(batch)))


def test_samples_do_not_see_each_other(trained: SequenceGenerator) -> None:
    batch = token_batch()
    expected = trained.log_prob(tokens_in(batch))
    for samples in ([2, 0, 1], [3], [0, 2]):
        assert_same(trained.log_prob(tokens_in(take(batch, samples))), expected[samples])


def test_same_seed_gives_the_same_losses_and_another_seed_others(name: str) -> None:
    first, again, other = (
        pretrain(build_generator(f"model={name}", seed=seed), token_batch(), SOME_STEPS, seed=seed)
        for seed in (3, 3, 4)
    )
    assert first == again != other


def test_learns_four_sequences_by_heart(name: str) -> None:
    """Which of the four it is cannot be known at the start: a fourth each, and little is lost after that."""
    model = build_generator(f"model={name}")
    batch = token_batch()
    for _ in range(MANY_STEPS // 50):
        pretrain(model, batch, 50)
        with torch.no_grad():
            if (log_prob := model.log_prob(tokens_in(batch))).min() > math.log(1 / 4) - 1:
                return
    pytest.fail(f"log P of its own 4 training sequences after {MANY_STEPS} steps: {log_prob.tolist()}")


def prompts() -> Tokens:
    return cut(tokens_of(random_sequences(visits=(3, 1, 4, 2), seed=5, whole=False)), [6, 2, 9, 1])


def assert_valid(prompt: Tokens, found: Tokens, max_new_tokens: int) -> None:
    """The prompt and a continuation, in the order that records have."""
    for row, (before, sequence) in enumerate(zip(sequences_of(prompt), sequences_of(found))):
        assert sequence[: len(before)] == before
        assert len(sequence) <= min(len(before) + max_new_tokens, TOKENS.max_tokens)
        assert EOS not in sequence[:-1]
        assert not {PAD, BOS} & set(sequence[1:])
        assert all(token in (BOS, VISIT, EOS) or token >= 5 for token in sequence)
        first_visit = sequence.index(VISIT) if VISIT in sequence else len(sequence)
        assert all(token < TOKENS.first_code for token in sequence[:first_visit])
        assert all(token in (VISIT, EOS) or token >= TOKENS.first_code for token in sequence[first_visit:])
        assert (VISIT, VISIT) not in itertools.pairwise(sequence)
        real = found.mask[row]
        assert real[: len(sequence)].all() and not real[len(sequence) :].any()  # noqa: PT018
        visit = (found.ids[row] == VISIT).cumsum(0)
        assert torch.equal(found.visit[row][real], visit[real])
        assert visit.max() <= TOKENS.max_visits
        for given, values in ((prompt.age, found.age[row][real]), (prompt.place, found.place[row][real])):
            assert torch.equal(values[: len(before)], given[row, : len(before)])
            assert (values.diff()[visit[real].diff() == 0] == 0).all(), "age and place stay within a visit"
        assert (found.age[row][real].diff() >= 0).all()
        for values in (found.ids, found.visit, found.age, found.place):
            assert not values[row][~real].any()


@pytest.mark.parametrize("temperature", [None, 0.0, 0.7, 1.0])
def test_what_is_generated_is_a_record(trained: SequenceGenerator, temperature: float | None) -> None:
    for seed in range(3):
        found = trained.generate(prompts(), 17, torch.Generator().manual_seed(seed), temperature)
        assert_valid(prompts(), found, 17)


def test_generation_is_determined_by_the_generator(trained: SequenceGenerator) -> None:
    def generated(seed: int) -> list[list[int]]:
        return sequences_of(trained.generate(prompts(), 15, torch.Generator().manual_seed(seed), temperature=1.0))

    first = generated(1)
    torch.manual_seed(7)
    assert generated(1) == first
    assert generated(2) != first


def test_generation_without_randomness_needs_no_generator(trained: SequenceGenerator) -> None:
    torch.manual_seed(1)
    first = sequences_of(trained.generate(prompts(), 15, temperature=0.0))
    torch.manual_seed(2)
    assert sequences_of(trained.generate(prompts(), 15, temperature=0.0)) == first


def test_top_1_is_the_most_probable_and_top_all_is_everything(name: str, trained: SequenceGenerator) -> None:
    if name in SETS:
        with pytest.raises(InputError, match="top_k"):
            trained.generate(prompts(), 9, top_k=1)
        return

    def codes(**settings: Any) -> Sequence[int]:
        return [
            s[-1] for s in sequences_of(trained.generate(prompts(), 1, torch.Generator().manual_seed(3), **settings))
        ]

    assert codes(temperature=1.0, top_k=1) == codes(temperature=0.0)
    assert codes(temperature=1.0, top_k=TOKENS.num_tokens) == codes(temperature=1.0)


def repeat(tokens: Tokens, num: int) -> Tokens:
    return tokens.map(lambda x: x.repeat_interleave(num, dim=0))


@pytest.mark.parametrize("max_new_tokens", [1, 2, 6])
def test_target_probability_is_how_often_the_target_is_generated(
    trained: SequenceGenerator, max_new_tokens: int
) -> None:
    """5 standard errors of the frequency. Drawn without targets, yet right about them."""
    num_draws, prompt = 1_500, prompts()
    found = trained.generate(
        repeat(prompt, num_draws), max_new_tokens, torch.Generator().manual_seed(0), temperature=1.0
    )
    before = repeat(prompt, num_draws).mask.sum(1)
    holds = [bool({*s[n:]} & {*TOKENS.targets}) for s, n in zip(sequences_of(found), before.tolist())]
    frequency = torch.tensor(holds).double().unflatten(0, (-1, num_draws)).mean(1)
    probability = trained.target_probability(prompt, max_new_tokens, 400, torch.Generator().manual_seed(1))
    assert probability.shape == (len(prompt.ids),)
    assert probability.max() > 0.05
    error = (frequency * (1 - frequency)).clamp(min=1e-3).div(num_draws).sqrt()
    assert bool(((probability - frequency).abs() < 5 * error).all()), (probability, frequency)


def test_a_record_that_has_ended_gets_no_target(trained: SequenceGenerator) -> None:
    whole = tokens_of(random_sequences(visits=(2, 3)))
    assert trained.target_probability(whole, 9, 3).tolist() == [0, 0]


def test_prompts_that_repeat_go_on_as_if_each_were_read(
    trained: SequenceGenerator, monkeypatch: pytest.MonkeyPatch
) -> None:
    prompt = repeat(prompts(), 3)

    def generated() -> list[list[int]]:
        return sequences_of(trained.generate(prompt, 9, torch.Generator().manual_seed(0), temperature=1.0))

    found = generated()
    assert len({tuple(s) for s in found}) > len(prompts().ids)
    monkeypatch.setattr("ehrlab.nn.generation._read", lambda stepper, prompt: stepper.start(prompt))
    assert generated() == found


def test_a_finished_record_and_no_new_tokens_stay_as_they_are(trained: SequenceGenerator) -> None:
    whole = tokens_of(random_sequences(visits=(2, 3)))
    assert sequences_of(trained.generate(whole, 9)) == sequences_of(whole)
    assert sequences_of(trained.generate(prompts(), 0)) == sequences_of(prompts())


def test_generation_stops_where_the_context_ends(trained: SequenceGenerator) -> None:
    found = trained.generate(prompts(), 1_000, torch.Generator().manual_seed(0), temperature=1.0)
    assert_valid(prompts(), found, 1_000)
    assert found.ids.shape[1] <= TOKENS.max_tokens


def test_bad_prompts_and_settings_are_refused_by_name(trained: SequenceGenerator) -> None:
    long = tokens_of([[BOS, VISIT, *[9] * TOKENS.max_tokens]])
    visits = tokens_of([[BOS, *[VISIT, 9] * (TOKENS.max_visits + 1)]])
    foreign = tokens_of([[BOS, VISIT, TOKENS.num_tokens]])
    empty = prompts()
    empty = replace(empty, mask=empty.mask & (torch.arange(len(empty.ids)) > 0)[:, None])
    for prompt, message in ((long, "context"), (visits, "visits"), (foreign, "vocabulary"), (empty, "empty")):
        with pytest.raises(InputError, match=message):
            trained.generate(prompt, 4)
    with pytest.raises(InputError, match="temperature"):
        trained.generate(prompts(), 4, temperature=-1.0)
    with pytest.raises(InputError, match="max_new_tokens"):
        trained.generate(prompts(), -1)


def test_state_dict_round_trip_restores_likelihood_and_generation(name: str) -> None:
    model, other = build_generator(f"model={name}"), build_generator(f"model={name}", seed=5)
    pretrain(model, token_batch(), SOME_STEPS)
    state = {key: value.detach().clone() for key, value in model.state_dict().items()}
    other.load_state_dict(safetensors.torch.load(safetensors.torch.save(state)))
    other.eval()
    tokens = tokens_in(token_batch())
    assert torch.equal(other.log_prob(tokens), model.log_prob(tokens))
    found = [sequences_of(m.generate(prompts(), 9, torch.Generator().manual_seed(0), 1.0)) for m in (model, other)]
    assert found[0] == found[1]


@pytest.mark.parametrize("sequences", [[[BOS, VISIT, 9, EOS]], [[BOS, 5, VISIT, 8], [BOS, VISIT, 16, EOS]]])
def test_smallest_batches_train_and_generate(trained: SequenceGenerator, sequences: list[list[int]]) -> None:
    tokens = tokens_of(sequences)
    number = torch.arange(len(sequences))
    assert trained.train().loss(Batch(number, number, tokens=tokens))["loss"].isfinite()
    trained.eval()
    prompt = tokens_of([[BOS] for _ in sequences])
    assert_valid(prompt, trained.generate(prompt, 12, torch.Generator().manual_seed(0)), 12)
