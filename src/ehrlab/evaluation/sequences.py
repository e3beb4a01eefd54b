"""Sequences of tokens as the evaluation of generators reads them, and the file of a run's completions.

A token is an id of `core.spec.TokenSpec`: only ids from `first_code` on are codes. What follows <eos> is no part of a
sequence, nor are <bos> and <pad>.

Legend of shape letters: `n` sequences, `V` codes of the vocabulary, `R` resamples.
"""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from functools import cached_property
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray
from scipy import sparse

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.evaluation.metrics import BoolArray, FloatArray

IntArray = NDArray[np.int64]

HELD_OUT, TRAIN = "held_out", "train"
COMPLETIONS = ("subject_id", "split", "prompt", "truth", "generated", "target_probability")
_LISTS = ("prompt", "truth", "generated")
# A predictions table names samples by subject and time; here a subject is one sample, whatever the time.
_ANY_TIME = datetime(1970, 1, 1)
_BLOCK_ELEMENTS = 2**18  # weights of one block of resamples: 2 MiB


@dataclass(frozen=True)
class Sequences:
    """`n` sequences of one vocabulary. Patient-level rows: they never leave the process.

    subjects  [n] ascending, each once
    rows      sequence of each token, ascending
    tokens    id of each token, in the sequences' own order; no <bos>, <pad>, <eos>
    """

    subjects: IntArray
    rows: IntArray
    tokens: IntArray
    spec: TokenSpec

    @classmethod
    def of(cls, table: pl.DataFrame, spec: TokenSpec, *columns: str, origin: str = "sequences") -> "Sequences":
        """The lists of `columns`, one after the other, of a table with subject_id.

        Raises InputError, without a value of any row, for missing columns, nulls, repeated subjects and ids that the
        vocabulary does not have.
        """
        if missing := [name for name in ("subject_id", *columns) if name not in table.columns]:
            raise InputError(f"{origin}: expected the columns subject_id, {', '.join(columns)}; {missing} are missing")
        if not table["subject_id"].dtype.is_integer():
            raise InputError(f"{origin}: column subject_id should hold an integer, found {table['subject_id'].dtype}")
        if table.is_empty():
            raise InputError(f"{origin}: expected at least one sequence, found none")
        for name in columns:
            dtype = table[name].dtype
            if not (isinstance(dtype, pl.List) and dtype.inner is not None and dtype.inner.is_integer()):
                raise InputError(f"{origin}: column {name} should hold lists of token ids, found {dtype}")
            if nulls := table[name].null_count():
                raise InputError(f"{origin}: column {name} has no value in {nulls} of {len(table)} rows")
        if repeated := int(table["subject_id"].is_duplicated().sum()):
            raise InputError(f"{origin}: each subject may occur once, but {repeated} of {len(table)} rows repeat one")
        table = table.sort("subject_id")
        for name in columns:
            known = table.select(
                pl.col(name).list.eval((pl.element() >= 0) & (pl.element() < spec.num_tokens)).list.all()
            ).to_series()
            if strangers := len(table) - int(known.fill_null(False).sum()):
                raise InputError(
                    f"{origin}: column {name} should hold ids in 0 .. {spec.num_tokens - 1}, but {strangers} of "
                    f"{len(table)} lists hold others; they were made with another vocabulary"
                )
        lists = table.select(pl.concat_list([pl.col(name).cast(pl.List(pl.Int64)) for name in columns])).to_series()
        tokens = lists.explode(empty_as_null=False).to_numpy()
        rows = np.repeat(np.arange(len(lists)), lists.list.len().to_numpy())
        ends = np.cumsum(tokens == spec.EOS)
        before = np.concatenate([[0], ends])[np.searchsorted(rows, rows)]  # ends in the rows above
        kept = (ends == before) & (tokens != spec.BOS) & (tokens != spec.PAD)
        return cls(table["subject_id"].to_numpy().astype(np.int64), rows[kept], tokens[kept], spec)

    @classmethod
    def read(cls, source: pl.DataFrame | Path | str, spec: TokenSpec, column: str = "ids") -> "Sequences":
        """Whole records from a table or parquet file with subject_id and a list of ids."""
        if isinstance(source, pl.DataFrame):
            return cls.of(source, spec, column)
        return cls.of(read_parquet(Path(source), "sequences"), spec, column, origin=str(source))

    def __len__(self) -> int:
        return len(self.subjects)

    def take(self, chosen: BoolArray) -> "Sequences":
        """The sequences where `chosen` `[n]` is True."""
        kept = chosen[self.rows]
        new_row = np.cumsum(chosen) - 1
        return replace(self, subjects=self.subjects[chosen], rows=new_row[self.rows[kept]], tokens=self.tokens[kept])

    @cached_property
    def counts(self) -> sparse.csr_array:
        """How often each code stands in each sequence, `[n, V]`."""
        is_code = self.tokens >= self.spec.first_code
        rows, codes = self.rows[is_code], self.tokens[is_code] - self.spec.first_code
        shape = (len(self), self.spec.num_tokens - self.spec.first_code)
        matrix = sparse.csr_array((np.ones(len(rows), dtype=np.float32), (rows, codes)), shape=shape)
        matrix.sum_duplicates()
        return matrix

    @cached_property
    def presence(self) -> sparse.csr_array:
        """1 where a code stands in a sequence, `[n, V]`."""
        matrix = self.counts.copy()
        matrix.data = np.ones_like(matrix.data)
        return matrix

    @property
    def num_codes(self) -> IntArray:
        return np.bincount(self.rows[self.tokens >= self.spec.first_code], minlength=len(self))

    @property
    def num_tokens(self) -> IntArray:
        return np.bincount(self.rows, minlength=len(self))

    @property
    def num_visits(self) -> IntArray:
        """Visits that begin in the sequence."""
        return np.bincount(self.rows[self.tokens == self.spec.VISIT], minlength=len(self))

    @property
    def visit_sizes(self) -> tuple[IntArray, IntArray]:
        """(sequence, number of codes) of each visit that begins in a sequence."""
        begins = self.tokens == self.spec.VISIT
        visit = np.cumsum(begins) - 1
        rows = self.rows[begins]
        # Codes before the first <visit> of a continuation belong to a visit of the prompt.
        inside = (self.tokens >= self.spec.first_code) & (visit >= 0)
        inside[inside] = rows[visit[inside]] == self.rows[inside]
        return rows, np.bincount(visit[inside], minlength=len(rows))

    def holds_target(self) -> BoolArray:
        """Whether each sequence holds a target code, `[n]`."""
        found = np.zeros(len(self), dtype=bool)
        found[self.rows[np.isin(self.tokens, self.spec.targets)]] = True
        return found


@dataclass(frozen=True)
class Completions:
    """One split of a run's completions, in the order of the subjects. `probability` is NaN where it was not computed.

    prompt, truth, generated  the beginning of a record, how it went on, and how the model continued it
    probability               [n] the model's P(the continuation holds a target code | prompt)
    """

    split: str
    prompt: Sequences
    truth: Sequences
    generated: Sequences
    real_records: Sequences
    completed_records: Sequences
    probability: FloatArray

    def __len__(self) -> int:
        return len(self.prompt)

    def predictions(self) -> pl.DataFrame:
        """Presence of the target as a predictions table (docs/evaluation.md): decision = it was generated.

        Only subjects whose probability was computed.
        """
        table = presence_table(
            self.prompt.subjects, self.truth.holds_target(), self.generated.holds_target(), self.probability
        )
        return table.filter(pl.col("predicted_boolean_probability").is_not_nan())


def presence_table(
    subjects: IntArray, labels: BoolArray, decisions: BoolArray, probabilities: FloatArray
) -> pl.DataFrame:
    """A predictions table in the MEDS prediction schema with one sample per subject."""
    return pl.DataFrame(
        {
            "subject_id": subjects,
            "prediction_time": pl.repeat(_ANY_TIME, len(subjects), dtype=pl.Datetime("us"), eager=True),
            "boolean_value": labels,
            "predicted_boolean_value": decisions,
            "predicted_boolean_probability": probabilities,
        }
    )


def read_completions(source: pl.DataFrame | Path | str, spec: TokenSpec) -> dict[str, Completions]:
    """split -> its completions, from a table or completions.parquet; "held_out" is always there.

    Raises InputError, without a value of any row, for a table that is not one of completions.
    """
    if isinstance(source, pl.DataFrame):
        table, origin = source, "completions"
    else:
        table, origin = read_parquet(Path(source), "completions"), str(source)
    if not spec.targets:
        raise InputError(
            f"{origin}: no target code of the task stands in a training record, so there is nothing to generate; "
            "choose another task, or more data"
        )
    if missing := [name for name in COMPLETIONS if name not in table.columns]:
        raise InputError(f"{origin}: expected the columns {list(COMPLETIONS)}, but {missing} are missing")
    split = table["split"].cast(pl.String)
    if strangers := len(table) - int(split.is_in([HELD_OUT, TRAIN]).fill_null(False).sum()):
        raise InputError(f"{origin}: split should be {HELD_OUT} or {TRAIN}, but {strangers} rows have another")
    if HELD_OUT not in split:
        raise InputError(f"{origin}: expected completions of held-out subjects, found none; run the model again")
    if repeated := int(table["subject_id"].is_duplicated().sum()):
        raise InputError(f"{origin}: each subject may occur once, but {repeated} of {len(table)} rows repeat one")
    probability = table["target_probability"].cast(pl.Float64)
    if bad := int((~probability.is_between(0, 1) | probability.is_nan()).fill_null(False).sum()):
        raise InputError(f"{origin}: target_probability should lie in [0, 1], but {bad} of {len(table)} do not")
    parts = {}
    for name in (HELD_OUT, TRAIN):
        part = table.filter(split == name).sort("subject_id")
        if part.is_empty():
            continue
        prompt, truth, generated = (Sequences.of(part, spec, column, origin=origin) for column in _LISTS)
        parts[name] = Completions(
            split=name,
            prompt=prompt,
            truth=truth,
            generated=generated,
            real_records=Sequences.of(part, spec, "prompt", "truth", origin=origin),
            completed_records=Sequences.of(part, spec, "prompt", "generated", origin=origin),
            probability=part["target_probability"].cast(pl.Float64).fill_null(np.nan).to_numpy(),
        )
    return parts


def read_parquet(path: Path, what: str) -> pl.DataFrame:
    """A parquet file. Raises InputError naming it when it is missing or damaged."""
    try:
        return pl.read_parquet(path)
    except FileNotFoundError:
        raise InputError(f"{what} {path}: expected a parquet file, found nothing there") from None
    except (pl.exceptions.ComputeError, OSError) as error:
        raise InputError(
            f"{what} {path}: expected a readable parquet file, found a damaged one ({type(error).__name__}); remove "
            f"the run folder and run again"
        ) from None


def hashed(subjects: Sequence[int] | IntArray, seed: int) -> NDArray[np.uint64]:
    """A random number of each subject that depends on (seed, subject) alone, not on who else is in a file."""
    key = seed.to_bytes(8, "little", signed=True)
    digests = (
        hashlib.blake2b(int(s).to_bytes(8, "little", signed=True), key=key, digest_size=8).digest() for s in subjects
    )
    return np.frombuffer(b"".join(digests), dtype="<u8").astype(np.uint64)


def drawn(num: int, size: int, num_bootstrap: int, rng: np.random.Generator, widest: int = 1) -> Iterator[FloatArray]:
    """Blocks `[<= R, num]`: how often each of `num` units is among `size` draws with replacement, in each resample.

    `widest`: columns of what is made of a block, so that neither takes much memory. Blocks do not change the draws.
    """
    block = max(1, _BLOCK_ELEMENTS // max(num, size, widest))
    for done in range(0, num_bootstrap, block):
        rows = min(block, num_bootstrap - done)
        draws = rng.integers(0, num, (rows, size)) + np.arange(rows)[:, None] * num
        yield np.bincount(draws.ravel(), minlength=rows * num).reshape(rows, num).astype(np.float64)
