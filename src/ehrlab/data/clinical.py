"""A prepared task, opened: the only thing of the data layer that training sees."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import polars as pl
import torch
from torch.utils.data import DataLoader

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.spec import DataSpec, TokenSpec
from ehrlab.data import tensorize as shards
from ehrlab.data import tokens as sequences
from ehrlab.data.cache import content_key
from ehrlab.data.cohorts.summary import CohortSummary
from ehrlab.data.cohorts.task import Task, scrambled
from ehrlab.data.dataset import SampleDataset, Selected, as_it_is
from ehrlab.data.meds import SPLITS
from ehrlab.data.modalities.base import Modality
from ehrlab.data.sampler import BucketedBatches
from ehrlab.data.tokens import TokenDataset, Tokenizer

_FRACTION = 0x6C6162656C73
"""Sets the keys of `labels.fraction` apart from others that are made of subjects and a seed."""

VIEWS = ("samples", "tokens", "stays", "admissions")
"""Ways in which the data layer serves records (Phase.view): the labelled samples of the task; and without labels, for
the subjects of the split and whatever the task, whole records as tokens, every stay of stays.hours or more, every
admission."""


@dataclass(frozen=True)
class LabelSettings:
    """How many training samples have labels that may be used: those of a seeded share of the training subjects."""

    fraction: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not 0 < self.fraction <= 1:
            raise InputError(f"labels.fraction: expected a share in (0, 1], found {self.fraction}")


@dataclass(frozen=True)
class ClinicalData:
    """A prepared task. It pickles as its folders and sizes.

    folders      where each view lies, "samples" among them
    selected     view -> split -> what its samples hold beside visits and demographics
    spec         sizes that a model is built from
    labels       names of the labels, where there are several
    provides     Batch fields that its labelled samples hold
    simulated    every output must say so
    fingerprint  names the content of all that a labelled sample holds
    records      view without labels -> name of its content, whatever the task
    cohort       the statistics of Table 1
    vocabularies modalities whose sizes a model wants, and where their stores lie
    """

    folders: Mapping[str, Path]
    selected: Mapping[str, Mapping[str, tuple[Selected, ...]]]
    spec: DataSpec
    labels: tuple[str, ...]
    provides: frozenset[str]
    simulated: bool
    fingerprint: str
    records: Mapping[str, str]
    cohort: CohortSummary
    vocabularies: Mapping[str, tuple[Modality, Path]] = field(default_factory=dict, kw_only=True)
    label_settings: LabelSettings = field(default=LabelSettings(), kw_only=True)

    @classmethod
    def open(
        cls,
        folders: Mapping[str, Path],
        selected: Mapping[str, Mapping[str, tuple[Selected, ...]]] = MappingProxyType({}),
        *,
        vocabularies: Mapping[str, tuple[Modality, Path]] = MappingProxyType({}),
        task: Task | None = None,
        targets: Sequence[str] = (),
        labels: LabelSettings = LabelSettings(),
    ) -> ClinicalData:
        """Open folders that `prepare` wrote, by view; `targets` are the task's codes.

        Errors: InputError where a file is missing or has another size, where no sequence can hold a target, and where
        a share of the labels leaves no positive or no negative training sample.
        """
        manifest = _manifest(folders["samples"], "samples")
        cohort = CohortSummary.read(folders["samples"] / shards.COHORT)
        records = {
            view: content_key(_content(_manifest(folder, view)), _stores(selected, view))
            for view, folder in folders.items()
            if view != "samples"
        }
        stores = dict(vocabularies) | _widest(selected)
        mine = _stores(selected, "samples")
        own: list[Any] = [_content(manifest)]
        if mine:
            own.append(mine)
        if labels.fraction < 1:
            own.append([labels.fraction, labels.seed])
        train = manifest["splits"][SPLITS[0]]
        visit_codes = pl.read_parquet(folders["samples"] / shards.VOCABULARY)["code"].to_list()
        spec = DataSpec(
            num_codes=manifest["num_codes"],
            num_labels=manifest["num_labels"],
            max_visits=manifest["settings"]["max_visits"],
            max_codes=manifest["settings"]["max_codes"],
            num_demographics=len(manifest["demographics"]),
            positive_rate=tuple(count / train["samples"] for count in train["positives"]),
            unit="patient" if task is None else task.unit,
            tokens=_token_spec(folders["tokens"], targets) if "tokens" in folders else None,
            **{name: modality.spec_beside(store, visit_codes) for name, (modality, store) in stores.items()},
        )
        held = {"demographics", *mine}
        data = cls(
            folders=dict(folders),
            selected=selected,
            spec=spec,
            labels=tuple(manifest["labels"]),
            provides=frozenset(held | {"visits"} if manifest["visits"] else held) | ({"tokens"} & set(folders)),
            simulated=cohort.simulated,
            fingerprint=own[0] if len(own) == 1 else content_key(own),
            records=records,
            cohort=cohort,
            vocabularies=dict(vocabularies),
            label_settings=labels,
        )
        if labels.fraction < 1:
            data._check_labelled()
        return data

    @cached_property
    def samples_fingerprint(self) -> str:
        """Names who is trained and tested, when, and with which labels, whatever else a sample holds. Runs that agree
        in it can be compared: one may read notes and another stays. Generators must also agree in the records."""
        digests = []
        for split in SPLITS:
            samples = self.dataset(split)
            digest = hashlib.sha256()
            # Sorted: which files hold whom follows from the number of events, and so from the tables that are read.
            order = np.lexsort((samples.prediction_time, samples.subject_id))
            for column in (samples.subject_id, samples.prediction_time, samples.labels):
                digest.update(np.ascontiguousarray(column[order]).tobytes())
            digests.append(digest.hexdigest())
        return content_key(digests, self.records.get("tokens"))

    def stores(self) -> dict[str, Path]:
        """Where each modality lies as it was derived, with the vocabulary that it was read by."""
        known = dict(self.vocabularies) | _widest(self.selected)
        return {name: store for name, (_, store) in known.items()}

    def _check_labelled(self) -> None:
        labels = self.dataset(SPLITS[0]).labels
        if len(labels) == 0 or labels.min(0).any() or not labels.max(0).all():
            raise InputError(
                f"labels.fraction={self.label_settings.fraction}: leaves {len(labels)} training samples, in which a "
                "label is always or never true. Choose a larger share, another labels.seed, or a larger cohort."
            )

    @cached_property
    def _datasets(self) -> dict[str, dict[str, SampleDataset | TokenDataset]]:
        return {view: {split: self._open(view, split) for split in SPLITS} for view in self.folders}

    def _open(self, view: str, split: str) -> SampleDataset | TokenDataset:
        path = self.folders[view] / f"{split}.arrow"
        if view == "tokens":
            return TokenDataset(path)
        selected = self.selected.get(view, {}).get(split, ())
        if view != "samples":
            return SampleDataset(path, selected, visits=False)
        visits = "visits" in self.provides
        everyone = SampleDataset(path, selected, visits=visits)
        if split != SPLITS[0] or self.label_settings.fraction == 1:
            return everyone
        # Not the keys by which a task matches controls: those of low keys are taken first, and all would be kept.
        keys = scrambled(everyone.subject_id, self.label_settings.seed + _FRACTION)
        rows = np.flatnonzero(keys < np.uint64(self.label_settings.fraction * 2**64))
        return SampleDataset(path, selected, visits=visits, rows=rows)

    def dataset(self, split: str) -> SampleDataset:
        """The labelled samples of a split."""
        found = self._dataset(split, "samples")
        assert isinstance(found, SampleDataset)
        return found

    def sequences(self, split: str) -> TokenDataset:
        """The records of a split's subjects as tokens; InputError where they were not asked for."""
        found = self._dataset(split, "tokens")
        assert isinstance(found, TokenDataset)
        return found

    def _dataset(self, split: str, view: str) -> SampleDataset | TokenDataset:
        assert split in SPLITS, f"split {split!r}: expected one of {SPLITS}"
        if view not in self._datasets:
            raise InputError(
                f"view '{view}': these data were prepared for {', '.join(self._datasets)}. A view without labels is "
                f"built where a model requires it; this data layer knows {', '.join(VIEWS)}."
            )
        return self._datasets[view][split]

    def tokenizer(self) -> Tokenizer:
        """What the ids of `sequences` mean."""
        return Tokenizer.read(self.folders["tokens"] / sequences.TOKENIZER)

    def samples(self, split: str) -> pl.DataFrame:
        """subject_id, prediction_time, boolean_value of a split; with several labels boolean_values, in their order."""
        return self.dataset(split).samples()

    def vocabulary(self) -> pl.DataFrame:
        """id, code, description, num_samples of the codes of visits; row i has id i, row 0 is padding."""
        return pl.read_parquet(self.folders["samples"] / shards.VOCABULARY)

    def loader(
        self,
        split: str,
        *,
        view: str = "samples",
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        rank: int = 0,
        world: int = 1,
        num_workers: int = 0,
    ) -> DataLoader[Batch]:
        """Batches of one rank; `batch_size` counts the samples of all ranks together. See BucketedBatches.

        view  one of VIEWS
        """
        dataset = self._dataset(split, view)
        batches = BucketedBatches(dataset.lengths, batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world)
        return DataLoader(
            dataset,
            batch_sampler=batches,
            collate_fn=as_it_is,
            num_workers=num_workers,
            persistent_workers=num_workers > 0,
            pin_memory=torch.cuda.is_available(),
            # Its own: a loader that draws worker seeds from the global generator would shift the model's noise.
            generator=torch.Generator(),
        )


def _widest(selected: Mapping[str, Mapping[str, tuple[Selected, ...]]]) -> dict[str, tuple[Modality, Path]]:
    """Each modality as the view that holds most of it has it (an admission may have more stays than a sample), and its
    store."""
    found: dict[str, tuple[Modality, Path]] = {}
    for one in (one for of_split in selected.values() for one in of_split.get(SPLITS[0], ())):
        name, known = one.modality.name, found.get(one.modality.name)
        if known is None or getattr(one.modality, "max_stays", 0) > getattr(known[0], "max_stays", 0):
            found[name] = (one.modality, one.store)
    return found


def _stores(selected: Mapping[str, Mapping[str, tuple[Selected, ...]]], view: str) -> dict[str, list[Any]]:
    """Modality -> names of the content that a view reads it from, split by split."""
    found: dict[str, list[Any]] = {}
    for split in SPLITS:
        for one in selected.get(view, {}).get(split, ()):
            found.setdefault(one.modality.name, []).append(one.content())
    return found


_VERSIONS = {"tokens": sequences.SCHEMA_VERSION}


def _manifest(path: Path, view: str) -> dict[str, Any]:
    """The manifest of a prepared folder, whose files it lists; InputError where one is missing or of another size."""
    try:
        manifest: dict[str, Any] = json.loads((path / shards.MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["schema_version"], manifest["files"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise _damaged(path, f"{shards.MANIFEST} is not readable ({type(error).__name__})") from None
    if version != (expected := _VERSIONS.get(view, shards.SCHEMA_VERSION)):
        raise _damaged(path, f"schema version {version}, expected {expected}")
    for name, entry in files.items():
        size = (path / name).stat().st_size if (path / name).is_file() else 0
        if size != entry["bytes"]:
            raise _damaged(path, f"{name} has {size:,} bytes, expected {entry['bytes']:,}")
    return manifest


def _content(manifest: Mapping[str, Any]) -> str:
    return content_key({name: entry["sha256"] for name, entry in manifest["files"].items()})


def _token_spec(path: Path, targets: Sequence[str]) -> TokenSpec:
    """Sizes of the sequences in `path`; InputError where the task has targets and no training sequence holds one."""
    spec = Tokenizer.read(path / sequences.TOKENIZER).spec(targets)
    if targets and not spec.targets:
        raise InputError(
            f"tokens: none of the task's {len(targets)} target codes is in a training sequence. Let diagnosis be among "
            "tokens.kinds, raise tokens.max_tokens and tokens.max_visits, lower tokens.min_count, or choose another "
            "task or a larger cohort."
        )
    return spec


def _damaged(path: Path, found: str) -> InputError:
    return InputError(f"shards {path}: damaged ({found}). Delete the folder to build it again.")
