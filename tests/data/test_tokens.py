"""Whole records as sequences of tokens: what stands in them, in which order, what must not, and how they are served."""

from __future__ import annotations

import json
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ehrlab.core.errors import InputError
from ehrlab.core.model import Needs
from ehrlab.core.spec import TokenSpec
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.cohorts.rare_code import RareCode
from ehrlab.data.dataset import as_it_is
from ehrlab.data.meds import SPLITS
from ehrlab.data.prepare import prepare
from ehrlab.data.sampler import BucketedBatches
from ehrlab.data.sources import open_meds
from ehrlab.data.tokens import SPECIALS, TokenDataset, Tokenizer, TokenSettings, tokenize
from meds_folders import Event, at, dx, event, person, stay, write_meds

SPLIT_OF = {1: "train", 2: "train", 3: "tuning", 4: "held_out"}
LAB = "LAB//50971//mEq/L"
START = ["<bos>", "GENDER//F", "RACE//WHITE"]


def base(subjects: Sequence[int] = (1, 2, 3, 4)) -> list[Event]:
    """A stay with two ranked codes from day 0 to 4, and a code of no stay on day 400; age 60.0 years on day 0."""
    return [
        e
        for s in subjects
        for e in (
            *person(s),
            *stay(s, 0, 4, visit=s * 10),
            *dx(s, 4, "401.9", "250.00", visit=s * 10),
            *dx(s, 400, "496"),
        )
    ]


def build(
    path: Path, events: Sequence[Event], splits: Mapping[int, str] = SPLIT_OF, num_shards: int = 2, **settings: Any
) -> Path:
    meds = write_meds(path / "meds", events, splits, num_shards)
    out = path / "tokens"
    out.mkdir()
    tokenize(meds, TokenSettings(**settings), out)
    return out


def short(token: str) -> str:
    return token if token.startswith(("GENDER", "RACE", "LAB")) else token.rpartition("//")[2]


def dataset(folder: Path, split: str = "train") -> TokenDataset:
    return TokenDataset(folder / f"{split}.arrow")


def row(folder: Path, subject: int, splits: Mapping[int, str] = SPLIT_OF) -> dict[str, Any]:
    found = dataset(folder, splits[subject]).frame().filter(pl.col("subject_id") == subject)
    assert found.height == 1
    return found.row(0, named=True)


def text(folder: Path, subject: int, splits: Mapping[int, str] = SPLIT_OF) -> list[str]:
    """The sequence of a subject, codes without their prefix."""
    tokens = Tokenizer.read(folder / "tokenizer.json").tokens
    return [short(tokens[i]) for i in row(folder, subject, splits)["ids"]]


def manifest(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "manifest.json").read_text())


# ---- the sequence


def test_sequence_is_demographics_then_visits_each_opened_by_its_mark(tmp_path):
    folder = build(tmp_path, base())
    # 401.9 before 250.00: by rank, not by alphabet.
    assert text(folder, 1) == [*START, "<visit>", "401.9", "250.00", "<visit>", "496", "<eos>"]
    found, places = row(folder, 1), Tokenizer.read(folder / "tokenizer.json").places
    assert found["visit"] == [0, 0, 0, 1, 1, 1, 2, 2, 2]
    assert found["age"] == [60, 60, 60, 60, 60, 60, 61, 61, 61]
    assert found["place"] == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert places == ("<unknown>", "HOSPITAL_ADMISSION//URGENT")
    assert found["end_time"] == at(400)


def test_the_five_marks_have_the_ids_of_the_spec(tmp_path):
    tokenizer = Tokenizer.read(build(tmp_path, base()) / "tokenizer.json")
    spec = tokenizer.spec()
    assert tokenizer.tokens[:5] == SPECIALS
    named = [tokenizer.tokens[i] for i in (spec.PAD, spec.BOS, spec.EOS, spec.VISIT, spec.UNK)]
    assert named == ["<pad>", "<bos>", "<eos>", "<visit>", "<unk>"]
    assert tokenizer.tokens[5 : spec.first_code] == ("GENDER//F", "RACE//WHITE")
    assert (spec.num_tokens, spec.num_places) == (len(tokenizer.tokens), 2)


def test_codes_without_rank_stand_by_alphabet_and_each_once_in_a_visit(tmp_path):
    drugs = [event(1, 5, f"DRUG//{name}") for name in ("ZINC", "ASPIRIN", "ZINC")]
    assert text(build(tmp_path, [*base(), *drugs]), 1)[6:9] == ["<visit>", "ASPIRIN", "ZINC"]


def test_only_the_kinds_that_are_asked_for_enter(tmp_path):
    events = [*base(), event(1, 4, "DRUG//ASPIRIN", 10), event(1, 4, "PROCEDURE//ICD//9//39.95", 10)]
    assert "ASPIRIN" not in text(build(tmp_path, events, kinds=["diagnosis", "procedure"]), 1)
    assert "39.95" in text(tmp_path / "tokens", 1)


def test_demographics_may_stay_out(tmp_path):
    folder = build(tmp_path, base(), demographics=False)
    assert text(folder, 1)[:3] == ["<bos>", "<visit>", "401.9"]
    assert not any("GENDER" in token for token in Tokenizer.read(folder / "tokenizer.json").tokens)


@pytest.mark.parametrize(
    ("day", "age"),
    [(-60 * 365.25, 0), (-60 * 365.25 + 365, 0), (-60 * 365.25 + 366, 1), (-1, 59), (0, 60), (70 * 365.25, 120)],
)
def test_age_is_in_whole_years_at_the_visit_and_at_most_120(tmp_path, day, age):
    folder = build(tmp_path, [*base(), *dx(1, day, "486")])
    found = row(folder, 1)
    assert found["age"][text(folder, 1).index("486")] == age


def test_who_was_born_nobody_knows_when_is_of_age_0(tmp_path):
    events = [e for e in base() if (e[0], e[2]) != (1, "MEDS_BIRTH")]
    assert set(row(build(tmp_path, events), 1)["age"]) == {0}


def test_place_is_that_of_the_start_of_the_visit(tmp_path):
    moved = [event(1, 1, "HOSPITAL_ADMISSION//ELECTIVE", 10), event(2, -1, "HOSPITAL_ADMISSION//ELECTIVE", 20)]
    folder = build(tmp_path, [*base(), *moved])
    places = Tokenizer.read(folder / "tokenizer.json").places
    assert {places[i] for i in row(folder, 1)["place"]} == {"<unknown>", "HOSPITAL_ADMISSION//URGENT"}
    assert {places[i] for i in row(folder, 2)["place"]} == {"<unknown>", "HOSPITAL_ADMISSION//ELECTIVE"}


def test_visits_stand_in_the_order_of_their_starts(tmp_path):
    """A stay from day 5 whose codes come on day 9 is before codes of no stay on day 7."""
    late = [*stay(1, 5, 9, visit=11), *dx(1, 9, "486", visit=11), *dx(1, 7, "042")]
    assert text(build(tmp_path, [*base(), *late]), 1)[6:10] == ["<visit>", "486", "<visit>", "042"]


def test_a_subject_without_codes_has_no_sequence_and_is_counted(tmp_path):
    folder = build(tmp_path, [*base(), *person(5), *stay(5, 0, 3)], SPLIT_OF | {5: "train"})
    assert dataset(folder).frame()["subject_id"].sort().to_list() == [1, 2]
    assert manifest(folder)["subjects_without_visit"] == 1


# ---- the cut


@pytest.mark.parametrize("max_tokens", [8, 9, 10, 11, 12, 13])
def test_a_cut_sequence_is_the_beginning_of_the_whole_one_and_has_no_end(tmp_path, max_tokens):
    long = [*base(), *dx(1, 500, "486", "042")]
    whole = text(build(tmp_path / "whole", long), 1)
    assert len(whole) == 12
    cut = text(build(tmp_path / "cut", long, max_tokens=max_tokens), 1)
    assert cut == whole[:max_tokens]
    assert ("<eos>" in cut) == (max_tokens >= 12)


def test_codes_behind_the_cut_are_not_in_the_vocabulary(tmp_path):
    folder = build(tmp_path, [*base(), *dx(1, 500, "486")], max_tokens=9)
    assert not any("486" in token for token in Tokenizer.read(folder / "tokenizer.json").tokens)


def test_the_first_visits_are_kept(tmp_path):
    folder = build(tmp_path, base(), max_visits=1)
    assert text(folder, 1) == [*START, "<visit>", "401.9", "250.00"]
    assert row(folder, 1)["end_time"] == at(400)  # the record's, not the cut's


def test_manifest_counts_what_the_files_hold(tmp_path):
    folder = build(tmp_path, [*base(), *dx(1, 500, "486")], max_tokens=9)
    assert manifest(folder)["splits"]["train"] == {"subjects": 2, "tokens": 18, "visits": 5, "whole": 1, "unknown": 0}


# ---- what is fitted


def test_held_out_records_change_neither_vocabulary_nor_places_nor_bins(tmp_path):
    labs = [event(s, 1, LAB, s * 10) for s in (1, 2)]
    other = [
        *dx(4, 500, "E812.0"),
        *stay(3, 500, 501, visit=31),
        event(3, 500, "HOSPITAL_ADMISSION//ELECTIVE", 32),
        event(4, 10, "RACE//BLACK"),
        event(4, 1, LAB, 40),
    ]
    values = {1: 3.0, 2: 5.0, 4: 900.0}
    first = with_values(tmp_path / "a", [*base(), *labs], values, lab_bins=2)
    second = with_values(tmp_path / "b", [*base(), *labs, *other], values, lab_bins=2)
    assert (second / "tokenizer.json").read_bytes() == (first / "tokenizer.json").read_bytes()
    assert (second / "train.arrow").read_bytes() == (first / "train.arrow").read_bytes()


def test_unknown_codes_are_left_out_and_counted_and_their_visit_stays(tmp_path):
    folder = build(tmp_path, [*base(), *dx(4, 4, "042", visit=40), *dx(4, 500, "E812.0")])
    assert text(folder, 4) == [*START, "<visit>", "401.9", "250.00", "<visit>", "496", "<visit>", "<eos>"]
    assert manifest(folder)["splits"]["held_out"]["unknown"] == 2
    assert manifest(folder)["splits"]["train"]["unknown"] == 0


def test_a_place_that_training_lacks_is_unknown(tmp_path):
    events = [(s, d, c.replace("URGENT", "ELECTIVE") if s == 4 else c, v, r) for s, d, c, v, r in base()]
    assert set(row(build(tmp_path, events), 4)["place"]) == {0}


def test_codes_are_numbered_from_the_commonest_on_and_counted(tmp_path):
    events = [*base(), *dx(1, 500, "496", "042"), *dx(1, 600, "496"), *dx(2, 500, "042"), *dx(2, 501, "042", "401.9")]
    folder = build(tmp_path, events)
    tokenizer = Tokenizer.read(folder / "tokenizer.json")
    codes = tokenizer.counts[tokenizer.first_code :]
    assert codes == (4, 3, 3, 2)
    assert [short(t) for t in tokenizer.tokens[tokenizer.first_code :]] == ["496", "042", "401.9", "250.00"]
    ids = dataset(folder).frame()["ids"].explode().to_numpy()
    assert np.bincount(ids, minlength=len(tokenizer.tokens)).tolist() == list(tokenizer.counts)


def test_codes_in_few_training_records_are_unknown_below_min_count(tmp_path):
    folder = build(tmp_path, [*base(), *dx(1, 500, "486"), *dx(1, 600, "486")], min_count=2)  # one record, twice
    assert text(folder, 1)[6:] == ["<visit>", "496", "<visit>", "<visit>", "<eos>"]


# ---- labs


def with_values(path: Path, events: Sequence[Event], values: Mapping[int, float], **settings: Any) -> Path:
    """As `build`, with each subject's labs of the value `values[subject]` (none: no number)."""
    meds = write_meds(path / "meds", events, SPLIT_OF)
    value = pl.col("subject_id").replace_strict(values, default=None, return_dtype=pl.Float32)
    for shard in meds.shards():
        table = pl.read_parquet(shard)
        table.with_columns(numeric_value=pl.when(pl.col("code") == LAB).then(value)).write_parquet(shard)
    out = path / "tokens"
    out.mkdir()
    tokenize(meds, TokenSettings(**settings), out)
    return out


def test_labs_enter_in_bins_by_the_quantiles_of_training(tmp_path):
    labs = [event(s, 1, LAB, s * 10) for s in (1, 2, 3, 4)]
    folder = with_values(tmp_path, [*base(), *labs], {1: 3.0, 2: 5.0, 3: 1e6}, lab_bins=2)
    # What has no rank stands behind what has one.
    assert [text(folder, s)[4:7] for s in (1, 2, 3)] == [["401.9", "250.00", f"{LAB}//Q{b}"] for b in (1, 2, 2)]
    bins = Tokenizer.read(folder / "tokenizer.json").labs[LAB]
    assert (bins.cuts, bins.values) == ((4.0,), (3.5, 4.5))
    assert manifest(folder)["splits"]["held_out"]["unknown"] == 1  # without a number: the bare code, unknown here


def test_a_lab_without_a_number_is_its_bare_code(tmp_path):
    labs = [event(s, 1, LAB, s * 10) for s in (1, 2)]
    folder = with_values(tmp_path, [*base(), *labs], {2: 5.0}, lab_bins=3)
    assert LAB in text(folder, 1)


def test_a_bin_reads_back_as_its_lab_and_a_value_of_the_bin(tmp_path):
    labs = [event(s, 1, LAB, s * 10) for s in (1, 2)]
    tokenizer = Tokenizer.read(with_values(tmp_path, [*base(), *labs], {1: 3.0, 2: 5.0}, lab_bins=2) / "tokenizer.json")
    assert tokenizer.event(tokenizer.ids[f"{LAB}//Q2"]) == (LAB, 4.5)
    assert tokenizer.event(tokenizer.ids["DIAGNOSIS//ICD//9//496"]) == ("DIAGNOSIS//ICD//9//496", None)


def test_labs_that_the_data_lack_are_an_error_with_the_remedy(tmp_path):
    with pytest.raises(InputError, match=r"tokens\.lab_bins=2.*data\.source\.tables"):
        build(tmp_path, base(), lab_bins=2)


# ---- batches


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """13 training records of 1 to 7 visits, three in each other split."""
    rng = np.random.default_rng(0)
    events: list[Event] = []
    for subject in range(1, 20):
        events += person(subject, "FM"[subject % 2], age=20 + subject)
        for day in np.cumsum(rng.integers(1, 300, size=rng.integers(1, 8))).tolist():
            events += dx(subject, day, *(str(c) for c in rng.integers(100, 140, size=rng.integers(1, 6))))
    splits = {s: "train" if s <= 13 else ("tuning", "held_out")[s % 2] for s in range(1, 20)}
    return build(tmp_path_factory.mktemp("tokens"), events, splits, num_shards=3)


@given(indices=st.lists(st.integers(0, 12), min_size=1, max_size=15))
def test_batch_equals_a_loop_over_subjects_and_tokens(folder, indices):
    rows = [pa.ipc.open_file(str(folder / "train.arrow")).read_all().to_pylist()[i] for i in indices]
    batch = dataset(folder)[indices]
    length = max(len(r["ids"]) for r in rows)
    assert batch.tokens.ids.shape == (len(rows), length)
    assert batch.provides() == {"tokens"}
    for b, expected in enumerate(rows):
        n = len(expected["ids"])
        assert batch.tokens.mask[b].tolist() == [True] * n + [False] * (length - n)
        for name in ("ids", "visit", "age", "place"):
            found = getattr(batch.tokens, name)[b]
            assert found.dtype == torch.int64
            assert found.tolist() == expected[name] + [0] * (length - n)
    assert batch.subject_id.tolist() == [r["subject_id"] for r in rows]
    times = pl.Series([r["end_time"] for r in rows]).cast(pl.Datetime("us")).to_physical()
    assert batch.prediction_time.tolist() == times.to_list()


def test_padding_is_nowhere_within_a_sequence_and_visits_never_fall(folder):
    for split in SPLITS:
        for _, _, ids, visit, age, _ in dataset(folder, split).frame().iter_rows():
            assert TokenSpec.PAD not in ids
            assert ids.count(TokenSpec.VISIT) == max(visit)
            assert visit == sorted(visit)
            assert age == sorted(age)


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches_as_the_main_process(folder, context):
    tokens = dataset(folder)
    batches = BucketedBatches(tokens.lengths, 5, shuffle=False)
    loader = DataLoader(
        tokens, batch_sampler=batches, collate_fn=as_it_is, num_workers=1, multiprocessing_context=context
    )
    for found, indices in zip(loader, batches, strict=True):
        assert torch.equal(found.tokens.ids, tokens[indices].tokens.ids)


def test_pickled_dataset_is_its_path(folder):
    assert len(pickle.dumps(dataset(folder))) < 1000
    assert len(pickle.loads(pickle.dumps(dataset(folder)))) == 13


def test_batches_may_be_changed_without_touching_the_file(folder):
    tokens = dataset(folder)
    before = tokens[[0, 1]].tokens.ids.clone()
    tokens[[0, 1]].tokens.ids.zero_()
    assert torch.equal(tokens[[0, 1]].tokens.ids, before)


# ---- the files


def test_same_events_give_the_same_bytes(tmp_path):
    first, second = build(tmp_path / "a", base()), build(tmp_path / "b", base())
    names = {p.name for p in first.iterdir()}
    assert names == {*(f"{split}.arrow" for split in SPLITS), "tokenizer.json", "manifest.json"}
    assert all((first / name).read_bytes() == (second / name).read_bytes() for name in names)


def test_number_of_event_files_changes_the_order_of_subjects_only(tmp_path):
    one, three = (build(tmp_path / str(n), base(range(1, 9)), None, num_shards=n) for n in (1, 3))
    assert (one / "tokenizer.json").read_bytes() == (three / "tokenizer.json").read_bytes()
    for split in SPLITS:
        assert dataset(one, split).frame().equals(dataset(three, split).frame().sort("subject_id"))


def test_tokenizer_survives_its_file(tmp_path):
    labs = [event(s, 1, LAB, s * 10) for s in (1, 2)]
    folder = with_values(tmp_path, [*base(), *labs], {1: 3.0, 2: 5.0}, lab_bins=4)
    tokenizer = Tokenizer.read(folder / "tokenizer.json")
    tokenizer.write(tmp_path / "copy.json")
    assert Tokenizer.read(tmp_path / "copy.json") == tokenizer
    assert tokenizer.simulated
    assert tokenizer.settings == TokenSettings(lab_bins=4)


@pytest.mark.parametrize("content", [None, "", "{}", "[1]", '{"tokens": 3}'])
def test_what_is_no_tokenizer_is_refused(tmp_path, content):
    if content is not None:
        (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(InputError, match=r"tokenizer\.json: expected a tokenizer"):
        Tokenizer.read(tmp_path / "tokenizer.json")


@pytest.mark.parametrize("damage", ["empty", "truncated", "columns", "missing"])
def test_damaged_file_is_refused_with_the_remedy(folder, tmp_path, damage):
    whole = (folder / "train.arrow").read_bytes()
    path = tmp_path / "train.arrow"
    if damage == "columns":
        table = pa.ipc.open_file(whole).read_all().drop(["place"])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": whole[:-100]}[damage])
    with pytest.raises(InputError, match=rf"train\.arrow.*Delete the folder {tmp_path}"):
        TokenDataset(path)


# ---- bad settings


@pytest.mark.parametrize(
    ("setting", "value"),
    [
        ("kinds", []),
        ("kinds", ["diagnoses"]),
        ("kinds", ["lab"]),
        ("kinds", "diagnosis"),
        ("lab_bins", 1),
        ("lab_bins", -1),
        ("max_tokens", 7),
        ("max_visits", 0),
        ("min_count", 0),
        ("min_count", 3),  # more than there are training records
    ],
)
def test_impossible_settings_are_refused_by_name(tmp_path, setting, value):
    with pytest.raises(InputError, match=rf"tokens\.{setting}"):
        build(tmp_path, base(), **{setting: value})


def test_a_split_without_a_visit_is_refused(tmp_path):
    with pytest.raises(InputError, match="no subject of the split held_out has a visit"):
        build(tmp_path, [*base((1, 2, 3)), *person(4)])


# ---- the view of prepared data

SPLIT: dict[str, Any] = {"train": 0.6, "tuning": 0.2, "held_out": 0.2, "seed": 3}
VISITS: dict[str, Any] = {"kinds": ["diagnosis"]}
TOKENS: dict[str, Any] = {"max_tokens": 64, "max_visits": 5}
TASK = RareCode("septicemia", icd9=["038.9", "995.91"], icd10=[])


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("source")
    septic = [e for s in range(1, 41, 2) for e in dx(s, 500 + s, "038.9", *(["995.91"] if s % 4 == 1 else []))]
    write_meds(path, [*base(range(1, 41)), *septic])
    (path / "metadata" / "subject_splits.parquet").unlink()  # prepare makes its own
    return path


def prepared(
    source: Path, cache: Path, task: RareCode = TASK, tokens: Mapping[str, Any] | None = TOKENS
) -> ClinicalData:
    common = {"split": SPLIT, "visits": VISITS, "simulated": True}
    if tokens is None:
        return prepare(open_meds(source), task, cache, **common)
    wanted = Needs(frozenset({"visits", "tokens"}))
    return prepare(open_meds(source), task, cache, **common, wanted=wanted, tokens=tokens)


@pytest.fixture(scope="module")
def data(source: Path, tmp_path_factory: pytest.TempPathFactory) -> ClinicalData:
    return prepared(source, tmp_path_factory.mktemp("cache"))


def test_without_tokens_nothing_of_them_is_built_and_the_samples_are_the_same(source, data, tmp_path):
    plain = prepared(source, tmp_path, tokens=None)
    assert not (tmp_path / "tokens").exists()
    assert (plain.records, plain.spec.tokens, list(plain.folders)) == ({}, None, ["samples"])
    assert (plain.fingerprint, plain.folders["samples"].name) == (data.fingerprint, data.folders["samples"].name)
    assert plain.spec == replace(data.spec, tokens=None)
    assert plain.provides == data.provides - {"tokens"} == {"visits", "demographics"}


def test_view_serves_every_subject_of_a_split_once(data):
    seen = [i for batch in data.loader("train", view="tokens", batch_size=5) for i in batch.subject_id.tolist()]
    assert sorted(seen) == data.sequences("train").frame()["subject_id"].sort().to_list()
    assert len(seen) == 24


def test_sizes_bound_every_batch(data):
    spec = data.spec.tokens
    for split in SPLITS:
        for batch in data.loader(split, view="tokens", batch_size=7):
            tokens = batch.tokens
            assert tokens.ids.shape[1] <= spec.max_tokens == 64
            assert tokens.ids.max() < spec.num_tokens
            assert tokens.visit.max() <= spec.max_visits == 5
            assert tokens.place.max() < spec.num_places
            assert tokens.age.max() < spec.NUM_AGES
            assert not (tokens.ids[tokens.mask] == spec.PAD).any()


def test_target_codes_of_the_task_are_ids_from_the_commonest_on(data):
    tokens = data.tokenizer().tokens
    assert [short(tokens[i]) for i in data.spec.tokens.targets] == ["038.9", "995.91"]
    assert min(data.spec.tokens.targets) >= data.spec.tokens.first_code


def test_records_are_those_of_the_data_set_whatever_the_task(source, data, tmp_path):
    other = prepared(source, tmp_path, replace(TASK, name="other", icd9=["995.91"]))
    assert other.records == data.records
    assert other.fingerprint != data.fingerprint
    shorter = prepared(source, tmp_path, tokens={**TOKENS, "max_tokens": 10})
    assert shorter.records != data.records
    assert shorter.fingerprint == data.fingerprint


def test_tokens_of_one_data_set_are_built_once_for_all_tasks(source, tmp_path):
    first = prepared(source, tmp_path)
    second = prepared(source, tmp_path, replace(TASK, name="other", icd9=["995.91"]))
    assert first.folders["tokens"] == second.folders["tokens"]


def test_a_view_that_was_not_asked_for_is_refused(source, tmp_path):
    plain = prepared(source, tmp_path, tokens=None)
    with pytest.raises(InputError, match=r"view 'tokens'.*prepared for samples"):
        plain.loader("train", view="tokens", batch_size=4)


def test_unknown_setting_is_refused_before_any_work(source, tmp_path):
    with pytest.raises(InputError, match=r"tokens\.max_token: no such setting"):
        prepared(source, tmp_path, tokens={"max_token": 9})
    assert not any(tmp_path.iterdir())


def test_targets_that_no_sequence_can_hold_are_an_error_with_the_remedy(source, tmp_path):
    with pytest.raises(InputError, match=r"none of the task's 2 target codes.*tokens\.max_tokens"):
        prepared(source, tmp_path, tokens={**TOKENS, "max_visits": 2})


def test_truncated_sequences_are_refused_on_opening(source, tmp_path):
    found = prepared(source, tmp_path)
    path = found.folders["tokens"] / "tuning.arrow"
    path.write_bytes(path.read_bytes()[:-64])
    with pytest.raises(InputError, match=r"tuning\.arrow has .*Delete the folder"):
        ClinicalData.open(found.folders)


def test_prepared_data_survive_pickling(data):
    next(iter(data.loader("train", view="tokens", batch_size=3)))
    assert pickle.loads(pickle.dumps(data)) == data
