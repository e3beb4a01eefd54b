"""Utility: a classifier learns from generated records what they hold, and nothing else."""

from pathlib import Path

import numpy as np
import polars as pl
import pytest
from sklearn.metrics import roc_auc_score

from ehrlab.core.errors import InputError
from ehrlab.evaluation import utility
from ehrlab.evaluation.comparison import paired_difference
from ehrlab.evaluation.sequences import Sequences, read_completions
from fake_completions import FIRST_SUBJECT, SPEC, table, world

FAST = utility.Classifier(num_trees=40, num_threads=1)


def auroc(predictions, kind):
    part = predictions.filter(trained_on=kind)
    return roc_auc_score(part["boolean_value"], part["predicted_boolean_probability"])


def shuffled_labels(completions, seed=1):
    """The generator's records with their target codes handed to others at random."""
    is_target = pl.element().is_in(SPEC.targets)
    return completions.with_columns(
        generated=pl.concat_list(
            pl.col("generated").list.eval(pl.element().filter(~is_target & (pl.element() != SPEC.EOS))),
            pl.col("generated").list.eval(pl.element().filter(is_target)).shuffle(seed),
        )
    )


@pytest.fixture(scope="module")
def completions():
    return world(num=1200)


@pytest.fixture(scope="module")
def predictions(completions):
    return utility.predict(completions, SPEC, FAST)


def test_a_generator_that_knows_the_causes_is_nearly_as_useful_as_real_records(predictions):
    assert auroc(predictions, "real") > 0.7
    assert auroc(predictions, "synthetic") == pytest.approx(auroc(predictions, "real"), abs=0.05)
    assert auroc(predictions, "augmented") == pytest.approx(auroc(predictions, "real"), abs=0.05)


def test_a_generator_trained_on_shuffled_labels_is_of_no_use():
    found = [
        auroc(
            utility.predict(shuffled_labels(world(num=1200, seed=seed), seed), SPEC, FAST, trained_on=["synthetic"]),
            "synthetic",
        )
        for seed in range(12)
    ]
    # What chance ties to a cause in training it ties to that cause in all of the test: .085 from seed to seed.
    assert np.mean(found) == pytest.approx(0.5, abs=3 * 0.085 / np.sqrt(12))


def test_prompts_without_the_target_teach_nothing(predictions):
    used, gained = utility.judge(predictions, num_bootstrap=30)
    assert used["prompt_auroc"]["reason"].endswith("on prompt records: all of them hold the target, or none does")
    assert used["real_auroc"]["value"] == pytest.approx(auroc(predictions, "real"))
    assert used["auroc_to_real"]["value"] == pytest.approx(auroc(predictions, "synthetic") - auroc(predictions, "real"))
    assert gained["auroc_gain"]["value"] == pytest.approx(auroc(predictions, "augmented") - auroc(predictions, "real"))
    assert used["auroc"]["low"] < used["auroc"]["value"] < used["auroc"]["high"]


def test_the_real_rows_depend_on_no_generator_and_validation_is_untouched(completions, predictions):
    other = utility.predict(shuffled_labels(completions), SPEC, FAST, trained_on=["real"])
    assert other.equals(predictions.filter(trained_on="real"))
    test = read_completions(completions, SPEC)["held_out"]
    validation = test.real_records.take(~utility.is_modelling(test.real_records.subjects))
    assert other["subject_id"].to_list() == validation.subjects.tolist()
    assert other["boolean_value"].to_list() == validation.holds_target().tolist()


def test_the_classifier_never_sees_a_target():
    ids = [[9, 25, 13, 13, 9], [14, 25]]
    records = Sequences.read(pl.DataFrame({"subject_id": [1, 2], "ids": ids}), SPEC)
    features = utility.features_of(records).toarray()
    assert features.sum(axis=1).tolist() == [2, 1]
    assert features[0, 13 - SPEC.first_code] == 2
    assert not features[:, [t - SPEC.first_code for t in SPEC.targets]].any()


def test_order_of_rows_changes_nothing_and_the_seed_is_fixed(completions):
    few = completions.head(120)
    fast = utility.Classifier(num_trees=5, num_threads=1)
    first = utility.predict(few, SPEC, fast)
    assert utility.predict(few.sample(fraction=1, shuffle=True, seed=2), SPEC, fast).equals(first)
    assert not utility.predict(few, SPEC, utility.Classifier(num_trees=5, seed=1, num_threads=1)).equals(first)


def test_a_subjects_part_depends_on_nobody_else():
    subjects = np.arange(FIRST_SUBJECT, FIRST_SUBJECT + 4000)
    part = utility.is_modelling(subjects)
    assert part.mean() == pytest.approx(0.7, abs=0.03)
    chosen = np.random.default_rng(0).permutation(len(subjects))[:100]
    assert utility.is_modelling(subjects[chosen]).tolist() == part[chosen].tolist()
    assert utility.is_modelling(subjects, seed=1).tolist() != part.tolist()


def test_catboost_leaves_no_files_and_takes_the_threads_that_it_is_given(tmp_path, monkeypatch, completions):
    made = []

    class Spy(utility.CatBoostClassifier):
        def __init__(self, **settings):
            made.append(settings)
            super().__init__(**settings)

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(utility, "CatBoostClassifier", Spy)
    classifier = utility.Classifier(num_trees=2, num_threads=1, seed=7)
    utility.predict(completions.head(60), SPEC, classifier, trained_on=["real"])
    assert list(Path.cwd().iterdir()) == []
    assert (made[0]["thread_count"], made[0]["random_seed"], made[0]["iterations"]) == (1, 7, 2)


def test_records_that_are_all_alike_give_everybody_the_same_risk():
    rows = [("held_out", [1, 3, 13], [9, 2] if i % 3 else [2], [9, 2] if i % 2 else [2], None) for i in range(40)]
    predictions = utility.predict(table(rows), SPEC, FAST)
    for kind in ("synthetic", "real"):
        assert predictions.filter(trained_on=kind)["predicted_boolean_probability"].n_unique() == 1
        assert auroc(predictions, kind) == 0.5


def test_one_class_has_a_reason_in_every_entry_that_needs_it():
    never = world(num=100).with_columns(generated=pl.lit([13, 2], pl.List(pl.Int32)))
    used, gained = utility.judge(utility.predict(never, SPEC, FAST), num_bootstrap=20)
    for name in ("auroc", "pr_auc", "auroc_to_real"):
        assert used[name]["value"] is None
        assert "on synthetic records" in used[name]["reason"]
    assert used["real_auroc"]["value"] > 0.5
    assert gained["auroc"]["value"] is not None
    absent, _ = utility.judge(None)
    assert absent.keys() == used.keys()
    assert absent["auroc"]["reason"] == "no classifier was trained on the generated records"


def test_two_generators_are_compared_on_the_same_subjects(completions, predictions):
    worse = utility.predict(shuffled_labels(completions), SPEC, FAST)
    rows = [utility.resample_row({0: part}, num_bootstrap=200) for part in (predictions, worse)]
    difference = paired_difference(*rows, "auroc")
    assert difference.value == pytest.approx(auroc(predictions, "synthetic") - auroc(worse, "synthetic"))
    assert difference.low > 0
    prompts = utility.resample_row({0: predictions}, "prompt", num_bootstrap=200)
    assert paired_difference(rows[0], prompts, "auroc").reason == "undefined"
    untrained = predictions.filter(pl.col("trained_on") != "synthetic")
    row = utility.resample_row({0: predictions, 1: untrained}, num_bootstrap=200)
    assert row.values["auroc"][0] == rows[0].values["auroc"][0]
    assert paired_difference(row, rows[0], "auroc").num_seeds == 1
    assert paired_difference(row, row, "auroc").reason == "undefined"


def test_bad_input_is_refused_without_a_patient(predictions):
    with pytest.raises(InputError, match="too few"):
        utility.predict(world(num=1), SPEC, FAST)
    for broken in (predictions.drop("trained_on"), predictions.with_columns(trained_on=pl.lit("dreams"))):
        with pytest.raises(InputError, match="trained_on") as refusal:
            utility.judge(broken)
        assert str(FIRST_SUBJECT)[:6] not in str(refusal.value)
