"""The exhibits that are not tables of metrics, from the command line to their pages."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ehrlab.run.analyse import main as analyse
from ehrlab.run.store import DONE

TOY = ("data=toy", "task=heart_failure", "trainer=smoke", "seed=0")


def page(done):
    return Path(done.out.rsplit("Report: ", 1)[1].strip()).with_name("report.md").read_text()


def test_table_1_trains_nothing(cli, results):
    done = cli("experiments=meddiffusion/table1", *TOY)
    assert (done.code, done.err) == (0, "")
    assert not list(results.rglob(DONE))
    text = page(done)
    assert "toy/heart\\_failure (simulated cohort): ours" in text
    assert "Not built yet: Kidney, COPD, Amnesia, MIMIC" in text


def test_table_5_looks_into_the_run_that_it_trained_and_does_so_once(cli, results):
    command = ("experiments=meddiffusion/table5", *TOY)
    done = cli(*command)
    assert (done.code, done.err) == (0, "")
    (found,) = results.glob("toy/heart_failure/meddiffusion/*/seed=0/analyses/synthetic_codes.json")
    top = json.loads(found.read_text())["codes"][0]
    assert f"| {top['rank_original']} |" in page(done)
    written = found.stat().st_mtime_ns
    assert cli(*command).code == 0
    assert found.stat().st_mtime_ns == written


def test_any_finished_run_can_be_looked_into_and_gives_what_its_experiment_gave(cli, results, capsys):
    assert cli("experiments=meddiffusion/figure2", *TOY).code == 0
    (found,) = results.glob("toy/heart_failure/meddiffusion/*/seed=0/analyses/hidden_states.json")
    run, before = found.parents[1], found.read_bytes()
    found.unlink()
    assert analyse(["hidden_states", str(run)]) == 0
    assert found.read_bytes() == before

    (run / "identity.json").write_text(json.dumps({"data": "0" * 64}))
    assert analyse(["hidden_states", str(run)]) == 2
    assert "trained on data 000000000000" in capsys.readouterr().err
    (run / DONE).unlink()
    assert analyse(["synthetic_codes", str(run)]) == 2
    assert "expected a finished run" in capsys.readouterr().err


def test_figure_3_trains_each_backbone_beside_its_augmented_self(cli, results):
    done = cli("experiments=meddiffusion/figure3", *TOY, "model@model.backbone=lstm")
    assert (done.code, done.err) == (0, "")
    rows = [json.loads(path.read_text())["row"] for path in results.rglob("run.json")]
    assert sorted(rows) == ["lstm", "meddiffusion backbone=lstm"]
    assert "of 1 pairs here" in page(done)


def test_a_model_without_a_backbone_has_no_backbone_to_beat(cli):
    done = cli("model=retain", "baselines=backbone", *TOY)
    assert done.code == 2
    assert "model 'retain' has no backbone of its own" in done.err


@pytest.mark.parametrize("name", ["table2", "table4"])
def test_rows_of_the_papers_tables_find_their_runs(cli, results, name):
    narrowed = "model=lstm,lstm_time" if name == "table2" else "model/augmenter=medgan"
    done = cli(f"experiments=meddiffusion/{name}", *TOY, narrowed)
    assert (done.code, done.err) == (0, "")
    text = page(done)
    ran = ["LSTM", "LSTM with time (backbone)"] + (["MedDiffusion", "medGAN", "medGAN+Att"] if name == "table4" else [])
    for label in ran:
        line = next(line for line in text.splitlines() if line.startswith(f"| {label} |"))
        *_, ours, _, _ = line.strip("| ").split(" | ")  # the toy column stands last: ours, published, difference
        assert ours.endswith("(1)")
