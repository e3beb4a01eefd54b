"""Gradient boosting on laboratory tests (CatBoost): the method that neural networks on tables have to beat.

Tests that were not measured are missing values to it. One ensemble of trees per label, as long as the tuning split's
log-loss falls.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from catboost import CatBoostClassifier
from jaxtyping import Float
from numpy.typing import NDArray
from torch import Tensor

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.model import AnyPhase, EstimatorPhase, RiskModel
from ehrlab.core.spec import DataSpec


class LabsBoosting(RiskModel):
    """iterations   trees at most
    patience     trees without a lower log-loss on the tuning split before it stops
    num_threads  -1: every core of the machine

    A label with one class only among the training samples has no trees; its risk is (positives + .5) / (n + 1).
    """

    requires = frozenset({"labs"})
    reads_order = False

    trees: Tensor
    sizes: Tensor
    prior: Tensor

    def __init__(
        self,
        spec: DataSpec,
        iterations: int = 1000,
        patience: int = 50,
        learning_rate: float = 0.05,
        depth: int = 4,
        num_threads: int = -1,
    ) -> None:
        super().__init__()
        self.settings: dict[str, Any] = {
            "iterations": iterations,
            "learning_rate": learning_rate,
            "depth": depth,
            "thread_count": num_threads,
            "early_stopping_rounds": patience,
        }
        # CatBoost's own bytes, one ensemble after the other: a state dict holds tensors only.
        self.register_buffer("trees", torch.empty(0, dtype=torch.uint8))
        self.register_buffer("sizes", torch.zeros(spec.num_labels, dtype=torch.long))
        self.register_buffer("prior", torch.zeros(spec.num_labels))
        self._ensembles: list[CatBoostClassifier | None] = []

    def _load_from_state_dict(self, state_dict: Mapping[str, Any], prefix: str, *args: Any) -> None:
        self.trees = torch.empty_like(state_dict[f"{prefix}trees"])  # as many bytes as the stored ensembles have
        self._ensembles = []
        super()._load_from_state_dict(state_dict, prefix, *args)

    def forward(self, batch: Batch) -> Float[Tensor, "B K"]:
        if not self._ensembles:
            self._ensembles = [_loaded(part) for part in self.trees.cpu().split(self.sizes.tolist())]
        x = _features(batch)
        columns = [
            np.full(len(x), prior) if ensemble is None else ensemble.predict(x, prediction_type="RawFormulaVal")
            for ensemble, prior in zip(self._ensembles, self.prior.tolist())
        ]
        return torch.from_numpy(np.stack(columns, axis=1).astype(np.float32)).to(self.prior.device)

    def phases(self) -> Sequence[AnyPhase]:
        return [EstimatorPhase("fit", self.fit)]

    def fit(self, training: Iterable[Batch], tuning: Iterable[Batch]) -> dict[str, float]:
        x, y = _table(training)
        tuning_table = _table(tuning)
        seed = int(torch.randint(2**31, ()))  # of the phase: a run repeats itself
        parts, counts = [], []
        for label, column in enumerate(y.T):
            self.prior[label] = float(np.log((column.sum() + 0.5) / (len(column) - column.sum() + 0.5)))
            if column.min() == column.max():
                parts.append(b"")
                continue
            model = CatBoostClassifier(
                **self.settings, random_seed=seed, allow_writing_files=False, logging_level="Silent"
            )
            model.fit(x, column, eval_set=(tuning_table[0], tuning_table[1][:, label]))
            parts.append(model._serialize_model())
            counts.append(model.tree_count_)
        self.trees = torch.frombuffer(bytearray(b"".join(parts)), dtype=torch.uint8) if counts else self.trees[:0]
        self.sizes.copy_(torch.tensor([len(part) for part in parts]))
        self._ensembles = []
        return {"labels_with_trees": float(len(counts)), "mean_trees": float(np.mean(counts)) if counts else 0.0}


def _loaded(part: Tensor) -> CatBoostClassifier | None:
    if not len(part):
        return None
    model = CatBoostClassifier()
    model.load_model(blob=part.numpy().tobytes())
    return model


def _features(batch: Batch) -> NDArray[np.float32]:
    """ "B F"; NaN where a test was not measured. CatBoost wants one column at least to differ between rows."""
    assert batch.labs is not None
    return batch.labs.values.where(batch.labs.observed, torch.nan).cpu().numpy()


def _table(batches: Iterable[Batch]) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features "N F", labels "N K"."""
    rows, labels = [], []
    for batch in batches:
        assert batch.labels is not None
        rows.append(_features(batch))
        labels.append(batch.labels.cpu().numpy().astype(np.int64))
    x = np.concatenate(rows)
    if all(len(np.unique(column)) < 2 for column in x.T):
        raise InputError(
            "labs_boosting: expected a laboratory test whose values differ between training samples, found none. "
            "Choose a larger cohort, or a model that reads other data"
        )
    return x, np.concatenate(labels)
