"""The one thing that flows from data to model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class DataSpec:
    """Sizes only; no model ever holds a dataset.

    num_codes         size of the visit-code vocabulary, padding id 0 included
    num_labels        K
    max_visits        no sample has more visits (V <= max_visits)
    max_codes         no visit has more codes (C <= max_codes)
    num_demographics  F of Batch.demographics
    positive_rate     share of positives per label in the training split
    """

    num_codes: int
    num_labels: int
    max_visits: int
    max_codes: int
    num_demographics: int
    positive_rate: tuple[float, ...]
