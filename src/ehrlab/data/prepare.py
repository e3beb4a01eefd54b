"""Raw tables to batches: the data layer's front door. Each stage is a cached folder named by what it was made from.

<cache>/meds/<source>-<key>/     events                (data.meds)
<cache>/cohorts/<task>-<key>/    labelled samples      (data.cohorts)
<cache>/shards/<task>-<key>/     what a model reads    (data.tensorize)
<cache>/tokens/<source>-<key>/   whole records, whatever the task; only where a model asks for them (data.tokens)
<cache>/views/<view>-<key>/      stays of stays.hours or more, admissions; only where a model pretrains on them
<cache>/stores/<modality>-<key>/ what the data set holds of stays, notes, ...; only where a model asks for it
<cache>/selections/<key>/        what of a store each sample of a task or view sees (data.modalities)
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields, replace
from functools import partial
from importlib import import_module
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.core.model import Needs
from ehrlab.data import meds as meds_folder
from ehrlab.data import tensorize as shards
from ehrlab.data import tokens as sequences
from ehrlab.data.cache import build_once, content_key
from ehrlab.data.clinical import ClinicalData, LabelSettings
from ehrlab.data.cohorts.task import VALUES, Cohort, Task, finish
from ehrlab.data.dataset import SampleDataset, Selected
from ehrlab.data.meds import SPLITS, MedsDataset, SplitSettings
from ehrlab.data.modalities.base import Modality, admissions, with_admissions
from ehrlab.data.sources.source import Source
from ehrlab.data.tensorize import VisitSettings, tensorize
from ehrlab.data.tokens import TokenSettings, tokenize

KEY_DIGITS = 16
_LABELS, _HISTORY, _DROPPED = "labels.parquet", "history.parquet", "dropped.json"
Settings = TypeVar("Settings")


MODAL = {
    "stays": "StayModality",
    "codes": "CodeSetModality",
    "labs": "LabModality",
    "notes": "NoteModality",
    "text": "TextModality",
}
"""Batch fields that a Modality of data.modalities.<name> makes; its settings are the config group of the same name.

By name, because the language models behind notes and text take seconds to import.
"""


@runtime_checkable
class HasTargets(Protocol):
    """A task about codes: diagnoses that mean its target."""

    def target_codes(self, meds: MedsDataset) -> list[str]:
        """Codes of the data set, whatever their spelling."""
        ...


VISITS = Needs()


def prepare(
    source: Source,
    task: Task,
    cache_dir: Path,
    *,
    split: Mapping[str, Any],
    visits: Mapping[str, Any],
    simulated: bool,
    wanted: Needs = VISITS,
    tokens: Mapping[str, Any] = MappingProxyType({}),
    modalities: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    labelled: Mapping[str, Any] = MappingProxyType({}),
) -> ClinicalData:
    """Build what is not in the cache yet, and open it.

    split       shares train, tuning, held_out (they add up to 1) and seed
    visits      fields of VisitSettings
    simulated   the source's tables stem from a simulator
    wanted      what is built beside visits and demographics
    tokens      fields of TokenSettings, for the view "tokens"
    modalities  settings of each modality, by its name (MODAL)
    labelled    fields of LabelSettings: the share of training samples whose labels may be used

    Errors: InputError for anything in the settings or the raw tables that a user can put right. No stage leaves a
    folder behind that is not whole.
    """
    split_settings, visit_settings = split_from(split), visits_from(visits)
    label_settings = _settings(LabelSettings, labelled, "labels")
    token_settings = _settings(TokenSettings, tokens, "tokens") if "tokens" in wanted.samples else None
    asked = sorted((wanted.fields | wanted.vocabularies) & set(MODAL))
    chosen = {name: _modality(name, modalities.get(name, {})) for name in asked}
    cache_dir = Path(cache_dir)

    meds_key = meds_folder.fingerprint(source, split_settings, simulated)
    meds_path = build_once(
        cache_dir / "meds" / f"{source.name}-{meds_key[:KEY_DIGITS]}",
        lambda out: meds_folder.build(source, out, split_settings, simulated),
    )
    meds = MedsDataset.open(meds_path)

    cohort_key = content_key(meds.fingerprint, task.fingerprint())
    cohort_path = build_once(
        cache_dir / "cohorts" / f"{task.name}-{cohort_key[:KEY_DIGITS]}",
        lambda out: _write_cohort(task.cohort(meds), task.labels, out),
    )
    has_visits = "visits" in task.inputs
    shards_key = content_key(shards.SCHEMA_VERSION, cohort_key, asdict(visit_settings), has_visits)
    shards_path = build_once(
        cache_dir / "shards" / f"{task.name}-{shards_key[:KEY_DIGITS]}",
        lambda out: tensorize(
            meds,
            task.name,
            _read_cohort(cohort_path, task.labels),
            visit_settings,
            out,
            labels=task.labels,
            visits=has_visits,
        ),
    )
    folders = {"samples": shards_path}
    if token_settings is not None:
        tokens_key = content_key(sequences.SCHEMA_VERSION, meds.fingerprint, asdict(token_settings))
        folders["tokens"] = build_once(
            cache_dir / "tokens" / f"{source.name}-{tokens_key[:KEY_DIGITS]}",
            lambda out: tokenize(meds, token_settings, out),
        )
    for view in wanted.views:
        hours = chosen["stays"].hours if view == "stays" else None  # type: ignore[attr-defined]
        view_key = content_key(shards.SCHEMA_VERSION, meds.fingerprint, view, hours)
        folders[view] = build_once(
            cache_dir / "views" / f"{view}-{view_key[:KEY_DIGITS]}",
            lambda out, view=view, hours=hours: tensorize(  # type: ignore[misc]
                meds, view, finish(_unlabelled(meds, hours), {}), visit_settings, out, visits=False
            ),
        )
    stores = _stores(meds, chosen, cache_dir)
    selected = _select(meds, task, chosen, stores, folders, wanted, cache_dir)
    _check_seen(task, selected)
    vocabularies = {name: (chosen[name], stores[name]) for name in wanted.vocabularies}
    targets = task.target_codes(meds) if isinstance(task, HasTargets) else []
    return ClinicalData.open(
        folders, selected, vocabularies=vocabularies, task=task, targets=targets, labels=label_settings
    )


def _modality(name: str, settings: Mapping[str, Any]) -> Modality:
    kind = getattr(import_module(f"ehrlab.data.modalities.{name}"), MODAL[name])
    made: Modality = _settings(kind, settings, name)
    return made


def _unlabelled(meds: MedsDataset, hours: int | None) -> pl.DataFrame:
    """Each stay of at least `hours`, seen at their end; without `hours` each admission, seen at its own."""
    if hours is None:
        return admissions(meds).select("subject_id", prediction_time="discharged")
    found: pl.DataFrame = import_module("ehrlab.data.modalities.stays").stay_samples(meds, hours)
    return found.select("subject_id", "prediction_time")


def _stores(meds: MedsDataset, chosen: Mapping[str, Modality], cache_dir: Path) -> dict[str, Path]:
    stores = {}
    for name, modality in chosen.items():
        settings = asdict(modality)  # type: ignore[call-overload]
        settings.pop("max_stays", None)  # what is selected, not what is stored
        key = content_key(modality.version, meds.fingerprint, settings, modality.fingerprint())
        stores[name] = build_once(cache_dir / "stores" / f"{name}-{key[:KEY_DIGITS]}", partial(modality.build, meds))
    return stores


def _select(
    meds: MedsDataset,
    task: Task,
    chosen: Mapping[str, Modality],
    stores: Mapping[str, Path],
    folders: Mapping[str, Path],
    wanted: Needs,
    cache_dir: Path,
) -> dict[str, dict[str, tuple[Selected, ...]]]:
    """view -> split -> what its samples have beside visits and demographics."""
    if not wanted.fields & set(chosen):
        return {}
    known = admissions(meds)
    of_view = {"samples": wanted.samples, **wanted.views}
    selected: dict[str, dict[str, tuple[Selected, ...]]] = {}
    for view, folder in folders.items():
        for split in SPLITS:
            found = []
            for name in sorted(of_view.get(view, frozenset()) & set(chosen)):
                modality = chosen[name]
                if name == "stays" and (view == "stays" or (view == "samples" and task.unit == "stay")):
                    modality = replace(modality, max_stays=1)  # type: ignore[type-var]
                found.append(_selection(meds, modality, stores[name], folder, split, known, cache_dir))
            selected.setdefault(view, {})[split] = tuple(found)
    return selected


_UNSEEN = {
    "stays": "A stay is known after stays.hours hours, or at its end: set stays.hours to the task's hours.",
    "notes": "Of which kind they may be is notes.categories; [] keeps all.",
}


def _check_seen(task: Task, selected: Mapping[str, Mapping[str, Sequence[Selected]]]) -> None:
    """InputError where no training sample sees anything of a modality: models would learn from zeros."""
    for one in selected.get("samples", {}).get("train", ()):
        name = next(name for name, kind in MODAL.items() if kind == type(one.modality).__name__)
        if name in _UNSEEN and np.load(one.selection / "offsets.npy")[-1] == 0:
            raise InputError(
                f"{name}: expected some that are known when task '{task.name}' asks, found none in any training "
                f"sample. {_UNSEEN[name]}"
            )


def _selection(
    meds: MedsDataset, modality: Modality, store: Path, folder: Path, split: str, known: pl.DataFrame, cache_dir: Path
) -> Selected:
    """What the samples of one split of `folder` see of a store."""
    key = content_key(modality.version, asdict(modality), store.name, folder.name, split)  # type: ignore[call-overload]

    def build(out: Path) -> None:
        samples = SampleDataset(folder / f"{split}.arrow", visits=False).samples()
        rows = samples.select("subject_id", "prediction_time").with_row_index("sample")
        rows = with_admissions(rows.with_columns(split=pl.lit(split)), known)
        modality.select(meds, store, rows, out)

    path = cache_dir / "selections" / f"{modality.name}-{key[:KEY_DIGITS]}"
    return Selected(modality, store, build_once(path, build))


def split_from(config: Mapping[str, Any]) -> SplitSettings:
    """SplitSettings of {train, tuning, held_out, seed}; InputError unless the shares add up to 1."""
    if set(config) != {"train", "tuning", "held_out", "seed"}:
        raise InputError(f"split: expected train, tuning, held_out and seed, found {', '.join(map(str, config))}")
    shares = [float(config[name]) for name in ("train", "tuning", "held_out")]
    if abs(sum(shares) - 1) > 1e-6:
        raise InputError(f"split: expected shares that add up to 1, found {' + '.join(map(str, shares))}")
    return SplitSettings(seed=int(config["seed"]), train=shares[0], tuning=shares[1])


def visits_from(config: Mapping[str, Any]) -> VisitSettings:
    """VisitSettings of its fields; InputError for a name that is none of them."""
    return _settings(VisitSettings, config, "visits")


def _settings(kind: type[Settings], config: Mapping[str, Any], group: str) -> Settings:
    """Settings of the group `group` of a config; InputError for a name that is none of their fields."""
    known = [f.name for f in fields(kind)]  # type: ignore[arg-type]
    if unknown := sorted(set(config) - set(known)):
        raise InputError(f"{group}.{unknown[0]}: no such setting; expected some of {', '.join(known)}")
    return kind(**config)


def _write_cohort(cohort: Cohort, labels: Sequence[str], out: Path) -> None:
    """labels.parquet is strictly MEDS, one file for each of several labels; history_start lies beside, row by row."""
    for i, name in enumerate(labels or [""]):
        value = pl.col(VALUES).list.get(i).alias("boolean_value") if labels else pl.col("boolean_value")
        path = out / _LABELS if not name else out / "labels" / f"{name}.parquet"
        path.parent.mkdir(exist_ok=True)
        cohort.samples.select("subject_id", "prediction_time", value).write_parquet(path)
    cohort.samples.select("subject_id", "prediction_time", "history_start").write_parquet(out / _HISTORY)
    (out / _DROPPED).write_text(json.dumps(dict(cohort.dropped), indent=1), encoding="utf-8")


def _read_cohort(path: Path, labels: Sequence[str]) -> Cohort:
    samples = pl.read_parquet(path / _HISTORY)
    if labels:
        files = [pl.read_parquet(path / "labels" / f"{name}.parquet")["boolean_value"].alias(name) for name in labels]
        samples = samples.with_columns(pl.DataFrame(files).select(pl.concat_list(labels).alias(VALUES))[VALUES])
    else:
        samples = samples.with_columns(pl.read_parquet(path / _LABELS)["boolean_value"])
    return finish(samples, json.loads((path / _DROPPED).read_text(encoding="utf-8")))
