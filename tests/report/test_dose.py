"""Dose-response studies: one panel per setting of the data, rows over doses, the exact risk beside them, claims."""

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.report.declaration import parse_declaration
from ehrlab.report.experiment import write_experiment
from fake_runs import exact_risks, predictions, write_index, write_run

KNOB = "data.simulation.time"


@pytest.fixture
def declaration():
    return {
        "title": "Time",
        "kind": "dose",
        "metrics": ["pr_auc", "regret", "kl"],
        "axes": {"x": KNOB, "x_label": "time"},
        "rows": [
            {"row": "lstm", "label": "LSTM", "match": {"model": "lstm"}},
            {"row": "retain", "label": "RETAIN", "match": {"model": "retain"}},
        ],
        "columns": [{"column": "trinetx/kidney", "label": "Kidney"}],
    }


def write_rows(results, doses, skills, *, key="time", num_patients=100, oracle=True, num_subjects=60, tag=""):
    """Runs of two models with two seeds at each dose; `skills`: dose -> (lstm, retain)."""
    runs = {}
    for number, dose in enumerate(doses):
        for model, skill in zip(("lstm", "retain"), skills[dose]):
            for seed in (0, 1):
                table = predictions(skill=skill, seed=10 * number + seed, num_subjects=num_subjects)
                settings = {"name": "trinetx", "simulation": {key: dose, "num_patients": num_patients}}
                run = write_run(
                    results,
                    row=model,
                    model=model,
                    data="trinetx",
                    task="kidney",
                    seed=seed,
                    config_hash=f"{tag}{model[:2]}{number}",
                    fingerprint=f"{tag}{number}" * 32,
                    config={"data": settings, "model": {"width": 8}},
                    table=table,
                    oracle=exact_risks(table) if oracle else None,
                )
                runs[run] = model
    return runs


def render(tmp_path, declaration, runs):
    write_index(tmp_path / "results", "simulation/time", declaration, runs)
    page = write_experiment("simulation/time", tmp_path / "results", tmp_path / "out")
    return page.with_name("report.md").read_text(), pl.read_csv(tmp_path / "out" / "dose.csv")


def cells(text, start, after=""):
    part = text[text.index(after) :]
    line = next(line for line in part.splitlines() if line.startswith(start))
    return [cell.strip() for cell in line.strip("|").split(" | ")]


SKILLS = {0: (0.2, 0.2), 0.5: (1.0, 0.2), 1: (2.0, 0.2)}


def test_rows_stand_over_doses_beside_the_exact_risk_and_no_skill(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", SKILLS, SKILLS)
    text, table = render(tmp_path, declaration, runs)
    assert "SIMULATED" in text
    assert "| PR-AUC ×100 ↑ | time = 0 | time = 0.5 | time = 1 |" in text
    values = [float(cell.split()[0]) for cell in cells(text, "| LSTM |")[1:]]
    assert values == sorted(values)
    assert all("(2)" in cell and "\\[" in cell for cell in cells(text, "| LSTM |")[1:])
    best = [float(cell.split()[0]) for cell in cells(text, "| exact risk: codes+time |")[1:]]
    regret = [float(cell.split()[0]) for cell in cells(text, "| LSTM |", after="| Regret")[1:]]
    assert regret == pytest.approx([b - v for b, v in zip(best, values)], abs=0.11)
    assert "exact risk" not in text[text.index("| Regret") :].split("\n\n")[0]
    shown = table.filter(row="LSTM", metric="pr_auc").sort("dose")
    assert shown["value"].round(3).to_list() == pytest.approx([v / 100 for v in values], abs=6e-4)
    assert shown["num_seeds"].to_list() == [2, 2, 2]
    assert set(table["row"]) == {
        "LSTM",
        "RETAIN",
        "no skill",
        *(f"exact risk: {s}" for s in ("codes", "codes+time", "latent")),
    }
    assert not {"subject_id", "prediction_time"} & set(table.columns)


def test_declared_information_sets_are_drawn(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0, 1], SKILLS)
    text, _ = render(tmp_path, {**declaration, "oracle": ["codes", "latent"]}, runs)
    assert "| exact risk: codes |" in text
    assert "| exact risk: latent |" in text
    assert "| exact risk: codes+time |" not in text


def test_without_an_oracle_the_models_alone_are_drawn(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0, 1], SKILLS, oracle=False)
    text, _ = render(tmp_path, declaration, runs)
    assert "exact risk:" not in text
    assert cells(text, "| LSTM |", after="| Regret")[1:] == ["–", "–"]


def test_a_dose_that_a_row_lacks_is_marked(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0, 1], SKILLS)
    kept = {run: row for run, row in runs.items() if "re1" not in run.as_posix()}
    text, table = render(tmp_path, declaration, kept)
    assert cells(text, "| RETAIN |")[2] == "not run"
    assert table.filter(row="RETAIN", metric="pr_auc")["dose"].to_list() == [0.0]


def test_runs_that_differ_in_another_setting_of_the_data_are_in_panels_of_their_own(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0, 1], SKILLS)
    runs |= write_rows(tmp_path / "results", [0, 1], SKILLS, num_patients=999, tag="x")
    text, table = render(tmp_path, declaration, runs)
    for number in (100, 999):
        assert (
            f"## Kidney – simulated cohort, data.simulation.num\\_patients = {number}".replace(" cohort,", " cohort –")
            in text
        )
    assert table["panel"].n_unique() == 2


def test_of_two_cohorts_with_the_same_settings_the_one_with_more_runs_is_shown(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0, 1], SKILLS)
    stale = write_rows(tmp_path / "results", [0], SKILLS, tag="old")
    runs[next(iter(stale))] = "lstm"
    text, table = render(tmp_path, declaration, runs)
    assert "1 finished runs of this experiment are not shown" in text
    assert not table["data_fingerprint"].cast(pl.String).str.starts_with("old").any()


def test_a_switch_is_an_axis_too(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [False, True], {False: (2.0, 2.0), True: (0.0, 0.0)}, key="null")
    text, _ = render(tmp_path, {**declaration, "axes": {"x": "data.simulation.null", "x_label": "null"}}, runs)
    assert "| null = false | null = true |" in text


def test_no_skill_is_the_prior_or_one_half(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0, 1], SKILLS)
    text, _ = render(tmp_path, {**declaration, "metrics": ["auroc", "average_precision", "kl"]}, runs)
    share = 100 * predictions()["boolean_value"].mean()
    assert cells(text, "| no skill |", after="| AUROC")[1:] == ["50.0", "50.0"]
    assert cells(text, "| no skill |", after="| Average precision")[1:] == [f"{share:.1f}"] * 2
    assert "no skill" not in text[text.index("| KL") :].split("\n\n")[0]


@pytest.mark.parametrize(("skill", "verdict"), [(0.0, "holds ("), (3.0, "contradicted (+")])
def test_a_claim_that_every_row_is_at_the_prior_is_judged_for_each(tmp_path, declaration, skill, verdict):
    claims = [
        {"text": "No skill", "metric": "pr_auc", "equals": "prior", "at": 1},
        {"text": "No ranking", "metric": "auroc", "equals": 0.5, "row": "lstm", "at": [1]},
    ]
    runs = write_rows(tmp_path / "results", [0, 1], {0: (3.0, 3.0), 1: (skill, skill)}, num_subjects=200)
    text, _ = render(tmp_path, {**declaration, "claims": claims}, runs)
    found = [line for line in text.splitlines() if line.startswith("| No skill |")]
    assert [("LSTM against no skill" in line, "RETAIN against no skill" in line) for line in found] == [
        (True, False),
        (False, True),
    ]
    assert all("| time = 1 | " in line and f"| {verdict}" in line for line in found)
    assert all(("likely to be missed" in line) == (skill == 0) for line in found)
    (ranking,) = [line for line in text.splitlines() if line.startswith("| No ranking |")]
    assert "LSTM against 50.0" in ranking


def test_a_claim_of_one_row_over_another_is_judged_at_its_doses(tmp_path, declaration):
    claims = [{"text": "LSTM wins", "row": "lstm", "over": ["retain"], "metric": "regret"}]
    runs = write_rows(tmp_path / "results", [0, 1], {0: (0.2, 3.0), 1: (3.0, 0.2)}, num_subjects=200)
    text, _ = render(tmp_path, {**declaration, "claims": claims}, runs)
    lines = [line for line in text.splitlines() if line.startswith("| LSTM wins |")]
    assert "| time = 0 | LSTM against RETAIN | contradicted (+" in lines[0]
    assert "| time = 1 | LSTM against RETAIN | holds (-" in lines[1]


def test_the_common_parts_of_a_page_are_there(tmp_path, declaration):
    text, _ = render(tmp_path, declaration, write_rows(tmp_path / "results", [0, 1], SKILLS))
    assert "python run.py experiments=simulation/time" in text
    assert "## Provenance" in text
    figures = [path.name for path in (tmp_path / "out" / "figures").iterdir()]
    assert figures == ["dose-trinetx-kidney-0000-1111.png"]


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"axes": {}}, "expected x"),
        ({"axes": {"x": "a", "y": "b"}}, r"unknown axes \['y'\]"),
        ({"axes": {"x": "a", "x_scale": "cube"}}, "linear or log"),
        ({"kind": "table", "axes": {}, "oracle": ["codes"]}, "oracle belongs to kind dose"),
        ({"kind": "table", "axes": {}, "claims": [{"text": "t", "equals": 0}]}, "belong to the claims of kind dose"),
        ({"claims": [{"text": "t", "equals": "chance"}]}, "a number or prior"),
        ({"claims": [{"text": "t", "equals": 0, "over": ["lstm"]}]}, "either over or equals"),
        ({"claims": [{"text": "t", "equals": 0, "row": "gru"}]}, "gru"),
        ({"claims": [{"text": "t", "row": "lstm"}]}, "expected over"),
        ({"metrics": ["regrets"]}, "regrets"),
    ],
)
def test_a_wrong_declaration_is_refused_by_its_key(declaration, change, complaint):
    with pytest.raises(InputError, match=complaint):
        parse_declaration({**declaration, **change}, "simulation/time")


def test_an_axis_that_is_no_number_is_named(tmp_path, declaration):
    runs = write_rows(tmp_path / "results", [0], SKILLS)
    with pytest.raises(InputError, match=r"axis model should be a number, found 'lstm'"):
        render(tmp_path, {**declaration, "axes": {"x": "model"}}, runs)
