"""A phase that is stopped anywhere and started again ends as if nothing had happened."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from batches import visits_of
from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import LossDict, Model, Phase, RiskModel, Turn
from ehrlab.report.history import read_history
from ehrlab.training.recipe import Recipe
from ehrlab.training.runner import run_phase
from probes import Stop, StopAfter, same_tensors
from stub_data import TRAINER, StubData, stub_data
from tiny import build

# Labels are noise: the tuning loss soon rises, so that the learning rate falls and the patience ends the phase.
RECIPE = Recipe(
    optimizer=partial(torch.optim.Adam, lr=0.03, weight_decay=1e-3),
    scheduler=partial(ReduceLROnPlateau, factor=0.5, patience=0),
    scheduler_monitor="val/loss",
    batch_size=8,
    max_epochs=20,
    monitor="val/loss",
    mode="min",
    patience=4,
    gradient_clip=1.0,
)


class Adversaries(RiskModel):
    """An LSTM whose loss is fought by a critic of its embeddings, with noise on both sides."""

    def __init__(self, data: StubData) -> None:
        super().__init__()
        self.reader = build("model=lstm", spec=data.spec)
        self.critic = nn.Linear(self.reader.embed_dim, 1)

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.reader(batch)

    def judge(self, batch: Batch) -> torch.Tensor:
        e = self.reader.embed(visits_of(batch))
        return self.critic(e + 0.1 * torch.randn_like(e)).mean() - self.critic(torch.randn_like(e)).mean()

    def critic_loss(self, batch: Batch) -> LossDict:
        return {"loss": -self.judge(batch), "weight": self.critic.weight.square().mean()}

    def loss(self, batch: Batch) -> LossDict:
        return {"loss": self.reader.loss(batch)["loss"] + 0.1 * self.judge(batch)}

    def phases(self) -> Sequence[Phase]:
        critic, reader = self.critic.parameters, self.reader.parameters
        return [Phase("fit", (Turn(self.critic_loss, critic, "critic", repeat=2), Turn(self.loss, reader)))]


class End(Callback):
    """What Lightning holds when the last epoch has ended; the run itself goes on with the best epoch's weights."""

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.weights = {name: value.clone() for name, value in pl_module.state_dict().items()}
        self.optimizers = [optimizer.state_dict() for optimizer in trainer.optimizers]
        self.schedulers = [config.scheduler.state_dict() for config in trainer.lr_scheduler_configs]


@dataclass
class Trained:
    best: dict[str, torch.Tensor]
    end: End
    history: dict[str, Any]
    record: dict[str, Any]


@pytest.fixture(scope="module")
def data() -> StubData:
    return stub_data()


@pytest.fixture(params=["meddiffusion", "retain", "adversaries"], scope="module")
def name(request: pytest.FixtureRequest) -> str:
    """Diffusion noise in the loss; dropout; two players."""
    return request.param


def new_model(name: str, data: StubData) -> Model:
    torch.manual_seed(3)
    return Adversaries(data) if name == "adversaries" else build(f"model={name}", spec=data.spec)


def train(name: str, data: StubData, folder: Path, *stop: Callback, recipe: Recipe = RECIPE, seed: int = 1) -> Trained:
    model = new_model(name, data)
    (phase,) = model.phases()
    end = End()
    record = run_phase(model, phase, data, recipe, TRAINER, folder / "phases/fit", seed=seed, callbacks=[end, *stop])
    best = {key: value.clone() for key, value in model.state_dict().items()}
    return Trained(best, end, read_history(folder), record)


@pytest.fixture(scope="module")
def uninterrupted(name: str, data: StubData, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    return train(name, data, tmp_path_factory.mktemp("uninterrupted"))


def assert_same(resumed: Trained, whole: Trained) -> None:
    assert same_tensors(resumed.best, whole.best)
    assert same_tensors(resumed.end.weights, whole.end.weights)
    assert same_tensors(resumed.end.optimizers, whole.end.optimizers)
    assert same_tensors(resumed.end.schedulers, whole.end.schedulers)
    assert resumed.history == whole.history
    for key in ("epochs", "best_epoch", "best_score"):
        assert resumed.record[key] == whole.record[key]


def test_the_law_below_speaks_of_early_stopping_selection_and_a_falling_learning_rate(uninterrupted: Trained) -> None:
    """Else the comparison of resumed and uninterrupted training would compare less than it claims."""
    record = uninterrupted.record
    assert record["epochs"] < RECIPE.max_epochs
    assert record["best_epoch"] < record["epochs"] - 1
    assert uninterrupted.end.optimizers[-1]["param_groups"][0]["lr"] < 0.03
    assert not same_tensors(
        uninterrupted.best, {k.removeprefix("model."): v for k, v in uninterrupted.end.weights.items()}
    )


@pytest.mark.parametrize("stop", [(0, None), (1, 1), (3, None), (4, 0)], ids=str)
def test_resumed_training_is_the_uninterrupted_one_to_the_last_digit(
    name: str, data: StubData, tmp_path: Path, uninterrupted: Trained, stop: tuple[int, int | None]
) -> None:
    epoch, batch = stop
    with pytest.raises(Stop):
        train(name, data, tmp_path, StopAfter(epoch, batch))
    resumed = train(name, data, tmp_path)
    assert resumed.record["resumed_from_epoch"] == (epoch if batch is None else epoch - 1)
    assert_same(resumed, uninterrupted)


def test_training_that_is_stopped_many_times_is_the_uninterrupted_one(
    name: str, data: StubData, tmp_path: Path, uninterrupted: Trained
) -> None:
    for epoch in range(uninterrupted.record["epochs"] - 1):
        with pytest.raises(Stop):
            train(name, data, tmp_path, StopAfter(epoch))
    assert_same(train(name, data, tmp_path), uninterrupted)


def test_what_happened_in_the_process_before_does_not_matter(
    name: str, data: StubData, tmp_path: Path, uninterrupted: Trained
) -> None:
    model = new_model(name, data)
    torch.rand(7)
    (phase,) = model.phases()
    run_phase(model, phase, data, RECIPE, TRAINER, tmp_path, seed=1)
    assert same_tensors(model.state_dict(), uninterrupted.best)


def test_another_seed_is_another_run(data: StubData, tmp_path: Path) -> None:
    weights = [train("retain", data, tmp_path / str(seed), seed=seed).best for seed in (1, 2)]
    assert not same_tensors(*weights)


def test_a_folder_that_was_moved_resumes(data: StubData, tmp_path: Path) -> None:
    whole = train("retain", data, tmp_path / "whole")
    with pytest.raises(Stop):
        train("retain", data, tmp_path / "first", StopAfter(whole.record["best_epoch"] + 1))
    shutil.move(tmp_path / "first", tmp_path / "second")
    assert_same(train("retain", data, tmp_path / "second"), whole)


def test_a_finished_phase_is_loaded_and_not_touched(data: StubData, tmp_path: Path) -> None:
    whole = train("retain", data, tmp_path)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    model = new_model("retain", data)
    (phase,) = model.phases()
    record = run_phase(model, phase, data, RECIPE, TRAINER, tmp_path / "phases/fit", seed=1)
    assert record["reused"]
    assert same_tensors(model.state_dict(), whole.best)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    assert not list(tmp_path.rglob("*.ckpt"))


@pytest.mark.parametrize("damage", ["truncated", "empty", "text", "one bit"])
def test_a_damaged_checkpoint_is_refused_and_left_alone(data: StubData, tmp_path: Path, damage: str) -> None:
    with pytest.raises(Stop):
        train("retain", data, tmp_path, StopAfter(1))
    last = tmp_path / "phases/fit/last.ckpt"
    whole = last.read_bytes()
    flipped = bytearray(whole)
    flipped[whole.index(some_weights(last))] ^= 1
    content = {"truncated": whole[:-200], "empty": b"", "text": b"a checkpoint, surely", "one bit": bytes(flipped)}
    last.write_bytes(content[damage])
    with pytest.raises(InputError, match=r"last\.ckpt.*Delete it"):
        train("retain", data, tmp_path)
    assert last.read_bytes() == content[damage]


def some_weights(checkpoint: Path) -> bytes:
    """Some weights as they lie in the file."""
    weights = torch.load(checkpoint, weights_only=True)["state_dict"]["model.codes.table.weight"]
    return bytes(weights.numpy().tobytes()[-64:])


@pytest.mark.parametrize("damage", ["truncated", "empty"])
def test_damaged_weights_of_a_finished_phase_are_refused(data: StubData, tmp_path: Path, damage: str) -> None:
    train("retain", data, tmp_path)
    weights = tmp_path / "phases/fit/model.safetensors"
    weights.write_bytes(weights.read_bytes()[: -9 if damage == "truncated" else 0])
    with pytest.raises(InputError, match=r"model\.safetensors.*Delete the folder"):
        train("retain", data, tmp_path)


def test_weights_of_another_model_are_refused(data: StubData, tmp_path: Path) -> None:
    train("retain", data, tmp_path)
    with pytest.raises(InputError, match=r"model\.safetensors.*LSTM"):
        train("lstm", data, tmp_path)
