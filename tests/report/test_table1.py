"""An experiment about cohorts: nothing was trained, and the page stands."""

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.report.experiment import write_experiment
from fake_runs import write_index, write_json

OURS = {"positive_cases": 2790, "negative_cases": 8401, "visits_per_patient": 38.5, "codes_per_visit": 4.75}


@pytest.fixture
def folder(tmp_path):
    published = tmp_path / "table1.csv"
    published.write_text(
        "data,statistic,value,source,stands_beside\nkidney,positive_cases,2810,Table 1,trinetx/kidney\n"
        "kidney,visits_per_patient,39.09,Table 1,trinetx/kidney\n"
    )
    declaration = {
        "title": "Table 1",
        "kind": "cohorts",
        "cohorts": str(published),
        "columns": [
            {"column": "trinetx/kidney", "label": "Kidney", "published": "kidney"},
            {"column": "mimic/heart_failure", "label": "MIMIC", "published": "mimic"},
        ],
    }
    write_index(tmp_path / "results", "paper/table1", declaration, {})
    return tmp_path / "results/experiments/paper/table1"


def cohort(folder, name, *, simulated, column="trinetx/kidney", data="ab" * 32):
    statistics = {**OURS, "unique_codes": 8800, "simulated": simulated}
    write_json(folder / f"{name}.json", {"column": column, "cohort": statistics, "data": data})


def render(tmp_path):
    return write_experiment("paper/table1", tmp_path / "results", tmp_path / "out").with_name("report.md").read_text()


def test_a_cohort_stands_beside_the_published_one(tmp_path, folder):
    cohort(folder, "a", simulated=True)
    text = render(tmp_path)
    assert "| Positive cases | 2,790 | 2810 |" in text
    assert "| Codes per visit | 4.75 | – |" in text
    assert "Kidney (simulated cohort): ours" in text
    assert "SIMULATED" in text
    assert "Not built yet: MIMIC." in text
    table = pl.read_csv(tmp_path / "out/results.csv")
    assert table.filter(statistic="positive_cases")["published"].to_list() == [2810]


def test_two_cohorts_of_one_column_are_told_apart_and_real_ones_need_no_banner(tmp_path, folder):
    cohort(folder, "a", simulated=False)
    cohort(folder, "b", simulated=False, data="cd" * 32)
    text = render(tmp_path)
    assert "Kidney, data abababab: ours" in text
    assert "Kidney, data cdcdcdcd: ours" in text
    assert "SIMULATED" not in text


def test_no_cohort_and_no_statistics_are_refused(tmp_path, folder):
    with pytest.raises(InputError, match="expected at least one cohort"):
        render(tmp_path)
    write_json(folder / "a.json", {"run": "x", "row": "lstm"})
    with pytest.raises(InputError, match="expected entries column and cohort"):
        render(tmp_path)
