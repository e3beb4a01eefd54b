"""Runs with several labels: means over labels in every table, and each label by its name."""

import io
import json

import polars as pl
import pytest
from rich.console import Console

from ehrlab.report.collect import comparison_table
from ehrlab.report.experiment import write_experiment
from ehrlab.report.labels import labels_table
from ehrlab.report.page import write_report
from fake_runs import FIRST_SUBJECT, exact_risks, predictions, write_index, write_run

LABELS = {"heart_failure": 0.3, "reflux": 0.1, "a_label_with_a_very_long_name_indeed": 0.5}


def tables(skill: float, seed: int) -> pl.DataFrame:
    return pl.concat(
        predictions(skill=skill, seed=seed + i, prevalence=share).with_columns(label=pl.lit(name))
        for i, (name, share) in enumerate(LABELS.items())
    )


@pytest.fixture
def runs(tmp_path):
    return [
        write_run(tmp_path / "results", row=row, seed=seed, task="ten_conditions", table=tables(skill, seed))
        for row, skill in (("medfuse", 2.0), ("labs_mlp", 0.5))
        for seed in (0, 1)
    ]


def metrics_of(run):
    return json.loads((run / "metrics.json").read_text())


def markdown(runs, tmp_path) -> str:
    return write_report(runs, tmp_path / "out", "Labels").with_name("report.md").read_text()


def printed(table) -> str:
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(table)
    return console.export_text()


def mean(runs, *path) -> str:
    """As tables print the mean over runs of an entry of metrics.json."""
    found = []
    for run in runs:
        entry = metrics_of(run)
        for key in path:
            entry = entry[key]
        found.append(entry["value"] * 100)
    return f"{sum(found) / len(found):.1f}"


def test_tables_show_means_over_labels_and_joint_metrics(runs, tmp_path):
    text = markdown(runs, tmp_path)
    header = next(line for line in text.splitlines() if line.startswith("| Model |"))
    assert "F1 (macro) ×100" in header
    assert "Subset accuracy ×100" in header
    ours = next(line for line in text.splitlines() if line.startswith("| medfuse |"))
    for metric in ("pr_auc", "f1_macro", "f1_micro", "accuracy", "subset_accuracy"):
        assert f"{mean(runs[:2], 'held_out', metric)} ± " in ours
    assert "undefined" not in text


def test_each_label_stands_on_the_page_with_its_share_of_positives(runs, tmp_path):
    text = markdown(runs, tmp_path)
    part = text.split("## Labels:")[1].split("\n## ")[0]
    names = sorted(LABELS)
    header = next(line for line in part.splitlines() if line.startswith("| PR-AUC"))
    assert [cell.strip().replace("\\", "") for cell in header.split("|")[2:-1]] == names
    counts = metrics_of(runs[0])["labels"]
    shares = next(line for line in part.splitlines() if line.startswith("| share of positives"))
    assert [cell.strip() for cell in shares.split("|")[2:-1]] == [
        f"{100 * counts[name]['num_positive'] / counts[name]['num_samples']:.1f}" for name in names
    ]
    theirs = [line for line in part.splitlines() if "labs\\_mlp" in line or "labs_mlp" in line]
    assert len(theirs) == 3  # PR-AUC, F1, AUROC
    for line, metric in zip(theirs, ("pr_auc", "f1", "auroc")):
        for cell, name in zip(line.split("|")[2:-1], names):
            assert cell.strip().startswith(mean(runs[2:], "labels", name, "held_out", metric))


def test_one_seed_has_the_labels_intervals(tmp_path):
    run = write_run(tmp_path / "results", table=tables(2.0, 0))
    part = markdown([run], tmp_path).split("## Labels:")[1].split("\n## ")[0]
    entry = metrics_of(run)["labels"]["reflux"]["held_out"]["auroc"]
    assert f"[{100 * entry['low']:.1f}, {100 * entry['high']:.1f}]" in part.replace("\\", "")


def test_runs_with_one_label_have_no_such_section(tmp_path):
    run = write_run(tmp_path / "results")
    assert "## Labels" not in markdown([run], tmp_path)
    assert labels_table([run]) is None


def test_console_shows_means_and_a_row_per_label(runs):
    text = printed(comparison_table(runs))
    assert "Subset" not in text
    for metric in ("pr_auc", "f1_macro", "f1_micro", "accuracy"):
        assert mean(runs[:2], "held_out", metric) in text
    counts = metrics_of(runs[0])["labels"].values()
    prior = sum(part["num_positive"] / part["num_samples"] for part in counts) / len(LABELS)
    assert f"a constant risk has a PR-AUC of {100 * prior:.1f}" in " ".join(text.split())
    by_label = printed(labels_table(runs))
    assert "SIMULATED" in by_label
    line = next(line for line in by_label.splitlines() if "reflux" in line)
    assert mean(runs[:2], "labels", "reflux", "held_out", "pr_auc") in line
    assert mean(runs[2:], "labels", "reflux", "held_out", "pr_auc") in line


def test_distance_to_the_exact_risk_is_shown_for_each_label(tmp_path):
    table = tables(1.0, 0)
    run = write_run(tmp_path / "results", table=table, oracle=exact_risks(table))
    text = markdown([run], tmp_path)
    part = text.split("## Labels:")[1].split("\n## ")[0]
    regret = metrics_of(run)["oracle"]["labels"]["heart_failure"]["regret"]["value"]
    line = next(line for line in part.split("| Regret")[1].splitlines() if line.startswith("| meddiffusion"))
    assert f"{100 * regret:.1f}" in line
    assert "## Distance to the best possible" in text


def test_names_of_labels_are_escaped_and_no_patient_is_shown(tmp_path):
    evil = tables(1.0, 0).with_columns(label=pl.col("label").replace({"reflux": "<b>|[x](javascript:1)"}))
    page = write_report([write_run(tmp_path / "results", table=evil)], tmp_path / "out", "Labels")
    assert "<b>" not in page.read_text()
    assert "<b>" not in page.with_name("report.md").read_text()
    assert str(FIRST_SUBJECT)[:9] not in page.read_text()


def test_results_csv_has_the_numbers_of_each_label_and_of_all_together(runs, tmp_path):
    write_report(runs, tmp_path / "out", "Labels")
    table = pl.read_csv(tmp_path / "out" / "results.csv").filter((pl.col("row") == "medfuse") & (pl.col("seed") == 0))
    assert set(table["label"].drop_nulls()) == set(LABELS)
    together = table.filter(pl.col("label").is_null())
    assert {"f1_micro", "subset_accuracy", "f1_macro", "pr_auc"} <= set(together["metric"])


def test_a_declared_table_takes_joint_metrics(runs, tmp_path):
    declaration = {
        "title": "Labels",
        "metrics": ["f1_macro", "subset_accuracy"],
        "rows": [{"row": "medfuse", "label": "MEDFuse"}, {"row": "labs_mlp", "label": "Labs"}],
        "columns": [{"column": "mimic/ten_conditions", "label": "MIMIC"}],
        "claims": [{"text": "More is better", "row": "medfuse", "over": ["labs_mlp"], "metric": "f1_micro"}],
    }
    write_index(tmp_path / "results", "fusion", declaration, {run: run.parts[-3] for run in runs})
    write_experiment("fusion", tmp_path / "results", tmp_path / "out")
    text = (tmp_path / "out" / "report.md").read_text()
    assert "Subset accuracy" in text
    assert mean(runs[:2], "held_out", "f1_macro") in text
    assert "## Labels:" in text
