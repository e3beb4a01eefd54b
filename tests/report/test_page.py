"""The page of a list of runs: what it shows, what it must never show, and that it stands alone."""

import io
import json
import re
from html.parser import HTMLParser

import polars as pl
import pytest
from rich.console import Console

from ehrlab.core.errors import InputError
from ehrlab.report.__main__ import main
from ehrlab.report.collect import comparison_table
from ehrlab.report.page import write_report
from fake_runs import FIRST_SUBJECT, predictions, write_run

VOID = {"meta", "br", "img", "link", "hr", "input"}


class Page(HTMLParser):
    """Checks that tags nest, and gathers tags, texts and addresses."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.texts, self.addresses = [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, f"left open: {self.open}"

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.addresses += [value for name, value in attrs if name in {"href", "src", "xlink:href", "action", "data"}]
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.open.pop()

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)


@pytest.fixture
def runs(tmp_path):
    results = tmp_path / "results"
    return [
        write_run(
            results,
            row=row,
            model=row,
            seed=seed,
            table=predictions(skill=skill, seed=seed),
            config={"model": {"width": width}},
        )
        for row, skill, width in (("meddiffusion", 2.0, 64), ("lstm", 0.5, 32))
        for seed in (0, 1)
    ]


def read_all(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_report_is_one_well_formed_page_with_markdown_csv_and_figures(runs, tmp_path):
    page = write_report(runs, tmp_path / "out", "Two models")
    files = read_all(tmp_path / "out")
    assert page == tmp_path / "out" / "index.html"
    assert {"index.html", "report.md", "results.csv"} < set(files)
    assert sum(name.startswith("figures/") for name in files) == 3
    parsed = Page(page.read_text())
    assert "script" not in parsed.tags
    assert parsed.tags.count("svg") == 3
    for figure in re.findall(r"\]\((figures/[^)]*)\)", files["report.md"].decode()):
        assert figure in files


def test_page_refers_to_nothing_outside_itself(runs, tmp_path):
    text = write_report(runs, tmp_path / "out", "Two models").read_text()
    assert all(address.startswith("#") for address in Page(text).addresses)
    assert "://" not in text
    assert "@import" not in text
    assert not re.search(r"url\((?!#)", text)


def test_no_patient_and_no_prediction_occurs_in_any_file(runs, tmp_path):
    write_report(runs, tmp_path / "out", "Two models")
    for name, content in read_all(tmp_path / "out").items():
        if name.endswith(".png"):
            continue
        text = content.decode()
        assert str(FIRST_SUBJECT)[:9] not in text
        assert "2031" not in text
        for probability in predictions(skill=2.0)["predicted_boolean_probability"]:
            assert f"{probability:.6f}" not in text


def test_simulated_data_is_said_in_banner_title_markdown_and_console(runs, tmp_path):
    page = write_report(runs, tmp_path / "out", "Two models")
    assert '<div class="banner" role="alert">SIMULATED DATA' in page.read_text()
    assert "<title>SIMULATED" in page.read_text()
    assert "SIMULATED DATA" in page.with_name("report.md").read_text()
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(comparison_table(runs))
    assert "SIMULATED" in console.export_text()


def test_real_data_has_no_banner(tmp_path):
    run = write_run(tmp_path / "results", simulated=False)
    assert "SIMULATED" not in write_report([run], tmp_path / "out", "One model").read_text()


def test_a_simulated_cohort_marks_the_run_even_if_the_run_forgot(tmp_path):
    run = write_run(tmp_path / "results", simulated=False, cohort={"positive_cases": 5, "simulated": True})
    assert "SIMULATED" in write_report([run], tmp_path / "out", "One model").read_text()


def test_first_row_is_on_top_and_compared_with_the_others(runs, tmp_path):
    text = write_report(runs, tmp_path / "out", "Two models").with_name("report.md").read_text()
    values = [json.loads((run / "metrics.json").read_text())["held_out"]["pr_auc"]["value"] * 100 for run in runs]
    ours, theirs = sum(values[:2]) / 2, sum(values[2:]) / 2
    rows = [line for line in text.splitlines() if line.startswith(("| meddiffusion |", "| lstm |"))]
    assert rows[0].startswith(f"| meddiffusion | {ours:.1f} ± ")
    assert rows[1].startswith(f"| lstm | {theirs:.1f} ± ")
    assert "(2)" in rows[0]
    assert rows[2].startswith(f"| lstm | {ours - theirs:+.1f} |")


def test_results_csv_holds_every_metric_of_every_run(runs, tmp_path):
    write_report(runs, tmp_path / "out", "Two models")
    table = pl.read_csv(tmp_path / "out" / "results.csv")
    assert table.group_by("row", "seed").len()["len"].to_list() == [12] * 4
    assert not {"subject_id", "prediction_time", "predicted_boolean_probability"} & set(table.columns)


def test_settings_that_differ_are_listed_and_the_rest_is_not(runs, tmp_path):
    text = write_report(runs, tmp_path / "out", "Two models").with_name("report.md").read_text()
    assert "| model.width | 64 | 32 |" in text
    assert "| seed |" not in text


def test_rows_and_titles_are_escaped_everywhere(tmp_path):
    evil = "<script>alert(1)</script>|[x](javascript:1)"
    run = write_run(tmp_path / "results", row=evil, folder_row="evil", config={"<img src=x>": 1})
    other = write_run(tmp_path / "results", row="lstm")
    page = write_report([run, other], tmp_path / "out", f"About {evil}")
    parsed = Page(page.read_text())
    assert "script" not in parsed.tags
    assert "img" not in parsed.tags
    assert evil in parsed.texts
    markdown = page.with_name("report.md").read_text()
    assert "<script" not in markdown
    assert "[x](" not in markdown
    Console(file=io.StringIO()).print(comparison_table([run, other]))


def test_unfinished_runs_are_counted_and_left_out(runs, tmp_path):
    begun = write_run(tmp_path / "results", row="retain", done=False)
    text = write_report([*runs, begun], tmp_path / "out", "Three").with_name("report.md").read_text()
    assert "1 runs were started" in text
    assert "| retain |" not in text
    with pytest.raises(InputError, match="1 unfinished"):
        write_report([begun], tmp_path / "out", "None")


def test_two_configurations_of_one_row_are_two_rows(tmp_path):
    folders = [write_run(tmp_path / "results", config_hash=h, seed=s) for h, s in (("aaaa1111", 0), ("bbbb2222", 1))]
    text = write_report(folders, tmp_path / "out", "Twice").with_name("report.md").read_text()
    assert "| meddiffusion \\[aaaa1111\\] |" in text
    assert "| meddiffusion \\[bbbb2222\\] |" in text


def test_rows_on_other_data_are_never_in_one_table(tmp_path):
    folders = [
        write_run(tmp_path / "results", config_hash=h, seed=0, fingerprint=h * 8) for h in ("aaaa1111", "bbbb2222")
    ]
    text = write_report(folders, tmp_path / "out", "Twice").with_name("report.md").read_text()
    assert text.count("## Results: mimic / heart") == 2


def test_rows_with_other_test_samples_are_refused_in_their_cell_only(tmp_path):
    results = tmp_path / "results"
    folders = [
        write_run(results),
        write_run(results, row="other", table=predictions(first_subject=77)),
        write_run(results, row="same", table=predictions(seed=5)),
    ]
    text = write_report(folders, tmp_path / "out", "Three").with_name("report.md").read_text()
    assert "| other | paired comparison of the first row with the second row: expected the same test samples" in text
    assert re.search(r"\| same \| [+-]\d", text)


def test_a_test_set_of_one_class_still_makes_a_page_with_reasons(tmp_path):
    run = write_run(tmp_path / "results", table=predictions(prevalence=0.0))
    text = write_report([run], tmp_path / "out", "One class").with_name("report.md").read_text()
    assert "PR-AUC is undefined: every label is negative." in text


def test_several_labels_are_averaged_on_the_page_and_listed_in_the_csv(tmp_path):
    table = pl.concat(
        [predictions(seed=s).with_columns(label=pl.lit(name)) for s, name in ((1, "copd"), (2, "kidney"))]
    )
    write_report([write_run(tmp_path / "results", table=table)], tmp_path / "out", "Labels")
    labels = pl.read_csv(tmp_path / "out" / "results.csv")["label"].unique().to_list()
    assert sorted(labels, key=str) == sorted([None, "copd", "kidney"], key=str)


def test_cohort_stands_beside_the_published_one(tmp_path):
    published = tmp_path / "table1.csv"
    published.write_text(
        "data,statistic,value,source,stands_beside\nmimic,positive_cases,2820,Table 1,mimic/heart_failure\n"
    )
    run = write_run(tmp_path / "results", cohort={"positive_cases": 411, "visits_per_patient": 2.5, "simulated": True})
    text = write_report([run], tmp_path / "out", "One", published).with_name("report.md").read_text()
    assert "| Positive cases | 411 | 2820 |" in text
    assert "| Visits per patient | 2.50 | – |" in text


def test_rendering_again_changes_no_byte_and_drops_stale_figures(runs, tmp_path):
    write_report(runs, tmp_path / "out", "Two models")
    before = read_all(tmp_path / "out")
    (tmp_path / "out" / "figures" / "curves-old.png").write_bytes(b"")
    write_report(runs, tmp_path / "out", "Two models")
    assert read_all(tmp_path / "out") == before


def test_command_line_renders_all_runs_and_fails_in_one_line(runs, tmp_path, capsys):
    assert main(["--results", str(tmp_path / "results"), "--out", str(tmp_path / "reports")]) == 0
    assert str(tmp_path / "reports" / "all" / "index.html") in capsys.readouterr().out
    assert main(["--results", str(tmp_path / "nowhere")]) == 2
    error = capsys.readouterr().err
    assert error.startswith("error: results folder")
    assert error.count("\n") == 1


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("metrics.json", "{", r"metrics\.json: expected JSON"),
        ("metrics.json", "{}", "held_out"),
        ("run.json", '{"row": "a", "model": "m", "data": "d", "task": "t", "seed": true, "simulated": false}', "seed"),
        ("config.yaml", "a: [", r"config\.yaml: expected YAML"),
        ("predictions.parquet", "no", r"predictions\.parquet"),
    ],
)
def test_a_damaged_run_is_named(runs, tmp_path, name, content, complaint):
    (runs[0] / name).write_text(content)
    with pytest.raises(InputError, match=complaint) as refusal:
        write_report(runs, tmp_path / "out", "Damaged")
    assert "\n" not in str(refusal.value)
    assert not (tmp_path / "out").exists()
