"""Hourly features of intensive-care stays: which stays there are, what their hours hold, and what a sample sees."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from polars.testing import assert_frame_equal

from ehrlab.core.batch import Stays
from ehrlab.core.errors import InputError
from ehrlab.data.meds import MedsDataset
from ehrlab.data.modalities.base import admissions, with_admissions
from ehrlab.data.modalities.stays import StayModality, stay_samples, stays
from meds_folders import Event, at, event, stay, write_meds

HOUR = 1 / 24
LATE = dict.fromkeys(range(1, 10), 30.0)
"""Subject -> prediction hour: the end of the admissions of `ward`."""
SMALL = StayModality(hours=4, num_bins=3, min_frequency=0.0, max_stays=2)


def icu(subject: int, start: float, end: float | None, visit: int | None) -> list[Event]:
    """A stay from hour `start` to hour `end`."""
    begin = event(subject, start * HOUR, "ICU_ADMISSION//MICU", visit)
    return [begin] if end is None else [begin, event(subject, end * HOUR, "ICU_DISCHARGE//MICU", visit)]


def admitted(subject: int, start: float, end: float, visit: int) -> list[Event]:
    return stay(subject, start * HOUR, end * HOUR, visit)


def charted(subject: int, hour: float, code: str, visit: int | None = None) -> Event:
    """`code` may end in =<number or text>."""
    return event(subject, hour * HOUR, code, visit)


def dataset(
    path: Path, events: Iterable[Event], splits: dict[int, str] | None = None, num_shards: int = 2
) -> MedsDataset:
    """A MEDS folder in which what follows = in a code is the event's number, or text where it is none."""
    meds = write_meds(path, events, splits, num_shards)
    value = pl.col("code").str.split_exact("=", 1).struct.field("field_1")
    number = value.cast(pl.Float32, strict=False)
    code = pl.col("code").str.split("=").list.first()
    for shard in meds.shards():
        pl.read_parquet(shard).with_columns(
            numeric_value=number, text_value=pl.when(number.is_null()).then(value), code=code
        ).write_parquet(shard)
    codes = path / "metadata" / "codes.parquet"
    pl.read_parquet(codes).select(code=code).unique().sort("code").with_columns(
        description="about " + pl.col("code")
    ).write_parquet(codes)
    return meds


def samples(meds: MedsDataset, times: dict[int, float] | list[tuple[int, float]]) -> pl.DataFrame:
    """One row per subject and prediction hour, with its admission."""
    pairs = times if isinstance(times, list) else list(times.items())
    frame = pl.DataFrame(
        [(s, at(hour * HOUR), "train") for s, hour in pairs],
        schema={"subject_id": pl.Int64, "prediction_time": pl.Datetime("us"), "split": pl.String},
        orient="row",
    ).with_row_index("sample")
    return with_admissions(frame, admissions(meds))


def serve(meds: MedsDataset, modality: StayModality, rows: pl.DataFrame, folder: Path) -> Stays:
    """All rows as one batch."""
    store, selection = folder / "store", folder / "selection"
    store.mkdir(parents=True)
    selection.mkdir()
    modality.build(meds, store)
    modality.select(meds, store, rows, selection)
    return modality.reader(store, selection)(np.arange(rows.height))


def features(folder: Path) -> pl.DataFrame:
    return pl.read_parquet(folder / "store" / "features.parquet")


def names(folder: Path) -> list[str]:
    """measured: the code; a bin: code(above,up_to]; a text: code=TEXT"""
    return [
        code + {"measured": "", "bin": f"({above:g},{up_to:g}]" if up_to is not None else "", "text": f"={text}"}[what]
        for code, what, above, up_to, text in features(folder)
        .select("code", "what", "above", "up_to", "text")
        .iter_rows()
    ]


# --------------------------------------------------------------------------------------------------------- which stays


def test_a_stay_ends_before_the_next_one_begins(tmp_path):
    back_to_back = [*icu(1, 5, 9, 11), *icu(1, 0, 5, 11)]
    empty_then_long = [*icu(2, 3, 3, 21), *icu(2, 7, 9, 21)]
    endless_then_whole = [*icu(3, 0, None, 31), *icu(3, 4, 6, 32)]
    found = stays(write_meds(tmp_path, [*back_to_back, *empty_then_long, *endless_then_whole, *icu(5, 1, 2, 51)]))
    assert found["stay"].to_list() == list(range(6))
    assert found.select("subject_id", "visit_id", "start", "end").rows() == [
        (1, 11, at(0), at(5 * HOUR)),
        (1, 11, at(5 * HOUR), at(9 * HOUR)),
        (2, 21, at(3 * HOUR), at(3 * HOUR)),
        (2, 21, at(7 * HOUR), at(9 * HOUR)),
        (3, 32, at(4 * HOUR), at(6 * HOUR)),
        (5, 51, at(1 * HOUR), at(2 * HOUR)),
    ]


def test_a_nameless_stay_belongs_to_the_admission_that_it_begins_in(tmp_path):
    events = [*admitted(1, 0, 10, 11), *admitted(1, 20, 30, 12), *icu(1, 22, 25, None), *icu(1, 12, 14, None)]
    assert stays(write_meds(tmp_path, events))["visit_id"].to_list() == [None, 12]


def test_data_without_stays_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no intensive-care stay.*icu_stays"):
        stays(write_meds(tmp_path, [*admitted(1, 0, 10, 11), *icu(1, 2, None, 11)]))


# ---------------------------------------------------------------------------------------------------------- the hours


CODES = ["VITAL//1//bpm={:.1f}", "VITAL//2//UNK={:.0f}", "VITAL//3//UNK=Clear ", "VITAL//3//UNK=coarse"]
CODES += ["INPUT//4//mg={:.2f}", "ICU_PROCEDURE//5", "LAB//6//mg={:.0f}"]


def ward(rng: np.random.Generator, subject: int) -> list[Event]:
    """An admission with two stays of 3 and some 7 hours, charted at random within and around them."""
    visit = 10 * subject
    events = [*admitted(subject, 0, 30, visit), *icu(subject, 1, 4, visit), *icu(subject, 6.5, 13.25, visit)]
    for _ in range(60):
        hour = round(float(rng.uniform(0, 16)), 3)
        code = rng.choice(CODES)
        events.append(
            charted(subject, hour, str(code).format(rng.normal(20, 6)), visit if rng.random() < 0.7 else None)
        )
    return events


@pytest.fixture
def wards(tmp_path: Path) -> list[Event]:
    rng = np.random.default_rng(0)
    return [e for subject in range(1, 10) for e in ward(rng, subject)]


@pytest.mark.parametrize("value", ["last", "mean"])
def test_features_equal_those_of_a_loop_over_stays_hours_and_features(tmp_path, wards, value):
    meds = dataset(tmp_path / "meds", wards)
    modality = replace(SMALL, value=value)
    batch = serve(meds, modality, samples(meds, dict.fromkeys(range(1, 10), 30.0)), tmp_path)
    found, table = meds.scan().collect(), stays(meds)
    rows = features(tmp_path)
    assert batch.features.shape == (9, 2, 4, rows.height)
    assert batch.mask.all()
    expected = np.zeros(batch.features.shape, dtype=np.uint8)
    for subject, _, number, start, end in table.iter_rows():
        for hour in range(4):
            since, until = (pl.lit(start).dt.offset_by(f"{h}h") for h in (hour, hour + 1))
            inside = found.filter(
                (pl.col("subject_id") == subject) & (pl.col("time") >= since) & (pl.col("time") < until)
                & (pl.col("time") <= end)
            )  # fmt: skip
            for i, code, what, above, up_to, text in rows.select(rows.columns[:6]).iter_rows():
                own = inside.filter(pl.col("code") == code)
                values = own["numeric_value"].drop_nulls().to_numpy()
                shown = {
                    "measured": own.height > 0,
                    "bin": what == "bin"
                    and len(values) > 0
                    and above < (values[-1] if value == "last" else values.mean(dtype=np.float64)) <= up_to,
                    "text": text in [t.strip().upper() for t in own["text_value"].drop_nulls()],
                }[what]
                expected[subject - 1, number % 2, hour, i] = shown
    assert expected.any(axis=(0, 1, 2)).all()
    np.testing.assert_array_equal(batch.features.numpy(), expected)


def test_bins_are_cut_at_the_quantiles_of_the_hourly_training_numbers(tmp_path):
    numbers = [3.0, 7.0, 1.0, 5.0, 9.0, 2.0, 2.0]
    events = [e for s in range(1, 8) for e in (*admitted(s, 0, 9, s), *icu(s, 0, 9, s))]
    events += [charted(s, 1.5, f"VITAL//1//bpm={n}") for s, n in enumerate(numbers, 1)]
    events += [charted(1, 1.2, "VITAL//1//bpm=100")]  # not the hour's last number
    meds = dataset(tmp_path / "meds", events, dict.fromkeys(range(1, 8), "train"))
    serve(meds, SMALL, samples(meds, {1: 8.0}), tmp_path)
    low, high = np.quantile(numbers, [1 / 3, 2 / 3], method="inverted_cdf")
    assert names(tmp_path) == [
        "VITAL//1//bpm",
        f"VITAL//1//bpm(-inf,{low:g}]",
        f"VITAL//1//bpm({low:g},{high:g}]",
        f"VITAL//1//bpm({high:g},inf]",
    ]


def test_numbers_that_are_all_the_same_have_no_bins(tmp_path):
    events = [e for s in (1, 2) for e in (*admitted(s, 0, 9, s), *icu(s, 0, 9, s), charted(s, 1, "INPUT//1//mg=5"))]
    meds = dataset(tmp_path / "meds", events, {1: "train", 2: "train"})
    serve(meds, SMALL, samples(meds, {1: 8.0}), tmp_path)
    assert names(tmp_path) == ["INPUT//1//mg"]


def test_features_of_fewer_training_stays_are_dropped(tmp_path):
    events = [e for s in range(1, 12) for e in (*admitted(s, 0, 9, s), *icu(s, 0, 9, s))]
    events += [charted(s, 1, "VITAL//1//UNK=Wet") for s in range(1, 5)]
    events += [charted(s, 1, "VITAL//1//UNK=Dry") for s in range(5, 8)]
    events += [charted(11, h, "ICU_PROCEDURE//2") for h in range(4)]  # the one stay of another split
    splits = dict.fromkeys(range(1, 11), "train") | {11: "held_out"}
    meds = dataset(tmp_path / "meds", events, splits)
    serve(meds, replace(SMALL, min_frequency=0.4), samples(meds, {1: 8.0}), tmp_path)
    assert names(tmp_path) == ["VITAL//1//UNK", "VITAL//1//UNK=WET"]
    assert features(tmp_path)["num_stays"].to_list() == [7, 4]


def test_what_is_fitted_knows_training_subjects_only(tmp_path, wards):
    splits = {s: "train" if s < 6 else "tuning" for s in range(1, 10)}
    other = [(s, day, code.replace("=", "=9") if s >= 6 else code, visit, rank) for s, day, code, visit, rank in wards]
    tables = []
    for name, events in (("a", wards), ("b", other)):
        meds = dataset(tmp_path / name / "meds", events, splits)
        serve(meds, SMALL, samples(meds, {1: 30.0}), tmp_path / name)
        tables.append(features(tmp_path / name))
    assert_frame_equal(*tables)


def test_features_do_not_depend_on_how_subjects_are_spread_over_files(tmp_path, wards):
    batches = []
    for num_shards in (1, 4):
        folder = tmp_path / str(num_shards)
        meds = dataset(folder / "meds", wards, num_shards=num_shards)
        batches.append(serve(meds, SMALL, samples(meds, dict.fromkeys(range(9, 0, -2), 30.0)), folder).features)
    assert batches[0].equal(batches[1])


def test_what_happens_after_a_stays_end_or_its_first_hours_changes_nothing(tmp_path, wards):
    spans = {s: [(1, 4), (6.5, 10.5)] for s in range(1, 10)}

    def seen(e: Event) -> bool:
        hour = -1.0 if e[1] is None else e[1] / HOUR
        return not e[2].startswith(("VITAL", "INPUT", "ICU_P")) or any(a <= hour <= b for a, b in spans[e[0]])

    fewer = [e for e in wards if seen(e)]
    assert len(fewer) < len(wards)
    batches = []
    for name, events in (("a", wards), ("b", fewer)):
        meds = dataset(tmp_path / name / "meds", events)
        batches.append(serve(meds, SMALL, samples(meds, dict.fromkeys(range(1, 10), 30.0)), tmp_path / name).features)
    assert batches[0].equal(batches[1])


# ------------------------------------------------------------------------------------------------ what a sample sees


@pytest.fixture
def marked(tmp_path: Path) -> MedsDataset:
    """Subject 1: stays a, b, c in one admission, d in the next, each with a mark of its own. Subject 2: no stay."""
    events = [*admitted(1, 0, 40, 11), *admitted(1, 50, 70, 12), *admitted(2, 0, 5, 21), *admitted(3, 0, 30, 31)]
    for start, end, visit, mark in ((1, 3, 11, "a"), (5, 15, 11, "b"), (20, 30, 11, "c"), (51, 60, 12, "d")):
        events += [*icu(1, start, end, visit), charted(1, start + 0.5, f"VITAL//1//UNK={mark}", visit)]
    events += [*icu(3, 0, 20, 31), charted(3, 1, "VITAL//1//UNK=e")]
    return dataset(tmp_path / "meds", events, {1: "train", 2: "tuning", 3: "held_out"})


@pytest.mark.parametrize(
    ("hour", "seen"),
    [
        (2.9, ""),
        (3, "a"),  # over, although shorter than four hours
        (8.9, "a"),
        (9, "ab"),  # not over, but its first four hours are
        (24, "bc"),  # the last two
        (45, "bc"),
        (52, ""),  # another admission
        (55, "d"),
    ],
)
def test_a_sample_sees_the_last_known_stays_of_its_admission_oldest_first(tmp_path, marked, hour, seen):
    batch = serve(marked, SMALL, samples(marked, [(1, hour)]), tmp_path)
    ids = {name[-1].lower(): i for i, name in enumerate(names(tmp_path)) if "=" in name}
    assert batch.features.shape[1] == max(1, len(seen))
    assert batch.mask.tolist() == [[bool(seen)] if not seen else [True] * len(seen)]
    for place, mark in enumerate(seen):
        assert batch.features[0, place, :, ids[mark]].tolist() == [1, 0, 0, 0]
        assert batch.features[0, place].sum() == 2  # and "measured"
    assert seen or batch.features.sum() == 0


def test_samples_of_a_batch_are_padded_to_its_own_most_stays_and_in_the_order_asked_for(tmp_path, marked):
    rows = samples(marked, [(2, 3.0), (1, 24.0), (1, 3.0)])
    serve(marked, SMALL, rows, tmp_path)
    reader = SMALL.reader(tmp_path / "store", tmp_path / "selection")
    assert reader(np.array([2, 0])).mask.tolist() == [[True], [False]]
    turned = reader(np.array([2, 1, 0]))
    assert turned.mask.tolist() == [[True, False], [True, True], [False, False]]
    assert turned.features[0, 1].sum() == turned.features[2].sum() == 0
    assert turned.features[1].equal(reader(np.array([1])).features[0])
    assert reader(np.array([0])).features.shape == (1, 1, 4, len(names(tmp_path)))


@pytest.mark.parametrize("max_stays", [1, 3])
def test_every_long_stay_sees_itself_last_when_its_hours_are_over(tmp_path, marked, max_stays):
    found = stay_samples(marked, 4)
    assert found.columns == ["subject_id", "prediction_time", "stay"]
    assert found["prediction_time"].to_list() == [at(h * HOUR) for h in (9, 24, 55, 4)]  # "a" is too short
    rows = with_admissions(found.drop("stay").with_row_index("sample"), admissions(marked))
    modality = replace(SMALL, max_stays=max_stays)
    batch = serve(marked, modality, rows, tmp_path)
    selection = tmp_path / "selection"
    last = np.load(selection / "stays.npy")[np.load(selection / "offsets.npy")[1:] - 1]
    np.testing.assert_array_equal(last, found["stay"].to_numpy())
    assert batch.mask.sum(1).tolist() == [min(max_stays, n) for n in (2, 3, 1, 1)]


def test_a_stay_that_another_admission_interrupts_is_no_sample(tmp_path):
    events = [
        *admitted(1, 0, 40, 11),
        *icu(1, 1, 20, 11),
        *admitted(1, 3, 9, 12),
        *admitted(2, 0, 9, 21),
        *icu(2, 0, 9, 21),
    ]
    assert stay_samples(write_meds(tmp_path, events), 4)["subject_id"].to_list() == [2]


# ------------------------------------------------------------------------------------- another hospital, bad settings


def test_a_vocabulary_of_other_data_is_taken_as_it_is(tmp_path, wards):
    splits = dict.fromkeys(range(1, 10), "train")
    home = dataset(tmp_path / "home" / "meds", wards, splits)
    first = serve(home, SMALL, samples(home, dict.fromkeys(range(1, 10), 30.0)), tmp_path / "home")
    moved = replace(SMALL, vocabulary=str(tmp_path / "home" / "store"))
    strange = [*wards, *[charted(s, 2, "VITAL//77//UNK=1") for s in range(1, 10)]]
    away = dataset(tmp_path / "away" / "meds", strange, dict.fromkeys(range(1, 10), "held_out"))
    second = serve(away, moved, samples(away, dict.fromkeys(range(1, 10), 30.0)), tmp_path / "away")
    assert second.features.equal(first.features)
    assert moved.spec(tmp_path / "away" / "store") == SMALL.spec(tmp_path / "home" / "store")


def test_fingerprint_is_that_of_the_vocabularys_content(tmp_path, wards):
    assert SMALL.fingerprint() is None
    found = []
    for name, events in (("a", wards), ("b", wards), ("c", wards[:300])):
        meds = dataset(tmp_path / name / "meds", events)
        serve(meds, SMALL, samples(meds, {1: 30.0}), tmp_path / name)
        found.append(replace(SMALL, vocabulary=str(tmp_path / name / "store")).fingerprint())
    assert found[0] == found[1] != found[2]


def test_a_vocabulary_without_any_code_of_the_data_is_refused(tmp_path, wards):
    meds = dataset(tmp_path / "meds", wards)
    serve(meds, SMALL, samples(meds, {1: 30.0}), tmp_path)
    renamed = [(s, day, code.replace("//", "//9", 1) if day else code, v, r) for s, day, code, v, r in wards]
    other = dataset(tmp_path / "other", renamed)
    with pytest.raises(InputError, match=r"stays.vocabulary=.*found none of its \d+"):
        serve(other, replace(SMALL, vocabulary=str(tmp_path / "store")), samples(other, {1: 30.0}), tmp_path / "away")
    with pytest.raises(InputError, match=r"stays.vocabulary=.*nowhere: expected the folder of a store"):
        replace(SMALL, vocabulary=str(tmp_path / "nowhere")).fingerprint()


def test_data_without_charts_are_refused(tmp_path):
    meds = write_meds(tmp_path / "meds", [*admitted(1, 0, 9, 11), *icu(1, 0, 9, 11)])
    with pytest.raises(InputError, match=r"no event of the kinds vital, input, icu_procedure.*data.source.tables"):
        serve(meds, SMALL, samples(meds, {1: 8.0}), tmp_path)


def test_no_feature_that_is_common_enough_is_refused(tmp_path, wards):
    meds = dataset(tmp_path / "meds", [e for e in wards if e[0] > 1] + ward(np.random.default_rng(1), 1)[:6])
    with pytest.raises(InputError, match=r"stays.min_frequency=0.99: no feature"):
        serve(meds, replace(SMALL, min_frequency=0.99), samples(meds, {1: 30.0}), tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"hours": 0}, "stays.hours: expected 1 to"),
        ({"num_bins": 1}, "stays.num_bins: expected 2 to"),
        ({"max_stays": 0}, "stays.max_stays"),
        ({"value": "max"}, "stays.value: expected last or mean, found 'max'"),
        ({"min_frequency": 1.0}, "stays.min_frequency"),
        ({"kinds": "vital"}, "stays.kinds: expected a list"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        StayModality(**settings)


def test_unknown_kind_is_refused(tmp_path, marked):
    with pytest.raises(InputError, match=r"stays.kinds: unknown kind 'pulse'"):
        serve(marked, replace(SMALL, kinds=("pulse",)), samples(marked, [(1, 9.0)]), tmp_path)
