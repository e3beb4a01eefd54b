"""Generated sequences as a MEDS folder: what comes back when it is read, and what is refused."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data import synthetic
from ehrlab.data.cohorts.rare_code import RareCode
from ehrlab.data.meds import SPLITS, MedsDataset, SplitSettings, build
from ehrlab.data.prepare import prepare
from ehrlab.data.sources import open_meds
from ehrlab.data.sources.source import SIMULATION_MARK
from ehrlab.data.synthetic import write_meds
from ehrlab.data.tokens import LabBins, TokenDataset, Tokenizer, TokenSettings, tokenize
from meds_folders import Event, dx, event, person, stay
from meds_folders import write_meds as hand_written

PAD, BOS, EOS, VISIT, UNK, FEMALE, MALE, WHITE, FLU, ASTHMA, ASPIRIN, HIGH = range(12)
TOKENIZER = Tokenizer(
    tokens=(
        *("<pad>", "<bos>", "<eos>", "<visit>", "<unk>", "GENDER//F", "GENDER//M", "RACE//WHITE"),
        *("DIAGNOSIS//ICD//9//487.1", "DIAGNOSIS//ICD//9//493.90", "DRUG//ASPIRIN", "LAB//50971//mEq/L//Q2"),
    ),
    counts=(0, 9, 9, 30, 0, 5, 4, 9, 20, 12, 7, 3),
    first_code=8,
    places=("<unknown>", "HOSPITAL_ADMISSION//URGENT", "HOSPITAL_ADMISSION//ELECTIVE"),
    labs={"LAB//50971//mEq/L": LabBins(cuts=(4.0,), values=(3.5, 4.5))},
    settings=TokenSettings(lab_bins=2),
    simulated=False,
)


def sequence(*tokens: int, age: Sequence[int] | int = 60, place: Sequence[int] | int = 0) -> dict[str, Any]:
    """Tokens with the visits that their marks count; age and place of all, or per token."""
    visit = np.cumsum([t == VISIT for t in tokens]).tolist()
    spread = [[v] * len(tokens) if isinstance(v, int) else list(v) for v in (age, place)]
    return {"ids": list(tokens), "visit": visit, "age": spread[0], "place": spread[1]}


def frame(*sequences: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame([{"subject_id": 100 + i, **s} for i, s in enumerate(sequences)])


def written(path: Path, *sequences: dict[str, Any]) -> pl.DataFrame:
    write_meds(frame(*sequences), TOKENIZER, path, generator="test")
    return pl.read_parquet(path / "data" / "*.parquet")


def counts(path: Path) -> dict[str, int]:
    found: dict[str, int] = json.loads((path / "metadata" / "dataset.json").read_text())["counts"]
    return found


def read_back(folder: Path, path: Path, settings: TokenSettings) -> Path:
    """The synthetic folder through `data=meds` to tokens again."""
    (path / "meds").mkdir(parents=True)
    build(open_meds(folder), path / "meds", SplitSettings(), simulated=True)
    (path / "tokens").mkdir()
    tokenize(MedsDataset.open(path / "meds"), settings, path / "tokens")
    return path / "tokens"


def records(folder: Path) -> dict[int, list[tuple[int, int, str, frozenset[str]]]]:
    """subject -> (visit, age, place, set of tokens but for the marks) of each visit, from 0 on."""
    tokenizer = Tokenizer.read(folder / "tokenizer.json")
    found = {}
    for split in SPLITS:
        for subject, _, *lists in TokenDataset(folder / f"{split}.arrow").frame().iter_rows():
            visits: dict[tuple[int, int, str], set[str]] = {}
            for i, visit, age, place in zip(*lists):
                visits.setdefault((visit, age, tokenizer.places[place]), set()).add(tokenizer.tokens[i])
            found[subject] = [
                (*key, frozenset(t for t in tokens if not t.startswith("<"))) for key, tokens in visits.items()
            ]
    return found


# ---- the round trip


def hospital(num_subjects: int = 25) -> list[Event]:
    """1 to 6 visits each, most of them stays of two types, with labs."""
    rng = np.random.default_rng(0)
    events: list[Event] = []
    for subject in range(1, num_subjects + 1):
        events += person(
            subject, "FM"[subject % 2], ("WHITE", "BLACK")[subject % 3 == 0], age=float(rng.uniform(20, 90))
        )
        start = 0.0
        for i in range(rng.integers(1, 7)):
            start += float(rng.uniform(5, 500))
            visit = subject * 100 + i
            if i % 3 < 2:
                events += stay(subject, start, start + 4, visit)
                if i % 2:
                    events.append(event(subject, start, "ENCOUNTER_START//EMER", visit + 50))
            events += dx(subject, start + 4, *(str(c) for c in rng.integers(400, 412, size=3)), visit=visit)
            events.append(event(subject, start + 1, f"DRUG//{'ABC'[rng.integers(3)]}", visit))
    return events


@pytest.mark.parametrize("subjects_per_file", [10_000, 7])
def test_sequences_come_back_with_the_same_codes_ages_and_places_visit_by_visit(
    tmp_path, monkeypatch, subjects_per_file
):
    monkeypatch.setattr(synthetic, "SUBJECTS", subjects_per_file)
    (tmp_path / "tokens").mkdir()
    tokenize(hand_written(tmp_path / "meds", hospital()), TokenSettings(min_count=1), tmp_path / "tokens")
    tokenizer = Tokenizer.read(tmp_path / "tokens" / "tokenizer.json")
    sequences = pl.concat(TokenDataset(tmp_path / "tokens" / f"{split}.arrow").frame() for split in SPLITS)
    write_meds(sequences, tokenizer, tmp_path / "synthetic", generator="copy")
    again = records(read_back(tmp_path / "synthetic", tmp_path / "again", TokenSettings()))
    first = records(tmp_path / "tokens")
    assert len(first) == len(again) == 25
    # What training alone decides differs, as the split is another: only codes that both know can be compared.
    known = set(Tokenizer.read(tmp_path / "again" / "tokens" / "tokenizer.json").tokens)
    assert {s: [(*visit, tokens & known) for *visit, tokens in v] for s, v in first.items()} == again
    assert len(known) > 20


def test_a_bin_of_a_lab_comes_back_as_a_value_of_that_bin(tmp_path):
    events = written(tmp_path / "s", sequence(BOS, VISIT, HIGH, FLU, EOS))
    assert events.filter(pl.col("code") == "LAB//50971//mEq/L")["numeric_value"].to_list() == [4.5]


# ---- the events


def test_events_are_static_facts_then_birth_then_each_visit_with_its_start(tmp_path):
    s = sequence(BOS, FEMALE, WHITE, VISIT, FLU, ASPIRIN, VISIT, FLU, EOS, place=[0, 0, 0, 1, 1, 1, 2, 2, 2])
    events = written(tmp_path / "s", s)
    assert events["code"].to_list() == [
        *("GENDER//F", "RACE//WHITE", "MEDS_BIRTH"),
        *("HOSPITAL_ADMISSION//URGENT", "DIAGNOSIS//ICD//9//487.1", "DRUG//ASPIRIN"),
        *("HOSPITAL_ADMISSION//ELECTIVE", "DIAGNOSIS//ICD//9//487.1"),
    ]
    assert events["visit_id"].to_list() == [None, None, None, 0, 0, 0, 1, 1]
    assert events["time"].is_null().to_list() == [True, True, *[False] * 6]


def test_what_follows_the_end_is_passed_over(tmp_path):
    cut = written(tmp_path / "a", sequence(BOS, VISIT, FLU, EOS, VISIT, ASTHMA, EOS, PAD, PAD))
    assert cut.equals(written(tmp_path / "b", sequence(BOS, VISIT, FLU, EOS)))


def test_a_sequence_without_end_counts_to_its_padding(tmp_path):
    open_end = written(tmp_path / "a", sequence(BOS, VISIT, FLU, PAD, PAD))
    assert open_end.equals(written(tmp_path / "b", sequence(BOS, VISIT, FLU, EOS)))


def test_codes_before_the_first_visit_are_left_out_and_counted(tmp_path):
    events = written(tmp_path / "s", sequence(BOS, MALE, FLU, ASTHMA, VISIT, FLU, EOS))
    assert events["code"].to_list() == ["GENDER//M", "MEDS_BIRTH", "DIAGNOSIS//ICD//9//487.1"]
    assert counts(tmp_path / "s") == {"subjects": 1, "visits": 1, "events": 3, "codes_before_the_first_visit": 2}


def test_visits_without_a_code_are_left_out(tmp_path):
    events = written(tmp_path / "s", sequence(BOS, VISIT, VISIT, FLU, VISIT, UNK, FEMALE, EOS, place=1))
    assert counts(tmp_path / "s")["visits"] == 1
    assert events["code"].to_list() == ["MEDS_BIRTH", "HOSPITAL_ADMISSION//URGENT", "DIAGNOSIS//ICD//9//487.1"]


def test_a_code_twice_in_a_visit_is_one_event(tmp_path):
    events = written(tmp_path / "s", sequence(BOS, VISIT, FLU, FLU, VISIT, FLU, EOS))
    assert events.filter(pl.col("code").str.starts_with("DIAG")).height == 2


def test_times_rise_and_give_the_ages_back_and_ages_that_fall_are_held(tmp_path):
    ages = [60, 60, 60, 60, 60, 62, 62, 61, 61, 120, 120]
    s = sequence(BOS, VISIT, FLU, VISIT, FLU, VISIT, FLU, VISIT, FLU, VISIT, FLU, age=ages)
    events = written(tmp_path / "s", s)
    birth = events.filter(pl.col("code") == "MEDS_BIRTH")["time"][0]
    times = events.filter(pl.col("visit_id").is_not_null())["time"]
    assert times.is_sorted()
    assert times.n_unique() == 5
    assert [int((t - birth).days // 365.25) for t in times] == [60, 60, 62, 62, 120]


def test_newborns_are_born(tmp_path):
    events = written(tmp_path / "s", sequence(BOS, VISIT, FLU, age=0))
    assert events["time"].is_sorted()
    assert events["code"][0] == "MEDS_BIRTH"


# ---- the folder


def test_folder_says_that_its_records_are_simulated_and_by_what(tmp_path):
    written(tmp_path / "s", sequence(BOS, VISIT, FLU, EOS))
    source = open_meds(tmp_path / "s")
    assert source.simulated
    assert source.provides == {"visits", "demographics"}
    about = json.loads((tmp_path / "s" / "metadata" / "dataset.json").read_text())
    assert about["simulated"] is True
    assert about["synthetic"]["generator"] == "test"
    assert about["synthetic"]["fitted_on_simulated"] is False
    assert json.loads((tmp_path / "s" / SIMULATION_MARK).read_text())["generator"] == "test"


def test_a_risk_model_s_samples_can_be_prepared_from_it(tmp_path):
    people = [sequence(BOS, (FEMALE, MALE)[i % 2], VISIT, FLU, VISIT, (ASTHMA, FLU)[i % 2], EOS) for i in range(40)]
    written(tmp_path / "s", *people)
    split = {"train": 0.6, "tuning": 0.2, "held_out": 0.2, "seed": 1}
    source, task = open_meds(tmp_path / "s"), RareCode("asthma", icd9=["493.90"], icd10=[])
    settings = {"split": split, "visits": {"kinds": ["diagnosis"]}, "simulated": source.simulated}
    data = prepare(source, task, tmp_path / "cache", **settings)
    assert (data.cohort.positive_cases, data.cohort.negative_cases) == (20, 20)
    assert data.cohort.visits_per_patient == 2
    assert data.simulated


def test_same_sequences_give_the_same_bytes(tmp_path):
    people = [sequence(BOS, VISIT, FLU, ASPIRIN, VISIT, ASTHMA, EOS) for _ in range(5)]
    for name in "ab":
        written(tmp_path / name, *people)
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*") if p.is_file())
    assert len(files) == 4
    assert all((tmp_path / "a" / p).read_bytes() == (tmp_path / "b" / p).read_bytes() for p in files)


# ---- bad input


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"ids": [BOS, VISIT, 12]}, r"ids in 0 \.\. 11.*another vocabulary"),
        ({"ids": [BOS, VISIT, -1]}, r"ids in 0 \.\. 11"),
        ({"place": [0, 3, 3]}, r"place in 0 \.\. 2"),
        ({"age": [0, 121, 3]}, r"age in 0 \.\. 120"),
    ],
)
def test_what_the_tokenizer_does_not_know_is_refused(tmp_path, changed, message):
    with pytest.raises(InputError, match=message):
        written(tmp_path / "s", {**sequence(BOS, VISIT, FLU), **changed})
    assert not (tmp_path / "s").exists()


def test_missing_columns_and_repeated_subjects_are_refused(tmp_path):
    whole = frame(sequence(BOS, VISIT, FLU), sequence(BOS, VISIT, FLU))
    with pytest.raises(InputError, match="found no place"):
        write_meds(whole.drop("place"), TOKENIZER, tmp_path / "s", generator="test")
    with pytest.raises(InputError, match="each subject_id once"):
        write_meds(whole.with_columns(subject_id=7), TOKENIZER, tmp_path / "s", generator="test")


def test_a_folder_with_files_is_left_alone(tmp_path):
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(InputError, match="expected an empty folder"):
        written(tmp_path, sequence(BOS, VISIT, FLU))
    assert [p.name for p in tmp_path.iterdir()] == ["mine.txt"]
