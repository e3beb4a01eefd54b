"""Pages on what models generate: the codes of several seeds in one table, patients' marks on simulated pages only."""

import base64

import numpy as np
import pytest

from ehrlab.core.errors import InputError
from ehrlab.report.declaration import parse_declaration
from ehrlab.report.experiment import write_experiment
from ehrlab.report.figures import stamped, states_figure
from fake_runs import write_index, write_json, write_run

CODE = "DIAGNOSIS//ICD//9//"


def codes(*order, num_codes=500):
    """An analysis whose synthetic data hold these codes, the commonest first."""
    share = [0.5 / 2**place for place in range(len(order))]
    entries = [
        {
            "code": f"{CODE}{code}",
            "description": f"disease {code}",
            "rank_original": int(code),
            "share": part,
            "share_of_vocabulary": part,
            "rank_synthetic": rank,
            "rank_without_augmenter": rank + 7,
        }
        for rank, (code, part) in enumerate(zip(order, share), start=1)
    ]
    measures = {"num_codes": num_codes, "num_reached": len(order), "unchanged": 0.25}
    return {"measures": {**measures, "unchanged_without_augmenter": 0.5, "rank_correlation": 0.1}, "codes": entries}


STATES = {
    "measures": dict.fromkeys(
        ("own_closer", "nearest_is_own", "same_label_original", "same_label_synthetic", "same_label_by_chance"), 0.625
    )
    | {"num_patients": 31},
    "num_drawn": 31,
}


@pytest.fixture
def png():
    points = np.array([[0.0, 1.0], [2.0, 1.0]])
    return states_figure("states", dict.fromkeys(("Original+", "Original-", "Generated+", "Generated-"), points)).png


def declaration(tmp_path, kind):
    table = tmp_path / "table5.csv"
    table.write_text(
        "data,rank_synthetic,rank_original,code,description,source\n"
        'amnesia,1,3234,287.30,"Primary thrombocytopenia, unspecified",Table 5\n'
    )
    columns = [{"column": "trinetx/amnesia", "label": "Amnesia", "published": "amnesia"}]
    found = {"title": "Exhibit", "kind": kind, "columns": columns}
    return {**found, "published": str(table)} if kind == "synthetic_codes" else found


def write_runs(tmp_path, kind, contents, **kwargs):
    runs = {}
    for seed, content in enumerate(contents):
        run = write_run(tmp_path / "results", data="trinetx", task="amnesia", seed=seed, **kwargs)
        (run / "analyses").mkdir()
        if content is not None:
            write_json(run / "analyses" / f"{kind}.json", content)
        runs[run] = "meddiffusion"
    return runs


def render(tmp_path, kind, runs):
    write_index(tmp_path / "results", "paper/exhibit", declaration(tmp_path, kind), runs)
    return write_experiment("paper/exhibit", tmp_path / "results", tmp_path / "out").with_name("report.md").read_text()


def rows(text):
    return [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in text.splitlines() if "|" in line]


def test_codes_are_ranked_by_their_mean_share_and_shown_with_each_seeds_rank(tmp_path):
    runs = write_runs(tmp_path, "synthetic_codes", [codes("30", "12", "7"), codes("30", "7")])
    text = render(tmp_path, "synthetic_codes", runs)
    assert [row for row in rows(text) if row[-1].startswith("disease")] == [
        ["1", "1, 1", "8, 8", "30", "30", "disease 30"],
        ["2", "3, 2", "10, 9", "7", "7", "disease 7"],
        ["3", "2, &gt;2", "9", "12", "12", "disease 12"],
    ]
    assert "Two seeds share 2.0 of their first 10 codes (0.20 by chance)" in text
    assert ["Synthetic records with the code that they were made from, %", "25.00"] in rows(text)
    assert ["1", "3234", "287.30", "Primary thrombocytopenia, unspecified"] in rows(text)
    assert "The original ranks of these codes: median 12, from 7 to 30." in text
    assert "SIMULATED" in text


def test_a_run_that_was_not_looked_into_is_counted_with_the_command(tmp_path):
    runs = write_runs(tmp_path, "synthetic_codes", [codes("30"), None])
    text = render(tmp_path, "synthetic_codes", runs)
    assert "1 of 2 runs have not been looked into" in text
    assert "python -m ehrlab.run.analyse synthetic_codes" in text
    assert "disease 30" in text


def test_marks_of_simulated_patients_are_on_the_page_and_those_of_real_ones_nowhere(tmp_path, png):
    for simulated, place in ((True, "simulated"), (False, "real")):
        runs = write_runs(tmp_path / place, "hidden_states", [STATES, STATES], simulated=simulated)
        for run in runs:
            (run / "analyses" / "hidden_states.png").write_bytes(png)
        text = render(tmp_path / place, "hidden_states", runs)
        page = (tmp_path / place / "out/index.html").read_text()
        marks = base64.b64encode(png).decode() in page
        files = [path.read_bytes() for path in (tmp_path / place / "out").rglob("*.png")]
        assert marks == simulated
        assert (stamped(png, "SIMULATED DATA") in files) == simulated
        assert ("stays in the run's folder" in text) != simulated
        assert ["Generated whose nearest original is its own, %", "62.50"] in rows(text)


def test_these_exhibits_have_no_metrics(tmp_path):
    with pytest.raises(InputError, match="kind hidden_states shows no metrics, found metrics"):
        parse_declaration({**declaration(tmp_path, "hidden_states"), "metrics": ["f1"]}, "paper/exhibit")
