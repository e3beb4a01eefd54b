"""The exact risks of the sequence population: against enumeration, against outcomes, and against each other."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import polars as pl
import pytest

from ehrlab.simulation.sequences import chain, oracle, oracle_table, simulate
from ehrlab.simulation.sequences.blocks import RLTF
from ehrlab.simulation.sequences.oracle import INFORMATION, observe, visit_days
from ehrlab.simulation.sequences.population import Shard
from ehrlab.simulation.sequences.posterior import Observed, landmark, occurs, returns, states
from ehrlab.simulation.sequences.spec import Block, Signal, Spec, Target
from ehrlab.simulation.sequences.table import auroc, sample

TINY_BLOCK = Block(
    "tiny",
    ("well", "ill", "worse"),
    moves=((0, 1, 0.2), (1, 0, 0.1), (1, 2, 0.3), (2, 1, 0.25)),
    signals=(Signal("a", (0.1, 0.6, 0.3), ("R05.9",)), Signal("b", (0.3, 0.2, 0.7), ("R42",))),
    targets=(
        Target("t", "T", 0.2, (0.1, 0.3, 1.0), 0.4, 0.35, ("R55",)),
        Target("v", "V", 0.2, (0.2, 1.0, 0.5), 0.3, 0.15, ("R34",)),
    ),
    worsening=(0.5, 1.5),
)
TINY = Spec(
    (TINY_BLOCK,),
    weeks=5,
    max_visits=3,
    age_share=(0.6, 0.4),
    frailty_share=(0.7, 0.3),
    visit=(0.3, 0.8),
    burn_in_weeks=2,
)


def record(days: list[int], signals: list[list[int]], targets: list[list[int]], risk: int) -> Observed:
    flags = np.array(signals, bool), np.array(targets, bool)
    return Observed(np.array([[risk]]), np.zeros(len(days), np.int64), np.array(days), (flags[0],), (flags[1],))


# days, signals and targets of each visit, risk class, landmark day
RECORDS = [
    ([0], [[0, 0]], [[0, 0]], 0, 0),
    ([0], [[1, 0]], [[0, 0]], 1, 3),
    ([0, 9], [[1, 0], [1, 1]], [[0, 0], [0, 1]], 0, 9),
    ([0, 9], [[1, 0], [0, 1]], [[0, 1], [0, 0]], 1, 18),
    ([0, 13], [[0, 1], [1, 1]], [[0, 0], [0, 0]], 1, 20),
    ([0, 25], [[0, 1], [1, 1]], [[0, 1], [0, 1]], 0, 29),
    ([0, 8, 15], [[0, 0], [1, 1], [1, 0]], [[0, 0], [0, 0], [0, 0]], 1, 22),
    ([0, 22], [[0, 0], [1, 1]], [[0, 0], [0, 0]], 1, 34),
]


@pytest.mark.parametrize("case", RECORDS)
def test_filter_equals_enumeration_of_all_paths_visits_and_frailties(case: tuple) -> None:
    days, signals, targets, risk, day = case
    observed = record(days, signals, targets, risk)
    at = landmark(TINY, observed, np.array([day]))
    state = states(TINY, observed, at, 0)
    posterior, risks = enumerate_all(days, signals, targets, risk, day)
    np.testing.assert_allclose(state[0], posterior, atol=1e-10)
    for i, target in enumerate(TINY_BLOCK.targets):
        had = any(flags[i] for flags in targets)
        if had:
            found = returns(TINY, at, target.again, at.frailty)
        else:
            found = occurs(TINY, TINY_BLOCK, i, observed.risk[:, 0], at, state, at.frailty)
        assert found[0] == pytest.approx(risks[i], abs=1e-10)


def enumerate_all(
    days: list[int], signals: list[list[int]], targets: list[list[int]], risk: int, day: int
) -> tuple[np.ndarray, list[float]]:
    """Sums over everything that is hidden or still to come, without recursions: P(state at the landmark), P(target)."""
    moves, entry = chain.kernel(TINY_BLOCK)[risk], chain.start(TINY, TINY_BLOCK)[risk]
    week, weekday = divmod(day, 7)
    seen = {d // 7: ordinal for ordinal, d in enumerate(days)}
    weeks = range(TINY.weeks)
    total, of_state, away = 0.0, np.zeros(3), np.zeros(2)
    for (u, share), path, raw in itertools.product(
        enumerate(TINY.frailty_share),
        itertools.product(range(3), repeat=TINY.weeks),
        itertools.product((0, 1), repeat=4),
    ):
        visits = [0, *(w for w in weeks if w and raw[w - 1])][: TINY.max_visits]
        if [w for w in visits if w < week] != [w for w in seen if w < week] or (week in seen and week not in visits):
            continue
        p = share * entry[path[0]]
        p *= math.prod(moves[path[w], path[w + 1]] for w in weeks[:-1])
        p *= math.prod(TINY.visit[u] if made else 1.0 - TINY.visit[u] for made in raw)
        if week not in seen and week in visits:
            p *= (6 - weekday) / 7  # it falls on a later day of the week
        had = [False, False]
        for w, ordinal in seen.items():
            s = path[w]
            for flag, signal in zip(signals[ordinal], TINY_BLOCK.signals, strict=True):
                p *= signal.coded[s] if flag else 1.0 - signal.coded[s]
            for i, target in enumerate(TINY_BLOCK.targets):
                if not had[i]:
                    p *= target.coded[s] if targets[ordinal][i] else 1.0 - target.coded[s]
                had[i] |= bool(targets[ordinal][i])
        future = [w for w in visits if w > week or (w == week and week not in seen)]
        total += p
        of_state[path[week]] += p
        for i, target in enumerate(TINY_BLOCK.targets):
            away[i] += p * math.prod(1.0 - (target.again if had[i] else target.coded[path[w]]) for w in future)
    return of_state / total, list(1.0 - away / total)


def test_prevalence_equals_enumeration() -> None:
    moves, entry = chain.kernel(TINY_BLOCK), chain.start(TINY, TINY_BLOCK)
    ever = np.zeros(2)
    for (risk, share), (u, of_frailty), path, raw in itertools.product(
        enumerate(TINY.age_share),
        enumerate(TINY.frailty_share),
        itertools.product(range(3), repeat=TINY.weeks),
        itertools.product((0, 1), repeat=TINY.weeks - 1),
    ):
        p = share * of_frailty * entry[risk, path[0]]
        p *= math.prod(moves[risk, a, b] for a, b in itertools.pairwise(path))
        p *= math.prod(TINY.visit[u] if made else 1.0 - TINY.visit[u] for made in raw)
        visits = [0, *(w + 1 for w, made in enumerate(raw) if made)][: TINY.max_visits]
        for i, target in enumerate(TINY_BLOCK.targets):
            ever[i] += p * (1.0 - math.prod(1.0 - target.coded[path[w]] for w in visits))
    for i, target in enumerate(TINY_BLOCK.targets):
        assert chain.prevalence(TINY, TINY_BLOCK, np.array(target.coded)) == pytest.approx(ever[i], abs=1e-10)


# ----------------------------------------------------------------------------------------------- the RLTF population
@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    return list(simulate(12_288, seed=6))


@pytest.mark.parametrize("when", ["visit 6", "day 500"])
def test_risks_are_calibrated_by_deciles(shards: list[Shard], when: str) -> None:
    """Each cohort as a whole, and deciles of risk over all cohorts, in every information set."""
    ats = [oracle(s, visit_days(observe(s), 6) if when == "visit 6" else 500) for s in shards]
    rows = np.concatenate([at.is_known[:, None] & ~at.had for at in ats])
    occurs = np.concatenate([at.occurs for at in ats])
    for name in INFORMATION:
        risk = np.concatenate([at.first[name] for at in ats])
        groups = [(risk[rows[:, i], i], occurs[rows[:, i], i]) for i in range(16)]
        order = np.argsort(risk[rows], kind="stable")
        groups += [(risk[rows][part], occurs[rows][part]) for part in np.array_split(order, 10)]
        for expected, outcome in groups:
            spread = np.sqrt((expected * (1 - expected)).sum())
            assert abs(outcome.sum() - expected.sum()) < 4.0 * spread


def test_returns_of_a_target_are_calibrated(shards: list[Shard]) -> None:
    risks, outcomes = [], []
    for shard in shards[:10]:
        at = oracle(shard, 400)
        risks.append(at.any["codes+time"][at.had])
        outcomes.append(at.occurs[at.had])
    risk, outcome = np.concatenate(risks), np.concatenate(outcomes)
    assert len(risk) > 1_000
    assert abs(outcome.sum() - risk.sum()) < 4.0 * np.sqrt((risk * (1 - risk)).sum())


def test_more_information_ranks_better() -> None:
    """Each cohort is predictable from context: codes over the cohort's own history, and truth over codes."""
    found = sample(20_480, seed=6, ordinal=8)
    scores = {name: [] for name in INFORMATION}
    for i, target in enumerate(RLTF.targets):
        rows = found.at_risk[:, i]
        if found.occurs[rows, i].sum() < 40:
            assert target.cohort in ("sickle_cell", "shock")
            continue
        for name in INFORMATION:
            scores[name].append(auroc(found.occurs[rows, i], found.risk[name][rows, i]))
    history, codes, latent = (np.array(scores[name]) for name in INFORMATION)
    assert len(codes) >= 14
    assert (codes > 0.68).all()
    assert np.mean(codes - history) > 0.05
    assert np.mean(latent - codes) > 0.005


def test_a_landmark_of_the_whole_record_leaves_no_risk(shards: list[Shard]) -> None:
    at = oracle(shards[0], 7 * shards[0].spec.weeks - 1)
    assert not at.occurs.any()
    for name in INFORMATION:
        np.testing.assert_allclose(at.any[name], 0.0, atol=1e-12)


def test_the_future_does_not_change_the_risk(shards: list[Shard]) -> None:
    """Cutting all codes and visits after the landmark from the record leaves every visible risk as it is."""
    shard, day = shards[0], 333
    visits, codes = shard.visits, shard.codes
    known = visits.day <= day
    renumbered = np.cumsum(known) - 1
    kept = known[codes.visit]
    cut = replace(
        shard,
        visits=replace(visits, **{name: values[known] for name, values in vars(visits).items()}),
        codes=replace(codes, visit=renumbered[codes.visit[kept]], code=codes.code[kept]),
    )
    full, short = oracle(shard, day), oracle(cut, day)
    for name in INFORMATION:
        np.testing.assert_array_equal(full.any[name], short.any[name])


def test_the_table_has_a_row_per_patient_and_cohort_at_risk() -> None:
    shard = next(simulate(300, seed=5))
    first, ever = (oracle_table(simulate(300, seed=5), 4, kind) for kind in ("first", "any"))
    at = oracle(shard, visit_days(observe(shard), 4))
    assert len(ever) == 16 * at.is_known.sum()
    assert len(first) == len(ever) - at.had[at.is_known].sum()
    assert first.columns[:4] == ["subject_id", "prediction_time", "label", "boolean_value"]
    assert first.schema["prediction_time"] == pl.Datetime("us")
    assert first.select(pl.all_horizontal(pl.col(*INFORMATION).is_between(0, 1)).all()).item()
