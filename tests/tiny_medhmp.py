"""MedHMP at toy size, on every level and body."""

from collections.abc import Callable
from dataclasses import replace

import torch

from ehrlab.core.batch import Batch, CodeSets, Notes, Stays
from ehrlab.core.model import Phase, SequenceRiskModel
from ehrlab.core.spec import DataSpec
from ehrlab.models.adacare import AdaCare
from ehrlab.models.dipole import Dipole
from ehrlab.models.hitanet import HiTANet
from ehrlab.models.lstm import LSTM
from ehrlab.models.medhmp import MedHMP
from ehrlab.models.retain import Retain
from modal_batches import MODAL_SPEC
from steps import gradient_phases

E = 8
UNITS = ("stay", "admission", "patient")
BODIES: dict[str, Callable[[DataSpec], SequenceRiskModel]] = {
    "lstm": lambda spec: LSTM(spec, E, 6, 5),
    "lstm_time": lambda spec: LSTM(spec, E, 6, 5, use_time=True),
    "dipole": lambda spec: Dipole(spec, E, 6),
    "retain": lambda spec: Retain(spec, E, 7, 5),
    "adacare": lambda spec: AdaCare(spec, E, 6, 4, dilations=(1, 2)),
    "hitanet": lambda spec: HiTANet(spec, E, 5, 3, 12),
}
AUTHORS = {"num_layers": 3, "feedforward": True, "decoder": "input", "mask_count": True, "targets": "masked"}


def build(unit: str, body: str = "lstm", seed: int = 0, **settings: object) -> MedHMP:
    torch.manual_seed(seed)
    sizes = {"embed_dim": E, "demographics_dim": 5}
    return MedHMP(replace(MODAL_SPEC, unit=unit), BODIES[body], **{**sizes, **settings})  # type: ignore[arg-type]


def phase(model: MedHMP, name: str) -> Phase:
    return next(p for p in gradient_phases(model) if p.name == name)


def stays_of(batch: Batch) -> Stays:
    assert batch.stays is not None
    return batch.stays


def codes_of(batch: Batch) -> CodeSets:
    assert batch.codes is not None
    return batch.codes


def notes_of(batch: Batch) -> Notes:
    assert batch.notes is not None
    return batch.notes
