"""Laws of the latent chain, and that simulated patients obey it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from ehrlab.simulation import chain
from ehrlab.simulation.population import Shard, simulate_spec
from ehrlab.simulation.spec import EARLY, LATE, PRESETS, PRIMED, REFRACTORY, SHAPES, STABLE, Spec, population

TRINETX = population("kidney", "trinetx")


@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    return list(simulate_spec(TRINETX, 6_000, seed=3))


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", sorted(set(PRESETS.values())))
def test_every_kernel_row_is_a_distribution(preset: str, shape: str) -> None:
    numbers = population(preset, shape).shape
    for risk in range(chain.NUM_RISK):
        np.testing.assert_allclose(chain.start(numbers, risk).sum(), 1.0)
        for family in range(chain.NUM_FAMILY):
            moves = chain.kernel(numbers, risk, family)
            assert moves.min() >= 0
            np.testing.assert_allclose(moves.sum(-1), 1.0)
    for table in (chain.visit_probability(numbers, 2), chain.flag_probability(numbers)):
        assert 0 <= table.min() <= table.max() <= 1


def test_a_primes_and_b_protects_the_stable_but_commits_the_primed() -> None:
    shape = TRINETX.shape
    for family, factor in ((0, shape.without_family), (1, 1.0)):
        _, after_a, after_b = chain.stage_kernel(shape, family)
        for moderator in range(chain.NUM_MODERATOR):
            assert after_a[moderator, STABLE, PRIMED] == 1
            assert after_b[moderator, STABLE, REFRACTORY] == 1
            np.testing.assert_allclose(after_b[moderator, PRIMED, EARLY], factor * shape.commit[moderator])


def test_priming_fades_exponentially_with_calendar_time() -> None:
    idle = chain.stage_kernel(TRINETX.shape, family=1)[0, 0]
    primed = np.linalg.matrix_power(idle, 7)[PRIMED, PRIMED]
    np.testing.assert_allclose(primed, np.exp(-7 / TRINETX.shape.stage_weeks[0]))


def test_joint_kernel_factorises_into_stage_regime_and_moderator() -> None:
    joint = chain.kernel(TRINETX.shape, 1, 0).reshape(3, 5, 3, 2, 5, 3, 2)
    np.testing.assert_allclose(joint.sum((5, 6))[:, :, 2, 1], chain.stage_kernel(TRINETX.shape, 0)[:, 1])
    np.testing.assert_allclose(joint.sum((4, 6))[:, 3, :, 0], chain.regime_kernel(TRINETX.shape))


@pytest.mark.parametrize("name", ["trinetx", "mimic"])
def test_simulated_states_follow_the_exact_marginal(name: str) -> None:
    spec = population("copd", name)
    weeks = 30
    spec = replace(spec, shape=replace(spec.shape, weeks=weeks))
    shards = list(simulate_spec(spec, 5_000, seed=1))
    states = np.concatenate([shard.latent.states for shard in shards])
    risk = np.concatenate([shard.patients.risk_class for shard in shards])
    family = np.concatenate([shard.patients.family_history for shard in shards])
    for r, f in ((0, 0), (1, 1), (2, 0)):
        mine = states[(risk == r) & (family == f)]
        exact = chain.marginal(spec.shape, r, f, weeks)
        for week in (0, 4, weeks - 1):
            share = np.bincount(mine[:, week], minlength=chain.NUM_STATES) / len(mine)
            error = np.sqrt(exact[week] * (1 - exact[week]) / len(mine))
            assert (np.abs(share - exact[week]) <= 5 * error + 1e-12).all()


def test_diagnosis_hazard_rises_from_stable_to_early_to_late(shards: list[Shard]) -> None:
    diagnoses, weeks = np.zeros(5), np.zeros(5)
    for shard in shards:
        stage = chain.STAGE_OF[shard.latent.states]
        week = np.arange(stage.shape[1])
        at_risk = week <= shard.latent.diagnosis_week[:, None]
        weeks += np.bincount(stage[at_risk], minlength=5)
        diagnoses += np.bincount(stage[week == shard.latent.diagnosis_week[:, None]], minlength=5)
    hazard = diagnoses / weeks
    assert hazard[LATE] > 5 * hazard[EARLY] > 10 * hazard[STABLE]
    assert hazard[LATE] == pytest.approx(TRINETX.shape.hazard[LATE], rel=0.15)


def _risk_by_order(spec: Spec, num_patients: int) -> tuple[float, float, float, float]:
    """Share diagnosed within two years after a first A followed by B, or a first B followed by A, at most `gap` weeks
    apart; and the binomial standard errors."""
    outcomes: dict[bool, list[bool]] = {True: [], False: []}
    for shard in simulate_spec(spec, num_patients, seed=5):
        for events, diagnosed in zip(shard.latent.events, shard.latent.diagnosis_week, strict=True):
            weeks = np.flatnonzero(events)[:2]
            if len(weeks) < 2 or weeks[1] - weeks[0] > 6 or events[weeks[0]] == events[weeks[1]]:
                continue
            if weeks[1] + 104 <= spec.shape.weeks and diagnosed > weeks[1]:
                outcomes[bool(events[weeks[0]] == 1)].append(bool(diagnosed <= weeks[1] + 104))
    a_first, b_first = np.mean(outcomes[True]), np.mean(outcomes[False])
    errors = [np.sqrt(p * (1 - p) / len(o)) for p, o in ((a_first, outcomes[True]), (b_first, outcomes[False]))]
    return float(a_first), float(b_first), float(errors[0]), float(errors[1])


def test_a_before_b_harms_and_b_before_a_does_not() -> None:
    a_first, b_first, *errors = _risk_by_order(TRINETX, 8_192)
    assert a_first - b_first > 0.10
    assert a_first - b_first > 4 * np.hypot(*errors)


def test_without_stage_in_the_hazard_order_carries_no_risk() -> None:
    flat = replace(TRINETX, shape=replace(TRINETX.shape, hazard=(0.002,) * 5))
    a_first, b_first, *errors = _risk_by_order(flat, 8_192)
    assert abs(a_first - b_first) < 4 * np.hypot(*errors)


def test_visits_come_from_the_care_regime_more_than_from_the_stage(shards: list[Shard]) -> None:
    seen, weeks = np.zeros(3), np.zeros(3)
    for shard in shards:
        regime = chain.REGIME_OF[shard.latent.states]
        alive = 7 * np.arange(regime.shape[1]) < shard.latent.death_day[:, None]
        weeks += np.bincount(regime[alive], minlength=3)
        seen += np.bincount(regime[shard.visits.patient, shard.visits.week], minlength=3)
    quiet, routine, intense = seen / weeks
    assert intense > 1.5 * routine > 3 * quiet
