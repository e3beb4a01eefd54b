"""The only LightningModule: runs one phase of any model, on any number of devices."""

from __future__ import annotations

import hashlib
import math
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    BinaryAUROC,
    BinaryAveragePrecision,
    BinaryCohenKappa,
    BinaryF1Score,
    MultilabelAUROC,
    MultilabelAveragePrecision,
    MultilabelF1Score,
)

from ehrlab.core.batch import Batch
from ehrlab.core.model import Model, Phase
from ehrlab.data.clinical import ClinicalData
from ehrlab.training.recipe import Recipe

PRECISIONS = ("32-true", "bf16-mixed")
"""Of trainer.precision: float16 would need scaled losses, and pure bfloat16 batches of it."""


def derived_seed(*parts: object) -> int:
    """A seed that depends on all parts and on nothing else (not on Python's salted hash)."""
    return int.from_bytes(hashlib.blake2b(repr(parts).encode(), digest_size=7).digest(), "big")


def validation_metrics(num_labels: int) -> MetricCollection:
    """Metrics of the validation split, to follow and select by. Published numbers come from predictions.parquet."""
    if num_labels == 1:
        metrics: dict[str, Any] = {
            "pr_auc": BinaryAveragePrecision(),
            "f1": BinaryF1Score(),
            "kappa": BinaryCohenKappa(),
            "auroc": BinaryAUROC(),
        }
    else:
        metrics = {
            "pr_auc": MultilabelAveragePrecision(num_labels),
            "f1": MultilabelF1Score(num_labels),
            "auroc": MultilabelAUROC(num_labels),
        }
    return MetricCollection(metrics, prefix="val/")


class LitPhase(L.LightningModule):
    """Trains `model` through the phase named `phase`.

    The name is passed, not the Phase: its functions do not pickle, and spawned ranks must find their own.
    Optimisation is manual for one turn as for several, so that there is one path and the schedulers step before the
    epoch's checkpoint is written: a resumed run then repeats the uninterrupted one to the last digit.
    """

    def __init__(self, model: Model, phase: str, data: ClinicalData, recipe: Recipe, seed: int, num_workers: int = 0):
        super().__init__()
        self.automatic_optimization = False
        self.model, self.phase_name, self.data = model, phase, data
        self.recipe, self.seed, self.num_workers = recipe, seed, num_workers
        if self.phase.select == "risk":
            self.metrics = validation_metrics(data.spec.num_labels)
        trained = {id(p) for turn in self.phase.turns for p in turn.params()}
        for p in model.parameters():
            p.requires_grad_(id(p) in trained)

    @property
    def phase(self) -> Phase:
        return next(p for p in self.model.phases() if isinstance(p, Phase) and p.name == self.phase_name)

    # ---- data: built here because a rank knows its number only after launch
    def _loader(self, split: str, shuffle: bool) -> DataLoader[Batch]:
        return self.data.loader(
            split,
            view=self.phase.view,
            batch_size=self.recipe.batch_size,
            seed=derived_seed(self.seed, self.phase_name),
            shuffle=shuffle,
            rank=self.trainer.global_rank,
            world=self.trainer.world_size,
            num_workers=self.num_workers,
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        return self._loader("train", shuffle=True)

    def val_dataloader(self) -> DataLoader[Batch]:
        return self._loader("tuning", shuffle=False)

    # ---- training
    def on_train_epoch_start(self) -> None:
        # A seed per epoch and rank instead of a stored generator state: noise differs between ranks, and a run that
        # resumes at an epoch's start draws what the uninterrupted run would have drawn.
        torch.manual_seed(derived_seed(self.seed, self.phase_name, self.current_epoch, self.trainer.global_rank))

    def training_step(self, batch: Batch, batch_idx: int) -> None:
        optimizers = self.optimizers()
        optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
        turns, share = self.phase.turns, self._share(batch)
        for turn, optimizer in zip(turns, optimizers, strict=True):
            if len(turns) > 1:
                self.toggle_optimizer(optimizer)
            for _ in range(turn.repeat):
                losses = turn.loss(batch)
                optimizer.zero_grad()
                self.manual_backward(losses["loss"] * share)
                if self.recipe.gradient_clip:
                    # Not self.clip_gradients: under bf16-mixed it refuses fused optimisers, for fear of a scaler that
                    # bfloat16 does not have. PRECISIONS has none that scales.
                    nn.utils.clip_grad_norm_(turn.params(), self.recipe.gradient_clip)
                optimizer.step()
            if len(turns) > 1:
                self.untoggle_optimizer(optimizer)
            prefix = "train" if turn is turns[-1] else f"train/{turn.name}"
            self._log({f"{prefix}/{name}": value.detach() for name, value in losses.items()}, batch)

    def _share(self, batch: Batch) -> Tensor:
        """This rank's part of the global batch, relative to an even one: 1 where all ranks have equally many samples.

        The mean over ranks of the losses, weighted by it, is the mean over samples, as in a single process.
        """
        own = torch.tensor(float(len(batch)), device=self.device)
        even: Tensor = self.trainer.strategy.reduce(own.clone(), reduce_op="mean")
        return own / even

    def on_train_epoch_end(self) -> None:
        scores = self.trainer.callback_metrics
        if not math.isfinite(float(scores["train/loss"])):
            raise FloatingPointError(
                f"phase '{self.phase_name}': the training loss is not finite in epoch {self.current_epoch}. "
                "Lower training.optimizer.lr, or set training.gradient_clip."
            )
        schedulers = self.lr_schedulers() or []
        for scheduler in schedulers if isinstance(schedulers, list) else [schedulers]:
            if isinstance(scheduler, ReduceLROnPlateau):
                scheduler.step(scores[self.recipe.scheduler_monitor])
            else:
                scheduler.step()

    def configure_optimizers(self) -> tuple[list[Optimizer], list[Any]]:
        optimizers = [self.recipe.optimizer(list(turn.params())) for turn in self.phase.turns]
        return optimizers, [self.recipe.scheduler(optimizer) for optimizer in optimizers]

    # ---- validation: every sample once, whatever the number of ranks
    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        if self.phase.select == "risk":
            assert batch.labels is not None
            logits = self.model(batch).float()  # sigmoids of bfloat16 would tie
            self._log({"val/loss": F.binary_cross_entropy_with_logits(logits, batch.labels)}, batch)
            shape = (-1,) if self.data.spec.num_labels == 1 else logits.shape
            self.metrics.update(logits.sigmoid().reshape(shape), batch.labels.reshape(shape).int())
            return
        # A loss that draws masks or noise is compared between epochs under the same draws.
        with torch.random.fork_rng():
            torch.manual_seed(derived_seed(self.seed, self.phase_name, "val", batch_idx, self.trainer.global_rank))
            self._log({f"val/{k}": v for k, v in self.phase.turns[-1].loss(batch).items()}, batch)

    def on_validation_epoch_end(self) -> None:
        if self.phase.select == "risk":
            self.log_dict(self.metrics.compute(), prog_bar=True, sync_dist=True)
            self.metrics.reset()

    def _log(self, values: dict[str, Tensor], batch: Batch) -> None:
        self.log_dict(values, on_step=False, on_epoch=True, batch_size=len(batch), sync_dist=True)
