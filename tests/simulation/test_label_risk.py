"""The conditions coded in an admission: the law of a visit, and the exact risk from the admission alone."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import norm

from ehrlab.simulation import chain, conditions, labs, notes
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.label_risk import Admissions, Sign, is_coded, latent_risk, sign_of
from ehrlab.simulation.network import WARM_UP_YEARS
from ehrlab.simulation.population import Shard, simulate_block, simulate_spec
from ehrlab.simulation.spec import ACUTE, RACES, Spec, population
from ehrlab.simulation.visits import AFTER, AT, IS_DIAGNOSED, NUM_KINDS, expected_visits

SPEC = population("ten_conditions", "mimic")
CODES = (
    {"401.9", "401.1"}, {"428.0", "428.22", "428.32", "428.9"}, {"427.31"}, {"414.01"}, {"584.9", "584.5"},
    {"250.00"}, {"272.4", "272.2"}, {"518.81"}, {"599.0"}, {"530.81"},
)  # fmt: skip
SIGNS = [sign_of(vocabulary(SPEC), codes) for codes in CODES]


def alone(shard: Shard) -> tuple[Evidence, Evidence]:
    """Of labs and of notes."""
    return labs.evidence(shard, labs.draw(shard)), notes.evidence(shard, notes.facts(shard), each_alone=True)


@pytest.fixture(scope="module")
def pooled() -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels and risks by what is known, [admission, label], of 1,024 patients."""
    coded, risks = [], dict[str, list[np.ndarray]]()
    for shard in simulate_spec(SPEC, 1_024, seed=5):
        visit = np.arange(len(shard.visits.patient))
        of_labs, of_notes = alone(shard)
        admissions = Admissions(shard, visit)
        found = {
            "labs": admissions.risk(SIGNS, of_labs),
            "notes": admissions.risk(SIGNS, of_notes),
            "labs+notes": admissions.risk(SIGNS, of_labs * of_notes),
            "latent": latent_risk(shard, visit, SIGNS),
        }
        for name, risk in found.items():
            risks.setdefault(name, []).append(risk)
        coded.append(is_coded(shard, visit, CODES))
    return np.concatenate(coded), {name: np.concatenate(parts) for name, parts in risks.items()}


# -------------------------------------------------------------------------------------------------------- law of visits
@pytest.mark.parametrize("shape", ["mimic", "toy"])
def test_visits_are_as_many_as_expected_of_each_kind_and_event(shape: str) -> None:
    spec = population("heart_failure", shape)
    count, squares = (np.zeros((NUM_KINDS, chain.NUM_EVENTS)) for _ in range(2))
    num_patients = 0
    for shard in simulate_spec(spec, 4_096, seed=6):
        patient, week = shard.visits.patient, shard.visits.week
        since = week - shard.latent.diagnosis_week[patient]
        of_patient = np.zeros((shard.num_patients, NUM_KINDS, chain.NUM_EVENTS))
        np.add.at(of_patient, (patient, 1 + np.sign(since), shard.latent.events[patient, week]), 1.0)
        mine = of_patient[shard.patients.risk_class == 1]
        count += mine.sum(0)
        squares += (mine**2).sum(0)
        num_patients += len(mine)
    mean = count / num_patients
    error = np.sqrt((squares / num_patients - mean**2) / num_patients)
    expected = expected_visits(spec.shape, 1).sum((0, 2, 4))
    assert (np.abs(mean - expected) < 4.5 * error + 1e-3).all()


# ----------------------------------------------------------------------------------------------------------------- risk
def risk_classes(spec: Spec, is_female: bool, race: int, age: np.ndarray) -> np.ndarray:
    score = 0.05 * (age - spec.shape.age[0]) + 0.2 * (not is_female) + 0.3 * (race == RACES.index("black"))
    return np.digitize(score, spec.shape.risk_cut)


def summed(shard: Shard, visit: int, evidence: Evidence) -> dict[Sign, float]:
    """The risks of one visit as plain sums: over days since entry, ages within a day, sets of conditions, states."""
    shape, patients = shard.spec.shape, shard.patients
    mean, spread, *_ = shape.age
    patient = shard.visits.patient[visit]
    is_female, race = bool(patients.is_female[patient]), int(patients.race[patient])
    known = int(np.floor(patients.age[patient] * 365.25)) + int(np.floor(shard.visits.start_day[visit]))
    flags = chain.flag_probability(shape)
    laws = [expected_visits(shape, risk) for risk in range(3)]
    shown = np.einsum("es,f->fes", evidence.chain[visit], evidence.family[visit])
    weight_of_chain = [np.einsum("wkfes,fes->wkes", law, shown) for law in laws]
    total, out = 0.0, dict.fromkeys(SIGNS, 0.0)
    for week in range(shape.weeks):
        of_network, of_members = 1.0, dict[int, float]()
        at = 7 * week + 3.5 if week else 0.0
        for component in conditions.components():
            none = np.eye(1, component.num_sets)
            rates = conditions.daily_rates(np.array([(known - at + 0.5) / 365.25]), np.array([is_female]))
            law = conditions.carry(component, none, rates, np.array([at + 365.25 * WARM_UP_YEARS]))[0]
            for member in component.members:
                law = law * evidence.condition[visit, member][component.holds(member).astype(int)]
            of_network *= law.sum()
            of_members |= {m: law[component.holds(m)].sum() / law.sum() for m in component.members}
        for day in range(7 * week, 7 * week + 7) if week else (0,):
            # Quarters of the day by which the age at entry is known.
            begin = (known - day + np.arange(4) / 4) / 365.25
            mass = norm.cdf(begin + 0.25 / 365.25, mean, spread) - norm.cdf(begin, mean, spread)
            risks = risk_classes(shard.spec, is_female, race, begin + 0.125 / 365.25)
            for risk, of_risk in zip(risks, mass / (7.0 if week else 1.0), strict=True):
                weights = of_risk * of_network * weight_of_chain[risk][week]
                total += weights.sum()
                for sign in SIGNS:
                    if sign.part == "target":
                        out[sign] += weights[AT].sum() + shape.target_again * weights[AFTER].sum()
                    elif sign.part == "flag":
                        out[sign] += (weights * flags[sign.index]).sum()
                    elif sign.part == "condition":
                        out[sign] += shape.network_code * of_members[sign.index] * weights.sum()
    for sign in SIGNS:
        if sign.part == "acute":
            odds = evidence.acute[visit, sign.index, 1] / evidence.acute[visit, sign.index, 0]
            odds *= ACUTE[sign.index].probability / (1 - ACUTE[sign.index].probability)
            out[sign] = total * (shape.acute_code[0] + odds * shape.acute_code[1]) / (1 + odds)
    return {sign: sign.share * value / total for sign, value in out.items()}


def test_risk_is_the_sum_over_ages_days_sets_and_states() -> None:
    spec = replace(SPEC, shape=replace(SPEC.shape, weeks=20))
    shard = simulate_block(spec, seed=0, block=0)
    later = np.flatnonzero(shard.visits.week > 0)[[0, 7]]
    visit = np.append(later, np.flatnonzero(shard.visits.week == 0)[3])
    assert (np.abs(shard.patients.age[shard.visits.patient[visit]] - 65) < 30).all()  # far from the ends of its law
    of_labs, of_notes = alone(shard)
    evidence = of_labs * of_notes
    found = Admissions(shard, visit).risk(SIGNS, evidence)
    for row, which in enumerate(visit):
        expected = summed(shard, int(which), evidence)
        np.testing.assert_allclose(found[row], [expected[sign] for sign in SIGNS], rtol=1e-6)


def test_what_is_interpolated_is_the_carried_law() -> None:
    shard = simulate_block(SPEC, seed=1, block=0)
    visit = np.arange(40)
    found = Admissions(shard, visit)
    between = found.between_weeks
    for which, component in enumerate(conditions.components()):
        law = np.einsum("vns,nw->vws", found.network[which], between)
        for week in (0, 1, 200, SPEC.shape.weeks - 1):
            days = np.full(len(visit), 7.0 * week + 3.5 if week else 0.0)
            patient = shard.visits.patient[visit]
            at_visit = np.floor(shard.patients.age[patient] * 365.25) + np.floor(shard.visits.start_day[visit]) + 0.5
            age = (at_visit - days) / 365.25
            none = np.eye(1, component.num_sets).repeat(len(visit), 0)
            rates = conditions.daily_rates(age, shard.patients.is_female[patient])
            carried = conditions.carry(component, none, rates, days + 365.25 * WARM_UP_YEARS)
            np.testing.assert_allclose(law[:, week], carried, atol=1e-7)


def test_risks_are_calibrated_in_every_tenth_of_each_label(pooled: tuple[np.ndarray, dict[str, np.ndarray]]) -> None:
    coded, risks = pooled
    for name, risk in risks.items():
        assert 0.0 <= risk.min() <= risk.max() <= 1.0
        for label in range(len(CODES)):
            for rows in np.array_split(np.argsort(risk[:, label], kind="stable"), 10):
                said = risk[rows, label]
                error = np.sqrt((said * (1.0 - said)).sum()) / len(rows)
                assert abs(coded[rows, label].mean() - said.mean()) < 4.5 * error + 1e-3, (name, CODES[label])


def test_more_is_known_from_both_than_from_either_and_from_the_truth_than_from_both(
    pooled: tuple[np.ndarray, dict[str, np.ndarray]],
) -> None:
    coded, risks = pooled
    clipped = {name: np.clip(risk, 1e-12, 1 - 1e-12) for name, risk in risks.items()}
    score = {name: np.log(np.where(coded, p, 1.0 - p)).mean(0) for name, p in clipped.items()}
    prior = coded.mean(0)
    nothing = prior * np.log(prior) + (1 - prior) * np.log(1 - prior)
    assert (score["latent"] > score["labs+notes"]).all()
    assert (score["labs+notes"] > np.maximum(score["labs"], score["notes"]) - 1e-3).all()
    assert (score["labs"] > nothing - 1e-3).all()
    assert (score["notes"] > nothing + 1e-3).all()
    # Where a laboratory test hangs on the condition, and where a fact is told in notes alone.
    assert score["labs"][4] > score["notes"][4]
    assert score["notes"][0] > score["labs"][0] + 0.05


def test_codes_of_several_parts_of_the_truth_have_no_sign() -> None:
    words = vocabulary(SPEC)
    assert sign_of(words, {"401.9", "427.31"}) is None
    assert sign_of(words, {words.codes[words.background]}) is None
    assert sign_of(words, {"Z99"}) is None
    assert sign_of(words, {"401.9"}) == Sign("condition", 0, pytest.approx(2 / 3))


def test_each_visit_alone_tells_the_family_history_again() -> None:
    shard = simulate_block(SPEC, seed=2, block=0)
    facts = notes.facts(shard)
    once, alone_each = notes.evidence(shard, facts), notes.evidence(shard, facts, each_alone=True)
    tells = facts.family != notes.NOT_TOLD
    np.testing.assert_array_equal(alone_each.family[~tells], 1.0)
    assert (alone_each.family[tells].min(1) < 0.05).all()
    assert 0 < (once.family != 1.0).any(1).sum() < tells.sum()
    np.testing.assert_array_equal(once.condition, alone_each.condition)


def test_a_visit_that_makes_the_diagnosis_codes_it() -> None:
    shard = simulate_block(SPEC, seed=3, block=0)
    visit = np.arange(len(shard.visits.patient))
    risk = latent_risk(shard, visit, SIGNS)[:, 1]
    patient = shard.visits.patient
    kind = 1 + np.sign(shard.visits.week - shard.latent.diagnosis_week[patient])
    assert IS_DIAGNOSED[kind][risk > 0].all()
    np.testing.assert_allclose(risk, np.array([0.0, 1.0, SPEC.shape.target_again])[kind], atol=1e-12)
