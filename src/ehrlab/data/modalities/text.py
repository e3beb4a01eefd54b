"""The text of a sample's admission as token ids of a language model: sections of its notes, then its abnormal labs.

    Chief complaint: Chest pain
    History of present illness: ___ is a 63 year old man with ...
    Past medical history: ...
    Medications on admission: ...
    Abnormal laboratory results: creatinine high 2.4 mg/dL; sodium low 128 mEq/L

Never the text that states the label: of the notes, only the named sections are used, and nothing under a title with a
phrase of `cut_sections` (sections.py). Each section is that of the last note that has it. An empty note, and one
without any of them, gives nothing; a sample without text is a row of padding. LABTEXT: `labs.abnormal_labs`, the
farthest from its range first.

What is longer than `max_tokens` keeps the order and the beginning of every part: the tokens are divided evenly among
the parts, and what a short one leaves goes to the longer.

    sections/<shard>.parquet  subject_id, visit_id, time, section, text: in the order of the events
    labs/                     the store of labs that LABTEXT is written from
    tokenizer/                what transformers wants to load it again
    text.json                 sizes, and how many notes have which section

A selection is `offsets` and `ids` (.npy): sample i has the tokens ids[offsets[i] .. offsets[i + 1]].
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import polars as pl
import torch
from numpy.typing import NDArray

from ehrlab.core import language
from ehrlab.core.batch import Text
from ehrlab.core.errors import InputError
from ehrlab.core.spec import TextSpec
from ehrlab.data.cohorts.task import as_strings
from ehrlab.data.meds import SPLITS, MedsDataset
from ehrlab.data.modalities.base import Modality
from ehrlab.data.modalities.labs import LabModality, abnormal_labs
from ehrlab.data.modalities.note_events import note_codes, notes_by_file, seen
from ehrlab.data.modalities.sections import CUT, SPELLINGS, SectionFinder
from ehrlab.data.modalities.words import SpecialTokens, share_out, word_tokenizer
from ehrlab.nn.encode import load_tokenizer

log = logging.getLogger(__name__)

LABTEXT = "Abnormal laboratory results"
NORMAL = (0.05, 0.95)
"""Training quantiles outside of which a value is abnormal, where no range of reference is known."""

_LEAST_TOKENS = 16
_SECTIONS, _LABS, _TOKENIZER, _DESCRIPTION = "sections", "labs", "tokenizer", "text.json"
_FOUND = pl.Schema(
    {
        "subject_id": pl.Int64(),
        "visit_id": pl.Int64(),
        "time": pl.Datetime("us"),
        "section": pl.UInt8(),
        "text": pl.String(),
    }
)


@dataclass(frozen=True)
class TextModality(Modality):
    """Settings of Batch.text.

    model              whose tokenizer: "smollm2", "tiny" (a vocabulary of the training texts' words), a folder, a hub
                       name (core.language)
    sections           names of `sections.SPELLINGS`, in the order in which they stand in the text
    cut_sections       phrases; what stands under a title with one of them is never used
    categories         of notes; none = all
    notes, labtext     the two halves of the text
    max_abnormal_labs  those farthest from their range
    max_words          of the vocabulary of "tiny"
    """

    name: ClassVar[str] = "text"
    version: ClassVar[int] = 2

    model: str = "smollm2"
    max_tokens: int = 256
    sections: tuple[str, ...] = (
        "chief complaint",
        "history of present illness",
        "past medical history",
        "medications on admission",
    )
    cut_sections: tuple[str, ...] = CUT
    categories: tuple[str, ...] = ()
    notes: bool = True
    labtext: bool = True
    max_abnormal_labs: int = 20
    max_words: int = 4000

    def __post_init__(self) -> None:
        for name in ("sections", "cut_sections", "categories"):
            object.__setattr__(self, name, as_strings(getattr(self, name), f"text.{name}"))
        for name, least in (("max_tokens", _LEAST_TOKENS), ("max_abnormal_labs", 1), ("max_words", 1)):
            if getattr(self, name) < least:
                raise InputError(f"text.{name}: expected at least {least}, found {getattr(self, name)}")
        if not (self.notes or self.labtext):
            raise InputError("text: expected notes or labtext, found both switched off; choose a model without text")
        if unknown := [section for section in self.sections if section not in SPELLINGS]:
            raise InputError(f"text.sections: expected some of {', '.join(SPELLINGS)}, found '{unknown[0]}'")
        if not self.sections or len(set(self.sections)) < len(self.sections):
            raise InputError("text.sections: expected one or more, all different; without any set text.notes=false")
        if cut := [section for section in self.sections if section in map(str.lower, self.cut_sections)]:
            raise InputError(f"text.sections: '{cut[0]}' is among text.cut_sections too; remove it from one of them")

    def fingerprint(self) -> Any:
        return None if self.model == language.TINY else language.fingerprint(self.model)

    def build(self, meds: MedsDataset, out: Path) -> None:
        """InputError where the data lack notes with such sections, or labs, and where the model is not on disk."""
        (out / _SECTIONS).mkdir()
        counts = self._find(meds, out / _SECTIONS) if self.notes else {}
        if self.labtext:
            (out / _LABS).mkdir()
            try:
                LabModality(normal=NORMAL).build(meds, out / _LABS)
            except InputError as error:
                raise InputError(f"text.labtext=true: {error} Or set text.labtext=false.") from None
        if self.model == language.TINY:
            tokenizer = word_tokenizer(self._training_texts(meds, out), self.max_words)
        else:
            tokenizer = load_tokenizer(self.model)
        tokenizer.save_pretrained(out / _TOKENIZER)
        pad = tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id
        description = {"num_tokens": len(tokenizer), "pad_id": pad or 0, "counts": counts}
        (out / _DESCRIPTION).write_text(json.dumps(description, indent=1), encoding="utf-8")

    def _find(self, meds: MedsDataset, out: Path) -> dict[str, int]:
        """Write the sections of every note; returns how many notes have each."""
        codes = note_codes(meds, self.categories, "text")
        finder = SectionFinder(self.sections, self.cut_sections)
        counts = Counter({"notes": 0, "notes with a section": 0} | dict.fromkeys(self.sections, 0))
        for i, notes in enumerate(notes_by_file(meds, codes)):
            rows = []
            for subject, visit, time, text in notes.select("subject_id", "visit_id", "time", "text").iter_rows():
                found = finder.find(text)
                rows += [(subject, visit, time, self.sections.index(name), body) for name, body in found.items()]
                counts.update(["notes", *(["notes with a section"] if found else []), *found])
            pl.DataFrame(rows, schema=_FOUND, orient="row").write_parquet(out / f"{i:04d}.parquet")
        if not counts["notes with a section"]:
            raise InputError(
                f"text: expected notes of an admission with a heading {' or '.join(self.sections)}, found none among "
                f"{counts['notes']:,} notes. Choose other text.sections or text.categories, or set text.notes=false."
            )
        log.info("text: %s", ", ".join(f"{number:,} {name}" for name, number in counts.items()))
        return dict(counts)

    def _training_texts(self, meds: MedsDataset, out: Path) -> Iterator[str]:
        train = meds.splits().filter(pl.col("split") == SPLITS[0]).select("subject_id")
        yield " ".join([*self.sections, LABTEXT, "0 1 2 3 4 5 6 7 8 9 : ; . -"])
        for file in sorted((out / _SECTIONS).glob("*.parquet")):
            yield from pl.read_parquet(file).join(train, on="subject_id", how="semi", maintain_order="left")["text"]
        if self.labtext:
            tests = pl.read_parquet(out / _LABS / "tests.parquet").select("name", "unit")
            yield from (_words(name, side, 0.5, unit) for name, unit in tests.iter_rows() for side in ("low", "high"))

    def select(self, meds: MedsDataset, store: Path, samples: pl.DataFrame, out: Path) -> None:
        tokenizer = _load(store)
        special = SpecialTokens.of(tokenizer)
        parts: list[list[list[int]]] = [[] for _ in range(samples.height)]  # by sample, in the order of the text
        for file in sorted((store / _SECTIONS).glob("*.parquet")):
            sections = pl.scan_parquet(file).with_row_index("row")
            chosen = (
                seen(sections.drop("text"), samples)
                .sort("sample", "section", "time", "row")
                .group_by("sample", "section", maintain_order=True)
                .agg(pl.col("row").last())
                .collect()
            )
            # Samples of one admission see the same sections, which are tokenised once.
            used = sections.join(chosen.lazy().select("row").unique(), on="row", how="semi").collect()
            texts = [
                f"{self.sections[k].capitalize()}: {text}" for k, text in used.select("section", "text").iter_rows()
            ]
            ids = dict(zip(used["row"], self._ids(tokenizer, texts)))
            for sample, row in chosen.select("sample", "row").iter_rows():
                parts[sample].append(ids[row])
        if self.labtext:
            abnormal = abnormal_labs(LabModality(normal=NORMAL), store / _LABS, samples)
            found = abnormal.group_by("sample", maintain_order=True).head(self.max_abnormal_labs)
            words: dict[int, list[str]] = {}
            for sample, name, side, value, unit in found.select("sample", "name", "side", "value", "unit").iter_rows():
                words.setdefault(sample, []).append(_words(name, side, value, unit))
            texts = [f"{LABTEXT}: {'; '.join(phrases)}" for phrases in words.values()]
            for sample, tokens in zip(words, self._ids(tokenizer, texts)):
                parts[sample].append(tokens)

        dtype = np.uint16 if len(tokenizer) <= 2**16 else np.uint32
        rows = [np.array(self._fit(of_sample, special), dtype=dtype) for of_sample in parts]
        np.save(out / "offsets.npy", np.concatenate([[0], np.cumsum([len(row) for row in rows], dtype=np.int64)]))
        np.save(out / "ids.npy", np.concatenate([np.zeros(0, dtype), *rows]))

    def _ids(self, tokenizer: Any, texts: list[str]) -> list[list[int]]:
        if not texts:
            return []
        made = tokenizer(
            texts,
            add_special_tokens=False,
            truncation=True,
            max_length=self.max_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        ids: list[list[int]] = made["input_ids"]
        return ids

    def _fit(self, parts: Sequence[list[int]], special: SpecialTokens) -> list[int]:
        """The parts in their order, each from its beginning on, in at most max_tokens; nothing without a part."""
        if not parts:
            return []
        around = len(special.before) + len(special.after) + len(special.between) * (len(parts) - 1)
        lengths = share_out([len(part) for part in parts], self.max_tokens - around)
        text = list(special.before)
        for i, (part, length) in enumerate(zip(parts, lengths)):
            text += [*(special.between if i else ()), *part[:length]]
        return [*text, *special.after]

    def reader(self, store: Path, selection: Path) -> TextReader:
        return TextReader(self.spec(store).pad_id, selection)

    def spec(self, store: Path) -> TextSpec:
        found = json.loads((store / _DESCRIPTION).read_text(encoding="utf-8"))
        return TextSpec(self.model, found["num_tokens"], self.max_tokens, found["pad_id"])


class TextReader:
    """Batch.text of the rows of a selection."""

    def __init__(self, pad_id: int, selection: Path) -> None:
        self.pad_id = pad_id
        self._offsets, self._ids = (np.load(selection / name, mmap_mode="r") for name in ("offsets.npy", "ids.npy"))

    def lengths(self) -> NDArray[np.int64]:
        """Tokens of every sample, by which batches are formed."""
        return np.diff(self._offsets)

    def __call__(self, rows: NDArray[np.int64]) -> Text:
        begin, end = np.asarray(self._offsets[rows]), np.asarray(self._offsets[np.asarray(rows) + 1])
        place = np.arange(max(1, (end - begin).max(initial=0)))
        mask = place < (end - begin)[:, None]
        ids = np.full(mask.shape, self.pad_id, dtype=np.int64)
        ids[mask] = self._ids[(begin[:, None] + place)[mask]]
        return Text(torch.from_numpy(ids), torch.from_numpy(mask))


def _words(name: str, side: str, value: float, unit: str | None) -> str:
    """LABTEXT of one test: creatinine high 2.4 mg/dL."""
    return f"{name.lower()} {side} {round(value, 2):g}{f' {unit}' if unit else ''}"


def _load(store: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(store / _TOKENIZER)
