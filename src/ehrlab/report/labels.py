"""Several labels one by one, beside the means over them that all other tables show."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.table import Table
from rich.text import Text

from ehrlab.evaluation.oracle import DISTANCES
from ehrlab.report.collect import (
    MAIN_METRIC,
    MEASURES,
    Group,
    Row,
    Summary,
    group_runs,
    metric_header,
    show,
    show_range,
    show_summary,
    stored_interval,
    summarise,
)
from ehrlab.report.document import Block, Grid, Paragraph, Section
from ehrlab.report.runs import load_runs

LABEL_METRICS = (MAIN_METRIC, "f1", "auroc")


def labels_section(group: Group) -> Section | None:
    """A table for each of LABEL_METRICS (and regret), a row per method and a column per label.

    None where there is one label.
    """
    if not group.labels:
        return None
    several_seeds = any(len(row.runs) > 1 for row in group.rows)
    what = (
        "mean ± standard deviation over seeds (number of seeds)"
        if several_seeds
        else "with its 95 % bootstrap interval over patients"
    )
    blocks: list[Block] = [Paragraph(f"Each label by itself, {what}. Their mean stands above.")]
    shares = ["share of positives", *(show(share, MAIN_METRIC) for share in _shares(group))]
    for metric in (*LABEL_METRICS, "regret") if group.has_oracle else LABEL_METRICS:
        rows = [shares] if metric == MAIN_METRIC else []
        rows += [[row.name, *(_cell(row, label, metric) for label in group.labels)] for row in group.rows]
        blocks.append(Grid([metric_header(metric), *group.labels], rows))
    return Section(f"Labels: {group.title}", blocks)


def labels_table(run_folders: Sequence[Path]) -> Table | None:
    """The console's table of each label's PR-AUC, a column per method in the order given; None without several labels.

    One table for one data set and task: the first with several labels.
    """
    group = next((group for group in group_runs(load_runs(run_folders)[0]) if group.labels), None)
    if group is None:
        return None
    title = f"{MEASURES[MAIN_METRIC].label} x100 of each label"
    style = "bold red" if group.simulated else ""
    table = Table(title=Text(f"SIMULATED data: {title}" if group.simulated else title, style))
    table.add_column("label", min_width=min(24, max(map(len, group.labels))))
    table.add_column("positive", justify="right")
    for row in group.rows:
        table.add_column(Text(row.name), justify="right")
    for label, share in zip(group.labels, _shares(group)):
        cells = [show(_summary(row, label, MAIN_METRIC).mean, MAIN_METRIC) for row in group.rows]
        table.add_row(Text(label), show(share, MAIN_METRIC), *cells)
    table.caption = Text(f"{group.title}; means over seeds; positive: share of positives, x100")
    return table


def _shares(group: Group) -> list[float]:
    """The share of positives of each label."""
    parts = group.runs[0].metrics["labels"]
    return [parts[label]["num_positive"] / parts[label]["num_samples"] for label in group.labels]


def _entries(row: Row, label: str, metric: str) -> list[dict[str, float | None]]:
    if metric in DISTANCES:
        found = [run.metrics.get("oracle", {}).get("labels", {}).get(label, {}) for run in row.runs]
    else:
        found = [run.metrics["labels"][label]["held_out"] for run in row.runs]
    return [part[metric] for part in found if metric in part]


def _summary(row: Row, label: str, metric: str) -> Summary:
    values = [stored_interval(entry).value for entry in _entries(row, label, metric)]
    return summarise([value for value in values if np.isfinite(value)])


def _cell(row: Row, label: str, metric: str) -> str:
    summary = _summary(row, label, metric)
    if summary.num != 1 or len(row.runs) > 1:
        return show_summary(summary, metric)
    stored = stored_interval(_entries(row, label, metric)[0])
    return f"{show(stored.value, metric)}\n{show_range(stored.low, stored.high, metric)}".strip()
