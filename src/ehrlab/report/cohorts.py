"""Our cohorts beside the published ones, and whether a cohort may be taken for the paper's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.report.collect import SIMULATED, Group
from ehrlab.report.document import Grid

STATISTICS = {
    "positive_cases": "Positive cases",
    "negative_cases": "Negative cases",
    "visits_per_patient": "Visits per patient",
    "codes_per_visit": "Codes per visit",
    "unique_codes": "Unique codes",
}
OF_VISITS = ("visits_per_patient", "codes_per_visit", "unique_codes")
# Relative difference of positive and negative counts up to which a cohort counts as the paper's own.
COHORT_TOLERANCE = 0.1


@dataclass(frozen=True)
class PublishedCohorts:
    """The paper's cohort table: cohort -> statistic -> value as printed, and which of our columns stand beside it."""

    values: dict[str, dict[str, str]]
    stands_beside: dict[str, str]  # our "data/task" -> the paper's cohort
    source: str


def read_published(path: Path, required: Sequence[str], numbers: Sequence[str] = ("value",)) -> pl.DataFrame:
    """A published CSV in long form, values as printed. Raises InputError naming file and columns."""
    try:
        table = pl.read_csv(path, infer_schema=False)
    except FileNotFoundError:
        raise InputError(f"published numbers {path}: expected a CSV file, found nothing there") from None
    except pl.exceptions.PolarsError as error:
        raise InputError(f"published numbers {path}: expected a CSV file ({type(error).__name__})") from None
    if missing := [name for name in required if name not in table.columns]:
        raise InputError(f"published numbers {path}: expected the columns {list(required)}, but {missing} are missing")
    for name in numbers:
        if wrong := table[name].cast(pl.Float64, strict=False).null_count():
            raise InputError(f"published numbers {path}: {wrong} entries of {name} are not numbers")
    return table


def read_published_cohorts(path: Path) -> PublishedCohorts:
    """Long form: data, statistic, value, source, stands_beside (our data/task pairs, separated by spaces)."""
    table = read_published(path, ("data", "statistic", "value", "source", "stands_beside"))
    values: dict[str, dict[str, str]] = {}
    stands_beside: dict[str, str] = {}
    for row in table.iter_rows(named=True):
        values.setdefault(row["data"], {})[row["statistic"]] = row["value"]
        stands_beside.update(dict.fromkeys((row["stands_beside"] or "").split(), row["data"]))
    return PublishedCohorts(values, stands_beside, ", ".join(table["source"].unique(maintain_order=True)))


def is_papers_cohort(group: Group, published: Mapping[str, str] | None) -> bool:
    """Real data whose numbers of positive and negative cases are within 10 % of the published ones."""
    if group.simulated or group.cohort is None or published is None:
        return False
    for name in ("positive_cases", "negative_cases"):
        ours, theirs = group.cohort.get(name), published.get(name)
        if not isinstance(ours, int | float) or theirs is None:
            return False
        if abs(ours - float(theirs)) > COHORT_TOLERANCE * float(theirs):
            return False
    return True


def cohort_heading(group: Group, published: Mapping[str, str] | None) -> str:
    """What a column is headed with when it is not the paper's cohort; empty when it is."""
    if group.simulated:
        return SIMULATED
    if is_papers_cohort(group, published):
        return ""
    cases = group.cohort.get("positive_cases") if group.cohort else None
    return f"different cohort, {cases} positive cases" if cases is not None else "different cohort"


def cohort_grid(groups: Sequence[Group], published: PublishedCohorts | None) -> Grid | None:
    """Cohort statistics, each of our columns followed by the paper's; None where no run recorded its cohort."""
    known = [(group.title, f"{group.data}/{group.task}", group.cohort) for group in groups if group.cohort is not None]
    return statistics_grid(known, published) if known else None


def statistics_grid(
    cohorts: Sequence[tuple[str, str, Mapping[str, object]]], published: PublishedCohorts | None
) -> Grid:
    """The same of cohorts that need no run, each a title, our data/task and statistics."""
    header, spans, columns = ["Statistic"], [("", 1)], []
    for title, column, cohort in cohorts:
        header.append("ours")
        # Samples of stays or notes alone are read without visits.
        unknown = OF_VISITS if not cohort.get(OF_VISITS[0]) else ()
        columns.append([_shown(None if name in unknown else cohort.get(name)) for name in STATISTICS])
        beside = published.stands_beside.get(column) if published else None
        spans.append((title, 2 if beside else 1))
        if published and beside:
            header.append(f"published ({beside})")
            columns.append([published.values[beside].get(name, "–") for name in STATISTICS])
    rows = [[label, *(column[i] for column in columns)] for i, label in enumerate(STATISTICS.values())]
    return Grid(header, rows, spans)


def _shown(value: object) -> str:
    if isinstance(value, float) and not value.is_integer():
        return f"{value:,.2f}"
    return f"{value:,.0f}" if isinstance(value, int | float) else "–"
