"""Fidelity: hand-computed distances, none between a sample and itself, and a floor that a perfect generator reaches."""

import numpy as np
import polars as pl
import pytest
from scipy.stats import wasserstein_distance

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.evaluation import fidelity
from ehrlab.evaluation.sequences import Sequences
from fake_completions import FIRST_SUBJECT, SPEC, world

VISIT = SPEC.VISIT


def records(lists, first=FIRST_SUBJECT):
    table = pl.DataFrame({"subject_id": range(first, first + len(lists)), "ids": lists})
    return Sequences.read(table, SPEC)


def invented(num, seed=0, first=FIRST_SUBJECT):
    part = world(num=num, seed=seed).with_columns(pl.col("subject_id") - FIRST_SUBJECT + first)
    return Sequences.of(part, SPEC, "prompt", "truth")


def compare(real, synthetic, **options):
    return fidelity.compare(real, synthetic, **{"num_bootstrap": 60, **options})


REAL = [[VISIT, 13, 14, VISIT, 15], [VISIT, 13, 9], [VISIT, 14, 14], [VISIT, 13, 14, 15, 16]]
SYNTHETIC = [[VISIT, 13], [VISIT, 13, 9, VISIT, 25], [VISIT, 14, 17]]


def test_distances_by_hand():
    found = compare(records(REAL), records(SYNTHETIC, first=1))
    # codes 9, 13, 14, 15, 16, 17, 25
    p = np.array([1, 3, 3, 2, 1, 0, 0]) / 4
    q = np.array([1, 2, 1, 0, 0, 1, 1]) / 3
    log_p, log_q = np.log10((p * 4 + 0.5) / 5), np.log10((q * 3 + 0.5) / 4)
    # pairs of 9, 13, 14, 15, 16: (9,13) (9,14) (9,15) (9,16) (13,14) (13,15) (13,16) (14,15) (14,16) (15,16)
    pairs = np.array([1, 0, 0, 0, 2, 2, 1, 2, 1, 1]) / 4, np.array([1, 0, 0, 0, 0, 0, 0, 0, 0, 0]) / 3
    expected = {
        "prevalence_pearson": np.corrcoef(p, q)[0, 1],
        "prevalence_log_pearson": np.corrcoef(log_p, log_q)[0, 1],
        "prevalence_r2": 1 - ((p - q) ** 2).sum() / ((p - p.mean()) ** 2).sum(),
        "prevalence_difference": np.abs(p - q).mean(),
        "target_prevalence_ratio": (1 / 3) / (1 / 4),
        "cooccurrence_pearson": np.corrcoef(*pairs)[0, 1],
        "visits_per_record": wasserstein_distance([2, 1, 1, 1], [1, 2, 1]),
        "codes_per_visit": wasserstein_distance([2, 1, 2, 2, 4], [1, 2, 1, 2]),
        "sequence_length": wasserstein_distance([5, 3, 3, 5], [2, 5, 3]),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value), name


def test_correlation_difference_is_that_of_numpys_correlations():
    real, synthetic = invented(150), invented(140, seed=1, first=1)
    expected = []
    for part in (real, synthetic):
        dense = part.presence.toarray()
        expected.append(np.corrcoef(dense[:, real.presence.sum(axis=0) > 0].T))
    upper = np.triu_indices(len(expected[0]), 1)
    value = compare(real, synthetic, num_bootstrap=0)["correlation_difference"]["value"]
    assert value == pytest.approx(np.abs(expected[0] - expected[1])[upper].mean())


def test_a_sample_is_not_away_from_itself():
    real = invented(60)
    for name, entry in compare(real, real).items():
        best = 1 if name.endswith(("pearson", "_r2", "_ratio")) else 0
        assert [entry[key] for key in ("value", "low", "high")] == pytest.approx([best] * 3, abs=1e-9), name
    apart = compare(real, invented(60, first=1))
    assert apart["prevalence_difference"]["value"] == 0
    assert apart["prevalence_difference"]["high"] > 0  # other subjects, resampled on their own


def test_another_sample_of_the_same_population_is_at_the_floor_and_another_population_is_not():
    real, fair = invented(400), invented(400, seed=1, first=1)
    found = compare(real, fair)
    for name in ("prevalence_difference", "sequence_length", "correlation_difference"):
        assert found[name]["value"] == pytest.approx(found[name]["floor"], rel=1.0)
    short = world(num=400, seed=1).with_columns(pl.col("truth").list.head(2), subject_id=pl.int_range(400))
    away = compare(real, Sequences.of(short, SPEC, "prompt", "truth"))
    for name in ("prevalence_difference", "sequence_length", "visits_per_record"):
        assert away[name]["low"] > 2 * away[name]["floor"]
    assert away["prevalence_r2"]["high"] < away["prevalence_r2"]["floor"]
    assert away["target_prevalence_ratio"]["high"] < 1


def test_values_lie_in_their_intervals_and_in_their_range():
    found = compare(invented(80), invented(50, seed=1, first=1), num_bootstrap=200)
    assert set(found) == set(fidelity.MEASURES)
    for name, entry in found.items():
        smallest, largest = fidelity.MEASURES[name]
        assert smallest <= entry["low"] <= entry["value"] <= entry["high"] <= largest, name


def test_order_of_rows_and_numbers_of_subjects_change_nothing():
    real = world(num=30).select("subject_id", ids="truth")
    other = world(num=25, seed=1, first=5000).select("subject_id", ids="generated")
    first = compare(Sequences.read(real, SPEC), Sequences.read(other, SPEC))
    assert compare(Sequences.read(real.reverse(), SPEC), Sequences.read(other.reverse(), SPEC)) == first
    renamed = other.with_columns(pl.col("subject_id") + 7)
    assert compare(Sequences.read(real, SPEC), Sequences.read(renamed, SPEC)) == first


def test_the_same_subjects_are_resampled_together():
    """The difference of a record and its own continuation varies less than that of two strangers' records."""
    real = invented(200)
    table = world(num=200).with_columns(more=pl.lit([26], pl.List(pl.Int32)))
    longer = Sequences.of(table, SPEC, "prompt", "more", "truth")
    entry = compare(real, longer)["sequence_length"]
    assert (entry["value"], entry["low"], entry["high"]) == pytest.approx((1, 1, 1))


def test_what_is_undefined_says_why():
    nothing = compare(records([[13]] * 3), None)
    assert set(nothing) == set(fidelity.MEASURES)
    assert nothing["prevalence_r2"]["reason"] == "no sequences were generated"
    found = compare(records([[13], [13], [13]]), records([[5], [5]], first=1))
    for name in ("prevalence_pearson", "target_prevalence_ratio", "codes_per_visit", "correlation_difference"):
        assert found[name]["value"] is None
        assert found[name]["reason"]
    assert found["prevalence_difference"]["value"] == 1
    assert compare(records([[5]]), records([[5]], first=1))["prevalence_difference"]["reason"]


def test_two_vocabularies_are_refused():
    spec = TokenSpec(num_tokens=40, num_places=3, max_tokens=64, max_visits=8, first_code=7)
    other = Sequences.read(pl.DataFrame({"subject_id": [1], "ids": [[13]]}), spec)
    with pytest.raises(InputError, match="different vocabularies"):
        compare(records(REAL), other)


def test_prevalences_are_of_codes_that_are_not_one_patients():
    rows = [[13, 14], [13, 14], [13, 9], [13], [13, 15]]
    generated = [[14], [14], [14, 9], [14, 9], [14, 9], [9], [9, 15]]
    first, second = (
        Sequences.read(pl.DataFrame({"subject_id": range(len(ids)), "ids": ids}), SPEC) for ids in (rows, generated)
    )
    real, synthetic, is_target = fidelity.prevalences(first, second, least=4)
    assert real.tolist() == [1.5 / 6, 5.5 / 6, 2.5 / 6]  # 9, 13, 14
    assert synthetic.tolist() == [5.5 / 8, 0.5 / 8, 5.5 / 8]
    assert is_target.tolist() == [True, False, False]
    assert len(fidelity.prevalences(first, second, least=8)[0]) == 0
