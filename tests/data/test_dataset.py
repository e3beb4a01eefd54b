"""The memory-mapped dataset against a plain loop, and its behaviour with workers and damaged files."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import polars as pl
import pyarrow as pa
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.task import finish
from ehrlab.data.dataset import SampleDataset, as_it_is
from ehrlab.data.sampler import BucketedBatches
from ehrlab.data.tensorize import VisitSettings, tensorize
from meds_folders import Event, at, dx, person, write_meds

NUM_SAMPLES = 17


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """17 training samples of 1 to 7 visits with 1 to 5 codes; two each in the other splits."""
    path = tmp_path_factory.mktemp("dataset")
    rng = np.random.default_rng(0)
    subjects = range(1, NUM_SAMPLES + 5)
    events: list[Event] = []
    for subject in subjects:
        events += person(subject, "FM"[subject % 2], age=50 + subject)
        for day in np.cumsum(rng.integers(1, 40, size=rng.integers(1, 8))).tolist():
            events += dx(subject, day, *(str(c) for c in rng.integers(100, 140, size=rng.integers(1, 6))))
    splits = {s: "train" if s <= NUM_SAMPLES else ("tuning", "held_out")[s % 2] for s in subjects}
    labels = {s: s % 3 == 0 if s <= NUM_SAMPLES else s > NUM_SAMPLES + 2 for s in subjects}
    samples = pl.DataFrame(
        {
            "subject_id": [*labels],
            "prediction_time": [at(400 + s) for s in labels],
            "boolean_value": [*labels.values()],
        }
    )
    out = path / "out"
    out.mkdir()
    tensorize(write_meds(path / "meds", events, splits), "test", finish(samples, {}), VisitSettings(), out)
    return out


@pytest.fixture(scope="module")
def dataset(folder: Path) -> SampleDataset:
    return SampleDataset(folder / "train.arrow")


def naive(path: Path, indices: list[int]) -> dict[str, torch.Tensor]:
    """The batch by a loop over patients, visits and codes, from the file as Python objects."""
    rows = [pa.ipc.open_file(str(path)).read_all().to_pylist()[i] for i in indices]
    num_visits = max(len(row["codes"]) for row in rows)
    num_codes = max(len(visit) for row in rows for visit in row["codes"])
    codes = torch.zeros(len(rows), num_visits, num_codes, dtype=torch.long)
    days = torch.zeros(len(rows), num_visits)
    mask = torch.zeros(len(rows), num_visits, dtype=torch.bool)
    for b, row in enumerate(rows):
        for v, visit in enumerate(row["codes"]):
            mask[b, v] = True
            days[b, v] = row["days_before_last"][v]
            for c, code in enumerate(visit):
                codes[b, v, c] = code
    return {
        "codes": codes,
        "days": days,
        "mask": mask,
        "subject_id": torch.tensor([row["subject_id"] for row in rows]),
        "labels": torch.tensor([row["labels"] for row in rows]),
        "demographics": torch.tensor([row["demographics"] for row in rows]),
    }


def assert_equal(batch: Batch, expected: dict[str, torch.Tensor]) -> None:
    assert batch.visits is not None
    found = {
        "codes": batch.visits.codes,
        "days": batch.visits.days_before_last,
        "mask": batch.visits.mask,
        "subject_id": batch.subject_id,
        "labels": batch.labels,
        "demographics": batch.demographics,
    }
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=0, atol=0, msg=name)


@given(indices=st.lists(st.integers(0, NUM_SAMPLES - 1), min_size=1, max_size=20))
def test_batch_equals_a_loop_over_patients_visits_and_codes(folder, dataset, indices):
    assert_equal(dataset[indices], naive(folder / "train.arrow", indices))


def test_batch_is_no_wider_than_its_own_longest_patient_and_visit(dataset):
    shortest = int(np.argmin(dataset.lengths))
    batch = dataset[[shortest]]
    assert batch.visits is not None
    assert batch.visits.mask.all()
    assert batch.visits.codes.any(dim=1).any(dim=0).all()


def test_last_visit_has_gap_zero_and_gaps_fall(dataset):
    visits = dataset[list(range(len(dataset)))].visits
    for days, mask in zip(visits.days_before_last, visits.mask):
        assert days[mask][-1] == 0
        assert (days[mask].diff() <= 0).all()


def test_prediction_time_is_in_microseconds_and_names_the_sample(dataset):
    batch = dataset[[2]]
    subject = int(batch.subject_id)
    assert int(batch.prediction_time) == pl.Series([at(400 + subject)]).cast(pl.Datetime("us")).to_physical()[0]
    assert dataset.samples().row(2) == (subject, at(400 + subject), subject % 3 == 0)


def test_columns_are_views_of_the_mapped_file(dataset):
    before = pa.total_allocated_bytes()
    again = SampleDataset(dataset.path)
    assert pa.total_allocated_bytes() == before
    assert not again.demographics.flags.owndata
    assert not again._codes.flags.owndata


def test_batches_may_be_changed_without_touching_the_file(dataset):
    batch = dataset[[0, 1]]
    for tensor in (batch.subject_id, batch.labels, batch.demographics):
        tensor.zero_()
    assert_equal(dataset[[0, 1]], naive(dataset.path, [0, 1]))


@pytest.mark.parametrize("context", ["fork", "spawn"])
def test_workers_give_the_same_batches_as_the_main_process(dataset, context):
    batches = BucketedBatches(dataset.lengths, 4, shuffle=False)
    loader = DataLoader(
        dataset, batch_sampler=batches, collate_fn=as_it_is, num_workers=2, multiprocessing_context=context
    )
    for found, indices in zip(loader, batches, strict=True):
        assert_equal(found, naive(dataset.path, indices))


def test_pickled_dataset_is_its_path(dataset):
    assert len(pickle.dumps(dataset)) < 1000
    assert len(pickle.loads(pickle.dumps(dataset))) == NUM_SAMPLES


@pytest.mark.parametrize("damage", ["empty", "truncated", "header", "columns", "missing"])
def test_damaged_file_is_refused_with_the_remedy(folder, tmp_path, damage):
    whole = (folder / "train.arrow").read_bytes()
    path = tmp_path / "train.arrow"
    if damage == "columns":
        table = pa.ipc.open_file(whole).read_all().drop(["demographics"])
        with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
            writer.write_table(table)
    elif damage != "missing":
        path.write_bytes(
            {"empty": b"", "truncated": whole[:-100], "header": b"\0" * 8 + whole[8:-8] + b"\0" * 8}[damage]
        )
    with pytest.raises(InputError, match=rf"train\.arrow.*Delete the folder {tmp_path}"):
        SampleDataset(path)
