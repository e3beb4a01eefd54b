"""The LSTM generator: its state machine, and beam search against the enumeration of all continuations."""

from dataclasses import replace

import pytest
import torch

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.models.lstm_generator import LSTMGenerator, LSTMStepper
from ehrlab.nn.generation import Element, Grammar, beam_search, sample
from sequences import BOS, EOS, GENERATOR_SPEC, VISIT, cut, random_sequences, sequences_of, token_batch, tokens_of

SMALL = TokenSpec(num_tokens=9, num_places=1, max_tokens=12, max_visits=3, first_code=6)


def build(tokens: TokenSpec = SMALL, seed: int = 0, **settings: int) -> LSTMGenerator:
    torch.manual_seed(seed)
    spec = replace(GENERATOR_SPEC, tokens=tokens)
    model = LSTMGenerator(spec, embed_dim=5, hidden_dim=7, num_layers=2, **settings).double().eval()
    with torch.no_grad():
        model.head.weight *= 6  # far from uniform, so that the best continuation is not a matter of rounding
    return model


def every_continuation(model: LSTMGenerator, prompt: list[int], num_new: int) -> dict[tuple[int, ...], float]:
    """log P of each continuation that ends with <eos> or has `num_new` tokens."""
    grammar = Grammar(SMALL, torch.device("cpu"))
    found = {}
    open_ = [((), 0.0)]
    while open_:
        new, score = open_.pop()
        sequence = tokens_of([[*prompt, *new]])
        with torch.no_grad():
            logits = grammar(model.logits(sequence)[:, -1], sequence.ids[:, -1], sequence.visit[:, -1])
        for token, log_prob in enumerate(logits[0].log_softmax(-1).tolist()):
            if log_prob == float("-inf"):
                continue
            longer = (*new, token)
            if token == EOS or len(longer) == num_new:
                found[longer] = score + log_prob
            else:
                open_.append((longer, score + log_prob))
    return found


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("prompt", [[BOS, VISIT], [BOS, VISIT, 7, VISIT, 6]])
def test_beam_search_equals_exhaustive_search(prompt: list[int], seed: int) -> None:
    model = build(seed=seed)
    continuations = every_continuation(model, prompt, num_new=4)
    assert sum(torch.tensor(list(continuations.values())).exp()) == pytest.approx(1)
    best = max(continuations, key=continuations.__getitem__)
    found = beam_search(LSTMStepper(model), tokens_of([prompt]), SMALL, 4, num_beams=len(continuations))
    assert sequences_of(found) == [[*prompt, *best]]


def test_more_beams_find_continuations_at_least_as_probable_and_one_beam_is_greedy() -> None:
    gained = 0.0
    for seed in range(12):
        model = build(seed=seed)
        prompt = tokens_of([[BOS, VISIT, 8]])
        greedy = sample(LSTMStepper(model), prompt, SMALL, 5, None, 0.0, None)
        one, wide = (beam_search(LSTMStepper(model), prompt, SMALL, 5, num_beams) for num_beams in (1, 200))
        assert sequences_of(one) == sequences_of(greedy)
        scores = every_continuation(model, [BOS, VISIT, 8], 5)
        gains = scores[tuple(sequences_of(wide)[0][3:])] - scores[tuple(sequences_of(one)[0][3:])]
        assert gains >= 0
        gained += gains
    assert gained > 0


def test_beams_of_one_prompt_do_not_depend_on_other_prompts() -> None:
    model = build()
    sequences = [[BOS, VISIT, 8], [BOS, VISIT, 6, VISIT, 7, 8], [BOS], [BOS, VISIT, 8, EOS]]
    together = sequences_of(model.generate(tokens_of(sequences), 6))
    alone = [sequences_of(model.generate(tokens_of([s]), 6))[0] for s in sequences]
    assert together == alone
    assert together[3] == sequences[3]


def test_the_paper_decodes_by_beam_search_and_a_temperature_samples() -> None:
    model = build(num_beams=3)
    prompt = tokens_of([[BOS, VISIT, 8]] * 20)
    expected = beam_search(LSTMStepper(model), prompt, SMALL, 6, 3)
    assert sequences_of(model.generate(prompt, 6)) == sequences_of(expected)
    drawn = sequences_of(model.generate(prompt, 6, torch.Generator().manual_seed(0), temperature=1.0))
    assert len(set(map(tuple, drawn))) > 1
    with pytest.raises(InputError, match="num_beams"):
        build(num_beams=0).generate(prompt, 6)


def test_sampled_frequencies_are_the_models_probabilities() -> None:
    """Every continuation of two tokens, 4 standard errors."""
    model, num_samples = build(), 4_000
    expected = every_continuation(model, [BOS, VISIT, 8], 2)
    prompt = tokens_of([[BOS, VISIT, 8]] * num_samples)
    drawn = [tuple(s[3:]) for s in sequences_of(model.generate(prompt, 2, torch.Generator().manual_seed(0), 1.0))]
    assert set(drawn) <= expected.keys()
    for continuation, log_prob in expected.items():
        p = torch.tensor(log_prob).exp().item()
        assert abs(drawn.count(continuation) / num_samples - p) < 4 * (p * (1 - p) / num_samples) ** 0.5


def test_reading_token_by_token_equals_reading_at_once_for_prompts_of_unequal_length() -> None:
    model = build(GENERATOR_SPEC.tokens)
    tokens = tokens_of(random_sequences(visits=(3, 4, 2)))
    lengths = [5, 2, 4]
    full = model.logits(tokens)
    stepper = LSTMStepper(model)
    prediction = stepper.start(cut(tokens, lengths))
    rows = torch.arange(3)
    for i in range(min(len(s) - n for s, n in zip(sequences_of(tokens), lengths))):
        at = torch.tensor(lengths) + i
        torch.testing.assert_close(prediction.code, full[rows, at - 1])
        columns = (x[rows, at] for x in (tokens.ids, tokens.visit, tokens.age, tokens.place))
        prediction = stepper.step(Element(*columns, position=at))


def test_ages_stay_and_new_visits_have_an_unknown_place() -> None:
    model = build(GENERATOR_SPEC.tokens)
    tokens = token_batch().tokens
    assert tokens is not None
    prompt = cut(tokens, [5, 4, 6, 4])
    found = model.generate(prompt, 16, torch.Generator().manual_seed(0), temperature=1.0)
    for row, length in enumerate(prompt.mask.sum(1).tolist()):
        last = prompt.map(lambda x, row=row, length=length: x[row : row + 1, length - 1 : length])
        new = found.map(lambda x, row=row, length=length: x[row, None, length:][:, found.mask[row, length:]])
        assert (new.age == last.age).all()
        assert (new.place == torch.where(new.visit == last.visit, last.place, 0)).all()
