"""Raw tables to batches: the data layer's front door. Each stage is a cached folder named by what it was made from.

<cache>/meds/<source>-<key>/     events                (data.meds)
<cache>/cohorts/<task>-<key>/    labelled samples      (data.cohorts)
<cache>/shards/<task>-<key>/     what a model reads    (data.tensorize)
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import polars as pl
import torch
from torch.utils.data import DataLoader

from ehrlab.core.batch import Batch
from ehrlab.core.errors import InputError
from ehrlab.core.spec import DataSpec
from ehrlab.data import meds as meds_folder
from ehrlab.data import tensorize as shards
from ehrlab.data.cache import build_once, content_key
from ehrlab.data.cohorts.summary import CohortSummary
from ehrlab.data.cohorts.task import SAMPLE_SCHEMA, Cohort, Task
from ehrlab.data.dataset import SampleDataset, as_it_is
from ehrlab.data.meds import SPLITS, MedsDataset, SplitSettings
from ehrlab.data.sampler import BucketedBatches
from ehrlab.data.sources.source import Source
from ehrlab.data.tensorize import VisitSettings, tensorize

KEY_DIGITS = 16
_LABELS, _HISTORY, _DROPPED = "labels.parquet", "history.parquet", "dropped.json"


def prepare(
    source: Source,
    task: Task,
    cache_dir: Path,
    *,
    split: Mapping[str, Any],
    visits: Mapping[str, Any],
    simulated: bool,
) -> ClinicalData:
    """Build what is not in the cache yet, and open it.

    split      shares train, tuning, held_out (they add up to 1) and seed
    visits     fields of VisitSettings
    simulated  the source's tables stem from a simulator

    Errors: InputError for anything in the settings or the raw tables that a user can put right. No stage leaves a
    folder behind that is not whole.
    """
    split_settings, visit_settings = split_from(split), visits_from(visits)
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
    return ClinicalData.open(shards_path)


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
    known = [f.name for f in fields(VisitSettings)]
    if unknown := sorted(set(config) - set(known)):
        raise InputError(f"visits.{unknown[0]}: no such setting; expected some of {', '.join(known)}")
    return VisitSettings(**config)


@dataclass(frozen=True)
class ClinicalData:
    """A prepared task: the only thing of the data layer that training sees. It pickles as its folder and sizes.

    spec         sizes that a model is built from
    provides     Batch fields that its batches hold
    simulated    every output must say so
    fingerprint  SHA-256 of the content of the shards and the vocabulary
    cohort       the statistics of Table 1
    """

    path: Path
    spec: DataSpec
    provides: frozenset[str]
    simulated: bool
    fingerprint: str
    cohort: CohortSummary

    @classmethod
    def open(cls, path: Path) -> ClinicalData:
        """Open a folder that `tensorize` wrote; InputError where a file is missing or has another size."""
        try:
            manifest = json.loads((path / shards.MANIFEST).read_text(encoding="utf-8"))
            version, files = manifest["schema_version"], manifest["files"]
        except (FileNotFoundError, json.JSONDecodeError, KeyError) as error:
            raise _damaged(path, f"{shards.MANIFEST} is not readable ({type(error).__name__})") from None
        if version != shards.SCHEMA_VERSION:
            raise _damaged(path, f"schema version {version}, expected {shards.SCHEMA_VERSION}")
        for name, entry in files.items():
            size = (path / name).stat().st_size if (path / name).is_file() else 0
            if size != entry["bytes"]:
                raise _damaged(path, f"{name} has {size:,} bytes, expected {entry['bytes']:,}")
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
            ),
            provides=frozenset({"visits", "demographics"}),
            simulated=cohort.simulated,
            fingerprint=content_key({name: entry["sha256"] for name, entry in files.items()}),
            cohort=cohort,
        )

    @cached_property
    def _datasets(self) -> dict[str, SampleDataset]:
        return {split: SampleDataset(self.path / f"{split}.arrow") for split in SPLITS}

    def dataset(self, split: str) -> SampleDataset:
        assert split in SPLITS, f"split {split!r}: expected one of {SPLITS}"
        return self._datasets[split]

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
        """Batches of one rank; `batch_size` counts the samples of all ranks together. See BucketedBatches."""
        if view != "samples":
            raise InputError(f"view '{view}': this data layer serves labelled samples only (view 'samples')")
        dataset = self.dataset(split)
        batches = BucketedBatches(dataset.num_visits, batch_size, shuffle=shuffle, seed=seed, rank=rank, world=world)
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
