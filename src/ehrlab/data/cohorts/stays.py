"""Tasks about intensive care after its first 48 hours: respiratory failure, shock, death in hospital.

The stay-level tasks of MEDHMP (arXiv 2310.07871), whose cohorts are those of FIDDLE (Tang et al. 2020) with T = 48.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import timedelta
from typing import ClassVar

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.task import ALL_INPUTS, Cohort, Task, as_strings, finish
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.stays import stay_samples, stays

ITEM = r"^[^/]+//(\d+)(?:/|$)"
"""Where the number of an item stands in a code."""

_YEAR = 365.25
_ADMISSION = ["subject_id", "visit_id"]


@dataclass(frozen=True)
class _StayTask(Task):
    """One sample per stay of an adult that lasts at least `hours`; it is predicted at their end.

    hours       T
    min_age     years at the beginning of the stay
    first_item  stays count whose admission has charts with item numbers from here on and none below (MetaVision;
                MIMIC-III's older system has other items for the same things). null: all stays count
    """

    unit: ClassVar[str] = "stay"
    inputs: ClassVar[frozenset[str]] = ALL_INPUTS - {"visits", "tokens", "codes"}  # nothing is coded yet
    # The same for all: a stay encoder that is pretrained for one task then has read the events of every one.
    tables: ClassVar[frozenset[str]] = frozenset({"icu_stays", "vitals", "inputs", "icu_procedures"})

    hours: int = 48
    min_age: float = 18
    first_item: int | None = 220_000

    def __post_init__(self) -> None:
        if self.hours < 1:
            raise InputError(f"task.hours: expected at least 1, found {self.hours}")

    @abstractmethod
    def _label(self, meds: MedsDataset, eligible: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        """`eligible` (subject_id, visit_id, stay, start, end, prediction_time) with boolean_value; what was dropped."""

    def cohort(self, meds: MedsDataset) -> Cohort:
        every = stays(meds)
        long = pl.col("end") - pl.col("start") >= timedelta(hours=self.hours)
        samples = stay_samples(meds, self.hours).join(every.drop("subject_id"), on="stay", maintain_order="left")
        charted = samples if self.first_item is None else samples.join(self._charted(meds), on=_ADMISSION, how="semi")
        life = (
            meds.scan()
            .filter(meds.is_kind("birth", "death") & pl.col("time").is_not_null())
            .group_by("subject_id")
            .agg(
                birth=pl.col("time").filter(meds.is_kind("birth")).min(),
                death=pl.col("time").filter(meds.is_kind("death")).min(),
            )
            .collect(engine="streaming")
        )
        charted = charted.join(life, on="subject_id", how="left", maintain_order="left")
        age = (pl.col("start") - pl.col("birth")).dt.total_days() / _YEAR
        adults = charted.filter(age >= self.min_age)
        alive = adults.filter((pl.col("death") > pl.col("prediction_time")).fill_null(True))
        labelled, dropped = self._label(meds, alive)
        num_long = every.filter(long).height
        return finish(
            labelled,
            {
                f"stays shorter than {self.hours} hours": every.height - num_long,
                "stays outside of the admission of their time": num_long - samples.height,
                f"stays without charts of items from {self.first_item} on only": samples.height - charted.height,
                f"stays of patients under {self.min_age:g} or of unknown age": charted.height - adults.height,
                f"stays of patients who die within {self.hours} hours": adults.height - alive.height,
                **dropped,
            },
        )

    def _charted(self, meds: MedsDataset) -> pl.DataFrame:
        """subject_id, visit_id of the admissions whose charts have items from first_item on and no other."""
        item = pl.col("code").str.extract(ITEM, 1).cast(pl.Int64)
        items = meds.codes().filter(meds.is_kind("vital")).select("code", is_new=item >= self.first_item)
        return (
            meds.scan()
            .join(items.lazy().drop_nulls(), on="code")
            .group_by(_ADMISSION)
            .agg(pl.col("is_new").all())
            .filter("is_new")
            .select(_ADMISSION)
            .collect(engine="streaming")
        )


@dataclass(frozen=True)
class OnsetInStay(_StayTask):
    """Does it begin later in the stay, if it has not begun in the first `hours`?

    onset  kind of event (vital, input, icu_procedure) -> item numbers; the first of these events is the onset
    """

    onset: Mapping[str, Sequence[int | str]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        onset = {
            kind: as_strings(str(items) if isinstance(items, int) else items, f"task.onset.{kind}")
            for kind, items in self.onset.items()
        }
        object.__setattr__(self, "onset", onset)
        if not any(onset.values()):
            raise InputError("task.onset: expected kinds of event with item numbers, {input: [221906]}, found none")

    def _label(self, meds: MedsDataset, eligible: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        codes = self._codes(meds)
        events = (
            meds.scan()
            .filter(pl.col("code").is_in(codes.implode()) & pl.col("time").is_not_null())
            .join(eligible.lazy().select("subject_id").unique(), on="subject_id", how="semi")
            .select("subject_id", "time")
            .collect(engine="streaming")
        )
        onsets = (
            eligible.select("subject_id", "stay", "start", "end")
            .join(events, on="subject_id")
            .filter(pl.col("time").is_between("start", "end"))
            .group_by("stay")
            .agg(onset=pl.col("time").min())
        )
        found = eligible.join(onsets, on="stay", how="left", maintain_order="left")
        later = found.filter((pl.col("onset") >= pl.col("prediction_time")).fill_null(True))
        dropped = {f"stays with an onset within {self.hours} hours": found.height - later.height}
        return later.with_columns(boolean_value=pl.col("onset").is_not_null()), dropped

    def _codes(self, meds: MedsDataset) -> pl.Series:
        """The data set's codes of the onset; InputError where a kind of it was not read at all."""
        found = []
        for kind, items in self.onset.items():
            if kind not in meds.kinds:
                raise InputError(f"task.onset: unknown kind '{kind}'; expected some of {', '.join(sorted(meds.kinds))}")
            of_kind = meds.codes().filter(meds.is_kind(kind))["code"]
            if of_kind.is_empty():
                raise InputError(
                    f"task '{self.name}': the onset is read from events of the kind {kind}, of which the data hold "
                    "none. Add vitals, inputs and icu_procedures to data.source.tables, or change task.onset."
                )
            found.append(of_kind.filter(of_kind.str.extract(ITEM, 1).is_in(items)))
        return pl.concat(found)


@dataclass(frozen=True)
class DeathInHospital(_StayTask):
    """Does the admission of the stay end in death?

    died  regular expressions of the discharge codes that mean it
    """

    died: Sequence[str] = ("^HOSPITAL_DISCHARGE//DIED$",)

    def __post_init__(self) -> None:
        super().__post_init__()
        object.__setattr__(self, "died", as_strings(self.died, "task.died"))
        for pattern in self.died:
            try:
                pl.Series([""]).str.contains(pattern)
            except pl.exceptions.ComputeError:
                raise InputError(f"task.died: '{pattern}' is not a regular expression") from None

    def _label(self, meds: MedsDataset, eligible: pl.DataFrame) -> tuple[pl.DataFrame, dict[str, int]]:
        fatal = pl.any_horizontal(pl.lit(False), *(pl.col("code").str.contains(pattern) for pattern in self.died))
        deaths = (
            meds.scan()
            .filter(fatal & pl.col("visit_id").is_not_null())
            .select(*_ADMISSION, boolean_value=True)
            .unique()
            .collect(engine="streaming")
        )
        found = eligible.join(deaths, on=_ADMISSION, how="left", maintain_order="left")
        return found.with_columns(pl.col("boolean_value").fill_null(False)), {}
