"""Disk and memory of MEDHMP on as many stays as MIMIC has: 100,000 x 48 hours x 1,318 features.

    python benchmarks/bench_stays.py [--stays 100000] [--per-hour 64]       -> benchmarks/stays.json

The store is written by what writes it for real, from drawn features; 64 of an hour's 1,318 are more than real charts
have. Then, each in a process of its own: training steps on 128 stays, which the reader draws from all over the store,
and one step of the admission level on the paper's batch of 4,096, in chunks of 128, beside one of 512. The vectors of
notes are drawn when they are asked for. Targets: 16 GiB of disk, 4 GiB of memory.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

import measuring
from bench_step import composed
from ehrlab.core.batch import Batch, CodeSets, Notes
from ehrlab.core.model import Phase
from ehrlab.core.spec import CodeSetSpec, DataSpec, NoteSpec, StaySpec
from ehrlab.data.modalities.stay_store import Part, StayReader, write
from ehrlab.run.compose import Entry
from ehrlab.run.main import build_model
from ehrlab.training.runner import seed_model

HOURS, FEATURES = 48, 1_318  # MEDHMP, Table 8
SPEC = DataSpec(
    num_codes=1,
    num_labels=1,
    max_visits=1,
    max_codes=1,
    num_demographics=73,
    positive_rate=(0.1,),
    unit="stay",
    stays=StaySpec(FEATURES, HOURS, max_stays=3),
    codes=CodeSetSpec(num_diagnoses=7_687, num_drugs=1_500),
    notes=NoteSpec(dim=768, max_notes=4),
)
AT_ONCE = 5_000
MOST_DISK, MOST_MEMORY = 16.0, 4 * 2**10


def write_store(folder: Path, num_stays: int, per_hour: int) -> float:
    """GiB on disk. Features are drawn without regard to each other; an admission has one stay, every tenth has two."""
    rng, parts, stored = np.random.default_rng(0), [], np.zeros(FEATURES, dtype=np.int64)
    for begin in range(0, num_stays, AT_ONCE):
        stay = np.arange(begin, min(begin + AT_ONCE, num_stays))
        lengths = rng.poisson(per_hour, (len(stay), HOURS)).astype(np.uint16)
        ids = rng.integers(0, FEATURES, lengths.sum(), dtype=np.uint16)
        stored += np.bincount(ids, minlength=FEATURES)
        parts.append(folder / f"part-{begin}.npz")
        Part(stay, lengths, ids).save(parts[-1])
    write(folder, parts, np.arange(FEATURES), stored, num_stays, HOURS)
    for part in parts:
        part.unlink()
    offsets = np.concatenate([[0], np.cumsum(np.where(np.arange(num_stays) % 10 == 0, 2, 1))])
    offsets = offsets[offsets <= num_stays]
    np.save(folder / "offsets.npy", offsets)
    np.save(folder / "stays.npy", np.arange(num_stays))
    return sum(file.stat().st_size for file in folder.glob("*.npy")) / 2**30


def drawn(reader: StayReader, rows: Sequence[int]) -> Batch:
    size = len(rows)
    return Batch(
        subject_id=torch.arange(size),
        prediction_time=torch.arange(size),
        stays=reader(np.asarray(rows)),
        codes=CodeSets(torch.randint(1, 7_687, (size, 15)), torch.randint(1, 1_500, (size, 30))),
        notes=Notes(torch.randn(size, 4, 768), torch.ones(size, 4, dtype=torch.bool)),
        demographics=torch.rand(size, SPEC.num_demographics),
    )


def train(folder: Path, phase_name: str, batch_size: int, steps: int) -> float:
    """Seconds of the last step."""
    torch.set_num_threads(2)
    seed_model(0)
    model = build_model(Entry("medhmp", "medhmp", "none", composed("medhmp", [])), SPEC).train()
    phase = next(p for p in model.phases() if isinstance(p, Phase) and p.name == phase_name)
    optimizer = torch.optim.AdamW(phase.turns[0].params(), lr=5e-4)
    reader = StayReader(folder, folder, FEATURES)
    rng, num_rows = np.random.default_rng(0), len(np.load(folder / "offsets.npy", mmap_mode="r")) - 1
    taken = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        batch = drawn(reader, rng.integers(0, num_rows, batch_size))
        optimizer.zero_grad()
        phase.turns[0].loss(batch)["loss"].backward()
        optimizer.step()
        taken = time.perf_counter() - start
    return taken


def main() -> None:
    parser = measuring.parser(__doc__, repeats=1)
    parser.add_argument("--stays", type=int, default=100_000)
    parser.add_argument("--per-hour", type=int, default=64)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        gib = write_store(folder, arguments.stays, arguments.per_hour)
        numbers = [measuring.number("features of all stays on disk", "GiB", [gib], at_most=MOST_DISK)]
        for phase, batch_size, steps in (("stay", 128, 20), ("admission", 512, 1), ("admission", 4_096, 1)):
            cost = measuring.in_fresh_process(train, folder, phase, batch_size, steps)
            what = f"phase {phase}, batches of {batch_size:,}"
            numbers.append(measuring.number(f"{what}, imports included", "MiB", [cost.peak_mib], at_most=MOST_MEMORY))
            numbers.append(measuring.number(f"a step of {what}, two threads", "s", [cost.returned]))
    setting = {"stays": arguments.stays, "hours": HOURS, "features": FEATURES, "features_per_hour": arguments.per_hour}
    measuring.record("stays", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
