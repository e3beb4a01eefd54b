"""Batch.notes: which notes a sample sees, and that each text is encoded once, interrupted or not."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ehrlab.core.batch import Notes
from ehrlab.core.errors import InputError
from ehrlab.data.modalities import notes as notes_module
from ehrlab.data.modalities.notes import NoteModality
from ehrlab.data.modalities.vectors import Vectors
from ehrlab.nn.encode import TextEncoder, load_encoder
from tiny_language import NURSING, SUMMARY, Row, dataset, dated, note, samples_at, save_bert, served, stay

RADIOLOGY = "NOTE//RADIOLOGY"
DIM = 8


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_bert(tmp_path_factory.mktemp("bert"))


def vector(bert: str, text: str, max_tokens: int = 16) -> torch.Tensor:
    return load_encoder(bert, max_tokens=max_tokens, batch_size=1).encode([text])[0]


def seen(
    path: Path, bert: str, rows: list[Row], times: list[tuple[int, float]], **settings: Any
) -> tuple[Notes, NoteModality, Path]:
    meds = dataset(path / "meds", rows)
    modality = NoteModality(encoder=bert, **({"max_tokens": 16} | settings))
    group, store, _ = served(modality, meds, path, samples_at(meds, times))
    assert isinstance(group, Notes)
    return group, modality, store


def assert_notes(bert: str, group: Notes, expected: list[list[str]]) -> None:
    """Each sample's texts, in their order; the rest is padding."""
    assert group.mask.tolist() == [[i < len(texts) for i in range(group.mask.shape[1])] for texts in expected]
    assert (group.vectors[~group.mask] == 0).all()
    for row, texts in zip(group.vectors, expected):
        for found, text in zip(row, texts):
            torch.testing.assert_close(found, vector(bert, text), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------ which notes are seen
def test_the_last_note_of_each_category_is_seen_oldest_first(tmp_path: Path, bert: str) -> None:
    rows = [
        *stay(1),
        note(1, 1, "fever", RADIOLOGY),
        note(1, 2, "cough", NURSING),
        note(1, 3, "no fever", RADIOLOGY),
        note(1, 4, "worse cough", NURSING),
        note(1, 9, "stable", SUMMARY),
    ]
    group, _, _ = seen(tmp_path, bert, rows, [(1, 2.5), (1, 3.5), (1, 10)])
    assert_notes(bert, group, [["fever", "cough"], ["cough", "no fever"], ["no fever", "worse cough", "stable"]])


def test_of_more_categories_than_max_notes_the_latest_notes_are_kept(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "fever", RADIOLOGY), note(1, 2, "cough", NURSING), note(1, 3, "stable", SUMMARY)]
    group, modality, store = seen(tmp_path, bert, rows, [(1, 5)], max_notes=2)
    assert_notes(bert, group, [["cough", "stable"]])
    assert (modality.spec(store).dim, modality.spec(store).max_notes) == (DIM, 2)


def test_nothing_after_the_prediction_is_seen_but_the_summary_of_the_day_of_discharge(
    tmp_path: Path, bert: str
) -> None:
    end = 5.5
    rows = [
        *stay(1, 0, end),
        note(1, 5.4, "aspirin", NURSING),
        note(1, 5.8, "fever", RADIOLOGY),  # it has a time, so the exception is not for it
        note(1, dated(5), "stable", SUMMARY),
    ]
    times = [(1, 5.2), (1, 5.45), (1, end), (1, 5.9), (1, 6.1)]
    group, _, _ = seen(tmp_path, bert, rows, times)
    finished = ["aspirin", "stable"]
    every = ["aspirin", "fever", "stable"]
    # Before discharge neither what comes later nor a summary of the same day.
    assert_notes(bert, group, [[], ["aspirin"], finished, every, every])


def test_a_summary_dated_later_than_the_prediction_is_not_seen(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1, 0, 5.5), note(1, dated(6), "stable"), *stay(2), note(2, 1, "cough")]
    group, _, _ = seen(tmp_path, bert, rows, [(1, 5.5), (1, 6.2), (1, 7.0)])
    assert_notes(bert, group, [[], ["stable"], ["stable"]])


def test_notes_belong_to_the_admission_that_began_last(tmp_path: Path, bert: str) -> None:
    rows = [
        *stay(1, 0, 3, visit=11),
        *stay(1, 5, 9, visit=12),
        note(1, 2, "old pain", visit=11),
        note(1, 6, "new cough", visit=None),  # without an admission's number: to the one that lasts
        note(1, 4, "at home", visit=None),  # in none
        note(1, 8, "fever", visit=99),  # of an admission that is not known
    ]
    group, _, store = seen(tmp_path, bert, rows, [(1, 4.5), (1, 5.5), (1, 10)])
    assert_notes(bert, group, [["old pain"], [], ["new cough"]])
    assert len(pl.read_parquet(store / "notes.parquet")) == 2


def test_a_note_without_a_letter_is_no_note(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "cough"), note(1, 2, " \n\t "), note(1, 3, None)]
    group, _, _ = seen(tmp_path, bert, rows, [(1, 5)])
    assert_notes(bert, group, [["cough"]])


def test_a_sample_without_notes_or_without_admission_is_padding(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "cough"), *stay(2, 3, 5)]
    group, _, _ = seen(tmp_path, bert, rows, [(2, 4), (2, 1)])
    assert group.mask.tolist() == [[False], [False]]
    assert (group.vectors == 0).all()


def test_only_the_asked_categories_are_encoded(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "fever", RADIOLOGY), note(1, 2, "cough", NURSING)]
    group, _, store = seen(tmp_path, bert, rows, [(1, 5)], categories=["nursing"])
    assert_notes(bert, group, [["cough"]])
    assert len(np.load(store / "vectors.npy")) == 1


def test_a_long_note_is_its_beginning(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "chest pain and fever and cough and the old pain")]
    group, _, _ = seen(tmp_path, bert, rows, [(1, 5)], max_tokens=6)
    assert_notes(bert, group, [["chest pain and fever"]])  # and two special tokens


def test_a_batch_is_as_wide_as_its_own_widest_sample(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "fever", RADIOLOGY), note(1, 2, "cough", NURSING), *stay(2), note(2, 1, "pain")]
    meds = dataset(tmp_path / "meds", rows)
    modality = NoteModality(encoder=bert, max_tokens=16)
    _, _, reader = served(modality, meds, tmp_path, samples_at(meds, [(1, 5), (2, 5), (2, 0.5)]))
    for chosen, width in (([1, 2], 1), ([1, 0], 2), ([2], 1)):
        group = reader(np.array(chosen))
        assert isinstance(group, Notes)
        assert group.vectors.shape == (len(chosen), width, DIM)
    both = reader(np.array([1, 0]))
    assert isinstance(both, Notes)
    torch.testing.assert_close(both.vectors[0, 0], vector(bert, "pain"), rtol=1e-4, atol=1e-5)


# ------------------------------------------------------------------------------------------------------- encoded once
class Counting:
    """Stands for `load_encoder`; remembers every text, and may break at one of them."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.texts: list[str] = []
        self.break_at: str | None = None
        original = TextEncoder.encode

        def encode(encoder: TextEncoder, texts: Sequence[str], *rest: Any) -> torch.Tensor:
            if self.break_at in texts:
                raise KeyboardInterrupt
            self.texts += texts
            return original(encoder, texts, *rest)

        monkeypatch.setattr(TextEncoder, "encode", encode)


TEXTS = ["chest pain", "no fever", "old cough and new pain", "aspirin at home", "stable", "worse of the cough"]


def noted(texts: list[str]) -> list[Row]:
    """Subject i has the text i; the file of a subject is that of its number."""
    return [row for i, text in enumerate(texts, 1) for row in (*stay(i), note(i, 1, text))]


def test_equal_notes_are_encoded_once(tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch) -> None:
    counting = Counting(monkeypatch)
    group, _, store = seen(tmp_path, bert, noted(["cough", "pain", "cough", "cough"]), [(i, 5) for i in (1, 2, 3, 4)])
    assert sorted(counting.texts) == ["cough", "pain"]
    assert np.load(store / "vectors.npy").shape == (2, DIM)
    assert torch.equal(group.vectors[0], group.vectors[2])
    assert torch.equal(group.vectors[0], group.vectors[3])
    assert not torch.equal(group.vectors[0], group.vectors[1])


def test_another_data_set_encodes_only_its_new_notes(
    tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    modality = NoteModality(encoder=bert, max_tokens=16)
    for number, texts in enumerate((TEXTS[:3], TEXTS[1:5], TEXTS[1:4])):
        store = tmp_path / "stores" / str(number)
        store.mkdir(parents=True)
        if number == 2:  # nothing is new: the model is not even loaded
            monkeypatch.setattr(notes_module, "load_encoder", None)
        modality.build(dataset(tmp_path / f"meds {number}", noted(texts)), store)
    assert sorted(counting.texts) == sorted(TEXTS[:5])


def test_another_encoder_or_length_has_vectors_of_its_own(tmp_path: Path, bert: str) -> None:
    other = save_bert(tmp_path / "other bert", seed=1)
    meds = dataset(tmp_path / "meds", noted(["chest pain and fever and cough"]))
    found = []
    for number, modality in enumerate(
        (NoteModality(bert, max_tokens=16), NoteModality(other, max_tokens=16), NoteModality(bert, max_tokens=5))
    ):
        store = tmp_path / "stores" / str(number)
        store.mkdir(parents=True)
        modality.build(meds, store)
        found.append(np.load(store / "vectors.npy"))
    assert not np.allclose(found[0], found[1])
    assert not np.allclose(found[0], found[2])


def test_a_run_that_was_interrupted_in_the_middle_resumes_to_the_same_bits(
    tmp_path: Path, bert: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    counting = Counting(monkeypatch)
    modality = NoteModality(encoder=bert, max_tokens=16)
    meds = dataset(tmp_path / "meds", noted(TEXTS), num_shards=3)
    stores = {name: tmp_path / name / "store" for name in ("whole", "interrupted")}
    for store in stores.values():
        store.mkdir(parents=True)
    modality.build(meds, stores["whole"])
    assert len(counting.texts) == len(TEXTS)

    counting.texts.clear()
    counting.break_at = TEXTS[0]  # in the second of three files
    with pytest.raises(KeyboardInterrupt):
        modality.build(meds, stores["interrupted"])
    done = list(counting.texts)
    assert 0 < len(done) < len(TEXTS)
    counting.break_at = None
    shutil.rmtree(stores["interrupted"])  # as the cache does
    stores["interrupted"].mkdir()
    modality.build(meds, stores["interrupted"])
    assert sorted(counting.texts) == sorted(TEXTS)  # nothing of before the interruption is encoded again
    for name in ("vectors.npy", "notes.parquet"):
        assert (stores["whole"] / name).read_bytes() == (stores["interrupted"] / name).read_bytes()


def test_chunks_are_the_same_after_an_interruption_within_a_file(tmp_path: Path, bert: str) -> None:
    encoder = load_encoder(bert, max_tokens=16, batch_size=2)
    texts = pl.DataFrame({"key": [f"{i:02d}" for i in range(6)], "text": TEXTS})
    whole, resumed = Vectors(tmp_path / "whole"), Vectors(tmp_path / "resumed")
    calls: list[list[str]] = []

    def encode(chosen: Sequence[str]) -> np.ndarray:
        calls.append(list(chosen))
        if len(calls) == 5:  # the second chunk of the run that is interrupted
            raise KeyboardInterrupt
        return encoder.encode(chosen).numpy()

    whole.add(texts, encode, chunk=2)
    with pytest.raises(KeyboardInterrupt):
        resumed.add(texts, encode, chunk=2)
    assert resumed.missing(texts["key"]).len() == 4
    resumed.add(texts, encode, chunk=2)
    assert [*calls[:3]] == [calls[3], *calls[5:]]
    assert [len(text) for call in calls[:3] for text in call] == sorted(map(len, TEXTS), reverse=True)
    for vectors in (whole, resumed):
        assert vectors.write(texts["key"], vectors.folder / "all.npy") == DIM
    assert (whole.folder / "all.npy").read_bytes() == (resumed.folder / "all.npy").read_bytes()


# ---------------------------------------------------------------------------------------------------------- bad input
def test_data_without_notes_are_refused(tmp_path: Path, bert: str) -> None:
    with pytest.raises(InputError, match=r"notes: expected clinical notes, found none.*data\.source\.tables"):
        seen(tmp_path, bert, stay(1), [(1, 5)])


def test_notes_of_no_admission_are_refused(tmp_path: Path, bert: str) -> None:
    with pytest.raises(InputError, match="belong to an admission"):
        seen(tmp_path, bert, [*stay(1), note(1, 20, "cough", visit=None)], [(1, 5)])


def test_an_unknown_category_names_those_that_there_are(tmp_path: Path, bert: str) -> None:
    rows = [*stay(1), note(1, 1, "cough", NURSING)]
    with pytest.raises(InputError, match=r"notes\.categories: expected some of NURSING, found 'ecg'"):
        seen(tmp_path, bert, rows, [(1, 5)], categories=["ecg"])


def test_an_encoder_that_is_not_on_disk_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder, found none"):
        NoteModality(encoder=str(tmp_path / "absent")).fingerprint()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"encoder": "tiny"}, "expected a pretrained encoder"),
        ({"max_notes": 0}, r"notes\.max_notes: expected at least 1, found 0"),
        ({"max_tokens": 3}, r"notes\.max_tokens"),
        ({"batch_size": 0}, r"notes\.batch_size"),
        ({"precision": "fp16"}, r"expected one of fp32, bf16, found 'fp16'"),
        ({"categories": "ECG"}, r"notes\.categories: expected a list"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        NoteModality(**settings)
