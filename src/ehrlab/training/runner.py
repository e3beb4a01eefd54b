"""Run a phase to its end, from wherever it stands, and leave its weights in its folder."""

from __future__ import annotations

import io
import json
import logging
import pickle
import shutil
import sys
import time
import warnings
import zipfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback, EarlyStopping, ModelCheckpoint, RichProgressBar
from lightning.pytorch.loggers import CSVLogger, Logger, WandbLogger
from lightning.pytorch.plugins.io import TorchCheckpointIO
from lightning.pytorch.utilities import rank_zero_only
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ehrlab.core.errors import InputError
from ehrlab.core.files import replacing, write_whole
from ehrlab.core.model import AnyPhase, EstimatorPhase, Model, Phase, PreferencePhase
from ehrlab.data.clinical import ClinicalData
from ehrlab.training.lit import LitPhase, derived_seed
from ehrlab.training.recipe import Recipe

# Lightning's start-up lines and its advice against what is meant: a resumed phase's folder is not empty, and batches
# come from memory-mapped shards without worker processes.
logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
warnings.filterwarnings("ignore", message=r"Checkpoint directory .* exists and is not empty")
warnings.filterwarnings("ignore", message=r".*does not have many workers")
warnings.filterwarnings("ignore", message=r".*isinstance\(treespec, LeafSpec\)")

WEIGHTS, DONE, CHECKPOINTS, HISTORY = "model.safetensors", "DONE", "checkpoints", "history"
TrainerFactory = Callable[..., L.Trainer]


class _Checkpoint(ModelCheckpoint):
    """`<folder>/<name>.ckpt` of the epoch with the best `monitor`, or without one of the latest epoch."""

    def __init__(self, folder: Path, name: str, **settings: Any) -> None:
        super().__init__(folder, name, save_on_train_epoch_end=True, enable_version_counter=False, **settings)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Lightning's own forgets the best score where the folder was moved since."""
        old, new = str(state_dict["dirpath"]), str(self.dirpath)
        here = {
            key: value.replace(old, new, 1) if isinstance(value, str) else value for key, value in state_dict.items()
        }
        here["best_k_models"] = {
            path.replace(old, new, 1): score for path, score in state_dict["best_k_models"].items()
        }
        super().load_state_dict(here)


class _BesideThenRename(TorchCheckpointIO):
    """Lightning's own goes by way of the system's temporary folder, from which the last move may be a copy: a kill
    would leave half a checkpoint."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        content = io.BytesIO()
        torch.save(checkpoint, content)
        write_whole(Path(path), content.getvalue())


def is_rank_zero() -> bool:
    """True in the one process that writes files (the only process unless a launcher started several)."""
    return int(getattr(rank_zero_only, "rank", 0) or 0) == 0


def agreed(decision: bool) -> bool:
    """Rank 0's decision, on every rank: they read the same files, but not at the same moment.

    Before the first phase of a process there is no group to ask, and need not be: rank 0 starts the others only after
    it has decided to train, and keeps the run to itself meanwhile.
    """
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return decision
    box = [decision]
    torch.distributed.broadcast_object_list(box)
    return box[0]


def seed_model(seed: int) -> None:
    """Seed what a model's construction draws (initial weights)."""
    torch.manual_seed(derived_seed(seed, "init"))


def save_weights(model: Model, path: Path) -> None:
    # Contiguous copies: safetensors refuses tensors that share storage (tied weights, RNN views).
    tensors = {name: value.detach().cpu().contiguous().clone() for name, value in model.state_dict().items()}
    with replacing(path) as beside:
        save_file(tensors, beside)


def load_weights(model: Model, path: Path) -> None:
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError, OSError) as error:
        raise InputError(
            f"weights {path}: cannot be loaded into {type(model).__name__} ({str(error).splitlines()[0]}). "
            f"Delete the folder {path.parent} to train it again."
        ) from error


def close_loggers(loggers: Sequence[Logger]) -> None:
    """End their runs: Weights & Biases would add the next model of this process to the last one's curves."""
    for logger in loggers:
        if isinstance(logger, WandbLogger):
            logger.experiment.finish()


def run_phase(
    model: Model,
    phase: AnyPhase,
    data: ClinicalData,
    recipe: Recipe,
    trainer: TrainerFactory,
    folder: Path,
    *,
    seed: int,
    loggers: Sequence[Logger] = (),
    callbacks: Sequence[Callback] = (),
    num_workers: int = 0,
) -> dict[str, Any]:
    """Train one phase in `folder` and leave `model` with the selected weights.

    A folder with DONE is loaded; one with last.ckpt (in a preference phase, checkpoints/) resumes (optimisers,
    schedulers, epoch, early stopping, seeds); else training starts. Returns the phase's record: epochs, best epoch and
    score, seconds, resumed_from_epoch. `callbacks` are Lightning's: a preference phase has none.
    """
    if agreed((folder / DONE).exists()):
        load_weights(model, folder / WEIGHTS)
        return dict(json.loads((folder / DONE).read_text()), reused=True, resumed_from_epoch=None)
    folder.mkdir(parents=True, exist_ok=True)
    started = time.perf_counter()
    if isinstance(phase, EstimatorPhase):
        record = _run_estimator(model, phase, data, recipe, seed)
    elif isinstance(phase, PreferencePhase):
        record = _run_preference(model, phase, data, recipe, trainer, folder, seed, loggers)
    else:
        record = _run_lightning(model, phase, data, recipe, trainer, folder, seed, loggers, callbacks, num_workers)
    record["seconds"] = round(time.perf_counter() - started, 3)
    if is_rank_zero():
        save_weights(model, folder / WEIGHTS)
        write_whole(folder / DONE, json.dumps(record, indent=1))
        for name in ("last.ckpt", "best.ckpt"):
            (folder / name).unlink(missing_ok=True)
        shutil.rmtree(folder / CHECKPOINTS, ignore_errors=True)
    return record


def _run_estimator(
    model: Model, phase: EstimatorPhase, data: ClinicalData, recipe: Recipe, seed: int
) -> dict[str, Any]:
    torch.manual_seed(derived_seed(seed, phase.name))
    train, tuning = (data.loader(s, view=phase.view, batch_size=recipe.batch_size) for s in ("train", "tuning"))
    return {"fitted": phase.fit(train, tuning)}


def _run_preference(
    model: Model,
    phase: PreferencePhase,
    data: ClinicalData,
    recipe: Recipe,
    trainer: TrainerFactory,
    folder: Path,
    seed: int,
    loggers: Sequence[Logger],
) -> dict[str, Any]:
    try:
        from ehrlab.training.preference import run_preference  # TRL takes seconds to import
    except ModuleNotFoundError as error:
        raise InputError(
            f"phase '{phase.name}': expected the project's packages, found no {error.name}. Install them: pip install "
            "-c constraints.txt -e ."
        ) from error
    return run_preference(model, phase, data, recipe, trainer, folder, seed, loggers)


def _run_lightning(
    model: Model,
    phase: Phase,
    data: ClinicalData,
    recipe: Recipe,
    trainer_factory: TrainerFactory,
    folder: Path,
    seed: int,
    loggers: Sequence[Logger],
    callbacks: Sequence[Callback],
    num_workers: int,
) -> dict[str, Any]:
    phase.begin()
    # Lightning's own save_last=True writes only when the best was written: it would lose every epoch since.
    last = folder / "last.ckpt"
    scores = {"risk": (recipe.monitor, recipe.mode), "loss": ("val/loss", "min"), "last": (None, "max")}
    monitor, mode = scores[phase.select]
    best = _Checkpoint(folder, "best", monitor=monitor, mode=mode)
    callbacks = [*callbacks, best, _Checkpoint(folder, last.stem)]  # in this order: the last one knows the best
    # Only for somebody who looks: in a log file a bar is noise.
    show_progress = bool(getattr(trainer_factory, "keywords", {}).get("enable_progress_bar")) and sys.stdout.isatty()
    if show_progress:
        callbacks.append(RichProgressBar(leave=False))
    if recipe.patience and monitor is not None:
        callbacks.append(EarlyStopping(monitor, mode=mode, patience=recipe.patience, check_on_train_epoch_end=True))
    trainer = _for_turns(trainer_factory, len(phase.turns))(
        max_epochs=recipe.max_epochs,
        callbacks=callbacks,
        logger=[CSVLogger(folder, name=HISTORY), *loggers],
        default_root_dir=folder,
        enable_progress_bar=show_progress,
        plugins=[_BesideThenRename()],
    )
    resumed_from = _checkpoint_epoch(last) if last.exists() else None
    lit = LitPhase(model, phase.name, data, recipe, seed, num_workers)
    # Adam with L2 decay drives rows of rare codes through the denormal range, where a CPU computes many times slower.
    torch.set_flush_denormal(True)
    try:
        trainer.fit(lit, ckpt_path=last if resumed_from is not None else None, weights_only=True)
    finally:
        torch.set_flush_denormal(False)  # it is the whole process's, numpy's too
    trainer.strategy.barrier()
    selected = torch.load(folder / "best.ckpt", map_location="cpu", weights_only=True)
    # strict: a name that is missing here would leave that tensor at the last epoch's value
    model.load_state_dict(
        {k.removeprefix("model."): v for k, v in selected["state_dict"].items() if k.startswith("model.")}
    )
    trainer.strategy.barrier()
    return {
        "epochs": trainer.current_epoch,
        "best_epoch": int(selected["epoch"]),
        "monitor": monitor,
        "best_score": None if best.best_model_score is None else float(best.best_model_score),
        "resumed_from_epoch": resumed_from,
        "device": str(trainer.strategy.root_device),
        "world_size": trainer.world_size,
    }


def _for_turns(trainer: TrainerFactory, turns: int) -> TrainerFactory:
    """Under DDP, a player's turn leaves the others' parameters without gradients: they have to be looked for."""
    if turns > 1 and getattr(trainer, "keywords", {}).get("strategy") == "ddp":
        return partial(trainer, strategy="ddp_find_unused_parameters_true")
    return trainer


def _checkpoint_epoch(path: Path) -> int:
    """The epoch after which a checkpoint was written; refuses a damaged file."""
    try:
        with zipfile.ZipFile(path) as archive:
            found = archive.testzip()  # torch.load does not look at the checksums that torch.save writes
        if found is None:
            return int(torch.load(path, map_location="cpu", weights_only=True)["epoch"])
    except (zipfile.BadZipFile, pickle.UnpicklingError, EOFError, OSError, RuntimeError, ValueError) as error:
        found = type(error).__name__
    raise InputError(
        f"checkpoint {path}: expected a checkpoint to resume from, found a damaged file ({found}). "
        "Delete it to train this phase again from its start."
    )
