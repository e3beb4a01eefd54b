"""A paper's table or figure, declared as data, rendered from the runs that were made for it.

`results/experiments/<name>/experiment.json` holds the declaration (the `experiment:` block of
`experiments/<name>.yaml`), and each other JSON file there names one run: {"run", "row", "column"}, `run` relative to
the results folder. docs/evaluation.md lists the declaration's keys.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ehrlab.core.errors import InputError
from ehrlab.evaluation.comparison import Difference, ResampledRow, mean_rank, t_test_against
from ehrlab.evaluation.metrics import METRICS, FloatArray
from ehrlab.report.cohorts import PublishedCohorts, cohort_heading, read_published, read_published_cohorts
from ehrlab.report.collect import (
    Group,
    Row,
    differences_to_first,
    holm_of,
    metric_header,
    show,
    show_difference,
    show_p,
    show_summary,
)
from ehrlab.report.document import Block, Document, Grid, Paragraph, Picture, Section, write_document
from ehrlab.report.figures import file_name, landscape_figure
from ehrlab.report.files import read_json
from ehrlab.report.runs import Run, load_runs, long_table
from ehrlab.report.sections import (
    DETECTABLE,
    banner,
    cohort_section,
    curves_section,
    difference_cells,
    present,
    provenance_section,
    reproduce_section,
    row_of,
    settings_section,
    training_section,
    unfinished_section,
)

DECLARATION = "experiment.json"
_NOTHING = "–"


@dataclass(frozen=True)
class RowSpec:
    """A row: its name in the index, its label on the page, its name in the published CSV.

    With `match` a run belongs to the row when its model, variant and row, or its settings (dotted keys), have these
    values; without it, when the index says so.
    """

    row: str
    label: str
    published: str | None
    match: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ColumnSpec:
    """A column: our `data/task`, its label, its name in the published CSV and cohort table."""

    column: str
    label: str
    published: str | None


@dataclass(frozen=True)
class Claim:
    """What the paper says of `row` against each row of `over`, in its own direction: better in `metric`."""

    text: str
    row: str
    over: tuple[str, ...]
    metric: str


@dataclass(frozen=True)
class Declaration:
    """An exhibit of a paper. Rows and columns that ran but are not declared are shown after the declared ones."""

    name: str
    title: str
    paper: str
    kind: Literal["table", "landscape"]
    metrics: tuple[str, ...]
    rows: tuple[RowSpec, ...]
    columns: tuple[ColumnSpec, ...]
    claims: tuple[Claim, ...]
    axes: tuple[tuple[str, str], tuple[str, str]] | None  # (setting, label) of x and of y
    published: Path | None
    cohorts: Path | None
    note: str


_KEYS = frozenset(
    {"name", "title", "paper", "kind", "metrics", "rows", "columns", "claims", "axes", "published", "cohorts", "note"}
)


def parse_declaration(content: Mapping[str, Any], name: str) -> Declaration:
    """Check an `experiment:` block. Raises InputError naming the key."""
    where = f"experiment {name}"
    if unknown := sorted(set(content) - _KEYS):
        raise InputError(f"{where}: unknown keys {unknown}; expected {sorted(_KEYS)}")
    for key in ("title", "metrics"):
        if not content.get(key):
            raise InputError(f"{where}: expected an entry {key}, found none")
    kind = content.get("kind", "table")
    if kind not in ("table", "landscape"):
        raise InputError(f"{where}: kind should be table or landscape, found {kind!r}")
    metrics = tuple(content["metrics"])
    rows = tuple(
        RowSpec(str(_need(r, "row", where)), str(r.get("label") or r["row"]), r.get("published"), r.get("match") or {})
        for r in content.get("rows") or ()
    )
    columns = tuple(
        ColumnSpec(str(_need(c, "column", where)), str(c.get("label") or c["column"]), c.get("published"))
        for c in content.get("columns") or ()
    )
    claims = tuple(
        Claim(
            str(_need(c, "text", where)),
            str(_need(c, "row", where)),
            tuple(_need(c, "over", where)),
            str(c.get("metric") or metrics[0]),
        )
        for c in content.get("claims") or ()
    )
    named = {spec.row for spec in rows}
    if len(named) < len(rows) or len({spec.label for spec in rows}) < len(rows):
        raise InputError(f"{where}: two rows have the same row or label; found {[(r.row, r.label) for r in rows]}")
    for claim in claims:
        if strangers := sorted({claim.row, *claim.over} - named):
            raise InputError(
                f"{where}: a claim names the rows {strangers}, which are not among the rows {sorted(named)}"
            )
    if strangers := sorted({*metrics, *(claim.metric for claim in claims)} - set(METRICS)):
        raise InputError(f"{where}: unknown metrics {strangers}; expected some of {list(METRICS)}")
    if any(METRICS[claim.metric].better == 0 for claim in claims):
        raise InputError(f"{where}: a claim needs a metric with a better direction")
    axes = None
    if kind == "landscape":
        pair = content.get("axes") or {}
        x, y = _need(pair, "x", where), _need(pair, "y", where)
        axes = ((str(x), str(pair.get("x_label") or x)), (str(y), str(pair.get("y_label") or y)))
    return Declaration(
        name=str(content.get("name") or name),
        title=str(content["title"]),
        paper=str(content.get("paper") or ""),
        kind=kind,
        metrics=metrics,
        rows=rows,
        columns=columns,
        claims=claims,
        axes=axes,
        published=Path(content["published"]) if content.get("published") else None,
        cohorts=Path(content["cohorts"]) if content.get("cohorts") else None,
        note=str(content.get("note") or ""),
    )


def write_experiment(name: str, results: Path, out: Path) -> Path:
    """Render `results/experiments/<name>` to the folder `out`; returns the path of its index.html.

    Paths in the declaration are relative to the working directory (the repository). Raises InputError when the
    experiment is unknown, or none of its runs has finished.
    """
    folder = results / "experiments" / name
    if not (folder / DECLARATION).exists():
        experiments = results / "experiments"
        known = sorted(str(p.parent.relative_to(experiments)) for p in experiments.rglob(DECLARATION))
        raise InputError(
            f"experiment {name}: expected {folder / DECLARATION}, found nothing there (known: {known}); "
            f"run it first: python run.py experiments={name}"
        )
    declaration = parse_declaration(read_json(folder / DECLARATION), name)
    index: dict[Path, str] = {}
    for path in sorted(folder.glob("*.json")):
        if path.name == DECLARATION:
            continue
        entry = read_json(path)
        if not isinstance(entry.get("run"), str) or not isinstance(entry.get("row"), str):
            raise InputError(f"{path}: expected text entries run and row, found {sorted(entry)}")
        index[results / entry["run"]] = entry["row"]
    runs, unfinished = load_runs(index)
    if not runs:
        raise InputError(
            f"experiment {name}: expected at least one finished run, found {len(unfinished)} unfinished ones"
        )
    document = _landscape if declaration.kind == "landscape" else _table
    page = document(declaration, runs, {run.folder: index[run.folder] for run in runs}, len(unfinished))
    return write_document(page, out, long_table(runs).write_csv())


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


def _table(declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int) -> Document:
    """Rows x columns, `ours | published | difference`, then comparisons, claims and the common parts."""
    cohorts = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    published = _read_numbers(declaration.published) if declaration.published else {}
    assigned = {run.folder: _row_label(run, declaration.rows, index) for run in runs}
    declared = {spec.label for spec in declaration.rows}
    others = [label for label in dict.fromkeys(assigned.values()) if label not in declared]
    specs = [*declaration.rows, *(RowSpec(label, label, None) for label in others)]
    columns, left_out = _columns(declaration, runs, assigned, [spec.label for spec in specs], cohorts)
    ran = [column.group for column in columns if column.group]
    comparisons = max((len(specs) - 1) * len(ran), sum(len(claim.over) for claim in declaration.claims) * len(ran))
    metrics = list(dict.fromkeys([*declaration.metrics, *(claim.metric for claim in declaration.claims)]))
    columns = [
        replace(column, resampled=column.group.resampled(metrics, comparisons)) if column.group else column
        for column in columns
    ]
    groups = [column.group for column in columns if column.group]
    sections = [_result_section(declaration, metric, specs, columns, published) for metric in declaration.metrics]
    if len(specs) > 1:
        sections += [_difference_section(metric, specs, columns) for metric in declaration.metrics]
    sections += present([_claims_section(declaration, columns)])
    return _document(declaration, sections, groups, cohorts, runs, num_unfinished, left_out)


def _landscape(
    declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int
) -> Document:
    """Each metric over two settings, as numbers and as surfaces."""
    assert declaration.axes is not None
    cohorts = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    (x_key, x_label), (y_key, y_label) = declaration.axes
    cells = {run.folder: f"{_axis(run, x_key):g}, {_axis(run, y_key):g}" for run in runs}
    columns, left_out = _columns(declaration, runs, cells, list(dict.fromkeys(cells.values())), cohorts)
    sections = []
    for column in columns:
        if column.group is None:
            sections.append(Section(column.title, [Paragraph("Nothing ran in this column.")]))
            continue
        at = {(_axis(row.runs[0], x_key), _axis(row.runs[0], y_key)): row for row in column.group.rows}
        xs, ys = sorted({x for x, _ in at}), sorted({y for _, y in at})
        surfaces: dict[str, FloatArray] = {}
        blocks: list[Block] = []
        for metric in declaration.metrics:
            scale = 100 if METRICS[metric].percent else 1
            summaries = {place: row.summary(metric) for place, row in at.items()}
            z = np.array([[summaries[x, y].mean if (x, y) in summaries else np.nan for x in xs] for y in ys])
            surfaces[metric_header(metric)] = z * scale
            rows = [
                [
                    f"{y_label} = {y:g}",
                    *(show_summary(summaries[x, y], metric) if (x, y) in at else _NOTHING for x in xs),
                ]
                for y in ys
            ]
            blocks.append(Grid([metric_header(metric), *(f"{x_label} = {x:g}" for x in xs)], rows))
            blocks.append(Paragraph(_extremes(z, xs, ys, x_label, y_label, metric)))
        figure = landscape_figure(
            file_name("landscape", column.group.data, column.group.task, column.group.fingerprint[:8]),
            xs,
            ys,
            surfaces,
            x_label,
            y_label,
        )
        missing = len(xs) * len(ys) - len(at)
        caption = f"{column.title}: means over seeds." + (f" {missing} cells have not run." if missing else "")
        sections.append(Section(column.title, [Picture(figure, caption), *blocks]))
    groups = [column.group for column in columns if column.group]
    return _document(declaration, sections, groups, cohorts, runs, num_unfinished, left_out)


def _document(
    declaration: Declaration,
    sections: Sequence[Section],
    groups: Sequence[Group],
    cohorts: PublishedCohorts | None,
    runs: Sequence[Run],
    num_unfinished: int,
    left_out: int,
) -> Document:
    command = f"python run.py experiments={declaration.name}\nmake report EXP={declaration.name}"
    notes: list[Block] = []
    if left_out:
        notes.append(
            Paragraph(
                f"{left_out} finished runs of this experiment are not shown: another configuration of their row has "
                f"more seeds, or is newer."
            )
        )
    curves = [curves_section(group) for group in groups] if declaration.kind == "table" else []
    settings = [settings_section(group) for group in groups] if declaration.kind == "table" else []
    everything = [
        *sections,
        cohort_section(groups, cohorts),
        *curves,
        reproduce_section(runs, command),
        unfinished_section(num_unfinished),
        Section("Runs left out", notes) if notes else None,
        training_section(groups) if declaration.kind == "table" else None,
        *settings,
        provenance_section([run for group in groups for run in group.runs]),
    ]
    lead = " ".join(part for part in (declaration.paper and f"{declaration.paper}.", declaration.note) if part)
    return Document(declaration.title, lead, present(everything), banner(groups))


def _result_section(
    declaration: Declaration,
    metric: str,
    specs: Sequence[RowSpec],
    columns: Sequence[Column],
    published: Mapping[tuple[str, str, str], str],
) -> Section:
    """One metric: under each column ours, published, difference. Only the paper's own cohort gets a difference."""
    rows = []
    for spec in specs:
        cells = [spec.label]
        for column in columns:
            row = column.row(spec.label)
            known = published.get((spec.published or "", column.spec.published or "", metric))
            cells += [show_summary(row.summary(metric), metric) if row else "not run", known or _NOTHING]
            if row and known and column.is_papers:
                cells.append(_to_published(row, float(known), metric))
            else:
                cells.append(_NOTHING)
        rows.append(cells)
    header = ["", *(text for _ in columns for text in ("ours", "published", "difference"))]
    blocks: list[Block] = [Grid(header, rows, [("", 1), *((column.title, 3) for column in columns)])]
    blocks.append(Paragraph("ours: mean ± standard deviation over seeds (number of seeds)."))
    if any(column.group and not column.is_papers for column in columns):
        blocks.append(
            Paragraph(
                "A column whose data are not the paper's cohort carries no difference to the published numbers: they "
                "are printed for orientation and measure something else."
            )
        )
    values = {
        spec.label: {
            column.title: row.summary(metric).mean for column in columns if (row := column.row(spec.label)) is not None
        }
        for spec in specs
    }
    if len(columns) > 1 and len(specs) > 1 and METRICS[metric].better != 0:
        ranks, number = mean_rank(values, higher_is_better=METRICS[metric].better > 0)
        if number:
            blocks.append(
                Grid(["Mean rank", f"over {number} columns"], [[row, f"{r:.2f}"] for row, r in ranks.items()])
            )
    return Section(metric_header(metric), blocks)


def _to_published(row: Row, published: float, metric: str) -> str:
    """`-0.5 (p=.14)`: our mean minus the published number, with the t-test of our seeds against it."""
    scale = 100 if METRICS[metric].percent else 1
    difference = show_difference(row.summary(metric).mean - published / scale, metric)
    p = t_test_against(row.values(metric), published / scale)
    return f"{difference} ({show_p(p)})" if np.isfinite(p) else difference


def _difference_section(metric: str, specs: Sequence[RowSpec], columns: Sequence[Column]) -> Section:
    """The first row minus each other, per column; Holm's correction over the whole table."""
    lines: list[tuple[str, str, Difference | str]] = []
    for column in columns:
        for label, difference in _against(column, specs[0].label, [spec.label for spec in specs[1:]], metric):
            lines.append((label, column.title, difference))
    adjusted = holm_of([difference for _, _, difference in lines])
    rows = [[label, title, *difference_cells(d, p, metric)] for (label, title, d), p in zip(lines, adjusted)]
    header = [f"{specs[0].label} minus", "Column", "Difference", "95 % interval", "Holm p", "Seeds", "Detectable"]
    return Section(
        f"{specs[0].label} against the other rows: {METRICS[metric].label}",
        [
            Paragraph(
                f"Paired bootstrap over patients and seeds; p two-sided, corrected by Holm's method for {len(lines)} "
                f"comparisons."
            ),
            Grid(header, rows),
            Paragraph(DETECTABLE),
        ],
    )


def _against(column: Column, row: str, others: Iterable[str], metric: str) -> list[tuple[str, Difference | str]]:
    """Differences of one row to others within a column, of those that ran."""
    if column.group is None or column.row(row) is None:
        return []
    names = [row, *(name for name in others if column.row(name) is not None)]
    return differences_to_first([(name, column.resampled[name]) for name in names], metric)


def _claims_section(declaration: Declaration, columns: Sequence[Column]) -> Section | None:
    """Which claims hold here, which are contradicted, which this sample cannot decide."""
    labels = {spec.row: spec.label for spec in declaration.rows}
    lines: list[tuple[Claim, str, str, Difference | str]] = [
        (claim, column.title, name, difference)
        for claim in declaration.claims
        for column in columns
        for name, difference in _against(column, labels[claim.row], [labels[row] for row in claim.over], claim.metric)
    ]
    if not lines:
        return None
    adjusted = holm_of([difference for *_, difference in lines])
    rows = [
        [claim.text, title, f"{labels[claim.row]} against {name}", _verdict(difference, p, claim.metric)]
        for (claim, title, name, difference), p in zip(lines, adjusted)
    ]
    return Section(
        "The paper's claims",
        [
            Grid(["Claim", "Column", "Rows", "Here"], rows),
            Paragraph(
                f"Holds or contradicted: Holm-corrected p < .05 over these {len(lines)} comparisons. On a cohort that "
                f"is not the paper's, this says what the methods do on it, not whether the paper is right."
            ),
        ],
    )


def _verdict(difference: Difference | str, adjusted_p: float, metric: str) -> str:
    if isinstance(difference, str):
        return f"cannot be decided: {difference}"
    if difference.reason is not None:
        return f"cannot be decided: {METRICS[metric].label} is {difference.reason}"
    text = f"{show_difference(difference.value, metric)}, {show_p(adjusted_p)}"
    if adjusted_p < 0.05:
        word = "holds" if difference.value * METRICS[metric].better > 0 else "contradicted"
        return f"{word} ({text})"
    seen = show_difference(difference.detectable, metric).removeprefix("+")
    return f"cannot be decided ({text}; a true difference below {seen} is likely to be missed)"


def _columns(
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
                chosen, others = _one_configuration([run for run in members if assigned[run.folder] == name])
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


def _one_configuration(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs of the configuration with most seeds (the newest among equals), and the number of the other runs."""
    if not runs:
        return [], 0
    by_hash: dict[str, list[Run]] = {}
    for run in runs:
        by_hash.setdefault(run.hash, []).append(run)
    chosen = max(by_hash.values(), key=lambda members: (len(members), max(run.done_at for run in members)))
    return chosen, len(runs) - len(chosen)


def _row_label(run: Run, specs: Sequence[RowSpec], index: Mapping[Path, str]) -> str:
    """Label of the declared row that a run belongs to, or the index's name of an undeclared one."""
    for spec in specs:
        wanted = spec.match
        if (
            all(_setting(run, key) == value for key, value in wanted.items())
            if wanted
            else index[run.folder] == spec.row
        ):
            return spec.label
    return index[run.folder]


def _need(entry: Mapping[str, Any], key: str, where: str) -> Any:
    if entry.get(key) in (None, "", []):
        raise InputError(f"{where}: expected {key} in each entry, found only {sorted(entry)}")
    return entry[key]


def _setting(run: Run, key: str) -> Any:
    """model, variant or row of a run, or the setting at a dotted key (None where there is none)."""
    if key in ("model", "variant", "row"):
        return getattr(run, key)
    node: Any = run.config
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _axis(run: Run, key: str) -> float:
    value = _setting(run, key)
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InputError(f"{run.folder / 'config.yaml'}: axis {key} should be a number, found {value!r}")
    return float(value)


def _extremes(z: FloatArray, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, metric: str) -> str:
    if not np.isfinite(z).any():
        return "Undefined in every cell."
    row, column = divmod(int(np.nanargmax(z)), len(xs))
    return (
        f"Highest mean {show(float(z[row, column]), metric)} at {x_label} = {xs[column]:g}, {y_label} = {ys[row]:g}; "
        f"lowest {show(float(np.nanmin(z)), metric)}. The highest of {int(np.isfinite(z).sum())} cells, chosen on the "
        f"test set, is an optimistic estimate."
    )


def _read_numbers(path: Path) -> dict[tuple[str, str, str], str]:
    """(model, data, metric) -> value as printed."""
    table = read_published(path, ("model", "data", "metric", "value", "source"))
    keys = table.select("model", "data", "metric")
    if keys.is_duplicated().any():
        raise InputError(
            f"published numbers {path}: {int(keys.is_duplicated().sum())} rows share model, data and metric"
        )
    return {(m, d, k): v for m, d, k, v in table.select("model", "data", "metric", "value").iter_rows()}
