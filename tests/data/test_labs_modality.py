"""Batch.labs: which value a sample sees, in which unit, and what is left out and counted."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrlab.core.batch import Labs
from ehrlab.core.errors import InputError
from ehrlab.data.codes import DEFAULT_KINDS
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import admissions, with_admissions
from ehrlab.data.modalities.lab_units import factor, spelling
from ehrlab.data.modalities.labs import LabModality, LabReader, abnormal_labs
from ehrlab.data.sources.source import EVENT_SCHEMA
from meds_folders import at, write_meds

EVERY = LabModality(min_frequency=0.0, clip=(0.0, 1.0))
CREATININE, SODIUM, INR = "LAB//50912//mg/dL", "LAB//50983//mEq/L", "LAB//51237//UNK"
Row = tuple[int, float | None, str, float | None, int | None]
"""subject_id, day, code, number, visit_id"""


def lab(subject: int, day: float | None, number: float | None, code: str = CREATININE, visit: int | None = 0) -> Row:
    """Of the admission `visit`; 0 = the subject's only one, which has the subject's number."""
    return subject, day, code, number, subject if visit == 0 else visit


def stay(subject: int, begin: float = 0, end: float = 10, visit: int | None = None) -> list[Row]:
    number = subject if visit is None else visit
    return [
        (subject, begin, "HOSPITAL_ADMISSION//URGENT", None, number),
        (subject, end, "HOSPITAL_DISCHARGE//HOME", None, number),
    ]


def dataset(path: Path, rows: list[Row], splits: dict[int, str] | None = None, num_shards: int = 2) -> MedsDataset:
    """All subjects train unless told otherwise."""
    subjects = {row[0] for row in rows}
    meds = write_meds(path, [], num_shards=num_shards)
    events = pl.DataFrame(
        [
            (s, None if day is None else at(day), code, number, None, visit, None)
            for s, day, code, number, visit in rows
        ],
        schema=EVENT_SCHEMA,
        orient="row",
    ).sort("subject_id", "time", nulls_last=False, maintain_order=True)
    for shard in range(num_shards):
        events.filter(pl.col("subject_id") % num_shards == shard).write_parquet(path / "data" / f"{shard}.parquet")
    of_subject = {"subject_id": sorted(subjects), "split": [(splits or {}).get(s, "train") for s in sorted(subjects)]}
    pl.DataFrame(of_subject).write_parquet(path / "metadata" / "subject_splits.parquet")
    codes = events["code"].unique().sort()
    names = codes.replace_strict({CREATININE: "Creatinine", SODIUM: "Sodium"}, default=None)
    pl.DataFrame({"code": codes, "description": names}).write_parquet(path / "metadata" / "codes.parquet")
    return replace(meds, kinds=DEFAULT_KINDS)


def samples_at(meds: MedsDataset, times: list[tuple[int, float]]) -> pl.DataFrame:
    table = pl.DataFrame(
        {
            "subject_id": [s for s, _ in times],
            "prediction_time": pl.Series([at(t) for _, t in times]).cast(pl.Datetime("us")),
        }
    ).with_row_index("sample")
    return with_admissions(table, admissions(meds))


def seen(
    path: Path, rows: list[Row], times: list[tuple[int, float]], labs: LabModality = EVERY, **folder: object
) -> tuple[Labs, pl.DataFrame, dict[str, int]]:
    """The group of the samples (subject, day), the table of tests, and the counts."""
    meds = dataset(path / "meds", rows, **folder)  # type: ignore[arg-type]
    store, selection = path / "store", path / "selection"
    for made in (store, selection):
        made.mkdir(parents=True)
    labs.build(meds, store)
    labs.select(meds, store, samples_at(meds, times), selection)
    group = labs.reader(store, selection)(np.arange(len(times)))
    assert isinstance(group, Labs)
    tests = pl.read_parquet(store / "tests.parquet")
    return group, tests, json.loads((store / "counts.json").read_text())


def in_units(group: Labs, tests: pl.DataFrame) -> list[dict[str, float]]:
    """Of each sample what was observed, in the tests' own units."""
    values = group.values.numpy() * tests["sd"].to_numpy() + tests["mean"].to_numpy()
    return [
        {item: round(float(v), 3) for item, v, is_there in zip(tests["item"], row, observed) if is_there}
        for row, observed in zip(values, group.observed)
    ]


# ---- which value


@pytest.mark.parametrize(("take", "expected"), [("last", 3.0), ("first", 1.0), ("mean", 2.0)])
def test_one_value_stands_for_a_test(tmp_path, take, expected):
    rows = [*stay(1), lab(1, 5, 2.0), lab(1, 1, 1.0), lab(1, 9, 3.0), *stay(2), lab(2, 1, 7.0)]
    group, tests, _ = seen(tmp_path, rows, [(1, 10)], replace(EVERY, take=take))
    assert in_units(group, tests) == [{"LAB//50912": expected}]


def test_nothing_after_the_prediction_time_is_seen(tmp_path):
    rows = [*stay(1), lab(1, 1, 1.0), lab(1, 3, 5.0), lab(1, 4, 130.0, SODIUM), *stay(2), lab(2, 1, 7.0)]
    group, tests, _ = seen(tmp_path, rows, [(1, 0.5), (1, 1), (1, 3.99), (1, 4)])
    assert in_units(group, tests) == [
        {},
        {"LAB//50912": 1.0},
        {"LAB//50912": 5.0},
        {"LAB//50912": 5.0, "LAB//50983": 130.0},
    ]
    assert (group.values[~group.observed] == 0).all()


def test_only_the_samples_own_admission_is_seen(tmp_path):
    rows = [*stay(1, 0, 10, visit=11), *stay(1, 50, 60, visit=12), lab(1, 5, 1.0, visit=11), lab(1, 51, 4.0, visit=12)]
    rows += [lab(1, 30, 9.0, visit=None), lab(1, 52, 8.0, SODIUM, visit=None), lab(1, 3, 2.0, SODIUM, visit=99)]
    group, tests, counts = seen(tmp_path, rows, [(1, 20), (1, 55), (1, -1)])
    assert in_units(group, tests) == [{"LAB//50912": 1.0}, {"LAB//50912": 4.0, "LAB//50983": 8.0}, {}]
    assert counts["of no admission"] == 2


def test_rows_may_be_asked_for_in_any_order(tmp_path):
    rows = [
        row
        for s in (1, 2, 3)
        for row in (*stay(s), lab(s, 1, float(s)), *([] if s == 2 else [lab(s, 2, 9.0 * s, SODIUM)]))
    ]
    group, _, _ = seen(tmp_path, rows, [(1, 9), (2, 9), (3, 9)])
    again = LabReader(2, tmp_path / "selection")(np.array([2, 0, 0]))
    np.testing.assert_array_equal(again.values, group.values[[2, 0, 0]])
    np.testing.assert_array_equal(again.observed, group.observed[[2, 0, 0]])


def test_the_number_of_shards_changes_nothing(tmp_path):
    rows = [
        row for s in range(1, 8) for row in (*stay(s), lab(s, 1, s**1.5), lab(s, 2, 1.0 / s), lab(s, 2, 9.0, SODIUM))
    ]
    times = [(s, 1.5 + s % 2) for s in range(1, 8)]
    one, tests, counts = seen(tmp_path / "one", rows, times, num_shards=1)
    three, again, counts_again = seen(tmp_path / "three", rows, times, num_shards=3)
    assert counts == counts_again
    assert_frame_equal(tests, again)
    np.testing.assert_allclose(one.values, three.values, rtol=1e-6)


# ---- what is fitted


def test_training_admissions_have_mean_0_and_standard_deviation_1(tmp_path):
    rng = np.random.default_rng(0)
    rows = [
        row
        for s in range(1, 60)
        for row in (*stay(s), *(lab(s, day, 1e4 + v) for day, v in enumerate(rng.normal(size=3))))
    ]
    group, _, _ = seen(tmp_path, rows, [(s, 10) for s in range(1, 60)])
    assert group.values.mean() == pytest.approx(0, abs=2e-2)  # numbers are stored as float32, at 1e4 in steps of 1e-3
    assert group.values.std(correction=0) == pytest.approx(1, abs=1e-2)


def test_fitting_sees_training_subjects_only(tmp_path):
    rows = [row for s in range(1, 7) for row in (*stay(s), lab(s, 1, float(s)))]
    held_out = {7: "held_out", 8: "tuning"}
    others = [row for s in held_out for row in (*stay(s), lab(s, 1, 1e6), *(lab(s, 1, 1e6, SODIUM) for _ in range(9)))]
    _, tests, _ = seen(tmp_path / "with", rows + others, [(1, 9)], LabModality(), splits=held_out)
    _, alone, _ = seen(tmp_path / "without", rows, [(1, 9)], LabModality())
    assert_frame_equal(tests, alone)


def test_outliers_are_cut_at_the_training_quantiles(tmp_path):
    rows = [row for s in range(1, 12) for row in (*stay(s), lab(s, 1, float(s)))]
    far = [*stay(20), lab(20, 1, 9999.0), *stay(21), lab(21, 1, -50.0)]
    labs = LabModality(min_frequency=0.0, clip=(0.1, 0.9))
    group, tests, _ = seen(
        tmp_path, rows + far, [(20, 9), (21, 9), (5, 9)], labs, splits={20: "held_out", 21: "held_out"}
    )
    assert in_units(group, tests) == [{"LAB//50912": 10.0}, {"LAB//50912": 2.0}, {"LAB//50912": 5.0}]


def test_tests_that_few_training_admissions_have_are_left_out_and_counted(tmp_path):
    rows = [row for s in range(1, 11) for row in (*stay(s), lab(s, 1, float(s)))]
    rows += [lab(1, 1, 140.0, SODIUM), lab(1, 2, 141.0, SODIUM), lab(2, 1, 139.0, SODIUM)]
    common, tests, counts = seen(tmp_path / "few", rows, [(1, 9)], LabModality(min_frequency=0.21))
    assert tests["item"].to_list() == ["LAB//50912"]
    assert counts["of tests that are too rare"] == 3
    assert common.values.shape == (1, 1)
    _, tests, _ = seen(tmp_path / "more", rows, [(1, 9)], LabModality(min_frequency=0.2))
    assert tests["frequency"].to_list() == [1.0, 0.2]


def test_a_constant_test_says_only_that_it_was_measured(tmp_path):
    group, _, _ = seen(tmp_path, [*stay(1), lab(1, 1, 7.1), *stay(2), lab(2, 1, 7.1), *stay(3)], [(1, 9), (3, 9)])
    assert group.values.tolist() == [[0.0], [0.0]]
    assert group.observed.tolist() == [[True], [False]]


# ---- units


def test_values_in_other_units_are_converted_to_the_commonest(tmp_path):
    rows = [*stay(1), lab(1, 1, 3.0, "LAB//50862//g/dL"), *stay(2), lab(2, 1, 4.0, "LAB//50862//g/dL")]
    rows += [*stay(3), lab(3, 1, 35.0, "LAB//50862//g/L"), *stay(4), lab(4, 1, 3.2, "LAB//50862//G/DL")]
    group, tests, counts = seen(tmp_path, rows, [(3, 9), (4, 9)])
    assert in_units(group, tests) == [{"LAB//50862": 3.5}, {"LAB//50862": 3.2}]
    assert tests["unit"].to_list() == ["g/dL"]
    assert counts["in a unit that cannot be converted"] == 0


def test_values_in_an_unknown_or_unrelated_unit_are_left_out_and_counted(tmp_path):
    rows = [row for s in (1, 2, 3) for row in (*stay(s), lab(s, 1, 1.0 + s))]
    rows += [lab(1, 2, 90.0, "LAB//50912//umol/L"), lab(2, 2, 1.0, "LAB//50912//UNK")]
    group, tests, counts = seen(tmp_path, rows, [(1, 9), (2, 9)])
    assert in_units(group, tests) == [{"LAB//50912": 2.0}, {"LAB//50912": 3.0}]
    assert counts["in a unit that cannot be converted"] == 2


def test_a_test_that_is_mostly_written_without_a_unit_is_taken_as_it_stands(tmp_path):
    rows = [row for s in (1, 2, 3) for row in (*stay(s), lab(s, 1, 1.0 + s, INR))]
    group, tests, _ = seen(tmp_path, [*rows, lab(3, 2, 77.0, "LAB//51237//ratio")], [(3, 9)])
    assert in_units(group, tests) == [{"LAB//51237": 4.0}]
    assert tests["unit"].to_list() == [None]


def test_codes_of_other_conventions_are_items_of_unknown_unit(tmp_path):
    rows = [*stay(1), lab(1, 1, 1.5, "LOINC/2160-0"), *stay(2), lab(2, 1, 2.5, "LOINC/2160-0")]
    group, tests, _ = seen(tmp_path, rows, [(2, 9)])
    assert in_units(group, tests) == [{"LOINC/2160-0": 2.5}]


@pytest.mark.parametrize(
    ("unit", "wanted", "test", "expected"),
    [
        ("g/L", "mg/dL", "x", 100.0),
        ("ng/mL", "ug/L", "x", 1.0),
        ("10^9/L", "K/uL", "x", 1.0),
        ("x10E3/uL", "#/uL", "x", 1000.0),
        ("kPa", "mm[Hg]", "x", 7.50062),
        ("mmol/L", "mEq/L", "2951-2", 1.0),
        ("mmol/L", "mEq/L", "17861-6", None),  # calcium has two charges
        ("mmol/L", "mg/dL", "2345-7", None),  # needs the molar mass
        ("titer", "Titer", "x", 1.0),
        ("UNK", "mg/dL", "x", None),
    ],
)
def test_a_factor_is_known_only_where_it_does_not_hang_on_the_test(unit, wanted, test, expected):
    found = factor(spelling(unit), spelling(wanted), test)
    assert found == (None if expected is None else pytest.approx(expected))


# ---- abnormal labs


def test_abnormal_labs_lie_outside_the_range_of_reference_the_farthest_first(tmp_path):
    rows = [row for s in range(1, 12) for row in (*stay(s), lab(s, 1, 0.6 + s / 20), lab(s, 1, 138.0 + s % 3, SODIUM))]
    rows += [*stay(20), lab(20, 1, 1.3), lab(20, 2, 120.0, SODIUM), lab(20, 9, 1.1)]
    meds = dataset(tmp_path / "meds", rows)
    (store := tmp_path / "store").mkdir()
    EVERY.build(meds, store)
    found = abnormal_labs(EVERY, store, samples_at(meds, [(1, 5), (20, 1), (20, 5), (20, 9)]))
    assert found.with_columns(pl.col("value").round(3)).rows() == [
        (1, "Creatinine", 1.3, "mg/dL", "high", 0.5, 1.2),
        (2, "Sodium", 120.0, "mEq/L", "low", 133.0, 145.0),
        (2, "Creatinine", 1.3, "mg/dL", "high", 0.5, 1.2),
        (3, "Sodium", 120.0, "mEq/L", "low", 133.0, 145.0),
    ]


def test_abnormal_labs_without_a_known_range_lie_outside_the_training_quantiles(tmp_path):
    code = "LAB//99999//AU"
    rows = [row for s in range(1, 12) for row in (*stay(s), lab(s, 1, float(s), code), lab(s, 2, 0.8 + 4 * (s == 11)))]
    meds = dataset(tmp_path / "meds", rows)
    (store := tmp_path / "store").mkdir()
    EVERY.build(meds, store)
    found = abnormal_labs(EVERY, store, samples_at(meds, [(1, 9), (6, 9), (11, 9), (11, 1)]))
    rounded = found.with_columns(pl.col("value", "low", "high").round(3)).rows()
    assert rounded == [
        (0, "99999", 1.0, "AU", "low", 2.0, 10.0),
        (2, "Creatinine", 4.8, "mg/dL", "high", 0.5, 1.2),
        (2, "99999", 11.0, "AU", "high", 2.0, 10.0),
        (3, "99999", 11.0, "AU", "high", 2.0, 10.0),
    ]


# ---- bad input


def test_values_without_number_or_time_are_counted(tmp_path):
    rows = [
        *stay(1),
        lab(1, 1, 1.0),
        lab(1, 2, None),
        lab(1, None, 3.0),
        lab(1, 3, float("nan")),
        *stay(2),
        lab(2, 1, 2.0),
    ]
    _, _, counts = seen(tmp_path, rows, [(1, 9)])
    assert (counts["values"], counts["without a number"], counts["without a time"]) == (5, 2, 1)


@pytest.mark.parametrize(
    ("rows", "complaint"),
    [
        ([*stay(1)], "expected laboratory values, found none"),
        ([*stay(1), lab(1, 1, None)], "found none among 1 values .1 without a number"),
        ([*stay(1), lab(1, 99, 1.0, visit=None)], "found none among 1 values .1 of no admission"),
    ],
)
def test_it_is_an_error_only_when_no_test_is_left(tmp_path, rows, complaint):
    with pytest.raises(InputError, match=complaint) as refusal:
        seen(tmp_path, rows, [(1, 9)])
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    "settings", [{"take": "median"}, {"min_frequency": 1.5}, {"clip": (0.9, 0.1)}, {"normal": (0.1, 0.5, 0.9)}]
)
def test_settings_are_checked(settings):
    with pytest.raises(InputError, match=f"labs.{next(iter(settings))}"):
        LabModality(**settings)
