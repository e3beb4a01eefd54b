"""The exact risks of a simulated cohort: asked for once, handed to every run on it, or a reason."""

from __future__ import annotations

import json
import logging
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import ClassVar

import numpy as np
import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.conditions import Conditions
from ehrlab.data.sources import open_mimic, open_trinetx
from ehrlab.run import oracle
from ehrlab.run.oracle import ExactRisks, reference_set
from ehrlab.simulation import SPECIFICATION, write_trinetx
from tiny import model_config, names

TINY = ("model=lstm", "model.embed_dim=6", "model.hidden_dim=5", "trainer=smoke", "data=toy")


class Simulator:
    """Stands for ehrlab.simulation.oracle: remembers what it was asked, and knows the labels with some noise."""

    def __init__(self, refusal: str | None = None, lost: int = 0) -> None:
        self.refusal, self.lost, self.asked = refusal, lost, []

    def write_oracle(self, raw_root, task, samples, out, *, subject_ids):
        self.asked.append(SimpleNamespace(root=raw_root, task=task, samples=samples, subject_ids=subject_ids))
        if self.refusal:
            logging.getLogger("ehrlab.simulation.oracle").info(self.refusal)
            return False
        noise = np.random.default_rng(0).normal(size=len(samples))
        risk = 1 / (1 + np.exp(-(noise + 2 * samples["boolean_value"].to_numpy() - 1)))
        table = samples.select("subject_id", "prediction_time").with_columns(
            **{"codes": risk**2, "codes+time": risk, "codes+time+labs": risk, "latent": risk}
        )
        table[self.lost :].write_parquet(out)
        return True


@pytest.fixture
def simulator(monkeypatch, results, tmp_path):
    """Put a simulator in place of ours, with a cache of its own."""

    def put(**kwargs) -> Simulator:
        stub = Simulator(**kwargs)
        monkeypatch.setattr(oracle, "oracle", stub)
        monkeypatch.setenv("EHRLAB_CACHE", str(tmp_path / "cache"))
        return stub

    return put


def entry_of(results: Path) -> dict:
    (path,) = results.glob("toy/*/*/*/seed=0/metrics.json")
    return json.loads(path.read_text())["oracle"]


def test_every_model_is_measured_from_the_set_that_holds_what_it_requires() -> None:
    assert reference_set(frozenset({"visits", "labs"})) == "codes+time+labs"
    assert reference_set(frozenset({"visits", "notes", "demographics"})) == "codes+time+notes"
    assert reference_set(frozenset({"labs", "visits", "notes"})) == "codes+time+labs+notes"
    assert reference_set(frozenset({"visits", "tokens"})) is None
    assert reference_set(frozenset({"demographics"})) is None
    # Of one stay, or of one admission.
    assert reference_set(frozenset({"stays", "demographics"})) == "charts"
    assert reference_set(frozenset({"labs"})) == "labs"
    assert reference_set(frozenset({"notes"})) == "notes"
    assert reference_set(frozenset({"text", "labs"}), text=["notes"]) == "labs+notes"
    # Text holds laboratory tests in words, unless it is told otherwise.
    assert reference_set(frozenset({"text"})) == "labs+notes"
    assert reference_set(frozenset({"text"}), text=["notes"]) == "notes"


@pytest.mark.parametrize("name", names("model"))
def test_models_of_visits_are_measured_from_codes_and_time(name: str) -> None:
    from hydra.utils import get_class

    requires = get_class(model_config(f"model={name}")._target_).requires
    if requires <= {"visits", "demographics"}:
        assert reference_set(requires) == "codes+time"


def test_a_run_on_simulated_data_reports_its_distance_and_the_oracle_is_asked_once(cli, results, simulator):
    stub = simulator()
    done = cli(*TINY)
    assert (done.code, done.err) == (0, "")
    entry = entry_of(results)
    assert entry["reference"] == "codes+time"
    assert entry["regret"]["low"] <= entry["regret"]["value"] <= entry["regret"]["high"]
    assert entry["kl"]["value"] > 0
    (run,) = results.glob("toy/*/*/*/seed=0")
    kept, predictions = (pl.read_parquet(run / name) for name in ("oracle.parquet", "predictions.parquet"))
    keys = ["subject_id", "prediction_time"]
    assert kept.select(keys).sort(keys).equals(predictions.select(keys).sort(keys))
    assert "Regret x100" in done.out
    assert "Distance to the best possible" in Path(done.out.rsplit("Report: ", 1)[1].strip()).read_text()

    assert cli(*TINY, "training.batch_size=64").code == 0
    (asked,) = stub.asked
    assert asked.task["kind"] == "first_diagnosis"
    assert (asked.task["lead_days"], asked.task["min_visits"], asked.task["window"]) == (180, 2, "until")
    assert (asked.root / "SIMULATED.json").exists()
    assert len(asked.samples) > len(predictions)  # all splits
    assert asked.samples.columns == [*keys, "boolean_value"]
    assert asked.subject_ids(pl.Series([7, 8])).to_list() == [7, 8]


def test_another_task_is_another_question(cli, results, simulator):
    stub = simulator()
    for task in ("readmission_30d", "in_hospital_mortality"):
        assert cli(*TINY, f"task={task}", "data.simulation.preset=heart_failure").code == 0
    assert [asked.task["kind"] for asked in stub.asked] == ["readmission", "in_hospital_mortality"]
    assert stub.asked[0].task["days"] == 30


def test_a_question_that_the_simulator_does_not_know_is_reported_with_its_reason(cli, results, simulator):
    stub = simulator(refusal="the last six months are another question")
    done = cli(*TINY)
    assert (done.code, done.err) == (0, "")
    assert entry_of(results) == {"reason": "the last six months are another question"}
    page = Path(done.out.rsplit("Report: ", 1)[1].strip()).read_text()
    assert "No exact risk: the last six months are another question." in page
    assert cli(*TINY, "training.batch_size=64").code == 0
    assert len(stub.asked) == 1


def test_an_oracle_that_lacks_a_sample_stops_before_training_and_is_not_kept(cli, results, simulator, tmp_path):
    simulator(lost=1)
    end = cli(*TINY)
    assert end.code == 2
    assert "expected the exact risk of every sample, but 1 of" in end.err
    assert end.err.count("\n") == 1
    assert "training" not in end.out
    assert not list((tmp_path / "cache" / "oracles").glob("*/*"))


def test_tables_of_another_specification_have_no_oracle(cli, results, simulator, toy_tables, tmp_path):
    stub = simulator()
    root = tmp_path / "raw"
    root.mkdir()
    for path in toy_tables.iterdir():
        (root / path.name).write_bytes(path.read_bytes())
    mark = json.loads((root / "SIMULATED.json").read_text())
    (root / "SIMULATED.json").write_text(json.dumps({**mark, "specification": "0-old"}))
    assert cli(*TINY, f"data.root={root}").code == 0
    assert entry_of(results) == {"reason": "the tables are of another simulator, or of another version of it"}
    assert not stub.asked


def test_data_that_are_not_simulated_have_no_entry(cli, results, simulator, toy_tables, tmp_path):
    stub = simulator()
    root = tmp_path / "raw"
    root.mkdir()
    for path in toy_tables.glob("*.csv"):
        (root / path.name).write_bytes(path.read_bytes())
    assert cli(*TINY, f"data.root={root}").code == 0
    (path,) = results.glob("toy/*/*/*/seed=0/metrics.json")
    assert "oracle" not in json.loads(path.read_text())
    assert not stub.asked


def test_a_model_that_is_given_what_no_set_holds_is_told_so() -> None:
    samples = pl.DataFrame({"subject_id": [1], "prediction_time": [None], "codes": [0.5]}).with_columns(
        pl.col("prediction_time").cast(pl.Datetime("us"))
    )
    entry, rows = ExactRisks(oracle.Oracle(samples)).judge(samples, frozenset({"visits"}), num_bootstrap=0, seed=0)
    assert entry == {"reason": "the oracle knows no risk given visits; it knows codes"}
    assert rows is None


@pytest.mark.parametrize("lost", [0, 1])
def test_a_task_with_several_labels_has_a_risk_for_each(tmp_path, monkeypatch, lost: int) -> None:
    times = pl.Series([1, 2], dtype=pl.Datetime("us"))
    samples = pl.DataFrame({"subject_id": [7, 8], "prediction_time": times, "boolean_values": [[True, False]] * 2})
    task = Conditions("two", conditions={"a": {"icd9": ["401"]}, "b": {"icd9": ["428"]}})
    text = SimpleNamespace(modality=Text(labtext=False))
    data = SimpleNamespace(fingerprint="f", samples=lambda split: samples[:0] if split != "train" else samples)
    data.selected = {"samples": {"train": (text,)}}
    (tmp_path / "SIMULATED.json").write_text(json.dumps({"specification": SPECIFICATION}))

    def write_oracle(root, question, samples, out, *, subject_ids):
        assert question["kind"] == "conditions"
        keys = samples.select("subject_id", "prediction_time").join(pl.DataFrame({"label": ["a", "b"]}), how="cross")
        keys.with_columns(notes=pl.lit(0.3), latent=pl.lit(0.4))[lost:].write_parquet(out)
        return True

    monkeypatch.setattr(oracle, "oracle", SimpleNamespace(write_oracle=write_oracle))
    monkeypatch.setattr(oracle, "_subject_ids", lambda source: pl.Series)
    ask = partial(oracle.exact_risks, SimpleNamespace(root=tmp_path), task, data, tmp_path / "cache")
    if lost:
        with pytest.raises(InputError, match="1 of 4 are missing"):
            ask()
        return
    risks = ask()
    rows = samples.select("subject_id", "prediction_time").join(pl.DataFrame({"label": ["b", "a"]}), how="cross")
    predictions = rows.with_columns(
        boolean_value=pl.Series([False, True, True, False]),
        predicted_boolean_value=False,
        predicted_boolean_probability=pl.Series([0.1, 0.2, 0.3, 0.4]),
    )
    entry, best = risks.judge(predictions, frozenset({"text"}), num_bootstrap=0, seed=0)
    assert entry["reference"] == "notes"  # its text holds no laboratory tests
    assert list(entry["labels"]) == ["a", "b"]
    assert best["latent"].to_list() == [0.4] * 4


@dataclass(frozen=True)
class Text:
    """Stands for the settings of data.modalities.text."""

    name: ClassVar[str] = "text"
    notes: bool = True
    labtext: bool = True


def test_subject_ids_of_the_raw_tables_become_those_of_our_events(tmp_path, toy_tables):
    mimic = open_mimic(toy_tables)
    raw = pl.read_csv(toy_tables / "PATIENTS.csv")["SUBJECT_ID"]
    assert oracle._subject_ids(mimic)(raw).to_list() == raw.to_list()
    write_trinetx(tmp_path / "raw", preset="kidney", num_patients=30, seed=0)
    trinetx = open_trinetx(tmp_path / "raw")
    raw = pl.read_csv(tmp_path / "raw" / "patient.csv")["patient_id"]
    ours = trinetx.patients().frame.select("subject_id").collect()["subject_id"]
    assert set(oracle._subject_ids(trinetx)(raw)) == set(ours)


def test_an_experiment_over_a_knob_ends_in_a_page_with_its_claims(cli, results, simulator):
    simulator()
    sizes = ("model.embed_dim=6", "model.hidden_dim=5")
    done = cli("experiments=simulation/null", "model=lstm", "seed=0,1", *sizes, "trainer=smoke", "data=toy")
    assert (done.code, done.err) == (0, "")
    page = Path(done.out.rsplit("Report: ", 1)[1].strip()).read_text()
    assert "PR-AUC is the prior" in page
    assert "null = true" in page
    assert "SIMULATED" in page
