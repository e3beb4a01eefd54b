"""Samples and events to what a model reads: one memory-mapped Arrow file per split, a vocabulary, a manifest.

    <split>.arrow       one record batch, uncompressed, a row per sample (SHARD_SCHEMA)
    vocabulary.parquet  id, code, description, num_samples (training samples that hold the code); id 0 is padding
    manifest.json       SCHEMA_VERSION, settings, sizes, counts per split, bytes and SHA-256 of each file above
    cohort.json         the statistics of MedDiffusion's Table 1
    labels.parquet      the samples in the MEDS label schema

One file of events is in memory at a time, and of its samples a portion; what leaves them goes to disk as flat arrays.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.summary import CohortSummary
from ehrlab.data.cohorts.task import OLDEST, VALUES, Cohort, as_strings, check_classes, visit_keys
from ehrlab.data.meds import SPLITS, MedsDataset

SCHEMA_VERSION = 2
"""Raised whenever the same samples give different files, so that caches of older versions are not taken."""

MANIFEST, VOCABULARY, COHORT, LABELS = "manifest.json", "vocabulary.parquet", "cohort.json", "labels.parquet"

PORTION = 1_000_000
"""Pairs of a sample and an event that are worked on at a time, at some 100 bytes each."""

_DAY = 86_400_000_000  # microseconds
_PADDING = 0


@dataclass(frozen=True)
class VisitSettings:
    """How events become visits.

    kinds       kinds of event whose codes enter
    by          "visit": a visit is an admission or encounter, events of none are grouped by calendar day;
                "day": always by calendar day
    max_visits  the last ones are kept
    max_codes   codes per visit: the first by rank in the raw table, then alphabetically
    min_count   codes in fewer training samples are unknown: they are left out and counted
    """

    kinds: tuple[str, ...] = ("diagnosis",)
    by: str = "visit"
    max_visits: int = 50
    max_codes: int = 40
    min_count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_strings(self.kinds, "visits.kinds"))
        if not self.kinds:
            raise InputError("visits.kinds: expected at least one kind of event, found none")
        if self.by not in ("visit", "day"):
            raise InputError(f"visits.by: expected visit or day, found '{self.by}'")
        for name in ("max_visits", "max_codes", "min_count"):
            if getattr(self, name) < 1:
                raise InputError(f"visits.{name}: expected at least 1, found {getattr(self, name)}")


def shard_schema(num_demographics: int, num_labels: int) -> pa.Schema:
    """Columns of a split's file; 64-bit offsets, so that one batch may hold any number of codes.

    labels            one per label of the task; none where the samples are of a view without labels
    codes             visits of codes (ids, in order of rank), oldest visit first
    days_before_last  days from each visit to the sample's last one
    demographics      age / 100, 1 if the age is unknown, then one-hot gender and race
    """
    return pa.schema(
        [
            pa.field("subject_id", pa.int64(), nullable=False),
            pa.field("prediction_time", pa.timestamp("us"), nullable=False),
            pa.field("labels", pa.list_(pa.field("item", pa.float32(), nullable=False), num_labels), nullable=False),
            pa.field(
                "codes",
                pa.large_list(pa.field("item", pa.large_list(pa.field("item", pa.int32(), nullable=False)), False)),
                nullable=False,
            ),
            pa.field("days_before_last", pa.large_list(pa.field("item", pa.float32(), nullable=False)), nullable=False),
            pa.field(
                "demographics",
                pa.list_(pa.field("item", pa.float32(), nullable=False), num_demographics),
                nullable=False,
            ),
        ]
    )


def tensorize(
    meds: MedsDataset,
    task: str,
    cohort: Cohort,
    settings: VisitSettings,
    out: Path,
    *,
    labels: Sequence[str] = (),
    visits: bool = True,
) -> None:
    """Write the files above into the existing folder `out`; call it through `cache.build_once`.

    Nothing after a sample's prediction_time enters. The vocabulary knows training samples only, and that of gender and
    race the training subjects of the data set, so that pretraining and every task read the same columns.

    labels  names of the labels where there are several (Task.labels). A cohort without any column of labels is a view
            without labels: no cohort.json, no labels.parquet
    visits  False: samples have no visits, and none is dropped for having none

    Errors: InputError for unknown kinds and for a split without positive or without negative samples of a label.
    """
    if unknown := sorted(set(settings.kinds) - set(meds.kinds)):
        raise InputError(f"visits.kinds: unknown kind '{unknown[0]}'; expected some of {', '.join(sorted(meds.kinds))}")
    splits = meds.splits()
    samples = _with_values(cohort.samples).with_row_index("sample")
    samples = samples.join(splits, on="subject_id", how="left", maintain_order="left")
    num_labels = len(labels) or int("boolean_value" in cohort.samples.columns)
    names = labels or [""] * num_labels
    # Before the work: an empty cohort needs no pass over the events.
    _check_classes(task, names, samples, cohort.dropped)

    codes = (
        meds.codes()
        .select("code", "description")
        .with_row_index("code_id")
        .with_columns(selected=meds.is_kind(*settings.kinds) if visits else pl.lit(False))
    )
    spool = out / "spool"
    spool.mkdir()
    statistics = {split: _Statistics(codes.height) for split in SPLITS}
    kept: list[NDArray[np.int64]] = []
    parts: dict[str, list[Path]] = {split: [] for split in SPLITS}
    for file in meds.shards():
        shard = _read_shard(meds, file, codes, samples.lazy().select("subject_id"), settings)
        for portion in _portions(shard, samples, PORTION) if visits else [_of_shard(shard, samples)]:
            for split, block in _blocks(shard, portion, settings, keep_empty=not visits).items():
                path = spool / f"{split}-{len(parts[split])}.npz"
                block.save(path)
                parts[split].append(path)
                kept.append(block.sample)
                statistics[split].add(block)

    used = samples.filter(pl.col("sample").is_in(np.concatenate(kept) if kept else np.empty(0, np.int64)))
    dropped = {**cohort.dropped, "samples without a visit": samples.height - used.height}
    _check_classes(task, names, used, dropped)

    train = statistics[SPLITS[0]]
    vocabulary = _vocabulary(codes, train.num_samples_with_code, settings.min_count, may_be_empty=not visits)
    new_id = np.full(codes.height, _PADDING, dtype=np.int32)
    known = vocabulary.drop_nulls("code_id")  # all but padding
    new_id[known["code_id"].to_numpy()] = known["id"].to_numpy()
    traits = _traits(meds, codes, "gender"), _traits(meds, codes, "race")
    counts = {}
    for split in SPLITS:
        counts[split] = _write_split(parts[split], new_id, traits, num_labels, out / f"{split}.arrow", spool)
    shutil.rmtree(spool)

    vocabulary.drop("code_id").write_parquet(out / VOCABULARY)
    if num_labels:
        _write_labels(used, labels, out)
        summary = _summarise(used, labels, statistics, dropped, task, meds.simulated)
        (out / COHORT).write_text(json.dumps(asdict(summary), indent=1), encoding="utf-8")
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "task": task,
        "dataset": meds.name,
        "settings": asdict(settings),
        "num_codes": vocabulary.height,
        "num_labels": num_labels,
        "labels": list(labels),
        "visits": visits,
        "demographics": ["age / 100", "age unknown", *(code for trait in traits for code in trait.values())],
        "splits": counts,
        "files": {name: _identity(out / name) for name in (*(f"{split}.arrow" for split in SPLITS), VOCABULARY)},
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


@dataclass(frozen=True)
class _Block:
    """Samples of one split out of one file of events, as flat arrays; codes, gender and race by row in `codes`.

    code_offsets has one entry more than there are visits, visit_offsets one more than samples. -1 = unknown trait.
    """

    sample: NDArray[np.int64]
    subject_id: NDArray[np.int64]
    prediction_time: NDArray[np.int64]
    labels: NDArray[np.float32]  # samples x labels, flat
    age: NDArray[np.float32]  # years / 100; NaN = unknown
    gender: NDArray[np.int64]
    race: NDArray[np.int64]
    visit_offsets: NDArray[np.int64]
    days_before_last: NDArray[np.float32]
    code_offsets: NDArray[np.int64]
    codes: NDArray[np.int32]

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(**arrays)


@dataclass
class _Statistics:
    """What a split's blocks add up to."""

    num_codes: int
    num_samples: int = 0
    num_visits: int = 0
    num_code_entries: int = 0
    num_samples_with_code: NDArray[np.int64] = field(init=False)

    def __post_init__(self) -> None:
        self.num_samples_with_code = np.zeros(self.num_codes, dtype=np.int64)

    def add(self, block: _Block) -> None:
        self.num_samples += len(block.sample)
        self.num_visits += len(block.days_before_last)
        self.num_code_entries += len(block.codes)
        sample = np.repeat(np.arange(len(block.sample)), np.diff(block.code_offsets[block.visit_offsets]))
        distinct = np.unique(sample * self.num_codes + block.codes)
        self.num_samples_with_code += np.bincount(distinct % self.num_codes, minlength=self.num_codes)


@dataclass(frozen=True)
class _Shard:
    """Of one file of events, for the subjects that have samples.

    events  subject_id, time, visit, code_id, sequence: the selected codes
    starts  visit, start: number of each visit, by subject and visit_id or day; when its admission or encounter began
    people  subject_id, time, code_id, kind: gender, race and birth
    subjects  subject_id: all of them, also those without an event of interest
    """

    events: pl.DataFrame
    starts: pl.DataFrame
    people: pl.DataFrame
    subjects: pl.DataFrame


def _read_shard(
    meds: MedsDataset, path: Path, codes: pl.DataFrame, subjects: pl.LazyFrame, settings: VisitSettings
) -> _Shard:
    raw = pl.scan_parquet(path).join(subjects, on="subject_id", how="semi")
    selected = codes.lazy().filter("selected").select("code", "code_id")
    kinds = ("gender", "race", "birth")
    events, begun, people, found = pl.collect_all(
        [
            raw.join(selected, on="code")
            .filter(pl.col("time").is_not_null())
            .select("subject_id", "time", "code_id", "sequence", *visit_keys(settings.by)),
            raw.filter(meds.is_kind("admission", "encounter") & pl.col("visit_id").is_not_null())
            .group_by("subject_id", "visit_id")
            .agg(start=pl.col("time").min()),
            raw.filter(meds.is_kind(*kinds))
            .join(codes.lazy().select("code", "code_id"), on="code")
            .select(
                "subject_id",
                "time",
                "code_id",
                kind=pl.coalesce(pl.when(meds.is_kind(kind)).then(pl.lit(kind)) for kind in kinds),
            ),
            raw.select("subject_id").unique(),
        ]
    )
    key = ["subject_id", "visit_id", "day"]
    visits = events.select(key).unique().sort(key).with_row_index("visit")
    starts = visits.join(begun, on=["subject_id", "visit_id"], how="left").select("visit", "start")
    events = events.join(visits, on=key, nulls_equal=True).drop("visit_id", "day")
    return _Shard(events, starts, people, found)


def _portions(shard: _Shard, samples: pl.DataFrame, limit: int) -> Iterator[pl.DataFrame]:
    """The shard's samples in their order, cut between subjects so that about `limit` (sample, event) pairs arise.

    Without a limit, a subject with many samples would need memory for samples times events.
    """
    size = pl.col("num_samples") * pl.col("num_events")
    subjects = (
        samples.group_by("subject_id")
        .agg(num_samples=pl.len().cast(pl.Int64))
        .join(shard.events.group_by("subject_id").agg(num_events=pl.len().cast(pl.Int64)), on="subject_id")
        .sort("subject_id")
        .select("subject_id", portion=(size.cum_sum() - size) // limit)
    )
    yield from samples.join(subjects, on="subject_id", maintain_order="left").partition_by(
        "portion", maintain_order=True, include_key=False
    )


def _of_shard(shard: _Shard, samples: pl.DataFrame) -> pl.DataFrame:
    return samples.join(shard.subjects, on="subject_id", how="semi", maintain_order="left")


def _blocks(
    shard: _Shard, samples: pl.DataFrame, settings: VisitSettings, *, keep_empty: bool = False
) -> dict[str, _Block]:
    """Group codes to visits, cut to the last visits and first codes, and part the samples by split.

    keep_empty  samples without a visit stay
    """
    wanted = samples.select("sample", "subject_id", "prediction_time", "history_start")
    known = (pl.col("time") <= pl.col("prediction_time")) & (
        pl.col("history_start").is_null() | (pl.col("time") > pl.col("history_start"))
    )
    of_sample = (
        shard.events.lazy()
        .join(wanted.lazy(), on="subject_id")
        .filter(known)
        .group_by("sample", "visit", "code_id")
        .agg(pl.col("time").min(), pl.col("sequence").min())
        .collect()
    )
    visits = (
        of_sample.group_by("sample", "visit")
        .agg(pl.col("time").min())
        .join(shard.starts, on="visit", how="left")
        # A start that the raw tables put after the visit's first code is an error of theirs.
        .with_columns(time=pl.min_horizontal("time", "start"))
        .sort("sample", "time", "visit")
        .with_columns(place=pl.int_range(pl.len()).over("sample"), num_visits=pl.len().over("sample"))
        .filter(pl.col("num_visits") - pl.col("place") <= settings.max_visits)
        .with_row_index("row")
    )
    # Alphabetical: code_id numbers the sorted codes.
    ranked = (
        of_sample.join(visits.select("sample", "visit", "row"), on=["sample", "visit"])
        .select("row", "sequence", "code_id")
        .sort("row", "sequence", "code_id", nulls_last=True)
    )
    visit = ranked["row"].to_numpy().astype(np.int64)
    place = np.arange(len(visit)) - np.searchsorted(visit, visit, side="left")
    within = place < settings.max_codes
    codes = ranked["code_id"].to_numpy()[within].astype(np.int32)
    codes_per_visit = np.bincount(visit[within], minlength=visits.height)

    def first(kind: str) -> pl.Expr:
        return pl.col("code_id").filter(pl.col("kind") == kind).min().alias(kind)

    people = (
        shard.people.join(wanted, on="subject_id")
        .filter(pl.col("time").is_null() | (pl.col("time") <= pl.col("prediction_time")))
        .group_by("sample")
        .agg(first("gender"), first("race"), birth=pl.col("time").filter(pl.col("kind") == "birth").min())
    )
    of_visits = visits.group_by("sample", maintain_order=True).agg(num_visits=pl.len(), last=pl.col("time").last())
    table = (
        samples.select("sample")
        .join(of_visits, on="sample", maintain_order="left", how="left" if keep_empty else "inner")
        .with_columns(pl.col("num_visits").fill_null(0))
        .join(samples, on="sample", maintain_order="left", how="left")
        .join(people, on="sample", maintain_order="left", how="left")
    )
    num_visits = table["num_visits"].to_numpy().astype(np.int64)
    time = visits["time"].to_physical().to_numpy()
    days = (np.repeat(table["last"].to_physical().to_numpy(), num_visits) - time) / _DAY
    years = (table["prediction_time"] - table["birth"]).dt.total_days() / 365.25
    age = years.clip(0, OLDEST).fill_null(float("nan")).to_numpy() / 100
    blocks = {}
    for split in SPLITS:
        rows = (table["split"] == split).fill_null(False).to_numpy()
        if not rows.any():
            continue
        of_visit = np.repeat(rows, num_visits)
        of_code = np.repeat(of_visit, codes_per_visit)
        chosen = table.filter(pl.Series(rows))
        blocks[split] = _Block(
            sample=chosen["sample"].to_numpy().astype(np.int64),
            subject_id=chosen["subject_id"].to_numpy(),
            prediction_time=chosen["prediction_time"].to_physical().to_numpy(),
            labels=chosen[VALUES].explode().drop_nulls().cast(pl.Float32).to_numpy(),
            age=age[rows].astype(np.float32),
            gender=chosen["gender"].cast(pl.Int64).fill_null(-1).to_numpy(),
            race=chosen["race"].cast(pl.Int64).fill_null(-1).to_numpy(),
            visit_offsets=_offsets(num_visits[rows]),
            days_before_last=days[of_visit].astype(np.float32),
            code_offsets=_offsets(codes_per_visit[of_visit]),
            codes=codes[of_code],
        )
    return blocks


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _vocabulary(
    codes: pl.DataFrame, num_samples: NDArray[np.int64], min_count: int, *, may_be_empty: bool
) -> pl.DataFrame:
    """id, code, description, num_samples, code_id; padding first, then the commonest code first."""
    known = (
        codes.with_columns(num_samples=pl.Series(num_samples))
        .filter(pl.col("num_samples") >= min_count)
        .sort(["num_samples", "code"], descending=[True, False])
    )
    if known.is_empty() and not may_be_empty:
        raise InputError(f"visits.min_count={min_count}: no code is in as many training samples; set a smaller number")
    columns = ["code", "description", "num_samples", "code_id"]
    padding = pl.DataFrame({"code": ["PADDING"], "num_samples": [0]})
    return pl.concat([padding, known.select(columns)], how="diagonal").select(
        pl.int_range(pl.len(), dtype=pl.Int32).alias("id"), *columns
    )


def _traits(meds: MedsDataset, codes: pl.DataFrame, kind: str) -> dict[int, str]:
    """code_id -> code of the values of a trait that occur in training subjects, alphabetical."""
    train = meds.splits().lazy().filter(pl.col("split") == SPLITS[0])
    found = meds.scan().filter(meds.is_kind(kind)).join(train, on="subject_id", how="semi").select("code").unique()
    known = codes.select("code", "code_id").join(found.collect(engine="streaming"), on="code").sort("code_id")
    return {code_id: code for code, code_id in known.iter_rows()}


def _demographics(block: _Block, traits: Iterable[Mapping[int, str]]) -> NDArray[np.float32]:
    """Float "samples F", flattened; a value that training samples lack is all zeros."""
    unknown = np.isnan(block.age)
    columns = [np.where(unknown, np.float32(0), block.age), unknown]
    for values, trait in zip((block.gender, block.race), traits):
        columns += [values == code_id for code_id in trait]
    return np.stack(columns, axis=1).astype(np.float32).ravel()


class _Spooled:
    """A flat array that grows on disk; its finished bytes are memory-mapped, not read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")

    def append(self, array: NDArray[Any]) -> None:
        array.tofile(self._file)

    def array(self, dtype: pa.DataType) -> pa.Array:
        self._file.close()
        size = self.path.stat().st_size
        data = pa.memory_map(str(self.path)).read_buffer() if size else pa.py_buffer(b"")
        return pa.Array.from_buffers(dtype, size * 8 // dtype.bit_width, [None, data])


def _write_split(
    parts: Iterable[Path],
    new_id: NDArray[np.int32],
    traits: tuple[Mapping[int, str], ...],
    num_labels: int,
    path: Path,
    spool: Path,
) -> dict[str, Any]:
    """Renumber the codes of the blocks in `parts`, write them as one Arrow file, and count."""
    flat = {name: _Spooled(spool / name) for name in _FLAT}
    counts: dict[str, Any] = dict.fromkeys(("samples", "visits", "codes", "unknown_codes"), 0)
    positives = np.zeros(num_labels, dtype=np.int64)
    for offsets in ("visit_offsets", "code_offsets"):
        flat[offsets].append(np.zeros(1, dtype=np.int64))
    for part in parts:
        block = _Block.load(part)
        codes = new_id[block.codes]
        known = codes != _PADDING
        code_offsets = _offsets(known.astype(np.int64))[block.code_offsets]
        flat["subject_id"].append(block.subject_id)
        flat["prediction_time"].append(block.prediction_time)
        flat["labels"].append(block.labels)
        flat["demographics"].append(_demographics(block, traits))
        flat["days_before_last"].append(block.days_before_last)
        flat["visit_offsets"].append(block.visit_offsets[1:] + counts["visits"])
        flat["code_offsets"].append(code_offsets[1:] + counts["codes"])
        flat["codes"].append(codes[known])
        counts["samples"] += len(block.sample)
        positives += block.labels.reshape(len(block.sample), num_labels).sum(0).astype(np.int64)
        counts["visits"] += len(block.days_before_last)
        counts["codes"] += int(known.sum())
        counts["unknown_codes"] += int((~known).sum())

    arrays = {name: spooled.array(_FLAT[name]) for name, spooled in flat.items()}
    schema = shard_schema(2 + sum(len(trait) for trait in traits), num_labels)
    visits = pa.LargeListArray.from_arrays(
        arrays["code_offsets"], arrays["codes"], type=schema.field("codes").type.value_type
    )
    columns = [
        arrays["subject_id"],
        arrays["prediction_time"],
        _fixed_lists(arrays["labels"], schema.field("labels").type, counts["samples"]),
        pa.LargeListArray.from_arrays(arrays["visit_offsets"], visits, type=schema.field("codes").type),
        pa.LargeListArray.from_arrays(
            arrays["visit_offsets"], arrays["days_before_last"], type=schema.field("days_before_last").type
        ),
        _fixed_lists(arrays["demographics"], schema.field("demographics").type, counts["samples"]),
    ]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, schema) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(columns, schema=schema))
    return {**counts, "positives": positives.tolist()}


def _fixed_lists(values: pa.Array, dtype: pa.DataType, length: int) -> pa.Array:
    """`from_arrays` cannot tell how many lists of nothing there are."""
    return pa.Array.from_buffers(dtype, length, [None], children=[values])


_FLAT = {
    "subject_id": pa.int64(),
    "prediction_time": pa.timestamp("us"),
    "labels": pa.float32(),
    "demographics": pa.float32(),
    "days_before_last": pa.float32(),
    "visit_offsets": pa.int64(),
    "code_offsets": pa.int64(),
    "codes": pa.int32(),
}


def _with_values(samples: pl.DataFrame) -> pl.DataFrame:
    """`samples` with the list of labels of each (VALUES): of one where the task has one, empty without labels."""
    if VALUES in samples.columns:
        return samples
    if "boolean_value" in samples.columns:
        return samples.with_columns(pl.concat_list("boolean_value").alias(VALUES))
    return samples.with_columns(pl.lit([], dtype=pl.List(pl.Boolean)).alias(VALUES))


def _class_counts(samples: pl.DataFrame, positive: pl.Expr) -> dict[str, tuple[int, int]]:
    """split -> (positives, negatives)"""
    found = samples.group_by("split").agg(positive=positive.sum(), num_samples=pl.len())
    return {split: (positive, total - positive) for split, positive, total in found.iter_rows()}


def _check_classes(task: str, names: Sequence[str], samples: pl.DataFrame, dropped: Mapping[str, int]) -> None:
    found = samples["split"].unique().to_list()
    if missing := [split for split in SPLITS if split not in found and not names]:
        raise InputError(
            f"view '{task}': no subject of the split {missing[0]} has such a sample. Choose another split.seed, or a "
            "larger data set."
        )
    for i, name in enumerate(names):
        counts = _class_counts(samples, pl.col(VALUES).list.get(i))
        check_classes(f"{task}, label {name}" if name else task, counts, dropped)


def _write_labels(samples: pl.DataFrame, names: Sequence[str], out: Path) -> None:
    """In the MEDS label schema, which has one label a row: a file for each of several."""
    for i, path in enumerate([out / "labels" / f"{name}.parquet" for name in names] or [out / LABELS]):
        path.parent.mkdir(exist_ok=True)
        value = pl.col(VALUES).list.get(i).alias("boolean_value")
        samples.select("subject_id", "prediction_time", value).write_parquet(path)


def _summarise(
    samples: pl.DataFrame,
    labels: Sequence[str],
    statistics: Mapping[str, _Statistics],
    dropped: Mapping[str, int],
    task: str,
    simulated: bool,
) -> CohortSummary:
    classes = _class_counts(samples, pl.col(VALUES).list.any())
    subjects = dict(samples.group_by("split").agg(pl.col("subject_id").n_unique()).iter_rows())
    num_visits = sum(s.num_visits for s in statistics.values())
    num_codes = sum(s.num_code_entries for s in statistics.values())
    in_any = np.sum([s.num_samples_with_code for s in statistics.values()], axis=0) > 0
    return CohortSummary(
        task=task,
        positive_cases=sum(positive for positive, _ in classes.values()),
        negative_cases=sum(negative for _, negative in classes.values()),
        visits_per_patient=num_visits / samples.height,
        codes_per_visit=num_codes / max(1, num_visits),
        unique_codes=int(in_any.sum()),
        subjects=sum(subjects.values()),
        subjects_per_split={split: subjects[split] for split in SPLITS},
        samples_per_split={split: classes[split] for split in SPLITS},
        dropped={reason: count for reason, count in dropped.items() if count},
        simulated=simulated,
        positives_per_label={name: int(samples[VALUES].list.get(i).sum()) for i, name in enumerate(labels)},
    )


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
