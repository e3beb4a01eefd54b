"""Privacy: distances by hand, a generator that copies is found out, one that does not is not accused."""

import json

import numpy as np
import polars as pl
import pytest
from scipy import sparse
from scipy.spatial.distance import cdist

from ehrlab.evaluation import privacy
from ehrlab.evaluation.sequences import Sequences
from fake_completions import FIRST_SUBJECT, SPEC

VISIT = SPEC.VISIT


def records(lists, first=FIRST_SUBJECT):
    return Sequences.read(pl.DataFrame({"subject_id": range(first, first + len(lists)), "ids": lists}), SPEC)


def population(num, seed):
    rng = np.random.default_rng(seed)
    return [rng.choice(range(7, 27), rng.integers(3, 9), replace=False).tolist() for _ in range(num)]


def judge(synthetic, train, held_out, **options):
    sets = [records(part, first) for part, first in ((synthetic, 1), (train, 10**6), (held_out, FIRST_SUBJECT))]
    return privacy.judge(*sets, **{"num_bootstrap": 200, **options})


def test_nearest_distances_are_those_of_scipy():
    rng = np.random.default_rng(0)
    a, b = rng.random((9, 14)) < 0.3, rng.random((11, 14)) < 0.3
    expected = np.sort(cdist(a, b, "jaccard"), axis=1)[:, :2]
    found = privacy.nearest(sparse.csr_array(a.astype(np.float32)), sparse.csr_array(b.astype(np.float32)), 2)
    np.testing.assert_allclose(found, expected)
    alone = privacy.nearest(sparse.csr_array(a.astype(np.float32)), sparse.csr_array(b[:1].astype(np.float32)), 2)
    np.testing.assert_allclose(alone[:, 0], alone[:, 1])


def test_two_empty_records_are_equal():
    empty, one = sparse.csr_array(np.zeros((1, 4), np.float32)), sparse.csr_array(np.eye(4, dtype=np.float32)[:1])
    assert privacy.nearest(empty, empty, 1).tolist() == [[0]]
    assert privacy.nearest(empty, one, 1).tolist() == [[1]]


def test_measures_by_hand():
    synthetic = [[7, 8], [7, 8, 9], [20]]
    train = [[8, 7, 7], [7, 9], [21]]  # a set: order and repetition do not matter
    held_out = [[7, 8, 9, 10], [22], [23]]
    found = judge(synthetic, train, held_out)
    near, second = np.array([0, 1 / 3, 1]), np.array([2 / 3, 1 / 3, 1])
    far, far_second = np.array([1 / 2, 1 / 4, 1]), np.array([1, 1, 1])
    expected = {
        "closer_to_train": (1 + 0 + 0.5) / 3,
        "distance_train": near.mean(),
        "distance_held_out": far.mean(),
        "distance_gap": (far - near).mean(),
        "ratio_train": (near / second).mean(),
        "ratio_gap": (far / far_second - near / second).mean(),
        "copies_train": 1 / 3,
        "copies_held_out": 0,
        "copies_gap": 1 / 3,
        # similarities: training 1, 2/3, 0; held out 3/4, 0, 0
        "membership_auroc": (3 + 2 + 1) / 9,
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name
    assert found["counts"] == {"generated": 3, "train": 3, "held_out": 3, "searched": 3}


def test_a_generator_that_copies_training_records_is_found_out():
    train, held_out = population(150, 1), population(150, 2)
    found = judge(train[:120], train, held_out)
    assert found["copies_train"]["value"] == 1
    assert found["ratio_train"]["value"] < 0.05
    assert found["closer_to_train"]["low"] > 0.9
    assert found["distance_gap"]["low"] > 0
    assert found["membership_auroc"]["low"] > 0.8


def test_a_generator_that_learned_the_population_is_not_accused():
    found = judge(population(150, 3), population(150, 1), population(150, 2))
    for name, chance in (("closer_to_train", 0.5), ("distance_gap", 0), ("ratio_gap", 0), ("membership_auroc", 0.5)):
        assert found[name]["low"] < chance < found[name]["high"], name


def test_more_training_than_held_out_records_are_no_evidence():
    """The nearest of many is nearer, so equal numbers are compared."""
    found = judge(population(150, 3), population(900, 1), population(100, 2))
    assert found["counts"] == {"generated": 150, "train": 100, "held_out": 100, "searched": 900}
    assert found["closer_to_train"]["low"] < 0.5 < found["closer_to_train"]["high"]


def test_every_copy_is_found_however_few_records_are_compared():
    train, held_out = population(900, 1), population(30, 2)
    found = judge([codes[::-1] * 2 for codes in train[::-1][:200]], train, held_out)
    assert found["copies_train"]["value"] == 1
    assert found["copies_train"]["low"] == 1
    assert found["copies_gap"]["value"] < 0.1  # 30 of 900 are compared in equal numbers
    strangers = [[*range(7, 27)]] * 20  # the population has at most eight codes
    assert judge(strangers, train, held_out)["copies_train"]["value"] == 0


@pytest.mark.parametrize(("record", "copied"), [([VISIT], 1), ([9, 8, 9], 1), ([8], 0), ([8, 9, 10], 0)])
def test_a_copy_is_the_same_set_of_codes(record, copied):
    found = judge([record], [[8, 9], [VISIT, VISIT], [11]], [[12], [13], [14]])
    assert found["copies_train"]["value"] == copied


def test_order_of_rows_changes_nothing_also_where_only_some_enter():
    sets = [population(40, seed) for seed in range(3)]
    tables = [
        pl.DataFrame({"subject_id": range(first, first + 40), "ids": part})
        for part, first in zip(sets, (1, 10**6, FIRST_SUBJECT))
    ]
    first, again = (
        privacy.judge(*(Sequences.read(t, SPEC) for t in order), num_bootstrap=20, max_records=15)
        for order in (tables, [t.reverse() for t in tables])
    )
    assert first == again
    assert first["counts"] == {"generated": 15, "train": 15, "held_out": 15, "searched": 40}
    assert str(FIRST_SUBJECT)[:6] not in json.dumps(first)


def test_what_is_undefined_says_why():
    real = records(population(5, 0))
    for synthetic, train, held_out, reason in (
        (None, real, real, "no records were generated from nothing"),
        (real, None, real, "no training records are known"),
        (real, records([[7]], first=1), real, "fewer than two training or held-out records"),
    ):
        found = privacy.judge(synthetic, train, held_out)
        assert set(found) == set(privacy.MEASURES)
        for entry in found.values():
            assert entry == {"value": None, "low": None, "high": None, "reason": reason}
