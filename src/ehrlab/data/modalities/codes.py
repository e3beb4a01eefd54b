"""The diagnoses and drugs of an admission as two sets (MEDHMP, arXiv 2310.07871: 7,686 ICD codes, 1,701 drugs).

A set is known when its admission is over, since diagnoses are coded then; until then, and without an admission, both
are empty. What is dated after the discharge belongs to no set, although it may name the admission.

Files of the store:

    vocabulary.parquet   kind, id, code, description, num_admissions (training admissions that hold it); ids of a kind
                         count from 1, the commonest code first; 0 is padding
    admissions.parquet   subject_id, visit_id; rows are those of the offsets
    <kind>.npy           int32 ids, ascending within an admission
    <kind>_offsets.npy   [admission + 1] int64

and of a selection admission.npy: [sample] int64, a row of admissions.parquet, or -1 = empty sets.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ehrlab.core.batch import CodeSets
from ehrlab.core.errors import InputError
from ehrlab.core.spec import CodeSetSpec
from ehrlab.data.cache import content_key
from ehrlab.data.meds import SPLITS, MedsDataset
from ehrlab.data.modalities.base import Modality, admissions_if_any

KINDS = {"diagnosis": "diagnoses", "drug": "drugs"}
"""Kind of event -> member of Batch.codes."""

VOCABULARY, ADMITTED = "vocabulary.parquet", "admissions.parquet"
_OPEN = -1


@dataclass(frozen=True)
class CodeSetModality(Modality):
    """Batch.codes.

    min_count   codes in fewer training admissions are unknown: they are left out
    vocabulary  a store of another data set, whose vocabulary is taken instead of a fitted one
    """

    name: ClassVar[str] = "codes"
    version: ClassVar[int] = 1

    min_count: int = 1
    vocabulary: str | None = None

    def __post_init__(self) -> None:
        if self.min_count < 1:
            raise InputError(f"codes.min_count: expected at least 1, found {self.min_count}")

    def build(self, meds: MedsDataset, out: Path) -> None:
        known = admissions_if_any(meds).with_row_index("admission")
        # A vocabulary that was fitted elsewhere is of use without admissions, too: visits can be read by it.
        if known.is_empty() and self.vocabulary is None:
            raise InputError(
                "codes: expected admissions to fit a vocabulary on, found none in the data. Give the vocabulary of "
                "data that have them, codes.vocabulary=FOLDER: its run's provenance.json names it under stores."
            )
        codes = (
            meds.codes()
            .select("code", "description", kind=_kind(meds))
            .drop_nulls("kind")
            .sort("code")
            .with_row_index("code_id")
        )
        # Eight bytes for each code of an admission: the one thing here that grows with the data.
        pairs = pl.concat([_pairs(path, codes, known) for path in meds.shards()])
        vocabulary = self._fit(meds, codes, pairs, known) if self.vocabulary is None else _read(self.vocabulary)
        numbered = codes.drop("description").join(vocabulary.select("kind", "code", "id"), on=["kind", "code"])
        needed = KINDS if known.height else ("diagnosis",)
        if missing := [kind for kind in needed if not (numbered["kind"] == kind).any()]:
            raise InputError(
                f"codes: expected a known {missing[0]} in the data, found none. Read diagnoses and drugs "
                "(data.source.tables), lower codes.min_count, or take a vocabulary of the same codes."
            )
        for kind, member in KINDS.items():
            of_kind = pairs.join(numbered.filter(kind=kind), on="code_id").sort("admission", "id")
            counts = np.bincount(of_kind["admission"].to_numpy(), minlength=known.height)
            np.save(out / f"{member}.npy", of_kind["id"].to_numpy().astype(np.int32))
            np.save(out / f"{member}_offsets.npy", np.concatenate([[0], np.cumsum(counts, dtype=np.int64)]))
        known.select("subject_id", "visit_id").write_parquet(out / ADMITTED)
        vocabulary.write_parquet(out / VOCABULARY)

    def select(self, meds: MedsDataset, store: Path, samples: pl.DataFrame, out: Path) -> None:
        known = pl.read_parquet(store / ADMITTED).with_row_index("admission")
        joined = samples.join(known, on=["subject_id", "visit_id"], how="left", maintain_order="left")
        admission = pl.when("over").then("admission").cast(pl.Int64).fill_null(_OPEN)
        np.save(out / "admission.npy", joined.select(admission.alias("admission"))["admission"].to_numpy())

    def reader(self, store: Path, selection: Path) -> CodeSetReader:
        return CodeSetReader(store, selection)

    def spec(self, store: Path) -> CodeSetSpec:
        return self.spec_beside(store, ())

    def spec_beside(self, store: Path, visit_codes: Sequence[str]) -> CodeSetSpec:
        vocabulary = pl.read_parquet(store / VOCABULARY)
        counts = {kind: int((vocabulary["kind"] == kind).sum()) for kind in KINDS}
        ids = dict(vocabulary.filter(kind="diagnosis").select("code", "id").iter_rows())
        return CodeSetSpec(
            num_diagnoses=1 + counts["diagnosis"],
            num_drugs=1 + counts["drug"],
            of_visit_codes=tuple(ids.get(code, 0) for code in visit_codes),
            content=content_key(vocabulary.select("kind", "id", "code").rows()),
        )

    def fingerprint(self) -> str | None:
        if self.vocabulary is None:
            return None
        _read(self.vocabulary)
        return hashlib.sha256((Path(self.vocabulary) / VOCABULARY).read_bytes()).hexdigest()

    def _fit(self, meds: MedsDataset, codes: pl.DataFrame, pairs: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
        train = meds.splits().filter(pl.col("split") == SPLITS[0])
        in_train = known.join(train, on="subject_id", how="semi").select("admission")
        return (
            pairs.join(in_train, on="admission", how="semi")
            .group_by("code_id")
            .agg(num_admissions=pl.len())
            .filter(pl.col("num_admissions") >= self.min_count)
            .join(codes, on="code_id")
            .sort(["kind", "num_admissions", "code"], descending=[False, True, False])
            .select(
                "kind", pl.int_range(1, pl.len() + 1).over("kind").alias("id"), "code", "description", "num_admissions"
            )
        )


class CodeSetReader:
    """The sets of the samples `rows`: diagnoses B C and drugs B G, each as wide as the largest set, at least 1."""

    def __init__(self, store: Path, selection: Path) -> None:
        self._sets = {
            member: tuple(np.load(store / f"{name}.npy", mmap_mode="r") for name in (member, f"{member}_offsets"))
            for member in KINDS.values()
        }
        self._admission = np.load(selection / "admission.npy", mmap_mode="r")

    def __call__(self, rows: NDArray[np.int64]) -> CodeSets:
        admission = self._admission[rows]
        padded = {}
        for member, (ids, offsets) in self._sets.items():
            first = offsets[admission]  # of row -1: some admission's, of which nothing is taken
            count = np.where(admission == _OPEN, 0, offsets[admission + 1] - first)
            place = np.arange(max(1, int(count.max(initial=0))))
            mask = place < count[:, None]
            found = np.zeros(mask.shape, dtype=np.int64)
            found[mask] = ids[(first[:, None] + place)[mask]]
            padded[member] = torch.from_numpy(found)
        return CodeSets(**padded)


def _kind(meds: MedsDataset) -> pl.Expr:
    return pl.coalesce(pl.lit(None, dtype=pl.String), *(pl.when(meds.is_kind(k)).then(pl.lit(k)) for k in KINDS))


def _pairs(path: Path, codes: pl.DataFrame, known: pl.DataFrame) -> pl.DataFrame:
    """admission, code_id, each pair once: the codes of one file of events by admission, until its end.

    An event without a visit_id belongs to the admission that it lies in.
    """
    events = (
        pl.scan_parquet(path)
        .filter(pl.col("time").is_not_null())
        .join(codes.lazy().select("code", "code_id"), on="code")
        .select("subject_id", "visit_id", "time", "code_id")
        .collect()
    )
    by_name = events.drop_nulls("visit_id").join(known, on=["subject_id", "visit_id"])
    by_time = (
        events.filter(pl.col("visit_id").is_null())
        .sort("time")
        .join_asof(
            known.drop("visit_id").sort("admitted"),
            left_on="time",
            right_on="admitted",
            by="subject_id",
            strategy="backward",
            check_sortedness=False,
        )
    )
    return (
        pl.concat([part.select("admission", "code_id", "time", "discharged") for part in (by_name, by_time)])
        .filter(pl.col("time") <= pl.col("discharged"))
        .select("admission", "code_id")
        .unique()
    )


def _read(store: str) -> pl.DataFrame:
    """The vocabulary of a store; InputError where `store` is none."""
    try:
        found = pl.read_parquet(Path(store) / VOCABULARY)
        return found.select("kind", "id", "code", "description", "num_admissions")
    except (OSError, pl.exceptions.PolarsError) as error:
        raise InputError(
            f"codes.vocabulary={store}: expected the folder of a store of code sets, which has {VOCABULARY}, "
            f"found none ({type(error).__name__}). Name a folder below <cache>/stores of a run on the other data."
        ) from None
