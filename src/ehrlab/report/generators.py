"""What a page says of generators beside their results: utility, memorisation, fidelity, and two pictures."""

from collections.abc import Mapping

import numpy as np

from ehrlab.evaluation.comparison import ResampledRow, row_interval
from ehrlab.evaluation.fidelity import prevalences
from ehrlab.evaluation.generation import RESAMPLED
from ehrlab.evaluation.metrics import FloatArray
from ehrlab.report.collect import MEASURES, Group, Row, metric_header, show, show_range, show_summary, stored_interval
from ehrlab.report.document import Block, Grid, Paragraph, Picture, Section
from ehrlab.report.figures import Cross, file_name, scatter_figure, tradeoff_figure
from ehrlab.report.sections import with_interval

USE = ("utility_auroc", "utility_pr_auc", "augmentation_auroc", "auroc_gain", "real_auroc", "prompt_auroc")
ONSET = ("onset_precision", "onset_recall", "onset_f1")
LEAKS = ("rouge1_train", "rouge1_gap", "rouge1_auroc", "closer_to_train", "copies_train", "membership_auroc")
LIKENESS = (
    "target_prevalence_ratio", "prevalence_log_pearson", "cooccurrence_pearson", "correlation_difference",
    "codes_per_visit", "sequence_length",
)  # fmt: skip
MOST_PANELS = 6

_TABLES = {
    ONSET: "Prompts that do not hold the target yet: it is foreseen, not repeated.",
    USE: (
        "A classifier learns from completed records, from real ones, from both (augmentation) or from the prompts "
        "alone which records hold the target, and is tested on other real records."
    ),
    LEAKS: (
        "What the generator gives away of its training records. Nothing: a gap of 0, AUROCs and the share of records "
        "nearer to a training record of 50. Of records generated from nothing, but for ROUGE-1. Copies are looked for "
        "among all training records (by runs without copies_gap in metrics.json: among those that were continued)."
    ),
    LIKENESS: "Generated continuations beside the true ones. Distances of a perfect generator: the floor, not 0.",
}


def generator_sections(group: Group, resampled: Mapping[str, ResampledRow] | None = None) -> list[Section]:
    """What generators have beside results, none for other models. `resampled`: of all rows, in generation.RESAMPLED."""
    if not group.is_generators:
        return []
    if resampled is None:
        resampled = group.resampled(RESAMPLED)
    return [_tradeoff(group, resampled), _tables(group, resampled), _prevalence(group)]


def _tables(group: Group, resampled: Mapping[str, ResampledRow]) -> Section:
    """What the records are good for, what they give away, and how like real ones they are."""
    blocks: list[Block] = []
    for metrics, text in _TABLES.items():
        rows = [[row.name, *(_cell(row, resampled[row.name], metric) for metric in metrics)] for row in group.rows]
        if metrics == LIKENESS:
            rows.append(["floor", *(_floor(group, metric) for metric in metrics)])
        blocks += [Paragraph(text), Grid(["", *map(metric_header, metrics)], rows)]
        reasons = {
            f"{MEASURES[metric].label} is undefined: {entry['reason']}."
            for run in group.runs
            for metric in metrics
            if (entry := run.entry(metric)).get("value") is None and "reason" in entry
        }
        blocks += [Paragraph(reason) for reason in sorted(reasons)]
    return Section(f"Generated records: {group.title}", blocks)


def _tradeoff(group: Group, resampled: Mapping[str, ResampledRow]) -> Section:
    """Precision against recall: what each row generates, and what a threshold on its own probability would give."""
    curves, points = {}, {}
    for row in group.rows:
        if all(run.has_probabilities for run in row.runs):
            curves[row.name] = _mean_curve(row)
        recall, precision = (row_interval(resampled[row.name], name) for name in ("recall", "precision"))
        points[row.name] = Cross(recall.value, recall.low, recall.high, precision.value, precision.low, precision.high)
    figure = tradeoff_figure(file_name("tradeoff", group.data, group.task, group.fingerprint[:8]), curves, points)
    caption = (
        "Points: the target in what is generated, with 95 % intervals. Lines: the same model if it called every record "
        "positive whose probability of the target lies above a threshold. A point on the line of its base could have "
        "been had without tuning."
    )
    return Section(f"Precision for recall: {group.title}", [Picture(figure, caption, group.simulated)])


def _prevalence(group: Group) -> Section:
    """Each code's share of generated continuations beside its share of the true ones."""
    shown = group.rows[:MOST_PANELS]
    panels = {row.name: prevalences(row.runs[0].completions.truth, row.runs[0].completions.generated) for row in shown}
    figure = scatter_figure(
        file_name("prevalence", group.data, group.task, group.fingerprint[:8]), panels, "true", "generated"
    )
    caption = (
        f"Share of the continuations that hold a code, seed {shown[0].runs[0].seed}; diamonds: the target's codes. "
        "Codes in fewer than five continuations of either kind are not drawn."
    )
    if len(group.rows) > MOST_PANELS:
        caption += f" The first {MOST_PANELS} of {len(group.rows)} rows are drawn."
    return Section(f"Prevalence of codes: {group.title}", [Picture(figure, caption, group.simulated)], folded=True)


def _cell(row: Row, resampled: ResampledRow, metric: str) -> str:
    """As other tables have it; of what is not resampled, the interval of a single run."""
    if metric in RESAMPLED:
        return with_interval(row, resampled, metric)
    text = show_summary(row.summary(metric), metric)
    if len(row.runs) > 1:
        return text
    stored = stored_interval(row.runs[0].entry(metric))
    return f"{text}\n{show_range(stored.low, stored.high, metric)}".strip()


def _floor(group: Group, metric: str) -> str:
    """What another sample of the true continuations would show: the mean over all runs."""
    known = [floor for run in group.runs if (floor := run.entry(metric).get("floor")) is not None]
    return show(float(np.mean(known)) if known else np.nan, metric)


def _mean_curve(row: Row) -> tuple[FloatArray, FloatArray]:
    """Recall and precision, means over the seeds in which both are defined, from the highest threshold on."""
    entries = [[[at["recall"], at["precision"]] for at in run.metrics["curve"]] for run in row.runs]
    points = np.array([[[stored_interval(entry).value for entry in at] for at in curve] for curve in entries])
    known = np.isfinite(points).all(axis=2)  # seeds, thresholds
    count = known.sum(axis=0)
    means = np.where(known[..., None], points, 0).sum(axis=0)[count > 0] / count[count > 0, None]
    return means[::-1, 0], means[::-1, 1]
