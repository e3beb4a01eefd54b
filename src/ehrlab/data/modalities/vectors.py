"""Vectors of texts on disk, by the hash of the text: what was encoded once is never encoded again.

A folder per encoder, beside the stores and shared by all of them: <n>.arrow, each with the columns key and vector of
some CHUNK texts, written whole or not at all. An interrupted run therefore loses its last chunk only. It may be deleted
at any time; the stores have copies of what they need.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.files import locked, replacing

CHUNK = 1024
"""Texts of a chunk."""


class Vectors:
    """The folder of one encoder. `encode` gives the vectors of texts, [N, E] float32, in their order."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def missing(self, keys: pl.Series) -> pl.Series:
        """Those of `keys` without a vector, once each, in their order."""
        distinct = pl.DataFrame({"key": keys}).unique(maintain_order=True)
        return distinct.join(self._keys(), on="key", how="anti", maintain_order="left")["key"]

    def add(
        self, texts: pl.DataFrame, encode: Callable[[Sequence[str]], NDArray[np.float32]], chunk: int = CHUNK
    ) -> None:
        """Encode those of `texts` (key, text) that have no vector yet, chunk by chunk, the longest first.

        A text's vector hangs a little on those beside it, by rounding. The order makes a run that was interrupted form
        the same chunks as one that was not: the same bits come out.
        """
        with locked(self.folder.with_name(self.folder.name + ".lock"), f"the notes of {self.folder}"):
            lacking = pl.DataFrame({"key": self.missing(texts["key"])})
            todo = texts.unique("key").join(lacking, on="key").with_columns(size=pl.col("text").str.len_bytes())
            todo = todo.sort(["size", "key"], descending=[True, False])
            number = max((int(path.stem) for path in self._chunks()), default=-1)
            for i, part in enumerate(todo.iter_slices(chunk), number + 1):
                vectors = encode(part["text"].to_list())
                with replacing(self.folder / f"{i:06d}.arrow") as path:
                    pl.DataFrame({"key": part["key"], "vector": vectors}).write_ipc(path)

    def write(self, keys: pl.Series, path: Path) -> int:
        """The vectors of `keys`, which are distinct and all there, row by row as a .npy file; returns E."""
        rows = pl.DataFrame({"key": keys}).with_row_index("row")
        out: np.memmap | None = None
        for file in self._chunks():
            found = pl.read_ipc(file).join(rows, on="key")
            vectors = found["vector"].to_numpy()
            if out is None:
                shape = (len(keys), vectors.shape[1])
                out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
            out[found["row"].to_numpy()] = vectors
        assert out is not None, "no vectors"
        out.flush()
        return int(out.shape[1])

    def _chunks(self) -> list[Path]:
        return sorted(self.folder.glob("[0-9]*.arrow"))

    def _keys(self) -> pl.DataFrame:
        none = pl.LazyFrame(schema={"key": pl.String})
        return pl.concat([none, *(pl.scan_ipc(file).select("key") for file in self._chunks())]).collect()
