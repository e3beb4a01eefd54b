"""Each risk model of the MedDiffusion family learns a task made for its mechanism, and nothing where there is nothing.

Three rules on random patients: a code that decides alone (all models), which of two codes came first (models that read
order), how long ago the last visit but one was (models that read time). The labels of `null` are coin tosses.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from batches import SPEC, random_batch, take, visits_of, with_visits
from ehrlab.core.batch import Batch
from ehrlab.core.model import EstimatorPhase
from ehrlab.evaluation.metrics import auroc
from steps import train
from tiny import RISK_MODELS, build

NUM_TRAIN, NUM_TEST, BATCH = 384, 400, 32
EPOCHS, FEW_EPOCHS = 12, 4
READS_TIME = ("hitanet", "lstm_time", "meddiffusion", "medskim", "retainex", "timeline", "tlstm")
"""The models that are given the days between visits (docs/papers)."""

FIRST, SECOND = 3, 4
"""The two codes of the rule of order."""


def patients() -> Batch:
    """Three or four visits; the two codes of the order rule are once in each record, in different visits."""
    number = NUM_TRAIN + NUM_TEST
    lengths = [3 + i % 2 for i in range(number)]
    batch = random_batch(SPEC, num_samples=number, num_visits=4, num_codes=3, seed=5, lengths=lengths)
    visits = visits_of(batch)
    codes = visits.codes
    codes[(codes == FIRST) | (codes == SECOND)] = 0
    places = torch.rand(number, 3, generator=torch.Generator().manual_seed(6)).argsort(1)
    for which, code in enumerate((FIRST, SECOND)):
        codes[torch.arange(number), places[:, which], -1] = code
    # Between a day and a year, evenly on the logarithmic scale on which the methods read time.
    gaps = torch.rand(codes.shape[:2], generator=torch.Generator().manual_seed(8)).mul(6).exp() * visits.mask
    days = (gaps.flip(1).cumsum(1).flip(1) - gaps) * visits.mask
    return with_visits(batch, replace(visits, days_before_last=days))


def rule(name: str, batch: Batch) -> Tensor:
    """Labels, about half of them positive."""
    visits = visits_of(batch)
    if name == "code":
        return (visits.codes == 1).any(-1).any(-1).float()
    if name == "order":
        places = [(visits.codes == code).any(-1).float().argmax(1) for code in (FIRST, SECOND)]
        return (places[0] < places[1]).float()
    if name == "time":
        last = visits.mask.sum(1) - 1
        return (visits.days_before_last[torch.arange(len(last)), last - 1] < 20).float()
    return (torch.rand(len(batch), generator=torch.Generator().manual_seed(7)) < 0.5).float()


def score(model_name: str, rule_name: str, epochs: int) -> float:
    """AUROC on patients that were not trained on."""
    batch = patients()
    labelled = replace(batch, labels=rule(rule_name, batch)[:, None])
    model = build(f"model={model_name}")
    rows = list(range(NUM_TRAIN))
    parts = [take(labelled, rows[i : i + BATCH]) for i in range(0, NUM_TRAIN, BATCH)]
    gradient = not all(isinstance(phase, EstimatorPhase) for phase in model.phases())
    train(model, parts * (epochs if gradient else 1), learning_rate=0.01)
    model.eval()
    test = take(labelled, range(NUM_TRAIN, NUM_TRAIN + NUM_TEST))
    with torch.no_grad():
        logits = model(test)[:, 0].double()
    assert test.labels is not None
    return auroc(test.labels[:, 0].bool().numpy(), logits.sigmoid().numpy())


@pytest.mark.parametrize("name", RISK_MODELS)
def test_learns_a_code_that_decides(name: str) -> None:
    assert score(name, "code", EPOCHS) > 0.8


@pytest.mark.parametrize("name", [name for name in RISK_MODELS if build(f"model={name}").reads_order])
def test_learns_which_code_came_first(name: str) -> None:
    assert score(name, "order", EPOCHS) > 0.7


@pytest.mark.parametrize("name", READS_TIME)
def test_learns_how_long_ago_a_visit_was(name: str) -> None:
    assert score(name, "time", 2 * EPOCHS) > 0.7


@pytest.mark.parametrize("name", RISK_MODELS)
def test_learns_nothing_from_coin_tosses(name: str) -> None:
    """The standard error of an AUROC of 400 patients is .029."""
    assert score(name, "null", FEW_EPOCHS) == pytest.approx(0.5, abs=0.1)
