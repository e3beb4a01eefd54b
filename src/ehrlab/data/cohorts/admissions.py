"""Tasks about hospital admissions: death in hospital and readmission within 30 days."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.task import Cohort, Task, as_strings, finish
from ehrlab.data.meds import MedsDataset


@dataclass(frozen=True)
class _AdmissionTask(Task):
    """inpatient  encounter types that are hospital stays, for data with ENCOUNTER_START//<type> events (TriNetX: IMP)
    died       regular expressions of the discharge codes that mean death in hospital
    """

    inpatient: Sequence[str] = ("IMP",)
    died: Sequence[str] = ("^HOSPITAL_DISCHARGE//DIED$",)

    def __post_init__(self) -> None:
        for field in ("inpatient", "died"):
            object.__setattr__(self, field, as_strings(getattr(self, field), f"task.{field}"))
        for pattern in self.died:
            try:
                pl.Series([""]).str.contains(pattern)
            except pl.exceptions.ComputeError:
                raise InputError(f"task.died: '{pattern}' is not a regular expression") from None

    def stays(self, meds: MedsDataset) -> tuple[pl.DataFrame, dict[str, int]]:
        """Hospital stays: subject_id, start, end, died; sorted by subject and start. And what was dropped.

        Start and end of a stay share a visit_id; without one, a discharge ends the last admission before it. Stays
        that overlap or touch are one stay, because a transfer is no readmission.
        """
        coded = pl.col("code")
        starts = meds.is_kind("admission") | coded.is_in([f"ENCOUNTER_START//{kind}" for kind in self.inpatient])
        ends = meds.is_kind("discharge") | coded.is_in([f"ENCOUNTER_END//{kind}" for kind in self.inpatient])
        died = pl.any_horizontal(coded.str.contains(pattern) for pattern in self.died) if self.died else pl.lit(False)
        events = (
            meds.scan()
            .filter((starts | ends) & pl.col("time").is_not_null())
            .select("subject_id", "time", "visit_id", is_end=ends, died=died)
            .collect(engine="streaming")
        )
        if not (~events["is_end"]).any():
            raise InputError(
                f"task '{self.name}': the data hold no admission (kinds.admission, or encounters of type "
                f"{', '.join(self.inpatient)}). Choose a task without admissions, or set task.inpatient."
            )
        # At one instant an end comes first: it belongs to the stay before.
        events = events.sort("subject_id", "time", ~pl.col("is_end"), "visit_id")
        nameless = pl.col("visit_id").is_null()
        number = pl.when(nameless).then((nameless & ~pl.col("is_end")).cum_sum().over("subject_id"))
        stays = (
            events.with_columns(number=number)
            .group_by("subject_id", "visit_id", "number")
            .agg(
                start=pl.col("time").filter(~pl.col("is_end")).min(),
                end=pl.col("time").filter(pl.col("is_end")).max(),
                died=pl.col("died").any(),
            )
        )
        whole = stays.filter(pl.col("start").is_not_null() & pl.col("end").is_not_null())
        ordered = whole.filter(pl.col("end") >= pl.col("start")).sort("subject_id", "start", "end")
        latest = pl.col("end").cum_max().shift(1).over("subject_id")
        merged = (
            ordered.with_columns(stay=(latest.is_null() | (pl.col("start") > latest)).cum_sum().over("subject_id"))
            .group_by("subject_id", "stay", maintain_order=True)
            .agg(pl.col("start").min(), pl.col("end").max(), pl.col("died").any())
            .drop("stay")
        )
        return merged, {
            "stays without a recorded start or end": stays.height - whole.height,
            "stays that end before they start": whole.height - ordered.height,
        }


@dataclass(frozen=True)
class InHospitalMortality(_AdmissionTask):
    """Does the last stay end in death? One sample per patient with at least `min_admissions` stays.

    RETAIN's public MIMIC-III cohort (Choi et al. 2016, process_mimic.py): patients with two or more admissions.

    include_last_admission  True: the input ends at the last discharge, as in RETAIN, so that the discharge diagnoses
                            of the fatal stay are input. False: it ends at the discharge before: a forecast
    """

    min_admissions: int = 2
    include_last_admission: bool = True

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.min_admissions < (least := 1 if self.include_last_admission else 2):
            raise InputError(
                f"task.min_admissions: expected at least {least} with include_last_admission="
                f"{str(self.include_last_admission).lower()}, found {self.min_admissions}"
            )

    def cohort(self, meds: MedsDataset) -> Cohort:
        stays, dropped = self.stays(meds)
        patients = stays.group_by("subject_id").agg(
            num_stays=pl.len(),
            # Without a stay before, null: such patients fall to min_admissions, which then is 2 or more.
            prediction_time=pl.col("end").get(-1 if self.include_last_admission else -2, null_on_oob=True),
            boolean_value=pl.col("died").last(),
        )
        kept = patients.filter(pl.col("num_stays") >= self.min_admissions)
        dropped[f"patients with fewer than {self.min_admissions} admissions"] = patients.height - kept.height
        return finish(kept, dropped)


@dataclass(frozen=True)
class Readmission(_AdmissionTask):
    """Does another stay begin within `days` after a discharge? One sample per stay that ends alive.

    keep_early_deaths  True: a patient who dies within `days` without a readmission is a negative sample. False: no
                       sample, because nobody could have been readmitted
    """

    unit: ClassVar[str] = "admission"

    days: int = 30
    keep_early_deaths: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.days < 1:
            raise InputError(f"task.days: expected at least 1, found {self.days}")

    def cohort(self, meds: MedsDataset) -> Cohort:
        stays, dropped = self.stays(meds)
        span = pl.duration(days=self.days)
        deaths = meds.scan().filter(meds.is_kind("death")).group_by("subject_id").agg(death=pl.col("time").min())
        death_table, last = pl.collect_all([deaths, meds.scan().select(pl.col("time").max())], engine="streaming")
        end_of_data = last.item()
        alive = (
            stays.with_columns(next_start=pl.col("start").shift(-1).over("subject_id"))
            .filter(~pl.col("died"))
            .join(death_table, on="subject_id", how="left")
            .with_columns(boolean_value=(pl.col("next_start") - pl.col("end") <= span).fill_null(False))
        )
        watched = alive.filter(pl.col("boolean_value") | (pl.col("end") + span <= end_of_data))
        # Dates of death carry no time of day, so the day of the discharge counts as after it.
        early = (pl.col("death") >= pl.col("end").dt.truncate("1d")) & (pl.col("death") <= pl.col("end") + span)
        kept = watched.filter(pl.col("boolean_value") | ~early.fill_null(False) | pl.lit(self.keep_early_deaths))
        dropped["stays that end in death"] = stays.height - alive.height
        dropped[f"stays less than {self.days} days before the end of the data"] = alive.height - watched.height
        dropped[f"stays followed by death within {self.days} days"] = watched.height - kept.height
        return finish(kept.rename({"end": "prediction_time"}), dropped)
