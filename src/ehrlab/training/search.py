"""Choose a phase's settings by its validation score: the test split is not read before the choice is made."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ehrlab.core.files import slug, write_whole
from ehrlab.core.model import Model, Phase
from ehrlab.data.clinical import ClinicalData
from ehrlab.training.recipe import Recipe
from ehrlab.training.runner import (
    DONE,
    HISTORY,
    WEIGHTS,
    TrainerFactory,
    agreed,
    is_rank_zero,
    load_weights,
    run_phase,
    save_weights,
)

log = logging.getLogger(__name__)


def search_phase(
    model: Model,
    phase: Phase,
    data: ClinicalData,
    recipes: Mapping[str, Recipe],
    trainer: TrainerFactory,
    folder: Path,
    **options: Any,
) -> dict[str, Any]:
    """`run_phase` once for each recipe, from the same weights and seed; `model` is left with the best one's.

    recipes   name -> settings, which agree in how a score is read (monitor, mode); of equal scores the first wins
    folder    holds each candidate's under its name, and then the chosen one's weights and history as if it had been the
              only one. A run that was killed goes on with the candidate that it was at.

    options   those of `run_phase`

    A candidate whose loss does not stay finite is out; FloatingPointError where none is left. Returns the chosen one's
    record, with `chosen` and `searched` (name -> score, None for those that are out).
    """
    assert phase.select != "last", f"phase {phase.name}: no score to choose by"
    if agreed((folder / DONE).exists()):
        load_weights(model, folder / WEIGHTS)
        return dict(json.loads((folder / DONE).read_text()), reused=True, resumed_from_epoch=None)
    # Not the state dict: between two phases that may hold a part of the model (nn.phase_weights).
    tensors = [*model.parameters(), *model.buffers()]
    start = [tensor.detach().clone() for tensor in tensors]
    records: dict[str, dict[str, Any]] = {}
    for name, recipe in recipes.items():
        with torch.no_grad():
            for tensor, value in zip(tensors, start, strict=True):
                tensor.copy_(value)
        try:
            records[name] = run_phase(model, phase, data, recipe, trainer, folder / slug(name), **options)
        except FloatingPointError as error:
            log.info("phase '%s', %s: %s", phase.name, name, error)
    if not records:
        raise FloatingPointError(
            f"phase '{phase.name}': the training loss is not finite with any of {', '.join(recipes)}. "
            f"Search lower rates (training.phases.{phase.name}.grid)."
        )
    sign = 1 if phase.select == "loss" or next(iter(recipes.values())).mode == "min" else -1
    chosen = min(records, key=lambda name: sign * records[name]["best_score"])
    searched = {name: records[name]["best_score"] if name in records else None for name in recipes}
    record = records[chosen] | {"chosen": chosen, "searched": searched}
    log.info("phase '%s': %s of %d, by validation", phase.name, chosen, len(recipes))
    load_weights(model, folder / slug(chosen) / WEIGHTS)
    if is_rank_zero():
        shutil.copytree(folder / slug(chosen) / HISTORY, folder / HISTORY, dirs_exist_ok=True)
        save_weights(model, folder / WEIGHTS)
        write_whole(folder / DONE, json.dumps(record, indent=1))
        for name in records:
            (folder / slug(name) / WEIGHTS).unlink(missing_ok=True)
    return record
