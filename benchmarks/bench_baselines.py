"""Training samples per CPU-second of MedDiffusion's fifteen models, and their peak memory.

    python benchmarks/bench_baselines.py [--width 128] [--models lstm,retain] [--repeats 5] -> benchmarks/baselines.json

The batch of bench_step.py: 64 patients x 39 visits x 4.7 codes out of 8,800, one thread. Models, optimiser and
clipping come from conf/, with their large *_dim scaled as 256 is to --width. A model of several phases has a line for
each that takes gradient steps. All models take their steps in turn. Targets, in samples per CPU-second: twice (LSTM;
SAnD and HiTANet, the Transformer types) and three times (RETAIN, AdaCare) what the commonest public library for
health records was measured to do with these sizes on such a machine: LSTM 483, Transformer 437, RETAIN 267, AdaCare
510. And no step of a baseline longer than ten of the LSTM's.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import torch
from omegaconf import DictConfig, OmegaConf

import measuring
from bench_step import MEAN_CODES, NUM_CODES, NUM_SAMPLES, NUM_VISITS, composed, kidney_batch, steppers
from ehrlab.core.batch import Batch

REFERENCE = "lstm"
MODELS = (
    "lstm,dipole,retain,sand,adacare,lsan,retainex,timeline,tlstm,hitanet,medskim,maskehr,ehrgan,tabddpm,meddiffusion"
)
LIBRARY = {"lstm": (2, 483), "sand": (2, 437), "hitanet": (2, 437), "retain": (3, 267), "adacare": (3, 510)}
SLOWEST = 10.0  # LSTM steps
PAPER_WIDTH = 256  # sec. 4.1 of MedDiffusion, one for all rows
SMALL_DIM = 64  # of scores, filters, times: belongs to its method, not to the width
WARM_UP = 2


def at_width(name: str, width: int) -> DictConfig:
    cfg = composed(name, [])
    for key, size in OmegaConf.to_container(cfg.model).items():
        if str(key).endswith("_dim") and isinstance(size, int) and size > SMALL_DIM:
            cfg.model[key] = size * width // PAPER_WIDTH
    return cfg


def labelled(name: str, width: int, batch: Batch) -> dict[str, Callable[[], float]]:
    """The steps of a model's phases, with the name of each where there are several."""
    steps = steppers(name, at_width(name, width), batch, time.process_time)
    return {name if len(steps) == 1 else f"{name}, phase {phase}": step for phase, step in steps.items()}


def two_steps(name: str, width: int) -> None:
    """For the peak of memory: gradients and the optimiser's state exist from the first step on."""
    torch.set_num_threads(1)
    for step in labelled(name, width, kidney_batch()).values():
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
    steps = {what: step for name in names for what, step in labelled(name, arguments.width, batch).items()}
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
    setting = {
        "patients": NUM_SAMPLES,
        "visits": NUM_VISITS,
        "codes_per_visit": MEAN_CODES,
        "codes": NUM_CODES,
        "width": arguments.width,
        "threads": 1,
    }
    measuring.record("baselines", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
