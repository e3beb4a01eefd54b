"""The populations hold what the project's tasks need, and a signal that a model can find."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score

from ehrlab.simulation import chain, simulate
from ehrlab.simulation.population import Shard
from simulation.case_control import RATIO, Sample, eligible_cases, match, records, statistics


@pytest.fixture(scope="module")
def mimic() -> list[Sample]:
    return match(records(simulate("heart_failure", "mimic", 10_000, seed=0)))


def test_mimic_cohort_has_the_shape_of_table_1(mimic: list[Sample]) -> None:
    found = statistics(mimic)
    assert found["negative_cases"] == RATIO * found["positive_cases"]
    assert found["positive_cases"] > 450
    assert found["visits_per_patient"] == pytest.approx(2.61, rel=0.05)
    assert found["codes_per_visit"] == pytest.approx(13.06, rel=0.05)


@pytest.mark.parametrize(
    ("preset", "visits", "codes"), [("kidney", 39.09, 4.70), ("copd", 30.39, 3.50), ("amnesia", 39.00, 2.53)]
)
def test_trinetx_cohorts_have_the_shape_of_table_1(preset: str, visits: float, codes: float) -> None:
    found = statistics(match(records(simulate(preset, "trinetx", 3_000, seed=0))))
    assert found["visits_per_patient"] == pytest.approx(visits, rel=0.07)  # some 200 cases: sampling error about 2 %
    assert found["codes_per_visit"] == pytest.approx(codes, rel=0.05)


def test_nearly_every_case_finds_three_controls() -> None:
    pool = records(simulate("amnesia", "trinetx", 4_000, seed=0))
    assert sum(sample.label for sample in match(pool)) >= 0.97 * len(eligible_cases(pool))


def test_toy_population_fills_every_task() -> None:
    for preset in ("heart_failure", "kidney", "copd", "amnesia"):
        shards = list(simulate(preset, "toy", 400, seed=0))
        assert sum(sample.label for sample in match(records(shards))) >= 30
    shards = list(simulate("heart_failure", "toy", 400, seed=0))
    died, returned = _mortality(shards), _readmission(shards)
    assert min(died.sum(), (~died).sum()) >= 50
    assert min(returned.sum(), (~returned).sum()) >= 50


def _mortality(shards: list[Shard]) -> np.ndarray:
    """Patients with two or more admissions: died in the last."""
    labels = []
    for shard in shards:
        count = np.bincount(shard.visits.patient, minlength=shard.num_patients)
        died = np.bincount(shard.visits.patient, shard.visits.is_fatal, minlength=shard.num_patients) > 0
        labels.append(died[count >= 2])
    return np.concatenate(labels)


def _readmission(shards: list[Shard]) -> np.ndarray:
    """Visits survived: followed by another within 30 days."""
    labels = []
    for shard in shards:
        visits = shard.visits
        same = np.append(visits.patient[1:] == visits.patient[:-1], False)
        gap = np.append(visits.start_day[1:], np.inf) - visits.end_day
        labels.append((same & (gap <= 30))[~visits.is_fatal])
    return np.concatenate(labels)


def test_deaths_and_readmissions_are_as_common_as_published() -> None:
    shards = list(simulate("in_hospital_mortality", "mimic", 6_000, seed=0))
    died, returned = _mortality(shards), _readmission(shards)
    assert died.mean() == pytest.approx(2_820 / 7_522, rel=0.07)  # MedDiffusion, Table 1; sampling error about 2 %
    assert returned.mean() == pytest.approx(1_444 / 33_179, rel=0.25)  # MEDHMP, Table 8; about 5 %


def test_readmission_follows_the_latent_care_regime() -> None:
    shards = list(simulate("readmission_30d", "mimic", 4_000, seed=0))
    intense = np.concatenate(
        [
            (chain.REGIME_OF[shard.latent.states[shard.visits.patient, shard.visits.week]] == chain.INTENSE)[
                ~shard.visits.is_fatal
            ]
            for shard in shards
        ]
    )
    returned = _readmission(shards)
    assert returned[intense].mean() > 4 * returned[~intense].mean()


def test_bag_of_codes_beats_the_prior_and_leaves_room_below_the_latent_stage(mimic: list[Sample]) -> None:
    labels = np.array([sample.label for sample in mimic])
    width = len(mimic[0].record.shard.vocabulary.codes)
    bag = np.zeros((len(mimic), width), np.float32)
    for row, sample in enumerate(mimic):
        np.add.at(bag[row], np.concatenate(sample.codes), 1)
    bag = bag[:, :60]  # the vocabulary's front: signal and chronic conditions
    stage = np.array(
        [chain.STAGE_OF[s.record.shard.latent.states[s.record.patient, int((s.index_day - 180) // 7)]] for s in mimic]
    )
    # Samples stand in groups of one case and its controls, so that every fourth is a case in either half.
    train = np.arange(len(mimic)) < len(mimic) // 2
    model = LogisticRegression(C=0.1, max_iter=500).fit(np.log1p(bag[train]), labels[train])
    scores = model.predict_proba(np.log1p(bag[~train]))[:, 1]
    codes = average_precision_score(labels[~train], scores)
    share = np.array([labels[train][stage[train] == z].mean() for z in range(5)])
    latent = average_precision_score(labels[~train], share[stage[~train]])
    assert labels.mean() == pytest.approx(0.25)
    assert codes > 0.25 + 0.12
    assert latent > codes + 0.15
