"""What the pages of all kinds of experiments have in common."""

from collections.abc import Mapping, Sequence
from pathlib import Path

from ehrlab.evaluation.comparison import Difference
from ehrlab.report.cohorts import PublishedCohorts
from ehrlab.report.collect import MEASURES, Group, show_difference, show_p
from ehrlab.report.declaration import Declaration
from ehrlab.report.document import Document, Paragraph, Section
from ehrlab.report.generators import generator_sections
from ehrlab.report.labels import labels_section
from ehrlab.report.runs import Run
from ehrlab.report.sections import (
    banner,
    cohort_section,
    curves_section,
    oracle_section,
    present,
    provenance_section,
    reproduce_section,
    settings_section,
    training_section,
    unfinished_section,
)


def document(
    declaration: Declaration,
    sections: Sequence[Section],
    groups: Sequence[Group],
    cohorts: PublishedCohorts | None,
    num_unfinished: int,
    left_out: int,
) -> Document:
    """An experiment's own sections, then those that every page has."""
    command = f"python run.py experiments={declaration.name}\nmake report EXP={declaration.name}"
    notes = (
        f"{left_out} finished runs of this experiment are not shown: another configuration of their row has more "
        f"seeds, or is newer."
    )
    is_table = declaration.kind == "table"
    runs = [run for group in groups for run in group.runs]
    everything = [
        *sections,
        *(labels_section(group) for group in groups if is_table),
        *(section for group in groups if is_table for section in generator_sections(group)),
        *(oracle_section(group) for group in groups if is_table),
        cohort_section(groups, cohorts),
        *(curves_section(group) for group in groups if is_table),
        reproduce_section(runs, command),
        unfinished_section(num_unfinished),
        Section("Runs left out", [Paragraph(notes)]) if left_out else None,
        training_section(groups) if is_table else None,
        *(settings_section(group) for group in groups if is_table),
        provenance_section(runs),
    ]
    lead = " ".join(part for part in (declaration.paper and f"{declaration.paper}.", declaration.note) if part)
    return Document(declaration.title, lead, present(everything), banner(groups))


def one_configuration(runs: Sequence[Run]) -> tuple[list[Run], int]:
    """The runs of the configuration with most seeds (the newest among equals), and the number of the other runs.

    A default that is also given by hand makes another row's name of the same configuration: a seed counts once, by its
    newest run.
    """
    if not runs:
        return [], 0
    by_hash: dict[str, dict[int, Run]] = {}
    for run in sorted(runs, key=lambda run: run.done_at):
        by_hash.setdefault(run.hash, {})[run.seed] = run
    chosen = max(by_hash.values(), key=lambda seeds: (len(seeds), max(run.done_at for run in seeds.values())))
    return list(chosen.values()), len(runs) - len(chosen)


def rows_that_ran(declaration: Declaration, assigned: Mapping[Path, str]) -> list[str]:
    """Labels of the declared rows, then of the others in the order of `assigned` (run folder -> label)."""
    return list(dict.fromkeys([*(spec.label for spec in declaration.rows), *assigned.values()]))


def verdict(difference: Difference | str, adjusted_p: float, metric: str, tested: int) -> str:
    """Whether a row is better than another, as was claimed; one of `tested` comparisons."""
    if (undecidable := _undecidable(difference, metric)) is not None:
        return undecidable
    assert isinstance(difference, Difference)
    text = f"{show_difference(difference.value, metric)}, {show_p(adjusted_p)}, {_seeds(difference)}"
    if adjusted_p < 0.05:
        word = "holds" if difference.value * MEASURES[metric].better > 0 else "contradicted"
        return f"{word} ({text})"
    missed = f"a true difference below {_seen(difference, metric, tested)} is likely to be missed"
    return f"cannot be decided ({text}; {missed})"


def verdict_of_equality(difference: Difference | str, adjusted_p: float, metric: str, tested: int) -> str:
    """Whether a row is where it was claimed to be: it cannot be proved, so what would have been missed is said."""
    if (undecidable := _undecidable(difference, metric)) is not None:
        return undecidable
    assert isinstance(difference, Difference)
    bounds = f"[{show_difference(difference.low, metric)}, {show_difference(difference.high, metric)}]"
    text = f"{show_difference(difference.value, metric)} {bounds}, {show_p(adjusted_p)}, {_seeds(difference)}"
    if adjusted_p < 0.05:
        return f"contradicted ({text})"
    return f"holds ({text}; a true difference below {_seen(difference, metric, tested)} is likely to be missed)"


def _undecidable(difference: Difference | str, metric: str) -> str | None:
    if isinstance(difference, str):
        return f"cannot be decided: {difference}"
    if difference.reason is not None:
        return f"cannot be decided: {MEASURES[metric].label} is {difference.reason}"
    return None


def _seen(difference: Difference, metric: str, tested: int) -> str:
    return show_difference(difference.detectable(tested), metric).removeprefix("+")


def _seeds(difference: Difference) -> str:
    return "one seed" if difference.num_seeds == 1 else f"{difference.num_seeds} seeds"
