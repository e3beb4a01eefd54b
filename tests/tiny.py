"""Every method of conf/model at toy size: found by listing the folder, shrunk by the names of its settings.

A new model needs nothing here while its sizes carry the names below or end in `_dim`; a size with another name gets a
line in SIZES.
"""

from functools import cache
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf

from batches import SPEC
from ehrlab.core.model import Model, Needs, RiskModel, SequenceGenerator, SequenceRiskModel
from ehrlab.core.spec import DataSpec
from sequences import GENERATOR_SPEC

CONF = Path(__file__).parents[1] / "conf"

# All different, so that a transposed axis fails; embed_dim is even for the U-Net and for attention heads.
SIZES: dict[str, Any] = {
    "embed_dim": 8,
    "hidden_dim": 6,
    "time_dim": 5,
    "attention_dim": 3,
    "alpha_dim": 7,
    "beta_dim": 10,
    "width": 12,
    "dense_dim": 14,
    "stay_dim": 15,
    "base_channels": 4,
    "multipliers": [1, 2],
    "groups": 2,
    "num_steps": 20,
    "num_synthetic": 16,
    "num_filters": 9,
    "latent_dim": 5,
    "critic_dims": [9, 4],
    "size": "tiny",
}
OTHER_DIM = 4

UNITS = ("patient", "admission", "stay")


def shrink(value: Any) -> Any:
    """The same settings with every known size replaced, at any depth."""
    if isinstance(value, list):
        return [shrink(item) for item in value]
    if isinstance(value, dict):
        other = {key: OTHER_DIM if key.endswith("_dim") else shrink(item) for key, item in value.items()}
        return {key: SIZES.get(key, item) for key, item in other.items()}
    return value


@cache
@cache
def whole_config(*overrides: str) -> DictConfig:
    """What the command line would compose; a model's config may choose its task there."""
    with initialize_config_dir(str(Path(__file__).parent / "conf"), version_base="1.3"):
        # "+variant=as1" is how golden/losses.json and the cases below name a case.
        named = [override.removeprefix("+") for override in overrides]
        return compose("model_alone", [f"hydra.searchpath=[file://{CONF}]", *named])


@cache
def model_config(*overrides: str, tiny: bool = True) -> DictConfig:
    config = whole_config(*overrides).model
    return OmegaConf.create(shrink(OmegaConf.to_container(config, resolve=True))) if tiny else config


def build(*overrides: str, spec: DataSpec = SPEC, seed: int = 0) -> RiskModel:
    """The risk model that these overrides name: build("model=meddiffusion", "model/augmenter=none")."""
    model = _build(*overrides, spec=spec, seed=seed)
    assert isinstance(model, RiskModel)
    return model


def build_generator(*overrides: str, seed: int = 0) -> SequenceGenerator:
    """The generator that these overrides name."""
    model = _build(*overrides, spec=GENERATOR_SPEC, seed=seed)
    assert isinstance(model, SequenceGenerator)
    return model


def _build(*overrides: str, spec: DataSpec, seed: int) -> Model:
    torch.manual_seed(seed)
    return instantiate(model_config(*overrides), _partial_=True, _convert_="all")(spec=spec)


def names(folder: str) -> list[str]:
    return sorted(path.stem for path in (CONF / folder).glob("*.yaml"))


def is_a(model: str, kind: type) -> bool:
    return issubclass(get_class(model_config(f"model={model}")._target_), kind)


def needs(model: str, unit: str) -> Needs:
    """What the model reads where samples are a `unit`."""
    config = model_config(f"model={model}")
    found: Needs = get_class(config._target_).needs(unit, OmegaConf.to_container(config))
    return found


def reads_visits_alone(model: str) -> bool:
    return all(needs(model, unit).fields <= {"visits", "demographics"} for unit in UNITS)


def modal_cases() -> dict[str, tuple[str, str]]:
    """Every risk model that reads more than visits: (its name, what a sample is). Once for each unit where the needs
    depend on it (MedHMP's levels), else for the unit of the task that its config chooses."""
    found = {}
    for name in MODAL_MODELS:
        if all(needs(name, unit) == needs(name, UNITS[0]) for unit in UNITS):
            found[name] = (name, get_class(whole_config(f"model={name}").task._target_).unit)
        else:
            found |= {f"{name} {unit}": (name, unit) for unit in UNITS}
    return found


def cases() -> dict[str, tuple[str, ...]]:
    """Every risk model of visits; MedDiffusion on every backbone with every augmenter; its ablations, syntheses and
    denoisers.

    Augmenters with a switch for step-wise attention (Table 4: "+Att") are also there with it, on the paper's backbone.
    """
    found: dict[str, tuple[str, ...]] = {name: (f"model={name}",) for name in RISK_MODELS}
    for backbone in (name for name in RISK_MODELS if is_a(name, SequenceRiskModel)):
        for augmenter in names("model/augmenter"):
            overrides = ("model=meddiffusion", f"model@model.backbone={backbone}", f"model/augmenter={augmenter}")
            found[f"{backbone}+{augmenter}"] = overrides
    settings = [
        *(f"model/augmenter/denoiser={name}" for name in names("model/augmenter/denoiser")),
        *(f"model.augmenter.synthesis={name}" for name in ("ancestral", "ancestral_from_visit", "residual")),
        *(f"+variant={name}" for name in ("as1", "as2", "as3")),
    ]
    found |= {f"meddiffusion {setting}": ("model=meddiffusion", setting) for setting in settings}
    for augmenter in names("model/augmenter"):
        overrides = ("model=meddiffusion", f"model/augmenter={augmenter}")
        if "attention" in model_config(*overrides).augmenter:
            found[f"meddiffusion {augmenter}+att"] = (*overrides, "model.augmenter.attention=true")
    # Two ways to name one configuration are one case.
    configs = {name: model_config(*overrides) for name, overrides in found.items()}
    first = {OmegaConf.to_yaml(config, sort_keys=True): name for name, config in reversed(configs.items())}
    return {name: overrides for name, overrides in found.items() if name in first.values()}


ALL_RISK_MODELS = [name for name in names("model") if is_a(name, RiskModel)]
RISK_MODELS = [name for name in ALL_RISK_MODELS if reads_visits_alone(name)]
MODAL_MODELS = [name for name in ALL_RISK_MODELS if name not in RISK_MODELS]
CASES = cases()
MODAL_CASES = modal_cases()
GENERATORS = [name for name in names("model") if is_a(name, SequenceGenerator)]
