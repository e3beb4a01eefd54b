"""The composition root: config in, finished runs, a table and a report out."""

from __future__ import annotations

import errno
import logging
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from functools import reduce
from itertools import product
from operator import or_
from pathlib import Path
from typing import Any

from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import InstantiationException
from hydra.utils import get_class, instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue
from polars.exceptions import PolarsError
from safetensors import SafetensorError

from ehrlab.core import language
from ehrlab.core.errors import InputError
from ehrlab.core.files import locked, replacing, slug, write_whole
from ehrlab.core.model import AnyPhase, EstimatorPhase, Model, Needs, Phase, RiskModel, SequenceGenerator
from ehrlab.core.spec import DataSpec
from ehrlab.data.cache import build_once
from ehrlab.data.clinical import ClinicalData
from ehrlab.data.cohorts.task import Task
from ehrlab.data.prepare import MODAL, prepare
from ehrlab.data.sources.source import Source, simulated_for, tables_for
from ehrlab.evaluation.risk import evaluate
from ehrlab.nn.phase_weights import weights_digest
from ehrlab.run.completion import CompletionSettings, judge_generator
from ehrlab.run.compose import Entry, entries, is_multirun, plain, seeds
from ehrlab.run.generated import ANALYSES, write_analysis
from ehrlab.run.oracle import ExactRisks, exact_risks
from ehrlab.run.provenance import provenance
from ehrlab.run.store import (
    RunFolder,
    content_hash,
    shared_phase_folder,
    write_json,
)
from ehrlab.run.sweep import index_cohort, index_experiment, index_sweep, show
from ehrlab.simulation import SPECIFICATION, sequences
from ehrlab.simulation.spec import representative
from ehrlab.training.lit import PRECISIONS
from ehrlab.training.predict import predict
from ehrlab.training.recipe import Recipe
from ehrlab.training.runner import (
    WEIGHTS,
    agreed,
    close_loggers,
    is_rank_zero,
    load_weights,
    run_phase,
    save_weights,
    seed_model,
)
from ehrlab.training.search import search_phase

log = logging.getLogger("ehrlab")


def main(cfg: DictConfig) -> None:
    """Run everything that a command line asks for. Bad input ends in one line and exit code 2."""
    try:
        _main(cfg)
    except InputError as error:
        _fail(str(error))
    except MissingMandatoryValue as error:
        _fail(f"{str(error).splitlines()[0]}. Give it on the command line, for example data.root=/path/to/tables.")
    except InstantiationException as error:
        if not isinstance(error.__cause__, InputError):
            raise
        _fail(str(error.__cause__))
    except (OSError, PolarsError, SafetensorError) as error:
        if getattr(error, "errno", None) != errno.ENOSPC and "No space left on device" not in str(error):
            raise
        where = getattr(error, "filename", None) or cfg.paths.results
        _fail(f"{where}: the disk is full. Free some space and give the same command again; it goes on from there.")


def _fail(message: str) -> None:
    print(f"error: {message}", file=sys.stderr, flush=True)
    sys.exit(2)


def _main(cfg: DictConfig) -> None:
    matrix = entries(cfg)
    run_seeds = seeds(cfg)
    if cfg.paths.run is not None and len(matrix) * len(run_seeds) > 1:
        raise InputError(
            f"paths.run={cfg.paths.run}: expected a single run, found {len(matrix)} models x {len(run_seeds)} seeds. "
            "Give one seed and baselines=none, or leave paths.run out."
        )
    if is_multirun() and str(cfg.trainer.get("strategy", "")).startswith("ddp"):
        raise InputError(
            "trainer=ddp inside a sweep: each rank would start the whole sweep again. Give every job one device "
            "(trainer=gpu launcher=joblib or slurm), or start a single run under DDP."
        )
    if str(cfg.trainer.precision) not in PRECISIONS:
        raise InputError(
            f"trainer.precision={cfg.trainer.precision}: expected one of {', '.join(PRECISIONS)}. trainer=bf16 is half "
            "the memory on a GPU."
        )
    data_name = str(cfg.data.name)
    task = instantiate(cfg.task)
    wanted = wanted_by(matrix, task)
    source = open_source(cfg, tables_of(wanted, task))
    for entry in matrix:
        _check_requirements(entry, source.provides, task, data_name)
    data = open_data(cfg, source, task, wanted)
    kind = cfg.experiment.get("kind") if "experiment" in cfg else None
    if is_rank_zero():
        _announce(cfg, data)
    if kind == "cohorts":  # a table about data trains nothing
        if is_rank_zero():
            index_cohort(cfg, data)
            _index_job([])
        return
    exact = None
    if is_rank_zero() and source.simulated:
        exact = exact_risks(source, task, data, Path(cfg.paths.cache))

    finished = []
    for entry in matrix:
        for seed in run_seeds:
            run = _run(entry, seed, data, exact)
            finished.append(run)
            if kind is not None and kind in ANALYSES and is_rank_zero():
                _analyse(kind, entry, run, data)
    if not is_rank_zero():
        return
    _index_job(finished)
    if "experiment" in cfg:
        index_experiment(cfg, finished)
    if not is_multirun():
        show(finished, Path(cfg.paths.reports) / slug(f"{data_name}-{cfg.task.name}-{matrix[0].row}"))


def _index_job(finished: Sequence[Path]) -> None:
    """What a job of a sweep made: SweepReport shows the whole sweep at its end."""
    if is_multirun():
        hydra_cfg = HydraConfig.get()
        index_sweep(Path(hydra_cfg.sweep.dir), int(hydra_cfg.job.num), finished)


def _analyse(what: str, entry: Entry, run: Path, data: ClinicalData) -> None:
    """Look into a finished run, found or just trained."""
    model = build_model(entry, data.spec)
    load_weights(model, run / WEIGHTS)
    write_analysis(what, run, model, data)


def tables_of(wanted: Needs, task: Task) -> tuple[str, ...]:
    """The optional tables of a source that hold what models read, and what the task needs."""
    return tables_for(wanted.fields | wanted.vocabularies | task.tables)


def open_data(cfg: DictConfig, source: Source, task: Task, wanted: Needs) -> ClinicalData:
    """The samples of a task with all that is `wanted` of them; built where it is not in the cache."""
    return prepare(
        source,
        task,
        Path(cfg.paths.cache),
        split=plain(cfg.split),
        visits=plain(cfg.visits),
        simulated=source.simulated,
        wanted=wanted,
        tokens=plain(cfg.tokens),
        modalities={name: plain(cfg[name]) for name in MODAL},
        labelled=plain(cfg.labels),
    )


def open_source(cfg: DictConfig, tables: Sequence[str]) -> Source:
    """The data source; without a root, raw tables are simulated first, in the same layout.

    tables  optional tables: those are read, and simulated, where the config leaves it open
    """
    tables = [table for table in tables if table in cfg.data.get("can_read", ())]
    root = cfg.data.root
    if root is None:
        settings = {k: v for k, v in plain(cfg.data.simulation).items() if k != "_partial_"}
        if "modalities" in settings and settings["modalities"] is None:
            settings["modalities"] = simulated_for(tables, plain(cfg.data.can_simulate))
        if "shape" in settings:
            settings["preset"] = representative(settings["preset"], settings["shape"])
        key = content_hash({**settings, "specification": [SPECIFICATION, sequences.SPECIFICATION]})[:16]
        folder = Path(cfg.paths.cache) / "simulated" / f"{cfg.data.name}-{key}"
        root = build_once(folder, instantiate({**settings, "_partial_": True}))
    elif not Path(root).is_dir():
        raise InputError(f"data.root={root}: expected a folder of raw tables, found none there. Check the path.")
    left_open = "tables" in cfg.data.source and cfg.data.source.tables is None
    open_tables = instantiate(cfg.data.source)
    source: Source = open_tables(Path(root), tables=tables) if left_open else open_tables(Path(root))
    return source


def requirements(entry: Entry, unit: str) -> Needs:
    """What the entry's model reads where a sample is a `unit`."""
    model: type[Model] = get_class(entry.cfg.model._target_)
    return model.needs(unit, plain(entry.cfg.model))


def wanted_by(matrix: Sequence[Entry], task: Task) -> Needs:
    """What the models of `matrix` read together."""
    return reduce(or_, (requirements(entry, task.unit) for entry in matrix))


def _check_requirements(entry: Entry, provides: frozenset[str], task: Task, data_name: str) -> None:
    # Records as sequences of tokens can be had from whatever has visits.
    provides |= {"tokens"} if "visits" in provides else set()
    wanted = requirements(entry, task.unit)
    if missing := wanted.fields - provides:
        raise InputError(
            f"model '{entry.model}' needs {_braces(wanted.fields)}, of which data '{data_name}' does not "
            f"provide {_braces(missing)} (it provides {_braces(provides)}). Choose a model that needs less, other "
            "data, or more tables (data.source.tables)."
        )
    if hidden := wanted.samples - task.inputs:
        raise InputError(
            f"model '{entry.model}' reads {_braces(wanted.samples)}, of which a sample of task '{task.name}' has no "
            f"{_braces(hidden)} (it may have {_braces(task.inputs)}). Choose a model that needs less, or another task."
        )


def _braces(names: frozenset[str]) -> str:
    return "{" + ", ".join(sorted(names)) + "}"


def _announce(cfg: DictConfig, data: ClinicalData) -> None:
    """Say what the samples are: in full, or in a line where a sweep's earlier job has said it."""
    if data.simulated:
        log.info("SIMULATED data: no record below belongs to a real patient, and no number is a finding.")
    if is_multirun() and HydraConfig.get().job.num > 0:
        log.info("%s / %s: %d samples", cfg.data.name, cfg.task.name, data.cohort.num_samples)
    else:
        log.info("%s", data.cohort.table(str(cfg.data.name), str(cfg.task.name)))
    if "codes" in data.vocabularies and data.spec.codes is not None:
        ids = data.spec.codes.of_visit_codes
        known = sum(code > 0 for code in ids)
        log.info("%d of %d codes of visits are in the vocabulary of diagnoses; others are not read", known, len(ids))


# Settings of the trainer that do not determine a run's numbers, or are kept elsewhere. The rest, such as
# limit_train_batches, counts where it is set. Callbacks of one's own are for watching (conf/trainer): a run that was
# stopped goes on without them.
_WHERE_IT_RUNS = ("accelerator", "devices", "num_nodes", "strategy", "use_distributed_sampler", "profiler", "benchmark")
_WHAT_IT_SHOWS = (
    "enable_model_summary",
    "enable_progress_bar",
    "log_every_n_steps",
    "num_sanity_val_steps",
    "callbacks",
)
_ELSEWHERE = ("_target_", "_partial_", "precision", "max_epochs")


def identity(entry: Entry, seed: int, data: ClinicalData) -> dict[str, Any]:
    """What determines a run's numbers; paths, loggers and hardware (but for its precision) do not."""
    cfg = entry.cfg
    kept = {name: plain(cfg[name]) for name in ("model", "training", "task", "visits", "split", "bootstrap")}
    wanted = requirements(entry, data.spec.unit)
    if "tokens" in wanted.samples:
        kept |= {name: plain(cfg[name]) for name in ("tokens", "completion")}
    if (pretrained := kept["model"].get("pretrained")) is not None:
        kept["model"]["pretrained"] = weights_digest(Path(pretrained), "model.pretrained")
    # Of the views that the model reads: what is prepared for others beside it does not determine its numbers.
    if read := {view for view in data.records if view in wanted.views or view in wanted.samples}:
        kept["records"] = {view: data.records[view] for view in sorted(read)}
    if wanted.vocabularies:
        kept["vocabularies"] = {name: getattr(data.spec, name).content for name in sorted(wanted.vocabularies)}
    if "text" in wanted.fields and cfg.text.model != language.TINY:  # the stored text has its tokenizer alone
        kept["language_model"] = language.fingerprint(cfg.text.model)
    neutral = {*_WHERE_IT_RUNS, *_WHAT_IT_SHOWS, *_ELSEWHERE}
    if changed := {k: v for k, v in plain(cfg.trainer).items() if k not in neutral and v not in (None, [])}:
        kept["trainer"] = changed
    return {**kept, "data": data.fingerprint, "precision": str(cfg.trainer.precision), "seed": seed}


def config_hash(content: Mapping[str, Any]) -> str:
    """What the seeds of one configuration have in common."""
    return content_hash({k: v for k, v in content.items() if k != "seed"})[:8]


def _folder(entry: Entry, content: Mapping[str, Any]) -> Path:
    cfg = entry.cfg
    if cfg.paths.run is not None:
        return Path(cfg.paths.run)
    rows = Path(cfg.paths.results, cfg.data.name, cfg.task.name, slug(entry.row))
    return rows / config_hash(content) / f"seed={content['seed']}"


def _run(entry: Entry, seed: int, data: ClinicalData, exact: ExactRisks | None) -> Path:
    """One model, one seed: skipped if finished, resumed if begun. `exact` is rank 0's, for simulated data."""
    content = identity(entry, seed, data)
    run = RunFolder(_folder(entry, content), content)
    if not is_rank_zero():  # rank 0 holds the run, and writes all of it
        if not agreed(run.done):
            _train(entry, seed, data, run)
        return run.path
    with run.claim():
        if agreed(run.done):
            log.info("done before: %s, seed %d", entry.row, seed)
            return run.path
        started = time.perf_counter()
        log.info("training %s, seed %d", entry.row, seed)
        model, device = _train(entry, seed, data, run)
        metrics = _judge(entry, seed, data, run, exact, model, device)
        origin = provenance(data.fingerprint, time.perf_counter() - started, device)
        origin["samples"] = data.samples_fingerprint
        _record(entry, seed, data, run, metrics, origin, model)
        run.finish()
    return run.path


def _judge(
    entry: Entry, seed: int, data: ClinicalData, run: RunFolder, exact: ExactRisks | None, model: Model, device: str
) -> dict[str, Any]:
    """The content of metrics.json, from files that are written first."""
    cfg = entry.cfg
    bootstrap = {"num_bootstrap": cfg.bootstrap.num_resamples, "seed": cfg.bootstrap.seed}
    if isinstance(model, SequenceGenerator):
        settings = CompletionSettings(**plain(cfg.completion))
        draws = {"num_bootstrap": bootstrap["num_bootstrap"], "bootstrap_seed": bootstrap["seed"]}
        return judge_generator(model, data, settings, run.path, seed=seed, device=device, **draws)
    assert isinstance(model, RiskModel)
    predictions = predict(model, data, "held_out", batch_size=cfg.training.batch_size, device=device)
    with replacing(run.path / "predictions.parquet") as beside:
        predictions.write_parquet(beside)
    metrics = evaluate(predictions, **bootstrap)
    if exact is not None:
        reads = requirements(entry, data.spec.unit).samples
        metrics["oracle"], best = exact.judge(predictions, reads, **bootstrap)
        if best is not None:
            with replacing(run.path / "oracle.parquet") as beside:
                best.write_parquet(beside)
    return metrics


def _train(entry: Entry, seed: int, data: ClinicalData, run: RunFolder) -> tuple[Model, str]:
    """All phases in order; the model ends with the selected weights of the last."""
    cfg = entry.cfg
    seed_model(seed)
    model = build_model(entry, data.spec)
    trainer = instantiate({k: v for k, v in plain(cfg.trainer).items() if k != "callbacks"})
    callbacks = [instantiate(c) for c in cfg.trainer.callbacks]
    origin = "SIMULATED-" if data.simulated else ""
    name = f"{origin}{cfg.data.name}-{cfg.task.name}-{entry.row}-seed{seed}"
    loggers = [instantiate(logger)(name=name) for logger in cfg.logger.values()]
    for logger in loggers:
        settings = {**plain(cfg.model), **plain(cfg.training), "seed": seed, "simulated": data.simulated}
        logger.log_hyperparams(settings)
    device = "cpu"
    recipes = {phase.name: _recipes(cfg, phase) for phase in model.phases()}  # all, before the first hour of the first
    if entry.model == str(HydraConfig.get().runtime.choices["model"]):
        check_overrides_are_read(HydraConfig.get().overrides.task, cfg, model.phases())
    for phase in model.phases():
        folder = run.path / "phases" / phase.name
        with ExitStack() as held:
            if phase.ignores:
                folder = shared_phase_folder(Path(cfg.paths.results), phase, run.identity)
                if is_rank_zero():
                    held.enter_context(locked(folder / ".lock", str(folder)))
            options = {"seed": seed, "loggers": loggers, "callbacks": callbacks, "num_workers": cfg.num_workers}
            if len(recipes[phase.name]) == 1:
                [recipe] = recipes[phase.name].values()
                record = run_phase(model, phase, data, recipe, trainer, folder, **options)
            else:
                assert isinstance(phase, Phase)
                record = search_phase(model, phase, data, recipes[phase.name], trainer, folder, **options)
        device = record.get("device", device)
        if (epoch := record.get("resumed_from_epoch")) is not None:
            log.info("resumed phase '%s' after epoch %d", phase.name, epoch)
    close_loggers(loggers)
    return model, device


def build_model(entry: Entry, spec: DataSpec) -> Model:
    """The model of a config, or one line that says which setting it does not know."""
    build = instantiate(entry.cfg.model, _partial_=True, _convert_="all")
    try:
        model: Model = build(spec=spec)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise InputError(
            f"model '{entry.row}': {error}. A variant or override names a setting that this model does not have; "
            "choose variant=none or another model."
        ) from error
    return model


def _recipes(cfg: DictConfig, phase: AnyPhase) -> dict[str, Recipe]:
    """The protocol's settings with this phase's departures; one for each point of `grid`, by its name.

    The protocol's own grid is for phases that are selected by the task's score. A phase without gradients chooses its
    settings itself.
    """
    training = plain(cfg.training)
    departures = dict(training.pop("phases").get(phase.name, {}))
    of_all, own = training.pop("grid", None), departures.pop("grid", None)
    grid = own or (of_all if isinstance(phase, Phase) and phase.select == "risk" else None) or {}
    if isinstance(phase, EstimatorPhase):
        grid = {}
    elif grid and (not isinstance(phase, Phase) or phase.select == "last"):
        raise InputError(
            f"training.phases.{phase.name}.grid: expected a phase whose epochs are selected by a validation score, "
            "found one that keeps its last. Leave the grid out."
        )
    settings = OmegaConf.merge(training, departures)
    for key, values in grid.items():
        known = key not in ("monitor", "mode") and OmegaConf.select(settings, key) is not None
        if not known or not isinstance(values, list) or not values:
            raise InputError(
                f"grid of phase '{phase.name}': expected lists of values of training's settings by dotted key, such as "
                f"{{optimizer.lr: [1e-3, 1e-4], batch_size: [16, 64]}}, found {key}: {values}"
            )
    recipes = {}
    for point in product(*grid.values()):
        changed = settings.copy()
        for key, value in zip(grid, point, strict=True):
            OmegaConf.update(changed, key, value)
        recipes[",".join(f"{key}={value}" for key, value in zip(grid, point, strict=True))] = instantiate(changed)
    return recipes


def check_overrides_are_read(overrides: Sequence[str], cfg: DictConfig, phases: Sequence[AnyPhase]) -> None:
    """InputError where a number of the protocol is given by hand and every phase has its own in its place."""
    every = [phase.name for phase in phases]
    trained = [phase for phase in phases if not isinstance(phase, EstimatorPhase)]
    own = {phase.name: cfg.training.phases.get(phase.name) or OmegaConf.create() for phase in trained}
    searched = {phase.name: own[phase.name] for phase in trained if isinstance(phase, Phase) and phase.select == "risk"}
    for override in OverridesParser.create().parse_overrides(list(overrides)):
        given = str(override.key_or_group)
        key = "max_epochs" if given == "trainer.max_epochs" else given.removeprefix("training.")
        # With "+": the chosen training does not have it, and may have it for other models.
        if override.is_add() and key.startswith("phases.") and (name := key.split(".")[1]) not in every:
            raise InputError(f"{given}: the model has no phase {name!r}. Its phases: {', '.join(every)}.")
        # What a protocol's own grid is for, and what other settings are for (_recipes).
        readers = searched if key.split(".")[0] == "grid" else own
        if given == key or key.split(".")[0] == "phases" or not readers:
            continue
        place = "grid" if readers is searched else key
        if all(place in s.get("grid", {}) or OmegaConf.select(s, place) is not None for s in readers.values()):
            raise InputError(
                f"{given}: nothing would follow from it, each phase has its own. Set training.phases.NAME.{place}; "
                f"NAME is {' or '.join(readers)}."
            )
        if given == "trainer.max_epochs" and cfg.training.max_epochs != cfg.trainer.max_epochs:
            raise InputError(f"{given}: nothing would follow from it, training has its own. Set training.max_epochs.")


def _record(
    entry: Entry,
    seed: int,
    data: ClinicalData,
    run: RunFolder,
    metrics: Mapping[str, Any],
    origin: Mapping[str, Any],
    model: Model,
) -> None:
    """Everything that a report needs, before DONE."""
    cfg = entry.cfg
    save_weights(model, run.path / WEIGHTS)
    write_whole(run.path / "config.yaml", OmegaConf.to_yaml(cfg, resolve=True))
    write_json(run.path / "metrics.json", metrics)
    stores = {name: str(store.resolve()) for name, store in data.stores().items()}
    write_json(run.path / "provenance.json", {**origin, "stores": stores})
    write_json(run.path / "cohort.json", asdict(data.cohort))
    about = {
        "row": entry.row,
        "model": entry.model,
        "variant": entry.variant,
        "data": str(cfg.data.name),
        "task": str(cfg.task.name),
        "seed": seed,
        "simulated": data.simulated,
        "hash": config_hash(run.identity),
    }
    write_json(run.path / "run.json", about)
