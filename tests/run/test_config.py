"""Every file below conf/ and experiments/ composes, and says exactly what the code that it names wants to know."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir
from hydra.errors import ConfigCompositionException, InstantiationException, MissingConfigException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf

from ehrlab.core.errors import InputError
from ehrlab.core.model import EstimatorPhase, Phase
from ehrlab.run.compose import BACKBONE, row_name
from ehrlab.run.main import _recipes, check_overrides_are_read

REPOSITORY = Path(__file__).parents[2]
CONF = REPOSITORY / "conf"
NEEDS = {
    "joblib": "hydra_plugins.hydra_joblib_launcher",
    "ray": "hydra_plugins.hydra_ray_launcher",
    "slurm": "hydra_plugins.hydra_submitit_launcher",
}


@pytest.fixture(autouse=True)
def _repository(monkeypatch):
    monkeypatch.chdir(REPOSITORY)  # experiments/ is found from where the command is given


def config(*overrides: str) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", list(overrides))


def plain(cfg: Any) -> Any:
    return OmegaConf.to_container(cfg, resolve=True)


def files(group: str, root: Path = CONF) -> list[str]:
    return sorted(path.stem for path in (root / group).glob("*.yaml"))


EXPERIMENTS = sorted(
    str(path.relative_to(REPOSITORY / "experiments").with_suffix(""))
    for path in (REPOSITORY / "experiments").rglob("*.yaml")
)
GROUPS = (
    *("model", "model/augmenter", "model/augmenter/denoiser", "variant", "baselines"),
    *("data", "task", "training", "trainer", "logger", "launcher"),
)
CHOICES = [
    *(f"{group}={name}" for group in GROUPS for name in files(group)),
    *(f"experiments={name}" for name in EXPERIMENTS),
]


@pytest.fixture(params=CHOICES)
def composed(request: pytest.FixtureRequest) -> DictConfig:
    group, name = request.param.split("=")
    if group == "launcher" and (plugin := NEEDS.get(name)) and not _installed(plugin):
        pytest.skip(f"{plugin} is not installed (an extra)")
    return config(request.param)


def _installed(plugin: str) -> bool:
    try:
        return find_spec(plugin) is not None
    except ModuleNotFoundError:
        return False


def nodes(value: Any, path: str = "") -> Iterator[tuple[str, dict[str, Any]]]:
    """Every node with a _target_, with its dotted path."""
    if isinstance(value, dict):
        if "_target_" in value:
            yield path, value
        for key, item in value.items():
            yield from nodes(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, list):
        for i, item in enumerate(value):
            yield from nodes(item, f"{path}[{i}]")


# What the code gives to a model's parts: the sizes of the data and of the backbone.
GIVEN = {"spec", "embed_dim", "hidden_dim"}


def test_every_choice_composes_and_its_targets_know_every_key(composed: DictConfig) -> None:
    targets = list(nodes(plain(composed)))
    assert {path.split(".")[0] for path, _ in targets} >= {"model", "data", "task", "training", "trainer"}
    for path, node in targets:
        settings = {key: value for key, value in node.items() if key not in ("_target_", "_partial_", "_convert_")}
        if path == "training":
            del settings["phases"]  # departures of single phases: merged into the rest before the recipe is made
        signature = inspect.signature(get_object(node["_target_"]))
        given_later = node.get("_partial_") or path == "model"
        try:
            (signature.bind_partial if given_later else signature.bind)(**settings)
        except TypeError as error:
            pytest.fail(f"{path}: {node['_target_']} {error}")


def test_a_model_config_names_every_setting_of_its_code(composed: DictConfig) -> None:
    """Else a number that decides a result would stand in no config and in no results folder.

    What a target does not know itself, it may pass on to those below it.
    """
    passed_on: dict[str, set[str]] = {}
    for path, node in nodes(plain(composed.model), "model"):
        parameters = inspect.signature(get_object(node["_target_"])).parameters.values()
        named = {p.name for p in parameters if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        if any(p.kind is p.VAR_KEYWORD for p in parameters):
            passed_on[path] = set(node) - named
        above = set().union(*(keys for outer, keys in passed_on.items() if path.startswith(f"{outer}.")))
        assert named - GIVEN <= set(node) | above, f"{path}: {node['_target_']}"


@pytest.mark.parametrize("variant", files("variant"))
def test_variants_change_meddiffusion_and_nothing_else(variant: str) -> None:
    changed, whole = plain(config(f"variant={variant}")), plain(config())
    if variant != "none":
        assert changed.pop("model") != whole.pop("model")
    assert changed == whole


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_experiments_are_declared_as_sweeps(experiment: str) -> None:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        whole = compose("config", [f"experiments={experiment}"], return_hydra_config=True)
    assert whole.experiment.name
    assert whole.hydra.mode.name == "MULTIRUN"
    assert whole.hydra.sweeper.params


OWN = {"model", "training", "baselines"}
"""What the rows of an exhibit may differ in."""


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_rows_of_an_experiment_read_the_same_records(experiment: str) -> None:
    """Whatever its model prefers: cohort, split, lengths, seeds and measures are those of the table."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        params = compose("config", [f"experiments={experiment}"], return_hydra_config=True).hydra.sweeper.params
    rows = [
        {
            key: value
            for key, value in plain(config(f"experiments={experiment}", f"model={model}")).items()
            if key not in OWN
        }
        for model in str(params.get("model", "")).split(",")
        if model
    ]
    assert all(row == rows[0] for row in rows)


# ---- overrides that the documents promise


def test_overrides_of_the_augmenter_and_the_backbone() -> None:
    assert config("model.augmenter.condition=equal").model.augmenter.condition == "equal"
    assert config("model/augmenter=none").model.augmenter._target_ == "ehrlab.augment.none.no_augmenter"
    assert config("model/augmenter/denoiser=unet").model.augmenter.denoiser._target_ == "ehrlab.nn.unet.UNet"
    other = config("model@model.backbone=retain").model
    assert other.backbone._target_ == "ehrlab.models.retain.Retain"
    assert other.backbone._partial_
    assert "use_time" not in other.backbone
    assert config().model.backbone.use_time


def test_ablations_are_those_of_the_papers_table_3() -> None:
    assert config("variant=as1").model.augmenter.condition == "visit_only"
    assert config("variant=as2").model.augmenter.condition == "equal"
    assert config("variant=as3").model.lambda_s == 0


def test_trinetx_has_a_task_of_its_own_and_the_command_line_the_last_word() -> None:
    assert config("data=trinetx").task.name == "kidney"
    for order in (["data=trinetx", "task=copd"], ["task=copd", "data=trinetx"]):
        chosen = config(*order)
        assert chosen.task.name == "copd"
        assert chosen.data.simulation.preset == "copd"
    assert config("data=mimic").task.name == "heart_failure"


@pytest.mark.parametrize("task", ["kidney", "copd", "amnesia"])
def test_first_diagnosis_tasks_differ_in_their_codes_and_in_nothing_else(task: str) -> None:
    other, heart = plain(config(f"task={task}").task), plain(config("task=heart_failure").task)
    assert {key for key in heart if heart[key] != other[key]} == {"name", "icd9", "icd10"}
    assert other.keys() == heart.keys()


def test_the_protocol_is_the_papers() -> None:
    """MedDiffusion, sec. 4.1."""
    cfg = config()
    assert (cfg.training.optimizer._target_, cfg.training.optimizer.lr, cfg.training.optimizer.weight_decay) == (
        "torch.optim.Adam",
        1e-3,
        1e-3,
    )
    assert (cfg.training.scheduler.patience, cfg.training.scheduler.factor) == (5, 0.2)
    assert (cfg.training.monitor, cfg.training.mode) == ("val/f1", "max")
    assert (cfg.split.train, cfg.split.tuning, cfg.split.held_out) == (0.75, 0.10, 0.15)
    assert len(cfg.seed) == 5
    assert (cfg.model.lambda_s, cfg.model.lambda_d) == (0.5, 0.1)


@pytest.mark.parametrize(
    "override",
    ["model.lamda_s=1", "training.batchsize=8", "task.lead_day=1", "visits.max_visit=2", "path.results=x", "sed=1"],
)
def test_a_misspelt_key_fails(override: str) -> None:
    with pytest.raises(ConfigCompositionException):
        config(override)


@pytest.mark.parametrize("baselines", files("baselines"))
def test_models_of_a_baseline_set_have_files_and_pending_ones_have_none(baselines: str) -> None:
    chosen = config(f"baselines={baselines}").baselines
    for listed in chosen.models:
        name, _, variant = listed.partition(" ")
        assert name in {*files("model"), BACKBONE}
        assert not variant or (CONF / "variant" / f"{variant}.yaml").is_file()
    assert not set(chosen.get("pending", [])) & set(chosen.models)


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_the_matrix_of_an_experiment_has_no_missing_value(name: str) -> None:
    """Hydra's sweeper asks for all of them, also for those that the command line gives."""
    with initialize_config_dir(str(CONF), version_base="1.3"):
        found = compose("config", [f"experiments={name}"], return_hydra_config=True)
    assert not OmegaConf.missing_keys(found.hydra.sweeper)


# ---- names of rows


def test_a_row_says_what_was_changed_by_hand_in_the_model_and_its_protocol_only() -> None:
    overrides = ["data=toy", "seed=[0,1]", "trainer=gpu", "model.lambda_s=1", "training.max_epochs=2", "task=copd"]
    assert row_name("meddiffusion", "as3", overrides) == "meddiffusion as3 lambda_s=1 training.max_epochs=2"
    assert row_name("lstm", "none", ["trainer.max_epochs=1", "trainer.devices=2"]) == "lstm trainer.max_epochs=1"


@pytest.mark.parametrize(
    ("override", "remedy"),
    [
        ("training.max_epochs=2", "training.phases.NAME.max_epochs; NAME is stay or finetune"),
        ("trainer.max_epochs=2", "training.phases.NAME.max_epochs; NAME is stay or finetune"),
        ("training.batch_size=8", "training.phases.NAME.batch_size; NAME is stay or finetune"),
        ("+training.grid={batch_size: [8]}", "training.phases.NAME.grid; NAME is finetune"),
        ("+training.phases.fitt.patience=1", "the model has no phase 'fitt'. Its phases: stay, finetune, fit"),
    ],
)
def test_a_number_that_every_phase_replaces_is_refused(override: str, remedy: str) -> None:
    of_stays = Phase("stay", (), select="loss")
    phases = [of_stays, Phase("finetune", ()), EstimatorPhase("fit", lambda train, tuning: {})]
    given = ["training=medhmp", override]
    with pytest.raises(InputError, match=remedy):
        check_overrides_are_read(given, config(*given), phases)
    if "trainer" not in override and "fitt" not in override:
        check_overrides_are_read(given, config(*given), [*phases, Phase("another", ())])
    check_overrides_are_read(["training.gradient_clip=2"], config(*given), phases)


@pytest.mark.parametrize("override", ["training.monitor=val/loss", "training.mode=min", "training.max_epochs=0"])
def test_a_selection_of_the_worst_epoch_is_refused(override: str) -> None:
    with pytest.raises(InstantiationException, match=r"training\."):  # the command line prints what is in it
        _recipes(config(override), Phase("fit", ()))
    assert _recipes(config("training.monitor=val/loss", "training.mode=min"), Phase("fit", ()))


def test_a_misspelt_experiment_is_refused() -> None:
    with pytest.raises(MissingConfigException):
        config("experiments=meddiffusion/tabel3")


def test_rivals_of_medhmp_have_its_protocol() -> None:
    for rivals in ("stay6", "readmission8", "notes"):
        for name in config(f"baselines={rivals}").baselines.models:
            assert plain(config(f"model={name}").training) == plain(config("model=medhmp").training)


def test_epochs_told_to_a_trainer_whose_training_has_its_own_are_refused() -> None:
    phases, given = [Phase("fit", ())], ["training=medfuse", "trainer.max_epochs=2"]
    with pytest.raises(InputError, match=r"trainer\.max_epochs: .*Set training\.max_epochs"):
        check_overrides_are_read(given, config(*given), phases)
    check_overrides_are_read(["trainer.max_epochs=2"], config("trainer.max_epochs=2"), phases)
    check_overrides_are_read(given, config(*given), [EstimatorPhase("fit", lambda train, tuning: {})])


def test_a_grid_is_one_recipe_for_each_of_its_points() -> None:
    cfg = config("+training.phases.fit.grid={optimizer.lr: [1e-3, 1e-4], batch_size: [16, 64]}")
    recipes = _recipes(cfg, Phase("fit", ()))
    assert list(recipes) == [f"optimizer.lr={lr},batch_size={size}" for lr in (0.001, 0.0001) for size in (16, 64)]
    last = recipes["optimizer.lr=0.0001,batch_size=64"]
    assert (last.batch_size, last.optimizer.keywords["lr"]) == (64, 1e-4)  # type: ignore[attr-defined]
    assert last.monitor == config().training.monitor
    assert list(_recipes(cfg, Phase("generator", ()))) == [""]
    of_all = config("+training.grid={optimizer.lr: [1e-3, 1e-4]}", "+training.phases.fit.grid={batch_size: [16, 64]}")
    assert list(_recipes(of_all, Phase("fit", ()))) == ["batch_size=16", "batch_size=64"]
    assert list(_recipes(of_all, Phase("other", ()))) == ["optimizer.lr=0.001", "optimizer.lr=0.0001"]
    assert list(_recipes(of_all, Phase("generator", (), select="loss"))) == [""]  # learned without labels


@pytest.mark.parametrize(
    "grid", ["{optimizer.rate: [1]}", "{optimizer.lr: 1e-3}", "{optimizer.lr: []}", "{mode: [min]}"]
)
def test_a_grid_of_something_else_is_refused(grid: str) -> None:
    with pytest.raises(InputError, match=r"grid of phase 'fit': expected lists of values.*found"):
        _recipes(config(f"+training.phases.fit.grid={grid}"), Phase("fit", ()))


def test_a_grid_is_for_phases_that_a_score_selects() -> None:
    cfg = config("+training.phases.fit.grid={batch_size: [16, 64]}")
    assert list(_recipes(cfg, EstimatorPhase("fit", lambda train, tuning: {}))) == [""]  # it searches itself
    with pytest.raises(InputError, match=r"phases\.fit\.grid: expected a phase whose epochs are selected"):
        _recipes(cfg, Phase("fit", (), select="last"))
    last = config("+training.grid={batch_size: [16, 64]}")
    assert list(_recipes(last, Phase("fit", (), select="last"))) == [""]


def test_epochs_may_be_told_to_the_trainer_or_to_the_training() -> None:
    assert config().training.max_epochs == 30
    assert config("trainer.max_epochs=3").training.max_epochs == 3
    assert config("trainer.max_epochs=3", "training.max_epochs=5").training.max_epochs == 5
    of_a_phase = config("trainer.max_epochs=3", "+training.phases.generator.batch_size=2")
    assert [recipe.max_epochs for recipe in _recipes(of_a_phase, Phase("generator", ())).values()] == [3]
    assert row_name("meddiffusion", "none", ["model@model.backbone=retain"]) == "meddiffusion backbone=retain"
    assert row_name("lstm", "none", ["model=lstm", "variant=none"]) == "lstm"
