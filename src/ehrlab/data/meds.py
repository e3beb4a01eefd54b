"""MEDS on disk: the only interchange format. `build` makes the folder from a source, `MedsDataset` reads it.

data/<shard>.parquet              events of a hash bucket of subjects; subjects contiguous, time-sorted, nulls first
metadata/codes.parquet            code, description, parent_codes, ccs: every code that occurs
metadata/subject_splits.parquet   train / tuning / held_out, made once per data set, whatever the task
metadata/dataset.json             MEDS's fields, then ours: simulated, provides, kinds, counts, fingerprint
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import meds
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from ehrlab.core.errors import InputError
from ehrlab.data.cache import content_key
from ehrlab.data.codes import icd_metadata
from ehrlab.data.sources.raw import MIB, expanded_size, reading
from ehrlab.data.sources.source import EVENT_SCHEMA, EventTable, Source

SCHEMA_VERSION = 3
"""Raised whenever the same raw tables give different events, so that caches of older versions are not taken."""

BUCKET_BYTES = 256 * MIB
"""Raw (uncompressed) bytes per bucket of subjects. Sorting a bucket holds about four times this in memory."""

SPLITS = (meds.train_split, meds.tuning_split, meds.held_out_split)


@dataclass(frozen=True)
class SplitSettings:
    """Shares of the subjects; held_out is what remains (MedDiffusion 4.1: 75 / 10 / 15). `seed` orders the subjects."""

    seed: int = 0
    train: float = 0.75
    tuning: float = 0.10

    def __post_init__(self) -> None:
        if not (self.train > 0 and self.tuning > 0 and self.train + self.tuning < 1):
            raise InputError(
                "split: the shares of train and tuning must be positive and leave some for held_out; "
                f"found train={self.train}, tuning={self.tuning}"
            )


@dataclass(frozen=True)
class MedsDataset:
    """A MEDS folder made by `build`.

    simulated    its events stem from a simulator; everything made from it must say so
    provides     modalities (Batch fields) that its events can fill
    kinds        kind of event -> regular expressions of its codes
    fingerprint  names the events and the split: equal fingerprints, equal folders
    counts       subjects, events, and per raw table what was dropped and why
    """

    path: Path
    name: str
    simulated: bool
    provides: frozenset[str]
    kinds: Mapping[str, tuple[str, ...]]
    fingerprint: str
    counts: Mapping[str, Any]

    @classmethod
    def open(cls, path: Path) -> MedsDataset:
        """Read the description of the folder `path`; InputError where `build` has not made it."""
        description = path / meds.dataset_metadata_filepath
        try:
            found = json.loads(description.read_text(encoding="utf-8"))
            kinds = {kind: tuple(patterns) for kind, patterns in found["kinds"].items()}
            return cls(
                path=path,
                name=found["dataset_name"],
                simulated=found["simulated"],
                provides=frozenset(found["provides"]),
                kinds=kinds,
                fingerprint=found["fingerprint"],
                counts=found["counts"],
            )
        except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
            raise InputError(
                f"{description}: expected the description that ehrlab writes beside its events, found "
                f"{type(error).__name__}; read other MEDS folders through data=meds data.root={path}"
            ) from None

    def shards(self) -> list[Path]:
        """The event files in a fixed order; a subject is in one of them only."""
        return sorted((self.path / meds.data_subdirectory).glob("*.parquet"))

    def scan(self) -> pl.LazyFrame:
        """All events (columns of EVENT_SCHEMA), shard after shard; stream it where it may not fit in memory."""
        return pl.scan_parquet(self.shards(), schema=EVENT_SCHEMA)

    def splits(self) -> pl.DataFrame:
        """subject_id, split: every subject once, in the order of subject_id."""
        return pl.read_parquet(self.path / meds.subject_splits_filepath)

    def codes(self) -> pl.DataFrame:
        """code, description, parent_codes, ccs: every code that occurs, in alphabetical order."""
        return pl.read_parquet(self.path / meds.code_metadata_filepath)

    def is_kind(self, *kinds: str) -> pl.Expr:
        """Boolean expression on `code`: the event is of one of `kinds`. KeyError for a kind that is not mapped."""
        patterns = [f"(?:{pattern})" for kind in kinds for pattern in self.kinds[kind]]
        return pl.col("code").str.contains("|".join(patterns)) if patterns else pl.lit(False)


def fingerprint(source: Source, split: SplitSettings, simulated: bool) -> str:
    """Names what `build` would write; 32 hex digits."""
    return content_key(SCHEMA_VERSION, source.fingerprint(), asdict(split), simulated)


def build(source: Source, out: Path, split: SplitSettings, simulated: bool, bucket_bytes: int = BUCKET_BYTES) -> None:
    """Write `source` as a MEDS folder into the existing folder `out`; call it through `cache.build_once`.

    Memory is bounded whatever the size of the tables: each is streamed into buckets of subjects on disk, then bucket
    by bucket is sorted and written. The events and their order do not depend on the number of buckets.

    Errors: InputError for unreadable or malformed raw tables and for too few subjects.
    """
    num_buckets = max(1, -(-sum(expanded_size(p) for p in source.files()) // bucket_bytes))
    spill = out / "spill"
    rosters: list[str] = []
    names: list[str] = []
    dropped: dict[str, dict[str, int]] = {}
    for table in source.tables():
        _spill(table, spill / table.name, num_buckets)
        dropped[table.name] = _count_faults(table, spill / table.name)
        names.append(table.name)
        if table.is_roster:
            rosters.append(table.name)

    (out / meds.data_subdirectory).mkdir()
    subjects: list[pl.Series] = []
    codes: set[str] = set()
    num_events = 0
    width = len(str(num_buckets - 1))
    for bucket in range(num_buckets):
        parts = {name: _read_bucket(spill / name, bucket) for name in names}
        if rosters:
            roster = pl.concat([parts[name].select("subject_id") for name in rosters]).unique()
            for name in names:
                known = parts[name].join(roster, on="subject_id", how="semi", maintain_order="left")
                _add(dropped[name], "a subject that the patient table lacks", parts[name].height - known.height)
                parts[name] = known
        # Stable: events at one time keep the order of tables and raw rows, so the result is the same every time.
        events = pl.concat(parts.values()).sort("subject_id", "time", nulls_last=False, maintain_order=True)
        del parts
        if events.is_empty():
            continue
        _write(events, out / meds.data_subdirectory / f"{bucket:0{width}d}.parquet", _DATA)
        subjects.append(events["subject_id"].unique())
        codes.update(events["code"].unique())
        num_events += events.height
    shutil.rmtree(spill)

    roll = pl.concat(subjects).sort() if subjects else pl.Series("subject_id", [], dtype=pl.Int64)
    (out / "metadata").mkdir()
    _write(_splits(source, roll, split), out / meds.subject_splits_filepath, meds.SubjectSplitSchema.schema())
    _write(_code_metadata(source, sorted(codes)), out / meds.code_metadata_filepath, _CODES)
    description = {
        "dataset_name": source.name,
        "etl_name": "ehrlab",
        "etl_version": str(SCHEMA_VERSION),
        "meds_version": meds.__version__,
        "raw_source_id_columns": ["visit_id"],
        "other_extension_columns": ["sequence"],
        "simulated": simulated,
        "provides": sorted(source.provides),
        "kinds": source.kinds,
        "settings": source.settings(),
        "split": asdict(split),
        "fingerprint": fingerprint(source, split, simulated),
        "counts": {
            "subjects": len(roll),
            "events": num_events,
            "dropped": {name: reasons for name, reasons in dropped.items() if reasons},
        },
    }
    (out / meds.dataset_metadata_filepath).write_text(json.dumps(description, indent=1), encoding="utf-8")


def assign_splits(subjects: pl.Series, split: SplitSettings) -> pl.DataFrame:
    """subject_id, split for distinct `subjects`, in their order.

    Subjects are ranked by the BLAKE2b hash of (seed, subject_id) and cut at the shares, so the split depends on
    neither the order of the tables nor the task. InputError where a split would be empty.
    """
    key = split.seed.to_bytes(8, "little", signed=True)
    ids = subjects.to_list()
    ranked = sorted(ids, key=lambda i: hashlib.blake2b(i.to_bytes(8, "little", signed=True), key=key).digest())
    first = round(len(ids) * split.train)
    second = round(len(ids) * (split.train + split.tuning))
    sizes = (first, second - first, len(ids) - second)
    if min(sizes) == 0:
        raise InputError(
            f"{len(ids)} subjects are too few for the split {split.train:g}/{split.tuning:g}/"
            f"{1 - split.train - split.tuning:g}: train, tuning and held_out would hold {sizes}; each needs at least "
            "one. Use more data, or larger shares for the small splits."
        )
    names = [name for name, size in zip(SPLITS, sizes) for _ in range(size)]
    return pl.DataFrame({"subject_id": subjects}).join(
        pl.DataFrame({"subject_id": pl.Series(ranked, dtype=pl.Int64), "split": names}),
        on="subject_id",
        how="left",
        maintain_order="left",
    )


_DATA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("time", pa.timestamp("us")),
        pa.field("code", pa.string(), nullable=False),
        pa.field("numeric_value", pa.float32()),
        pa.field("text_value", pa.large_string()),
        pa.field("visit_id", pa.int64()),
        pa.field("sequence", pa.int32()),
    ]
)
_CODES = pa.schema(
    [
        pa.field("code", pa.string(), nullable=False),
        pa.field("description", pa.string()),
        pa.field("parent_codes", pa.list_(pa.string())),
        pa.field("ccs", pa.string()),
    ]
)


def _spill(table: EventTable, folder: Path, num_buckets: int) -> None:
    """Stream the table into `folder`/bucket=<b>/*.parquet, rows in their raw order within a bucket."""
    folder.mkdir(parents=True)
    # Not a library hash: those may change between versions, and with them the files of the shards.
    bucket = (pl.col("subject_id").abs() % num_buckets).fill_null(0)
    with reading(table.name, table.files):
        table.frame.sink_parquet(
            pl.PartitionBy(folder, key={"bucket": bucket}, include_key=False),
            compression="lz4",
            statistics=False,
            mkdir=True,
        )


def _count_faults(table: EventTable, folder: Path) -> dict[str, int]:
    """Rows to be dropped, by reason; InputError where a fault is more common than it may be."""
    files = sorted(folder.rglob("*.parquet"))
    if not files:
        return {}
    total = sum(pq.read_metadata(p).num_rows for p in files)
    found = pl.scan_parquet(files).select("fault").drop_nulls().group_by("fault").len().sort("fault").collect()
    counts: dict[str, int] = {}
    for number, count in found.iter_rows():
        fault = table.faults[number - 1]
        if fault.tolerance < 1 and count > fault.tolerance * total:
            allowed = f"at most {fault.tolerance:.0%} may" if fault.tolerance else "none may"
            where = ", ".join(str(p) for p in table.files[:3]) + (", ..." if len(table.files) > 3 else "")
            raise InputError(
                f"table {table.name} ({where}): {count} rows ({count / total:.2%}) have {fault.what}; {allowed}. "
                "Correct the rows, or export the table again."
            )
        _add(counts, fault.what, count)
    return counts


def _add(counts: dict[str, int], reason: str, number: int) -> None:
    if number:
        counts[reason] = counts.get(reason, 0) + number


def _read_bucket(folder: Path, bucket: int) -> pl.DataFrame:
    files = sorted((folder / f"bucket={bucket}").glob("*.parquet"))
    if not files:
        return pl.DataFrame(schema=EVENT_SCHEMA)
    return pl.scan_parquet(files, hive_partitioning=False).filter(pl.col("fault").is_null()).drop("fault").collect()


def _write(frame: pl.DataFrame, path: Path, schema: pa.Schema) -> None:
    # pyarrow, as MEDS wants `string` where polars would write `large_string`.
    pq.write_table(frame.select(schema.names).to_arrow().cast(schema), path, compression="zstd")


def _splits(source: Source, subjects: pl.Series, split: SplitSettings) -> pl.DataFrame:
    own = source.splits()
    if own is None:
        return assign_splits(subjects, split)
    return pl.DataFrame({"subject_id": subjects}).join(own, on="subject_id", how="left", maintain_order="left")


def _code_metadata(source: Source, codes: list[str]) -> pl.DataFrame:
    found = pl.DataFrame({"code": codes}, schema={"code": pl.String})
    own = source.code_metadata().unique("code", keep="first", maintain_order=True)
    of_item = own.rename({"code": "item", "description": "item_description"})
    return (
        found.with_columns(item=pl.col("code").str.extract("^((?:LAB|VITAL|INPUT)//[^/]+)//", 1))
        .join(icd_metadata(found["code"]), on="code", how="left", maintain_order="left")
        .join(own, on="code", how="left", maintain_order="left", suffix="_own")
        .join(of_item, on="item", how="left", maintain_order="left")
        .with_columns(description=pl.coalesce("description_own", "item_description", "description"))
        .select("code", "description", "parent_codes", "ccs")
    )
