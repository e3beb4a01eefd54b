"""A split's memory-mapped file as batches: padding is done for the whole batch at once, without a loop over samples."""

from __future__ import annotations

from collections.abc import Sequence
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
from ehrlab.data.tensorize import shard_schema


class SampleDataset(Dataset[Batch]):
    """The samples of one split. `dataset[[3, 0, 7]]` is a Batch of three; torch's loader asks for whole batches too.

    The columns are numpy views of the mapped file: worker processes and ranks share its pages, and nothing is read
    before it is used. Pickled, it is its path.

    Errors: InputError where the file is not what `tensorize` writes.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        self._open()

    def _open(self) -> None:
        try:
            reader = pa.ipc.open_file(pa.memory_map(str(self.path)))
            table = reader.get_batch(0)
        except (OSError, pa.ArrowInvalid) as error:
            raise self._corrupt(str(error).splitlines()[0]) from None
        num_demographics = (
            table.schema.field("demographics").type.list_size if "demographics" in table.schema.names else 0
        )
        if table.schema != shard_schema(num_demographics) or reader.num_record_batches != 1:
            raise self._corrupt("the columns are others")
        column = table.column
        visits = column("codes")
        self.subject_id: NDArray[np.int64] = column("subject_id").to_numpy()
        self.prediction_time: NDArray[np.int64] = column("prediction_time").cast(pa.int64()).to_numpy()
        """Microseconds since 1970."""
        num_samples = len(self.subject_id)
        self.labels: NDArray[np.float32] = column("labels").values.to_numpy().reshape(num_samples, -1)
        self.demographics: NDArray[np.float32] = column("demographics").values.to_numpy().reshape(num_samples, -1)
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
        return {"path": self.path}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.path = state["path"]
        self._open()

    def __len__(self) -> int:
        return len(self.subject_id)

    @property
    def num_visits(self) -> NDArray[np.int64]:
        """Visits of each sample, at least 1."""
        return np.diff(self._visit_offsets)

    def samples(self) -> pl.DataFrame:
        """subject_id, prediction_time, boolean_value, in the order of the file."""
        return pl.DataFrame(
            {
                "subject_id": self.subject_id,
                "prediction_time": pl.Series(self.prediction_time).cast(pl.Datetime("us")),
                "boolean_value": self.labels[:, 0] > 0.5,
            }
        )

    def __getitem__(self, indices: int | Sequence[int]) -> Batch:
        return self.__getitems__([indices] if isinstance(indices, int) else indices)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """The samples `indices`, padded to the batch's own longest patient (V) and widest visit (C, at least 1)."""
        rows = np.asarray(indices, dtype=np.int64)
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
        return Batch(
            subject_id=torch.from_numpy(self.subject_id[rows]),
            prediction_time=torch.from_numpy(self.prediction_time[rows]),
            visits=Visits(
                codes=torch.from_numpy(codes), days_before_last=torch.from_numpy(days), mask=torch.from_numpy(mask)
            ),
            demographics=torch.from_numpy(self.demographics[rows]),
            labels=torch.from_numpy(self.labels[rows]),
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
