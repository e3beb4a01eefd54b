"""The report of a list of runs: one HTML page with Markdown, PNG files and the long CSV beside it."""

from collections.abc import Sequence
from pathlib import Path

from ehrlab.core.errors import InputError
from ehrlab.report.cohorts import PublishedCohorts, read_published_cohorts
from ehrlab.report.collect import MEASURES, Group, group_runs, show_summary
from ehrlab.report.document import Document, Section, write_document
from ehrlab.report.generators import generator_sections
from ehrlab.report.labels import labels_section
from ehrlab.report.runs import Run, load_runs, long_table
from ehrlab.report.sections import (
    banner,
    cohort_section,
    curves_section,
    oracle_section,
    present,
    provenance_section,
    reproduce_section,
    resampled_for_page,
    results_section,
    settings_section,
    training_section,
    unfinished_section,
)


def write_report(
    run_folders: Sequence[Path], out: Path, title: str = "Results", published_cohorts: Path | None = None
) -> Path:
    """Write the report of these runs to the folder `out`; returns the path of its index.html.

    Rows stand in the order given, the first one is compared with the others. Unfinished runs are counted and left out.
    `published_cohorts`: the paper's cohort table, shown beside ours. Raises InputError when no run is finished.
    """
    runs, unfinished = load_runs(run_folders)
    return write_runs(runs, len(unfinished), out, title, published_cohorts)


def write_runs(
    runs: Sequence[Run], num_unfinished: int, out: Path, title: str, published_cohorts: Path | None = None
) -> Path:
    """`write_report` for runs that are already loaded."""
    if not runs:
        raise InputError(
            f"report {title!r}: expected at least one finished run, found {num_unfinished} unfinished ones"
        )
    groups = group_runs(runs)
    published = read_published_cohorts(published_cohorts) if published_cohorts else None
    document = Document(title, _lead(groups), _sections(groups, published, num_unfinished), banner(groups))
    return write_document(document, out, {"results": long_table(runs).write_csv()})


def _lead(groups: Sequence[Group]) -> str:
    """The answer first: each group's first row in one sentence."""
    parts = []
    for group in groups:
        first = group.rows[0]
        others = f", beside {len(group.rows) - 1} other rows" if len(group.rows) > 1 else ""
        main = group.main_metric
        number = f"{MEASURES[main].label} {show_summary(first.summary(main), main)}"
        parts.append(f"{first.name} on {group.title}: {number}{others}.")
    return " ".join(parts)


def _sections(groups: Sequence[Group], published: PublishedCohorts | None, num_unfinished: int) -> list[Section]:
    runs = [run for group in groups for run in group.runs]
    results: list[Section | None] = []
    for group in groups:
        resampled = resampled_for_page(group)
        results += [results_section(group, resampled), labels_section(group), oracle_section(group, resampled)]
        results += generator_sections(group, resampled)
    return present(
        [
            *results,
            cohort_section(groups, published),
            *(curves_section(group) for group in groups),
            reproduce_section(runs),
            unfinished_section(num_unfinished),
            training_section(groups),
            *(settings_section(group) for group in groups),
            provenance_section(runs),
        ]
    )
