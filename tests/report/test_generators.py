"""Generators on the page, in the end table and in exhibits."""

import io
from pathlib import Path

import numpy as np
import polars as pl
import pytest
import yaml
from rich.console import Console

from ehrlab.evaluation import generation
from ehrlab.evaluation.comparison import row_interval
from ehrlab.report.collect import SHOWN_OF_GENERATORS, comparison_table, group_runs
from ehrlab.report.columns import read_numbers
from ehrlab.report.declaration import parse_declaration
from ehrlab.report.experiment import write_experiment
from ehrlab.report.page import write_report
from ehrlab.report.runs import load_runs
from fake_completions import FIRST_SUBJECT
from fake_generators import write_generator
from fake_runs import write_index, write_run

RLTF = Path(__file__).parents[2] / "experiments" / "rltf"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    return tmp_path_factory.mktemp("generators")


@pytest.fixture(scope="module")
def runs(results):
    return [
        write_generator(results, row=row, knows=knows, seed=seed)
        for row, knows in (("rltf", True), ("chiron", False))
        for seed in (0, 1)
    ]


def cells(text: str, name: str) -> list[list[str]]:
    """Of each table of a Markdown page that has a row of this name."""
    lines = [line.strip("| ").split(" | ") for line in text.splitlines() if line.startswith(f"| {name} |")]
    return [line[1:] for line in lines]


def test_the_page_says_what_was_generated_and_what_it_is_good_for(runs, tmp_path):
    page = write_report(runs, tmp_path)
    text = page.with_name("report.md").read_text()
    folder, one = load_runs(runs)[0][0], lambda name: folder.entry(name)["value"]
    assert folder.is_generator
    for title in ("Results", "Precision for recall", "Generated records", "Prevalence of codes", "Curves"):
        assert f"## {title}: sequences / septicemia" in text
    ours, *others = cells(text, "rltf")
    mean = np.mean([run.value("f1") for run in load_runs(runs[:2])[0]])
    assert ours[2].startswith(f"{100 * mean:.1f} ± ")
    assert "rltf minus each other row in F1" in text
    assert [len(row) for row in others[:4]] == [3, 6, 6, 6]
    assert one("utility_auroc") == folder.metrics["utility"]["auroc"]["value"]
    names = {path.name.split("-")[0] for path in (tmp_path / "figures").iterdir()}
    assert {"tradeoff", "prevalence", "probability"} <= names
    known = pl.read_csv(tmp_path / "results.csv")["metric"].unique().to_list()
    assert {"f1", "utility/auroc", "onset/recall", "memorisation/rouge1_gap", "privacy/membership_auroc"} <= set(known)
    assert "fidelity/continuations/target_prevalence_ratio" in known
    for path in tmp_path.rglob("*"):
        assert not path.is_file() or str(FIRST_SUBJECT)[:8].encode() not in path.read_bytes()


def test_the_end_table_has_the_targets_metrics(runs):
    console = Console(width=200, file=io.StringIO())
    console.print(comparison_table(runs))
    text = " ".join(console.file.getvalue().split())
    for name in ("Precision", "Recall", "F1", "ROUGE-1", "Utility AUROC", "Augmentation AUROC"):
        assert name in text
    assert "% of the true continuations hold the target" in text
    assert "Kappa" not in text


@pytest.mark.parametrize("name", [*generation.RESAMPLED, "auroc", "brier"])
def test_a_row_is_resampled_as_its_run_was(runs, name):
    (run,), _ = load_runs(runs[:1])
    (group,) = group_runs([run])
    row = group.rows[0].resampled([name], 120)
    interval, stored = row_interval(row, name), run.entry(name)
    expected = [np.nan if stored[end] is None else stored[end] for end in ("value", "low", "high")]
    np.testing.assert_allclose([interval.value, interval.low, interval.high], expected, rtol=1e-12)


def test_what_is_not_resampled_keeps_its_value(runs):
    (group,) = group_runs(load_runs(runs[:2])[0])
    row = group.rows[0].resampled(["membership_auroc", "f1"], 30)
    stored = [run.entry("membership_auroc")["value"] for run in group.runs]
    assert row.values["membership_auroc"].tolist() == stored
    assert np.isnan(row.resamples["membership_auroc"]).all()
    assert np.isfinite(row.resamples["f1"]).all()


def test_a_generator_that_was_asked_for_no_probability_has_no_curves(tmp_path):
    run = write_generator(tmp_path / "results", row="halo", asked=False)
    text = write_report([run], tmp_path / "out").with_name("report.md").read_text()
    assert "## Curves" not in text
    assert "AUROC is undefined: the target's probability was not computed" in text
    assert "## Precision for recall" in text


def test_generators_and_risk_models_are_never_one_table(tmp_path, runs):
    risk = write_run(tmp_path, row="lstm", model="lstm", data="sequences", task="septicemia")
    groups = group_runs(load_runs([*runs, risk])[0])
    assert [[row.name for row in group.rows] for group in groups] == [["rltf", "chiron"], ["lstm"]]
    assert groups[0].shown_metrics == SHOWN_OF_GENERATORS
    assert groups[1].main_metric == "pr_auc"
    write_report([*runs, risk], tmp_path / "out")


def test_an_exhibit_shows_ours_beside_the_published_and_judges_the_claims(results, runs, tmp_path):
    declaration = yaml.safe_load((RLTF / "table5.yaml").read_text())["experiment"]
    declaration["published"] = str(RLTF / "table5.csv")
    write_index(results, "rltf/table5", declaration, {run: run.parents[1].name for run in runs})
    text = write_experiment("rltf/table5", results, tmp_path).with_name("report.md").read_text()
    for line in cells(text, "RLTF")[:3]:
        assert line[0].endswith("(2)")  # ours, of two seeds
    published = read_numbers(RLTF / "table5.csv")[("rltf", "septicemia", "f1")]
    assert any(line[1] == published for line in cells(text, "RLTF"))
    assert "RLTF against CHIRon" in text
    assert "holds" in text or "cannot be decided" in text
    assert "## Generated records" in text


@pytest.mark.parametrize("path", sorted(RLTF.glob("*.yaml")), ids=lambda path: path.stem)
def test_every_published_number_has_its_place(path):
    content = yaml.safe_load(path.read_text())["experiment"]
    declaration = parse_declaration(content, content["name"])
    assert declaration.name == f"rltf/{path.stem}"
    known = read_numbers(RLTF.parents[1] / declaration.published)
    rows = {spec.published for spec in declaration.rows}
    columns = {spec.published for spec in declaration.columns}
    metrics = {metric for _, _, metric in known} & {*declaration.metrics}
    assert metrics, "it shows something that was published"
    missing = [(m, d, k) for m, d, k in known if k in metrics and d in columns and m not in rows]
    assert not missing
    if declaration.published.stem == path.stem:
        assert {d for _, d, k in known if k in metrics} <= columns
