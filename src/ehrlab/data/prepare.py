"""Raw tables to batches: the data layer's front door. Each stage is a cached folder named by what it was made from.

<cache>/meds/<source>-<key>/     events                (data.meds)
<cache>/cohorts/<task>-<key>/    labelled samples      (data.cohorts)
<cache>/shards/<task>-<key>/     what a model reads    (data.tensorize)
<cache>/tokens/<source>-<key>/   whole records, whatever the task; only where a model asks for them (data.tokens)
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from types import MappingProxyType
from typing import Any, Protocol, TypeVar, runtime_checkable

import polars as pl
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.spec import DataSpec, TokenSpec
from ehrlab.data import meds as meds_folder
from ehrlab.data import tensorize as shards
from ehrlab.data import tokens as sequences
from ehrlab.data.cache import build_once, content_key
from ehrlab.data.cohorts.summary import CohortSummary
from ehrlab.data.cohorts.task import SAMPLE_SCHEMA, Cohort, Task
from ehrlab.data.dataset import SampleDataset, as_it_is
from ehrlab.data.meds import SPLITS, MedsDataset, SplitSettings
from ehrlab.data.sampler import BucketedBatches
from ehrlab.data.sources.source import Source
from ehrlab.data.tensorize import VisitSettings, tensorize
from ehrlab.data.tokens import TokenDataset, Tokenizer, TokenSettings, tokenize

KEY_DIGITS = 16
_LABELS, _HISTORY, _DROPPED = "labels.parquet", "history.parquet", "dropped.json"
Settings = TypeVar("Settings", VisitSettings, TokenSettings)


@dataclass(frozen=True)
class _View:
    """One way to serve a prepared folder: how a split's file is opened, and the lengths by which it is batched.

    version  of the code that writes such folders
    """

    open: Callable[[Path], Dataset[Batch]]
    lengths: Callable[[Any], NDArray[Any]]
    version: int


_VIEWS: dict[str, _View] = {
    "samples": _View(SampleDataset, attrgetter("num_visits"), shards.SCHEMA_VERSION),
    "tokens": _View(TokenDataset, attrgetter("num_tokens"), sequences.SCHEMA_VERSION),
}


@runtime_checkable
class HasTargets(Protocol):
    """A task about codes: diagnoses that mean its target."""

    def target_codes(self, meds: MedsDataset) -> list[str]:
        """Codes of the data set, whatever their spelling."""
        ...


def prepare(
    source: Source,
    task: Task,
    cache_dir: Path,
    *,
    split: Mapping[str, Any],
    visits: Mapping[str, Any],
    simulated: bool,
    tokens: Mapping[str, Any] | None = None,
) -> ClinicalData:
    """Build what is not in the cache yet, and open it.

    split      shares train, tuning, held_out (they add up to 1) and seed
    visits     fields of VisitSettings
    simulated  the source's tables stem from a simulator
    tokens     fields of TokenSettings: build the view "tokens", too

    Errors: InputError for anything in the settings or the raw tables that a user can put right. No stage leaves a
    folder behind that is not whole.
    """
    split_settings, visit_settings = split_from(split), visits_from(visits)
    token_settings = None if tokens is None else _settings(TokenSettings, tokens, "tokens")
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
        lambda out: _write_cohort(task.cohort(meds), out),
    )
    shards_key = content_key(shards.SCHEMA_VERSION, cohort_key, asdict(visit_settings))
    shards_path = build_once(
        cache_dir / "shards" / f"{task.name}-{shards_key[:KEY_DIGITS]}",
        lambda out: tensorize(meds, task.name, _read_cohort(cohort_path), visit_settings, out),
    )
    if token_settings is None:
        return ClinicalData.open(shards_path)

    tokens_key = content_key(sequences.SCHEMA_VERSION, meds.fingerprint, asdict(token_settings))
    tokens_path = build_once(
        cache_dir / "tokens" / f"{source.name}-{tokens_key[:KEY_DIGITS]}",
        lambda out: tokenize(meds, token_settings, out),
    )
    targets = task.target_codes(meds) if isinstance(task, HasTargets) else []
    return ClinicalData.open(shards_path, {"tokens": tokens_path}, targets)


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
    known = [f.name for f in fields(kind)]
    if unknown := sorted(set(config) - set(known)):
        raise InputError(f"{group}.{unknown[0]}: no such setting; expected some of {', '.join(known)}")
    return kind(**config)


@dataclass(frozen=True)
class ClinicalData:
    """A prepared task: the only thing of the data layer that training sees. It pickles as its folder and sizes.

    spec         sizes that a model is built from
    provides     Batch fields that its batches hold
    simulated    every output must say so
    fingerprint  SHA-256 of the content of the shards and the vocabulary
    cohort       the statistics of Table 1
    folders      where views without labels lie, by name: those that were asked for
    records      SHA-256 of the content of these views, whatever the task; None without any
    """

    path: Path
    spec: DataSpec
    provides: frozenset[str]
    simulated: bool
    fingerprint: str
    cohort: CohortSummary
    folders: Mapping[str, Path] = field(default_factory=dict, kw_only=True)
    records: str | None = field(default=None, kw_only=True)

    @classmethod
    def open(
        cls, path: Path, folders: Mapping[str, Path] = MappingProxyType({}), targets: Sequence[str] = ()
    ) -> ClinicalData:
        """Open a folder that `tensorize` wrote, and those of other views; `targets` are the task's codes.

        Errors: InputError where a file is missing or has another size, and where no sequence can hold a target.
        """
        manifest = _manifest(path, "samples")
        records = {view: _content(_manifest(folder, view)) for view, folder in folders.items()}
        cohort = CohortSummary.read(path / shards.COHORT)
        train = manifest["splits"][SPLITS[0]]
        return cls(
            path=path,
            spec=DataSpec(
                num_codes=manifest["num_codes"],
                num_labels=manifest["num_labels"],
                max_visits=manifest["settings"]["max_visits"],
                max_codes=manifest["settings"]["max_codes"],
                num_demographics=len(manifest["demographics"]),
                positive_rate=(train["positives"] / train["samples"],),
                tokens=_token_spec(folders["tokens"], targets) if "tokens" in folders else None,
            ),
            provides=frozenset({"visits", "demographics", *folders}),
            simulated=cohort.simulated,
            fingerprint=_content(manifest),
            cohort=cohort,
            folders=dict(folders),
            records=content_key(records) if records else None,
        )

    @cached_property
    def _datasets(self) -> dict[str, dict[str, Dataset[Batch]]]:
        folders = {"samples": self.path, **self.folders}
        return {
            view: {split: _VIEWS[view].open(folder / f"{split}.arrow") for split in SPLITS}
            for view, folder in folders.items()
        }

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

    def _dataset(self, split: str, view: str) -> Dataset[Batch]:
        assert split in SPLITS, f"split {split!r}: expected one of {SPLITS}"
        if view not in self._datasets:
            raise InputError(
                f"view '{view}': these data were prepared for {', '.join(self._datasets)}. A view without labels is "
                f"built where a model requires it; this data layer knows {', '.join(_VIEWS)}."
            )
        return self._datasets[view][split]

    def tokenizer(self) -> Tokenizer:
        """What the ids of `sequences` mean."""
        return Tokenizer.read(self.sequences(SPLITS[0]).path.with_name(sequences.TOKENIZER))

    def samples(self, split: str) -> pl.DataFrame:
        """subject_id, prediction_time, boolean_value of a split."""
        return self.dataset(split).samples()

    def vocabulary(self) -> pl.DataFrame:
        """id, code, description, num_samples; row i has id i, row 0 is padding."""
        return pl.read_parquet(self.path / shards.VOCABULARY)

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

        view  "samples": the labelled samples of the task; "tokens": whole records of all subjects, without labels
        """
        dataset = self._dataset(split, view)
        lengths = _VIEWS[view].lengths(dataset)
        batches = BucketedBatches(lengths, batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world)
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


def _manifest(path: Path, view: str) -> dict[str, Any]:
    """The manifest of a prepared folder, whose files it lists; InputError where one is missing or of another size."""
    try:
        manifest: dict[str, Any] = json.loads((path / shards.MANIFEST).read_text(encoding="utf-8"))
        version, files = manifest["schema_version"], manifest["files"]
    except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
        raise _damaged(path, f"{shards.MANIFEST} is not readable ({type(error).__name__})") from None
    if version != (expected := _VIEWS[view].version):
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


def _write_cohort(cohort: Cohort, out: Path) -> None:
    """labels.parquet is strictly MEDS; history_start lies beside it, row by row."""
    cohort.samples.select("subject_id", "prediction_time", "boolean_value").write_parquet(out / _LABELS)
    cohort.samples.select("subject_id", "prediction_time", "history_start").write_parquet(out / _HISTORY)
    (out / _DROPPED).write_text(json.dumps(dict(cohort.dropped), indent=1), encoding="utf-8")


def _read_cohort(path: Path) -> Cohort:
    start = pl.read_parquet(path / _HISTORY).select("history_start")
    samples = pl.concat([pl.read_parquet(path / _LABELS), start], how="horizontal").select(SAMPLE_SCHEMA.names())
    return Cohort(samples, json.loads((path / _DROPPED).read_text(encoding="utf-8")))
