"""Bad input ends in one line (what, where, expected, found, remedy), exit code 2, and nothing half-written."""

from __future__ import annotations

import errno
import gzip
import json
import os
import shutil
from pathlib import Path

import polars as pl
import pytest
from polars.exceptions import ComputeError
from safetensors import SafetensorError

SMOKE = ("trainer=smoke", "data=toy")
TINY = ("model=lstm", "model.embed_dim=6", "model.hidden_dim=5", *SMOKE)


@pytest.fixture
def refused(cli, results):
    """Run a command that must be refused; gives its one line."""

    def call(*overrides: str) -> str:
        end = cli(*overrides)
        assert end.code == 2, end
        assert end.err.startswith("error: ")
        assert end.err.count("\n") == 1, end.err
        assert "Traceback" not in end.out + end.err
        assert not list(results.rglob("DONE"))
        return end.err

    return call


@pytest.fixture
def raw(toy_tables: Path, tmp_path: Path) -> Path:
    """A copy of the toy cohort's raw tables, to be damaged."""
    return Path(shutil.copytree(toy_tables, tmp_path / "raw"))


# ---- what does not train


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-true"])
def test_a_precision_that_would_not_train(refused, precision):
    error = refused(*TINY, f"trainer.precision={precision}")
    assert f"trainer.precision={precision}: expected one of 32-true, bf16-mixed" in error


# ---- what is missing


def test_a_root_that_does_not_exist(shell, results, tmp_path):
    """Through a real process: the exit code is what a shell sees."""
    end = shell(*TINY, f"data.root={tmp_path}/nowhere")
    assert end.code == 2
    assert end.err == (
        f"error: data.root={tmp_path}/nowhere: expected a folder of raw tables, found none there. Check the path.\n"
    )


def test_a_root_that_must_be_given(refused):
    assert "data.root" in refused("data=meds", "model=lstm", "trainer=smoke")
    assert "task.path" in refused(*TINY, "task=labels", "data.simulation.preset=heart_failure")


def test_an_empty_root(refused, tmp_path):
    (tmp_path / "empty").mkdir()
    assert str(tmp_path / "empty") in refused(*TINY, f"data.root={tmp_path}/empty")


def test_a_table_that_is_missing(refused, raw):
    (raw / "DIAGNOSES_ICD.csv").unlink()
    assert "diagnoses_icd" in refused(*TINY, f"data.root={raw}").lower()


def test_a_column_that_is_missing(refused, raw):
    table = raw / "DIAGNOSES_ICD.csv"
    table.write_text(table.read_text().replace('"ICD9_CODE"', '"ICD9_CODEX"', 1))
    line = refused(*TINY, f"data.root={raw}")
    assert "icd9_code" in line.lower()
    assert "DIAGNOSES_ICD.csv" in line


def test_a_table_that_cannot_be_unpacked(refused, raw, cache):
    table = raw / "DIAGNOSES_ICD.csv"
    packed = gzip.compress(table.read_bytes())
    table.unlink()
    (raw / "DIAGNOSES_ICD.csv.gz").write_bytes(packed[: len(packed) // 2])
    before = set(cache.rglob("*"))
    assert "DIAGNOSES_ICD.csv.gz" in refused(*TINY, f"data.root={raw}")
    # Locks stay, and so does the stage's own empty folder; no half-built data set does.
    assert {p for p in set(cache.rglob("*")) - before if p.suffix != ".lock" and p.parent != cache} == set()


@pytest.mark.parametrize("group", ["model", "data", "task", "variant", "baselines", "trainer", "logger"])
def test_a_name_that_does_not_exist(cli, group):
    """Hydra's own message: it lists the names that do."""
    end = cli(*SMOKE, f"{group}=nosuch")
    assert end.code != 0
    assert f"Could not find '{group}/nosuch'" in end.err
    assert "Traceback" not in end.err


def test_a_misspelt_setting(cli):
    end = cli(*TINY, "model.hiden_dim=3")
    assert end.code != 0
    assert "hiden_dim" in end.err
    assert "Traceback" not in end.err


def test_a_modality_that_the_data_lack(refused):
    line = refused(*TINY, "model._target_=probes.NeedsNotes", "data.source.tables=[diagnoses]")
    assert "model 'lstm' needs {notes, visits}" in line
    assert "does not provide {notes}" in line


# ---- cohorts


def test_an_empty_cohort(refused):
    assert "heart_failure" in refused(*TINY, "task.icd9=['000']", "task.icd10=['000']")


def test_a_task_with_one_class(refused, raw):
    """Nobody dies in these tables."""
    table = raw / "ADMISSIONS.csv"
    pl.read_csv(table, infer_schema=False).with_columns(
        DEATHTIME=None, HOSPITAL_EXPIRE_FLAG=pl.lit("0"), DISCHARGE_LOCATION=pl.lit("HOME")
    ).write_csv(table)
    assert "in_hospital_mortality" in refused(*TINY, f"data.root={raw}", "task=in_hospital_mortality")


def test_too_few_patients_for_the_split(refused):
    assert "5 subjects are too few" in refused(*TINY, "data.simulation.num_patients=5")


# ---- settings


@pytest.mark.parametrize("seed", ["[]", "[0,0]", "-1", "1.5", "zero", "[0,null]"])
def test_seeds_that_are_no_list_of_different_numbers(refused, seed):
    assert "seed: expected a whole number >= 0" in refused(*TINY, f"seed={seed}")


def test_a_variant_of_another_model(cli, results):
    end = cli(*TINY, "variant=as1")
    assert end.code == 2
    assert end.err.startswith("error: ")
    assert "augmenter" in end.err
    assert end.err.count("\n") == 1


def test_ddp_inside_a_sweep(refused):
    line = refused("-m", *TINY, "seed=0,1", "trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2")
    assert "trainer=ddp inside a sweep" in line


def test_shares_that_do_not_add_up(refused):
    assert "add up to 1" in refused(*TINY, "split.train=0.5")


# ---- damaged files


@pytest.fixture
def stopped(cli, results) -> Path:
    """A run that was killed after its first epoch."""
    assert cli(*TINY, "trainer.callbacks=[{_target_: probes.StopAfter, epoch: 0}]").code == 1
    (phase,) = results.glob("toy/*/*/*/seed=0/phases/fit")
    return phase


def test_a_corrupt_checkpoint(cli, refused, stopped):
    last = stopped / "last.ckpt"
    last.write_bytes(last.read_bytes()[:-300])
    assert str(last) in refused(*TINY)
    last.unlink()  # the remedy that the line names
    assert cli(*TINY).code == 0


def test_damaged_weights_of_a_finished_phase(cli, results, stopped):
    assert cli(*TINY).code == 0
    (stopped.parents[1] / "DONE").unlink()
    weights = stopped / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-300])
    end = cli(*TINY)
    assert (end.code, end.err.count("\n")) == (2, 1)
    assert str(weights) in end.err
    shutil.rmtree(stopped)  # the remedy that the line names
    assert cli(*TINY).code == 0


def test_a_record_that_is_not_json(refused, stopped):
    (stopped.parents[1] / "identity.json").write_text("{")
    assert "identity.json" in refused(*TINY)


# ---- a full disk: each library says so in its own way (messages as seen on a full tmpfs)

FULL = {
    "save_file": SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
    "write_parquet": ComputeError(
        "parquet: File out of specification: underlying IO error: No space left on device (os error 28)"
    ),
    "write_bytes": OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)),
}


@pytest.mark.parametrize(
    ("target", "phase_is_done"),
    [
        ("ehrlab.training.runner.save_file", False),
        ("polars.DataFrame.write_parquet", True),
        ("pathlib.Path.write_bytes", False),
    ],
)
def test_a_full_disk_at_the_end_of_training(cli, results, stopped, monkeypatch, target, phase_is_done):
    run = stopped.parents[1]

    def fail(*args: object, **kwargs: object) -> None:
        raise FULL[target.rsplit(".", 1)[1]]

    with monkeypatch.context() as patch:
        patch.setattr(target, fail)
        end = cli(*TINY)
    assert (end.code, end.err.count("\n")) == (2, 1), end.err
    assert "the disk is full" in end.err
    assert not (run / "DONE").exists()
    again = cli(*TINY)
    assert again.code == 0
    assert ("resumed" not in again.out) == phase_is_done
    assert json.loads((run / "metrics.json").read_text())["num_samples"] > 0


def test_a_full_disk_while_a_checkpoint_is_written(cli, refused):
    line = refused(*TINY, "training.max_epochs=3", "trainer.callbacks=[{_target_: probes.DiskFull, epoch: 2}]")
    assert "the disk is full" in line
    again = cli(*TINY, "training.max_epochs=3")
    assert again.code == 0
    assert "resumed phase 'fit' after epoch 1" in again.out
