"""Random patients behind the interface of prepared data: for laws of training that need no raw tables."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader, Dataset

from batches import SPEC, random_batch, take
from ehrlab.core.batch import Batch
from ehrlab.core.spec import DataSpec
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.cohorts.summary import CohortSummary
from ehrlab.data.dataset import as_it_is
from ehrlab.data.meds import SPLITS
from ehrlab.data.sampler import BucketedBatches
from ehrlab.training.recipe import Recipe


class Patients(Dataset[Batch]):
    def __init__(self, batch: Batch) -> None:
        self.batch = batch

    def __len__(self) -> int:
        return len(self.batch)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        return take(self.batch, indices)


TRAINER = partial(
    L.Trainer,
    accelerator="cpu",
    devices=1,
    use_distributed_sampler=False,
    num_sanity_val_steps=0,
    enable_model_summary=False,
    enable_progress_bar=False,
    log_every_n_steps=1,
)


EPOCHS = 3


def recipe(**settings: Any) -> Recipe:
    default: dict[str, Any] = {
        "optimizer": partial(torch.optim.Adam, lr=0.01),
        "scheduler": partial(ReduceLROnPlateau, factor=0.5, patience=5),
        "scheduler_monitor": "val/loss",
        "batch_size": 8,
        "max_epochs": EPOCHS,
        "monitor": "val/loss",
        "mode": "min",
        "patience": 0,
        "gradient_clip": 0.0,
    }
    return Recipe(**(default | settings))


@dataclass(frozen=True)
class StubData(ClinicalData):
    splits: Mapping[str, Batch]

    def loader(
        self,
        split: str,
        *,
        view: str = "samples",
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
    ) -> DataLoader[Batch]:
        patients = Patients(self.splits[split])
        assert patients.batch.visits is not None
        lengths = patients.batch.visits.mask.sum(1).numpy()
        batches = BucketedBatches(lengths, batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world)
        return DataLoader(patients, batch_sampler=batches, collate_fn=as_it_is, generator=torch.Generator())


def stub_data(num_labels: int = 1, sizes: tuple[int, int, int] = (23, 11, 7)) -> StubData:
    """`sizes` patients to train, tune and hold out; their labels have nothing to do with their codes."""
    spec = replace(SPEC, num_labels=num_labels, positive_rate=(0.5,) * num_labels)
    return StubData(
        folders={"samples": Path()},
        selected={},
        spec=spec,
        labels=tuple(f"label {i}" for i in range(num_labels)) if num_labels > 1 else (),
        provides=frozenset({"visits", "demographics"}),
        simulated=True,
        fingerprint="stub",
        records={},
        cohort=CohortSummary("stub", 0, 0, 0.0, 0.0, 0, 0, {}, {}, {}, simulated=True),
        splits={split: _patients(spec, size, seed) for seed, (split, size) in enumerate(zip(SPLITS, sizes))},
    )


def _patients(spec: DataSpec, number: int, seed: int) -> Batch:
    return random_batch(spec, num_samples=number, num_visits=6, num_codes=3, seed=seed)
