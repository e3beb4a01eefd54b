"""The data layer's front door: caching of each stage, sizes, loaders, bad settings and damaged folders."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
import torch

from ehrlab.core.errors import InputError
from ehrlab.data import prepare as prepare_module
from ehrlab.data.clinical import _FRACTION, ClinicalData, LabelSettings
from ehrlab.data.cohorts.admissions import Readmission
from ehrlab.data.cohorts.task import scrambled
from ehrlab.data.meds import SPLITS, MedsDataset, SplitSettings, fingerprint
from ehrlab.data.prepare import prepare
from ehrlab.data.sources.source import EVENT_SCHEMA, EventTable, Source
from meds_folders import Event, dx, person, stay, write_meds

SPLIT: dict[str, Any] = {"train": 0.6, "tuning": 0.2, "held_out": 0.2, "seed": 3}
VISITS: dict[str, Any] = {"kinds": ["diagnosis"], "by": "visit", "max_visits": 6, "max_codes": 4, "min_count": 1}
TASK = Readmission("readmission_30d")


def events(num_subjects: int = 60) -> list[Event]:
    """Three stays each; every second patient comes back within 30 days."""
    found: list[Event] = []
    for subject in range(1, num_subjects + 1):
        found += person(subject, "FM"[subject % 2])
        for i, start in enumerate((0, 20 if subject % 2 else 50, 100 + subject)):
            visit = subject * 10 + i
            found += stay(subject, start, start + 3, visit)
            found += dx(subject, start + 3, *("401.9", "250.00", "496", "486")[: 1 + subject % 4], visit=visit)
    return found


class HandWritten(Source):
    """A source of one table: the events of a parquet file."""

    name = "hand"
    provides = frozenset({"visits", "demographics"})

    def __init__(self, root: Path, table: list[Event]) -> None:
        self.root = root
        write_meds(root / "first", table, num_shards=1)
        self.path = next((root / "first" / "data").glob("*.parquet"))

    def files(self) -> list[Path]:
        return [self.path]

    def settings(self) -> dict[str, Any]:
        return {}

    def tables(self) -> Iterator[EventTable]:
        frame = pl.scan_parquet(self.path, schema=EVENT_SCHEMA).with_columns(fault=pl.lit(None, dtype=pl.UInt8))
        yield EventTable("events", frame, (), (self.path,), is_roster=True)


@pytest.fixture
def source(tmp_path: Path) -> HandWritten:
    return HandWritten(tmp_path / "raw", events())


@pytest.fixture
def data(source: HandWritten, tmp_path: Path) -> ClinicalData:
    return prepare(source, TASK, tmp_path / "cache", split=SPLIT, visits=VISITS, simulated=True)


def test_sizes_are_those_of_the_settings_and_the_training_split(data):
    train = data.samples("train")
    assert data.spec.num_codes == len(data.vocabulary()) == 5
    assert (data.spec.max_visits, data.spec.max_codes, data.spec.num_labels) == (6, 4, 1)
    assert data.spec.positive_rate == (train["boolean_value"].mean(),)
    assert data.spec.num_demographics == 2 + 2 + 1  # age twice, two genders, one race
    assert data.simulated
    batch = next(iter(data.loader("train", batch_size=8)))
    assert batch.provides() == data.provides
    assert batch.demographics.shape == (8, data.spec.num_demographics)


def test_splits_share_no_subject_and_together_are_the_cohort(data):
    subjects = [set(data.samples(split)["subject_id"]) for split in SPLITS]
    assert sum(map(len, subjects)) == len(set.union(*subjects)) == data.cohort.subjects
    total = sum(data.samples(split).height for split in SPLITS)
    assert total == data.cohort.positive_cases + data.cohort.negative_cases


def test_split_does_not_depend_on_the_task(source, data, tmp_path):
    other = prepare(source, replace(TASK, days=60), tmp_path / "cache", split=SPLIT, visits=VISITS, simulated=True)
    for split in SPLITS:
        assert set(other.samples(split)["subject_id"]) <= set(data.samples(split)["subject_id"])


def test_second_call_builds_nothing(source, data, tmp_path, monkeypatch):
    def build(*args: object, **kwargs: object) -> None:
        raise AssertionError("built again")

    monkeypatch.setattr(prepare_module.meds_folder, "build", build)
    monkeypatch.setattr(prepare_module, "tensorize", build)
    monkeypatch.setattr(Readmission, "cohort", build)
    again = prepare(source, TASK, tmp_path / "cache", split=SPLIT, visits=VISITS, simulated=True)
    assert again == data


@pytest.mark.parametrize(
    ("change", "rebuilt"),
    [
        ({"visits": {**VISITS, "max_codes": 3}}, {"shards"}),
        ({"task": replace(TASK, days=29)}, {"cohorts", "shards"}),
        ({"split": {**SPLIT, "seed": 4}}, {"meds", "cohorts", "shards"}),
        ({"simulated": False}, {"meds", "cohorts", "shards"}),
    ],
)
def test_a_setting_rebuilds_its_stage_and_those_after_it(source, data, tmp_path, change, rebuilt):
    settings: dict[str, Any] = {"task": TASK, "split": SPLIT, "visits": VISITS, "simulated": True, **change}
    prepare(source, settings.pop("task"), tmp_path / "cache", **settings)
    folders = {
        stage: sum(p.is_dir() for p in (tmp_path / "cache" / stage).iterdir())
        for stage in ("meds", "cohorts", "shards")
    }
    assert folders == {stage: 2 if stage in rebuilt else 1 for stage in folders}


def test_changed_raw_file_gives_other_data(source, data, tmp_path):
    changed = HandWritten(tmp_path / "changed", [*events(), *dx(1, 3, "428.0", visit=10)])
    assert fingerprint(changed, SplitSettings(), True) != fingerprint(source, SplitSettings(), True)
    again = prepare(changed, TASK, tmp_path / "cache", split=SPLIT, visits=VISITS, simulated=True)
    assert again.fingerprint != data.fingerprint


def test_fingerprint_is_that_of_the_content_wherever_it_lies(source, data, tmp_path):
    elsewhere = prepare(source, TASK, tmp_path / "other", split=SPLIT, visits=VISITS, simulated=True)
    assert elsewhere.fingerprint == data.fingerprint


def test_cohort_that_fails_leaves_no_shards(source, tmp_path):
    with pytest.raises(InputError, match="expected positive and negative samples"):
        prepare(source, replace(TASK, days=1), tmp_path / "cache", split=SPLIT, visits=VISITS, simulated=True)
    assert [p for p in (tmp_path / "cache" / "shards").iterdir() if p.is_dir()] == []


def test_ranks_together_see_what_one_process_sees(data):
    alone = [sorted(b.subject_id.tolist()) for b in data.loader("tuning", batch_size=5)]
    halves = [list(data.loader("tuning", batch_size=5, rank=rank, world=2)) for rank in range(2)]
    together = [sorted(a.subject_id.tolist() + b.subject_id.tolist()) for a, b in zip(*halves, strict=True)]
    assert together == alone


def test_loader_leaves_the_global_random_state_alone(data):
    before = torch.random.get_rng_state()
    list(data.loader("train", batch_size=16, shuffle=True))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_epoch_is_set_through_the_batch_sampler(data):
    def order(epoch: int) -> list[list[int]]:
        loader = data.loader("train", batch_size=16, shuffle=True, seed=5)
        loader.batch_sampler.sampler.set_epoch(epoch)
        return [batch.prediction_time.tolist() for batch in loader]

    assert order(0) == order(0) != order(1)


def test_prepared_data_survives_pickling_after_use(data):
    next(iter(data.loader("train", batch_size=4)))
    copy = pickle.loads(pickle.dumps(data))
    assert copy == data
    assert copy.samples("train").equals(data.samples("train"))


def test_the_same_samples_are_known_however_many_files_hold_them(source, data, tmp_path, monkeypatch):
    """A model that reads more tables has its subjects in more files, and is compared with one that reads less."""

    def in_three(*args: Any) -> None:
        build(*args, bucket_bytes=-(-source.path.stat().st_size // 3))

    build = prepare_module.meds_folder.build
    monkeypatch.setattr(prepare_module.meds_folder, "build", in_three)
    other = prepare(source, TASK, tmp_path / "other", split=SPLIT, visits=VISITS, simulated=True)
    assert other.dataset("train").subject_id.tolist() != data.dataset("train").subject_id.tolist()
    assert other.samples_fingerprint == data.samples_fingerprint


def test_a_share_of_the_labels_is_not_the_share_that_a_task_takes_its_controls_from():
    """Both are made of subjects and a seed, whose defaults are equal."""
    ids = np.arange(4000, dtype=np.int64)
    kept = scrambled(ids, LabelSettings().seed + _FRACTION) < np.uint64(2**63)
    taken_first = np.argsort(scrambled(ids, LabelSettings().seed)) < 2000
    assert kept.mean() == pytest.approx(0.5, abs=0.03)
    assert kept[taken_first].mean() == pytest.approx(0.5, abs=0.04)


def test_unknown_view_is_refused(data):
    with pytest.raises(InputError, match="view 'stays'"):
        data.loader("train", view="stays", batch_size=4)


def test_table_sets_the_cohort_beside_the_papers(data):
    plain = data.cohort.table("mimic", "readmission_30d")
    assert "SIMULATED" in plain
    assert "paper" not in plain
    beside = data.cohort.table("trinetx", "kidney")
    assert "39.09" in beside
    assert "8,802" in beside
    assert "SIMULATED" not in replace(data.cohort, simulated=False).table("trinetx", "kidney")


# ---- bad settings, damaged folders


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"split": {**SPLIT, "held_out": 0.3}}, "split: expected shares that add up to 1"),
        ({"split": {"train": 0.75, "seed": 0}}, "split: expected train, tuning, held_out and seed"),
        ({"visits": {**VISITS, "max_visit": 3}}, r"visits\.max_visit: no such setting"),
        ({"visits": {**VISITS, "kinds": "diagnosis"}}, r"visits\.kinds: expected a list"),
    ],
)
def test_bad_setting_is_refused_before_any_work(source, tmp_path, settings, message):
    with pytest.raises(InputError, match=message):
        prepare(source, TASK, tmp_path / "cache", **{"split": SPLIT, "visits": VISITS, "simulated": True, **settings})
    assert not (tmp_path / "cache").exists()


def test_truncated_shard_is_refused_on_opening_with_the_remedy(data):
    shard = data.folders["samples"] / "tuning.arrow"
    shard.write_bytes(shard.read_bytes()[:-64])
    with pytest.raises(InputError, match=r"tuning\.arrow has .* bytes, expected .*Delete the folder"):
        ClinicalData.open(data.folders)


@pytest.mark.parametrize("name", ["manifest.json", "vocabulary.parquet", "cohort.json", "train.arrow"])
def test_missing_file_is_refused_on_opening(data, name):
    (data.folders["samples"] / name).unlink()
    with pytest.raises(InputError, match=r"[Dd]elete the folder"):
        ClinicalData.open(data.folders)


def test_prepare_rebuilds_a_truncated_shard(source, data, tmp_path):
    shard = data.folders["samples"] / "train.arrow"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    assert prepare(source, TASK, tmp_path / "cache", split=SPLIT, visits=VISITS, simulated=True) == data
    assert shard.read_bytes() == whole


# ---- real data


@pytest.mark.skipif("EHRLAB_MIMIC3_DEMO" not in os.environ, reason="EHRLAB_MIMIC3_DEMO names no MIMIC-III demo")
def test_real_demo_gives_a_readmission_cohort_with_the_program_s_own_split(tmp_path):
    from omegaconf import OmegaConf

    from ehrlab.data.sources import open_mimic

    config = OmegaConf.load(Path(__file__).parents[2] / "conf" / "config.yaml")
    split, visits = (OmegaConf.to_container(config[name]) for name in ("split", "visits"))
    source = open_mimic(Path(os.environ["EHRLAB_MIMIC3_DEMO"]))
    data = prepare(source, TASK, tmp_path, split=split, visits=visits, simulated=False)
    assert data.cohort.positive_cases == 11
    assert data.cohort.negative_cases == 70
    for batch in data.loader("held_out", batch_size=4):
        assert batch.visits.codes.amax() < data.spec.num_codes
        assert ((batch.visits.codes > 0).sum(-1).amax()) <= data.spec.max_codes
    vocabulary = data.vocabulary()
    assert vocabulary["code"][1:].str.starts_with("DIAGNOSIS//ICD//9//").all()
    assert vocabulary["description"].null_count() < 0.1 * len(vocabulary)
    assert MedsDataset.open(next((tmp_path / "meds").glob("mimic*[!k]"))).splits().height == 100
