"""What a trained generator is judged by: records that it continues, and records that it makes from nothing.

The last `cut` codes of a record are dropped, the rest is the prompt, the model writes on (Lin et al. 2025: "we truncate
the last T codes"; T is not stated). Files of a run's folder, patient-level like its predictions:

    completions.parquet  subject_id, split, prompt, truth, generated (ids), target_probability
    synthetic.parquet    subject_id, ids, visit, age, place of records made from their demographics alone
    utility.parquet      risks by classifiers that learned from real and from generated records
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import torch
from torch import Tensor

from ehrlab.core.batch import Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.files import replacing
from ehrlab.core.model import SequenceGenerator
from ehrlab.core.spec import TokenSpec
from ehrlab.data.cache import build_once, content_key
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.prepare import KEY_DIGITS
from ehrlab.data.tokens import LISTS, TOKENIZER
from ehrlab.evaluation import generation, utility
from ehrlab.evaluation.sequences import HELD_OUT, TRAIN, read_completions
from ehrlab.training.lit import derived_seed

_RISKS = "risks.parquet"


@dataclass(frozen=True)
class CompletionSettings:
    """cut               T: codes at the end of a record that the model has to write
    max_new_tokens    of a continuation, visits and <eos> included
    num_held_out      held-out records that are continued, at most; all of them are judged
    num_train         training records that are continued, for memorisation
    num_samples       continuations per held-out record that estimate P(target in continuation | prompt); 0: none
    num_synthetic     records made from nothing
    num_trees         of the classifiers that learn from real and generated records
    batch_size        sequences at a time
    """

    cut: int
    max_new_tokens: int
    num_held_out: int
    num_train: int
    num_samples: int
    num_synthetic: int
    num_trees: int
    batch_size: int

    def __post_init__(self) -> None:
        for f in fields(self):
            least = 0 if f.name in ("num_samples", "num_train", "num_synthetic") else 1
            if getattr(self, f.name) < least:
                raise InputError(f"completion.{f.name}: expected at least {least}, found {getattr(self, f.name)}")


def judge_generator(
    model: SequenceGenerator,
    data: ClinicalData,
    settings: CompletionSettings,
    folder: Path,
    *,
    seed: int,
    device: str,
    num_bootstrap: int,
    bootstrap_seed: int,
    cache: Path | None = None,
) -> dict[str, Any]:
    """Write the files above, the tokenizer and predictions.parquet into a run's folder; returns its metrics.

    cache  where classifiers' risks are kept that are the same for every generator; None: they are computed anew
    """
    spec = data.spec.tokens
    assert spec is not None
    if not spec.targets:
        raise InputError(
            f"task '{data.cohort.task}': no training record holds a code of its target, so that a generator cannot be "
            "judged by it. Choose a task of conf/task/rare_code whose codes the data hold, or more patients."
        )
    model.to(device).eval()
    with replacing(folder / TOKENIZER) as beside:
        data.tokenizer().write(beside)

    def written(name: str, table: pl.DataFrame | None) -> pl.DataFrame | None:
        if table is not None:
            with replacing(folder / f"{name}.parquet") as beside:
                table.write_parquet(beside)
        return table

    completions = complete(model, data, settings, seed=seed, device=device)
    written("completions", completions)
    written("predictions", read_completions(completions, spec)[HELD_OUT].predictions())
    synthetic = written("synthetic", synthesise(model, data, settings, seed=seed, device=device))
    used = written("utility", useful(completions, spec, settings, cache))
    real = {TRAIN: data.sequences(TRAIN).frame(), HELD_OUT: _drawn(data, HELD_OUT, settings.num_held_out)}
    return generation.evaluate(
        completions,
        spec,
        utility_predictions=used,
        synthetic=synthetic,
        real=real,
        num_bootstrap=num_bootstrap,
        seed=bootstrap_seed,
    )


def useful(
    completions: pl.DataFrame, spec: TokenSpec, settings: CompletionSettings, cache: Path | None
) -> pl.DataFrame:
    """utility.parquet. What was learnt without generated records is taken from the cache, where that is given."""
    classifier = utility.Classifier(num_trees=settings.num_trees, num_threads=torch.get_num_threads())
    own = utility.predict(completions, spec, classifier, trained_on=utility.GENERATED)
    if cache is None:
        return pl.concat([own, utility.predict(completions, spec, classifier, trained_on=utility.GIVEN)])
    given = completions.filter(split=HELD_OUT).select("subject_id", "prompt", "truth").sort("subject_id")
    content = hashlib.sha256(given["subject_id"].to_numpy().tobytes())
    for name in ("prompt", "truth"):
        content.update(given[name].list.len().to_numpy().tobytes())
        content.update(given[name].explode().to_numpy().tobytes())
    settled = [classifier.num_trees, classifier.min_records, classifier.seed]
    key = content_key(utility.SCHEMA_VERSION, asdict(spec), settled, content.hexdigest())
    folder = build_once(
        cache / "utility" / key[:KEY_DIGITS],
        lambda out: utility.predict(completions, spec, classifier, trained_on=utility.GIVEN).write_parquet(
            out / _RISKS
        ),
    )
    return pl.concat([own, pl.read_parquet(folder / _RISKS)])


def prompts(records: pl.DataFrame, spec: TokenSpec, cut: int) -> pl.DataFrame:
    """Records with more than `cut` codes, and how many of their tokens are the prompt (`length`).

    A <visit> that the cut leaves without a code goes too: that another visit came is part of what is to be written.
    """
    lengths = []
    for ids in records["ids"].to_list():
        tokens = np.array(ids)
        codes = np.flatnonzero(tokens >= spec.first_code)
        end = int(codes[-cut]) if len(codes) > cut else 0
        while end and tokens[end - 1] == spec.VISIT:
            end -= 1
        lengths.append(end)
    return records.with_columns(length=pl.Series(lengths, dtype=pl.Int64)).filter(pl.col("length") > 0)


def complete(
    model: SequenceGenerator, data: ClinicalData, settings: CompletionSettings, *, seed: int, device: str
) -> pl.DataFrame:
    """completions.parquet of a trained model. The same model and seed give the same file."""
    spec = data.spec.tokens
    assert spec is not None
    parts = []
    for split, most, samples in (
        (HELD_OUT, settings.num_held_out, settings.num_samples),
        (TRAIN, settings.num_train, 0),
    ):
        if most == 0:
            continue
        chosen = prompts(_drawn(data, split, most), spec, settings.cut)
        if chosen.is_empty():
            raise InputError(
                f"completion.cut={settings.cut}: no {split} record has more codes than that; set a smaller number"
            )
        chosen = chosen.sort("length", "subject_id")
        generated = _continued(model, chosen, settings, derived_seed(seed, split), None, device)
        table = chosen.select(
            "subject_id",
            split=pl.lit(split),
            prompt=pl.col("ids").list.head("length"),
            truth=pl.col("ids").list.slice("length"),
            generated=pl.Series(generated, dtype=pl.List(pl.Int32)),
        )
        probability = pl.Series([None] * len(chosen), dtype=pl.Float64)
        if samples:
            probability = _probability(model, chosen, settings, derived_seed(seed, split, "probability"), device)
        parts.append(table.with_columns(target_probability=probability))
    return pl.concat(parts)


def synthesise(
    model: SequenceGenerator, data: ClinicalData, settings: CompletionSettings, *, seed: int, device: str
) -> pl.DataFrame | None:
    """synthetic.parquet: whole records, each begun by what stands before the first visit of a training record."""
    spec = data.spec.tokens
    assert spec is not None
    if settings.num_synthetic == 0:
        return None
    heads = _some(data.sequences(TRAIN).frame(), settings.num_synthetic, derived_seed(seed, "heads"))
    first_visit = [ids.index(spec.VISIT) for ids in heads["ids"].to_list()]
    heads = heads.with_columns(length=pl.Series(first_visit, dtype=pl.Int64)).sort("length", "subject_id")
    rows = []
    generator = torch.Generator(device).manual_seed(derived_seed(seed, "synthetic"))
    with torch.no_grad():
        for batch in _batches(heads, settings.batch_size, device):
            rows += _rows(model.generate(batch, spec.max_tokens, generator, temperature=1.0))
    table = pl.DataFrame(rows, schema={name: pl.List(pl.Int32) for name in LISTS}, orient="row")
    return table.with_columns(subject_id=pl.int_range(len(rows), dtype=pl.Int64)).select("subject_id", *LISTS)


def _drawn(data: ClinicalData, split: str, most: int) -> pl.DataFrame:
    """At most so many records of a split, the same for every model and seed, of any length."""
    return _some(data.sequences(split).frame(), most, derived_seed(0, split))


def _some(records: pl.DataFrame, most: int, seed: int) -> pl.DataFrame:
    """At most so many records, the same for every model."""
    if len(records) <= most:
        return records
    return records.sort("subject_id").sample(most, seed=seed % 2**31).sort("subject_id")


def _continued(
    model: SequenceGenerator,
    records: pl.DataFrame,
    settings: CompletionSettings,
    seed: int,
    temperature: float | None,
    device: str,
) -> list[list[int]]:
    """What the model writes after each prompt, in their order."""
    generator = torch.Generator(device).manual_seed(seed)
    found: list[list[int]] = []
    lengths = iter(records["length"].to_list())
    with torch.no_grad():
        for batch in _batches(records, settings.batch_size, device):
            whole = model.generate(batch, settings.max_new_tokens, generator, temperature=temperature)
            found += [ids[next(lengths) :] for ids, *_ in _rows(whole)]
    return found


def _probability(
    model: SequenceGenerator, records: pl.DataFrame, settings: CompletionSettings, seed: int, device: str
) -> pl.Series:
    """The model's own P(target in continuation | prompt) of each record, in their order."""
    generator = torch.Generator(device).manual_seed(seed)
    found = []
    with torch.no_grad():
        for batch in _batches(records, max(1, settings.batch_size // settings.num_samples), device):
            found.append(
                model.target_probability(batch, settings.max_new_tokens, settings.num_samples, generator).cpu()
            )
    return pl.Series(torch.cat(found).double().numpy())


def _batches(records: pl.DataFrame, size: int, device: str) -> Iterator[Tokens]:
    """Prompts, the first `length` tokens of each record, padded on the right."""
    for part in records.iter_slices(size):
        lengths = part["length"].to_numpy()
        mask = np.arange(lengths.max()) < lengths[:, None]
        padded: dict[str, Tensor] = {}
        for name in LISTS:
            values = np.zeros(mask.shape, np.int64)
            values[mask] = part.select(pl.col(name).list.head("length")).to_series().explode().to_numpy()
            padded[name] = torch.from_numpy(values).to(device)
        yield Tokens(mask=torch.from_numpy(mask).to(device), **padded)


def _rows(tokens: Tokens) -> list[tuple[Any, ...]]:
    """ids, visit, age, place of each sequence without its padding."""
    lengths = tokens.mask.sum(1).tolist()
    columns = [getattr(tokens, name).tolist() for name in LISTS]
    return [tuple(column[i][:n] for column in columns) for i, n in enumerate(lengths)]
