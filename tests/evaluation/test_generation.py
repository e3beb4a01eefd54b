"""Completions in, numbers out: presence of the target, ROUGE-1, its probability, memorisation."""

import json
import sys
from itertools import pairwise

import absl.logging
import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score import rouge_scorer
from sklearn.metrics import average_precision_score, brier_score_loss, precision_recall_fscore_support, roc_auc_score

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.evaluation import generation, privacy, utility
from ehrlab.evaluation.comparison import paired_difference, row_interval
from ehrlab.evaluation.sequences import Sequences, read_completions
from fake_completions import CAUSES, FIRST_SUBJECT, SPEC, table, world

# rouge-score's logging would close pytest's own stream whenever logging is configured anew.
absl.logging.get_absl_handler().python_handler.stream = sys.__stderr__

BOS, EOS, VISIT, PAD = SPEC.BOS, SPEC.EOS, SPEC.VISIT, SPEC.PAD
A, B = SPEC.targets
PROMPT = [BOS, 5, VISIT, 13]


def evaluate(completions, **options):
    return generation.evaluate(completions, SPEC, **{"num_bootstrap": 60, **options})


def whole(completions):
    """The records that were cut."""
    return completions.select("subject_id", ids=pl.concat_list("prompt", "truth"))


def by_hand():
    """3 true positives (one by another code of the set), 1 false positive, 2 false negatives, 1 true negative."""
    return table(
        [
            ("held_out", PROMPT, [A, 14, EOS], [A, EOS], 0.9),
            ("held_out", PROMPT, [A, 14, EOS], [14, B, EOS], 0.6),
            ("held_out", [*PROMPT, A], [B, EOS], [B, 15, EOS], 0.8),
            ("held_out", PROMPT, [14, EOS], [15, A, EOS], 0.3),
            ("held_out", PROMPT, [B, EOS], [16, EOS], 0.02),
            ("held_out", PROMPT, [B, 16, EOS], [16, EOS, A], 0.1),
            ("held_out", PROMPT, [16, EOS], [16, 17, EOS], 0.05),
        ]
    )


def test_presence_of_the_target_by_hand():
    result = evaluate(by_hand())
    assert result["counts"] == {
        "true_positives": 3,
        "false_positives": 1,
        "false_negatives": 2,
        "true_negatives": 1,
    }
    values = {name: result["held_out"][name]["value"] for name in generation.PRESENCE}
    assert values == pytest.approx({"precision": 3 / 4, "recall": 3 / 5, "f1": 2 / 3})
    assert (result["num_samples"], result["num_subjects"], result["num_positive"]) == (7, 7, 5)
    assert result["onset"]["counts"]["true_positives"] == 2
    assert result["onset"]["recall"]["value"] == pytest.approx(2 / 4)


def test_presence_and_probability_are_those_of_sklearn_and_lie_in_their_intervals():
    completions = world(num=150)
    held_out = evaluate(completions, num_bootstrap=200)["held_out"]
    held = [completions[c].list.eval(pl.element().is_in([A, B])).list.any().to_numpy() for c in ("truth", "generated")]
    expected = dict(
        zip(("precision", "recall", "f1"), precision_recall_fscore_support(*held, average="binary"), strict=False)
    )
    p = completions["target_probability"].to_numpy()
    expected |= {
        "auroc": roc_auc_score(held[0], p),
        "average_precision": average_precision_score(held[0], p),
        "brier": brier_score_loss(held[0], p),
    }
    for name, value in expected.items():
        assert held_out[name]["value"] == pytest.approx(value), name
        assert held_out[name]["low"] < value < held_out[name]["high"], name


codes = st.lists(st.integers(7, 26), max_size=12)


@given(st.lists(st.tuples(codes, codes), min_size=1, max_size=5), st.booleans())
def test_rouge1_is_that_of_rouge_score(pairs, dotted):
    """Also for codes with slashes and dots, once its tokeniser leaves them whole."""

    class Words:
        def tokenize(self, text):
            return text.split()

    names = {i: f"DIAGNOSIS//ICD//10//I{i}.9" if dotted else f"i{i}" for i in range(7, 27)}
    scorer = rouge_scorer.RougeScorer(["rouge1"], tokenizer=Words() if dotted else None)
    completions = table([("held_out", PROMPT, truth, generated, None) for truth, generated in pairs])
    part = read_completions(completions, SPEC)["held_out"]
    expected = [
        scorer.score(" ".join(names[c] for c in truth), " ".join(names[c] for c in generated))["rouge1"].fmeasure
        for truth, generated in pairs
    ]
    np.testing.assert_allclose(generation.rouge1(part.generated, part.truth), expected, atol=1e-12)


def test_rouge1_counts_codes_only_and_nothing_after_the_end():
    completions = table([("held_out", PROMPT, [VISIT, 14, 14, 15, EOS], [14, VISIT, VISIT, 16, EOS, 15, PAD], None)])
    assert evaluate(completions)["held_out"]["rouge1"]["value"] == pytest.approx(2 * 1 / (3 + 2))


def test_records_that_end_at_once_are_not_scored():
    rows = [("held_out", PROMPT, [14, EOS], [14, EOS], None), ("held_out", PROMPT, [EOS], [14, EOS], None)]
    assert evaluate(table(rows))["held_out"]["rouge1"]["value"] == 1
    entry = evaluate(table(rows[1:]))["held_out"]["rouge1"]
    assert entry == {"value": None, "low": None, "high": None, "reason": "no true continuation holds a code"}


def test_what_is_undefined_says_why():
    nobody = table([("held_out", PROMPT, [14, EOS], [15, EOS], None)] * 3)
    held_out = evaluate(nobody)["held_out"]
    assert held_out["precision"]["reason"] == "no continuation was predicted to hold the target"
    assert held_out["recall"]["reason"] == "no true continuation holds the target"
    assert held_out["f1"]["value"] is None
    assert held_out["auroc"]["reason"] == "the target's probability was not computed"
    never = evaluate(table([("held_out", PROMPT, [A, EOS], [15, EOS], 0.0)] * 3))
    assert (never["held_out"]["f1"]["value"], never["held_out"]["recall"]["value"]) == (0, 0)
    assert never["held_out"]["precision"]["value"] is None
    assert never["held_out"]["auroc"]["reason"] == "every label is positive"
    prompted = evaluate(table([("held_out", [*PROMPT, A], [A, EOS], [A, EOS], None)] * 2))
    assert prompted["onset"]["recall"]["reason"] == "every prompt holds the target"


def test_the_interval_of_the_recall_of_a_rare_target_is_not_pulled_down_by_resamples_without_it():
    rows = [("held_out", PROMPT, [A, EOS], [A, EOS], None)] * 4 + [
        ("held_out", PROMPT, [14, EOS], [14, EOS], None)
    ] * 60
    entry = evaluate(table(rows), num_bootstrap=400)["held_out"]["recall"]
    assert (entry["low"], entry["high"]) == (1, 1)


def test_the_curve_trades_precision_for_recall():
    completions = world(num=300)
    curve = evaluate(completions)["curve"]
    assert [point["threshold"] for point in curve] == list(generation.THRESHOLDS)
    recalls = [point["recall"]["value"] for point in curve]
    assert recalls[0] == 1
    assert all(low >= high for low, high in pairwise(recalls))
    assert curve[-3]["precision"]["value"] > curve[0]["precision"]["value"]
    labels = completions["truth"].list.eval(pl.element().is_in([A, B])).list.any().to_numpy()
    decided = completions["target_probability"].to_numpy() >= 0.3
    at = next(point for point in curve if point["threshold"] == 0.3)
    assert at["precision"]["value"] == pytest.approx(labels[decided].mean())
    assert evaluate(completions.with_columns(target_probability=pl.lit(None, pl.Float64)))["curve"] == []


def test_memorisation_is_the_difference_of_two_means_over_different_subjects():
    test, train = world(num=60), world(num=50, split="train", first=5000)
    copied = train.with_columns(generated=pl.col("truth"))
    fair, leaky = (evaluate(pl.concat([test, part]), num_bootstrap=200)["memorisation"] for part in (train, copied))
    assert fair["rouge1_gap"]["low"] < 0 < fair["rouge1_gap"]["high"]
    assert fair["rouge1_auroc"]["low"] < 0.5 < fair["rouge1_auroc"]["high"]
    assert leaky["rouge1_train"]["value"] == 1
    assert leaky["rouge1_gap"]["value"] == pytest.approx(1 - leaky["rouge1_held_out"]["value"])
    assert leaky["rouge1_gap"]["low"] > 0
    assert leaky["rouge1_auroc"]["value"] == 1
    twins = test.with_columns(pl.col("subject_id") + 5000, split=pl.lit("train"))
    gap = evaluate(pl.concat([test, twins]))["memorisation"]["rouge1_gap"]
    assert gap["low"] < gap["value"] == 0 < gap["high"]
    alone = evaluate(test)["memorisation"]
    assert alone["rouge1_gap"]["reason"] == "no training record was continued"
    assert alone["rouge1_held_out"]["value"] == fair["rouge1_held_out"]["value"]


def test_records_from_nothing_are_compared_with_records_of_every_length():
    """Those that are continued are longer than the cut. A generator of such alone is found out."""
    rng = np.random.default_rng(0)

    def population(num, first):
        lists = [[VISIT, *rng.integers(13, 25, size).tolist()] for size in rng.geometric(0.2, num)]
        return pl.DataFrame({"subject_id": range(first, first + num), "ids": lists})

    held_out, train, made = (population(600, first) for first in (1000, 2000, 3000))
    longer = held_out.filter(pl.col("ids").list.len() > 6)
    completions = longer.select(
        "subject_id",
        split=pl.lit("held_out"),
        prompt=pl.col("ids").list.head(6),
        truth=pl.col("ids").list.slice(6),
        generated=pl.col("ids").list.slice(6),
        target_probability=pl.lit(None, pl.Float64),
    )
    real = {"train": train, "held_out": held_out}
    perfect, long = (
        evaluate(completions, synthetic=table, real=real)["fidelity"]["records"]["sequence_length"]
        for table in (made, population(600, 3000).filter(pl.col("ids").list.len() > 6))
    )
    assert perfect["value"] < 2 * perfect["floor"]
    assert long["low"] > 5 * long["floor"]


def test_copies_are_looked_for_among_all_training_records_though_few_were_continued():
    train = world(num=300, split="train", first=5000)
    completions = pl.concat([world(num=80), train[:10]])
    real = {"train": whole(train), "held_out": whole(world(num=80))}
    found = evaluate(completions, synthetic=whole(train[100:200]), real=real)["privacy"]
    assert found["copies_train"]["value"] == 1
    assert found["counts"] == {"generated": 100, "train": 80, "held_out": 80, "searched": 300}


def test_order_of_rows_changes_nothing_and_json_takes_it():
    completions = pl.concat([world(num=40), world(num=30, split="train", first=5000)])
    synthetic = world(num=35, first=9000).select("subject_id", ids="truth")
    real = {split: whole(world(num=45, first=first)) for split, first in (("train", 20000), ("held_out", 30000))}
    first = evaluate(completions, synthetic=synthetic, real=real)
    shuffled = completions.sample(fraction=1, shuffle=True, seed=3)
    reversed_ = {split: table.reverse() for split, table in real.items()}
    assert evaluate(shuffled, synthetic=synthetic.reverse(), real=reversed_) == first
    assert json.loads(json.dumps(first))["held_out"] == first["held_out"]


def test_rows_are_compared_on_the_same_subjects():
    ours, theirs = world(num=800), world(num=800, knows=False)
    rows = [generation.resample_row({0: part, 1: part}, SPEC, num_bootstrap=200) for part in (ours, theirs)]
    difference = paired_difference(*rows, "f1")
    single = [evaluate(part, num_bootstrap=200)["held_out"]["f1"] for part in (ours, theirs)]
    assert difference.value == pytest.approx(single[0]["value"] - single[1]["value"])
    assert difference.low > 0
    assert paired_difference(rows[0], rows[0], "rouge1").high == 0
    assert row_interval(rows[0], "f1").low == single[0]["low"]
    assert rows[0].values["rouge1"][0] == evaluate(ours)["held_out"]["rouge1"]["value"]
    with pytest.raises(InputError, match="not in the other"):
        paired_difference(rows[0], generation.resample_row({0: world(num=799)}, SPEC, num_bootstrap=200), "f1")


def test_every_measure_of_a_table_has_an_entry_and_its_resamples():
    completions = pl.concat([world(num=150), world(num=30, split="train", first=5000)])
    risks = utility.predict(completions, SPEC, utility.Classifier(num_trees=5, num_threads=1))
    result = evaluate(completions, utility_predictions=risks)
    resampled = generation.RESAMPLED
    row = generation.resample_row({3: completions}, SPEC, resampled, utility_predictions={3: risks}, num_bootstrap=60)
    paths = {name: ("held_out", name) for name in generation.PRESENCE}
    paths |= {name: metric.path for name, metric in generation.GENERATOR_METRICS.items()}
    for name, path in paths.items():
        entry = result
        for part in path:
            entry = entry[part]
        assert "value" in entry, name
        if name in resampled:
            interval = row_interval(row, name)
            stored = [np.nan if entry[end] is None else entry[end] for end in ("value", "low", "high")]
            np.testing.assert_equal([interval.value, interval.low, interval.high], stored, err_msg=name)
    with pytest.raises(ValueError, match="no metrics of generators"):
        generation.resample_row({3: completions}, SPEC, ["membership_auroc"])
    with pytest.raises(InputError, match="utility of every run"):
        generation.resample_row({3: completions}, SPEC, ["utility_auroc"])


def test_a_row_without_training_records_has_no_gap_to_compare():
    row = generation.resample_row({0: world(num=20)}, SPEC, ["rouge1", "rouge1_gap"], num_bootstrap=20)
    assert paired_difference(row, row, "rouge1_gap").reason == "undefined"
    assert paired_difference(row, row, "rouge1").value == 0


def numbers(entry):
    """Every number and text of a nested result."""
    if isinstance(entry, dict):
        return [found for value in entry.values() for found in numbers(value)]
    return [found for value in entry for found in numbers(value)] if isinstance(entry, list | tuple) else [entry]


def test_nothing_of_a_patient_is_in_the_result():
    """No id, and nothing that grows with the number of patients."""
    sizes = []
    for num in (40, 90):
        test, train = world(num=num), world(num=30, split="train", first=5000)
        risks = utility.predict(test, SPEC, utility.Classifier(num_trees=2, num_threads=1))
        records = train.select("subject_id", ids="generated")
        result = evaluate(
            pl.concat([test, train]),
            utility_predictions=risks,
            synthetic=records,
            real={"train": whole(train), "held_out": whole(test)},
            num_bootstrap=10,
        )
        assert str(FIRST_SUBJECT)[:6] not in json.dumps(result)
        sizes.append(len(numbers(result)))
    assert set(result["privacy"]) == {*privacy.MEASURES, "counts"}
    assert abs(sizes[0] - sizes[1]) < 10  # only reasons come and go


def test_reads_the_files_of_a_run(tmp_path):
    world(num=20).write_parquet(tmp_path / "completions.parquet")
    assert evaluate(tmp_path / "completions.parquet") == evaluate(world(num=20))
    with pytest.raises(InputError, match=r"absent\.parquet"):
        evaluate(tmp_path / "absent.parquet")
    (tmp_path / "damaged.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(InputError, match=r"damaged\.parquet"):
        evaluate(tmp_path / "damaged.parquet")


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (lambda t: t.drop("truth"), r"\['truth'\] are missing"),
        (lambda t: t.clear(), "found none"),
        (lambda t: pl.concat([t, t[:2]]), "4 of 9 rows repeat one"),
        (lambda t: t.with_columns(split=pl.lit("tuning")), "7 rows have another"),
        (lambda t: t.with_columns(split=pl.lit("train")), "of held-out subjects, found none"),
        (lambda t: t.with_columns(target_probability=pl.lit(1.5)), "7 of 7 do not"),
        (lambda t: t.with_columns(target_probability=pl.lit(float("nan"))), "7 of 7 do not"),
        (lambda t: t.with_columns(generated=pl.lit([27], pl.List(pl.Int32))), "7 of 7 lists hold others"),
        (lambda t: t.with_columns(generated=pl.lit([-1], pl.List(pl.Int32))), "7 of 7 lists hold others"),
        (lambda t: t.with_columns(truth=pl.lit(None, pl.List(pl.Int32))), "no value in 7 of 7"),
        (lambda t: t.with_columns(truth=pl.lit("x")), "lists of token ids"),
    ],
)
def test_a_broken_table_is_refused_in_one_line_without_a_patient(change, complaint):
    with pytest.raises(InputError, match=complaint) as refusal:
        evaluate(change(by_hand()))
    assert "\n" not in str(refusal.value)
    assert str(FIRST_SUBJECT)[:6] not in str(refusal.value)


def test_a_task_without_a_target_in_the_vocabulary_is_refused():
    spec = TokenSpec(num_tokens=27, num_places=3, max_tokens=64, max_visits=8, first_code=7)
    with pytest.raises(InputError, match="choose another task"):
        generation.evaluate(by_hand(), spec)


def test_sequences_know_their_visits():
    lists = [[14, VISIT, 15, 16, VISIT, VISIT, 17, EOS, 18], [BOS, 5, VISIT, 13, PAD]]
    part = Sequences.of(pl.DataFrame({"subject_id": [7, 3], "ids": lists}), SPEC, "ids")
    assert part.subjects.tolist() == [3, 7]
    assert part.num_visits.tolist() == [1, 3]
    assert part.num_codes.tolist() == [1, 4]
    rows, sizes = part.visit_sizes
    assert rows.tolist() == [0, 1, 1, 1]
    assert sizes.tolist() == [1, 2, 0, 1]
    last = part.take(np.array([False, True]))
    assert last.num_codes.tolist() == [4]
    assert last.visit_sizes[1].tolist() == [2, 0, 1]


def test_the_invented_generator_has_what_these_tests_need():
    assert not set(CAUSES) & set(SPEC.targets)
