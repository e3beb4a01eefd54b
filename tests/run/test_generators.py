"""Generators from the command line: from nothing to the table beside their rivals, and the exhibits of RLTF."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

pytest.importorskip("trl")

TINY = (
    "data=sequences",
    "task=rare_code/fluid_electrolyte",
    "trainer=smoke",
    "data.simulation.num_patients=400",
    "tokens.kinds=[diagnosis]",
    "tokens.max_tokens=64",
    "tokens.max_visits=8",
    "tokens.min_count=5",
    "training.phases.tune.max_epochs=1",
    "completion.num_held_out=60",
    "completion.num_train=10",
    "completion.num_synthetic=10",
    "completion.num_trees=5",
    "completion.cut=6",
    "completion.max_new_tokens=12",
    "seed=0",
)


def page(done):
    return Path(done.out.rsplit("Report: ", 1)[1].strip()).with_name("report.md").read_text()


def test_rltf_stands_beside_its_rivals(cli, results):
    done = cli("model=rltf", *TINY)
    assert (done.code, done.err) == (0, "")
    runs = {path.parts[-4]: path.parent for path in results.glob("sequences/fluid_electrolyte/*/*/seed=0/DONE")}
    assert {name.split("-")[0] for name in runs} == {"rltf", "chiron", "sft", "lstm_generator", "halo"}
    assert len(list(results.glob("phases/pretrain-*/DONE"))) == 3  # CHIRon's for three of them
    for run in runs.values():
        files = {path.name for path in run.iterdir() if path.is_file()}
        assert {"completions.parquet", "utility.parquet", "synthetic.parquet", "tokenizer.json"} <= files
        metrics = json.loads((run / "metrics.json").read_text())
        assert 0 <= metrics["held_out"]["rouge1"]["value"] <= 1
        assert {"utility", "augmentation", "memorisation", "privacy", "fidelity", "curve"} <= metrics.keys()
    for word in ("Precision", "Recall", "F1", "ROUGE-1", "Utility", "Augmentation"):  # headers may break
        assert word in done.out
    text = page(done)
    for title in ("Results", "Precision for recall", "Generated records", "Prevalence of codes"):
        assert f"## {title}: sequences / fluid\\_electrolyte" in text


def test_exhibits_share_their_runs(cli, results):
    narrowed = ("model=rltf,chiron", *TINY)
    for exhibit in ("table5", "table1", "table3", "table6", "table7", "figure2"):
        done = cli(f"experiments=rltf/{exhibit}", *narrowed)
        assert (done.code, done.err) == (0, "")
        assert ("training rltf" in done.out) == (exhibit == "table5")
        for label in ("RLTF", "CHIRon"):
            assert f"| {label} |" in page(done)
    assert len(list(results.glob("sequences/*/*/*/seed=*/DONE"))) == 2


def test_the_ablation_finds_its_rows(cli):
    done = cli("experiments=rltf/table2", "model=rltf", "model.tune.num_sequences=100,1000", *TINY)
    assert (done.code, done.err) == (0, "")
    text = page(done)
    for label in ("N 100, P .5", "N 1000, P .5"):
        assert f"| {label} |" in text
    assert "Balance helps" not in text  # its rows did not run


def test_a_target_that_the_records_lack_is_one_line(cli):
    tiny = [override for override in TINY if not override.startswith("task=")]
    done = cli("model=chiron", *tiny, "task=rare_code/sickle_cell")
    assert done.code == 2
    assert done.err.startswith("error: ")
    assert len(done.err.splitlines()) == 1
