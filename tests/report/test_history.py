"""Training curves put together over a run's interruptions."""

import pytest

from ehrlab.core.errors import InputError
from ehrlab.report.history import read_history

HEADER = "epoch,step,train/loss,val/loss,val/f1,val/pr_auc\n"


def write_log(run, phase, version, text):
    log = run / "phases" / phase / "history" / f"version_{version}" / "metrics.csv"
    log.parent.mkdir(parents=True)
    log.write_text(text)


def test_the_last_value_of_an_epoch_counts_in_the_order_of_version_numbers(tmp_path):
    write_log(tmp_path, "fit", 0, HEADER + "0,9,0.9,,,\n0,9,,0.8,0.1,0.2\n1,18,0.7,,,\n")
    write_log(tmp_path, "fit", 9, HEADER + "1,18,0.6,,,\n1,18,,0.5,0.3,0.4\n2,27,0.55,,,\n")
    write_log(tmp_path, "fit", 10, HEADER + "2,27,0.45,,,\n")
    assert read_history(tmp_path) == {
        "fit": {
            "train/loss": [(0, 0.9), (1, 0.6), (2, 0.45)],
            "val/loss": [(0, 0.8), (1, 0.5)],
            "val/f1": [(0, 0.1), (1, 0.3)],
            "val/pr_auc": [(0, 0.2), (1, 0.4)],
        }
    }


def test_phases_stay_apart_and_a_run_without_logs_has_none(tmp_path):
    write_log(tmp_path, "pretrain", 0, "epoch,train/loss\n0,2.0\n")
    write_log(tmp_path, "tune", 0, "epoch,train/loss\n0,1.0\n")
    write_log(tmp_path, "empty", 0, "")
    assert list(read_history(tmp_path)) == ["pretrain", "tune"]
    assert read_history(tmp_path / "elsewhere") == {}


def test_a_log_without_epochs_is_named(tmp_path):
    write_log(tmp_path, "fit", 0, "step,train/loss\n0,2.0\n")
    with pytest.raises(InputError, match=r"version_0/metrics\.csv.*epoch"):
        read_history(tmp_path)
