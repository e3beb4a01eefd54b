"""Backbones with and without a part: a pair to a row, on the same patients and seeds."""

import pytest

from ehrlab.core.errors import InputError
from ehrlab.report.declaration import parse_declaration
from ehrlab.report.experiment import write_experiment
from fake_runs import predictions, write_index, write_run

TARGET = "model.backbone._target_"


@pytest.fixture
def declaration(tmp_path):
    numbers = tmp_path / "figure3.csv"
    numbers.write_text(
        "model,data,metric,value,source\nlstm_with,mimic,pr_auc,61.20,script\nlstm_without,mimic,pr_auc,59.43,script\n"
        "skim_with,mimic,pr_auc,58.50,script\nskim_without,mimic,pr_auc,62.20,script\n"
    )
    return {
        "title": "Figure 3",
        "kind": "pairs",
        "metrics": ["pr_auc"],
        "published": str(numbers),
        "rows": [
            {"row": "lstm", "label": "LSTM", "published": "lstm_without", "match": {"model": "lstm"}},
            {"row": "lstm+", "label": "LSTM + d", "published": "lstm_with", "match": {TARGET: "LSTM"}},
            {"row": "skim", "label": "Skim", "published": "skim_without", "match": {"model": "skim"}},
            {"row": "skim+", "label": "Skim + d", "published": "skim_with", "match": {TARGET: "Skim"}},
        ],
        "columns": [
            {"column": "mimic/heart_failure", "label": "MIMIC", "published": "mimic"},
            {"column": "trinetx/kidney", "label": "Kidney", "published": "kidney"},
        ],
        "claims": [
            {"text": "It improves LSTM", "row": "lstm+", "over": ["lstm"]},
            {"text": "It improves Skim", "row": "skim+", "over": ["skim"]},
        ],
    }


def write_rows(results, skills):
    return {
        write_run(
            results,
            row=row,
            model=row.split()[0],
            seed=seed,
            folder_row=row.replace(" ", "-"),
            config={"model": {"backbone": {"_target_": "LSTM"}}} if "+" in row else {"model": {"width": 8}},
            config_hash="bbbb2222" if "+" in row else "aaaa1111",
            table=predictions(skill=skill, seed=seed),
        ): row
        for row, skill in skills.items()
        for seed in (0, 1, 2)
    }


def render(tmp_path, declaration, runs):
    write_index(tmp_path / "results", "paper/figure3", declaration, runs)
    return write_experiment("paper/figure3", tmp_path / "results", tmp_path / "out").with_name("report.md").read_text()


def cells(text, start, nth=0):
    line = [line for line in text.splitlines() if line.startswith(start)][nth]
    return [cell.strip() for cell in line.strip("|").split(" | ")]


def test_a_pair_stands_in_one_row_beside_the_published_pair(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", {"lstm": 0.2, "meddiffusion +": 3.0})
    text = render(tmp_path, declaration, runs)
    _, without, with_it, difference, *published = cells(text, "| LSTM |")
    numbers = [float(cell.split()[0]) for cell in (without, with_it, difference)]
    assert numbers[2] == pytest.approx(numbers[1] - numbers[0], abs=0.11)
    assert published == ["59.43", "61.20", "+1.8"]
    assert cells(text, "| It improves LSTM |")[3].startswith("holds (+")
    assert "Better with it: 1 of 1 pairs here, 1 of 2 published." in text
    assert [path.name for path in (tmp_path / "out/figures").glob("pairs*")] == ["pairs-pr_auc-ffff.png"]


def test_half_a_pair_is_shown_and_not_compared(tmp_path, declaration):
    text = render(tmp_path, declaration, write_rows(tmp_path / "results", {"lstm": 0.2}))
    assert cells(text, "| LSTM |")[2:4] == ["not run", "–"]
    assert cells(text, "| Skim |")[1:] == ["not run", "not run", "–", "62.20", "58.50", "-3.7"]
    assert cells(text, "| LSTM |", nth=1)[1:] == ["not run", "not run", "–", "–", "–", "–"]
    assert "0 of 0 pairs here, 1 of 2 published" in text


@pytest.mark.parametrize("over", [["lstm", "skim"], None])
def test_a_claim_that_is_no_pair_is_refused(declaration, over):
    claims = [{"text": "t", "row": "lstm+", "over": over}] if over else []
    with pytest.raises(InputError, match="each claim is a pair"):
        parse_declaration({**declaration, "claims": claims}, "paper/figure3")
