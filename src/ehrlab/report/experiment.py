"""A paper's table or figure, declared as data, rendered from the runs that were made for it.

`results/experiments/<name>/experiment.json` holds the declaration (the `experiment:` block of
`experiments/<name>.yaml`), and each other JSON file there names one run: {"run", "row", "column"}, `run` relative to
the results folder. docs/evaluation.md lists the declaration's keys.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ehrlab.core.errors import InputError
from ehrlab.evaluation.comparison import Difference, mean_rank, t_test_against
from ehrlab.evaluation.metrics import FloatArray
from ehrlab.report.cohorts import read_published_cohorts
from ehrlab.report.collect import (
    MEASURES,
    Row,
    holm_of,
    metric_header,
    show,
    show_difference,
    show_p,
    show_summary,
)
from ehrlab.report.columns import Column, against, claims_section, columns_of, read_numbers, resampled
from ehrlab.report.declaration import (
    Declaration,
    RowSpec,
    number_at,
    parse_declaration,
)
from ehrlab.report.document import Block, Document, Grid, Paragraph, Picture, Section, write_document
from ehrlab.report.dose import dose_document
from ehrlab.report.exhibit import document, rows_that_ran
from ehrlab.report.figures import file_name, landscape_figure
from ehrlab.report.files import read_json
from ehrlab.report.pairs import pairs_document
from ehrlab.report.runs import Run, load_runs, long_table
from ehrlab.report.sections import DETECTABLE, TEST, difference_cells, present
from ehrlab.report.synthetic import synthetic_document
from ehrlab.report.table1 import cohorts_document

DECLARATION = "experiment.json"
_NOTHING = "–"


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
    entries = [path for path in sorted(folder.glob("*.json")) if path.name != DECLARATION]
    if declaration.kind == "cohorts":
        if not entries:
            raise InputError(f"experiment {name}: expected at least one cohort, found none; run it first")
        page, statistics = cohorts_document(declaration, entries)
        return write_document(page, out, {"results": statistics.write_csv()})
    index: dict[Path, str] = {}
    for path in entries:
        entry = read_json(path)
        if not isinstance(entry.get("run"), str) or not isinstance(entry.get("row"), str):
            raise InputError(f"{path}: expected text entries run and row, found {sorted(entry)}")
        index[results / entry["run"]] = entry["row"]
    runs, unfinished = load_runs(index)
    if not runs:
        raise InputError(
            f"experiment {name}: expected at least one finished run, found {len(unfinished)} unfinished ones"
        )
    tables = {"results": long_table(runs).write_csv()}
    if declaration.kind == "dose":
        page, doses = dose_document(declaration, runs, index, len(unfinished))
        tables["dose"] = doses.write_csv()
    else:
        page = _RENDERERS[declaration.kind](declaration, runs, index, len(unfinished))
    return write_document(page, out, tables)


def _table(declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int) -> Document:
    """Rows x columns, `ours | published | difference`, then comparisons, claims and the common parts."""
    cohorts = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    published = read_numbers(declaration.published) if declaration.published else {}
    assigned = {run.folder: declaration.label_of(run, index) for run in runs}
    declared = {spec.label: spec for spec in declaration.rows}
    specs = [declared.get(label) or RowSpec(label, label, None) for label in rows_that_ran(declaration, assigned)]
    columns, left_out = columns_of(declaration, runs, assigned, [spec.label for spec in specs], cohorts)
    columns = resampled(columns, declaration)
    groups = [column.group for column in columns if column.group]
    sections = [_result_section(declaration, metric, specs, columns, published) for metric in declaration.metrics]
    if len(specs) > 1:
        sections += [_difference_section(metric, specs, columns) for metric in declaration.metrics]
    sections += present([claims_section(declaration, columns)])
    return document(declaration, sections, groups, cohorts, num_unfinished, left_out)


def _landscape(
    declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int
) -> Document:
    """Each metric over two settings, as numbers and as surfaces."""
    cohorts = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    x_axis, y_axis = declaration.axes
    x_label, y_label = x_axis.label, y_axis.label
    cells = {run.folder: f"{number_at(run, x_axis):g}, {number_at(run, y_axis):g}" for run in runs}
    columns, left_out = columns_of(declaration, runs, cells, list(dict.fromkeys(cells.values())), cohorts)
    sections = []
    for column in columns:
        if column.group is None:
            sections.append(Section(column.title, [Paragraph("Nothing ran in this column.")]))
            continue
        at = {(number_at(row.runs[0], x_axis), number_at(row.runs[0], y_axis)): row for row in column.group.rows}
        xs, ys = sorted({x for x, _ in at}), sorted({y for _, y in at})
        surfaces: dict[str, FloatArray] = {}
        blocks: list[Block] = []
        for metric in declaration.metrics:
            scale = 100 if MEASURES[metric].percent else 1
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
        sections.append(Section(column.title, [Picture(figure, caption, column.group.simulated), *blocks]))
    groups = [column.group for column in columns if column.group]
    return document(declaration, sections, groups, cohorts, num_unfinished, left_out)


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
    if len(columns) > 1 and len(specs) > 1 and MEASURES[metric].better != 0:
        ranks, number = mean_rank(values, higher_is_better=MEASURES[metric].better > 0)
        if number > 1:  # columns that have every row
            blocks.append(
                Grid(["Mean rank", f"over {number} columns"], [[row, f"{r:.2f}"] for row, r in ranks.items()])
            )
    return Section(metric_header(metric), blocks)


def _to_published(row: Row, published: float, metric: str) -> str:
    """`-0.5 (p=.14)`: our mean minus the published number, with the t-test of our seeds against it."""
    scale = 100 if MEASURES[metric].percent else 1
    difference = show_difference(row.summary(metric).mean - published / scale, metric)
    p = t_test_against(row.values(metric), published / scale)
    return f"{difference} ({show_p(p)})" if np.isfinite(p) else difference


def _difference_section(metric: str, specs: Sequence[RowSpec], columns: Sequence[Column]) -> Section:
    """The first row minus each other, per column; Holm's correction over the whole table."""
    lines: list[tuple[str, str, Difference | str]] = []
    for column in columns:
        for label, difference in against(column, specs[0].label, [spec.label for spec in specs[1:]], metric):
            lines.append((label, column.title, difference))
    adjusted, tested = holm_of([difference for _, _, difference in lines])
    rows = [[label, title, *difference_cells(d, p, metric, tested)] for (label, title, d), p in zip(lines, adjusted)]
    header = [f"{specs[0].label} minus", "Column", "Difference", "95 % interval", "Holm p", "Seeds", "Detectable"]
    return Section(
        f"{specs[0].label} against the other rows: {MEASURES[metric].label}",
        [
            Paragraph(
                f"On the same patients and seeds. {TEST} p is two-sided, corrected by Holm's method for {tested} "
                f"comparisons."
            ),
            Grid(header, rows),
            Paragraph(DETECTABLE),
        ],
    )


def _extremes(z: FloatArray, xs: Sequence[float], ys: Sequence[float], x_label: str, y_label: str, metric: str) -> str:
    if not np.isfinite(z).any():
        return "Undefined in every cell."
    row, column = divmod(int(np.nanargmax(z)), len(xs))
    return (
        f"Highest mean {show(float(z[row, column]), metric)} at {x_label} = {xs[column]:g}, {y_label} = {ys[row]:g}; "
        f"lowest {show(float(np.nanmin(z)), metric)}. The highest of {int(np.isfinite(z).sum())} cells, chosen on the "
        f"test set, is an optimistic estimate."
    )


_RENDERERS = {
    "table": _table,
    "landscape": _landscape,
    "pairs": pairs_document,
    "synthetic_codes": synthetic_document,
    "hidden_states": synthetic_document,
}
