"""A declared exhibit: rows and columns, published numbers, differences only where they mean something, claims."""

import json

import pytest

from ehrlab.core.errors import InputError
from ehrlab.report.__main__ import main
from ehrlab.report.experiment import parse_declaration, write_experiment
from fake_runs import predictions, write_index, write_run

PAPER = {"positive_cases": 2820, "negative_cases": 4702}


@pytest.fixture
def declaration(tmp_path):
    numbers, cohorts = tmp_path / "table3.csv", tmp_path / "table1.csv"
    numbers.write_text(
        "model,data,metric,value,source\nmeddiffusion,mimic,pr_auc,70.64,Table 3\nas1,mimic,pr_auc,67.98,Table 3\n"
        "as1,kidney,pr_auc,76.91,Table 3\n"
    )
    cohorts.write_text(
        "data,statistic,value,source,stands_beside\n"
        + "".join(f"mimic,{name},{value},Table 1,mimic/heart_failure\n" for name, value in PAPER.items())
    )
    return {
        "title": "Table 3",
        "metrics": ["pr_auc"],
        "published": str(numbers),
        "cohorts": str(cohorts),
        "rows": [
            {"row": "full", "label": "Full", "published": "meddiffusion", "match": {"variant": "none"}},
            {"row": "as1", "label": "AS-1", "published": "as1", "match": {"variant": "as1"}},
        ],
        "columns": [
            {"column": "mimic/heart_failure", "label": "MIMIC", "published": "mimic"},
            {"column": "trinetx/kidney", "label": "Kidney", "published": "kidney"},
        ],
        "claims": [{"text": "Conditioning helps", "row": "full", "over": ["as1"]}],
    }


def write_rows(results, skills=(2.5, 0.2), num_subjects=60, **kwargs):
    return {
        write_run(
            results,
            row=f"meddiffusion {variant}",
            variant=variant,
            seed=seed,
            folder_row=variant,
            table=predictions(skill=skill, seed=seed, num_subjects=num_subjects),
            **kwargs,
        ): f"meddiffusion {variant}"
        for variant, skill in zip(("none", "as1"), skills)
        for seed in (0, 1, 2)
    }


def render(tmp_path, declaration, runs):
    write_index(tmp_path / "results", "paper/table3", declaration, runs)
    return write_experiment("paper/table3", tmp_path / "results", tmp_path / "out").with_name("report.md").read_text()


def cells(text, start):
    line = next(line for line in text.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_the_papers_own_cohort_gets_a_difference_to_the_published_number(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", simulated=False, cohort={**PAPER, "positive_cases": 2790})
    text = render(tmp_path, declaration, runs)
    _, ours, published, difference, *_ = cells(text, "| Full |")
    assert published == "70.64"
    assert float(difference.split()[0]) == pytest.approx(float(ours.split()[0]) - 70.64, abs=0.11)
    assert "(p" in difference
    assert "| MIMIC: ours | MIMIC: published | MIMIC: difference |" in text


@pytest.mark.parametrize(
    ("kwargs", "heading"),
    [
        ({"simulated": True, "cohort": {**PAPER, "simulated": True}}, "simulated cohort"),
        ({"simulated": True}, "simulated cohort"),
        (
            {"simulated": False, "cohort": {"positive_cases": 14, "negative_cases": 86}},
            "different cohort, 14 positive cases",
        ),
        ({"simulated": False}, "different cohort"),
    ],
)
def test_any_other_cohort_is_headed_with_what_it_is_and_gets_no_difference(tmp_path, declaration, kwargs, heading):
    text = render(tmp_path, declaration, write_rows(tmp_path / "results", **kwargs))
    assert f"| MIMIC – {heading}: ours |" in text
    for row in ("| Full |", "| AS-1 |"):
        assert cells(text, row)[3] == "–"
        assert cells(text, row)[2] != "–"


def test_the_page_too_shows_no_difference_on_simulated_data(tmp_path, declaration):
    render(tmp_path, declaration, write_rows(tmp_path / "results"))
    page = (tmp_path / "out" / "index.html").read_text()
    assert "simulated cohort" in page
    assert '<td>70.64</td><td class="text">–</td>' in page.replace("<td>–</td>", '<td class="text">–</td>')


def test_a_column_that_did_not_run_shows_the_published_number_alone(tmp_path, declaration):
    text = render(tmp_path, declaration, write_rows(tmp_path / "results"))
    assert cells(text, "| AS-1 |")[4:] == ["not run", "76.91", "–"]


def test_simulated_and_real_runs_of_one_column_never_share_a_mean(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", config_hash="aaaa1111", fingerprint="a" * 64)
    runs |= write_rows(
        tmp_path / "results",
        config_hash="bbbb2222",
        fingerprint="b" * 64,
        simulated=False,
        skills=(0.5, 0.2),
        cohort=PAPER,
    )
    text = render(tmp_path, declaration, runs)
    assert "| MIMIC – simulated cohort, data aaaaaaaa: ours |" in text
    assert "| MIMIC – data bbbbbbbb: ours |" in text
    assert cells(text, "| Full |")[1] != cells(text, "| Full |")[4]


def test_a_narrowed_rerun_does_not_replace_the_whole_row(tmp_path, declaration):
    runs = write_rows(tmp_path / "results")
    trial = write_run(
        tmp_path / "results", config_hash="dddd4444", folder_row="none", table=predictions(skill=0, seed=9)
    )
    text = render(tmp_path, declaration, {**runs, trial: "meddiffusion"})
    assert cells(text, "| Full |")[1].endswith("(3)")
    assert "1 finished runs of this experiment are not shown" in text


def test_claims_hold_are_contradicted_or_stay_undecided_with_a_power_statement(tmp_path, declaration):
    for name, skills, verdict in (
        ("a", (3.0, 0.0), "holds (+"),
        ("b", (0.0, 3.0), "contradicted (-"),
        ("c", (1.0, 1.0), "cannot be"),
    ):
        text = render(tmp_path / name, declaration, write_rows(tmp_path / name / "results", skills=skills))
        found = cells(text, "| Conditioning helps |")[3]
        assert found.startswith(verdict)
        assert ("likely to be missed" in found) == (verdict == "cannot be")


def test_rows_beyond_the_declaration_follow_the_declared_ones(tmp_path, declaration):
    runs = write_rows(tmp_path / "results")
    runs[write_run(tmp_path / "results", row="lstm", model="lstm", variant="small")] = "lstm"
    text = render(tmp_path, declaration, runs)
    assert text.index("| AS-1 |") < text.index("| lstm |")
    assert cells(text, "| lstm |")[2:4] == ["–", "–"]


def test_a_landscape_shows_every_cell_and_marks_the_missing_one(tmp_path):
    results, runs = tmp_path / "results", {}
    for x in (0.1, 0.5):
        for y in (0.25, 0.75, 1.0):
            if (x, y) != (0.5, 1.0):
                table = predictions(skill=x + y, seed=3)
                settings = {"model": {"lambda_s": x, "lambda_d": y}}
                runs[write_run(results, folder_row=f"{x}-{y}", config_hash=f"{x}{y}", config=settings, table=table)] = (
                    "cell"
                )
    grid = {
        "title": "Figure 7",
        "kind": "landscape",
        "metrics": ["pr_auc", "f1", "kappa"],
        "axes": {"x": "model.lambda_s", "y": "model.lambda_d", "x_label": "λ_S", "y_label": "λ_D"},
    }
    text = render(tmp_path, grid, runs)
    assert "1 cells have not run" in text
    assert cells(text, "| λ\\_D = 1 |")[2] == "–"
    metrics = json.loads((results / "mimic/heart_failure/0.1-0.25/0.10.25/seed=0/metrics.json").read_text())
    assert cells(text, "| λ\\_D = 0.25 |")[1] == f"{metrics['held_out']['pr_auc']['value'] * 100:.1f} (1)"
    assert "of 5 cells, chosen on the test set" in text
    assert [p.name for p in (tmp_path / "out" / "figures").iterdir()] == ["landscape-mimic-heart_failure-ffffffff.png"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"title": ""}, "an entry title"),
        ({"metrics": ["pr_auk"]}, "pr_auk"),
        ({"kind": "pie"}, "pie"),
        ({"kind": "landscape"}, "expected x"),
        ({"colums": []}, r"unknown keys \['colums'\]"),
        ({"rows": [{"label": "x"}]}, "expected row"),
        ({"claims": [{"text": "t", "row": "full", "over": ["as9"]}]}, "as9"),
        ({"rows": [{"row": "a", "label": "L"}, {"row": "b", "label": "L"}], "claims": []}, "same row or label"),
    ],
)
def test_a_wrong_declaration_is_refused_by_its_key(declaration, change, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_declaration({**declaration, **change}, "paper/table3")


def test_an_unknown_experiment_names_the_known_ones(tmp_path, declaration, capsys):
    write_index(tmp_path / "results", "paper/table3", declaration, {})
    assert main(["paper/table9", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "o")]) == 2
    assert "paper/table3" in capsys.readouterr().err
    assert main(["paper/table3", "--results", str(tmp_path / "results"), "--out", str(tmp_path / "o")]) == 2
    assert "0 unfinished" in capsys.readouterr().err


def test_a_missing_published_file_is_named(tmp_path, declaration):
    with pytest.raises(InputError, match=r"absent\.csv"):
        render(tmp_path, {**declaration, "published": str(tmp_path / "absent.csv")}, write_rows(tmp_path / "results"))
