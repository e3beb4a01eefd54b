"""What generated records are good for: a classifier is trained on them and tested on real records.

As RLTF (AAAI-25 GenAI4Health) has it: the test subjects are split into a modelling and a validation part, 70 / 30. The
generator completes the records of the modelling part; CatBoost learns from the counts of all codes but the target's
whether a record holds the target; it is tested on the real records of the validation part. Beside it stand classifiers
trained on

* the real records of the modelling part (what is there to learn),
* real and generated records together (augmentation),
* the prompts alone (what the generator was given: all that it added lies above this).

The predictions are a file of the run, so that two runs can be compared on the same subjects and resamples.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from catboost import CatBoostClassifier, Pool
from scipy import sparse

from ehrlab.core.errors import InputError
from ehrlab.core.spec import TokenSpec
from ehrlab.evaluation.comparison import ResampledRow
from ehrlab.evaluation.comparison import resample_row as resample_risks
from ehrlab.evaluation.metrics import BoolArray, FloatArray, undefined_reason
from ehrlab.evaluation.resampling import Predictions, Resampled
from ehrlab.evaluation.risk import written
from ehrlab.evaluation.sequences import (
    HELD_OUT,
    IntArray,
    Sequences,
    hashed,
    presence_table,
    read_completions,
    read_parquet,
)

SCHEMA_VERSION = 1
"""Raised when the same records would get other risks, so that kept ones are not taken."""

SYNTHETIC, AUGMENTED, REAL, PROMPT = TRAINED_ON = ("synthetic", "augmented", "real", "prompt")
GENERATED, GIVEN = (SYNTHETIC, AUGMENTED), (REAL, PROMPT)
"""What depends on the generator, and what is the same for all that continue the same prompts."""

METRICS = ("auroc", "pr_auc")
MODELLING_SHARE = 0.7

_NOT_COMPUTED = "no classifier was trained on the generated records"


@dataclass(frozen=True)
class Classifier:
    """CatBoost with its own defaults (the paper states no settings), but for these.

    num_trees    CatBoost's own is 1,000; its learning rate follows from this number and that of the records
    min_records  a code in fewer training records is no feature: what a tree makes of it is chance, and costs as much
    num_threads  -1: every core of the machine
    """

    num_trees: int = 200
    min_records: int = 5
    seed: int = 0
    num_threads: int = -1

    def risks(self, train: sparse.csr_array, labels: BoolArray, test: sparse.csr_array) -> FloatArray | None:
        """P(label) of each row of `test` after training on `train` `[n, V]`; None where `labels` are of one class."""
        if labels.all() or not labels.any():
            return None
        is_feature = np.flatnonzero((train > 0).sum(axis=0) >= self.min_records)
        train, test = train[:, is_feature], test[:, is_feature]
        if not _varies(train):  # CatBoost refuses to learn from nothing
            return np.full(test.shape[0], labels.mean())
        model = CatBoostClassifier(
            iterations=self.num_trees,
            random_seed=self.seed,
            thread_count=self.num_threads,
            allow_writing_files=False,
            logging_level="Silent",
        )
        model.fit(_pool(train, labels))
        found: FloatArray = model.predict_proba(_pool(test))[:, 1]
        return found


def is_modelling(subjects: Sequence[int] | IntArray, seed: int = 0) -> BoolArray:
    """Whether each test subject belongs to the modelling part (70 %), the others to the validation part.

    Each subject's own hash decides, so the answer is the same in every file, whatever other subjects are in it.
    """
    return hashed(subjects, seed) < np.uint64(round(MODELLING_SHARE * 2**64))


def predict(
    completions: pl.DataFrame | Path | str,
    spec: TokenSpec,
    classifier: Classifier | None = None,
    *,
    trained_on: Sequence[str] = TRAINED_ON,
    split_seed: int = 0,
) -> pl.DataFrame:
    """Risks of the validation subjects by classifiers of four kinds of training records.

    The columns of a predictions table and `trained_on`; a kind whose training records all hold the target, or none,
    has no rows. Patient-level: a file of the run's folder. Raises InputError when a part of the split is empty.
    """
    test = read_completions(completions, spec)[HELD_OUT]
    modelling = is_modelling(test.prompt.subjects, split_seed)
    if modelling.all() or not modelling.any():
        raise InputError(
            f"utility: {len(test)} held-out subjects are too few for a modelling and a validation part of 70 and 30 %; "
            f"continue more records"
        )
    sets = {
        SYNTHETIC: [test.completed_records.take(modelling)],
        AUGMENTED: [test.real_records.take(modelling), test.completed_records.take(modelling)],
        REAL: [test.real_records.take(modelling)],
        PROMPT: [test.prompt.take(modelling)],
    }
    validation = test.real_records.take(~modelling)
    labels, features = validation.holds_target(), features_of(validation)
    tables = []
    for kind in trained_on:
        known = np.concatenate([part.holds_target() for part in sets[kind]])
        counts = sparse.vstack([features_of(part) for part in sets[kind]], format="csr")
        risks = (classifier or Classifier()).risks(counts, known, features)
        if risks is not None:
            table = presence_table(validation.subjects, labels, risks >= 0.5, risks)
            tables.append(table.with_columns(trained_on=pl.lit(kind)))
    nothing = presence_table(validation.subjects[:0], labels[:0], labels[:0], np.empty(0))
    return pl.concat([nothing.with_columns(trained_on=pl.lit(REAL)), *tables])


def features_of(records: Sequences) -> sparse.csr_array:
    """Counts of the codes that are no target, `[n, V]`: the columns of the targets are empty."""
    spec = records.spec
    others = np.ones(spec.num_tokens - spec.first_code, dtype=np.float32)
    others[np.array([t for t in spec.targets if t >= spec.first_code], dtype=np.int64) - spec.first_code] = 0
    found = sparse.csr_array(records.counts.multiply(others[None, :]))
    found.eliminate_zeros()
    return found


def judge(
    predictions: pl.DataFrame | Path | str | None, *, num_bootstrap: int = 1000, seed: int = 0
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entries "utility" and "augmentation" of metrics.json, from what `predict` returned (None: nothing).

    utility       auroc, pr_auc of the classifier trained on generated records; the same of real records and of prompts
                  as real_*, prompt_*; auroc_to_real, pr_auc_to_real = generated minus real, on the same resamples
    augmentation  auroc, pr_auc of real and generated records together; auroc_gain, pr_auc_gain = that minus real alone
    """
    names = {
        "utility": [*METRICS, *(f"{kind}_{m}" for kind in (REAL, PROMPT) for m in METRICS)],
        "augmentation": [*METRICS],
    }
    names["utility"] += [f"{m}_to_real" for m in METRICS]
    names["augmentation"] += [f"{m}_gain" for m in METRICS]
    nothing = Resampled(np.nan, np.empty(0))
    if predictions is None:
        used, gained = (dict.fromkeys(names[part], nothing) for part in names)
        why = {name: _NOT_COMPUTED for part in names.values() for name in part}
        return written(used, why), written(gained, why)
    table = _read(predictions)
    found: dict[str, dict[str, Resampled]] = {}
    reasons: dict[str, dict[str, str]] = {}
    for kind in TRAINED_ON:
        part = table.filter(pl.col("trained_on") == kind).drop("trained_on")
        if part.is_empty():
            found[kind] = dict.fromkeys(METRICS, nothing)
            one_class = f"no classifier was trained on {kind} records: all of them hold the target, or none does"
            reasons[kind] = dict.fromkeys(METRICS, one_class)
            continue
        test = Predictions(part, "utility")
        found[kind] = test.resample(METRICS, num_bootstrap, seed)[0]
        reasons[kind] = {m: undefined_reason(m, test.scores[0]) for m in METRICS if np.isnan(found[kind][m].value)}

    def entry(kind: str, prefix: str, difference: str) -> dict[str, Any]:
        numbers = {f"{prefix}{m}": found[kind][m] for m in METRICS}
        why = {f"{prefix}{m}": reason for m, reason in reasons[kind].items()}
        if difference:
            numbers |= {f"{m}_{difference}": _minus(found[kind][m], found[REAL][m]) for m in METRICS}
            why |= {f"{m}_{difference}": reason for m, reason in (reasons[REAL] | reasons[kind]).items()}
        return written(numbers, why)

    used = entry(SYNTHETIC, "", "to_real") | entry(REAL, "real_", "") | entry(PROMPT, "prompt_", "")
    return used, entry(AUGMENTED, "", "gain")


def resample_row(
    predictions: Mapping[int, pl.DataFrame | Path | str],
    trained_on: str = SYNTHETIC,
    metrics: Sequence[str] = METRICS,
    *,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> ResampledRow:
    """Utility of a row's runs (`seed of the run -> what predict returned`), for `comparison.paired_difference`.

    NaN for a run whose classifier could not be trained: all its training records held the target, or none did.
    """
    tables = {run_seed: _read(predictions[run_seed]) for run_seed in sorted(predictions)}
    seeds = tuple(tables)
    values = {name: np.full(len(seeds), np.nan) for name in metrics}
    resamples = {name: np.full((num_bootstrap, len(seeds)), np.nan) for name in metrics}
    of_kind = {run_seed: table.filter(trained_on=trained_on).drop("trained_on") for run_seed, table in tables.items()}
    trained = {run_seed: table for run_seed, table in of_kind.items() if len(table)}
    if not trained:
        samples = next(iter(tables.values())).select("subject_id", "prediction_time", "boolean_value").unique()
        return ResampledRow(seeds, values, resamples, samples, seed)
    row = resample_risks(trained, metrics, num_bootstrap=num_bootstrap, seed=seed)
    at = [seeds.index(run_seed) for run_seed in row.seeds]
    for name in metrics:
        values[name][at], resamples[name][:, at] = row.values[name], row.resamples[name]
    return ResampledRow(seeds, values, resamples, row.keys, seed)


def _read(source: pl.DataFrame | Path | str) -> pl.DataFrame:
    table = source if isinstance(source, pl.DataFrame) else read_parquet(Path(source), "utility")
    if "trained_on" not in table.columns:
        raise InputError(f"utility: expected a column trained_on, found {table.columns}")
    if strangers := sorted(set(table["trained_on"].unique().to_list()) - set(TRAINED_ON)):
        raise InputError(f"utility: trained_on should be one of {', '.join(TRAINED_ON)}, found {len(strangers)} others")
    return table


def _minus(ours: Resampled, theirs: Resampled) -> Resampled:
    if not np.isfinite([ours.value, theirs.value]).all():
        return Resampled(np.nan, np.empty(0))
    return Resampled(ours.value - theirs.value, ours.resamples - theirs.resamples)


def _pool(counts: sparse.csr_array, labels: BoolArray | None = None) -> Pool:
    """CatBoost takes no sparse matrix with 64-bit indices."""
    parts = counts.data, counts.indices.astype(np.int32), counts.indptr.astype(np.int32)
    return Pool(sparse.csr_matrix(parts, shape=counts.shape), None if labels is None else labels.astype(np.int8))


def _varies(counts: sparse.csr_array) -> bool:
    if not counts.shape[1]:
        return False
    highest, lowest = counts.max(axis=0), counts.min(axis=0)
    return bool((highest - lowest).nnz)
