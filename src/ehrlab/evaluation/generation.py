"""Generators of codes: completions.parquet in, the content of metrics.json out.

A generator is given the beginning of a record and continues it. What it wrote is compared with how the record went on:

* is the target (any code of the task's set) in both: precision, recall, F1;
* ROUGE-1 of codes: F-measure of the overlap of the two bags of codes (Lin 2004), per sequence, then the mean;
* how good is its own probability of the target: ranking, calibration, and the trade of precision for recall;
* does it continue training records better than others: memorisation.

`utility`, `fidelity` and `privacy` ask what the sequences are good for, what they look like, and what they give away.
All intervals are 95 % percentile intervals over subjects, of the same draws for every run on the same subjects.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.evaluation import fidelity, privacy, utility
from ehrlab.evaluation.comparison import ResampledRow, require_same_samples
from ehrlab.evaluation.metrics import BoolArray, FloatArray, undefined_reason
from ehrlab.evaluation.resampling import Predictions, Resampled
from ehrlab.evaluation.risk import written
from ehrlab.evaluation.sequences import (
    HELD_OUT,
    TRAIN,
    Completions,
    Sequences,
    presence_table,
    read_completions,
)

PRESENCE = ("precision", "recall", "f1")
PROBABILITY = ("auroc", "average_precision", "pr_auc", "brier", "ece")
THRESHOLDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, *(k / 10 for k in range(1, 10)))
"""Of the curve: the target counts as predicted where its probability is at least this. Dense near 0: it is rare."""

_UNDEFINED = {
    "precision": "no continuation was predicted to hold the target",
    "recall": "no true continuation holds the target",
    "f1": "no continuation holds the target, and none was predicted to",
}
_NO_PROBABILITY = "the target's probability was not computed"
_NO_CODES = "no true continuation holds a code"


@dataclass(frozen=True)
class GeneratorMetric:
    """A number of a generator as tables name and show it, as `metrics.Metric`; `path` leads to it in metrics.json.

    is_resampled  `resample_row` knows it, so that two rows can be compared
    """

    key: str
    label: str
    path: tuple[str, ...]
    better: int
    percent: bool = True
    is_resampled: bool = False


def _continuations(key: str, label: str, better: int) -> GeneratorMetric:
    return GeneratorMetric(key, label, ("fidelity", "continuations", key), better, percent=False)


GENERATOR_METRICS: dict[str, GeneratorMetric] = {
    metric.key: metric
    for metric in (
        GeneratorMetric("rouge1", "ROUGE-1", ("held_out", "rouge1"), 1, is_resampled=True),
        GeneratorMetric(
            "rouge1_train", "ROUGE-1 on training records", ("memorisation", "rouge1_train"), 0, is_resampled=True
        ),
        GeneratorMetric(
            "rouge1_gap", "ROUGE-1, training minus held out", ("memorisation", "rouge1_gap"), -1, is_resampled=True
        ),
        GeneratorMetric("utility_auroc", "Utility AUROC", ("utility", "auroc"), 1, is_resampled=True),
        GeneratorMetric("utility_pr_auc", "Utility PR-AUC", ("utility", "pr_auc"), 1, is_resampled=True),
        GeneratorMetric("augmentation_auroc", "Augmentation AUROC", ("augmentation", "auroc"), 1, is_resampled=True),
        GeneratorMetric("augmentation_pr_auc", "Augmentation PR-AUC", ("augmentation", "pr_auc"), 1, is_resampled=True),
        GeneratorMetric("real_auroc", "AUROC of real records", ("utility", "real_auroc"), 0, is_resampled=True),
        GeneratorMetric("real_pr_auc", "PR-AUC of real records", ("utility", "real_pr_auc"), 0, is_resampled=True),
        GeneratorMetric("prompt_auroc", "AUROC of prompts", ("utility", "prompt_auroc"), 0, is_resampled=True),
        GeneratorMetric("auroc_gain", "Augmentation minus real, AUROC", ("augmentation", "auroc_gain"), 1),
        GeneratorMetric("onset_precision", "Precision, new targets", ("onset", "precision"), 1),
        GeneratorMetric("onset_recall", "Recall, new targets", ("onset", "recall"), 1),
        GeneratorMetric("onset_f1", "F1, new targets", ("onset", "f1"), 1),
        GeneratorMetric("rouge1_auroc", "Membership by ROUGE-1, AUROC", ("memorisation", "rouge1_auroc"), 0),
        GeneratorMetric("membership_auroc", "Membership by distance, AUROC", ("privacy", "membership_auroc"), 0),
        GeneratorMetric("closer_to_train", "Nearer to a training record", ("privacy", "closer_to_train"), 0),
        GeneratorMetric("copies_train", "Copies of training records", ("privacy", "copies_train"), 0),
        _continuations("target_prevalence_ratio", "Target, generated / real", 0),
        _continuations("prevalence_log_pearson", "Prevalences, r of logs", 1),
        _continuations("cooccurrence_pearson", "Pairs of codes, r", 1),
        _continuations("correlation_difference", "Correlations, difference", -1),
        _continuations("codes_per_visit", "Codes per visit, distance", -1),
        _continuations("sequence_length", "Tokens, distance", -1),
    )
}
"""What a table can show of a generator beside the metrics of a risk (`metrics.METRICS`), whose keys mean the same."""

# metric -> kind of training records, metric of the classifier's risks
_UTILITY = {
    "utility_auroc": (utility.SYNTHETIC, "auroc"),
    "utility_pr_auc": (utility.SYNTHETIC, "pr_auc"),
    "augmentation_auroc": (utility.AUGMENTED, "auroc"),
    "augmentation_pr_auc": (utility.AUGMENTED, "pr_auc"),
    "real_auroc": (utility.REAL, "auroc"),
    "real_pr_auc": (utility.REAL, "pr_auc"),
    "prompt_auroc": (utility.PROMPT, "auroc"),
}


RESAMPLED = (*PRESENCE, *(name for name, metric in GENERATOR_METRICS.items() if metric.is_resampled))
"""What `resample_row` knows."""


def evaluate(
    completions: pl.DataFrame | Path | str,
    spec: TokenSpec,
    *,
    utility_predictions: pl.DataFrame | Path | str | None = None,
    synthetic: pl.DataFrame | Path | str | None = None,
    real: Mapping[str, pl.DataFrame | Path | str] | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> dict[str, Any]:
    """Everything that is known of a generator, for metrics.json (docs/evaluation.md, "Generators").

    completions          subject_id, split (held_out or train), prompt, truth, generated (lists of ids),
                         target_probability (null where it was not computed)
    utility_predictions  what `utility.predict` made of the same completions; None: not computed
    synthetic            records generated from nothing: subject_id, ids; None: none were
    real                 what these are compared with, split -> whole records: subject_id, ids; all of "train", and of
                         "held_out" a sample whatever their length, as those that were continued are the longer ones

    Each number is {"value", "low", "high"}, with "reason" where one of the three is None. Raises InputError for tables
    that are not what they should be.
    """
    parts = read_completions(completions, spec)
    test, train = parts[HELD_OUT], parts.get(TRAIN)
    assert synthetic is None or real is not None, "records from nothing need real ones beside them"
    records = None if synthetic is None else Sequences.read(synthetic, spec)
    whole = {split: Sequences.read(table, spec) for split, table in (real or {}).items()}
    others = whole.get(HELD_OUT, test.real_records)
    options = {"num_bootstrap": num_bootstrap, "seed": seed}
    decided, truth = test.generated.holds_target(), test.truth.holds_target()
    new = ~test.prompt.holds_target()
    used, gained = utility.judge(utility_predictions, **options)
    return {
        "held_out": {
            **_presence(test.prompt, truth, decided, **options),
            "rouge1": _rouge1_entry(test, **options),
            **_probability(test, **options),
        },
        "counts": _confusion(truth, decided),
        # A target that stands in the prompt already is repeated more easily than a new one is foreseen.
        "onset": {
            **_presence(test.prompt.take(new), truth[new], decided[new], **options),
            "counts": _confusion(truth[new], decided[new]),
        },
        "curve": _curve(test, **options),
        "memorisation": _memorisation(test, train, **options),
        "utility": used,
        "augmentation": gained,
        "fidelity": {
            "continuations": fidelity.compare(test.truth, test.generated, **options),
            "records": fidelity.compare(others, records, **options),
        },
        "privacy": privacy.judge(records, whole.get(TRAIN), others, **options),
        "num_samples": len(test),
        "num_subjects": len(test),
        "num_positive": int(truth.sum()),
        "num_train": 0 if train is None else len(train),
        "tokens": asdict(spec),
    }


def rouge1(candidate: Sequences, reference: Sequences) -> FloatArray:
    """ROUGE-1 F-measure of the codes of each sequence, `[n]`: 2 |overlap| / (|candidate| + |reference|), as bags.

    0 where both are empty, as `rouge-score` has it.
    """
    overlap = candidate.counts.minimum(reference.counts).sum(axis=1)
    sizes = candidate.num_codes + reference.num_codes
    return np.divide(2 * overlap, sizes, out=np.zeros(len(sizes)), where=sizes > 0)


def resample_row(
    completions: Mapping[int, pl.DataFrame | Path | str],
    spec: TokenSpec,
    metrics: Sequence[str] = (*PRESENCE, "rouge1"),
    *,
    utility_predictions: Mapping[int, pl.DataFrame | Path | str] | None = None,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> ResampledRow:
    """A row's runs (`seed of the run -> completions`) on the same resampled subjects, for `paired_difference`.

    As `comparison.resample_row` is for risks. `metrics`: precision, recall, f1 and those of GENERATOR_METRICS that are
    resampled, NaN where one is undefined; those of utility need `utility_predictions` of the same seeds. Raises
    InputError when the runs did not continue the same records.
    """
    if not completions:
        raise InputError("a row of the comparison: expected at least one run, found none")
    if strangers := sorted({*metrics} - {*RESAMPLED}):
        raise ValueError(f"no metrics of generators: {strangers}")
    seeds = tuple(sorted(completions))
    runs: list[dict[str, Resampled]] = []
    keys: list[pl.DataFrame] = []
    for run_seed in seeds:
        parts = read_completions(completions[run_seed], spec)
        test = parts[HELD_OUT]
        units = _units(test.prompt, test.truth.holds_target())
        if keys:
            require_same_samples(keys[0], units.keys, f"seed {seeds[0]}", f"seed {run_seed}")
        keys.append(units.keys)
        numbers = _resampled_presence(
            units, test.truth.holds_target(), test.generated.holds_target(), num_bootstrap, seed
        )
        runs.append(numbers | _resampled_memorisation(test, parts.get(TRAIN), num_bootstrap, seed))
    row = ResampledRow(
        seeds=seeds,
        values={name: np.array([run[name].value for run in runs]) for name in metrics if name not in _UTILITY},
        resamples={
            name: np.stack([run[name].resamples for run in runs], axis=1) for name in metrics if name not in _UTILITY
        },
        keys=keys[0],
        resampling_seed=seed,
    )
    for name in (name for name in metrics if name in _UTILITY):
        kind, metric = _UTILITY[name]
        if utility_predictions is None or sorted(utility_predictions) != list(seeds):
            raise InputError(f"{name}: expected the utility of every run of the row, found that of others or none")
        used = utility.resample_row(utility_predictions, kind, [metric], num_bootstrap=num_bootstrap, seed=seed)
        row.values[name], row.resamples[name] = used.values[metric], used.resamples[metric]
    return row


def _units(sequences: Sequences, labels: BoolArray) -> Predictions:
    """The subjects as units of a bootstrap; what is predicted of them is of no matter."""
    return Predictions(presence_table(sequences.subjects, labels, labels, labels.astype(np.float64)), "completions")


def _presence(
    sequences: Sequences, labels: BoolArray, decisions: BoolArray, num_bootstrap: int, seed: int
) -> dict[str, Any]:
    if len(sequences) == 0:
        nothing = Resampled(np.nan, np.empty(0))
        return written(dict.fromkeys(PRESENCE, nothing), dict.fromkeys(PRESENCE, "every prompt holds the target"))
    numbers = _resampled_presence(_units(sequences, labels), labels, decisions, num_bootstrap, seed)
    return written(numbers, _UNDEFINED)


def _resampled_presence(
    units: Predictions, labels: BoolArray, decisions: BoolArray, num_bootstrap: int, seed: int
) -> dict[str, Resampled]:
    """Precision, recall and F1, NaN where they are 0/0.

    Unlike for a risk (`metrics`): a resample without a rare target says nothing about recall, and counting it as 0
    would pull the interval down.
    """
    cells = (labels & decisions, ~labels & decisions, labels & ~decisions)
    tp, fp, fn = (units.resample_means([cell.astype(np.float64)], num_bootstrap, seed)[0] for cell in cells)
    return {
        "precision": _quotient(tp, tp, fp),
        "recall": _quotient(tp, tp, fn),
        "f1": _quotient(tp, tp, Resampled((fp.value + fn.value) / 2, (fp.resamples + fn.resamples) / 2)),
    }


def _quotient(part: Resampled, *whole: Resampled) -> Resampled:
    parts = np.append(part.resamples, part.value)
    sums = sum((np.append(one.resamples, one.value) for one in whole), start=np.zeros_like(parts))
    found = np.divide(parts, sums, out=np.full_like(parts, np.nan), where=sums > 0)
    return Resampled(float(found[-1]), found[:-1])


def _confusion(labels: BoolArray, decisions: BoolArray) -> dict[str, int]:
    return {
        "true_positives": int((labels & decisions).sum()),
        "false_positives": int((~labels & decisions).sum()),
        "false_negatives": int((labels & ~decisions).sum()),
        "true_negatives": int((~labels & ~decisions).sum()),
    }


def _resampled_rouge1(part: Completions, num_bootstrap: int, seed: int) -> Resampled:
    """Mean over the subjects whose true continuation holds a code: no other can be continued well or badly."""
    scored = part.truth.num_codes > 0
    if not scored.any():
        return Resampled(np.nan, np.full(num_bootstrap, np.nan))
    values = np.where(scored, rouge1(part.generated, part.truth), 0)
    units = _units(part.prompt, part.truth.holds_target())
    sums, shares = (
        units.resample_means([column], num_bootstrap, seed)[0] for column in (values, scored.astype(np.float64))
    )
    return _quotient(sums, shares)


def _rouge1_entry(part: Completions, num_bootstrap: int, seed: int) -> dict[str, Any]:
    return written({"rouge1": _resampled_rouge1(part, num_bootstrap, seed)}, {"rouge1": _NO_CODES})["rouge1"]


def _probability(test: Completions, num_bootstrap: int, seed: int) -> dict[str, Any]:
    """How well the model's own probability of the target ranks, and whether it is as large as it says."""
    table = test.predictions()
    if table.is_empty():
        nothing = Resampled(np.nan, np.empty(0))
        return written(dict.fromkeys(PROBABILITY, nothing), dict.fromkeys(PROBABILITY, _NO_PROBABILITY))
    risks = Predictions(table, "completions")
    numbers = risks.resample(PROBABILITY, num_bootstrap, seed)[0]
    reasons = {name: undefined_reason(name, risks.scores[0]) for name, n in numbers.items() if np.isnan(n.value)}
    return written(numbers, reasons)


def _curve(test: Completions, num_bootstrap: int, seed: int) -> list[dict[str, Any]]:
    """Precision, recall and F1 at each of THRESHOLDS; empty where no probability was computed."""
    known = np.isfinite(test.probability)
    if not known.any():
        return []
    labels, probability = test.truth.holds_target()[known], test.probability[known]
    units = _units(test.prompt.take(known), labels)
    return [
        {
            "threshold": threshold,
            **written(_resampled_presence(units, labels, probability >= threshold, num_bootstrap, seed), _UNDEFINED),
        }
        for threshold in THRESHOLDS
    ]


def _resampled_memorisation(
    test: Completions, train: Completions | None, num_bootstrap: int, seed: int
) -> dict[str, Resampled]:
    """ROUGE-1 of held-out and of training records, and training minus held-out; NaN without training records."""
    held_out = _resampled_rouge1(test, num_bootstrap, seed)
    if train is None:
        nothing = Resampled(np.nan, np.full(num_bootstrap, np.nan))
        return {"rouge1": held_out, "rouge1_train": nothing, "rouge1_gap": nothing}
    # Other draws than the test subjects': two splits of equal size would else be resampled in step.
    known = _resampled_rouge1(train, num_bootstrap, seed + 1)
    gap = Resampled(known.value - held_out.value, known.resamples - held_out.resamples)
    return {"rouge1": held_out, "rouge1_train": known, "rouge1_gap": gap}


def _memorisation(test: Completions, train: Completions | None, num_bootstrap: int, seed: int) -> dict[str, Any]:
    """ROUGE-1 on training and held-out records, its difference, and how well it tells them apart.

    `rouge1_auroc`: membership inference by one who has a whole record, gives the model its beginning, and takes it for
    a training record where the model goes on as the record does. 0.5 = nothing is given away.
    """
    numbers = _resampled_memorisation(test, train, num_bootstrap, seed)
    numbers["rouge1_held_out"] = numbers.pop("rouge1")
    numbers["rouge1_auroc"] = Resampled(np.nan, np.empty(0))
    reasons = dict.fromkeys(numbers, "no training record was continued")
    reasons["rouge1_held_out"] = _NO_CODES
    if train is None:
        return written(numbers, reasons)
    reasons = dict.fromkeys(reasons, "no true continuation of one of the splits holds a code")
    scores = []
    for part, is_member in ((train, True), (test, False)):
        scored = part.truth.num_codes > 0
        member = np.full(int(scored.sum()), is_member)
        score = rouge1(part.generated, part.truth)[scored]
        scores.append(presence_table(part.prompt.subjects[scored], member, member, score))
    table = pl.concat(scores)
    if table["boolean_value"].n_unique() == 2:
        attack = Predictions(table, "completions").resample(["auroc"], num_bootstrap, seed)[0]
        numbers["rouge1_auroc"] = attack["auroc"]
    return written(numbers, reasons)
