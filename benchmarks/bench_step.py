"""Seconds per training step of each method beside the plain LSTM, on a batch of the MedDiffusion paper's kidney shape.

    python benchmarks/bench_step.py [--models meddiffusion,retain] [--threads 2] [--out benchmarks/step.json]

64 patients x 39 visits x 4.7 codes, 8,800 codes, width 256; forward, backward and the Adam step of the protocol.
Expected: MedDiffusion below 0.5 s on two cores.
"""

import argparse
import json
import platform
import resource
import statistics
import subprocess
import time
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate

from ehrlab.core.batch import Batch, Visits
from ehrlab.core.model import Model, Phase
from ehrlab.core.spec import DataSpec

CONF = Path(__file__).resolve().parents[1] / "conf"
SPEC = DataSpec(num_codes=8_801, num_labels=1, max_visits=50, max_codes=20, num_demographics=2, positive_rate=(0.25,))
REFERENCE = "lstm"


def kidney_batch(num_samples: int = 64, mean_visits: int = 39, mean_codes: float = 4.7) -> Batch:
    """Every patient has 39 visits; codes per visit are 1 + Poisson, as in the paper's Table 1."""
    torch.manual_seed(0)
    size = 1 + torch.poisson(torch.full((num_samples, mean_visits, 1), mean_codes - 1)).long()
    widest = int(size.max())
    codes = torch.randint(1, SPEC.num_codes, (num_samples, mean_visits, widest)) * (torch.arange(widest) < size)
    days = torch.arange(mean_visits - 1, -1, -1).float().expand(num_samples, -1) * 31
    mask = torch.ones(num_samples, mean_visits, dtype=torch.bool)
    return Batch(
        subject_id=torch.arange(num_samples),
        prediction_time=torch.arange(num_samples),
        visits=Visits(codes=codes, days_before_last=days, mask=mask),
        labels=(torch.rand(num_samples, 1) < 0.25).float(),
    )


def build(overrides: list[str]) -> Model:
    with initialize_config_dir(str(CONF), version_base="1.3"):
        config = compose(overrides=[f"+model={overrides[0]}", *overrides[1:]]).model
    torch.manual_seed(0)
    return instantiate(config, _partial_=True, _convert_="all")(spec=SPEC)


def seconds_per_step(model: Model, batch: Batch, repeats: int, warm_up: int = 3) -> list[float]:
    phase = model.phases()[0]
    assert isinstance(phase, Phase)
    players = [(turn, torch.optim.Adam(turn.params(), lr=1e-3, weight_decay=1e-3)) for turn in phase.turns]
    times = []
    for _ in range(warm_up + repeats):
        start = time.perf_counter()
        for turn, optimiser in players:
            optimiser.zero_grad()
            turn.loss(batch)["loss"].backward()
            optimiser.step()
        times.append(time.perf_counter() - start)
    return times[warm_up:]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", default="lstm,lstm_time,retain,meddiffusion")
    parser.add_argument("--overrides", default="", help="of the last model, separated by spaces")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=10)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    batch = kidney_batch()
    names = arguments.models.split(",")
    rows: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys([REFERENCE, *names]):
        extra = arguments.overrides.split() if name == names[-1] else []
        times = seconds_per_step(build([name, *extra]), batch, arguments.repeats)
        rows[name] = {
            "median_s": statistics.median(times),
            "fastest_s": min(times),
            "slowest_s": max(times),
            "overrides": extra,
        }
        rows[name]["times_the_lstm"] = rows[name]["median_s"] / rows[REFERENCE]["median_s"]
        print(f"{name:16} {rows[name]['median_s']:.3f} s a step, {rows[name]['times_the_lstm']:.2f} x lstm", flush=True)
    if arguments.out:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, check=True).stdout.strip()
        report = {
            "shape": {"patients": 64, "visits": 39, "codes_per_visit": 4.7, "codes": 8_800, "width": 256},
            "steps": rows,
            "threads": arguments.threads,
            "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
            "machine": f"{platform.machine()}, {platform.system()}",
            "python": platform.python_version(),
            "torch": torch.__version__,
            "commit": commit,
        }
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
