"""Notes of a sample's admission, each as the vector that a frozen language model made of it.

The last note of each category is taken, as Yang & Wu (2021) and MEDHMP do. Every note of an admission is encoded, as
another sample may see it as the last; equal texts are encoded once, whatever the data set (vectors.py).

    notes.parquet   a row per note and admission, in the order of the events: subject_id, visit_id, time, code, vector
    vectors.npy     float32 [distinct texts, E]; `vector` above is a row of it
    notes.json      encoder, E, numbers of notes and of distinct texts

A selection is `offsets` and `vectors` (.npy): sample i has the rows vectors[offsets[i] .. offsets[i + 1]], oldest
first. A sample may see no note at all: its row is padding.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from ehrlab.core import language
from ehrlab.core.batch import Notes
from ehrlab.core.errors import InputError
from ehrlab.core.spec import NoteSpec
from ehrlab.data.cache import content_key
from ehrlab.data.cohorts.task import as_strings
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import Modality, Reader
from ehrlab.data.modalities.note_events import note_codes, notes_by_file, offsets_of, seen
from ehrlab.data.modalities.vectors import Vectors
from ehrlab.nn.encode import PRECISIONS, load_encoder

log = logging.getLogger(__name__)

_LEAST_TOKENS = 4
_NOTES, _VECTORS, _DESCRIPTION = "notes.parquet", "vectors.npy", "notes.json"


@dataclass(frozen=True)
class NoteModality(Modality):
    """Settings of Batch.notes.

    encoder     "minilm", a folder or a hub name (core.language): BERT's kind, a causal model, or T5 up to its encoder
    max_notes   of more categories, those with the latest notes
    max_tokens  of a note, special tokens included; the first ones are kept
    categories  what follows NOTE// in a code, such as DISCHARGE SUMMARY; none = all
    batch_size  notes of max_tokens that are encoded at once; of shorter ones more
    precision   of the encoder: fp32, or bf16 on a processor that has it
    """

    name: ClassVar[str] = "notes"
    version: ClassVar[int] = 1
    computed: ClassVar[frozenset[str]] = frozenset({_VECTORS})

    encoder: str = "minilm"
    max_notes: int = 4
    max_tokens: int = 256
    categories: tuple[str, ...] = ()
    batch_size: int = 32
    precision: str = "fp32"

    def __post_init__(self) -> None:
        object.__setattr__(self, "categories", as_strings(self.categories, "notes.categories"))
        for name, least in (("max_notes", 1), ("max_tokens", _LEAST_TOKENS), ("batch_size", 1)):
            if getattr(self, name) < least:
                raise InputError(f"notes.{name}: expected at least {least}, found {getattr(self, name)}")
        if self.precision not in PRECISIONS:
            raise InputError(f"notes.precision: expected one of {', '.join(PRECISIONS)}, found '{self.precision}'")
        if self.encoder == language.TINY:
            raise InputError(
                "notes.encoder: expected a pretrained encoder, found 'tiny': a random one says nothing when it is "
                f"frozen. Choose one of {', '.join(language.PACKAGES)}, a folder, or a hub name."
            )

    def fingerprint(self) -> Any:
        return language.fingerprint(self.encoder)

    def build(self, meds: MedsDataset, out: Path) -> None:
        """Errors: InputError where the data hold no notes, or the encoder is not on disk."""
        codes = note_codes(meds, self.categories, "notes")
        found = pl.concat([notes.drop("text") for notes in notes_by_file(meds, codes)])
        if found.is_empty():
            raise InputError(
                "notes: expected notes that belong to an admission (by visit_id, or by their time), found none with "
                "words in it. Correct the table of notes, or choose a model that does not require them."
            )
        key = content_key(self.version, self.fingerprint(), self.max_tokens, self.precision)
        vectors = Vectors(out.parent / f"encoded-{key[:16]}")
        distinct = found["key"].unique().sort()
        self._encode(meds, codes, vectors, distinct)
        dim = vectors.write(distinct, out / _VECTORS)
        rows = pl.DataFrame({"key": distinct}).with_row_index("vector")
        found.join(rows, on="key", maintain_order="left").drop("key").write_parquet(out / _NOTES)
        description = {"encoder": self.encoder, "dim": dim, "notes": found.height, "texts": len(distinct)}
        (out / _DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")

    def _encode(self, meds: MedsDataset, codes: Sequence[str], vectors: Vectors, distinct: pl.Series) -> None:
        """Give every one of the distinct notes a vector; one file of events is in memory at a time."""
        missing = vectors.missing(distinct)
        log.info("notes: %s texts, of which %s are to be encoded", f"{len(distinct):,}", f"{len(missing):,}")
        if missing.is_empty():
            return
        encoder = load_encoder(
            self.encoder, max_tokens=self.max_tokens, batch_size=self.batch_size, precision=self.precision
        )
        columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        with Progress(*columns, console=Console(stderr=True)) as progress:
            task = progress.add_task("encoding notes", total=len(missing))

            def encode(texts: Sequence[str]) -> NDArray[np.float32]:
                found: NDArray[np.float32] = encoder.encode(texts, partial(progress.advance, task)).numpy()
                return found

            for notes in notes_by_file(meds, codes):
                vectors.add(notes.select("key", "text"), encode)

    def select(self, meds: MedsDataset, store: Path, samples: pl.DataFrame, out: Path) -> None:
        notes = pl.scan_parquet(store / _NOTES).with_row_index("row")
        of_category = (
            seen(notes, samples)
            .sort("sample", "time", "row")
            .group_by("sample", "code", maintain_order=True)
            .agg(pl.col("time", "row", "vector").last())
        )
        found = (
            of_category.sort("sample", "time", "row")
            .group_by("sample", maintain_order=True)
            .agg(pl.col("vector").tail(self.max_notes))
            .explode("vector")
            .collect()
        )
        np.save(out / "offsets.npy", offsets_of(found["sample"], samples.height))
        np.save(out / _VECTORS, found["vector"].cast(pl.UInt32).to_numpy())

    def reader(self, store: Path, selection: Path) -> Reader:
        return NoteReader(store, selection)

    def spec(self, store: Path) -> NoteSpec:
        description = json.loads((store / _DESCRIPTION).read_text(encoding="utf-8"))
        return NoteSpec(dim=description["dim"], max_notes=self.max_notes, encoder=description["encoder"])


class NoteReader:
    """Batch.notes of the rows of a selection."""

    def __init__(self, store: Path, selection: Path) -> None:
        self._vectors = np.load(store / _VECTORS, mmap_mode="r")
        self._offsets, self._chosen = (np.load(selection / name, mmap_mode="r") for name in ("offsets.npy", _VECTORS))

    def __call__(self, rows: NDArray[np.int64]) -> Notes:
        begin, end = np.asarray(self._offsets[rows]), np.asarray(self._offsets[np.asarray(rows) + 1])
        place = np.arange(max(1, (end - begin).max(initial=0)))
        mask = place < (end - begin)[:, None]
        vectors = np.zeros((*mask.shape, self._vectors.shape[1]), dtype=np.float32)
        vectors[mask] = self._vectors[self._chosen[(begin[:, None] + place)[mask]]]
        return Notes(torch.from_numpy(vectors), torch.from_numpy(mask))
