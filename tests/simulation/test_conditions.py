"""The exact law of the chronic conditions."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import expm

from ehrlab.simulation import conditions, simulate
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.network import CONDITIONS, WARM_UP_YEARS, onset_days
from ehrlab.simulation.population import Shard


@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    return list(simulate("heart_failure", "mimic", 3_072, seed=1))


@pytest.fixture(scope="module")
def present(shards: list[Shard]) -> list[np.ndarray]:
    return [conditions.presence(shard) for shard in shards]


def test_every_condition_is_in_one_component_with_all_its_parents() -> None:
    members = [m for component in conditions.components() for m in component.members]
    assert sorted(members) == list(range(len(CONDITIONS)))
    names = [condition.name for condition in CONDITIONS]
    for component in conditions.components():
        for m in component.members:
            assert {names.index(parent) for parent in CONDITIONS[m].parents} <= set(component.members)


@pytest.mark.parametrize("days", [0.0, 3.0, 4_000.0])
def test_carrying_equals_the_exponential_of_the_generator(days: float) -> None:
    component = max(conditions.components(), key=lambda c: len(c.members) if len(c.members) < 6 else 0)
    rates = conditions.daily_rates(np.array([70.0]), np.array([True]))
    generator = np.zeros((component.num_sets, component.num_sets))
    for now in range(component.num_sets):
        held = {CONDITIONS[m].name for i, m in enumerate(component.members) if now >> i & 1}
        for i, m in enumerate(component.members):
            if not now >> i & 1:
                weight = sum(w for parent, w in CONDITIONS[m].parents.items() if parent in held)
                generator[now, now | 1 << i] = rates[0, m] * np.exp(weight)
    generator -= np.diag(generator.sum(1))
    law = np.random.default_rng(0).dirichlet(np.ones(component.num_sets))
    carried = conditions.carry(component, law[None], rates, np.array([days]))
    np.testing.assert_allclose(carried[0], law @ expm(generator * days), atol=1e-10)


def test_unobserved_presence_is_the_share_of_drawn_onsets() -> None:
    n = 40_000
    age, is_female = np.full(n, 66.0), np.zeros(n, bool)
    onset = onset_days(np.random.default_rng(0).random((n, len(CONDITIONS))), age, is_female)
    day = 900.0
    for component in conditions.components():
        law = np.zeros((1, component.num_sets))
        law[0, 0] = 1.0
        rates = conditions.daily_rates(age[:1], is_female[:1])
        law = conditions.carry(component, law, rates, np.array([day + 365.25 * WARM_UP_YEARS]))
        for m in component.members:
            share = law[0, component.holds(m)].sum()
            error = 4 * np.sqrt(share * (1 - share) / n)
            assert abs((onset[:, m] <= day).mean() - share) < error, CONDITIONS[m].name


def test_presence_is_calibrated_and_better_than_its_mean(shards: list[Shard], present: list[np.ndarray]) -> None:
    found = np.concatenate(present)
    truth = np.concatenate(
        [shard.latent.onset_day[shard.visits.patient] <= shard.visits.start_day[:, None] for shard in shards]
    )
    first = np.concatenate([shard.visits.week == 0 for shard in shards])
    for m, condition in enumerate(CONDITIONS):
        # One visit per patient and bin would be independent; visits of a patient are not, hence the wider bound.
        for low, high in ((0.0, 0.1), (0.1, 0.3), (0.3, 0.7), (0.7, 1.01)):
            inside = (found[:, m] >= low) & (found[:, m] < high)
            if inside.sum() >= 200:
                share = found[inside, m].mean()
                error = 6 * np.sqrt(share * (1 - share) / inside.sum()) + 1e-3
                assert abs(truth[inside, m].mean() - share) < error, (condition.name, low)
        later = ~first
        assert ((found[later, m] - truth[later, m]) ** 2).mean() < truth[later, m].var()


def test_labels_are_predicted_with_their_frequency(shards: list[Shard], present: list[np.ndarray]) -> None:
    for code in ("401.9", "272.4", "427.31", "414.01", "530.81"):
        chances, coded = [], []
        for shard, known in zip(shards, present):
            chances.append(conditions.coding_probability(shard, known, code))
            is_coded = np.zeros(len(shard.visits.patient), bool)
            is_coded[shard.codes.visit[shard.codes.code == shard.vocabulary.codes.index(code)]] = True
            coded.append(is_coded)
        chance, label = np.concatenate(chances), np.concatenate(coded)
        assert abs(chance.mean() - label.mean()) < 6 * label.std() / np.sqrt(len(label))


def test_evidence_moves_presence_as_bayes_says(shards: list[Shard]) -> None:
    shard = shards[-1]
    silent = conditions.presence(shard)
    evidence = Evidence.silent(len(shard.visits.patient))
    single = next(c.members[0] for c in conditions.components() if len(c.members) == 1)
    told = evidence.condition.copy()
    told[:, single, 1] = 3.0
    moved = conditions.presence(shard, replace(evidence, condition=told))
    first = shard.visits.week == 0
    odds = silent[first, single] / (1 - silent[first, single])
    np.testing.assert_allclose(moved[first, single], 3 * odds / (1 + 3 * odds), rtol=1e-9)
    others = np.arange(len(CONDITIONS)) != single
    np.testing.assert_allclose(moved[:, others], silent[:, others], atol=1e-12)
