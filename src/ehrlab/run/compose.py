"""From what the user typed to the list of runs: one config per model of the comparison."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hydra import compose
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict

from ehrlab.core.errors import InputError


@dataclass(frozen=True)
class Entry:
    """One row of a comparison: a composed config and its name."""

    row: str
    model: str
    variant: str
    cfg: DictConfig


def plain(cfg: Any) -> Any:
    """A config node as plain Python data with every interpolation resolved; a scalar is itself."""
    if not OmegaConf.is_config(cfg):
        return cfg
    return OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)


def is_multirun() -> bool:
    return HydraConfig.get().mode == RunMode.MULTIRUN


def row_name(model: str, variant: str, overrides: Sequence[str]) -> str:
    """Name of a row: the model, its variant, and what was changed in it by hand, in whichever order it was.

    >>> row_name("meddiffusion", "none", ["model=meddiffusion", "data=mimic", "model.lambda_s=0.1"])
    'meddiffusion lambda_s=0.1'
    >>> row_name("meddiffusion", "as1", ["model/augmenter=medgan", "training.optimizer.lr=0.01"])
    'meddiffusion as1 augmenter=medgan training.optimizer.lr=0.01'
    >>> row_name("medhmp", "none", ["training.max_epochs=3", "model.pretrained=results/phases/admission-8f83"])
    'medhmp pretrained=admission-8f83 training.max_epochs=3'
    """
    of_model, of_protocol = {}, {}
    for o in OverridesParser.create().parse_overrides(list(overrides)):
        # Of a path its last part: the rest is where this machine keeps it.
        key, value = o.key_or_group, o.get_value_element_as_str().rstrip("/").rsplit("/", 1)[-1]
        if key.startswith(("model.", "model/")):
            of_model[key[len("model.") :]] = value
        elif key.startswith(("training.", "visits.", "llm.")) or key == "trainer.max_epochs":
            of_protocol[key] = value
        elif key == "model" and o.package and o.package != "model":  # model@model.backbone=retain
            of_model[o.package.removeprefix("model.")] = value
    changed = [*sorted(of_model.items()), *sorted(of_protocol.items())]
    return " ".join([model, *([variant] if variant != "none" else []), *(f"{key}={value}" for key, value in changed)])


def _belongs_to_model(override: str) -> bool:
    """Whether an override speaks of the model on top, not of the protocol that its rivals share."""
    o = OverridesParser.create().parse_override(override)
    # Phases are a model's own: a rival has others.
    own = ("model.", "model/", "baselines.", "training.phases.")
    return o.key_or_group in {"model", "variant", "baselines"} or o.key_or_group.startswith(own)


BACKBONE = "backbone"
"""In a baseline set: the model that the one on top is built on, alone."""


def entries(cfg: DictConfig) -> list[Entry]:
    """The model on top, then each of the baseline set with the same data, task, protocol and seeds.

    A baseline is a model, or a model and its variant ("medfuse medfuse/no_text"). What was changed by hand in the model
    on top is changed in its variants, too, and in no rival.
    """
    hydra_cfg = HydraConfig.get()
    choices, overrides = hydra_cfg.runtime.choices, list(hydra_cfg.overrides.task)
    on_top, variant = str(choices["model"]), str(choices["variant"])
    top = Entry(row_name(on_top, variant, overrides), on_top, variant, cfg)
    shared = [o for o in overrides if not _belongs_to_model(o)]
    own = [o for o in overrides if _key(o) not in ("model", "variant")]
    rivals = []
    for listed in cfg.baselines.models:
        name, _, variant = listed.partition(" ")
        name, variant = _backbone(choices) if name == BACKBONE else name, variant or "none"
        changes = own if name == on_top and variant != "none" else shared
        row = row_name(name, variant, changes)
        if row == top.row:
            continue
        rival = compose("config", [*changes, f"model={name}", f"variant={variant}"], return_hydra_config=False)
        if variant != "none":
            _check_variant(listed, rival, compose("config", [*changes, f"model={name}"], return_hydra_config=False))
        # Its own method and recipe; all else (data, task, how records are read) is that of the model on top, which may
        # have chosen it by its config.
        ours = cfg.copy()
        with open_dict(ours):
            ours.model, ours.training = rival.model, rival.training
        rivals.append(Entry(row, name, variant, ours))
    return [top, *rivals]


def _key(override: str) -> str:
    """What an override without a package changes: `model=retain` the model, `model@model.backbone=retain` not."""
    o = OverridesParser.create().parse_override(override)
    return "" if o.package else str(o.key_or_group)


def _check_variant(listed: str, rival: DictConfig, whole: DictConfig) -> None:
    """Refuse a variant that reads other data: it cannot stand beside models that share theirs."""
    with_it, without = (OmegaConf.to_container(cfg, resolve=False) for cfg in (rival, whole))
    assert isinstance(with_it, dict)
    assert isinstance(without, dict)
    changed = [key for key in with_it if with_it[key] != without[key] and key not in ("model", "training")]
    if changed:
        raise InputError(
            f"baselines.models: expected variants that change nothing but model and training, found {listed!r}, which "
            f"changes {', '.join(map(str, changed))}. Run it by itself: variant={listed.split()[1]}."
        )


def _backbone(choices: Mapping[str, Any]) -> str:
    name = choices.get("model@model.backbone")
    if name is None:
        raise InputError(
            f"baselines: model '{choices['model']}' has no backbone of its own. Choose model=meddiffusion, or other "
            "baselines."
        )
    return str(name)


def seeds(cfg: DictConfig) -> list[int]:
    """The seeds of a run: `seed` is a number or a list of different numbers.

    >>> seeds(OmegaConf.create({"seed": 3})), seeds(OmegaConf.create({"seed": [0, 1]}))
    ([3], [0, 1])
    """
    given = plain(cfg.seed)
    found = given if isinstance(given, list) else [given]
    if not found or len(set(found)) < len(found) or not all(type(s) is int and s >= 0 for s in found):
        raise InputError(f"seed: expected a whole number >= 0 or a list of different ones, found {given}.")
    return found
