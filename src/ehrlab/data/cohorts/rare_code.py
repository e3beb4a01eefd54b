"""Cohorts of a set of target codes: the sixteen of RLTF (AAAI-25 GenAI4Health), Table 4, for generators of codes.

The whole record is the sample, and its label says whether it holds the target. So the input of a risk model holds the
answer: the task is for generators, which are asked to continue a record, and for the utility of what they generate.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.codes import bare, icd_bare, icd_version
from ehrlab.data.cohorts.task import Cohort, Task, as_strings, finish
from ehrlab.data.meds import MedsDataset


@dataclass(frozen=True)
class RareCode(Task):
    """Does the record hold a target code? One sample per subject with a visit; it ends with the record.

    icd9, icd10  whole codes; dots and case do not matter
    """

    icd9: Sequence[str]
    icd10: Sequence[str]

    def __post_init__(self) -> None:
        for field in ("icd9", "icd10"):
            codes = pl.Series(as_strings(getattr(self, field), f"task.{field}"), dtype=pl.String)
            object.__setattr__(self, field, tuple(codes.to_frame("code").select(bare(pl.col("code"))).to_series()))
        if not self.icd9 and not self.icd10:
            raise InputError("task: expected target codes in task.icd9 or task.icd10, found none")

    def target_codes(self, meds: MedsDataset) -> list[str]:
        """Those of the data set's diagnosis codes that mean the target, whatever their spelling."""
        code = pl.col("code")
        # By version: the ICD-9 code E860 and the ICD-10 code E86.0 are one text without dots.
        is_target = pl.any_horizontal(
            (icd_version(code) == version) & icd_bare(code).is_in(pl.Series(codes, dtype=pl.String).implode())
            for version, codes in ((9, self.icd9), (10, self.icd10))
        )
        # Diagnoses only: bare, the procedure 49.2 reads like the diagnosis 492.
        return meds.codes().filter(meds.is_kind("diagnosis") & is_target)["code"].to_list()

    def cohort(self, meds: MedsDataset) -> Cohort:
        is_target = pl.col("code").is_in(pl.Series(self.target_codes(meds), dtype=pl.String).implode())
        samples = (
            meds.scan()
            .filter(pl.col("time").is_not_null() & ~meds.is_kind("birth", "death"))
            .group_by("subject_id")
            .agg(prediction_time=pl.col("time").max(), boolean_value=is_target.any())
            .collect(engine="streaming")
        )
        return finish(samples, {"patients without a visit": meds.splits().height - samples.height})
