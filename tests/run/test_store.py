"""The results store: finished runs are left alone, begun ones go on, and no two processes work on one."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.core.model import Phase
from ehrlab.run.store import RunFolder, shared_phase_folder

SMOKE = ("trainer=smoke", "data=toy")
TINY = ("model=lstm", "model.embed_dim=6", "model.hidden_dim=5", *SMOKE)


def mtimes(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def weights(run: Path) -> bytes:
    return (run / "model.safetensors").read_bytes()


def only_run(results: Path, row: str = "*") -> Path:
    (run,) = results.glob(f"toy/*/{row}/*/seed=*")
    return run


def wait_until(condition: Callable[[], bool], seconds: float = 90) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.02)


# ---- one run


def test_a_finished_run_is_skipped_and_nothing_of_it_is_written_again(cli, results):
    assert cli(*TINY).code == 0
    before = mtimes(results / "toy")
    again = cli(*TINY)
    assert again.code == 0
    assert "done before: lstm" in again.out
    assert "PR-AUC" in again.out
    assert mtimes(results / "toy") == before


def test_what_does_not_determine_the_numbers_does_not_make_another_run(cli, results, tmp_path):
    assert cli(*TINY).code == 0
    again = cli(*TINY, "num_workers=1", f"paths.reports={tmp_path}/elsewhere", "trainer.enable_progress_bar=true")
    assert "done before: lstm" in again.out
    assert "training lstm" in cli(*TINY, "training.batch_size=64").out
    mixed = cli(*TINY, "trainer.precision=bf16-mixed")
    assert mixed.code == 0
    assert "training lstm" in mixed.out


def test_a_run_on_part_of_the_batches_is_not_taken_for_the_whole(cli, results):
    assert cli(*TINY, "+trainer.limit_train_batches=1").code == 0
    assert "training lstm" in cli(*TINY).out
    assert "done before: lstm" in cli(*TINY, "+trainer.limit_train_batches=1").out


def test_mixed_precision_trains_with_fused_optimisers_and_clipped_gradients(cli, results):
    assert cli(*TINY, "trainer.precision=bf16-mixed").code == 0
    training = OmegaConf.load(only_run(results) / "config.yaml").training
    assert training.optimizer.fused
    assert training.gradient_clip


@pytest.mark.parametrize("stop", [[], [1]], ids=["between epochs", "before DONE"])
def test_a_stopped_run_goes_on_and_ends_as_if_nothing_had_happened(cli, results, tmp_path, stop, monkeypatch):
    command = ("model=retain", *SMOKE, "training.max_epochs=4")
    whole = cli(*command, f"paths.run={tmp_path}/whole")
    assert whole.code == 0
    folder = tmp_path / "stopped"
    if stop:  # the phase is DONE, the run is not
        with monkeypatch.context() as patch:
            patch.setattr("ehrlab.run.main.predict", _power_cut)
            assert cli(*command, f"paths.run={folder}").code == 1
        assert not (folder / "predictions.parquet").exists()
    else:
        assert (
            cli(*command, f"paths.run={folder}", "trainer.callbacks=[{_target_: probes.StopAfter, epoch: 1}]").code == 1
        )
        assert (folder / "phases/fit/last.ckpt").exists()
    assert not (folder / "DONE").exists()

    resumed = cli(*command, f"paths.run={folder}")
    assert resumed.code == 0
    assert ("resumed phase 'fit' after epoch 1" in resumed.out) == (not stop)
    assert (folder / "DONE").exists()
    assert weights(folder) == weights(tmp_path / "whole")
    for name in ("metrics.json", "identity.json"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


def _power_cut(*args: object, **kwargs: object) -> None:
    raise KeyError("power cut")


def test_a_run_folder_of_another_configuration_is_refused_with_the_keys_that_differ(cli, results, tmp_path):
    own = f"paths.run={tmp_path}/own"
    assert cli(*TINY, own).code == 0
    before = mtimes(tmp_path / "own")
    for change, difference in (
        ("model.hidden_dim=4", "model.hidden_dim: 5 -> 4"),
        ("seed=3", "seed: 0 -> 3"),
        ("training.optimizer.lr=0.1", "training.optimizer.lr: 0.001 -> 0.1"),
        ("visits.max_visits=3", "visits.max_visits: 50 -> 3"),
    ):
        refused = cli(*TINY, own, change)
        assert refused.code == 2
        assert refused.err.startswith("error: run folder ")
        assert difference in refused.err
        assert refused.err.count("\n") == 1
    assert mtimes(tmp_path / "own") == before


def test_paths_run_holds_a_single_run(cli, results, tmp_path):
    for several in (("seed=[0,1]",), ("baselines=floor",)):
        refused = cli(*TINY, *several, f"paths.run={tmp_path}/own")
        assert refused.code == 2
        assert "expected a single run" in refused.err


def test_identity_that_is_not_json_is_refused(tmp_path):
    (tmp_path / "identity.json").write_text("{")
    with pytest.raises(InputError, match=r"identity\.json is not JSON"), RunFolder(tmp_path, {"a": 1}).claim():
        pytest.fail("claimed")


# ---- phases that several runs share


def test_runs_that_differ_only_in_what_a_phase_ignores_train_it_once(cli, results):
    command = (
        *TINY,
        "model._target_=probes.Pretrained",
        "+training.phases.pretrain={monitor: val/loss, mode: min}",
    )
    folders = []
    for dropout, hidden in ((0.1, 5), (0.2, 5), (0.2, 4)):
        done = cli(*command, f"+model.dropout={dropout}", f"model.hidden_dim={hidden}")
        assert (done.code, done.err) == (0, "")
        folders.append({folder: mtimes(folder) for folder in (results / "phases").iterdir()})
    first, second, third = folders
    ((folder, files),) = first.items()
    lock = folder / ".lock"
    assert {path: time for path, time in second[folder].items() if path != lock} == {
        path: time for path, time in files.items() if path != lock
    }
    assert len(second) == 1
    assert len(third) == 2
    assert len(list(results.glob("toy/*/*/*/seed=0/DONE"))) == 3
    assert not list(results.glob("toy/*/*/*/seed=0/phases/pretrain"))


def test_a_shared_phase_that_an_earlier_run_resumed_is_not_said_to_be_resumed_again(cli, results):
    command = (
        *TINY,
        "model._target_=probes.Pretrained",
        "+training.phases.pretrain={monitor: val/loss, mode: min}",
    )
    stop = "trainer.callbacks=[{_target_: probes.StopAfter, epoch: 0}]"
    assert cli(*command, "+model.dropout=0.1", stop).code == 1
    assert "resumed phase 'pretrain'" in cli(*command, "+model.dropout=0.1").out
    assert "resumed" not in cli(*command, "+model.dropout=0.2").out


def test_a_shared_phase_is_named_by_everything_that_it_does_not_ignore(tmp_path):
    identity = {"model": {"width": 8, "dropout": 0.1}, "task": {"name": "copd"}, "seed": 0}
    phase = Phase("pretrain", (), ignores=frozenset({"model.dropout", "task"}))

    def folder(**changes: object) -> Path:
        return shared_phase_folder(tmp_path, phase, identity | changes)

    assert folder(model={"width": 8, "dropout": 0.9}) == folder(task={"name": "kidney"}) == folder()
    assert folder(model={"width": 9, "dropout": 0.1}) != folder()
    assert folder(seed=1) != folder()


# ---- several processes


def test_a_second_process_waits_and_then_finds_the_run_done(tmp_path):
    run = RunFolder(tmp_path / "run", {"seed": 0})
    claimed, go_on = threading.Event(), threading.Event()

    def work() -> None:
        with run.claim():
            claimed.set()
            go_on.wait()
            assert not run.done
            run.finish()

    worker = threading.Thread(target=work)
    worker.start()
    claimed.wait()
    threading.Timer(0.4, go_on.set).start()
    with run.claim():
        assert go_on.is_set()
        assert run.done
    worker.join()


def test_the_same_command_twice_at_once_trains_once(cli, start, results):
    """Two real processes, one of them ours. About 15 s: the other one imports torch."""
    command = ("model=meddiffusion", *SMOKE, "training.max_epochs=6")
    cli("model=logistic_regression", *SMOKE)  # a warm cache: the race is about the run
    other = start(*command)
    wait_until(lambda: any(results.glob("toy/*/meddiffusion*/*/seed=0/identity.json")))
    ours = cli(*command)
    out, err = other.communicate()
    assert (other.returncode, ours.code, err) == (0, 0, "")
    assert "waiting: another process is at work on" in ours.out
    assert "done before: meddiffusion" in ours.out
    assert "done before" not in out
    run = only_run(results, "meddiffusion*")
    assert len(list(run.glob("phases/fit/history/version_*"))) == 1


def test_a_sweep_goes_on_after_kill_9_without_redoing_finished_runs(cli, start, results):
    """About 25 s: a process that imports torch, and four runs long enough to be killed in the midst of one."""
    command = ("-m", "model=lstm,meddiffusion", "seed=0,1", *SMOKE, "training.max_epochs=12", "training.batch_size=32")
    process = start(*command)

    def runs(name: str) -> set[Path]:
        return {path.parents[name.count("/")] for path in results.glob(f"toy/*/*/*/seed=*/{name}")}

    def in_the_third_run() -> bool:
        assert process.poll() is None, process.communicate()
        return len(runs("DONE")) == 2 and len(runs("phases/fit/last.ckpt") - runs("DONE")) == 1

    wait_until(in_the_third_run)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = runs("DONE")
    assert len(finished) == 2
    before = {run: mtimes(run) for run in finished}
    (begun,) = runs("phases/fit/last.ckpt")

    again = cli(*command)
    assert (again.code, again.err) == (0, "")
    assert again.out.count("done before: ") == 2
    assert again.out.count("\ntraining ") == 2
    assert again.out.count("resumed phase 'fit'") == 1
    assert len(runs("DONE")) == 4
    assert {run: mtimes(run) for run in finished} == before
    assert json.loads((begun / "phases/fit/DONE").read_text())["resumed_from_epoch"] is not None
    table = again.out[again.out.rindex("PR-AUC x100") :]
    assert table.count("(2)") >= 2  # both models, two seeds each, finished before or not
