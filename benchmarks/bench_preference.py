"""Seconds per step of preference tuning beside TRL's own trainer, on one language model and the same pairs.

    python benchmarks/bench_preference.py [--size small] [--repeats 4]      -> benchmarks/preference.json

CHIRon with 8,000 codes; batches of 8 pairs of records of 128 tokens. TRL's DPOTrainer has its own collator, which knows
ids only, and its own loss; both have reference log-probabilities computed before. A step is all of it: batch, forward,
backward, clipping, optimiser, metrics. Both train an epoch in turn and take turns in being first, so that a busy moment
of the machine meets both: --repeats 4 are eight rounds.
The second ratio is of an epoch on records of 20 to 400 tokens, where ours puts records of similar length together.
Target: 1.2 times TRL's step.
"""

from __future__ import annotations

import copy
import os
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TQDM_DISABLE": "1"}  # TRL's own trainer reports its use, and draws bars

import datasets
import numpy as np
import torch
from transformers import TrainerCallback
from transformers.trainer_callback import PrinterCallback
from trl import DPOTrainer

import measuring
from ehrlab.core.model import PreferencePhase
from ehrlab.core.spec import TokenSpec
from ehrlab.nn.chiron import ChironForCausalLM
from ehrlab.training.pairs import Pairs, Sequences, preference_pairs
from ehrlab.training.preference import CodeDPOTrainer, build_trainer
from ehrlab.training.recipe import Recipe

SPEC = TokenSpec(num_tokens=8_000, num_places=8, max_tokens=512, max_visits=48, first_code=20, targets=(30, 900))
CODES_PER_VISIT = 7
NUM_PAIRS, BATCH_SIZE = 32, 8
EVEN, RAGGED = (128, 128), (20, 400)


class Stock(DPOTrainer):
    """TRL's trainer on pairs that are tokens already."""

    def _prepare_dataset(self, dataset: Any, *_: Any) -> Any:
        return dataset


def pairs_of(shortest: int, longest: int) -> Pairs:
    """Of records with visits of seven codes each, half of them with a target."""
    rng = np.random.default_rng(0)
    lengths = rng.integers(shortest, longest + 1, NUM_PAIRS)
    offsets = np.concatenate([[0], np.cumsum(lengths)])
    ids = rng.integers(1_000, SPEC.num_tokens, offsets[-1])
    place = np.arange(len(ids)) - np.repeat(offsets[:-1], lengths)
    ids[place % (1 + CODES_PER_VISIT) == 1] = TokenSpec.VISIT
    ids[offsets[:-1]] = TokenSpec.BOS
    ids[offsets[1:] - 1] = TokenSpec.EOS
    ids[offsets[1::2] - 3] = SPEC.targets[0]
    ids[offsets[1] - 3] = SPEC.targets[1]
    visit = np.minimum((place + CODES_PER_VISIT) // (1 + CODES_PER_VISIT), SPEC.max_visits)
    records = Sequences(offsets, ids, visit, 40 + visit, visit % SPEC.num_places)
    return preference_pairs(records, SPEC, num_sequences=NUM_PAIRS, positive_share=0.5, seed=0)


def rows_of(pairs: Pairs) -> datasets.Dataset:
    """The pairs as TRL has them."""
    rows = []
    for i, length in enumerate(pairs.prompt_length):
        chosen, rejected = (
            side.ids[side.offsets[i] : side.offsets[i + 1]].tolist() for side in (pairs.chosen, pairs.rejected)
        )
        rows.append({"prompt_ids": chosen[:length], "chosen_ids": chosen[length:], "rejected_ids": rejected[length:]})
    return datasets.Dataset.from_list(rows)


class Clock(TrainerCallback):
    """Seconds from a train's begin to its last step."""

    def on_train_begin(self, *_: Any, **__: Any) -> None:
        self.begin = time.perf_counter()

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self.seconds = time.perf_counter() - self.begin


def epochs(trainer: DPOTrainer) -> Callable[[], float]:
    """One epoch of training; returns its seconds per step."""
    clock = Clock()
    trainer.add_callback(clock)
    trainer.remove_callback(PrinterCallback)
    trainer.args.save_strategy = "no"

    def run() -> float:
        trainer.train()
        return clock.seconds / (NUM_PAIRS / BATCH_SIZE)

    return run


def trainers(size: str, pairs: Pairs, folder: Path, use_gpu: bool) -> dict[str, Callable[[], float]]:
    torch.manual_seed(0)
    lm = ChironForCausalLM.from_sizes(SPEC, size, dropout=0.0, context_dropout=0.0)
    recipe = Recipe(
        optimizer=partial(torch.optim.AdamW, lr=1e-5, weight_decay=0.0, fused=True),  # as conf, and as TRL
        scheduler=partial(torch.optim.lr_scheduler.StepLR, step_size=1),
        scheduler_monitor="",
        batch_size=BATCH_SIZE,
        max_epochs=1,
        monitor="",
        mode="min",
        patience=0,
        gradient_clip=1.0,
    )
    ours_lm, stock_lm = lm, copy.deepcopy(lm)
    phase = PreferencePhase("tune", lambda: ours_lm)
    ours = build_trainer(ours_lm, phase, pairs, recipe, folder / "ours", 0, {"use_cpu": not use_gpu, "bf16": False})
    assert isinstance(ours, CodeDPOTrainer)
    args = copy.copy(ours.args)
    args.output_dir, args.learning_rate = str(folder / "stock"), 1e-5
    stock = Stock(model=stock_lm, args=args, train_dataset=rows_of(pairs), processing_class=ours.processing_class)
    return {"ours": epochs(ours), "TRL": epochs(stock)}


def taken(runs: Mapping[str, Callable[[], float]], first: str) -> dict[str, float]:
    """Seconds per step of each, in an order that begins with `first`."""
    return {name: runs[name]() for name in sorted(runs, key=lambda name: name != first)}


def main() -> None:
    parser = measuring.parser(__doc__, repeats=4)
    parser.add_argument("--size", default="small", help="of the language model: tiny, small or base")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    use_gpu = torch.cuda.is_available()

    numbers = []
    for what, target, lengths in (("a step", 1.2, EVEN), ("a step on records of 20 to 400 tokens", None, RAGGED)):
        with tempfile.TemporaryDirectory() as folder:
            runs = trainers(arguments.size, pairs_of(*lengths), Path(folder), use_gpu)
            rounds = [taken(runs, first) for first in ("ours", "TRL") * (1 + arguments.repeats)][2:]
        for name in runs:
            numbers.append(measuring.number(f"{what} of preference tuning, {name}", "s", [r[name] for r in rounds]))
        ratios = [seconds["ours"] / seconds["TRL"] for seconds in rounds]
        numbers.append(
            measuring.number(
                f"{what} of preference tuning, times that of TRL's trainer", measuring.RATIO, ratios, at_most=target
            )
        )
    setting = {
        "model": arguments.size,
        "codes": SPEC.num_tokens,
        "batch": BATCH_SIZE,
        "tokens": EVEN[0],
        "device": torch.cuda.get_device_name() if use_gpu else "cpu",
        "threads": arguments.threads,
        **{package: version(package) for package in ("trl", "transformers")},
    }
    measuring.record("preference", {"setting": setting, "numbers": numbers}, arguments.folder)


if __name__ == "__main__":
    main()
