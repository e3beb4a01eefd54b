"""Intensive-care stays as hourly binary features in the manner of FIDDLE (Tang et al. 2020), what MEDHMP learns from.

The first `hours` of a stay are hours of features. Of each code of the chosen kinds there are

    measured    something of the code happened in the hour
    bin         the hour's number lies in (above, up_to]: the quantiles of the training stays' hourly numbers
    text        the hour holds this text, where the chart has one instead of a number

and of these the features that at least `min_frequency` of the training stays show in some hour.

Departs from FIDDLE: one number per hour (the last, or the mean) for minimum, mean and maximum; nothing is carried
forward to hours without a value, since "measured" tells them apart; age and gender are demographics.

Files of the store; only what is there is stored, as two bytes per feature of an hour:

    features.parquet  id, code, what, above, up_to, text, description, num_stays (training stays that show it)
    stays.parquet     see `stays`; rows are those of the arrays below
    ids.npy           [nnz] uint16: features, hour after hour of a stay, ascending within an hour
    lengths.npy       [stay, hour] uint16: how many an hour has
    begin.npy         [stay] int64: where those of a stay begin

and of a selection, row by row of the samples: offsets.npy [sample + 1], stays.npy (rows of stays.parquet).
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.core.spec import StaySpec
from ehrlab.data.cache import content_key
from ehrlab.data.cohorts.task import as_strings
from ehrlab.data.meds import SPLITS, MedsDataset
from ehrlab.data.modalities.base import Modality, admissions, with_admissions
from ehrlab.data.modalities.stay_features import (
    FEATURE_SCHEMA,
    FEATURES,
    MOST_FEATURES,
    Candidates,
    encode,
    read_features,
)
from ehrlab.data.modalities.stay_store import StayReader, write

STAYS = "stays.parquet"
STAY_SCHEMA = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "visit_id": pl.Int64(),
        "stay": pl.UInt32(),
        "start": pl.Datetime("us"),
        "end": pl.Datetime("us"),
    }
)

MOST_HOURS = 1000
_HOUR = 3_600_000_000  # microseconds


@dataclass(frozen=True)
class StayModality(Modality):
    """Batch.stays: the last `max_stays` stays of the sample's admission that are known, oldest first.

    A stay is known when its first `hours`, or itself, are over at the prediction time.

    hours          first hours of a stay that are seen
    num_bins       bins of a number; fewer where its values are few
    value          the number of an hour: "last" or "mean"
    min_frequency  share of training stays that show a feature, below which it is dropped
    kinds          kinds of event that enter
    vocabulary     a store of another data set, whose features are taken instead of fitted ones
    """

    name: ClassVar[str] = "stays"
    version: ClassVar[int] = 1

    hours: int = 48  # MEDHMP, and FIDDLE's mortality benchmark
    num_bins: int = 5  # FIDDLE: quintiles
    value: str = "last"
    min_frequency: float = 0.05  # MEDHMP: "frequency < 5 %"
    max_stays: int = 3  # MEDHMP's released code
    kinds: tuple[str, ...] = ("vital", "input", "icu_procedure")
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_strings(self.kinds, "stays.kinds"))
        for name, least, most in (("hours", 1, MOST_HOURS), ("num_bins", 2, 100), ("max_stays", 1, 1000)):
            if not least <= getattr(self, name) <= most:
                raise InputError(f"stays.{name}: expected {least} to {most}, found {getattr(self, name)}")
        if self.value not in ("last", "mean"):
            raise InputError(f"stays.value: expected last or mean, found '{self.value}'")
        if not 0 <= self.min_frequency < 1:
            raise InputError(f"stays.min_frequency: expected a share in [0, 1), found {self.min_frequency}")

    def build(self, meds: MedsDataset, out: Path) -> None:
        table = stays(meds)
        codes = self._codes(meds)
        train = meds.splits().filter(pl.col("split") == SPLITS[0])
        in_train = table["subject_id"].is_in(train["subject_id"].implode()).to_numpy()
        if self.vocabulary is not None:
            features = read_features(Path(self.vocabulary), "stays.vocabulary")
        else:
            if not in_train.any():
                raise InputError("stays: no training subject has an intensive-care stay. Use more data.")
            features = self._candidates(meds, codes, table.filter(pl.Series(in_train)))
        features = features.join(codes, on="code", how="left", maintain_order="left")

        spool = out / "spool"
        spool.mkdir()
        shown = np.zeros(features.height, dtype=np.int64)
        num_stored = np.zeros(features.height, dtype=np.int64)
        parts = []
        for number, events in enumerate(self._events(meds, codes, table)):
            part = encode(events, features, self.value, self.hours)
            part.save(spool / f"{number}.npz")
            parts.append(spool / f"{number}.npz")
            num_stored += np.bincount(part.ids, minlength=features.height)
            shown += part.num_stays(in_train, features.height)

        if self.vocabulary is not None:
            kept = np.arange(features.height)
            if not num_stored.any():
                raise InputError(
                    f"stays.vocabulary={self.vocabulary}: expected features of codes of these data, found none of its "
                    f"{features.height} in any stay. Choose a store whose codes and units are those of these data."
                )
        else:
            kept = np.flatnonzero(shown >= self._least(in_train.sum()))
            if len(kept) == 0:
                raise InputError(
                    f"stays.min_frequency={self.min_frequency}: no feature is shown by as many training stays. Set a "
                    "smaller share, or add vitals to data.source.tables."
                )
        write(out, parts, kept, num_stored, table.height, self.hours)
        shutil.rmtree(spool)
        (
            features.with_columns(num_stays=pl.Series(shown))[kept]
            .with_row_index("id")
            .join(meds.codes().select("code", "description"), on="code", how="left", maintain_order="left")
            .select("id", *FEATURE_SCHEMA.names(), "description", "num_stays")
            .write_parquet(out / FEATURES)
        )
        table.write_parquet(out / STAYS)

    def select(self, meds: MedsDataset, store: Path, samples: pl.DataFrame, out: Path) -> None:
        known = pl.min_horizontal(pl.col("start") + timedelta(hours=self.hours), "end")
        seen = (
            samples.lazy()
            .select("sample", "subject_id", "visit_id", "prediction_time")
            .join(pl.scan_parquet(store / STAYS), on=["subject_id", "visit_id"])
            .filter(known <= pl.col("prediction_time"))
            .sort("sample", "start")
            .filter(pl.len().over("sample") - pl.int_range(pl.len()).over("sample") <= self.max_stays)
            .select("sample", "stay")
            .collect()
        )
        counts = np.bincount(seen["sample"].to_numpy(), minlength=samples.height)
        np.save(out / "offsets.npy", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        np.save(out / "stays.npy", seen["stay"].to_numpy().astype(np.int64))

    def reader(self, store: Path, selection: Path) -> StayReader:
        return StayReader(store, selection, self.spec(store).num_features)

    def spec(self, store: Path) -> StaySpec:
        features = pl.read_parquet(store / FEATURES).select(FEATURE_SCHEMA.names())
        return StaySpec(features.height, self.hours, self.max_stays, content_key(self.hours, features.rows()))

    def fingerprint(self) -> str | None:
        if self.vocabulary is None:
            return None
        read_features(Path(self.vocabulary), "stays.vocabulary")
        return hashlib.sha256((Path(self.vocabulary) / FEATURES).read_bytes()).hexdigest()

    def _codes(self, meds: MedsDataset) -> pl.DataFrame:
        """code, code_id: the codes of the data set that may enter."""
        if unknown := sorted(set(self.kinds) - set(meds.kinds)):
            raise InputError(
                f"stays.kinds: unknown kind '{unknown[0]}'; expected some of {', '.join(sorted(meds.kinds))}"
            )
        found = meds.codes().filter(meds.is_kind(*self.kinds)).select("code").sort("code").with_row_index("code_id")
        if found.is_empty():
            raise InputError(
                f"stays: the data hold no event of the kinds {', '.join(self.kinds)}. Add vitals (and inputs, "
                "icu_procedures) to data.source.tables, or name the kinds that hold what is charted (stays.kinds)."
            )
        return found

    def _least(self, num_stays: int) -> float:
        """How many of `num_stays` training stays must show a feature."""
        return max(1.0, self.min_frequency * num_stays)

    def _candidates(self, meds: MedsDataset, codes: pl.DataFrame, train: pl.DataFrame) -> pl.DataFrame:
        found = Candidates(codes, self.num_bins, self.value, self._least(train.height))
        for events in self._events(meds, codes, train):
            found.add(events)
        features = found.features()
        if features.height > MOST_FEATURES:
            raise InputError(
                f"stays.min_frequency={self.min_frequency}: leaves {features.height} features, expected at most "
                f"{MOST_FEATURES}; raise it"
            )
        return features

    def _events(self, meds: MedsDataset, codes: pl.DataFrame, table: pl.DataFrame) -> Iterator[pl.DataFrame]:
        """Of one file of events after the other: stay, hour, code_id, number, text, in order of time; the last two
        may be null. Only what happens in the first hours of the stays of `table`, and before their end."""
        within = table.lazy().select("subject_id", "start", "end", "stay", of_visit="visit_id").sort("start")
        number, text = pl.col("numeric_value"), pl.col("text_value").str.strip_chars().str.to_uppercase()
        since = pl.col("time") - pl.col("start")
        for file in meds.shards():
            yield (
                pl.scan_parquet(file)
                .filter(pl.col("time").is_not_null())
                .join(within.select("subject_id").unique(), on="subject_id", how="semi", maintain_order="left")
                .join(codes.lazy(), on="code", maintain_order="left")
                .select(
                    "subject_id",
                    "time",
                    "visit_id",
                    "code_id",
                    number=pl.when(number.is_finite()).then(number),
                    text=pl.when(number.is_null() & (text != "")).then(text),
                )
                .join_asof(
                    within,
                    left_on="time",
                    right_on="start",
                    by="subject_id",
                    strategy="backward",
                    check_sortedness=False,
                    coalesce=False,
                )
                .filter(
                    (pl.col("time") <= pl.col("end"))
                    & (since < timedelta(hours=self.hours))
                    & (pl.col("visit_id") == pl.col("of_visit")).fill_null(True)
                )
                .with_columns(hour=(since.dt.total_microseconds() // _HOUR).cast(pl.UInt16))
                .select("stay", "hour", "code_id", "number", "text")
                .collect()
            )


def stays(meds: MedsDataset) -> pl.DataFrame:
    """Every intensive-care stay with a beginning and an end (STAY_SCHEMA), by subject and start; `stay` is its row.

    A stay ends with the subject's last discharge from intensive care before the next stay begins. Without a visit_id
    it belongs to the admission that it begins in, and to none (null) where there is no such admission.

    InputError where the data hold none.
    """
    begins, ends = meds.is_kind("icu_admission"), meds.is_kind("icu_discharge")
    events = (
        meds.scan()
        .filter((begins | ends) & pl.col("time").is_not_null())
        .select("subject_id", "visit_id", "time", is_end=ends)
        .collect(engine="streaming")
    )
    next_start = pl.col("start").shift(-1).over("subject_id")
    starts = (
        events.filter(~pl.col("is_end"))
        .select("subject_id", "visit_id", start="time")
        .sort("subject_id", "start", "visit_id", nulls_last=True)
        .unique(["subject_id", "start"], keep="first", maintain_order=True)
        .with_columns(latest=next_start.fill_null(pl.lit(2**62).cast(pl.Datetime("us"))))
    )
    found = (
        starts.sort("latest")
        .join_asof(
            events.filter("is_end").select("subject_id", end="time").sort("end"),
            left_on="latest",
            right_on="end",
            by="subject_id",
            strategy="backward",
            check_sortedness=False,
            coalesce=False,
        )
        .filter(pl.col("end") >= pl.col("start"))
    )
    if found.is_empty():
        raise InputError(
            "the data hold no intensive-care stay with a beginning and an end (kinds.icu_admission, "
            "kinds.icu_discharge). Add icu_stays to data.source.tables, or choose a model and a task without stays."
        )
    if found["visit_id"].null_count():
        placed = with_admissions(
            found.with_row_index("sample").rename({"visit_id": "own", "start": "prediction_time"}), admissions(meds)
        )
        found = placed.with_columns(
            start="prediction_time",
            visit_id=pl.coalesce("own", pl.when(pl.col("prediction_time") <= pl.col("discharged")).then("visit_id")),
        )
    found = found.sort("subject_id", "start").with_row_index("stay")
    return found.select(pl.col(name).cast(dtype) for name, dtype in STAY_SCHEMA.items())


def stay_samples(meds: MedsDataset, hours: int) -> pl.DataFrame:
    """subject_id, prediction_time = start + `hours`, stay: each stay that lasts at least so long, by subject and time.

    Those only whose own admission is the one that a sample at this time belongs to, so that a StayModality of as many
    hours shows each of them its own stay last.
    """
    span = timedelta(hours=hours)
    long = (
        stays(meds)
        .filter(pl.col("end") - pl.col("start") >= span)
        .with_row_index("sample")
        .select("sample", "subject_id", "stay", own="visit_id", prediction_time=pl.col("start") + span)
    )
    placed = with_admissions(long, admissions(meds)).filter(pl.col("visit_id") == pl.col("own"))
    return placed.select("subject_id", "prediction_time", "stay")
