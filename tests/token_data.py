"""Random records of tokens behind the interface of prepared data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from ehrlab.data.clinical import ClinicalData
from ehrlab.data.meds import SPLITS
from ehrlab.data.tokens import LISTS, SEQUENCE_SCHEMA, TokenDataset
from sequences import GENERATOR_SPEC, random_sequences, tokens_of
from stub_data import StubData, stub_data


@dataclass(frozen=True)
class TokenStub(StubData):
    """Records as TokenDataset serves them, of a task whose targets are those of `spec`."""

    token_sets: Mapping[str, TokenDataset]

    @property
    def _datasets(self) -> dict[str, Any]:
        return {"tokens": dict(self.token_sets)}

    loader = ClinicalData.loader


def token_stub(folder: Path, sizes: Sequence[int]) -> TokenStub:
    """So many records of 1 to 4 visits in each of SPLITS, written to `folder`."""
    return TokenStub(
        **{**vars(stub_data()), "spec": GENERATOR_SPEC, "provides": frozenset({"tokens"})},
        token_sets={
            split: _dataset(folder / f"{split}.arrow", size, seed)
            for seed, (split, size) in enumerate(zip(SPLITS, sizes))
        },
    )


def _dataset(path: Path, size: int, seed: int) -> TokenDataset:
    tokens = tokens_of(random_sequences([1 + i % 4 for i in range(size)], seed=seed))
    columns: dict[str, Any] = {"subject_id": range(1000 * seed, 1000 * seed + size), "end_time": range(size)}
    columns |= {name: [row[real].tolist() for row, real in zip(getattr(tokens, name), tokens.mask)] for name in LISTS}
    batch = pa.RecordBatch.from_arrays(
        [pa.array(columns[field.name], field.type) for field in SEQUENCE_SCHEMA], schema=SEQUENCE_SCHEMA
    )
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SEQUENCE_SCHEMA) as writer:
        writer.write_batch(batch)
    return TokenDataset(path)
