"""Tiny random language models with a tokenizer of a few words, and MEDS folders whose subjects have notes and labs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch

from ehrlab.data.codes import DEFAULT_KINDS
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import Modality, Reader, admissions, with_admissions
from ehrlab.data.sources.source import EVENT_SCHEMA
from meds_folders import at, write_meds

WORDS = (
    "chest", "pain", "fever", "cough", "no", "denies", "reports", "aspirin", "home", "the", "of", "and", "a", "stable",
    "worse", "better", "old", "new",
)  # fmt: skip
SUMMARY, NURSING = "NOTE//DISCHARGE SUMMARY", "NOTE//NURSING"
Row = tuple[int, float | None, str, float | None, str | None, int | None]
"""subject_id, day, code, number, text, visit_id"""


def save_tokenizer(folder: Path) -> int:
    """A word-level tokenizer with BERT's special tokens; returns the size of its vocabulary."""
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    words = {word: i for i, word in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        "[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    ).save_pretrained(folder)
    return len(words)


def save_llama(folder: Path, seed: int = 0) -> str:
    """A Llama of width 8."""
    from transformers import LlamaConfig, LlamaModel

    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=save_tokenizer(folder),
        hidden_size=8,
        intermediate_size=12,
        num_hidden_layers=1,
        num_attention_heads=2,
    )
    LlamaModel(config).save_pretrained(folder)
    return str(folder)


def save_bert(folder: Path, seed: int = 0, max_position_embeddings: int = 64) -> str:
    """A BERT of width 8."""
    from transformers import BertConfig, BertModel

    size = save_tokenizer(folder)
    torch.manual_seed(seed)
    config = BertConfig(
        vocab_size=size,
        hidden_size=8,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=max_position_embeddings,
    )
    BertModel(config).save_pretrained(folder)
    return str(folder)


def save_t5(folder: Path) -> str:
    """A T5 of width 8, encoder and decoder."""
    from transformers import T5Config, T5ForConditionalGeneration

    size = save_tokenizer(folder)
    torch.manual_seed(0)
    config = T5Config(vocab_size=size, d_model=8, d_kv=4, d_ff=12, num_layers=2, num_heads=2, decoder_start_token_id=0)
    T5ForConditionalGeneration(config).save_pretrained(folder)
    return str(folder)


def stay(subject: int, begin: float = 0, end: float = 10, visit: int | None = None) -> list[Row]:
    """An admission, whose visit_id is the subject's number unless told."""
    number = subject if visit is None else visit
    return [
        (subject, begin, "HOSPITAL_ADMISSION//URGENT", None, None, number),
        (subject, end, "HOSPITAL_DISCHARGE//HOME", None, None, number),
    ]


def note(subject: int, day: float, text: str | None, code: str = SUMMARY, visit: int | None = 0) -> Row:
    """Of the admission `visit`; 0 = the subject's number."""
    return subject, day, code, None, text, subject if visit == 0 else visit


def dated(day: int) -> float:
    """The time of a note of that day without a time."""
    return day + 86_399 / 86_400


def lab(subject: int, day: float, number: float, code: str = "LAB//50912//mg/dL") -> Row:
    return subject, day, code, number, None, subject


def dataset(path: Path, rows: list[Row], splits: dict[int, str] | None = None, num_shards: int = 2) -> MedsDataset:
    """All subjects train unless told otherwise."""
    meds = write_meds(path, [], num_shards=num_shards)
    events = pl.DataFrame(
        [
            (s, None if day is None else at(day), code, number, text, visit, None)
            for s, day, code, number, text, visit in rows
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    ).sort("subject_id", "time", nulls_last=False, maintain_order=True)
    for shard in range(num_shards):
        events.filter(pl.col("subject_id") % num_shards == shard).write_parquet(path / "data" / f"{shard}.parquet")
    subjects = sorted({row[0] for row in rows})
    pl.DataFrame({"subject_id": subjects, "split": [(splits or {}).get(s, "train") for s in subjects]}).write_parquet(
        path / "metadata" / "subject_splits.parquet"
    )
    codes = events["code"].unique().sort()
    names = codes.replace_strict({"LAB//50912//mg/dL": "Creatinine", "LAB//50983//mEq/L": "Sodium"}, default=None)
    pl.DataFrame({"code": codes, "description": names}).write_parquet(path / "metadata" / "codes.parquet")
    return replace(meds, kinds=DEFAULT_KINDS)


def samples_at(meds: MedsDataset, times: list[tuple[int, float]]) -> pl.DataFrame:
    """Samples of (subject, day)."""
    table = pl.DataFrame(
        {
            "subject_id": pl.Series([s for s, _ in times], dtype=pl.Int64),
            "prediction_time": pl.Series([at(t) for _, t in times]).cast(pl.Datetime("us")),
        }
    ).with_row_index("sample")
    return with_admissions(table, admissions(meds))


def served(modality: Modality, meds: MedsDataset, path: Path, samples: pl.DataFrame) -> tuple[Any, Path, Reader]:
    """The group of all the samples, the store, and the reader. A store in `path` is taken as it is."""
    store, selection = path / "stores" / "store", path / "selection"
    if not store.exists():
        store.mkdir(parents=True)
        modality.build(meds, store)
    selection.mkdir(exist_ok=True)
    modality.select(meds, store, samples, selection)
    reader = modality.reader(store, selection)
    return reader(np.arange(samples.height)), store, reader
