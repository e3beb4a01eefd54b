"""Run folders of invented generators, as the composition root leaves them."""

from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.evaluation import generation, utility
from ehrlab.evaluation.sequences import HELD_OUT, read_completions
from fake_completions import SPEC, world
from fake_runs import write_json, write_run


def write_generator(
    results: Path, *, row: str, seed: int = 0, knows: bool = True, asked: bool = True, num: int = 120, **settings: Any
) -> Path:
    """`knows`: it knows the causes of the target. `asked`: it was asked for the target's probability."""
    completions = pl.concat(
        [
            world(num=num, knows=knows, run_seed=seed),
            world(num=30, knows=knows, split="train", first=5000, run_seed=seed),
        ]
    )
    if not asked:
        completions = completions.with_columns(target_probability=pl.lit(None, pl.Float64))
    used = utility.predict(completions, SPEC, utility.Classifier(num_trees=5, num_threads=1))
    synthetic = world(num=40, seed=1, knows=knows, run_seed=seed).select("subject_id", ids="generated")
    folder = write_run(results, row=row, model=row, seed=seed, task="septicemia", data="sequences", **settings)
    completions.write_parquet(folder / "completions.parquet")
    used.write_parquet(folder / "utility.parquet")
    read_completions(completions, SPEC)[HELD_OUT].predictions().write_parquet(folder / "predictions.parquet")
    metrics = generation.evaluate(
        completions,
        SPEC,
        utility_predictions=used,
        synthetic=synthetic,
        real={
            split: part.select("subject_id", ids=pl.concat_list("prompt", "truth"))
            for (split,), part in completions.group_by("split")
        },
        num_bootstrap=120,
        seed=0,
    )
    write_json(folder / "metrics.json", metrics)
    return folder
