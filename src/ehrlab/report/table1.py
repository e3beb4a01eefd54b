"""Cohorts beside the published ones, MedDiffusion's Table 1: what `kind: cohorts` shows. No run is needed for it.

`results/experiments/<name>/*.json` then hold one cohort each: {"column", "cohort": statistics, "data": fingerprint}.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.report.cohorts import STATISTICS, read_published_cohorts, statistics_grid
from ehrlab.report.collect import SIMULATED
from ehrlab.report.declaration import Declaration
from ehrlab.report.document import Code, Document, Paragraph, Section
from ehrlab.report.files import read_json
from ehrlab.report.sections import BANNER


def cohorts_document(declaration: Declaration, entries: Sequence[Path]) -> tuple[Document, pl.DataFrame]:
    """The page, and the same numbers in long form."""
    published = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    found = [_entry(path) for path in entries]
    order = [spec.column for spec in declaration.columns]
    found.sort(key=lambda entry: order.index(entry["column"]) if entry["column"] in order else len(order))
    labels = {spec.column: spec.label for spec in declaration.columns}
    names = [entry["column"] for entry in found]
    shown, lines = [], []
    for entry in found:
        column, cohort = entry["column"], entry["cohort"]
        title = labels.get(column, column) + (f" ({SIMULATED})" if cohort["simulated"] else "")
        if names.count(column) > 1:
            title += f", data {entry['data'][:8]}"
        shown.append((title, column, cohort))
        theirs = published.values.get(published.stands_beside.get(column, ""), {}) if published else {}
        lines += [
            {
                "column": column,
                "simulated": cohort["simulated"],
                "statistic": statistic,
                "value": float(cohort[statistic]),
                "published": float(theirs[statistic]) if statistic in theirs else None,
                "data_fingerprint": entry["data"],
            }
            for statistic in STATISTICS
        ]
    notes = [f"Published: {published.source}."] if published else []
    if waiting := [spec.label for spec in declaration.columns if spec.column not in names]:
        notes.append(f"Not built yet: {', '.join(waiting)}.")
    sections = [
        Section("Cohorts", [statistics_grid(shown, published), *map(Paragraph, notes)]),
        Section("How to reproduce", [Code(f"python run.py experiments={declaration.name}")]),
    ]
    is_simulated = any(cohort["simulated"] for *_, cohort in shown)
    lead = " ".join(part for part in (declaration.paper and f"{declaration.paper}.", declaration.note) if part)
    return Document(declaration.title, lead, sections, BANNER if is_simulated else None), pl.DataFrame(lines)


def _entry(path: Path) -> Mapping[str, Any]:
    entry = read_json(path)
    cohort = entry.get("cohort")
    if not isinstance(entry.get("column"), str) or not isinstance(cohort, dict) or set(STATISTICS) - set(cohort):
        raise InputError(f"{path}: expected entries column and cohort with {list(STATISTICS)}, found {sorted(entry)}")
    return entry
