"""Records to sequences of tokens, one per subject and whatever the task: an Arrow file per split, and a tokenizer.

    <split>.arrow   one record batch, uncompressed, a row per subject with a visit (SEQUENCE_SCHEMA)
    tokenizer.json  see Tokenizer; a generator keeps a copy beside its weights
    manifest.json   SCHEMA_VERSION, settings, sizes, counts per split, bytes and SHA-256 of each file above

A sequence, with the visit of each token below it:

    <bos> GENDER//F RACE//WHITE <visit> code code code <visit> code ... <eos>
      0       0         0          1      1    1    1     2      2        V

A token's age and place of service are those of its visit; before the first visit, the age is that at the first visit
and the place unknown. `<eos>` belongs to the last visit and says that the record ends there: a sequence that was cut
does not have it. As in `tensorize`, one file of events is in memory at a time.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Self

import numpy as np
import polars as pl
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from ehrlab.core.batch import Batch, Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.data.cohorts.task import as_strings, visit_keys
from ehrlab.data.meds import SPLITS, MedsDataset
from ehrlab.data.tensorize import MANIFEST

SCHEMA_VERSION = 1
"""Raised whenever the same events give different files, so that caches of older versions are not taken."""

TOKENIZER = "tokenizer.json"
SPECIALS = ("<pad>", "<bos>", "<eos>", "<visit>", "<unk>")
UNKNOWN_PLACE = "<unknown>"

LISTS = ("ids", "visit", "age", "place")
"""The columns of a sequence; each list has an entry per token."""

SEQUENCE_SCHEMA = pa.schema(
    [
        pa.field("subject_id", pa.int64(), nullable=False),
        pa.field("end_time", pa.timestamp("us"), nullable=False),
        *(
            pa.field(name, pa.large_list(pa.field("item", dtype, nullable=False)), nullable=False)
            for name, dtype in zip(LISTS, (pa.int32(), pa.int16(), pa.int16(), pa.int16()))
        ),
    ]
)
"""end_time is that of the record's last code, also where the sequence was cut before it."""

YEAR = 31_557_600_000_000
"""Microseconds in 365.25 days."""

_TRAITS = ("gender", "race")
_LEAST_TOKENS = 8  # <bos>, two traits, <visit>, a code, <eos>, and some room
_VISIT = ["subject_id", "visit_id", "day"]  # names a visit
_PLACES = pl.Schema({"code": pl.String(), "place": pl.Int16()})


@dataclass(frozen=True)
class TokenSettings:
    """How records become sequences.

    kinds         kinds of event whose codes enter; not lab
    lab_bins      0: no labs. n: a lab enters as code//Q1 .. code//Qn, by the n-quantiles of its training values, and as
                  the bare code where it has no number
    demographics  gender and race stand before the first visit
    max_tokens    tokens of a sequence, <bos> and <eos> included; the first ones are kept
    max_visits    the first ones are kept
    min_count     codes in fewer training subjects are unknown: they are left out and counted
    """

    kinds: tuple[str, ...] = ("diagnosis", "procedure", "drug")
    lab_bins: int = 0
    demographics: bool = True
    max_tokens: int = 512
    max_visits: int = 48
    min_count: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "kinds", as_strings(self.kinds, "tokens.kinds"))
        if not self.kinds:
            raise InputError("tokens.kinds: expected at least one kind of event, found none")
        if "lab" in self.kinds:
            raise InputError("tokens.kinds: labs enter by their values, not as a kind; set tokens.lab_bins=5, say")
        if self.lab_bins < 0 or self.lab_bins == 1:
            raise InputError(f"tokens.lab_bins: expected 0 (no labs) or at least 2, found {self.lab_bins}")
        for name, least in (("max_tokens", _LEAST_TOKENS), ("max_visits", 1), ("min_count", 1)):
            if getattr(self, name) < least:
                raise InputError(f"tokens.{name}: expected at least {least}, found {getattr(self, name)}")


@dataclass(frozen=True)
class LabBins:
    """A lab's bins, from the quantiles of its training values.

    cuts    n - 1 ascending values; bin b (1 .. n) holds cuts[b - 2] < value <= cuts[b - 1]
    values  a value that stands for each of the n bins: the quantile in its middle
    """

    cuts: tuple[float, ...]
    values: tuple[float, ...]


@dataclass(frozen=True)
class Tokenizer:
    """What the ids of a sequence mean.

    tokens      text by id: SPECIALS, then gender and race, then codes by falling training frequency
    counts      how often each stands in the training sequences
    first_code  the first id that is a code
    places      code of the admission or encounter by place id; 0 is unknown
    labs        bins of each lab
    simulated   the records that it was fitted on stem from a simulator
    """

    tokens: tuple[str, ...]
    counts: tuple[int, ...]
    first_code: int
    places: tuple[str, ...]
    labs: Mapping[str, LabBins]
    settings: TokenSettings
    simulated: bool

    @cached_property
    def ids(self) -> dict[str, int]:
        """id by text."""
        return {token: i for i, token in enumerate(self.tokens)}

    def event(self, token_id: int) -> tuple[str, float | None]:
        """The event behind a token: its code, and of a binned lab the value that stands for the bin."""
        token = self.tokens[token_id]
        lab, _, place = token.rpartition("//Q")
        if lab in self.labs:
            return lab, self.labs[lab].values[int(place) - 1]
        return token, None

    def spec(self, targets: Iterable[str] = ()) -> TokenSpec:
        """Sizes for a model. `targets` are codes; those that no training sequence holds have no id."""
        return TokenSpec(
            num_tokens=len(self.tokens),
            num_places=len(self.places),
            max_tokens=self.settings.max_tokens,
            max_visits=self.settings.max_visits,
            first_code=self.first_code,
            targets=tuple(sorted(self.ids[code] for code in targets if code in self.ids)),
        )

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=0, ensure_ascii=False), encoding="utf-8")

    @classmethod
    def read(cls, path: Path) -> Self:
        """InputError where the file is not what `write` wrote."""
        try:
            found = json.loads(path.read_text(encoding="utf-8"))
            labs = {code: LabBins(tuple(bins["cuts"]), tuple(bins["values"])) for code, bins in found["labs"].items()}
            lists = {name: tuple(found[name]) for name in ("tokens", "counts", "places")}
            settings = TokenSettings(**found["settings"])
            return cls(**{**found, **lists, "labs": labs, "settings": settings})
        except (FileNotFoundError, json.JSONDecodeError, KeyError, TypeError, AttributeError) as error:
            raise InputError(
                f"{path}: expected a tokenizer that ehrlab wrote, found none ({type(error).__name__}). "
                f"Delete the folder {path.parent} to build it again."
            ) from None


def tokenize(meds: MedsDataset, settings: TokenSettings, out: Path) -> None:
    """Write the files above into the existing folder `out`; call it through `cache.build_once`.

    The vocabulary, the places and the labs' quantiles know training subjects only.

    Errors: InputError for unknown kinds, labs that the data lack, and a split in which nobody has a visit.
    """
    if unknown := sorted(set(settings.kinds) - set(meds.kinds)):
        raise InputError(f"tokens.kinds: unknown kind '{unknown[0]}'; expected some of {', '.join(sorted(meds.kinds))}")
    splits = meds.splits()
    words = _Words.find(meds, settings, splits)
    spool = out / "spool"
    spool.mkdir()
    parts: dict[str, list[Path]] = {split: [] for split in SPLITS}
    frequency = _Frequency(words)
    for file in meds.shards():
        for split, block in _blocks(meds, file, words, splits, settings).items():
            path = spool / f"{split}-{len(parts[split])}.npz"
            block.save(path)
            parts[split].append(path)
            if split == SPLITS[0]:
                frequency.add(block, settings.max_tokens)
    if empty := [split for split in SPLITS if not parts[split]]:
        raise InputError(
            f"tokens: no subject of the split {empty[0]} has a visit with a code of the kinds "
            f"{', '.join(settings.kinds)}. Choose other tokens.kinds, another split.seed, or more data."
        )

    vocabulary, first_code = frequency.vocabulary(settings.min_count)
    new_id = np.full(len(words.names), -1, dtype=np.int32)
    new_id[vocabulary] = np.arange(len(vocabulary))
    places = frequency.places()
    new_place = np.zeros(len(words.places), dtype=np.int16)
    new_place[places] = np.arange(len(places))
    counts: dict[str, dict[str, int]] = {}
    for split in SPLITS:
        occurrences, counts[split] = _write_split(
            parts[split], new_id, new_place, settings.max_tokens, out / f"{split}.arrow", spool
        )
        if split == SPLITS[0]:
            token_counts = occurrences
    shutil.rmtree(spool)

    tokenizer = Tokenizer(
        tokens=tuple(words.names[word] for word in vocabulary),
        counts=tuple(token_counts.tolist()),
        first_code=first_code,
        places=tuple(words.places[place] for place in places),
        labs=words.labs,
        settings=settings,
        simulated=meds.simulated,
    )
    tokenizer.write(out / TOKENIZER)
    names = [*(f"{split}.arrow" for split in SPLITS), TOKENIZER]
    with_visit = sum(count["subjects"] for count in counts.values())
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "dataset": meds.name,
        "simulated": meds.simulated,
        "settings": asdict(settings),
        "num_tokens": len(tokenizer.tokens),
        "num_places": len(tokenizer.places),
        "first_code": first_code,
        "splits": counts,
        "subjects_without_visit": splits.height - with_visit,
        "files": {name: _identity(out / name) for name in names},
    }
    (out / MANIFEST).write_text(json.dumps(manifest, indent=1), encoding="utf-8")


class TokenDataset(Dataset[Batch]):
    """The sequences of one split. `dataset[[3, 0, 7]]` is a Batch of three, padded to its own longest.

    Its prediction_time is the end of the record; it has no labels, as no task is behind it. Memory-mapped and pickled
    as SampleDataset is. Errors: InputError where the file is not what `tokenize` writes.
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
        if table.schema != SEQUENCE_SCHEMA or reader.num_record_batches != 1:
            raise self._corrupt("the columns are others")
        self._table = table
        self.subject_id: NDArray[np.int64] = table.column("subject_id").to_numpy()
        self.end_time: NDArray[np.int64] = table.column("end_time").cast(pa.int64()).to_numpy()
        """Microseconds since 1970."""
        self._offsets: NDArray[np.int64] = table.column("ids").offsets.to_numpy()
        self._flat: dict[str, NDArray[Any]] = {name: table.column(name).values.to_numpy() for name in LISTS}

    def _corrupt(self, found: str) -> InputError:
        return InputError(
            f"{self.path}: expected an Arrow file of sequences, found a damaged one ({found}). "
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
    def lengths(self) -> NDArray[np.int64]:
        """Tokens of each sequence, at least 2; by which they are put together in batches."""
        return np.diff(self._offsets)

    def frame(self) -> pl.DataFrame:
        """subject_id, end_time, and ids, visit, age, place as lists, in the order of the file."""
        found = pl.from_arrow(self._table)
        assert isinstance(found, pl.DataFrame)
        return found

    def __getitem__(self, indices: int | Sequence[int]) -> Batch:
        return self.__getitems__([indices] if isinstance(indices, int) else indices)

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        rows = np.asarray(indices, dtype=np.int64)
        first = self._offsets[rows]
        length = self._offsets[rows + 1] - first
        column = np.arange(length.max())
        mask = column < length[:, None]
        source = np.where(mask, first[:, None] + column, 0)
        padded = {
            name: torch.from_numpy(np.where(mask, flat[source], 0).astype(np.int64))
            for name, flat in self._flat.items()
        }
        return Batch(
            subject_id=torch.from_numpy(self.subject_id[rows]),
            prediction_time=torch.from_numpy(self.end_time[rows]),
            tokens=Tokens(mask=torch.from_numpy(mask), **padded),
        )


@dataclass(frozen=True)
class _Words:
    """Everything that may become a token, numbered: SPECIALS by their ids, then codes by alphabet, labs by bin.

    table   code, word (its number; a lab's bin b has number word + b), trait (gender, race or null), cut_1, ...
    names   text by number
    traits  numbers of the genders, then of the races
    places  code of an admission or encounter by number; 0 is unknown
    """

    table: pl.DataFrame
    names: tuple[str, ...]
    traits: tuple[int, ...]
    places: tuple[str, ...]
    labs: Mapping[str, LabBins]

    @classmethod
    def find(cls, meds: MedsDataset, settings: TokenSettings, splits: pl.DataFrame) -> Self:
        traits = _TRAITS if settings.demographics else ()
        bins = settings.lab_bins
        lab = meds.is_kind("lab") if bins else pl.lit(False)
        codes = (
            meds.codes()
            .sort("code")
            .select(
                "code",
                trait=pl.coalesce(pl.lit(None, pl.String), *(pl.when(meds.is_kind(t)).then(pl.lit(t)) for t in traits)),
                num_words=pl.when(meds.is_kind(*settings.kinds)).then(1).when(lab).then(1 + bins),
            )
            .with_columns(num_words=pl.when(pl.col("trait").is_not_null()).then(1).otherwise("num_words"))
            .drop_nulls("num_words")
            .with_columns(word=len(SPECIALS) + pl.col("num_words").cum_sum() - pl.col("num_words"))
        )
        labs = _lab_bins(meds, codes.filter(pl.col("num_words") > 1)["code"], bins, splits) if bins else {}
        cuts = pl.DataFrame(
            [(code, *lab.cuts) for code, lab in labs.items()],
            schema={"code": pl.String} | {f"cut_{i}": pl.Float64 for i in range(1, bins)},
            orient="row",
        )
        names = [*SPECIALS]
        for code, num_words in codes.select("code", "num_words").iter_rows():
            names += [code, *(f"{code}//Q{b}" for b in range(1, num_words))]
        places = meds.codes().filter(meds.is_kind("admission", "encounter"))["code"].sort()
        return cls(
            table=codes.drop("num_words").cast({"word": pl.Int32}).join(cuts, on="code", how="left"),
            names=tuple(names),
            traits=tuple(word for trait in traits for word in codes.filter(pl.col("trait") == trait)["word"]),
            places=(UNKNOWN_PLACE, *places),
            labs=labs,
        )

    @property
    def is_code(self) -> NDArray[np.bool_]:
        found = np.ones(len(self.names), dtype=bool)
        found[: len(SPECIALS)] = False
        found[list(self.traits)] = False
        return found


def _lab_bins(meds: MedsDataset, labs: pl.Series, bins: int, splits: pl.DataFrame) -> dict[str, LabBins]:
    """Bins of each lab with a number in training; holds the codes and values of the training labs in memory."""
    train = splits.lazy().filter(pl.col("split") == SPLITS[0])
    value = pl.col("numeric_value").cast(pl.Float64)
    found = (
        meds.scan()
        .filter(pl.col("code").is_in(labs.implode()) & value.is_finite() & pl.col("time").is_not_null())
        .join(train, on="subject_id", how="semi")
        .group_by("code")
        .agg(value.quantile(k / (2 * bins), "linear").alias(f"q{k}") for k in range(1, 2 * bins))
        .sort("code")
        .collect(engine="streaming")
    )
    if found.is_empty():
        raise InputError(
            f"tokens.lab_bins={bins}: the data hold no numeric lab of a training subject. Add labs to the tables "
            "(data.source.tables), or set tokens.lab_bins=0."
        )
    return {code: LabBins(cuts=tuple(q[1::2]), values=tuple(q[::2])) for code, *q in found.iter_rows()}


@dataclass(frozen=True)
class _Block:
    """Sequences of one split out of one file of events, before the cut; `word` and `place` as _Words numbers them.

    offsets has one entry more than there are subjects.
    """

    subject_id: NDArray[np.int64]
    end_time: NDArray[np.int64]
    offsets: NDArray[np.int64]
    word: NDArray[np.int32]
    visit: NDArray[np.int16]
    age: NDArray[np.int16]
    place: NDArray[np.int16]

    def save(self, path: Path) -> None:
        np.savez(path, **vars(self))

    @classmethod
    def load(cls, path: Path) -> Self:
        with np.load(path) as arrays:
            return cls(**arrays)


def _blocks(
    meds: MedsDataset, path: Path, words: _Words, splits: pl.DataFrame, settings: TokenSettings
) -> dict[str, _Block]:
    """The sequences of one file of events, by split."""
    codes, begun, people = _read(meds, path, words)
    visits = _visits(codes, begun, people)
    subjects = (
        visits.group_by("subject_id", maintain_order=True)
        .agg(pl.col(*_TRAITS, "age").first(), num_visits=pl.len())
        .join(codes.group_by("subject_id").agg(end=pl.col("time").max()), on="subject_id", maintain_order="left")
        .join(splits, on="subject_id", maintain_order="left")
        .with_row_index("row")
    )
    kept = visits.filter(pl.col("visit") <= settings.max_visits).join(
        subjects.select("subject_id", "row", "num_visits"), on="subject_id"
    )
    sequence = _sequence(subjects, kept, codes)
    of_subject = sequence["row"].to_numpy()
    length = np.bincount(of_subject, minlength=subjects.height)
    blocks = {}
    for split in SPLITS:
        chosen = (subjects["split"] == split).to_numpy()
        if chosen.any():
            rows, tokens = subjects.filter(pl.Series(chosen)), sequence.filter(pl.Series(chosen[of_subject]))
            blocks[split] = _Block(
                subject_id=rows["subject_id"].to_numpy(),
                end_time=rows["end"].to_physical().to_numpy(),
                offsets=_offsets(length[chosen]),
                **{name: tokens[name].to_numpy() for name in ("word", "visit", "age", "place")},
            )
    return blocks


def _read(meds: MedsDataset, path: Path, words: _Words) -> tuple[pl.DataFrame, pl.DataFrame, pl.DataFrame]:
    """Of one file of events:

    codes   subject_id, visit_id, day, word, time, sequence: each code of a visit once
    begun   subject_id, visit_id, start, place: of each admission or encounter
    people  subject_id, gender, race (words), birth
    """
    raw = pl.scan_parquet(path)
    table = words.table.lazy()
    value, cuts = pl.col("numeric_value"), [c for c in words.table.columns if c.startswith("cut_")]
    lab_bin: pl.Expr = pl.lit(0)
    if cuts:
        is_binned = value.is_not_nan() & pl.col(cuts[0]).is_not_null()
        lab_bin = pl.when(is_binned).then(1 + pl.sum_horizontal(value > pl.col(cut) for cut in cuts)).otherwise(0)
    codes = (
        raw.join(table.filter(pl.col("trait").is_null()), on="code")
        .filter(pl.col("time").is_not_null())
        .select("subject_id", "time", "sequence", *visit_keys(), word=(pl.col("word") + lab_bin).cast(pl.Int32))
        .group_by(*_VISIT, "word")
        .agg(pl.col("time").min(), pl.col("sequence").min())
    )
    numbers = pl.LazyFrame({"code": words.places, "place": range(len(words.places))}, schema_overrides=_PLACES)
    begun = (
        raw.filter(pl.col("visit_id").is_not_null() & pl.col("time").is_not_null())
        .join(numbers, on="code")
        .group_by("subject_id", "visit_id")
        .agg(start=pl.col("time").min(), place=pl.col("place").sort_by("time", "place").first())
    )

    def trait(kind: str) -> pl.Expr:
        return pl.col("word").filter(pl.col("trait") == kind).min().alias(kind)

    people = (
        raw.join(table.select("code", "word", "trait"), on="code", how="left")
        .filter(pl.col("trait").is_not_null() | meds.is_kind("birth"))
        .group_by("subject_id")
        .agg(*map(trait, _TRAITS), birth=pl.col("time").filter(meds.is_kind("birth")).min())
    )
    found = pl.collect_all([codes, begun, people])
    return found[0], found[1], found[2]


def _visits(codes: pl.DataFrame, begun: pl.DataFrame, people: pl.DataFrame) -> pl.DataFrame:
    """Visits in the order of subject and time, with `visit` = 1, 2, ..., age, place, and what is known of the subject.

    A visit begins with its admission or encounter, else with its first code. Whose birth is unknown is of age 0.
    """
    years = ((pl.col("time") - pl.col("birth")).dt.total_microseconds() / YEAR).floor()
    return (
        codes.group_by(_VISIT)
        .agg(pl.col("time").min())
        .join(begun, on=["subject_id", "visit_id"], how="left")
        .join(people, on="subject_id", how="left")
        # A start that the raw tables put after the visit's first code is an error of theirs.
        .with_columns(time=pl.min_horizontal("time", "start"), place=pl.col("place").fill_null(0))
        .sort("subject_id", "time", "visit_id", "day")
        .with_columns(
            visit=pl.int_range(1, pl.len() + 1).over("subject_id"),
            age=years.clip(0, TokenSpec.NUM_AGES - 1).fill_null(0),
        )
    )


def _sequence(subjects: pl.DataFrame, visits: pl.DataFrame, codes: pl.DataFrame) -> pl.DataFrame:
    """row (of `subjects`), word, visit, age, place of every token, in order; `visits` are those that are kept.

    <eos> ends the sequence of a subject whose last visit is among them.
    """
    ranked = (
        codes.join(visits.select(*_VISIT, "row", "visit", "age", "place"), on=_VISIT, nulls_equal=True)
        # By alphabet where there is no rank: words are numbered in this order.
        .sort("row", "visit", "sequence", "word", nulls_last=True)
        .with_row_index("rank", offset=1)
    )
    last = visits.filter(pl.col("visit") == pl.col("num_visits"))
    start = subjects.with_columns(visit=0, place=0)
    parts = [
        start.with_columns(rank=0, word=TokenSpec.BOS),
        *(start.with_columns(rank=i, word=trait).drop_nulls("word") for i, trait in enumerate(_TRAITS, 1)),
        visits.with_columns(rank=0, word=TokenSpec.VISIT),
        ranked,
        last.with_columns(rank=ranked.height + 1, word=TokenSpec.EOS),
    ]
    columns = {
        "row": pl.Int64,
        "visit": pl.Int16,
        "rank": pl.Int64,
        "word": pl.Int32,
        "age": pl.Int16,
        "place": pl.Int16,
    }
    return pl.concat(part.select(pl.col(name).cast(dtype) for name, dtype in columns.items()) for part in parts).sort(
        "row", "visit", "rank"
    )


class _Frequency:
    """How often words and places stand in the training sequences."""

    def __init__(self, words: _Words) -> None:
        self.words = words
        self.num_tokens = np.zeros(len(words.names), dtype=np.int64)
        self.num_subjects = np.zeros(len(words.names), dtype=np.int64)
        self.num_in_place = np.zeros(len(words.places), dtype=np.int64)

    def add(self, block: _Block, max_tokens: int) -> None:
        """Only what the cut leaves: what no sequence shows cannot be learnt."""
        size = len(self.num_tokens)
        row, position = _places(block.offsets)
        within = position < max_tokens
        row, word = row[within], block.word[within]
        self.num_tokens += np.bincount(word, minlength=size)
        self.num_subjects += np.bincount(np.unique(row * size + word) % size, minlength=size)
        self.num_in_place += np.bincount(block.place[within], minlength=len(self.num_in_place))

    def vocabulary(self, min_count: int) -> tuple[NDArray[np.int64], int]:
        """Words in the order of their ids: specials, traits, then codes from the commonest on; and the first code's id.

        InputError where no code is left.
        """
        is_code = self.words.is_code
        codes = np.flatnonzero(is_code & (self.num_subjects >= min_count))
        if not len(codes):
            raise InputError(
                f"tokens.min_count={min_count}: no code is in as many training sequences; set a smaller number"
            )
        codes = codes[np.argsort(-self.num_tokens[codes], kind="stable")]
        traits = [word for word in self.words.traits if self.num_subjects[word]]
        first = [*range(len(SPECIALS)), *traits]
        return np.concatenate([np.array(first, dtype=np.int64), codes]), len(first)

    def places(self) -> NDArray[np.int64]:
        """Places in the order of their ids: unknown, then from the commonest on."""
        known = 1 + np.flatnonzero(self.num_in_place[1:])
        return np.concatenate([[0], known[np.argsort(-self.num_in_place[known], kind="stable")]])


def _write_split(
    parts: Iterable[Path],
    new_id: NDArray[np.int32],
    new_place: NDArray[np.int16],
    max_tokens: int,
    path: Path,
    spool: Path,
) -> tuple[NDArray[np.int64], dict[str, int]]:
    """Renumber the words of the blocks in `parts`, cut, write one Arrow file; occurrences of each id, and counts."""
    types = {field.name: field.type.value_type for field in SEQUENCE_SCHEMA if field.name in LISTS}
    types |= {"subject_id": pa.int64(), "end_time": pa.int64(), "offsets": pa.int64()}
    files = {name: spool / name for name in types}
    counts = dict.fromkeys(("subjects", "tokens", "visits", "whole", "unknown"), 0)
    occurrences = np.zeros(int(new_id.max()) + 1, dtype=np.int64)
    with ExitStack() as stack:
        flat = {name: stack.enter_context(file.open("wb")) for name, file in files.items()}
        np.zeros(1, dtype=np.int64).tofile(flat["offsets"])
        for part in parts:
            block = _Block.load(part)
            ids = new_id[block.word]
            row, _ = _places(block.offsets)
            known = ids >= 0
            position = np.cumsum(known) - 1
            position -= np.concatenate([[0], np.cumsum(known)])[block.offsets[:-1]][row]
            kept = known & (position < max_tokens)
            ids = ids[kept]
            lengths = np.bincount(row[kept], minlength=len(block.subject_id))
            columns: dict[str, NDArray[Any]] = {
                "subject_id": block.subject_id,
                "end_time": block.end_time,
                "offsets": counts["tokens"] + np.cumsum(lengths, dtype=np.int64),
                "ids": ids,
                "visit": block.visit[kept],
                "age": block.age[kept],
                "place": new_place[block.place[kept]],
            }
            for name, column in columns.items():
                column.tofile(flat[name])
            found = np.bincount(ids, minlength=len(occurrences))
            occurrences += found
            counts["subjects"] += len(block.subject_id)
            counts["tokens"] += len(ids)
            counts["visits"] += int(found[TokenSpec.VISIT])
            counts["whole"] += int(found[TokenSpec.EOS])
            # Behind the cut nothing is missing; at an unknown word, `position` is that of the known one before.
            counts["unknown"] += int((~known & (position + 1 < max_tokens)).sum())

    arrays = {name: _mapped(file, types[name]) for name, file in files.items()}
    lists = (
        pa.LargeListArray.from_arrays(arrays["offsets"], arrays[name], type=SEQUENCE_SCHEMA.field(name).type)
        for name in LISTS
    )
    table = [arrays["subject_id"], arrays["end_time"].cast(pa.timestamp("us")), *lists]
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, SEQUENCE_SCHEMA) as writer:
        writer.write_batch(pa.RecordBatch.from_arrays(table, schema=SEQUENCE_SCHEMA))
    return occurrences, counts


def _mapped(path: Path, dtype: pa.DataType) -> pa.Array:
    """A flat array on disk, memory-mapped."""
    data = pa.memory_map(str(path)).read_buffer()
    return pa.Array.from_buffers(dtype, data.size * 8 // dtype.bit_width, [None, data])


def _offsets(lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    return np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])


def _places(offsets: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Of each element of the rows that `offsets` bound: its row, and its place within it."""
    row = np.repeat(np.arange(len(offsets) - 1), np.diff(offsets))
    return row, np.arange(len(row)) - offsets[row]


def _identity(path: Path) -> dict[str, Any]:
    with path.open("rb") as file:
        return {"bytes": path.stat().st_size, "sha256": hashlib.file_digest(file, "sha256").hexdigest()}
