"""The columns of a page: one declared column on one cohort, its rows, and what is said of them."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from ehrlab.core.errors import InputError
from ehrlab.evaluation.comparison import Difference, ResampledRow
from ehrlab.report.cohorts import PublishedCohorts, cohort_heading, read_published
from ehrlab.report.collect import Group, Row, differences_to_first, holm_of
from ehrlab.report.declaration import Claim, ColumnSpec, Declaration
from ehrlab.report.document import Grid, Paragraph, Section
from ehrlab.report.exhibit import one_configuration, verdict
from ehrlab.report.runs import Run
from ehrlab.report.sections import TEST, row_of


@dataclass(frozen=True)
class Column:
    """A declared column and one cohort that ran in it; `group` is None where nothing ran. Rows go by their labels."""

    spec: ColumnSpec
    group: Group | None
    heading: str  # what the cohort is, empty when it is the paper's
    resampled: Mapping[str, ResampledRow] = field(default_factory=dict)  # by row; empty where nothing is compared

    @property
    def title(self) -> str:
        return f"{self.spec.label} – {self.heading}" if self.heading else self.spec.label

    @property
    def is_papers(self) -> bool:
        return self.group is not None and not self.heading

    def row(self, name: str) -> Row | None:
        return next((row for row in self.group.rows if row.name == name), None) if self.group else None


def columns_of(
    declaration: Declaration,
    runs: Sequence[Run],
    assigned: Mapping[Path, str],
    order: Sequence[str],
    cohorts: PublishedCohorts | None,
) -> tuple[list[Column], int]:
    """Declared columns, then others that ran. Each cohort is a column of its own: means never mix data.

    `assigned` is run folder -> row. Returns the number of runs left out for another configuration of their row too.
    """
    specs = [*declaration.columns]
    declared = {spec.column for spec in specs}
    specs += [ColumnSpec(c, c, None) for c in dict.fromkeys(run.column for run in runs) if c not in declared]
    columns, left_out = [], 0
    for spec in specs:
        by_cohort: dict[tuple[bool, str], list[Run]] = {}
        for run in runs:
            if run.column == spec.column:
                by_cohort.setdefault((run.simulated, run.fingerprint), []).append(run)
        if not by_cohort:
            columns.append(Column(spec, None, "not run"))
        for (simulated, fingerprint), members in by_cohort.items():
            rows = []
            for name in order:
                chosen, others = one_configuration([run for run in members if assigned[run.folder] == name])
                left_out += others
                if chosen:
                    rows.append(row_of(name, chosen))
            group = Group(members[0].data, members[0].task, simulated, fingerprint, tuple(rows))
            values = cohorts.values.get(spec.published or "") if cohorts else None
            heading = cohort_heading(group, values)
            if len(by_cohort) > 1:
                heading = f"{heading}, data {fingerprint[:8]}".removeprefix(", ")
            columns.append(Column(spec, group, heading))
    return columns, left_out


def resampled(columns: Sequence[Column], declaration: Declaration) -> list[Column]:
    """The columns with resamples of their rows."""
    metrics = list(dict.fromkeys([*declaration.metrics, *(claim.metric for claim in declaration.claims)]))
    return [replace(column, resampled=c.resampled(metrics)) if (c := column.group) else column for column in columns]


def against(column: Column, row: str, others: Iterable[str], metric: str) -> list[tuple[str, Difference | str]]:
    """Differences of one row to others within a column, of those that ran."""
    if column.group is None or column.row(row) is None:
        return []
    names = [row, *(name for name in others if column.row(name) is not None)]
    return differences_to_first([(name, column.resampled[name]) for name in names], metric)


def claims_section(declaration: Declaration, columns: Sequence[Column]) -> Section | None:
    """Which claims hold here, which are contradicted, which this sample cannot decide."""
    labels = {spec.row: spec.label for spec in declaration.rows}
    lines: list[tuple[Claim, str, str, Difference | str]] = []
    for claim in declaration.claims:
        assert claim.row is not None, "only a claim of equality may be about every row"
        others = [labels[row] for row in claim.over]
        for column in columns:
            found = against(column, labels[claim.row], others, claim.metric)
            lines += [(claim, column.title, f"{labels[claim.row]} against {name}", d) for name, d in found]
    if not lines:
        return None
    adjusted, tested = holm_of([difference for *_, difference in lines])
    rows = [
        [claim.text, title, rows, verdict(difference, p, claim.metric, tested)]
        for (claim, title, rows, difference), p in zip(lines, adjusted)
    ]
    return Section(
        "The paper's claims",
        [
            Grid(["Claim", "Column", "Rows", "Here"], rows),
            Paragraph(
                f"Holds or contradicted: Holm-corrected p < .05 over these {tested} comparisons. {TEST} On a cohort "
                f"that is not the paper's, this says what the methods do on it, not whether the paper is right."
            ),
        ],
    )


def read_numbers(path: Path) -> dict[tuple[str, str, str], str]:
    """(model, data, metric) -> value as printed."""
    table = read_published(path, ("model", "data", "metric", "value", "source"))
    keys = table.select("model", "data", "metric")
    if keys.is_duplicated().any():
        raise InputError(
            f"published numbers {path}: {int(keys.is_duplicated().sum())} rows share model, data and metric"
        )
    return {(m, d, k): v for m, d, k, v in table.select("model", "data", "metric", "value").iter_rows()}
