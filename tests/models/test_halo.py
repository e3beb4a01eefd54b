"""HALO: what an entry of a row may see, that rows are distributions over sets, and how sets are drawn."""

import itertools
from dataclasses import replace

import pytest
import torch

from ehrlab.core.batch import Tokens
from ehrlab.models.halo import FrozenHead, Halo, _Draws
from sequences import (
    BOS,
    EOS,
    GENERATOR_SPEC,
    TOKENS,
    VISIT,
    random_sequences,
    sequences_of,
    token_batch,
    tokens_of,
)
from steps import train


@pytest.fixture(scope="module")
def model() -> Halo:
    """In eval mode and float64, some steps from the initial weights."""
    torch.manual_seed(0)
    model = Halo(GENERATOR_SPEC, embed_dim=8, num_layers=2, num_heads=2)
    train(model, [token_batch()] * 5, learning_rate=0.05)
    return model.double().eval()


def test_a_code_sees_earlier_visits_and_lower_codes_of_its_own(model: Halo) -> None:
    """By flipping every entry of every row."""
    rows, _ = model.rows(tokens_of(random_sequences(visits=(4,))))
    num_rows, width = rows.shape[1:]

    def logits(rows: torch.Tensor) -> torch.Tensor:
        """[t, k]: of entry k of row t + 1"""
        return model.fine(model.history(rows)[0, :-1], rows[0, 1:])

    expected = logits(rows)
    for t, k in itertools.product(range(num_rows), range(width)):
        flipped = rows.clone()
        flipped[0, t, k] = 1 - flipped[0, t, k]
        moved = (logits(flipped) - expected).abs() > 1e-12
        for row, entry in itertools.product(range(1, num_rows), range(width)):
            may = row > t or (row == t and entry > k)
            assert may or not moved[row - 1, entry], (t, k, row, entry)
        assert not moved[: max(t - 1, 0)].any()
        if t + 1 < num_rows:
            assert moved[t].any()  # the next row sees it


def test_every_lower_code_is_seen(model: Halo) -> None:
    rows, _ = model.rows(tokens_of(random_sequences(visits=(2,))))
    values = rows[0, 2:3]
    history = model.history(rows)[0, 1:2]
    expected = model.fine(history, values)
    changes = torch.zeros(model.row_dim, model.row_dim)
    for k in range(model.row_dim):
        flipped = values.clone()
        flipped[0, k] = 1 - flipped[0, k]
        changes[k] = (model.fine(history, flipped) - expected)[0].abs() > 0
    # ReLU units may be dead, but hardly all of those between two neighbours and more.
    assert changes.triu(1).sum() > 0.8 * model.row_dim * (model.row_dim - 1) / 2
    assert not changes.tril().any()


def test_a_row_is_a_distribution_over_sets() -> None:
    """Probabilities of all sets sum to 1."""
    torch.manual_seed(0)
    spec = replace(GENERATOR_SPEC, tokens=replace(TOKENS, num_tokens=11, targets=()))
    model = Halo(spec, embed_dim=4, num_layers=1, num_heads=2).double().eval()
    values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=model.row_dim)), dtype=torch.float64)
    logits = model.fine(torch.randn(1, 4, dtype=torch.float64).expand(len(values), -1), values)
    log_prob = -torch.nn.functional.binary_cross_entropy_with_logits(logits, values, reduction="none").sum(1)
    assert log_prob.exp().sum().item() == pytest.approx(1)


def test_rows_hold_demographics_label_codes_and_flags(model: Halo) -> None:
    target = TOKENS.targets[0]
    rows, real = model.rows(tokens_of([[BOS, 6, VISIT, 8, target, VISIT, 16, EOS], [BOS, VISIT, 9]]))
    named = {model.label: "label", model.start: "start", model.end: "end", model.pad: "pad"}
    found = [[{named.get(k, k + 5) for k in row.nonzero().flatten().tolist()} for row in patient] for patient in rows]
    assert found == [
        [{"start"}, {6, "label"}, {8, target}, {16, "end"}],
        [{"start"}, set(), {9}, {"pad"}],
    ]
    assert real.sum(1).tolist() == [4, 3]


def test_order_within_a_visit_age_and_place_do_not_matter(model: Halo) -> None:
    """They are not represented."""
    tokens = tokens_of([[BOS, VISIT, 9, 12, 10, EOS]])
    other = tokens_of([[BOS, VISIT, 10, 9, 12, EOS]], ages=[3])
    assert torch.equal(model.log_prob(other), model.log_prob(tokens))
    assert not torch.equal(model.log_prob(tokens_of([[BOS, VISIT, 9, 12, VISIT, 10, EOS]])), model.log_prob(tokens))


def test_drawing_a_row_equals_the_sweep_over_its_codes(model: Halo) -> None:
    generator = torch.Generator().manual_seed(0)
    history = 3 * torch.randn(40, 8, generator=generator, dtype=torch.float64)
    seed = torch.Generator().manual_seed(1)
    uniform = torch.rand(40, model.row_dim, generator=seed.clone_state())
    given = torch.zeros(40, model.row_dim, dtype=torch.float64)
    given[:20, 8] = 1
    expected = given.clone()
    entries = [*range(TOKENS.first_code - 5, model.num_codes), model.end]
    for k in entries:
        probability = model.fine(history, expected).sigmoid()[:, k]
        expected[:, k] = torch.maximum((uniform[:, k] < probability).double(), given[:, k])
    of_visit, drawn = torch.zeros(40, dtype=torch.bool), torch.arange(40) % 7 > 0
    found = model._sweep(history, given, of_visit, drawn, _Draws(seed, 1.0, uniform.device), FrozenHead(model.fine))
    assert torch.equal(found[drawn], expected[drawn])
    assert torch.equal(found[~drawn], given[~drawn])
    assert 0 < expected.mean() < 1


@pytest.mark.parametrize("block", [1, 5, 512])
def test_a_frozen_head_gives_the_same_logits(model: Halo, block: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FrozenHead, "BLOCK", block)
    generator = torch.Generator().manual_seed(0)
    history = torch.randn(7, 8, generator=generator, dtype=torch.float64)
    rows = (torch.rand(7, model.row_dim, generator=generator) < 0.3).double()
    rows[3] = 0
    torch.testing.assert_close(FrozenHead(model.fine)(history, rows), model.fine(history, rows))


def continuation(prompt: Tokens, found: Tokens) -> list[list[int]]:
    return [s[len(p) :] for p, s in zip(sequences_of(prompt), sequences_of(found))]


def test_an_open_visit_is_completed_with_other_codes_before_the_next_begins(model: Halo) -> None:
    prompt = tokens_of([[BOS, 5, VISIT, 9, 13]] * 64)
    new = continuation(prompt, model.generate(prompt, 20, torch.Generator().manual_seed(0)))
    completed = [s[: s.index(VISIT)] if VISIT in s else s for s in new]
    assert any(completed)
    for codes in completed:
        codes = [code for code in codes if code != EOS]
        assert codes == sorted(set(codes) - {9, 13})


def test_frequencies_of_generated_visits_are_the_models_probabilities() -> None:
    """From <bos> on, the first visit's codes; untrained, so that nothing is certain. 4 standard errors."""
    torch.manual_seed(2)
    model = Halo(GENERATOR_SPEC, embed_dim=8, num_layers=1, num_heads=2).eval()
    num_samples = 3_000
    prompt = tokens_of([[BOS, 5, VISIT]] * num_samples)
    new = continuation(prompt, model.generate(prompt, 28, torch.Generator().manual_seed(0)))
    visits = [set(s[: s.index(VISIT)] if VISIT in s else s) for s in new]
    # By enumeration: the label is drawn from its posterior, the first codes from their Bernoulli.
    expected = 0.0
    first = TOKENS.first_code
    with torch.no_grad():
        rows, _ = model.rows(tokens_of([[BOS, 5, VISIT]]))
        scores, chances = [], []
        for label in (0.0, 1.0):
            rows[0, 1, model.label] = label
            logits = model.fine(model.history(rows)[0, :-1], rows[0, 1:])
            scores.append(-torch.nn.functional.binary_cross_entropy_with_logits(logits[0], rows[0, 1], reduction="sum"))
            chances.append(logits[1, first - 5].sigmoid())
        weights = torch.stack(scores).softmax(0)
        expected = float((weights * torch.stack(chances)).sum())
    found = sum(first in visit for visit in visits) / num_samples
    assert abs(found - expected) < 4 * (expected * (1 - expected) / num_samples) ** 0.5


def test_a_prompt_that_holds_a_target_has_the_label(monkeypatch: pytest.MonkeyPatch) -> None:
    """The label moves what comes next, so it must not be drawn where it is known."""
    torch.manual_seed(0)
    model = Halo(GENERATOR_SPEC, embed_dim=8, num_layers=1, num_heads=2).eval()  # untrained: nothing is certain
    labels: list[float] = []
    draw_labels = Halo._draw_labels

    def watched(self: Halo, rows: torch.Tensor, *rest: object) -> None:
        draw_labels(self, rows, *rest)
        labels.extend(rows[:, 1, self.label].tolist())

    monkeypatch.setattr(Halo, "_draw_labels", watched)
    model.generate(tokens_of([[BOS, 5, VISIT, TOKENS.targets[1], VISIT]] * 50), 1)
    assert labels == [1.0] * 50
    labels.clear()
    model.generate(tokens_of([[BOS, 5, VISIT, 9, VISIT]] * 50), 1)
    assert 0 < sum(labels) < 50
