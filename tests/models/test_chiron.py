"""CHIRon: what a token may see, the Hugging Face model, the cache, and what is generated."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ehrlab.core.batch import Tokens
from ehrlab.core.errors import InputError
from ehrlab.models.chiron import Chiron
from ehrlab.nn.chiron import ChironForCausalLM, ChironStepper
from ehrlab.nn.generation import Element, Grammar, beam_search, draw, last_element
from sequences import (
    BOS,
    EOS,
    GENERATOR_SPEC,
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
from steps import train

WITHIN_VISIT = ("visible", "hidden")


def build(within_visit: str = "visible", steps: int = 3, **settings: object) -> Chiron:
    """In eval mode and float64, some steps from the initial weights."""
    torch.manual_seed(0)
    model = Chiron(GENERATOR_SPEC, "tiny", within_visit=within_visit, **settings)
    train(model, [token_batch()] * steps, learning_rate=0.02)
    return model.double().eval()


@pytest.fixture(params=WITHIN_VISIT)
def model(request: pytest.FixtureRequest) -> Chiron:
    return build(request.param)


def naive_visible(ids: list[int], within_visit: str) -> torch.Tensor:
    """Which tokens j a token i sees, by the definition."""
    visit, current = [], 0
    for token in ids:
        current += token == VISIT
        visit.append(current)
    seen = torch.zeros(len(ids), len(ids), dtype=torch.bool)
    for i in range(len(ids)):
        for j in range(i + 1):
            same = visit[j] == visit[i] > 0
            seen[i, j] = within_visit == "visible" or not same or i == j or ids[j] == VISIT
    return seen


def test_every_position_depends_on_exactly_the_tokens_that_it_may_see(model: Chiron) -> None:
    """By perturbation of every token, its age and its place; visits as they are."""
    (ids,) = random_sequences(visits=(4,))
    tokens = tokens_of([ids])
    expected = naive_visible(ids, model.lm.config.within_visit)
    found = torch.zeros_like(expected)
    with torch.no_grad():
        logits = model.logits(tokens)
        for j in range(len(ids)):
            changed = {name: getattr(tokens, name).clone() for name in ("ids", "age", "place")}
            changed["age"][0, j] += 7
            changed["place"][0, j] = (changed["place"][0, j] + 1) % TOKENS.num_places
            if ids[j] >= TOKENS.first_code:
                changed["ids"][0, j] = TOKENS.first_code + (ids[j] - TOKENS.first_code + 1) % 9
            found[:, j] = (model.logits(replace(tokens, **changed)) - logits).abs().amax(-1)[0] > 1e-9
    assert torch.equal(found, expected)


def test_the_predicted_code_is_never_seen() -> None:
    """Nor its age and place: the loss of a token is the same whatever an input after the token before it says."""
    model = build()
    tokens = token_batch().tokens
    assert tokens is not None
    steps = model.logits(tokens).log_softmax(-1)
    for t in range(1, tokens.ids.shape[1]):
        other = tokens.ids.clone()
        other[:, t] = (tokens.ids[:, t] + 1) % TOKENS.num_tokens
        age, place = tokens.age.clone(), tokens.place.clone()
        age[:, t], place[:, t] = 0, 1
        changed = model.logits(replace(tokens, ids=other, age=age, place=place)).log_softmax(-1)
        torch.testing.assert_close(changed[:, :t], steps[:, :t])


def stepwise(model: Chiron, prompt: list[int], age: int, num_new: int, generator: torch.Generator) -> Tokens:
    """One sequence by full recomputation: every step reads the whole sequence again, without a cache."""
    tokens = tokens_of([prompt], ages=[age])
    grammar = Grammar(TOKENS, torch.device("cpu"))
    while tokens.ids[0, -1] != EOS and num_new > 0 and tokens.ids.shape[1] < TOKENS.max_tokens:
        num_new -= 1
        found = model.lm(tokens.ids, visit=tokens.visit, age=tokens.age, place=tokens.place)
        uniform = torch.rand(3, 1, dtype=torch.float64, generator=generator)
        last = last_element(tokens)
        ids = draw(grammar(found.logits[:, -1], last.ids, last.visit), uniform[0], 1.0)
        opens = ids == VISIT
        too_young = torch.arange(121) < last.age[:, None]
        new_age = draw(found.age_logits[:, -1].masked_fill(too_young, -torch.inf), uniform[1], 1.0)
        new_place = draw(found.place_logits[:, -1], uniform[2], 1.0)
        new = {
            "ids": ids,
            "visit": last.visit + opens,
            "age": torch.where(opens, new_age, last.age),
            "place": torch.where(opens, new_place, last.place),
            "mask": torch.ones(1, dtype=torch.bool),
        }
        tokens = Tokens(**{name: torch.cat([getattr(tokens, name), x[:, None]], 1) for name, x in new.items()})
    return tokens


def test_generation_with_a_cache_equals_full_recomputation_token_by_token(model: Chiron) -> None:
    (prompt,) = random_sequences(visits=(2,), whole=False)
    for seed in range(6):
        expected = stepwise(model, prompt, 61, 20, torch.Generator().manual_seed(seed))
        found = model.generate(tokens_of([prompt], ages=[61]), 20, torch.Generator().manual_seed(seed))
        for name in ("ids", "visit", "age", "place", "mask"):
            assert torch.equal(getattr(found, name), getattr(expected, name)), (seed, name)


def test_logits_of_the_cache_equal_those_of_full_recomputation_for_prompts_of_unequal_length(model: Chiron) -> None:
    tokens = token_batch(visits=(3, 4, 2)).tokens
    assert tokens is not None
    lengths = [5, 2, 4]
    num_steps = min(len(s) - n for s, n in zip(sequences_of(tokens), lengths))
    full = model.logits(tokens)
    with torch.no_grad():
        stepper = ChironStepper(model.lm, max(lengths) + num_steps)
        prediction = stepper.start(cut(tokens, lengths))
        for i in range(num_steps):
            at = torch.tensor(lengths) + i
            torch.testing.assert_close(prediction.code, full[torch.arange(3), at - 1])
            columns = (x[torch.arange(3), at] for x in (tokens.ids, tokens.visit, tokens.age, tokens.place))
            prediction = stepper.step(Element(*columns, position=at))


def test_ages_never_fall_places_stay_within_a_visit_and_visits_are_counted() -> None:
    model = build(steps=1)
    prompt = tokens_of([[BOS], [BOS, 5, VISIT, 9], [BOS, VISIT]], ages=[70, 3, 119])
    found = model.generate(prompt, 25, torch.Generator().manual_seed(0))
    for ids, visit, age, place, mask in zip(found.ids, found.visit, found.age, found.place, found.mask):
        assert torch.equal(visit[mask], (ids == VISIT).cumsum(0)[mask])
        assert (age[mask].diff() >= 0).all()
        assert (age[mask] <= 120).all()
        same_visit = visit[mask].diff() == 0
        assert (age[mask].diff()[same_visit] == 0).all()
        assert (place[mask].diff()[same_visit] == 0).all()
    assert found.place.unique().numel() > 2
    assert found.age.unique().numel() > 4


def test_one_beam_finds_what_greedy_sampling_finds_ages_and_places_included(model: Chiron) -> None:
    prompt = cut(tokens_of(random_sequences(visits=(3, 1, 4))), [6, 2, 9])
    greedy = model.generate(prompt, 12, temperature=0.0)
    beam = beam_search(ChironStepper(model.lm, prompt.ids.shape[1] + 12), prompt, TOKENS, 12, num_beams=1)
    for name in ("ids", "visit", "age", "place", "mask"):
        assert torch.equal(getattr(beam, name), getattr(greedy, name)), name


def test_hugging_face_folder_restores_the_model(tmp_path: Path) -> None:
    lm = build("hidden").lm.float()
    lm.save_pretrained(tmp_path)
    assert (tmp_path / "model.safetensors").exists()
    other = ChironForCausalLM.from_pretrained(tmp_path).eval()
    before, after = ({**m.config.to_dict(), "_name_or_path": None, "dtype": None} for m in (lm, other))
    assert after == before
    ids = tokens_of(random_sequences()).ids
    assert torch.equal(other(ids).logits, lm(ids).logits)
    assert other.lm_head.weight is other.model.embed_tokens.weight


def test_visits_are_counted_where_they_are_not_given(model: Chiron) -> None:
    tokens = tokens_of(random_sequences(visits=(4,)))
    given = model.lm(tokens.ids, visit=tokens.visit).logits
    assert torch.equal(model.lm(tokens.ids).logits, given)
    assert not torch.equal(model.lm(tokens.ids, visit=tokens.visit * 0).logits, given)


@pytest.mark.parametrize("left", [False, True])
def test_attention_mask_hides_padding_on_either_side(model: Chiron, left: bool) -> None:
    """As TRL pads (right) and as `generate` of transformers pads (left)."""
    sequences = random_sequences(visits=(3, 1))
    width = max(map(len, sequences))
    ids, real = torch.full((2, width), PAD), torch.zeros(2, width, dtype=torch.long)
    for row, sequence in enumerate(sequences):
        where = slice(width - len(sequence), None) if left else slice(len(sequence))
        ids[row, where], real[row, where] = torch.tensor(sequence), 1
    logits = model.lm(ids, attention_mask=real).logits
    assert logits.isfinite().all()
    for row, mask, sequence in zip(logits, real, sequences):
        torch.testing.assert_close(row[mask.bool()], model.lm(torch.tensor([sequence])).logits[0])


def test_generate_of_transformers_gives_the_same_with_and_without_its_cache(model: Chiron) -> None:
    ids = torch.tensor([[PAD, PAD, BOS, VISIT, 9], [BOS, 5, VISIT, 12, 10]])
    real = (ids != PAD).long()
    age = torch.tensor([[0, 0, 50, 50, 50], [70, 70, 70, 70, 70]])
    place = torch.tensor([[0, 0, 0, 2, 2], [0, 0, 3, 3, 3]])
    settings = {"attention_mask": real, "age": age, "place": place, "do_sample": False, "max_new_tokens": 12}
    with_cache = model.lm.generate(ids, **settings)
    without = model.lm.generate(ids, use_cache=False, **settings)
    assert torch.equal(with_cache, without)
    second = {name: settings[name][1:] for name in ("attention_mask", "age", "place")}
    alone = model.lm.generate(ids[1:], **{**settings, **second})
    width = min(alone.shape[1], with_cache.shape[1])
    assert torch.equal(alone[0, :width], with_cache[1, :width])


def test_gradient_checkpointing_changes_no_gradient() -> None:
    batch = token_batch()
    gradients = []
    for checkpointing in (False, True):
        torch.manual_seed(0)
        model = Chiron(GENERATOR_SPEC, "tiny", dropout=0.0, context_dropout=0.0).double().train()
        if checkpointing:
            model.lm.activation_checkpointing_enable()
        assert model.lm.model.gradient_checkpointing == checkpointing
        model.loss(batch)["loss"].backward()
        gradients.append([p.grad for p in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


def test_loss_is_the_likelihood_of_codes_ages_and_places_per_token() -> None:
    model = build(age_weight=2.0, place_weight=0.5)
    batch = token_batch()
    tokens = batch.tokens
    assert tokens is not None
    code = age = place = 0.0
    count = 0
    for row in range(len(tokens.ids)):
        (one,) = [tokens.map(lambda x, row=row: x[row : row + 1, : int(tokens.mask[row].sum())])]
        found = model.lm(one.ids, visit=one.visit, age=one.age, place=one.place)
        for t in range(one.ids.shape[1] - 1):
            count += 1
            code -= found.logits[0, t].log_softmax(-1)[one.ids[0, t + 1]].item()
            if one.ids[0, t + 1] == VISIT:
                age -= found.age_logits[0, t].log_softmax(-1)[one.age[0, t + 1]].item()
                place -= found.place_logits[0, t].log_softmax(-1)[one.place[0, t + 1]].item()
    losses = model.loss(batch)
    for name, value in (("code", code), ("age", age), ("place", place), ("loss", code + 2 * age + 0.5 * place)):
        assert losses[name].item() == pytest.approx(value / count, rel=1e-6), name


def test_labels_of_minus_100_are_not_predicted() -> None:
    """TRL's way to leave the prompt out."""
    model = build()
    (ids,) = random_sequences(visits=(3,))
    labels = torch.tensor([ids])
    labels[:, :5] = -100
    expected = -model.lm(torch.tensor([ids])).logits[0, 4:-1].log_softmax(-1).gather(1, torch.tensor(ids[5:])[:, None])
    assert model.lm(torch.tensor([ids]), labels=labels).loss.item() == pytest.approx(expected.mean().item())


def test_context_dropout_withholds_ages_and_places_in_training_only() -> None:
    model = build(context_dropout=1.0, dropout=0.0)
    tokens = token_batch().tokens
    assert tokens is not None
    assert not torch.equal(model.logits(tokens), model.logits(replace(tokens, age=tokens.age + 1)))
    model.train()
    assert torch.equal(model.logits(tokens), model.logits(replace(tokens, age=tokens.age + 1)))
    assert torch.equal(model.logits(tokens), model.lm(tokens.ids, visit=tokens.visit).logits)


def test_padding_content_and_batch_mates_do_not_change_what_is_generated_greedily(model: Chiron) -> None:
    prompt = cut(tokens_of(random_sequences(visits=(3, 1, 4))), [6, 2, 9])
    together = sequences_of(model.generate(prompt, 15, temperature=0.0))
    assert sequences_of(model.generate(pad_tokens(prompt, 3), 15, temperature=0.0)) == together
    for row, sequence in enumerate(together):
        length = int(prompt.mask[row].sum())
        alone = prompt.map(lambda x, row=row, length=length: x[row : row + 1, :length])
        assert sequences_of(model.generate(alone, 15, temperature=0.0)) == [sequence]


@pytest.mark.parametrize("settings", [{"within_visit": "sometimes"}, {"num_attention_heads": 5}])
def test_unknown_settings_are_refused(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match="expected"):
        Chiron(GENERATOR_SPEC, "tiny", **settings)
    with pytest.raises(InputError, match="size"):
        Chiron(GENERATOR_SPEC, "huge")


def test_a_sequence_longer_than_the_context_is_refused_with_its_remedy() -> None:
    with pytest.raises(InputError, match=r"tokens\.max_tokens"):
        build().lm(torch.full((1, TOKENS.max_tokens + 1), 9))
