"""What trained models generate: MedDiffusion's Table 5 and Figure 2, from the `analyses` folders of their runs."""

import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl

from ehrlab.report.cohorts import read_published, read_published_cohorts
from ehrlab.report.collect import Row
from ehrlab.report.columns import Column, columns_of
from ehrlab.report.declaration import Declaration
from ehrlab.report.document import Block, Code, Document, Grid, Paragraph, Picture, Section
from ehrlab.report.exhibit import document, rows_that_ran
from ehrlab.report.figures import file_name, image
from ehrlab.report.files import read_bytes, read_json
from ehrlab.report.runs import Run

FOLDER = "analyses"
TOP = 10
_NOTHING = "–"
_PUBLISHED = ("data", "rank_synthetic", "rank_original", "code", "description", "source")

_CODES = {
    "num_codes": ("Codes of the vocabulary", 1),
    "num_reached": ("of them in the synthetic data", 1),
    "unchanged": ("Synthetic records with the code that they were made from, %", 100),
    "unchanged_without_augmenter": ("the same without the augmenter, %", 100),
    "rank_correlation": ("Rank correlation of synthetic with original frequencies", 1),
}
_STATES = {
    "num_patients": ("Test samples", 1),
    "own_closer": ("Generated nearer to its own original than to another patient's, %", 100),
    "nearest_is_own": ("Generated whose nearest original is its own, %", 100),
    "same_label_original": ("Original whose nearest other original has its label, %", 100),
    "same_label_synthetic": ("Generated whose nearest original of another patient has its label, %", 100),
    "same_label_by_chance": ("the same by chance, %", 100),
}


def synthetic_document(
    declaration: Declaration, runs: Sequence[Run], index: Mapping[Path, str], num_unfinished: int
) -> Document:
    """One section for each cohort and row, over the seeds of the row."""
    cohorts = read_published_cohorts(declaration.cohorts) if declaration.cohorts else None
    assigned = {run.folder: declaration.label_of(run, index) for run in runs}
    labels = rows_that_ran(declaration, assigned)
    columns, left_out = columns_of(declaration, runs, assigned, labels, cohorts)
    sections = []
    for column in columns:
        for row in column.group.rows if column.group else ():
            title = column.title if len(labels) == 1 else f"{column.title}: {row.name}"
            sections.append(Section(title, _blocks(declaration, column, row)))
        if column.group is None:
            sections.append(Section(column.title, [Paragraph("Nothing ran in this column.")]))
        if declaration.published:
            sections.append(_published_section(declaration.published, column))
    groups = [column.group for column in columns if column.group]
    return document(declaration, sections, groups, cohorts, num_unfinished, left_out)


def _blocks(declaration: Declaration, column: Column, row: Row) -> list[Block]:
    paths = [(run, run.folder / FOLDER / f"{declaration.kind}.json") for run in row.runs]
    found = [(run, read_json(path)) for run, path in paths if path.exists()]
    blocks: list[Block] = []
    if missing := [run for run, path in paths if not path.exists()]:
        folders = " ".join(str(run.folder) for run in missing)
        blocks = [
            Paragraph(f"{len(missing)} of {len(row.runs)} runs have not been looked into. To do so:"),
            Code(f"python -m ehrlab.run.analyse {declaration.kind} {folders}"),
        ]
    if not found:
        return blocks
    if declaration.kind == "synthetic_codes":
        return [*blocks, *_codes([content for _, content in found])]
    return [*blocks, *_states(column, row, found)]


def _codes(contents: Sequence[Mapping[str, Any]]) -> list[Block]:
    """The codes with the largest mean share of the synthetic records over seeds."""
    of_seed = [{entry["code"]: entry for entry in content["codes"]} for content in contents]
    known = {code: entry for entries in of_seed for code, entry in entries.items()}
    share = {code: sum(entries.get(code, {"share": 0.0})["share"] for entries in of_seed) for code in known}
    chosen = sorted(known, key=lambda code: (-share[code], known[code]["rank_original"]))[:TOP]
    rows = []
    for rank, code in enumerate(chosen, start=1):
        entry = known[code]
        cut = [f">{len(entries)}" for entries in of_seed]
        ranks = [str(entries[code]["rank_synthetic"]) if code in entries else c for entries, c in zip(of_seed, cut)]
        without = [str(entries[code]["rank_without_augmenter"]) if code in entries else "" for entries in of_seed]
        rows.append(
            [
                str(rank),
                ", ".join(ranks),
                ", ".join(filter(None, without)),
                str(entry["rank_original"]),
                _printed(code),
                entry["description"] or _NOTHING,
            ]
        )
    header = ["R(Dg)", "R(Dg) of each seed", "R without augmenter", "R(Do)", "Code", "Description"]
    tops = [{e["code"] for e in content["codes"] if e["rank_synthetic"] <= TOP} for content in contents]
    shared = [len(a & b) for a, b in combinations(tops, 2)]
    original = [known[code]["rank_original"] for code in chosen]
    text = (
        "R(Dg): rank of a code in the synthetic data, by its mean share over seeds; R(Do): in the training data. "
        "Without augmenter: the rank if a code's own embedding is looked up in place of the synthetic one, which says "
        f"what the lookup does by itself. The original ranks of these codes: median {np.median(original):,.0f}, from "
        f"{min(original):,} to {max(original):,}."
    )
    blocks: list[Block] = [Grid(header, rows), Paragraph(text), _measures(contents, _CODES)]
    if shared:
        chance = TOP**2 / np.mean([content["measures"]["num_codes"] for content in contents])
        blocks.append(
            Paragraph(
                f"Two seeds share {np.mean(shared):.1f} of their first {TOP} codes ({chance:.2f} by chance). A code "
                f"that one seed alone raises comes from its initial weights, not from the disease."
            )
        )
    return blocks


def _states(column: Column, row: Row, found: Sequence[tuple[Run, Mapping[str, Any]]]) -> list[Block]:
    first, content = found[0]
    num = content["num_drawn"]
    blocks: list[Block] = []
    if first.simulated:
        name = file_name("hidden_states", first.data, first.task, first.fingerprint[:8], row.name)
        figure = image(name, read_bytes(first.folder / FOLDER / "hidden_states.png"))
        caption = f"{column.title}, seed {first.seed}: {num} test patients drawn at random, t-SNE."
        blocks.append(Picture(figure, caption, first.simulated))
    else:
        blocks.append(
            Paragraph(
                "The picture has a mark for each of its patients, and these are real: it stays in the run's folder "
                f"({FOLDER}/hidden_states.png), and this page shows numbers over all of them."
            )
        )
    return [*blocks, _measures([content for _, content in found], _STATES)]


def _measures(contents: Sequence[Mapping[str, Any]], names: Mapping[str, tuple[str, int]]) -> Grid:
    rows = []
    for key, (label, scale) in names.items():
        values = scale * np.array([content["measures"][key] for content in contents], dtype=float)
        spread = f" ± {np.std(values, ddof=1):.2f}" if len(values) > 1 and np.ptp(values) > 0 else ""
        rows.append([label, f"{np.mean(values):,.{0 if key.startswith('num_') else 2}f}{spread}"])
    return Grid(["", f"mean ± standard deviation ({len(contents)})"], rows)


def _published_section(path: Path, column: Column) -> Section:
    table = read_published(path, _PUBLISHED, numbers=("rank_synthetic", "rank_original"))
    table = table.filter(pl.col("data") == (column.spec.published or ""))
    rows = [list(row) for row in table.select(_PUBLISHED[1:-1]).iter_rows()]
    source = ", ".join(table["source"].unique(maintain_order=True))
    title = f"Published: {column.spec.label}"
    if not rows:
        return Section(title, [Paragraph("Nothing was published for this column.")])
    return Section(title, [Grid(["R(Dg)", "R(Do)", "Code", "Description"], rows), Paragraph(f"{source}.")])


def _printed(code: str) -> str:
    """An ICD code as the papers print it; any other code as it is.

    >>> _printed("DIAGNOSIS//ICD//9//287.30"), _printed("LAB//50868//mEq/L")
    ('287.30', 'LAB//50868//mEq/L')
    """
    return re.sub(r"^DIAGNOSIS//ICD//\d+//", "", code)
