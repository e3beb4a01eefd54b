"""Two processes on the processor do what one does."""

from __future__ import annotations

import json
from pathlib import Path

import polars as pl
import pytest

DDP = ("trainer=ddp", "trainer.accelerator=cpu", "trainer.devices=2", "trainer.enable_progress_bar=false")
# An odd number of training samples, batches that do not divide it, and a second model after the first.
PROTOCOL = (
    "model=lstm",
    "baselines.models=[meddiffusion]",
    "data=toy",
    "seed=0",
    "training.max_epochs=2",
    "training.batch_size=64",
    "bootstrap.num_resamples=20",
)
KEYS = ["subject_id", "prediction_time", "boolean_value"]


def predictions(results: Path, model: str) -> pl.DataFrame:
    (path,) = results.glob(f"toy/heart_failure/{model} *".replace(" ", "-") + "/*/seed=0/predictions.parquet")
    return pl.read_parquet(path)


def test_two_processes_agree_with_each_other_and_with_one(cli, shell, results, tmp_path):
    """About 40 s: two processes import torch and train two models. They see each sample of a split once."""
    alone = cli(*PROTOCOL, "trainer.callbacks=[]", f"paths.results={tmp_path}/alone")
    assert (alone.code, alone.err) == (0, "")
    sums = tmp_path / "sums"
    sums.mkdir()
    both = shell(*PROTOCOL, *DDP, f"trainer.callbacks=[{{_target_: probes.Checksums, folder: '{sums}'}}]")
    assert both.code == 0, both.err
    assert both.out.count("\ntraining ") == 2  # only one rank speaks
    assert both.out.count("Report: ") == 1

    by_rank = {path.name: path.read_text() for path in sums.iterdir()}
    assert sorted(by_rank) == [f"{model}-rank{rank}of2" for model in ("LSTM", "MedDiffusion") for rank in (0, 1)]
    for model in ("LSTM", "MedDiffusion"):
        assert by_rank[f"{model}-rank0of2"] == by_rank[f"{model}-rank1of2"]

    for model in ("lstm", "meddiffusion"):
        one, two = predictions(tmp_path / "alone", model), predictions(results, model)
        assert two.select(KEYS).equals(one.select(KEYS))
        assert not two.select(KEYS[:2]).is_duplicated().any()
    # The diffusion draws other noise on each rank; the LSTM draws none, and its probabilities are those of one process.
    one, two = (predictions(folder, "lstm") for folder in (tmp_path / "alone", results))
    difference = (one["predicted_boolean_probability"] - two["predicted_boolean_probability"]).abs()
    assert difference.max() < 1e-4
    assert one["predicted_boolean_probability"].std() > 1e-3

    identities = [json.loads(path.read_text()) for path in tmp_path.glob("*/toy/*/lstm*/*/seed=0/identity.json")]
    assert len(identities) == 2
    assert identities[0] == identities[1]  # the number of devices is not part of what a run is

    # A command on one device finds what two devices made.
    again = cli(*PROTOCOL, "trainer.callbacks=[]")
    assert again.out.count("done before: ") == 2


def test_a_batch_with_fewer_samples_than_devices_is_refused(shell):
    """About 12 s: two processes import torch; what one of them says must end both."""
    end = shell(*PROTOCOL, *DDP, "trainer.callbacks=[]", "training.batch_size=1")
    assert end.code != 0
    assert "error: batch_size=1: it is the batch over all 2 devices" in end.err
    assert "Traceback" not in end.err


@pytest.mark.parametrize("strategy", ["ddp", "ddp_spawn"])
def test_every_ddp_strategy_is_refused_inside_a_sweep(cli, strategy):
    end = cli("-m", *PROTOCOL, *DDP, f"trainer.strategy={strategy}")
    assert end.code == 2
    assert end.err.startswith("error: trainer=ddp inside a sweep")
