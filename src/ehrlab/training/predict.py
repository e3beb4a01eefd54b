"""Predictions as a file: one process, one row per sample and label, recomputable without a GPU."""

from __future__ import annotations

from typing import Any

import polars as pl
import torch

from ehrlab.core.model import RiskModel
from ehrlab.data.clinical import ClinicalData


@torch.no_grad()
def predict(
    model: RiskModel, data: ClinicalData, split: str, *, batch_size: int, device: torch.device | str = "cpu"
) -> pl.DataFrame:
    """Predict every sample of a split, in the MEDS prediction schema.

    Columns: subject_id, prediction_time, boolean_value, predicted_boolean_value (probability >= .5),
    predicted_boolean_probability; with several labels also `label` (its name). Sorted by sample, then label.
    """
    was_training = model.training
    model.to(device).eval()
    frames = []
    for batch in data.loader(split, batch_size=batch_size):
        assert batch.labels is not None
        probability = model(batch.to(device)).double().sigmoid().cpu()
        num_labels = probability.shape[1]
        columns: dict[str, Any] = {
            "subject_id": batch.subject_id.repeat_interleave(num_labels).numpy(),
            "prediction_time": batch.prediction_time.repeat_interleave(num_labels).numpy(),
            "boolean_value": batch.labels.reshape(-1).bool().numpy(),
            "predicted_boolean_probability": probability.reshape(-1).numpy(),
        }
        if num_labels > 1:
            columns["label"] = list(data.labels) * len(batch)
        frames.append(pl.DataFrame(columns))
    model.train(was_training)
    keys = ["subject_id", "prediction_time"] + (["label"] if "label" in frames[0].columns else [])
    return (
        pl.concat(frames)
        .with_columns(
            pl.col("prediction_time").cast(pl.Datetime("us")),
            predicted_boolean_value=pl.col("predicted_boolean_probability") >= 0.5,
        )
        .select(
            *keys,
            "boolean_value",
            "predicted_boolean_value",
            "predicted_boolean_probability",
        )
        .sort(keys)
    )
