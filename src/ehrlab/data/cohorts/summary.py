"""A cohort in numbers: the statistics of MedDiffusion's Table 1, beside the paper's."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from ehrlab.core.errors import InputError

# Zhong et al. 2024 (arXiv 2310.02520), Table 1: positive and negative cases, visits/patient, codes/visit, unique codes.
# The heart-failure column is MIMIC-III; docs/tasks.md tells why it is thought to be the mortality cohort.
_MIMIC = (2820, 4702, 2.61, 13.06, 4874)
PUBLISHED: Mapping[tuple[str, str], tuple[float, ...]] = {
    ("trinetx", "kidney"): (2810, 8430, 39.09, 4.70, 8802),
    ("trinetx", "copd"): (7314, 21942, 30.39, 3.50, 10053),
    ("trinetx", "amnesia"): (2982, 8946, 39.00, 2.53, 9032),
    ("mimic", "heart_failure"): _MIMIC,
    ("mimic", "in_hospital_mortality"): _MIMIC,
}


@dataclass(frozen=True)
class CohortSummary:
    """Samples over all splits, as the model gets them (after the caps on visits and codes).

    visits_per_patient  mean over samples; codes_per_visit  mean over visits; both before unknown codes are left out
    unique_codes        distinct codes, unknown ones included
    samples_per_split   split -> (positive, negative)
    dropped             candidates that are no samples, by reason
    positives_per_label  where a task has several labels; a positive case then has at least one of them
    """

    task: str
    positive_cases: int
    negative_cases: int
    visits_per_patient: float
    codes_per_visit: float
    unique_codes: int
    subjects: int
    subjects_per_split: Mapping[str, int]
    samples_per_split: Mapping[str, tuple[int, int]]
    dropped: Mapping[str, int]
    simulated: bool
    positives_per_label: Mapping[str, int] = field(default_factory=dict)

    @property
    def num_samples(self) -> int:
        return self.positive_cases + self.negative_cases

    @classmethod
    def read(cls, path: Path) -> Self:
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            found["samples_per_split"] = {k: tuple(v) for k, v in found["samples_per_split"].items()}
            return cls(**found)
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, AttributeError):
            raise InputError(
                f"{path}: expected the cohort's statistics; delete the folder {path.parent} to build it again"
            ) from None

    def table(self, data_name: str, task: str | None = None) -> str:
        """Text for people: this cohort beside the paper's Table 1, where the paper has such a column.

        data_name  name of the data configuration, mimic or trinetx
        """
        task = task or self.task
        published = PUBLISHED.get((data_name, task))
        rows = (
            ("positive cases", f"{self.positive_cases:,}", "{:,.0f}"),
            ("negative cases", f"{self.negative_cases:,}", "{:,.0f}"),
            ("visits per patient", f"{self.visits_per_patient:.2f}", "{:.2f}"),
            ("codes per visit", f"{self.codes_per_visit:.2f}", "{:.2f}"),
            ("unique codes", f"{self.unique_codes:,}", "{:,.0f}"),
        )
        head = "SIMULATED cohort" if self.simulated else "this cohort"
        lines = [f"{data_name} / {task}", f"{'':<20}{head:>18}" + (f"{'paper, Table 1':>18}" if published else "")]
        for i, (name, ours, style) in enumerate(rows):
            if i > 1 and not self.visits_per_patient:
                break  # the samples of this task are no visits
            lines.append(f"{name:<20}{ours:>18}" + (f"{style.format(published[i]):>18}" if published else ""))
        lines.append(f"{'subjects':<20}{self.subjects:>18,}")
        for split, (positive, negative) in self.samples_per_split.items():
            samples = f"{positive:,} / {negative:,}"
            lines.append(f"{split + ' +/-':<20}{samples:>18}")
        lines += [f"{name:<20}{count:>18,}" for name, count in self.positives_per_label.items()]
        lines += [f"dropped: {reason}: {count:,}" for reason, count in self.dropped.items() if count]
        return "\n".join(lines)
