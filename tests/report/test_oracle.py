"""The section on the distance to the best possible: there when it is known, explained when not, absent otherwise."""

import io
import re

import polars as pl
import pytest
from rich.console import Console

from ehrlab.core.errors import InputError
from ehrlab.report.collect import comparison_table
from ehrlab.report.page import write_report
from fake_runs import exact_risks, predictions, write_run

TITLE = "Distance to the best possible"


@pytest.fixture
def runs(tmp_path):
    oracle = exact_risks(predictions())
    return [
        write_run(tmp_path / "results", row=row, seed=seed, table=predictions(skill=skill, seed=seed), oracle=oracle)
        for row, skill in (("meddiffusion", 1.5), ("lstm", 0.2))
        for seed in (0, 1)
    ]


def markdown(runs, out):
    return write_report(runs, out, "Two models").with_name("report.md").read_text()


def rows_of(text, title):
    """First cell -> cells of the first table of a section."""
    section = text.split(f"## {title}")[1].split("\n## ")[0]
    lines = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in section.splitlines() if "|" in line]
    return {" ".join(cells[:2]) if cells[0] == "exact risk" else cells[0]: cells for cells in lines[2:]}


def test_models_stand_above_the_exact_risks_with_regret_and_divergence(runs, tmp_path):
    rows = rows_of(markdown(runs, tmp_path / "out"), TITLE)
    assert list(rows) == [
        "meddiffusion",
        "lstm",
        "exact risk codes",
        "exact risk codes+time",
        "exact risk latent",
    ]
    for model in ("meddiffusion", "lstm"):
        _, given, pr_auc, _, _, regret, kl = rows[model]
        assert given == "codes+time"
        best = float(rows["exact risk codes+time"][2].split()[0])
        assert float(regret.split()[0]) == pytest.approx(best - float(pr_auc.split()[0]), abs=0.11)
        assert float(kl.split()[0]) > 0
        assert re.fullmatch(r"-?[\d.]+ ± [\d.]+ \(2\) \\\[-?[\d.]+, -?[\d.]+\\\]", regret)
    assert rows["exact risk codes+time"][5] == "0.0"
    assert rows["exact risk latent"][5] == "–"


def test_the_figure_and_the_oracles_own_curves_are_on_the_page(runs, tmp_path):
    page = write_report(runs, tmp_path / "out", "Two models").read_text()
    assert TITLE in page
    assert ">exact risk: latent</text>" in page  # a row of the figure
    assert len(re.findall(r">exact risk: codes\+time</text>", page)) == 2  # there, and in the legend of the curves
    assert (tmp_path / "out" / "figures" / "distance-mimic-heart_failure-ffffffff.png").stat().st_size > 5000


def test_results_table_console_and_csv_carry_regret(runs, tmp_path):
    text = markdown(runs, tmp_path / "out")
    assert "| Regret ×100 ↓ |" in text.split("## Results")[1].split("\n## ")[0]
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(comparison_table(runs))
    assert "Regret x100" in console.export_text()
    table = pl.read_csv(tmp_path / "out" / "results.csv")
    assert {"regret", "regret_average_precision", "kl", "oracle/latent/pr_auc"} <= set(table["metric"])
    regret = table.filter(metric="regret", row="lstm", seed=0).row(0, named=True)
    best, model = (
        table.filter(metric=metric, row="lstm", seed=0)["value"].item()
        for metric in ("oracle/codes+time/pr_auc", "pr_auc")
    )
    assert regret["value"] == pytest.approx(best - model)
    assert regret["low"] < regret["high"]


def test_runs_without_an_oracle_have_no_section_and_no_column(tmp_path):
    run = write_run(tmp_path / "results")
    page = write_report([run], tmp_path / "out", "One").read_text()
    assert TITLE not in page
    assert "Regret" not in page
    assert "Regret" not in {str(column.header) for column in comparison_table([run]).columns}


def test_a_simulated_run_without_an_exact_risk_says_why(tmp_path):
    run = write_run(tmp_path / "results", oracle="the task's window is another")
    text = markdown([run], tmp_path / "out")
    assert (
        text.split(f"## {TITLE}")[1].split("\n## ")[0].strip().endswith("No exact risk: the task's window is another.")
    )
    assert "Regret" not in text


def test_an_older_run_beside_newer_ones_has_a_dash(runs, tmp_path):
    old = write_run(tmp_path / "results", row="retain", table=predictions(seed=3))
    rows = rows_of(markdown([*runs, old], tmp_path / "out"), TITLE)
    assert rows["retain"][1] == "not known"
    assert rows["retain"][5:] == ["–", "–"]
    assert rows["lstm"][5] != "–"


def test_no_exact_risk_and_no_patient_is_on_the_page(runs, tmp_path):
    write_report(runs, tmp_path / "out", "Two models")
    risks = exact_risks(predictions())["codes+time"]
    for path in (tmp_path / "out").rglob("*"):
        if path.suffix in (".html", ".md", ".csv"):
            text = path.read_text()
            assert not [risk for risk in risks if f"{risk:.6f}" in text]


def test_a_lost_oracle_file_is_named(runs, tmp_path):
    (runs[0] / "oracle.parquet").unlink()
    with pytest.raises(InputError, match=r"oracle\.parquet: expected a parquet file"):
        write_report(runs, tmp_path / "out", "Damaged")
