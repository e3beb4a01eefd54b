"""A folder of simulated raw tables: CSV files that grow shard by shard beside the mark of what they are."""

from __future__ import annotations

import contextlib
import gzip
import json
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import TracebackType
from typing import IO, Literal, cast

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.core.errors import InputError

MARK = "SIMULATED.json"


def _package_version() -> str:
    try:
        return version("ehrlab")
    except PackageNotFoundError:  # a source tree on the path
        return "not installed"


Value = str | int | float | bool
"""A setting that the mark of a folder holds."""

Column = pl.Series | NDArray[np.generic] | str | int | None
"""A column of a table; a single value stands in every row, None is an empty cell."""


def frame(columns: Mapping[str, Column]) -> pl.DataFrame:
    """The columns in their order; at least one is not a single value."""
    rows = pl.DataFrame({name: v for name, v in columns.items() if isinstance(v, (pl.Series, np.ndarray))})
    return rows.select(name if name in rows.columns else pl.lit(v).alias(name) for name, v in columns.items())


def check_modalities(modalities: Sequence[str], known: Sequence[str]) -> tuple[str, ...]:
    """The chosen ones in the order of `known`, whose first is always written. InputError for any other name."""
    unknown = sorted(set(modalities) - set(known))
    if unknown:
        raise InputError(
            f"simulator: unknown modality '{unknown[0]}' for this layout: expected some of {', '.join(known)}"
        )
    return tuple(name for name in known if name in modalities or name == known[0])


class RawFolder:
    """Opens `root` (new or empty), writes the mark first, and then appends frames to its tables.

    The mark comes first so that no table ever lies in a folder without it, even when writing is cut short.
    """

    def __init__(self, root: Path, description: Mapping[str, Value], *, compress: bool) -> None:
        if root.exists() and (not root.is_dir() or any(root.iterdir())):
            raise InputError(
                f"simulator: expected {root} to be new or empty, so that simulated and other tables cannot mix; "
                "found files; name another folder or empty this one"
            )
        root.mkdir(parents=True, exist_ok=True)
        self.root, self._compress = root, compress
        self._files: dict[str, IO[bytes]] = {}
        self._stack = contextlib.ExitStack()
        mark = {
            "statement": "SIMULATED: every record in this folder was made by a program; no real patient is in it.",
            "package_version": _package_version(),
            **description,
        }
        (root / MARK).write_text(json.dumps(mark, indent=2) + "\n", encoding="utf-8")

    def append(self, table: str, rows: pl.DataFrame, quote_style: Literal["never", "non_numeric"]) -> None:
        """Adds rows; the first call for a table writes its header, even when the frame holds no row."""
        is_new = table not in self._files
        if is_new:
            self._files[table] = self._stack.enter_context(self._open(table))
        rows.write_csv(
            self._files[table],
            include_header=is_new,
            quote_style=quote_style,
            datetime_format="%Y-%m-%d %H:%M:%S",
            batch_size=8192,
        )

    def _open(self, table: str) -> IO[bytes]:
        path = self.root / f"{table}.csv"
        if self._compress:
            # Level 1: level 9 would take longer than the simulation. No time stamp: the same seed gives the same bytes.
            return cast(IO[bytes], gzip.GzipFile(path.with_name(f"{path.name}.gz"), "wb", compresslevel=1, mtime=0))
        return path.open("wb")

    def __enter__(self) -> RawFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()
