"""Seconds per training step of each method beside the plain LSTM, on a batch of the MedDiffusion paper's kidney shape.

    python benchmarks/bench_step.py [--models lstm_time,retain,meddiffusion] [--repeats 20]      -> benchmarks/step.json

64 patients x 39 visits x 4.7 codes out of 8,800. Models, optimiser and clipping come from conf/ as for run.py; what
Lightning adds is left out; of a model of several phases it is the first. The models take one step each in turn, so that
a busy moment of the machine meets them all.
Target: 0.5 s a step for MedDiffusion on two cores.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

import measuring
from ehrlab.core.batch import Batch, Visits
from ehrlab.core.model import EstimatorPhase, Phase
from ehrlab.core.spec import DataSpec
from ehrlab.run.compose import Entry
from ehrlab.run.main import build_model
from ehrlab.training.runner import seed_model

CONF = Path(__file__).resolve().parents[1] / "conf"
REFERENCE = "lstm"
TARGETS = {"meddiffusion": 0.5}
NUM_SAMPLES, NUM_VISITS, MEAN_CODES, NUM_CODES = 64, 39, 4.7, 8_800
WARM_UP = 3


def kidney_batch() -> Batch:
    """Every patient has 39 visits; codes per visit are 1 + Poisson, as in the paper's Table 1."""
    torch.manual_seed(0)
    size = 1 + torch.poisson(torch.full((NUM_SAMPLES, NUM_VISITS, 1), MEAN_CODES - 1)).long()
    widest = int(size.max())
    codes = torch.randint(1, NUM_CODES + 1, (NUM_SAMPLES, NUM_VISITS, widest)) * (torch.arange(widest) < size)
    return Batch(
        subject_id=torch.arange(NUM_SAMPLES),
        prediction_time=torch.arange(NUM_SAMPLES),
        visits=Visits(
            codes=codes,
            days_before_last=torch.arange(NUM_VISITS - 1, -1, -1).float().expand(NUM_SAMPLES, -1) * 31,
            mask=torch.ones(NUM_SAMPLES, NUM_VISITS, dtype=torch.bool),
        ),
        labels=(torch.rand(NUM_SAMPLES, 1) < 0.25).float(),
    )


def composed(name: str, overrides: list[str]) -> DictConfig:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        return compose("config", [f"model={name}", *overrides])


def steppers(
    name: str, cfg: DictConfig, batch: Batch, clock: Callable[[], float] = time.perf_counter
) -> dict[str, Callable[[], float]]:
    """Per gradient phase of a model, by name: a training step on the batch, which returns its seconds by `clock`.

    A step is forward, backward, clipping and optimiser of every player. Phases without gradients are run before.
    """
    spec = DataSpec(
        num_codes=1 + NUM_CODES,
        num_labels=1,
        max_visits=cfg.visits.max_visits,
        max_codes=cfg.visits.max_codes,
        num_demographics=2,
        positive_rate=(0.25,),
    )
    seed_model(0)
    phases = build_model(Entry(name, name, "none", cfg), spec).train().phases()
    for phase in phases:
        if isinstance(phase, EstimatorPhase):
            phase.fit([batch], [batch])
    return {phase.name: _stepper(phase, cfg, batch, clock) for phase in phases if isinstance(phase, Phase)}


def _stepper(phase: Phase, cfg: DictConfig, batch: Batch, clock: Callable[[], float]) -> Callable[[], float]:
    settings = OmegaConf.merge(cfg.training, cfg.training.phases.get(phase.name, {}))
    make_optimizer = instantiate(settings.optimizer)
    players = [(turn, list(turn.params())) for turn in phase.turns]
    optimizers = [make_optimizer(params) for _, params in players]

    def step() -> float:
        begun = clock()
        for (turn, params), optimizer in zip(players, optimizers, strict=True):
            for _ in range(turn.repeat):
                loss = turn.loss(batch)["loss"]
                optimizer.zero_grad()
                loss.backward()
                if settings.gradient_clip:
                    torch.nn.utils.clip_grad_norm_(params, settings.gradient_clip)
                optimizer.step()
        return clock() - begun

    return step


def main() -> None:
    parser = measuring.parser(__doc__, repeats=20)
    parser.add_argument("--models", default="lstm_time,retain,meddiffusion")
    parser.add_argument("--overrides", default="", help="of the last model, separated by spaces")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    names = list(dict.fromkeys([REFERENCE, *arguments.models.split(",")]))
    overrides = {names[-1]: arguments.overrides.split()}
    batch = kidney_batch()
    steps = {}
    for name in names:
        first, *_ = steppers(name, composed(name, overrides.get(name, [])), batch).values()
        steps[name] = first
    rounds = [{name: step() for name, step in steps.items()} for _ in range(WARM_UP + arguments.repeats)][WARM_UP:]

    numbers = []
    for name in names:
        seconds = [taken[name] for taken in rounds]
        label = " ".join([name, *overrides.get(name, [])])
        numbers.append(measuring.number(f"a training step of {label}", "s", seconds, at_most=TARGETS.get(name)))
        if name != REFERENCE:
            ratios = [taken[name] / taken[REFERENCE] for taken in rounds]
            what = f"a training step of {label}, times the step of {REFERENCE}"
            numbers.append(measuring.number(what, measuring.RATIO, ratios))
    setting = {
        "patients": NUM_SAMPLES,
        "visits": NUM_VISITS,
        "codes_per_visit": MEAN_CODES,
        "codes": NUM_CODES,
        "threads": arguments.threads,
    }
    measuring.record("step", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
