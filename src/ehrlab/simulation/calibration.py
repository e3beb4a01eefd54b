"""Is the exact risk exact? Simulated cohorts, in deciles of the risk: what was said and what happened.

    python -m ehrlab.simulation.calibration TABLES ORACLE [TABLES ORACLE ...]

TABLES is a parquet file of a cohort's samples (subject_id, prediction_time, label where there are several,
boolean_value), ORACLE what `oracle.write_oracle` wrote for them. Prints, per information set, average precision, the
mean risk and the share of positives, and the reliability in deciles. Where the risk is exact,

z      (positives - expected positives) / sd            is standard normal, for all samples and within each decile
score  the mean log score less its expectation, / sd    is standard normal; positive where the risk is overconfident
chi2   the sum of the deciles' z squared                 has as many degrees of freedom as there are deciles
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl
from numpy.typing import NDArray

Floats = NDArray[np.float64]

NUM_BINS = 10
_KEYS = ("subject_id", "prediction_time")


@dataclass(frozen=True, eq=False)
class Reliability:
    """Of one information set: said, happened, and their distance in standard deviations, per bin of equal size."""

    said: Floats
    happened: Floats
    z: Floats
    z_of_all: float
    z_of_score: float
    average_precision: float

    @property
    def chi2(self) -> float:
        return float((self.z**2).sum())


def reliability(risk: Floats, label: NDArray[np.bool_], num_bins: int = NUM_BINS) -> Reliability:
    order = np.argsort(risk, kind="stable")
    p, y = np.clip(risk[order], 1e-12, 1.0 - 1e-12), label[order].astype(np.float64)
    bins = np.arange(len(p)) * num_bins // len(p)
    count, said, happened, variance = (
        np.bincount(bins, weights, minlength=num_bins) for weights in (np.ones_like(p), p, y, p * (1.0 - p))
    )
    # The log score differs from its expectation by (y - p) log((1 - p) / p), summed.
    log_odds = np.log((1.0 - p) / p)
    score_sd = np.sqrt((p * (1.0 - p) * log_odds**2).sum())
    return Reliability(
        said=said / count,
        happened=happened / count,
        z=(happened - said) / np.sqrt(variance),
        z_of_all=float((y - p).sum() / np.sqrt(variance.sum())),
        z_of_score=float(((y - p) * log_odds).sum() / score_sd),
        average_precision=_average_precision(p, y),
    )


def _average_precision(ascending: Floats, label: Floats) -> float:
    """Mean over positives of the precision at their rank; ties count as one rank."""
    risk, y = ascending[::-1], label[::-1]
    hits = np.cumsum(y)
    last_of_tie = np.append(risk[1:] != risk[:-1], True)
    hits, rank = hits[last_of_tie], np.flatnonzero(last_of_tie) + 1.0
    return float((np.diff(hits, prepend=0.0) * hits / rank).sum() / hits[-1])


def table(samples: pl.DataFrame, oracle: pl.DataFrame) -> str:
    """Text for people: one line per information set, then its deciles; with a column label, the same for each label."""
    if "label" in oracle.columns:
        parts = [(name, part.drop("label")) for (name,), part in oracle.group_by("label", maintain_order=True)]
        mine = {name: samples.filter(pl.col("label") == name).drop("label") for name, _ in parts}
        return "\n\n".join(f"{name}: {table(mine[name], part)}" for name, part in parts)
    joined = samples.join(oracle, on=_KEYS, how="inner", validate="1:1")
    assert joined.height == samples.height, "every sample has an exact risk"
    label = joined["boolean_value"].to_numpy()
    lines = [f"{joined.height:,} samples, {label.mean():.3f} positive"]
    lines.append(f"{'':<24}{'AP':>7}{'mean':>7}{'z':>7}{'score':>7}{'chi2':>7}")
    for name in (name for name in oracle.columns if name not in _KEYS):
        found = reliability(joined[name].to_numpy(), label)
        mean = float(joined[name].to_numpy().mean())
        lines.append(
            f"{name:<24}{found.average_precision:>7.4f}{mean:>7.3f}{found.z_of_all:>7.2f}{found.z_of_score:>7.2f}"
            f"{found.chi2:>7.1f}"
        )
        for title, values in (("said", found.said), ("happened", found.happened)):
            lines.append(f"  {title:<10}" + "".join(f"{value:>7.3f}" for value in values))
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description="Reliability of exact risks in deciles.")
    parser.add_argument("files", nargs="+", type=Path, help="samples and oracle, in pairs")
    files = parser.parse_args(arguments).files
    if len(files) % 2:
        parser.error("expected pairs of files: samples, oracle")
    for samples, oracle in zip(files[::2], files[1::2], strict=True):
        print(f"{samples}\n{table(pl.read_parquet(samples), pl.read_parquet(oracle))}\n")


if __name__ == "__main__":
    main()
