"""Training samples per CPU-second of MedDiffusion's fifteen models, and their peak memory.

    python benchmarks/bench_baselines.py [--width 128] [--repeats 5] [--models lstm,retain]      -> benchmarks/baselines.json

The batch of bench_step.py: 64 patients x 39 visits x 4.7 codes out of 8,800, one thread. Models, optimiser and clipping
come from conf/, every width of 256 there becomes --width. A model of several phases has a line for each that takes
gradient steps. All models take their steps in turn. Targets, samples per CPU-second: twice (LSTM; SAnD and HiTANet, the
Transformer types) and three times (RETAIN, AdaCare) what the commonest public library for health records was measured to
do with these sizes on such a machine: LSTM 483, Transformer 437, RETAIN 267, AdaCare 510. And no step of a baseline
longer than ten of the LSTM's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import measuring
from bench_step import NUM_SAMPLES, composed, kidney_batch
from ehrlab.core.batch import Batch
from ehrlab.core.model import EstimatorPhase, Phase
from ehrlab.core.spec import DataSpec
from ehrlab.run.compose import Entry
from ehrlab.run.main import build_model
from ehrlab.training.runner import seed_model

REFERENCE = "lstm"
MODELS = (
    "lstm,dipole,retain,sand,adacare,lsan,retainex,timeline,tlstm,hitanet,medskim,maskehr,ehrgan,tabddpm,meddiffusion"
)
LIBRARY = {"lstm": (2, 483), "sand": (2, 437), "hitanet": (2, 437), "retain": (3, 267), "adacare": (3, 510)}
SLOWEST = 10.0  # LSTM steps
PAPER_WIDTH = 256  # sec. 4.1 of MedDiffusion, one for all rows
WARM_UP = 2


def at_width(name: str, width: int) -> DictConfig:
    cfg = composed(name, [])
    for key, size in OmegaConf.to_container(cfg.model).items():
        if size == PAPER_WIDTH:
            cfg.model[key] = width
    return cfg


def steppers(name: str, width: int, batch: Batch) -> dict[str, Callable[[], float]]:
    """One training step of each gradient phase; it returns its CPU seconds. Phases without gradients are run before."""
    cfg = at_width(name, width)
    spec = DataSpec(
        num_codes=int(batch.visits.codes.max()) + 1,
        num_labels=1,
        max_visits=cfg.visits.max_visits,
        max_codes=cfg.visits.max_codes,
        num_demographics=2,
        positive_rate=(0.25,),
    )
    seed_model(0)
    model = build_model(Entry(name, name, "none", cfg), spec).train()
    phases = [phase for phase in model.phases() if isinstance(phase, Phase)]
    for phase in model.phases():
        if isinstance(phase, EstimatorPhase):
            phase.fit([batch], [batch])
    return {
        name if len(phases) == 1 else f"{name}, phase {phase.name}": stepper(phase, cfg, batch) for phase in phases
    }


def stepper(phase: Phase, cfg: DictConfig, batch: Batch) -> Callable[[], float]:
    settings = OmegaConf.merge(cfg.training, cfg.training.phases.get(phase.name, {}))
    make_optimizer = instantiate(settings.optimizer)
    players = [(turn, list(turn.params())) for turn in phase.turns]
    optimizers = [make_optimizer(params) for _, params in players]

    def step() -> float:
        begun = time.process_time()
        for (turn, params), optimizer in zip(players, optimizers, strict=True):
            for _ in range(turn.repeat):
                loss = turn.loss(batch)["loss"]
                optimizer.zero_grad()
                loss.backward()
                if settings.gradient_clip:
                    torch.nn.utils.clip_grad_norm_(params, settings.gradient_clip)
                optimizer.step()
        return time.process_time() - begun

    return step


def two_steps(name: str, width: int) -> None:
    """For the peak of memory: gradients and the optimiser's state exist from the first step on."""
    torch.set_num_threads(1)
    for step in steppers(name, width, kidney_batch()).values():
        step(), step()


def main() -> None:
    parser = measuring.parser(__doc__, repeats=5)
    parser.add_argument("--models", default=MODELS)
    parser.add_argument("--width", type=int, default=128)
    arguments = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)
    names = list(dict.fromkeys([REFERENCE, *arguments.models.split(",")]))
    batch = kidney_batch()
    steps = {what: step for name in names for what, step in steppers(name, arguments.width, batch).items()}
    rounds = [{what: step() for what, step in steps.items()} for _ in range(WARM_UP + arguments.repeats)][WARM_UP:]

    numbers = []
    for what in steps:
        seconds = [taken[what] for taken in rounds]
        times, library = LIBRARY.get(what, (0, 0))
        line = f"training {what}"
        rates = [NUM_SAMPLES / s for s in seconds]
        numbers.append(measuring.number(line, "samples per CPU-s", rates, at_least=times * library or None))
        if what != REFERENCE:
            ratios = [taken[what] / taken[REFERENCE] for taken in rounds]
            limit = None if what.startswith("meddiffusion") else SLOWEST
            line = f"a step of {what}, times the step of {REFERENCE}, one thread"
            numbers.append(measuring.number(line, measuring.RATIO, ratios, at_most=limit))
    for name in names:
        peak = measuring.in_fresh_process(two_steps, name, arguments.width).peak_mib
        numbers.append(measuring.number(f"training {name}, imports included", "MiB", [peak]))
    setting = {"patients": NUM_SAMPLES, "visits": 39, "codes_per_visit": 4.7, "codes": 8_800, "threads": 1}
    setting["width"] = arguments.width
    measuring.record("baselines", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
