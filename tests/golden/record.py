"""The first losses of every method at a fixed seed. Run as a script, it writes losses.json anew:

    PYTHONPATH=src:tests python tests/golden/record.py

Commit the new file only together with the change that moved the numbers, and say in the commit why they moved.
"""

import json
from pathlib import Path

from batches import random_batch
from steps import train
from tiny import CASES, build

GOLDEN = Path(__file__).with_name("losses.json")
NUM_STEPS = 4


def losses(case: str) -> list[float]:
    return train(build(*CASES[case], seed=0), [random_batch(num_samples=4, seed=seed) for seed in range(NUM_STEPS)])


if __name__ == "__main__":
    rows = [f" {json.dumps(case)}: {json.dumps([float(f'{loss:.7g}') for loss in losses(case)])}" for case in CASES]
    GOLDEN.write_text("{\n" + ",\n".join(rows) + "\n}\n")
