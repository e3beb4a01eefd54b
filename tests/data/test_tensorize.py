"""From events to tensors: what enters, what must not, and in which order."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest
import torch

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.cohorts.task import Cohort, finish
from ehrlab.data.dataset import SampleDataset
from ehrlab.data.tensorize import VisitSettings, tensorize
from meds_folders import Event, at, dx, event, person, stay, write_meds

# One positive and one negative sample in each split.
SPLIT_OF = {1: "train", 2: "train", 3: "tuning", 4: "tuning", 5: "held_out", 6: "held_out"}


def cohort(
    prediction_day: float = 100, history_day: float | None = None, subjects: tuple[int, ...] = (1, 2, 3, 4, 5, 6)
) -> Cohort:
    return finish(
        pl.DataFrame(
            {
                "subject_id": subjects,
                "prediction_time": [at(prediction_day)] * len(subjects),
                "boolean_value": [s % 2 == 0 for s in subjects],
                "history_start": pl.Series(
                    [None if history_day is None else at(history_day)] * len(subjects), dtype=pl.Datetime("us")
                ),
            }
        ),
        {},
    )


def base(subjects: tuple[int, ...] = (1, 2, 3, 4, 5, 6)) -> list[Event]:
    """Two visits each: day 10 (401.9, 250.00) and day 40 (496)."""
    return [e for s in subjects for e in (*person(s, age=60 + s), *dx(s, 10, "401.9", "250.00"), *dx(s, 40, "496"))]


def build(path: Path, events: list[Event], samples: Cohort | None = None, **settings: object) -> Path:
    meds = write_meds(path / "meds", events, SPLIT_OF)
    (path / "out").mkdir()
    tensorize(meds, "test", samples or cohort(), VisitSettings(**settings), path / "out")  # type: ignore[arg-type]
    return path / "out"


def visits(folder: Path, subject: int) -> list[tuple[float, list[str]]]:
    """(days before last, codes without their prefix in order) of each visit of a subject's sample."""
    dataset = SampleDataset(folder / f"{SPLIT_OF[subject]}.arrow")
    batch = dataset[[dataset.subject_id.tolist().index(subject)]]
    assert batch.visits is not None
    names = [str(code).rpartition("//")[2] for code in pl.read_parquet(folder / "vocabulary.parquet")["code"]]
    return [
        (days, [names[i] for i in ids if i])
        for days, ids in zip(batch.visits.days_before_last[0].tolist(), batch.visits.codes[0].tolist())
    ]


def demographics(folder: Path, subject: int) -> list[float]:
    dataset = SampleDataset(folder / f"{SPLIT_OF[subject]}.arrow")
    return dataset.demographics[dataset.subject_id.tolist().index(subject)].tolist()


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.suffix in {".arrow", ".parquet"}}


# ---- what must not enter


def test_events_after_the_prediction_time_change_nothing(tmp_path):
    future = [
        e
        for s in SPLIT_OF
        for e in (
            *dx(s, 100.01, "428.0", "401.9"),
            *stay(s, 101, 103, visit=900 + s),
            event(s, 120, "RACE//WHITE"),
            event(s, 130, "MEDS_DEATH"),
        )
    ]
    before, after = build(tmp_path / "a", base()), build(tmp_path / "b", base() + future)
    assert content(after) == content(before)


def test_later_codes_of_a_visit_in_progress_stay_out(tmp_path):
    started = [*stay(1, 90, 110, visit=7), *dx(1, 95, "486", visit=7), *dx(1, 110, "428.0", visit=7)]
    folder = build(tmp_path, base() + started)
    assert visits(folder, 1)[-1] == (0.0, ["486"])


def test_event_at_the_prediction_time_enters_and_at_the_history_start_does_not(tmp_path):
    folder = build(tmp_path, base(), cohort(prediction_day=40, history_day=10))
    assert visits(folder, 1) == [(0.0, ["496"])]


def test_vocabulary_ignores_codes_outside_training_and_counts_them(tmp_path):
    folder = build(tmp_path, [*base(), *dx(3, 50, "E812.0", "496"), *dx(5, 50, "E812.0")])
    codes = pl.read_parquet(folder / "vocabulary.parquet")["code"].to_list()
    assert not any("E812" in code for code in codes)
    assert visits(folder, 3)[-1] == (0.0, ["496"])
    assert visits(folder, 5)[-1] == (0.0, [])  # the visit remains: that it took place was seen
    splits = json.loads((folder / "manifest.json").read_text())["splits"]
    assert [splits[s]["unknown_codes"] for s in ("train", "tuning", "held_out")] == [0, 1, 1]


def test_gender_and_race_known_outside_training_only_are_all_zeros(tmp_path):
    events = [e for e in base() if e[:3] != (5, None, "RACE//WHITE")] + [event(5, None, "RACE//ASIAN")]
    folder = build(tmp_path, events)
    assert json.loads((folder / "manifest.json").read_text())["demographics"] == [
        "age / 100",
        "age unknown",
        "GENDER//F",
        "RACE//WHITE",
    ]
    assert demographics(folder, 5)[2:] == [1, 0]


def test_static_and_unselected_events_are_no_visits(tmp_path):
    others = [
        event(1, 70, "LAB//50868//mEq/L"),
        event(1, 80, "DRUG//ASPIRIN"),
        event(1, None, "DIAGNOSIS//ICD//9//042"),
    ]
    assert visits(build(tmp_path, base() + others), 1)[-1] == (0.0, ["496"])


def test_split_of_a_sample_is_that_of_its_subject(tmp_path):
    folder = build(tmp_path, base())
    for split in ("train", "tuning", "held_out"):
        found = set(SampleDataset(folder / f"{split}.arrow").subject_id.tolist())
        assert found == {s for s, name in SPLIT_OF.items() if name == split}


# ---- what enters


def test_codes_are_distinct_and_in_order_of_rank_then_alphabet(tmp_path):
    events = [*dx(1, 60, "799.02", "038.9", "799.02", "584.9", visit=5), event(1, 60, "DIAGNOSIS//ICD//9//003.0", 5)]
    assert visits(build(tmp_path / "all", base() + events), 1)[-1][1] == ["799.02", "038.9", "584.9", "003.0"]
    assert visits(build(tmp_path / "two", base() + events, max_codes=2), 1)[-1][1] == ["799.02", "038.9"]


def test_last_visits_are_kept(tmp_path):
    assert visits(build(tmp_path, base(), max_visits=1), 1) == [(0.0, ["496"])]


def test_time_of_a_visit_is_the_start_of_its_admission(tmp_path):
    events = [*stay(1, 60, 70, visit=5), *dx(1, 70, "496", visit=5)]
    assert visits(build(tmp_path, base() + events), 1)[0] == (50.0, ["401.9", "250.00"])  # 60 - 10


def test_days_group_codes_by_calendar_day_whatever_the_visit(tmp_path):
    events = [*dx(1, 60.2, "496", visit=5), *dx(1, 60.9, "401.9", visit=6), *dx(1, 61.0, "250.00", visit=6)]
    by_visit = visits(build(tmp_path / "visit", base() + events), 1)
    by_day = visits(build(tmp_path / "day", base() + events, by="day"), 1)
    assert [codes for _, codes in by_visit[2:]] == [["496"], ["250.00", "401.9"]]
    assert [codes for _, codes in by_day[2:]] == [["401.9", "496"], ["250.00"]]


def test_other_kinds_enter_when_asked_for(tmp_path):
    folder = build(tmp_path, [*base(), event(1, 40, "DRUG//ASPIRIN")], kinds=["diagnosis", "drug"])
    assert visits(folder, 1)[-1] == (0.0, ["496", "ASPIRIN"])


def test_rare_codes_are_unknown_below_min_count(tmp_path):
    folder = build(tmp_path, [*base(), *dx(1, 50, "486"), *dx(1, 60, "486")], min_count=2)  # one sample, twice
    assert [codes for _, codes in visits(folder, 1)] == [["401.9", "250.00"], ["496"], [], []]


def test_vocabulary_starts_with_padding_and_goes_from_common_to_rare(tmp_path):
    vocabulary = pl.read_parquet(build(tmp_path, [*base(), *dx(2, 50, "003.0")]) / "vocabulary.parquet")
    assert vocabulary["id"].to_list() == [0, 1, 2, 3, 4]
    assert vocabulary["num_samples"].to_list() == [0, 2, 2, 2, 1]
    assert vocabulary["code"].to_list()[::4] == ["PADDING", "DIAGNOSIS//ICD//9//003.0"]
    assert vocabulary["description"][4] == "about DIAGNOSIS//ICD//9//003.0"


def test_age_is_that_at_the_prediction_time_top_coded_and_marked_where_unknown(tmp_path):
    events = [e for e in base() if not (e[2] == "MEDS_BIRTH" and e[0] in (2, 3))]
    folder = build(tmp_path, [*events, event(3, -300 * 365.25, "MEDS_BIRTH")])
    assert demographics(folder, 1)[:2] == pytest.approx([0.61 + 100 / 36525, 0], abs=1e-4)
    assert demographics(folder, 2)[:2] == [0, 1]
    assert demographics(folder, 3)[:2] == pytest.approx([0.9, 0])


def test_sample_without_a_visit_is_dropped_and_counted(tmp_path):
    events = [*base(), *person(7)]
    meds = write_meds(tmp_path / "meds", events, SPLIT_OF | {7: "train"})
    (tmp_path / "out").mkdir()
    tensorize(meds, "test", cohort(subjects=(1, 2, 3, 4, 5, 6, 7)), VisitSettings(), tmp_path / "out")
    data = ClinicalData.open({"samples": tmp_path / "out"})
    assert data.cohort.dropped == {"samples without a visit": 1}
    assert data.samples("train")["subject_id"].to_list() == [2, 1]  # shards go by parity: order of files, then subjects


def test_cohort_statistics_are_those_of_table_1(tmp_path):
    found = json.loads((build(tmp_path, [*base(), *dx(3, 50, "042")]) / "cohort.json").read_text())
    assert (found["positive_cases"], found["negative_cases"], found["subjects"]) == (3, 3, 6)
    assert found["visits_per_patient"] == pytest.approx(13 / 6)
    assert found["codes_per_visit"] == pytest.approx(19 / 13)
    assert found["unique_codes"] == 4  # the unknown one included
    assert found["simulated"] is True


# ---- the files


def test_same_events_give_the_same_bytes(tmp_path):
    assert content(build(tmp_path / "a", base())) == content(build(tmp_path / "b", base()))


def test_number_of_event_files_changes_the_order_of_samples_only(tmp_path):
    def everything(name: str, num_shards: int) -> list[tuple[int, torch.Tensor]]:
        meds = write_meds(tmp_path / name, base(), SPLIT_OF, num_shards)
        out = tmp_path / f"{name}-out"
        out.mkdir()
        tensorize(meds, "test", cohort(), VisitSettings(), out)
        dataset = SampleDataset(out / "train.arrow")
        batch: Batch = dataset[list(range(len(dataset)))]
        assert batch.visits is not None
        return sorted(zip(batch.subject_id.tolist(), batch.visits.codes.tolist()))

    assert everything("one", 1) == everything("three", 3)


def test_size_of_the_portions_worked_on_changes_nothing(tmp_path, monkeypatch):
    twice = finish(pl.concat([cohort(100).samples, cohort(30).samples]), {})
    whole = build(tmp_path / "whole", base(), twice)
    monkeypatch.setattr("ehrlab.data.tensorize.PORTION", 1)
    assert content(build(tmp_path / "portions", base(), twice)) == content(whole)


def test_nothing_but_the_named_files_is_left(tmp_path):
    names = {p.name for p in build(tmp_path, base()).iterdir()}
    arrows = {"train.arrow", "tuning.arrow", "held_out.arrow"}
    assert names == arrows | {"vocabulary.parquet", "manifest.json", "cohort.json", "labels.parquet"}


# ---- bad input


def test_one_class_in_a_split_is_refused_with_its_counts(tmp_path):
    with pytest.raises(InputError, match=r"'test'.*held_out 0/1"):
        build(tmp_path, base(), cohort(subjects=(1, 2, 3, 4, 5)))


def test_class_that_only_samples_without_visits_had_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"held_out 0/1.*samples without a visit: 1"):
        build(tmp_path, [*base((1, 2, 3, 4, 5)), *person(6)])


@pytest.mark.parametrize(
    ("setting", "value"),
    [("kinds", ["diagnoses"]), ("kinds", []), ("by", "week"), ("max_visits", 0), ("max_codes", 0), ("min_count", 0)],
)
def test_impossible_settings_are_refused_by_name(tmp_path, setting, value):
    with pytest.raises(InputError, match=rf"visits\.{setting}"):
        build(tmp_path, base(), **{setting: value})


def test_min_count_that_empties_the_vocabulary_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"visits\.min_count=3"):
        build(tmp_path, base(), min_count=3)
