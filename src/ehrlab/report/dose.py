"""A dose-response study: how metrics follow one setting, for each model, beside the exact risk.

A setting of the data (a knob of the simulation, the number of patients, ...) gives each dose a cohort of its own, and
numbers are compared between rows at one dose only. A setting of the model leaves all doses on one cohort, where they
are compared with each other, too. Runs that differ in any other setting of the data are in panels of their own.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrlab.evaluation.comparison import (
    Difference,
    ResampledRow,
    paired_difference,
    prior_risk,
    row_interval,
    standing_at,
)
from ehrlab.evaluation.oracle import SET_METRICS
from ehrlab.evaluation.resampling import Interval, Resampled
from ehrlab.report.cohorts import cohort_heading
from ehrlab.report.collect import (
    MEASURES,
    Group,
    Row,
    differences_to_first,
    holm_of,
    metric_header,
    show,
    show_range,
    show_summary,
    stored_interval,
)
from ehrlab.report.declaration import PRIOR, Axis, Claim, ColumnSpec, Declaration, number_at, setting
from ehrlab.report.document import Block, Document, Grid, Paragraph, Picture, Section
from ehrlab.report.exhibit import document, one_configuration, rows_that_ran, verdict, verdict_of_equality
from ehrlab.report.figures import NO_SKILL, Line, dose_figure, file_name
from ehrlab.report.runs import Run
from ehrlab.report.sections import DETECTABLE, TEST, difference_cells, flatten, row_of

# Settings that decide the data: with the axis, they tell panels apart.
_DATA_SETTINGS = ("data", "task", "visits", "split")
# Where metrics stand without skill; None: at the share of positives.
_NO_SKILL = {"pr_auc": None, "average_precision": None, "auroc": 0.5}


@dataclass(frozen=True)
class Dose:
    """The rows that ran at one value of the axis, on one cohort; `resampled` and `prior` share their resamples."""

    x: float
    group: Group
    resampled: Mapping[str, ResampledRow]
    prior: Resampled

    def row(self, label: str) -> Row | None:
        return next((row for row in self.group.rows if row.name == label), None)

    @property
    def sets(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Information set -> metric -> entry of metrics.json; empty without an oracle."""
        oracles = [run.metrics["oracle"] for run in self.group.runs if run.reference is not None]
        return dict(oracles[0]["sets"]) if oracles else {}


@dataclass(frozen=True)
class Panel:
    """Doses, rising, between which nothing differs but the axis. `labels`: rows that ran, in order."""

    spec: ColumnSpec
    title: str
    doses: tuple[Dose, ...]
    labels: tuple[str, ...]


def dose_document(
    declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int
) -> tuple[Document, pl.DataFrame]:
    """The page, and all that it draws in long form."""
    panels, left_out = _panels(declaration, runs, index)
    sections = [_panel_section(declaration, panel) for panel in panels]
    if (claims := _claims_section(declaration, panels)) is not None:
        sections.append(claims)
    groups = [dose.group for panel in panels for dose in panel.doses]
    return document(declaration, sections, groups, None, num_unfinished, left_out), _table(declaration, panels)


def _panels(declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str]) -> tuple[list[Panel], int]:
    """Panels in the order of the declared columns, and the number of runs left out for another of their place."""
    (axis,) = declaration.axes
    assigned = {run.folder: declaration.label_of(run, index) for run in runs}
    labels = rows_that_ran(declaration, assigned)
    specs = {spec.column: spec for spec in declaration.columns}
    places = {run.folder: _data_settings(run, axis) for run in runs}
    panels, left_out = [], 0
    for column in dict.fromkeys([*specs, *(run.column for run in runs)]):
        of_column: dict[str, list[Run]] = {}
        for run in runs:
            if run.column == column:
                of_column.setdefault(json.dumps(places[run.folder], sort_keys=True, default=str), []).append(run)
        differing = _differing([places[members[0].folder] for members in of_column.values()])
        for members in of_column.values():
            doses = []
            for x in sorted({number_at(run, axis) for run in members}):
                dose, others = _dose(declaration, [r for r in members if number_at(r, axis) == x], x, assigned, labels)
                doses.append(dose)
                left_out += others
            ran = tuple(label for label in labels if any(dose.row(label) for dose in doses))
            spec = specs.get(column) or ColumnSpec(column, column, None)
            heading = cohort_heading(doses[0].group, None)
            own = [f"{key} = {places[members[0].folder].get(key, '–')}" for key in differing]
            panels.append(
                Panel(spec, " – ".join([spec.label, *filter(None, [heading, ", ".join(own)])]), tuple(doses), ran)
            )
    return panels, left_out


def _data_settings(run: Run, axis: Axis) -> dict[str, Any]:
    flat = flatten({name: run.config[name] for name in _DATA_SETTINGS if name in run.config})
    return {"simulated": run.simulated, **{key: value for key, value in flat.items() if key != axis.key}}


def _differing(places: Sequence[Mapping[str, Any]]) -> list[str]:
    keys = sorted({key for place in places for key in place})
    return [key for key in keys if len({repr(place.get(key)) for place in places}) > 1]


def _dose(
    declaration: Declaration, runs: Sequence[Run], x: float, assigned: Mapping[Path, str], labels: Sequence[str]
) -> tuple[Dose, int]:
    """One cohort: where the same settings gave several (another version made them), the one with most runs."""
    by_cohort: dict[str, list[Run]] = {}
    for run in runs:
        by_cohort.setdefault(run.fingerprint, []).append(run)
    members = max(by_cohort.values(), key=lambda m: (len(m), max(run.done_at for run in m)))
    rows, left_out = [], len(runs) - len(members)
    for label in labels:
        chosen, others = one_configuration([run for run in members if assigned[run.folder] == label])
        left_out += others
        if chosen:
            rows.append(row_of(label, chosen))
    first = members[0]
    group = Group(first.data, first.task, first.simulated, first.fingerprint, tuple(rows))
    metrics = list(dict.fromkeys([*declaration.metrics, *(claim.metric for claim in declaration.claims)]))
    resampled = group.resampled(metrics)
    drawn = len(next(iter(resampled.values())).resamples[metrics[0]])
    return Dose(x, group, resampled, prior_risk(first.predictions, num_bootstrap=drawn)), left_out


def _panel_section(declaration: Declaration, panel: Panel) -> Section:
    """A figure with one panel for each metric, then each metric as a table of rows by doses."""
    (axis,) = declaration.axes
    ticks = {dose.x: _tick(dose, axis) for dose in panel.doses}
    sets = declaration.oracle or tuple(
        dict.fromkeys(row.reference for dose in panel.doses for row in dose.group.rows if row.reference)
    )
    lines = {metric: _lines(panel, metric, sets) for metric in declaration.metrics}
    group = panel.doses[0].group
    figure = dose_figure(
        file_name("dose", group.data, group.task, *(dose.group.fingerprint[:4] for dose in panel.doses)),
        {metric_header(metric): [_scaled(line, metric) for line in drawn] for metric, drawn in lines.items()},
        axis.label,
        ticks,
        is_log=axis.is_log,
    )
    caption = f"{panel.title}. Means over seeds with 95 % intervals over patients and seeds."
    is_one_cohort = len({dose.group.fingerprint for dose in panel.doses}) == 1
    if not is_one_cohort:
        caption += " Each dose is a cohort of its own: compare rows at one dose; between doses, cohorts differ too."
    blocks: list[Block] = [Picture(figure, caption, group.simulated)]
    for metric in declaration.metrics:
        rows = []
        for line in lines[metric]:
            cells = [line.name]
            for place, dose in enumerate(panel.doses):
                row = None if line.is_reference else dose.row(line.name)
                value, low, high = line.y[place], line.low[place], line.high[place]
                shown = show_summary(row.summary(metric), metric) if row else show(value, metric)
                known = row is not None or np.isfinite(value)
                cells.append(f"{shown}\n{show_range(low, high, metric)}".strip() if known else "not run")
            rows.append(cells)
        blocks.append(Grid([metric_header(metric), *(f"{axis.label} = {text}" for text in ticks.values())], rows))
    counts = [dose.group.runs[0].metrics for dose in panel.doses]
    positive = f"positive (sample, label)s of {len(group.labels)} labels" if group.labels else "of them positive"
    cohorts = [
        [name, *(f"{count[key]:,}" for count in counts)]
        for name, key in (("test samples", "num_samples"), (positive, "num_positive"))
    ]
    blocks.append(Grid(["Cohort", *(f"{axis.label} = {text}" for text in ticks.values())], cohorts))
    blocks.append(Paragraph("Mean ± standard deviation over seeds (number of seeds); below it the interval."))
    if is_one_cohort and len(panel.doses) > 1:
        blocks += _between_doses(declaration, panel, ticks)
    return Section(panel.title, blocks)


def _between_doses(declaration: Declaration, panel: Panel, ticks: Mapping[float, str]) -> list[Block]:
    """Of a setting that leaves the cohort as it is: each row at each dose minus itself at the first."""
    (axis,) = declaration.axes
    first, *others = panel.doses
    lines: list[tuple[list[str], str, Difference | str]] = []
    for metric in declaration.metrics:
        for label in panel.labels:
            for dose in others:
                if first.row(label) is not None and dose.row(label) is not None:
                    at = [(ticks[d.x], d.resampled[label]) for d in (first, dose)]
                    ((_, difference),) = differences_to_first(at[::-1], metric)
                    lines.append(([label, metric_header(metric), ticks[dose.x]], metric, difference))
    if not lines:
        return []
    adjusted, tested = holm_of([difference for *_, difference in lines])
    rows = [[*place, *difference_cells(d, p, metric, tested)] for (place, metric, d), p in zip(lines, adjusted)]
    text = (
        f"All doses are of one cohort. Each minus {axis.label} = {ticks[first.x]}, on the same patients and seeds. "
        f"{TEST} p is two-sided, corrected by Holm's method for {tested} comparisons."
    )
    header = ["Row", "Metric", axis.label, "Difference", "95 % interval", "Holm p", "Seeds", "Detectable"]
    return [Paragraph(text), Grid(header, rows), Paragraph(DETECTABLE)]


def _lines(panel: Panel, metric: str, sets: Sequence[str]) -> list[Line]:
    """The rows, then what they are compared with: the exact risk given some information, and no skill."""
    x = np.array([dose.x for dose in panel.doses])

    def line(name: str, numbers: Sequence[Interval], is_reference: bool) -> Line:
        y, low, high = (np.array([getattr(n, part) for n in numbers]) for part in ("value", "low", "high"))
        return Line(name, x, y, low, high, is_reference)

    nothing = Interval(np.nan, np.nan, np.nan)
    lines = []
    for label in panel.labels:
        numbers = [row_interval(dose.resampled[label], metric) if dose.row(label) else nothing for dose in panel.doses]
        lines.append(line(label, numbers, is_reference=False))
    if metric in SET_METRICS:
        for name in sets:
            entries = [dose.sets.get(name, {}).get(metric, {}) for dose in panel.doses]
            if any(entries):
                numbers = [stored_interval(entry) for entry in entries]
                lines.append(line(f"exact risk: {name}", numbers, is_reference=True))
    if metric in _NO_SKILL:
        level = _NO_SKILL[metric]
        numbers = [Interval(dose.prior.value if level is None else level, np.nan, np.nan) for dose in panel.doses]
        lines.append(line(NO_SKILL, numbers, is_reference=True))
    return lines


def _scaled(line: Line, metric: str) -> Line:
    scale = 100 if MEASURES[metric].percent else 1
    return Line(line.name, line.x, scale * line.y, scale * line.low, scale * line.high, line.is_reference)


def _tick(dose: Dose, axis: Axis) -> str:
    """A dose as it was set: a switch by its name."""
    value = setting(dose.group.runs[0], axis.key)
    return str(value).lower() if isinstance(value, bool) else f"{value:,}" if isinstance(value, int) else f"{value:g}"


def _claims_section(declaration: Declaration, panels: Sequence[Panel]) -> Section | None:
    """Each claim at each dose; Holm's correction over all of them."""
    (axis,) = declaration.axes
    lines: list[tuple[Claim, list[str], Difference | str]] = []
    for claim in declaration.claims:
        for panel in panels:
            for dose in panel.doses:
                if not claim.at or dose.x in claim.at:
                    place = [panel.title, f"{axis.label} = {_tick(dose, axis)}"]
                    lines += [(claim, [*place, rows], found) for rows, found in _judged(declaration, claim, dose)]
    if not lines:
        return None
    adjusted, tested = holm_of([difference for *_, difference in lines])
    rows = [
        [
            claim.text,
            *place,
            (verdict if claim.equals is None else verdict_of_equality)(difference, p, claim.metric, tested),
        ]
        for (claim, place, difference), p in zip(lines, adjusted)
    ]
    text = (
        f"Contradicted, and holds where one row is said to be better: Holm-corrected p < .05 over these {tested} "
        f"comparisons. {TEST} A claim that something is equal holds while nothing contradicts it; how large a "
        f"difference would have gone unseen stands beside it."
    )
    return Section("Claims", [Grid(["Claim", "Column", "Dose", "Rows", "Here"], rows), Paragraph(text)])


def _judged(declaration: Declaration, claim: Claim, dose: Dose) -> list[tuple[str, Difference | str]]:
    """What is compared, and the difference."""
    labels = {spec.row: spec.label for spec in declaration.rows}
    if claim.equals is None:
        assert claim.row is not None, "a claim about every row says what they equal"
        names = [name for row in (claim.row, *claim.over) if dose.row(name := labels[row]) is not None]
        if not names or names[0] != labels[claim.row]:
            return []
        found = differences_to_first([(name, dose.resampled[name]) for name in names], claim.metric)
        return [(f"{names[0]} against {name}", difference) for name, difference in found]
    judged: list[tuple[str, Difference | str]] = []
    for row in dose.group.rows:
        if claim.row is None or row.name == labels[claim.row]:
            resampled = dose.resampled[row.name]
            num_resamples = len(resampled.resamples[claim.metric])
            if claim.equals == PRIOR:
                value, name = dose.prior, f"{NO_SKILL} ({show(dose.prior.value, claim.metric)})"
            else:
                number = float(claim.equals)
                value, name = Resampled(number, np.full(num_resamples, number)), show(number, claim.metric)
            expected = standing_at(resampled, claim.metric, value)
            judged.append((f"{row.name} against {name}", paired_difference(resampled, expected, claim.metric)))
    return judged


def _table(declaration: Declaration, panels: Sequence[Panel]) -> pl.DataFrame:
    """Long form: one row per panel, dose, line and metric."""
    (axis,) = declaration.axes
    rows = []
    for panel in panels:
        references = dict.fromkeys(name for dose in panel.doses for name in dose.sets)
        for metric in declaration.metrics:
            for line in _lines(panel, metric, list(references)):
                for place, dose in enumerate(panel.doses):
                    row = None if line.is_reference else dose.row(line.name)
                    if row is None and not np.isfinite(line.y[place]):
                        continue
                    summary = row.summary(metric) if row else None
                    rows.append(
                        {
                            "column": panel.spec.column,
                            "panel": panel.title,
                            "setting": axis.key,
                            "dose": dose.x,
                            "row": line.name,
                            "is_model": not line.is_reference,
                            "metric": metric,
                            "value": line.y[place],
                            "std": summary.std if summary else None,
                            "num_seeds": summary.num if summary else None,
                            "low": line.low[place],
                            "high": line.high[place],
                            "num_samples": dose.group.runs[0].metrics["num_samples"],
                            "num_positive": dose.group.runs[0].metrics["num_positive"],
                            "data_fingerprint": dose.group.fingerprint,
                        }
                    )
    text, real, whole = pl.String, pl.Float64, pl.Int64
    schema = {
        **dict.fromkeys(("column", "panel", "setting"), text),
        "dose": real,
        "row": text,
        "is_model": pl.Boolean,
        "metric": text,
        **dict.fromkeys(("value", "std"), real),
        "num_seeds": whole,
        **dict.fromkeys(("low", "high"), real),
        **dict.fromkeys(("num_samples", "num_positive"), whole),
        "data_fingerprint": text,
    }
    return pl.DataFrame(rows, schema=schema).with_columns(pl.col(pl.Float64).fill_nan(None))
