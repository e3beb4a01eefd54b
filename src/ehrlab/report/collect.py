"""Runs gathered into groups and rows, and the numbers that a table shows."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from ehrlab.core.errors import InputError
from ehrlab.evaluation import generation
from ehrlab.evaluation.comparison import Difference, ResampledRow, holm, paired_difference, resample_row
from ehrlab.evaluation.generation import GENERATOR_METRICS, GeneratorMetric
from ehrlab.evaluation.joint import JOINT_METRICS, JointMetric, is_metric
from ehrlab.evaluation.metrics import METRICS, Metric
from ehrlab.evaluation.oracle import DISTANCES, Distance, resample_distances
from ehrlab.evaluation.resampling import Interval
from ehrlab.report.runs import Run, load_runs

MEASURES: Mapping[str, Metric | JointMetric | Distance | GeneratorMetric] = {
    **METRICS,
    **JOINT_METRICS,
    **DISTANCES,
    **GENERATOR_METRICS,
}
"""All that a table can show. Joint metrics exist for several labels only, distances on simulated data only, and
generators have metrics of their own."""

SIMULATED = "simulated cohort"
MAIN_METRIC = "pr_auc"
SHOWN_METRICS = ("pr_auc", "f1", "kappa", "auroc", "average_precision", "brier", "ece")
CONSOLE_METRICS = SHOWN_METRICS[:4]  # what fits in 80 columns
# The same of several labels, where each but the joint ones is a mean over labels.
SHOWN_OF_LABELS = (
    "pr_auc", "f1_macro", "f1_micro", "precision", "recall", "accuracy", "subset_accuracy", "auroc", "brier", "ece",
)  # fmt: skip
CONSOLE_OF_LABELS = ("pr_auc", "f1_macro", "f1_micro", "accuracy")
# The same of generators: the target's presence in what they write, ROUGE-1, and their own probability of the target.
SHOWN_OF_GENERATORS = ("precision", "recall", "f1", "rouge1", "auroc", "average_precision", "brier", "ece")
CONSOLE_OF_GENERATORS = ("precision", "recall", "f1", "rouge1", "utility_auroc", "augmentation_auroc")
NUM_BOOTSTRAP = 1000


@dataclass(frozen=True)
class Summary:
    """Mean and sample standard deviation (NaN for one seed) over the `num` seeds in which the metric is defined."""

    mean: float
    std: float
    num: int


def summarise(values: Sequence[float]) -> Summary:
    """Of the numbers of some seeds, none of them NaN."""
    if not values:
        return Summary(np.nan, np.nan, 0)
    return Summary(float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else np.nan, len(values))


@dataclass(frozen=True)
class Row:
    """One method of a table: the runs of its seeds, all on the same data with the same configuration."""

    name: str
    runs: tuple[Run, ...]

    def summary(self, metric: str) -> Summary:
        return summarise(self.values(metric))

    def values(self, metric: str) -> list[float]:
        return [value for run in self.runs if (value := run.value(metric)) is not None]

    @property
    def reference(self) -> str | None:
        """The information set that the row's distances are measured from; None unless all its runs have them."""
        references = {run.reference for run in self.runs}
        return references.pop() if len(references) == 1 else None

    def resampled(self, metrics: Sequence[str], num_bootstrap: int) -> ResampledRow:
        """Metrics and distances under the same resamples; distances are NaN where there is no oracle."""
        if self.runs[0].is_generator:
            return self._resampled_generator(metrics, num_bootstrap)
        tests = {run.seed: run.predictions for run in self.runs}
        row = resample_row(tests, [name for name in metrics if is_metric(name)], num_bootstrap=num_bootstrap)
        if not (names := [name for name in metrics if name in DISTANCES]):
            return row
        if self.reference is None:
            nothing = {name: np.full(len(row.seeds), np.nan) for name in names}
            away = replace(
                row, values=nothing, resamples={k: np.tile(v, (num_bootstrap, 1)) for k, v in nothing.items()}
            )
        else:
            oracle = self.runs[0].oracle
            away = resample_distances(tests, oracle, self.reference, names, num_bootstrap=num_bootstrap)
        return replace(row, values={**row.values, **away.values}, resamples={**row.resamples, **away.resamples})

    def _resampled_generator(self, metrics: Sequence[str], num_bootstrap: int) -> ResampledRow:
        """What can be resampled of a generator; the other metrics have their values and no resamples (NaN)."""
        runs = {run.seed: run for run in self.runs}
        names = [name for name in metrics if name in generation.RESAMPLED]
        row = generation.resample_row(
            {seed: run.folder / "completions.parquet" for seed, run in runs.items()},
            self.runs[0].tokens,
            names or ["f1"],
            utility_predictions={seed: run.folder / "utility.parquet" for seed, run in runs.items()},
            num_bootstrap=num_bootstrap,
        )
        values, resamples = dict(row.values), dict(row.resamples)
        risks = [name for name in metrics if name in METRICS and name not in generation.RESAMPLED]
        if risks and all(run.has_probabilities for run in self.runs):
            tests = {seed: run.predictions for seed, run in runs.items()}
            known = resample_row(tests, risks, num_bootstrap=num_bootstrap)
            values |= known.values
            resamples |= known.resamples
        for name in metrics:
            if name not in values:
                stored = [runs[seed].value(name) for seed in row.seeds]
                values[name] = np.array([np.nan if value is None else value for value in stored])
                resamples[name] = np.full((num_bootstrap, len(row.seeds)), np.nan)
        return replace(row, values=values, resamples=resamples)


@dataclass(frozen=True)
class Group:
    """The rows that may stand in one column: same data, same task. The first row is the one compared with the
    others."""

    data: str
    task: str
    simulated: bool
    fingerprint: str
    rows: tuple[Row, ...]

    @property
    def title(self) -> str:
        return f"{self.data} / {self.task}" + (f" ({SIMULATED})" if self.simulated else "")

    @property
    def runs(self) -> list[Run]:
        return [run for row in self.rows for run in row.runs]

    @property
    def has_oracle(self) -> bool:
        """Whether the distance of any row to the best possible is known."""
        return any(run.reference is not None for run in self.runs)

    @property
    def labels(self) -> tuple[str, ...]:
        """Names of the labels, where there are several."""
        return self.runs[0].labels

    @property
    def is_generators(self) -> bool:
        """Its rows are judged by what they generate."""
        return self.runs[0].is_generator

    @property
    def main_metric(self) -> str:
        """What rows are compared in."""
        return "f1" if self.is_generators else MAIN_METRIC

    @property
    def shown_metrics(self) -> tuple[str, ...]:
        if self.is_generators:
            return SHOWN_OF_GENERATORS
        return self._with_regret(SHOWN_OF_LABELS if self.labels else SHOWN_METRICS)

    @property
    def console_metrics(self) -> tuple[str, ...]:
        if self.is_generators:
            return CONSOLE_OF_GENERATORS
        return self._with_regret(CONSOLE_OF_LABELS if self.labels else CONSOLE_METRICS)

    def _with_regret(self, metrics: tuple[str, ...]) -> tuple[str, ...]:
        return (*metrics, "regret") if self.has_oracle else metrics

    @property
    def cohort(self) -> dict[str, object] | None:
        return next((run.cohort for run in self.runs if run.cohort is not None), None)

    def resampled(self, metrics: Sequence[str]) -> dict[str, ResampledRow]:
        """Row name -> its resamples."""
        return {row.name: row.resampled(metrics, NUM_BOOTSTRAP) for row in self.rows}


def comparison_table(run_folders: Sequence[Path]) -> Table:
    """The console's table of finished runs, rows in the order given: mean +- standard deviation (number of seeds)."""
    runs, unfinished = load_runs(run_folders)
    groups = group_runs(runs)
    simulated = any(group.simulated for group in groups)
    table = Table(title=Text("SIMULATED data: no number is a finding", "bold red") if simulated else None)
    metrics = list(dict.fromkeys(metric for group in groups for metric in group.console_metrics))
    widest = 40 if len(metrics) <= len(CONSOLE_METRICS) + 1 else 20
    table.add_column("model", min_width=min(widest, max(len(row.name) for group in groups for row in group.rows)))
    if len(groups) > 1:
        table.add_column("data / task")
    for metric in metrics:
        # May break at a space where a console is narrow: a number on two lines is read, a name cut short is not.
        table.add_column(MEASURES[metric].label + (" x100" if MEASURES[metric].percent else ""), justify="right")
    for group in groups:
        for row in group.rows:
            cells = [show_summary(row.summary(metric), metric, "+-") for metric in metrics]
            # Text, not str: rich would read [brackets] in a row's name as markup.
            place = [Text(group.title)] if len(groups) > 1 else []
            table.add_row(Text(row.name), *place, *cells)
        table.add_section()
    notes = ["mean +- standard deviation (number of seeds)"]
    if len(groups) == 1:
        share = f"{100 * groups[0].runs[0].prior:.1f}"
        meant = f"{share} % of the true continuations hold the target"
        notes += [groups[0].title, meant if groups[0].is_generators else f"a constant risk has a PR-AUC of {share}"]
        if groups[0].labels:
            notes.append(f"means over {len(groups[0].labels)} labels, but for micro")
    if "regret" in metrics:
        notes.append("regret: PR-AUC of the exact risk given the same, minus the model's")
    if unfinished:
        notes.append(f"{len(unfinished)} unfinished runs left out")
    table.caption = Text("; ".join(notes))
    return table


def group_runs(runs: Sequence[Run]) -> list[Group]:
    """Groups and rows in order of first appearance; generators and risk models never share one.

    Two configurations of one row become two rows, each with its hash in the name.
    """
    groups: dict[tuple[str, str, bool, str, bool], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.data, run.task, run.simulated, run.fingerprint, run.is_generator), []).append(run)
    return [Group(*key[:4], rows=_rows(members)) for key, members in groups.items()]


def _rows(runs: Sequence[Run]) -> tuple[Row, ...]:
    by_row: dict[tuple[str, str], list[Run]] = {}
    for run in runs:
        by_row.setdefault((run.row, run.hash), []).append(run)
    names = [name for name, _ in by_row]
    return tuple(
        Row(name if names.count(name) == 1 else f"{name} [{config_hash}]", tuple(sorted(members, key=lambda r: r.seed)))
        for (name, config_hash), members in by_row.items()
    )


def differences_to_first(rows: Sequence[tuple[str, ResampledRow]], metric: str) -> list[tuple[str, Difference | str]]:
    """First row minus each other row; in place of a difference the reason why the two cannot be compared."""
    found: list[tuple[str, Difference | str]] = []
    for name, other in rows[1:]:
        try:
            found.append((name, paired_difference(rows[0][1], other, metric)))
        except InputError as refusal:
            # One row on other samples must not cost the page its other rows; the page prints the refusal in its place.
            found.append((name, str(refusal)))
    return found


def holm_of(differences: Sequence[Difference | str]) -> tuple[list[float], int]:
    """Holm-adjusted p-values over one family of comparisons, NaN where there was no test; and the number of tests."""
    p_values = [d.p_value if isinstance(d, Difference) else np.nan for d in differences]
    return holm(p_values), int(np.isfinite(p_values).sum())


def show(value: float, metric: str) -> str:
    """A number as the tables print it: times 100 with one decimal, or three decimals.

    >>> show(0.7012, "pr_auc"), show(0.1234, "brier"), show(float("nan"), "f1")
    ('70.1', '0.123', 'undefined')
    """
    if not np.isfinite(value):
        return "undefined"
    return f"{value * 100:.1f}" if MEASURES[metric].percent else f"{value:.3f}"


def show_summary(summary: Summary, metric: str, plus_minus: str = "±") -> str:
    """`70.1 ± 0.6 (5)`; without the spread for one seed.

    Where no seed has a value: `undefined`, or a dash for what some runs do not have: distances and joint metrics.
    """
    if summary.num == 0:
        return "undefined" if metric in METRICS else "–"
    spread = f" {plus_minus} {show(summary.std, metric)}" if summary.num > 1 else ""
    return f"{show(summary.mean, metric)}{spread} ({summary.num})"


def stored_interval(entry: Mapping[str, Any]) -> Interval:
    """An entry {"value", "low", "high"} of metrics.json; NaN for what is None or missing."""
    numbers = [entry.get(key) for key in ("value", "low", "high")]
    value, low, high = (np.nan if number is None else float(number) for number in numbers)
    return Interval(value, low, high)


def show_p(p: float) -> str:
    """`p=.14`, `p<.001`, or `p undefined`.

    >>> show_p(0.1418), show_p(0.0002), show_p(1.0)
    ('p=.14', 'p<.001', 'p=1.00')
    """
    if not np.isfinite(p):
        return "p undefined"
    if p < 0.001:
        return "p<.001"
    return "p=" + (f"{p:.3f}" if p < 0.01 else f"{p:.2f}").removeprefix("0")


def show_difference(value: float, metric: str) -> str:
    """A signed difference in the units of `show`."""
    if not np.isfinite(value):
        return "undefined"
    return f"{value * 100:+.1f}" if MEASURES[metric].percent else f"{value:+.3f}"


def show_range(low: float, high: float, metric: str) -> str:
    """`[68.9, 71.2]`, empty where there is no interval."""
    return f"[{show(low, metric)}, {show(high, metric)}]" if np.isfinite([low, high]).all() else ""


def metric_header(metric: str) -> str:
    """`PR-AUC ×100 ↑`: unit and the better direction."""
    entry = MEASURES[metric]
    arrow = {1: " ↑", -1: " ↓", 0: ""}[entry.better]
    return entry.label + (" ×100" if entry.percent else "") + arrow
