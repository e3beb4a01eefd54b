"""Rows in pairs, one part taken out of the other: MedDiffusion's Figure 3, backbones with and without its diffusion."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ehrlab.evaluation.comparison import Difference, row_interval
from ehrlab.report.cohorts import read_published_cohorts
from ehrlab.report.collect import MEASURES, metric_header, show_difference
from ehrlab.report.columns import Column, against, claims_section, columns_of, read_numbers, resampled
from ehrlab.report.declaration import Claim, Declaration, RowSpec
from ehrlab.report.document import Block, Document, Grid, Paragraph, Picture, Section
from ehrlab.report.exhibit import document, rows_that_ran
from ehrlab.report.figures import Bar, file_name, pairs_figure
from ehrlab.report.runs import Run
from ehrlab.report.sections import present, with_interval

_NOTHING = "–"


def pairs_document(
    declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int
) -> Document:
    """Each metric as pairs, drawn and in numbers, then what becomes of the claims. Every claim is a pair."""
    cohorts = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    published = read_numbers(declaration.published) if declaration.published else {}
    assigned = {run.folder: declaration.label_of(run, index) for run in runs}
    columns, left_out = columns_of(declaration, runs, assigned, rows_that_ran(declaration, assigned), cohorts)
    columns = resampled(columns, declaration)
    sections = [_section(declaration, metric, columns, published) for metric in declaration.metrics]
    sections += present([claims_section(declaration, columns)])
    groups = [column.group for column in columns if column.group]
    return document(declaration, sections, groups, cohorts, num_unfinished, left_out)


def _section(
    declaration: Declaration, metric: str, columns: Sequence[Column], published: Mapping[tuple[str, str, str], str]
) -> Section:
    specs = {spec.row: spec for spec in declaration.rows}
    pairs = [(claim, specs[claim.over[0]], specs[str(claim.row)]) for claim in declaration.claims]
    blocks: list[Block] = []
    higher, known, published_higher, published_known = 0, 0, 0, 0
    panels: dict[str, list[tuple[Bar, Bar]]] = {}
    for column in columns:
        rows, drawn = [], []
        for claim, without, with_it in pairs:
            found = _difference(column, claim, without, with_it, metric)
            cells = [_ours(column, spec, metric) for spec in (without, with_it)]
            if isinstance(found, Difference):
                known += 1
                higher += found.value * MEASURES[metric].better > 0
                bounds = f"[{show_difference(found.low, metric)}, {show_difference(found.high, metric)}]"
                shown = show_difference(found.value, metric) + (f"\n{bounds}" if found.reason is None else "")
                drawn.append((_bar(column, without, metric), _bar(column, with_it, metric)))
            else:
                shown = found or _NOTHING
            theirs = [
                published.get((spec.published or "", column.spec.published or "", metric))
                for spec in (without, with_it)
            ]
            gain = _NOTHING
            if theirs[0] is not None and theirs[1] is not None:
                published_known += 1
                scale = 100 if MEASURES[metric].percent else 1
                difference = (float(theirs[1]) - float(theirs[0])) / scale
                published_higher += difference * MEASURES[metric].better > 0
                gain = show_difference(difference, metric)
            rows.append([without.label, *cells, shown, *(number or _NOTHING for number in theirs), gain])
        if drawn:
            panels[column.title] = drawn
        header = ["", "without", "with", "difference", "without", "with", "difference"]
        blocks.append(Grid(header, rows, [("", 1), (column.title, 3), ("published", 3)]))
    text = f"Better with it: {higher} of {known} pairs here"
    text += f", {published_higher} of {published_known} published." if published_known else "."
    lead: list[Block] = [Paragraph(text)]
    if panels:
        groups = [column.group for column in columns if column.group]
        name = file_name("pairs", metric, *(group.fingerprint[:4] for group in groups))
        caption = "Means over seeds with 95 % intervals over patients and seeds: with it (filled) and without (open)."
        scale = 100 if MEASURES[metric].percent else 1
        figure = pairs_figure(name, panels, metric_header(metric), scale)
        lead.append(Picture(figure, caption, any(group.simulated for group in groups)))
    notes = (
        "Ours: mean ± standard deviation over seeds (number of seeds). Difference: with minus without on the same "
        "patients and seeds, below it the 95 % interval."
    )
    return Section(metric_header(metric), [*lead, *blocks, Paragraph(notes)])


def _difference(
    column: Column, claim: Claim, without: RowSpec, with_it: RowSpec, metric: str
) -> Difference | str | None:
    """With minus without; the reason where they cannot be compared; None where one has not run."""
    found = against(column, with_it.label, [without.label], metric)
    return found[0][1] if found else None


def _ours(column: Column, spec: RowSpec, metric: str) -> str:
    row = column.row(spec.label)
    return with_interval(row, column.resampled[spec.label], metric) if row else "not run"


def _bar(column: Column, spec: RowSpec, metric: str) -> Bar:
    interval = row_interval(column.resampled[spec.label], metric)
    return Bar(spec.label, interval.value, interval.low, interval.high)
