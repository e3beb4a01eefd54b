"""Models, callbacks and loggers that are named on a command line to look into a run or to stop it."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.logger import Logger

from ehrlab.core.batch import Batch
from ehrlab.core.model import EstimatorPhase, LossDict, Phase, Turn
from ehrlab.core.spec import DataSpec
from ehrlab.models.lstm import LSTM


class NeedsNotes(LSTM):
    requires = frozenset({"visits", "notes"})


class Pretrained(LSTM):
    """Two phases; the first does not read `dropout`, so runs that differ in it share the first."""

    def __init__(self, spec: DataSpec, dropout: float, **sizes: Any) -> None:
        super().__init__(spec, **sizes)
        self.dropout = dropout

    def reconstruction(self, batch: Batch) -> LossDict:
        assert batch.visits is not None
        return {"loss": self.embed(batch.visits).square().mean()}

    def phases(self) -> Sequence[Phase | EstimatorPhase]:
        turns = (Turn(self.reconstruction, self.visit.parameters),)
        pretrain = Phase("pretrain", turns, select="loss", ignores=frozenset({"model.dropout", "bootstrap"}))
        return [pretrain, *super().phases()]


class Stop(Exception):
    """The power cut of these tests."""


class StopAfter(Callback):
    """End training when `epoch` (from 0) has its checkpoint, or in the middle of it: after its batch `batch`."""

    def __init__(self, epoch: int, batch: int | None = None) -> None:
        self.epoch, self.batch = epoch, batch

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch + 1:
            raise Stop

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if (trainer.current_epoch, batch_idx) == (self.epoch, self.batch):
            raise Stop


class Checksums(Callback):
    """Leave a checksum of each rank's final weights in `folder`."""

    def __init__(self, folder: str) -> None:
        self.folder = Path(folder)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        digest = hashlib.sha256()
        for name, value in sorted(pl_module.state_dict().items()):
            digest.update(name.encode() + value.cpu().numpy().tobytes())
        kind = type(pl_module.model).__name__
        (self.folder / f"{kind}-rank{trainer.global_rank}of{trainer.world_size}").write_text(digest.hexdigest())


class DiskFull(Callback):
    """Fail as a full disk does when `epoch` (from 0) is to be recorded."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        if trainer.current_epoch == self.epoch:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "last.ckpt.tmp")


class Recorder(Logger):
    """Write everything that a logger is given to a file, with its type."""

    def __init__(self, name: str, path: str) -> None:
        super().__init__()
        self._name, self.path = name, Path(path)

    @property
    def name(self) -> str:
        return self._name

    @property
    def version(self) -> int:
        return 0

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._append("metrics", {name: [type(value).__name__, value] for name, value in metrics.items()})

    def log_hyperparams(self, params: Any, *args: Any, **kwargs: Any) -> None:
        self._append("config", [params, [str(a) for a in args], {k: str(v) for k, v in kwargs.items()}])

    def _append(self, kind: str, content: Any) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps([kind, content]) + "\n")


def same_tensors(a: Any, b: Any) -> bool:
    """Bit for bit, at any depth of dicts and lists."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and torch.equal(a, b)
    if isinstance(a, Mapping):
        return isinstance(b, Mapping) and a.keys() == b.keys() and all(same_tensors(a[k], b[k]) for k in a)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(same_tensors, a, b))
    return bool(a == b)
