"""Completions of an invented generator, as a run leaves them: 20 codes, two of them targets."""

import numpy as np
import polars as pl

from ehrlab.core.spec import TokenSpec

# Large, so that no count, metric or threshold of a test contains it by chance.
FIRST_SUBJECT = 918273645001
SPEC = TokenSpec(num_tokens=27, num_places=3, max_tokens=64, max_visits=8, first_code=7, targets=(9, 25))
CAUSES = (11, 12)
TYPES = {
    "subject_id": pl.Int64,
    "split": pl.String,
    **dict.fromkeys(("prompt", "truth", "generated"), pl.List(pl.Int32)),
    "target_probability": pl.Float64,
}


def table(rows: list[tuple]) -> pl.DataFrame:
    """(split, prompt, truth, generated, probability) of each subject."""
    numbered = [(FIRST_SUBJECT + i, *row) for i, row in enumerate(rows)]
    return pl.DataFrame(numbered, schema=TYPES, orient="row")


def continuation(rng: np.random.Generator, risk: float, length: int = 6) -> list[int]:
    """Codes in two visits; the target with probability `risk`."""
    codes = rng.choice(range(13, 25), length, replace=False).tolist()
    codes.insert(length // 2, SPEC.VISIT)
    if rng.random() < risk:
        codes.insert(int(rng.integers(0, length)), int(rng.choice(SPEC.targets)))
    return [*codes, SPEC.EOS]


def risk_of(prompt: list[int]) -> float:
    """The target follows its two causes."""
    return 0.05 + 0.4 * sum(cause in prompt for cause in CAUSES)


def world(
    num: int = 200, seed: int = 0, knows: bool = True, split: str = "held_out", first: int = 0, run_seed: int = 0
) -> pl.DataFrame:
    """Completions by a generator that knows the causes of the target, or knows only how common it is.

    The records depend on all but `knows` and `run_seed`.
    """
    rng, model = (np.random.default_rng([seed, first, stream]) for stream in (0, 1 + run_seed))
    rows = []
    for _ in range(num):
        causes = [cause for cause in CAUSES if rng.random() < 0.4]
        prompt = [SPEC.BOS, 5, SPEC.VISIT, *causes, *rng.choice(range(13, 25), 3, replace=False).tolist()]
        risk = risk_of(prompt)
        guess = risk if knows else 0.37
        rows.append((split, prompt, continuation(rng, risk), continuation(model, guess), guess))
    return table(rows).with_columns(pl.col("subject_id") + first)
