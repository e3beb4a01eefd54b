"""A split's memory-mapped file as batches: padding is done for the whole batch at once, without a loop over samples."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.errors import InputError
from ehrlab.data.cache import folder_digest
from ehrlab.data.cohorts.task import VALUES
from ehrlab.data.modalities.base import Modality, Reader
from ehrlab.data.tensorize import shard_schema


@dataclass(frozen=True)
class Selected:
    """A modality of the samples of one split: where its store and its selection lie."""

    modality: Modality
    store: Path
    selection: Path

    def open(self) -> Reader:
        return self.modality.reader(self.store, self.selection)

    def content(self) -> list[Any]:
        """What decides what the samples hold: the bytes of store and selection, not the data set that they were made
        from; of what a network computed, its name and settings. JSON-able."""
        computed = self.modality.computed
        settings = {k: v for k, v in asdict(self.modality).items() if k != "encoder"}  # type: ignore[call-overload]
        how = [self.modality.fingerprint(), settings] if computed else []
        return [folder_digest(self.store, computed), folder_digest(self.selection), *how]


class SampleDataset(Dataset[Batch]):
    """The samples of one split. `dataset[[3, 0, 7]]` is a Batch of three; torch's loader asks for whole batches too.

    The columns are numpy views of the mapped file: worker processes and ranks share its pages, and nothing is read
    before it is used. Pickled, it is its paths.

    selected  what the samples have beside visits and demographics
    visits    False: they have no visits
    rows      those of the file that are served, ascending; None = all

    Errors: InputError where the file is not what `tensorize` writes.
    """

    def __init__(
        self,
        path: Path,
        selected: Sequence[Selected] = (),
        *,
        visits: bool = True,
        rows: NDArray[np.int64] | None = None,
    ) -> None:
        self._state: dict[str, Any] = {
            "path": Path(path), "selected": tuple(selected), "has_visits": visits, "rows": rows
        }  # fmt: skip
        self.__setstate__(self._state)

    def _open(self) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            table = reader.get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._corrupt(str(error).splitlines()[0]) from None
        sizes = (
            table.schema.field(name).type.list_size if name in table.schema.names else 0
            for name in ("demographics", "labels")
        )
        if table.schema != shard_schema(*sizes) or reader.num_record_batches != 1:
            raise self._corrupt("the columns are others")
        column = table.column
        visits = column("codes")
        num_labels = table.schema.field("labels").type.list_size
        self._rows = np.arange(table.num_rows) if self.rows is None else self.rows
        chosen = slice(None) if self.rows is None else self.rows  # a slice copies nothing
        self.subject_id: NDArray[np.int64] = column("subject_id").to_numpy()[chosen]
        self.prediction_time: NDArray[np.int64] = column("prediction_time").cast(pa.int64()).to_numpy()[chosen]
        """Microseconds since 1970."""
        labels = column("labels").values.to_numpy().reshape(table.num_rows, num_labels)
        self.labels: NDArray[np.float32] = labels[chosen]
        demographics = column("demographics").values.to_numpy().reshape(table.num_rows, -1)
        self.demographics: NDArray[np.float32] = demographics[chosen]
        self._visit_offsets: NDArray[np.int64] = visits.offsets.to_numpy()
        self._code_offsets: NDArray[np.int64] = visits.values.offsets.to_numpy()
        self._codes: NDArray[np.int32] = visits.values.values.to_numpy()
        self._days_before_last: NDArray[np.float32] = column("days_before_last").values.to_numpy()

    def _corrupt(self, found: str) -> InputError:
        return InputError(
            f"{self.path}: expected an Arrow file of samples, found a damaged one ({found}). "
            f"Delete the folder {self.path.parent} to build it again."
        )

    def __getstate__(self) -> dict[str, Any]:
        return self._state

    def __setstate__(self, state: dict[str, Any]) -> None:
        self._state = state
        self.path: Path = state["path"]
        self.has_visits: bool = state["has_visits"]
        self.rows: NDArray[np.int64] | None = state["rows"]
        self._open()
        self._readers = {one.modality.name: one.open() for one in state["selected"]}

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def lengths(self) -> NDArray[np.int64]:
        """By which samples are put together in batches: tokens of text where they have it, else visits; else equal."""
        if (text := self._readers.get("text")) is not None:
            return np.maximum(text.lengths()[self._rows], 1)
        return np.diff(self._visit_offsets)[self._rows] if self.has_visits else np.ones(len(self), dtype=np.int64)

    def samples(self) -> pl.DataFrame:
        """subject_id, prediction_time, boolean_value, in the order of the file; of several labels boolean_values."""
        keys = {
            "subject_id": self.subject_id,
            "prediction_time": pl.Series(self.prediction_time).cast(pl.Datetime("us")),
        }
        num_labels = self.labels.shape[1]
        if num_labels == 1:
            return pl.DataFrame({**keys, "boolean_value": self.labels[:, 0] > 0.5})
        return pl.DataFrame({**keys, VALUES: (self.labels > 0.5).tolist()}) if num_labels else pl.DataFrame(keys)

    def __getitem__(self, indices: int | Sequence[int]) -> Batch:
        return self.__getitems__([indices] if isinstance(indices, int) else indices)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The samples `indices`, padded to the batch's own longest patient (V) and widest visit (C, at least 1)."""
        chosen = np.asarray(indices, dtype=np.int64)
        rows = self._rows[chosen]
        groups: dict[str, Any] = {name: reader(rows) for name, reader in self._readers.items()}
        if self.has_visits:
            groups["visits"] = self._visits(rows)
        if self.labels.shape[1]:
            groups["labels"] = torch.from_numpy(self.labels[chosen])
        return Batch(
            subject_id=torch.from_numpy(self.subject_id[chosen]),
            prediction_time=torch.from_numpy(self.prediction_time[chosen]),
            demographics=torch.from_numpy(self.demographics[chosen]),
            **groups,
        )

    def _visits(self, rows: NDArray[np.int64]) -> Visits:
        first_visit = self._visit_offsets[rows]
        num_visits = self._visit_offsets[rows + 1] - first_visit
        visit, sample, place = _ragged(first_visit, num_visits)
        shape = len(rows), int(num_visits.max())
        mask = np.arange(shape[1]) < num_visits[:, None]
        days = np.zeros(shape, dtype=np.float32)
        days[sample, place] = self._days_before_last[visit]

        first_code = self._code_offsets[visit]
        num_codes = self._code_offsets[visit + 1] - first_code
        source, of_visit, position = _ragged(first_code, num_codes)
        codes = np.zeros((*shape, max(1, int(num_codes.max()))), dtype=np.int64)
        codes[sample[of_visit], place[of_visit], position] = self._codes[source]
        return Visits(
            codes=torch.from_numpy(codes), days_before_last=torch.from_numpy(days), mask=torch.from_numpy(mask)
        )


def as_it_is(batch: Any) -> Batch:
    """The loader's collate function: `SampleDataset.__getitems__` gives a padded batch already."""
    return batch


def _ragged(
    starts: NDArray[np.int64], lengths: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """The elements of the ranges [start, start + length): where each lies, of which range, at which place within it.

    >>> [a.tolist() for a in _ragged(np.array([7, 2]), np.array([2, 3]))]
    [[7, 8, 2, 3, 4], [0, 0, 1, 1, 1], [0, 1, 0, 1, 2]]
    """
    of = np.repeat(np.arange(len(starts)), lengths)
    place = np.arange(len(of)) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    return starts[of] + place, of, place
