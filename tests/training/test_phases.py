"""What a phase does and leaves alone: turns, selection, estimators, several labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import polars as pl
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from sklearn.metrics import average_precision_score, f1_score, roc_auc_score
from torch import nn
from torch.optim.lr_scheduler import StepLR

from batches import visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.model import EstimatorPhase, LossDict, Phase, RiskModel, Turn
from ehrlab.evaluation.risk import evaluate
from ehrlab.training.predict import predict
from ehrlab.training.runner import run_phase
from probes import same_tensors
from stub_data import EPOCHS, TRAINER, StubData, recipe, stub_data
from tiny import build


class Seen(Callback):
    """The scalars of each epoch and, at the end, the optimisers."""

    def __init__(self) -> None:
        self.epochs: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append({name: float(value) for name, value in trainer.callback_metrics.items()})

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.optimizers = trainer.optimizers


def run(model: RiskModel, data: StubData, folder: Path, **settings: Any) -> Seen:
    seen = Seen()
    for phase in model.phases():
        run_phase(model, phase, data, recipe(**settings), TRAINER, folder / phase.name, seed=0, callbacks=[seen])
    return seen


class Two(RiskModel):
    """Two players of one number each, both losses given by a test; a prediction needs neither."""

    def __init__(self, first: Callable[[Two], torch.Tensor], second: Callable[[Two], torch.Tensor]) -> None:
        super().__init__()
        self.a, self.b = nn.Parameter(torch.tensor(1.0)), nn.Parameter(torch.tensor(2.0))
        self.first, self.second = first, second
        self.moves: list[str] = []

    def forward(self, batch: Batch) -> torch.Tensor:
        return (self.a + self.b).expand(len(batch), 1)

    def _move(self, name: str, loss: torch.Tensor) -> LossDict:
        self.moves.append(name)
        return {"loss": loss, "twice": 2 * loss.detach()}

    def phases(self) -> Sequence[Phase]:
        first = Turn(lambda _: self._move("a", self.first(self)), lambda: [self.a], "rival", repeat=2)
        second = Turn(lambda _: self._move("b", self.second(self)), lambda: [self.b])
        return [Phase("fit", (first, second))]


@pytest.fixture
def data() -> StubData:
    return stub_data()


def test_players_move_in_turn_as_often_as_they_say(data: StubData, tmp_path: Path) -> None:
    model = Two(lambda m: m.a.square(), lambda m: m.b.square())
    seen = run(model, data, tmp_path)
    num_steps = EPOCHS * math.ceil(23 / 8)
    assert model.moves == ["a", "a", "b"] * num_steps
    moves = [next(iter(optimizer.state.values()))["step"].item() for optimizer in seen.optimizers]
    assert moves == [2 * num_steps, num_steps]


def test_a_turn_moves_its_own_parameters_and_no_others(data: StubData, tmp_path: Path) -> None:
    """Each loss wants both numbers lower; what only the rival's loss wants does not happen."""
    model = Two(lambda m: m.a + 100 * m.b, lambda m: m.b * 0)
    run(model, data, tmp_path / "first")
    assert model.a < 1
    assert model.b == 2
    model = Two(lambda m: m.a * 0, lambda m: m.b + 100 * m.a)
    run(model, data, tmp_path / "second")
    assert model.a == 1
    assert model.b < 2


def test_scalars_of_the_last_player_have_plain_names_and_those_of_others_their_own(
    data: StubData, tmp_path: Path
) -> None:
    seen = run(Two(lambda m: m.a * 0 + 3, lambda m: m.b * 0 + 5), data, tmp_path)
    scores = seen.epochs[0]
    assert (scores["train/rival/loss"], scores["train/rival/twice"]) == (3, 6)
    assert (scores["train/loss"], scores["train/twice"]) == (5, 10)


def test_parameters_of_no_turn_stay_as_they_are(data: StubData, tmp_path: Path) -> None:
    model = build("model=lstm", spec=data.spec)
    before = model.visit.codes.table.weight.clone()
    model.phases = lambda: [Phase("head", (Turn(model.loss, model.head.parameters),))]
    run(model, data, tmp_path, optimizer=partial(torch.optim.Adam, lr=0.1, weight_decay=0.1))
    assert torch.equal(model.visit.codes.table.weight, before)


def test_gradients_are_clipped_to_the_recipes_norm(data: StubData, tmp_path: Path) -> None:
    model = Two(lambda m: 100 * m.a, lambda m: 0.1 * m.b)
    sgd = partial(torch.optim.SGD, lr=0.01)
    run(model, data, tmp_path, optimizer=sgd, gradient_clip=1.0)
    num_steps = EPOCHS * math.ceil(23 / 8)
    assert model.a.item() == pytest.approx(1 - 0.01 * 2 * num_steps, abs=1e-4)
    assert model.b.item() == pytest.approx(2 - 0.01 * 0.1 * num_steps, abs=1e-4)


def test_schedulers_step_once_an_epoch_for_every_player(data: StubData, tmp_path: Path) -> None:
    model = Two(lambda m: m.a.square(), lambda m: m.b.square())
    seen = run(model, data, tmp_path, scheduler=partial(StepLR, step_size=1, gamma=0.1))
    rates = [optimizer.param_groups[0]["lr"] for optimizer in seen.optimizers]
    assert rates == pytest.approx([0.01 * 0.1**EPOCHS] * 2)


def test_a_loss_that_is_not_finite_ends_the_phase(data: StubData, tmp_path: Path) -> None:
    model = Two(lambda m: m.a, lambda m: m.b * torch.nan)
    with pytest.raises(FloatingPointError, match=r"epoch 0.*training\.optimizer\.lr"):
        run(model, data, tmp_path)
    assert not (tmp_path / "fit" / "DONE").exists()


# ---- selection


class Noisy(RiskModel):
    """A loss that draws noise; a phase that is selected by it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = build("model=lstm")

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.inner(batch)

    def denoising(self, batch: Batch) -> LossDict:
        e = self.inner.embed(visits_of(batch))
        return {"loss": (e - torch.randn_like(e)).square().mean()}

    def phases(self) -> Sequence[Phase]:
        return [Phase("pretrain", (Turn(self.denoising, self.inner.visit.parameters),), select="loss")]


def test_a_noisy_validation_loss_of_the_same_weights_is_the_same_in_every_epoch(data: StubData, tmp_path: Path) -> None:
    seen = run(Noisy(), data, tmp_path, optimizer=partial(torch.optim.SGD, lr=0.0))
    losses = [epoch["val/loss"] for epoch in seen.epochs]
    assert len(set(losses)) == 1
    assert len({epoch["train/loss"] for epoch in seen.epochs}) == EPOCHS  # training does draw anew


def test_a_phase_selected_by_loss_keeps_the_weights_of_its_lowest_loss(data: StubData, tmp_path: Path) -> None:
    model = Noisy()
    first = {name: value.clone() for name, value in model.state_dict().items()}
    seen = run(model, data, tmp_path, optimizer=partial(torch.optim.Adam, lr=3.0, maximize=True))
    losses = [epoch["val/loss"] for epoch in seen.epochs]
    assert losses == sorted(losses)  # it climbs: the first epoch is the best
    record = json.loads((tmp_path / "pretrain" / "DONE").read_text())
    assert (record["best_epoch"], record["epochs"]) == (0, EPOCHS)
    assert not same_tensors(model.state_dict(), first)
    assert set(seen.epochs[0]) == {"train/loss", "val/loss"}


# ---- estimators


def test_an_estimator_is_fitted_once_and_found_again(data: StubData, tmp_path: Path) -> None:
    fits: list[tuple[int, int]] = []

    def fit(train: Iterable[Batch], tuning: Iterable[Batch]) -> dict[str, float]:
        fits.append((sum(map(len, train)), sum(map(len, tuning))))
        model.scale.fill_(7.0)
        return {"c": 0.1}

    class Scaled(RiskModel):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.zeros(()))

        def forward(self, batch: Batch) -> torch.Tensor:
            return self.scale.expand(len(batch), 1)

        def phases(self) -> Sequence[EstimatorPhase]:
            return [EstimatorPhase("fit", fit)]

    for _ in range(2):
        model = Scaled()
        run(model, data, tmp_path)
        assert model.scale == 7
    assert fits == [(23, 11)]
    assert json.loads((tmp_path / "fit" / "DONE").read_text())["fitted"] == {"c": 0.1}


# ---- several labels


@pytest.mark.parametrize("num_labels", [1, 2])
def test_validation_scores_match_scikit_learn(num_labels: int, tmp_path: Path) -> None:
    data = stub_data(num_labels)
    model = build("model=lstm", spec=data.spec)
    seen = run(model, data, tmp_path, max_epochs=1)
    model.eval()
    tuning = data.splits["tuning"]
    assert tuning.labels is not None
    y, p = tuning.labels.numpy(), model(tuning).detach().sigmoid().numpy()
    scores = seen.epochs[0]

    def mean(metric: Callable[[np.ndarray, np.ndarray], float], p: np.ndarray = p) -> float:
        return float(np.mean([metric(y[:, k], p[:, k]) for k in range(num_labels)]))

    assert scores["val/pr_auc"] == pytest.approx(mean(average_precision_score), abs=1e-5)
    assert scores["val/auroc"] == pytest.approx(mean(roc_auc_score), abs=1e-5)
    assert scores["val/f1"] == pytest.approx(mean(f1_score, p >= 0.5), abs=1e-5)
    cross_entropy = -(y * np.log(p) + (1 - y) * np.log(1 - p)).mean()
    assert scores["val/loss"] == pytest.approx(float(cross_entropy), abs=1e-5)


@pytest.mark.parametrize("num_labels", [1, 2])
def test_predictions_hold_each_sample_and_label_once_with_the_models_probability(num_labels: int) -> None:
    data = stub_data(num_labels)
    model = build("model=retain", spec=data.spec).train()
    table = predict(model, data, "held_out", batch_size=3)
    assert model.training
    held_out = data.splits["held_out"]
    model.eval()
    names = data.labels or ("",)
    keys = ["subject_id", "prediction_time"] + ["label"] * (num_labels > 1)
    assert table.columns == [*keys, "boolean_value", "predicted_boolean_value", "predicted_boolean_probability"]
    assert table.schema["prediction_time"] == pl.Datetime("us")
    assert held_out.labels is not None
    expected = {
        (int(subject), name): (bool(truth[label]), float(p[label]))
        for subject, truth, p in zip(held_out.subject_id, held_out.labels, model(held_out).sigmoid().detach())
        for label, name in enumerate(names)
    }
    found = {
        (row["subject_id"], row.get("label", "")): (row["boolean_value"], row["predicted_boolean_probability"])
        for row in table.iter_rows(named=True)
    }
    assert len(table) == len(found)
    assert found.keys() == expected.keys()
    for key, (truth, p) in expected.items():
        assert found[key] == (truth, pytest.approx(p, abs=1e-6))
    assert (table["predicted_boolean_value"] == (table["predicted_boolean_probability"] >= 0.5)).all()
    assert evaluate(table, num_bootstrap=5)["num_subjects"] == 7
