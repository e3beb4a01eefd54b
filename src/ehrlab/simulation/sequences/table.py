"""The table of docs/simulation_sequences.md, computed: sixteen cohorts, prevalences, and how well the oracle ranks.

The numbers of the page, and those of solved.py:

    python -m ehrlab.simulation.sequences.table --patients 100000 --seed 0 --visit 8
    python -m ehrlab.simulation.sequences.table --solve
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata

from ehrlab.simulation.population import Bools, Floats
from ehrlab.simulation.sequences import chain
from ehrlab.simulation.sequences.blocks import RLTF
from ehrlab.simulation.sequences.oracle import INFORMATION, observe, oracle, visit_days
from ehrlab.simulation.sequences.population import simulate
from ehrlab.simulation.sequences.spec import Spec


@dataclass(frozen=True)
class Sample:
    """A population at one landmark: arrays are [patient, target]."""

    num_tokens: Floats  # [patient]
    num_visits: Floats  # [patient]
    num_codes: int  # distinct
    ever: Bools  # the record holds the target
    at_risk: Bools  # the record reaches the landmark without it
    occurs: Bools  # for the first time after the landmark
    risk: dict[str, Floats]


def sample(num_patients: int, seed: int, ordinal: int) -> Sample:
    """Simulates, and asks the oracle after each patient's visit number `ordinal`."""
    tokens, visits, ever, at_risk, occurs = [], [], [], [], []
    risks: dict[str, list[Floats]] = {name: [] for name in INFORMATION}
    seen = np.zeros(RLTF.vocabulary_size, bool)
    for shard in simulate(num_patients, seed):
        at = oracle(shard, visit_days(observe(shard), ordinal))
        tokens.append(np.bincount(shard.visits.patient[shard.codes.visit], minlength=shard.num_patients))
        visits.append(np.bincount(shard.visits.patient, minlength=shard.num_patients))
        seen[shard.codes.code] = True
        ever.append(at.had | at.occurs)
        at_risk.append(at.is_known[:, None] & ~at.had)
        occurs.append(at.occurs)
        for name in INFORMATION:
            risks[name].append(at.first[name])
    return Sample(
        np.concatenate(tokens),
        np.concatenate(visits),
        int(seen.sum()),
        np.concatenate(ever),
        np.concatenate(at_risk),
        np.concatenate(occurs),
        {name: np.concatenate(parts) for name, parts in risks.items()},
    )


def auroc(label: Bools, score: Floats) -> float:
    """P(a case is ranked above a control), ties counting half; NaN without both."""
    positive = int(label.sum())
    negative = len(label) - positive
    if not positive or not negative:
        return float("nan")
    return float((rankdata(score)[label].sum() - positive * (positive + 1) / 2) / (positive * negative))


def table(spec: Spec, found: Sample, ordinal: int) -> str:
    """Markdown."""
    lines = [
        f"{len(found.ever):,} patients, {found.num_visits.mean():.1f} visits (at most {found.num_visits.max()}) and "
        f"{found.num_tokens.mean():.1f} tokens per patient (99th percentile {np.percentile(found.num_tokens, 99):.0f}, "
        f"most {found.num_tokens.max()}), {found.num_codes:,} of {spec.vocabulary_size:,} codes seen. "
        f"Landmark: visit {ordinal}.",
        "",
        "| cohort | paper % | exact % | simulated % | at risk | cases | AUROC targets+time | codes+time | latent |",
        "|-|-|-|-|-|-|-|-|-|",
    ]
    exact = [chain.prevalence(spec, block, np.array(target.coded)) for block in spec.blocks for target in block.targets]
    for i, target in enumerate(spec.targets):
        rows = found.at_risk[:, i]
        scores = " | ".join(f"{auroc(found.occurs[rows, i], found.risk[name][rows, i]):.3f}" for name in INFORMATION)
        lines.append(
            f"| {target.cohort} | {100 * target.prevalence:.3f} | {100 * exact[i]:.3f} | "
            f"{100 * found.ever[:, i].mean():.3f} | {rows.sum():,} | {found.occurs[rows, i].sum():,} | {scores} |"
        )
    return "\n".join(lines)


def calibration(spec: Spec, found: Sample) -> str:
    """How far outcomes lie from the risks: z of each cohort's bins of risk (four to a decade), expecting at least 5."""
    lines = []
    edges = np.concatenate([[0.0], 10.0 ** np.arange(-6, 0, 0.25)])
    for name in INFORMATION:
        scores = []
        for i in range(len(spec.targets)):
            rows = found.at_risk[:, i]
            risk, outcome = found.risk[name][rows, i], found.occurs[rows, i]
            place = np.searchsorted(edges, risk, side="right")
            expected, spread, seen = (np.bincount(place, weights=w) for w in (risk, risk * (1.0 - risk), outcome))
            enough = expected >= 5
            scores.append((seen[enough] - expected[enough]) / np.sqrt(spread[enough]))
        z = np.concatenate(scores)
        lines.append(f"* {name}: {len(z)} bins, mean z^2 {np.mean(z**2):.2f}, largest |z| {np.abs(z).max():.1f}")
    return "\n".join(lines)


def solved(spec: Spec) -> str:
    """The dictionary of solved.py."""
    lines = ["AT_VISIT = {"]
    for block in spec.blocks:
        lines += [f'    "{t.cohort}": {chain.solve(spec, block, i)!r},' for i, t in enumerate(block.targets)]
    return "\n".join([*lines, "}"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=20_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--visit", type=int, default=8, help="landmark: the number of visits known")
    parser.add_argument("--solve", action="store_true", help="print the numbers of solved.py instead")
    arguments = parser.parse_args()
    if arguments.solve:
        print(solved(RLTF))
    else:
        found = sample(arguments.patients, arguments.seed, arguments.visit)
        print(table(RLTF, found, arguments.visit), calibration(RLTF, found), sep="\n\n")


if __name__ == "__main__":
    main()
