"""Preference tuning: the loss is the paper's, the machinery TRL's, the folder ours."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain, combinations
from pathlib import Path
from typing import Any

import polars as pl
import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from lightning.pytorch.loggers.logger import Logger
from torch import nn

pytest.importorskip("trl")

from trl.trainer.dpo_trainer import DataCollatorForPreference

from ehrlab.core.batch import Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.model import LossDict, PreferencePhase
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.sampler import BucketedBatches
from ehrlab.models.chiron import Chiron
from ehrlab.models.rltf import RLTF
from ehrlab.report.history import read_history
from ehrlab.run.main import _recipes
from ehrlab.run.store import shared_phase_folder
from ehrlab.training.lit import derived_seed
from ehrlab.training.pairs import FIELDS, Pairs, Sequences, preference_pairs
from ehrlab.training.preference import (
    CodeDPOTrainer,
    PairCollator,
    PairTrainer,
    build_trainer,
    last_checkpoint,
    preference_loss,
)
from ehrlab.training.recipe import Recipe
from ehrlab.training.runner import load_weights, run_phase
from probes import Stop, same_tensors
from sequences import GENERATOR_SPEC, TOKENS, tokens_of
from stub_data import TRAINER
from tiny import CONF
from token_data import TokenStub, token_stub

CPU = {"use_cpu": True, "bf16": False}
EPOCHS = 3
RECIPE = Recipe(
    optimizer=partial(torch.optim.AdamW, lr=0.003, weight_decay=0.0),
    scheduler=partial(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=5),
    scheduler_monitor="val/loss",
    batch_size=5,
    max_epochs=EPOCHS,
    monitor="val/loss",
    mode="min",
    patience=0,
    gradient_clip=1.0,
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenStub:
    """23 records to train with, 14 of them with a target."""
    return token_stub(tmp_path_factory.mktemp("tokens"), sizes=(23, 9, 4))


def new_model(objective: str = "preference", seed: int = 3, **tune: Any) -> RLTF:
    """A tiny CHIRon with dropout, as it comes out of pretraining: in training mode."""
    torch.manual_seed(seed)
    return RLTF(GENERATOR_SPEC, Chiron, tune, objective, size="tiny").train()


def tuning(model: RLTF) -> PreferencePhase:
    phase = model.phases()[-1]
    assert isinstance(phase, PreferencePhase)
    return phase


def pairs_of(data: ClinicalData, seed: int = 0) -> Pairs:
    records = Sequences.of(data.sequences("train").frame())
    return preference_pairs(records, TOKENS, num_sequences=100, positive_share=0.5, seed=seed)


def trainer_of(model: RLTF, pairs: Pairs, folder: Path, recipe: Recipe = RECIPE) -> Any:
    return build_trainer(model.lm, tuning(model), pairs, recipe, folder, 7, CPU)


def run(
    model: RLTF, data: ClinicalData, folder: Path, *loggers: Logger, recipe: Recipe = RECIPE, seed: int = 1
) -> dict[str, Any]:
    return run_phase(model, tuning(model), data, recipe, TRAINER, folder, seed=seed, loggers=loggers)


def tensors(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


# ---- the loss
def test_loss_of_two_pairs_by_hand() -> None:
    """log-ratios of C: .5, -2; of R: -1, 1. D = 1.5, -3; p = 0, 2; beta = .2, lambda = .3."""
    chosen, rejected = torch.tensor([0.5, -2.0]), torch.tensor([-1.0, 1.0])

    def minus_log_sigmoid(x: float) -> float:
        return math.log(1 + math.exp(-x))

    first = minus_log_sigmoid(0.2 * 1.5)
    outside = (first + minus_log_sigmoid(0.2 * -3.0)) / 2 + 0.3 * (0 + 2) / 2
    inside = (first + minus_log_sigmoid(0.2 * (-3.0 - 0.3 * 2))) / 2
    assert preference_loss(chosen, rejected, 0.2, 0.3, "outside").item() == pytest.approx(outside, abs=1e-6)
    assert preference_loss(chosen, rejected, 0.2, 0.3, "inside").item() == pytest.approx(inside, abs=1e-6)


@pytest.mark.parametrize("mode", ["outside", "inside"])
def test_losing_likelihood_of_the_record_costs_more_the_larger_lambda(mode: str) -> None:
    """The margin stays: only the positive term sees that both fall. A record that gains likelihood has no term."""
    fell, rose = torch.tensor([-1.5]), torch.tensor([1.5])
    losses = [preference_loss(fell, fell - 1, 0.1, lambda_, mode).item() for lambda_ in (0.0, 0.1, 5.0)]
    assert losses == sorted(losses)
    assert len(set(losses)) == 3
    assert preference_loss(rose, rose - 1, 0.1, 5.0, mode) == preference_loss(rose, rose - 1, 0.1, 0.0, mode)


@pytest.mark.parametrize("mode", ["outside", "inside"])
@pytest.mark.parametrize("lora_rank", [0, 2])
def test_loss_is_ln_2_where_the_policy_is_the_reference(
    mode: str, lora_rank: int, data: TokenStub, tmp_path: Path
) -> None:
    """Although the model has dropout and is trained."""
    model = new_model(dpop_mode=mode, lora_rank=lora_rank, lambda_=3.0)
    trainer = trainer_of(model, pairs_of(data), tmp_path)
    for inputs in trainer.get_train_dataloader():
        trainer.model.train()
        assert trainer.compute_loss(trainer.model, inputs).item() == pytest.approx(math.log(2), abs=1e-5)


@pytest.mark.parametrize("lora_rank", [0, 2])
def test_without_the_positive_term_every_step_is_stock_trl_to_the_last_digit(
    lora_rank: int, data: TokenStub, tmp_path: Path
) -> None:
    def losses(kind: type[PairTrainer]) -> tuple[list[float], dict[str, torch.Tensor]]:
        torch.manual_seed(3)
        model = RLTF(
            GENERATOR_SPEC,
            Chiron,
            {"lambda_": 0.0, "lora_rank": lora_rank},
            size="tiny",
            dropout=0.0,
            context_dropout=0.0,
        )
        trainer = trainer_of(model, pairs_of(data), tmp_path)
        trainer.__class__ = kind
        found: list[float] = []
        step = trainer.training_step
        trainer.training_step = lambda *args: found.append(float(loss := step(*args))) or loss
        trainer.train()
        return found, tensors(trainer.model)

    (ours, our_weights), (stock, stock_weights) = losses(CodeDPOTrainer), losses(PairTrainer)
    assert PairTrainer._compute_loss is PairTrainer.__mro__[2]._compute_loss  # TRL's own
    assert len(ours) == EPOCHS * math.ceil(len(pairs_of(data)) / RECIPE.batch_size)
    assert ours == stock
    assert len(set(ours)) == len(ours)
    assert same_tensors(our_weights, stock_weights)


# ---- what the language model is given
def test_reference_is_the_generators_log_probability_of_each_continuation(data: TokenStub, tmp_path: Path) -> None:
    """log P(C | prompt) = log P(record) - log P(prompt): visits, ages and places reach the model, the prompt does not
    count."""
    model, pairs = new_model(), pairs_of(data)
    collator = trainer_of(model, pairs, tmp_path).data_collator
    model.eval()
    rows = torch.arange(len(pairs)).numpy()
    for side, found in zip((pairs.chosen, pairs.rejected), collator.reference.unbind(1)):
        mask, columns = side.padded(rows, int(side.lengths.max()))
        whole = Tokens(mask=torch.from_numpy(mask), **{k: torch.from_numpy(v) for k, v in columns.items()})
        prompt_mask = whole.mask & (torch.arange(mask.shape[1]) < torch.from_numpy(pairs.prompt_length)[:, None])
        prompt = replace(whole, mask=prompt_mask)
        with torch.no_grad():
            torch.testing.assert_close(found, model.log_prob(whole) - model.log_prob(prompt), atol=1e-4, rtol=1e-4)
            unplaced = replace(whole, place=torch.zeros_like(whole.place))
            assert not torch.allclose(model.log_prob(unplaced), model.log_prob(whole), atol=1e-3)


def test_batches_are_those_of_trl_with_visit_age_and_place_beside(data: TokenStub) -> None:
    pairs = pairs_of(data)
    numbers = [3, 0, len(pairs) - 1]
    rows = []
    for i in numbers:
        a, b, n = pairs.chosen, pairs.rejected, pairs.prompt_length[i]
        chosen, rejected = (side.ids[side.offsets[i] : side.offsets[i + 1]].tolist() for side in (a, b))
        rows.append({"prompt_ids": chosen[:n], "chosen_ids": chosen[n:], "rejected_ids": rejected[n:]})
    theirs, ours = DataCollatorForPreference(pad_token_id=0)(rows), PairCollator(pairs)(numbers)
    assert set(ours) - set(theirs) == set(FIELDS[1:])
    assert all(torch.equal(ours[name], value) for name, value in theirs.items())
    assert torch.equal(ours["visit"][0][:5], torch.from_numpy(pairs.chosen.visit[pairs.chosen.offsets[3] :][:5]))
    assert set(PairCollator(pairs, fields=("ids",))(numbers)) == set(theirs)


def test_tuning_teaches_which_of_both_is_the_record(data: TokenStub, tmp_path: Path) -> None:
    model = new_model()
    before = tensors(model)
    record = run(model, data, tmp_path, recipe=replace(RECIPE, max_epochs=15))
    log = pl.read_csv(tmp_path / "history" / "version_0" / "metrics.csv")
    assert log["train/rewards/accuracies"][-1] > 0.95
    assert log["train/loss"][-1] < 0.5 < log["train/loss"][0] < 0.8
    assert not same_tensors(before, model.state_dict())
    assert (record["pairs"], record["pairs_with_target"]) == (len(pairs_of(data)), int(pairs_of(data).positive.sum()))


# ---- LoRA
def test_adapters_leave_every_base_weight_as_it_is(data: TokenStub, tmp_path: Path) -> None:
    model = new_model(lora_rank=2)
    before = tensors(model)
    trainer = trainer_of(model, pairs_of(data), tmp_path)
    trainer.train()
    assert any(p.abs().sum() > 0 for name, p in trainer.model.named_parameters() if "lora_B" in name)
    trainer.model.unload()
    assert same_tensors(before, model.state_dict())


def test_merged_adapters_change_linear_layers_by_their_rank_and_nothing_else(data: TokenStub, tmp_path: Path) -> None:
    model = new_model(lora_rank=2)
    before = tensors(model)
    run(model, data, tmp_path)
    after = model.state_dict()
    assert list(after) == list(before)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert moved
    for name in moved:
        owner = model.get_submodule(name.rpartition(".")[0])
        assert type(owner) is nn.Linear
        assert owner is not model.lm.get_output_embeddings()
        assert torch.linalg.matrix_rank(after[name] - before[name], atol=1e-5) <= 2
    assert all(p.requires_grad for p in model.parameters())


# ---- the SFT control
def test_sft_sees_the_records_of_rltf_and_raises_their_likelihood(data: TokenStub, tmp_path: Path) -> None:
    model = new_model("likelihood")
    seen: list[torch.Tensor] = []

    def likelihood(batch: Any) -> LossDict:
        assert batch.tokens is not None
        seen.extend(row[real] for row, real in zip(batch.tokens.ids, batch.tokens.mask))
        return model.loss(batch)

    phase = replace(tuning(model), likelihood=likelihood)
    run_phase(model, phase, data, RECIPE, TRAINER, tmp_path, seed=1)
    expected = pairs_of(data, derived_seed(1, "tune", "pairs")).chosen
    records = [expected.ids[a:b].tolist() for a, b in zip(expected.offsets[:-1], expected.offsets[1:])]
    assert sorted(row.tolist() for row in seen[: len(records)]) == sorted(records)
    losses = [value for _, value in read_history_of(tmp_path)["train/loss"]]
    assert losses == sorted(losses, reverse=True)
    assert len(losses) == EPOCHS


def read_history_of(folder: Path) -> dict[str, list[tuple[int, float]]]:
    root = folder.parent / f"{folder.name}-run"
    (root / "phases").mkdir(parents=True, exist_ok=True)
    (root / "phases" / "tune").symlink_to(folder)
    return read_history(root)["tune"]


# ---- the batches
@pytest.mark.parametrize("objective", ["preference", "likelihood"])
def test_each_epoch_has_an_order_of_its_own_that_seed_and_epoch_decide(
    objective: str, data: TokenStub, tmp_path: Path
) -> None:
    """Also where the pairs do not fill the last batch: every pair once an epoch."""
    runs: list[list[list[int]]] = []
    for folder in ("first", "again"):
        pairs = pairs_of(data)
        trainer = trainer_of(new_model(objective), pairs, tmp_path / folder)
        collate, seen = trainer.data_collator, []
        trainer.data_collator = lambda numbers, collate=collate, seen=seen: seen.append(numbers) or collate(numbers)
        trainer.train()
        runs.append(seen)
    first, again = runs
    num_batches = math.ceil(len(pairs) / RECIPE.batch_size)
    epochs = [first[i : i + num_batches] for i in range(0, len(first), num_batches)]
    assert len(epochs) == EPOCHS
    assert all(sorted(chain(*epoch)) == list(range(len(pairs))) for epoch in epochs)
    assert all(one != other for one, other in combinations(epochs, 2))
    batches = BucketedBatches(pairs.lengths, RECIPE.batch_size, shuffle=True, seed=7)
    for number, epoch in enumerate(epochs):
        batches.set_epoch(number)
        assert epoch == list(batches)
    assert first == again


# ---- the folder
class StopAt(Logger):
    """The power cut: when epoch `epoch` (from 0) is logged, before its checkpoint is written."""

    name, version = "stop", 0

    def __init__(self, epoch: int) -> None:
        super().__init__()
        self.epoch = epoch

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        if metrics["epoch"] == self.epoch:
            raise Stop


CASES: dict[str, Callable[[], RLTF]] = {
    "full": lambda: new_model(lambda_=2.0),
    "adapters": lambda: new_model(lora_rank=2, dpop_mode="inside"),
    "sft": lambda: new_model("likelihood"),  # its dropout draws noise
    "sft adapters": lambda: new_model("likelihood", lora_rank=2),
}


@pytest.mark.parametrize(("case", "epoch"), [("full", 0), *((case, 1) for case in CASES)])
def test_a_phase_that_was_killed_ends_with_the_weights_of_one_that_was_not(
    case: str, epoch: int, data: TokenStub, tmp_path: Path
) -> None:
    """Bit by bit. A kill in epoch 0 leaves nothing to resume from; one in epoch 1 resumes after epoch 0."""
    whole, broken, resumed = (CASES[case]() for _ in range(3))
    assert run(whole, data, tmp_path / "whole")["resumed_from_epoch"] is None
    folder = tmp_path / "killed"
    with pytest.raises(Stop):
        run(broken, data, folder, StopAt(epoch))
    assert not (folder / "DONE").exists()
    record = run(resumed, data, folder)
    assert record["resumed_from_epoch"] == (None if epoch == 0 else 0)
    assert same_tensors(whole.state_dict(), resumed.state_dict())
    curves = [read_history_of(tmp_path / name)["train/loss"] for name in ("whole", "killed")]
    assert curves[0] == curves[1]


def test_a_finished_phase_is_loaded_and_its_checkpoints_are_gone(data: TokenStub, tmp_path: Path) -> None:
    model = new_model()
    run(model, data, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["DONE", "history", "model.safetensors"]
    other = new_model(seed=4)
    assert run(other, data, tmp_path)["reused"]
    assert same_tensors(model.state_dict(), other.state_dict())


def test_the_model_is_as_it_was_but_for_its_weights(data: TokenStub, tmp_path: Path) -> None:
    """It generates and is pretrained as before: no wrapper of TRL, no adapter, no dropout switched off."""
    model = new_model()
    types = [type(module) for module in model.modules()]
    run(model, data, tmp_path)
    assert [type(module) for module in model.modules()] == types
    assert "forward" not in vars(model.lm)
    fresh = new_model()
    load_weights(fresh, tmp_path / "model.safetensors")
    prompt = tokens_of([[1, 5, 3, 9], [1]])
    found = [m.eval().generate(prompt, 6, torch.Generator().manual_seed(0)).ids for m in (model, fresh)]
    assert torch.equal(*found)
    assert [m.p for m in model.modules() if isinstance(m, nn.Dropout)] == [
        m.p for m in fresh.modules() if isinstance(m, nn.Dropout)
    ]


def test_a_checkpoint_holds_no_record_no_pair_and_no_probability_of_one(
    data: TokenStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("HF_DATASETS_CACHE", str(cache))
    monkeypatch.setenv("TMPDIR", str(cache))
    with pytest.raises(Stop):
        run(new_model(), data, tmp_path / "phase", StopAt(1))
    (checkpoint,) = (tmp_path / "phase" / "checkpoints").iterdir()
    known = {
        "WHOLE.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "optimizer.pt",
        "rng_state.pth",
        "scheduler.pt",
        "tokenizer.json",
        "tokenizer_config.json",
        "trainer_state.json",
    }
    assert {path.name for path in checkpoint.iterdir()} == known
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    assert len(state["log_history"]) == 1  # means of an epoch
    assert not list(cache.rglob("*"))
    torch.load(checkpoint / "optimizer.pt", weights_only=True)


def test_what_a_kill_left_half_written_is_not_resumed_from(tmp_path: Path) -> None:
    half = tmp_path / "checkpoint-9"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert last_checkpoint(tmp_path) is None
    assert not half.exists()


def test_a_damaged_checkpoint_is_refused(data: TokenStub, tmp_path: Path) -> None:
    with pytest.raises(Stop):
        run(new_model(), data, tmp_path, StopAt(1))
    (checkpoint,) = (tmp_path / "checkpoints").iterdir()
    weights = checkpoint / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-3] ^= 1
    weights.write_bytes(content)
    with pytest.raises(InputError, match=r"damaged file \(model\.safetensors\)\. Delete the folder"):
        run(new_model(), data, tmp_path)


# ---- one base for all targets
def identity(task: str, model: Mapping[str, Any], phases: Mapping[str, Any]) -> dict[str, Any]:
    return {"model": model, "training": {"phases": phases}, "task": {"name": task}, "data": task, "seed": 0}


def test_a_second_target_finds_the_pretrained_base(data: TokenStub, tmp_path: Path) -> None:
    """And so do the SFT control and the base alone; a base of another size does not."""
    base = {"size": "tiny", "base": {}, "_target_": "RLTF"}
    rltf = {**base, "objective": "preference", "tune": {"beta": 0.1}}
    sft = {**base, "objective": "likelihood", "tune": {"beta": 0.1, "lora_rank": 4}}
    runs = [
        identity("shock", rltf, {"tune": {"batch_size": 8}}),
        identity("septicemia", rltf, {"tune": {"batch_size": 4}}),
        identity("shock", sft, {}),
        identity("shock", {"size": "tiny", "_target_": "Chiron"}, {"tune": {"batch_size": 8}}),
    ]
    alone = Chiron(GENERATOR_SPEC, size="tiny")
    models = [new_model(), new_model(seed=4, beta=0.3), new_model("likelihood", seed=5), alone]
    weights = []
    for model, content, reused in zip(models, runs, (False, True, True, True)):
        pretrain, *tune = model.phases()
        assert not any(phase.ignores for phase in tune)
        folder = shared_phase_folder(tmp_path, pretrain, content)
        record = run_phase(model, pretrain, data, replace(RECIPE, max_epochs=1), TRAINER, folder, seed=0)
        assert record.get("reused", False) == reused
        weights.append(tensors(model))
    assert same_tensors(weights[0], weights[1])
    assert same_tensors(weights[0], weights[2])
    assert same_tensors(weights[0], weights[3])
    larger = identity("shock", {**rltf, "size": "small"}, {})
    assert shared_phase_folder(tmp_path, models[0].phases()[0], larger) != folder


def test_weights_of_the_base_alone_fit(tmp_path: Path) -> None:
    """model=chiron and model=rltf name the same tensors alike."""
    assert list(Chiron(GENERATOR_SPEC, size="tiny").state_dict()) == list(new_model().state_dict())


# ---- the configs
def test_configs_state_the_papers_numbers() -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        rltf, sft = (compose("config", [f"model={name}"]) for name in ("rltf", "sft"))
    [recipe], [pretrain] = (_recipes(rltf, phase).values() for phase in build(rltf.model).phases()[::-1])
    (group,) = recipe.optimizer([nn.Parameter(torch.zeros(1))]).param_groups
    assert (recipe.batch_size, recipe.max_epochs, group["lr"], group["weight_decay"]) == (8, 6, 1e-5, 0)
    assert (recipe.gradient_clip, pretrain.batch_size) == (1.0, rltf.training.batch_size)
    phase = tuning(build(rltf.model))
    assert (phase.num_sequences, phase.positive_share, phase.lambda_, phase.dpop_mode) == (10_000, 0.5, 0.1, "outside")
    assert phase.likelihood is None
    control = tuning(build(sft.model))
    assert control.likelihood is not None
    assert (control.num_sequences, control.positive_share) == (10_000, 0.5)


def build(config: Any) -> RLTF:
    model = instantiate(config, _partial_=True, _convert_="all")(spec=GENERATOR_SPEC, size="tiny")
    assert isinstance(model, RLTF)
    return model


# ---- bad input
def refuse(model: RLTF, data: ClinicalData, folder: Path, match: str, **hardware: Any) -> None:
    with pytest.raises(InputError, match=match):
        run_phase(model, tuning(model), data, RECIPE, partial(TRAINER, **hardware), folder, seed=0)


def test_a_model_of_another_vocabulary_or_a_shorter_context_is_refused(data: TokenStub, tmp_path: Path) -> None:
    for change, found in (({"num_tokens": 19}, "17 and 28"), ({"max_tokens": 40}, "17 and 28")):
        other = replace(data, spec=replace(GENERATOR_SPEC, tokens=replace(TOKENS, **change)))
        refuse(new_model(), other, tmp_path, rf"found {found}.*train it on these")


def test_settings_that_do_not_exist_are_refused(data: TokenStub, tmp_path: Path) -> None:
    """At construction, before anything is trained; but for the hardware's."""
    for setting, value in (
        ("num_sequences", 0),
        ("positive_share", 0.0),
        ("positive_share", 1.5),
        ("beta", 0.0),
        ("lambda_", -0.1),
        ("dpop_mode", "beside"),
        ("lora_rank", -1),
    ):
        with pytest.raises(InputError, match=rf"model\.tune\.{setting}: expected .*, found {value}"):
            new_model(**{setting: value})
    with pytest.raises(InputError, match=r"model\.objective: expected preference or likelihood"):
        new_model("reward")
    refuse(new_model(), data, tmp_path, r"trainer\.precision=64-true", precision="64-true")


def test_several_devices_are_refused(data: TokenStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr("ehrlab.training.runner.agreed", lambda decision: decision)
    refuse(new_model(), data, tmp_path, "runs on one device, found 2.*trainer=gpu")


def test_without_trl_the_remedy_is_named(data: TokenStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "ehrlab.training.preference")
    monkeypatch.setitem(sys.modules, "trl", None)
    refuse(new_model(), data, tmp_path, r"packages, found no trl\. Install them: pip install ")


def test_a_loss_that_is_not_finite_ends_the_phase(data: TokenStub, tmp_path: Path) -> None:
    model = new_model()
    with torch.no_grad():
        model.lm.model.norm.weight.fill_(torch.nan)
    with pytest.raises(FloatingPointError, match=r"epoch 0.*training\.phases\.tune\.optimizer\.lr"):
        run(model, data, tmp_path)
    assert not (tmp_path / "DONE").exists()


def test_fewer_records_than_asked_for_are_said(
    data: TokenStub, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level("INFO", logger="ehrlab"):
        run(new_model(), data, tmp_path, recipe=replace(RECIPE, max_epochs=1))
    assert "10,000 were asked for" in caplog.text
