"""Integers for text identifiers, the same on every machine and with every version of every library."""

from __future__ import annotations

import numpy as np
import polars as pl
import pyarrow as pa


def hash_ids(ids: pl.Expr) -> pl.Expr:
    """Text to Int64 >= 0: the upper 63 bits of the 64-bit FNV-1a hash of its UTF-8 bytes; null stays null.

    polars' own hash may change with its version, which would rename every patient.
    """
    return ids.map_batches(_fnv1a, return_dtype=pl.Int64, is_elementwise=True)


def _fnv1a(ids: pl.Series) -> pl.Series:
    array = pa.array(ids.to_arrow()).cast(pa.large_binary())
    offsets = np.frombuffer(array.buffers()[1], dtype=np.int64)[array.offset : array.offset + len(array) + 1]
    data = array.buffers()[2]
    octets = np.frombuffer(data, dtype=np.uint8) if data else np.zeros(0, dtype=np.uint8)
    lengths = np.diff(offsets)
    digest = np.full(len(array), 0xCBF29CE484222325, dtype=np.uint64)
    live = np.arange(len(array))
    for place in range(int(lengths.max(initial=0))):
        live = live[lengths[live] > place]
        digest[live] = (digest[live] ^ octets[offsets[live] + place]) * np.uint64(0x100000001B3)
    hashed = pl.Series(ids.name, (digest >> np.uint64(1)).astype(np.int64))
    return hashed.set(ids.is_null(), None) if ids.null_count() else hashed
