"""Intensive-care stays: their laws, and the exact risk of what happens after the first hours."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.stats import norm

from ehrlab.simulation import icu, icu_risk
from ehrlab.simulation.care import CARE, NUM_CLASSES, WORST, Care, Chain, Vital
from ehrlab.simulation.icu import Course, Stays
from ehrlab.simulation.measure import Scale
from ehrlab.simulation.population import Shard, simulate_block, simulate_spec
from ehrlab.simulation.spec import MIMIC, population

SPEC = population("heart_failure", "mimic")


@pytest.fixture(scope="module")
def drawn() -> tuple[Shard, Stays, Course]:
    shard = simulate_block(SPEC, seed=2, block=0)
    stays = icu.draw_stays(shard)
    return shard, stays, icu.draw_course(shard, stays)


# ----------------------------------------------------------------------------------------------------------------- laws
@pytest.mark.parametrize("chain", CARE.chains)
def test_starts_and_moves_are_distributions_that_the_class_makes_worse(chain: Chain) -> None:
    for law in (icu.start_law(chain), icu.kernel(chain)):
        assert (law >= 0.0).all()
        np.testing.assert_allclose(law.sum(-1), 1.0, atol=1e-12)
    moves = icu.kernel(chain)
    assert moves[:, 0, 2].max() == 0.0
    assert (np.diff(moves[:, 1, 2]) > 0.0).all()
    assert (moves[2:, 1, 2] > moves[:2, 1, 2]).all()


@pytest.mark.parametrize("vital", CARE.vitals, ids=lambda vital: vital.name)
def test_what_can_be_charted_has_total_probability_one(vital: Vital) -> None:
    scale = vital.scale
    numbers = scale.lowest + scale.step * np.arange(round((scale.highest - scale.lowest) / scale.step) + 1)
    law = icu.charted_law(vital, np.append(numbers, np.nan))
    assert law.shape == (len(numbers) + 1, 3, 3)
    np.testing.assert_allclose(law.sum(0), 1.0, atol=1e-12)
    assert not vital.texts or len(vital.texts) == len(numbers)


@pytest.mark.parametrize("shape", ["mimic", "toy"])
def test_stays_lie_within_their_admissions(shape: str) -> None:
    shard = simulate_block(population("kidney", shape), seed=0, block=0)
    stays = icu.draw_stays(shard)
    start, end = (np.floor(day * 1440)[stays.visit] for day in (shard.visits.start_day, shard.visits.end_day))
    assert (stays.first_minute >= start).all()
    assert (stays.first_minute + stays.num_minutes <= end).all()
    assert (stays.num_minutes > 0).all()
    assert 0.93 < len(stays.visit) / len(shard.visits.patient) < 0.97


def test_outpatients_have_no_stays() -> None:
    shard = next(simulate_spec(population("copd", "trinetx"), 20, seed=0))
    stays = icu.draw_stays(shard)
    course = icu.draw_course(shard, stays)
    assert len(stays.visit) == len(course.minute) == len(icu.episodes(stays, course, 0).stay) == 0


def test_chains_start_and_move_by_their_laws(drawn: tuple[Shard, Stays, Course]) -> None:
    shard, stays, course = drawn
    classes = icu.stay_class(shard, stays.visit)
    of_hour = np.repeat(classes, stays.num_hours)
    last = course.begin[1:] - 1
    before = np.setdiff1d(np.arange(course.begin[-1]), last)
    for c, chain in enumerate(CARE.chains):
        states = course.states[:, c].astype(int)
        first = np.zeros((NUM_CLASSES, 3))
        np.add.at(first, (classes, states[course.begin[:-1]]), 1.0)
        moves = np.zeros((NUM_CLASSES, 3, 3))
        np.add.at(moves, (of_hour[before], states[before], states[before + 1]), 1.0)
        for found, law in ((first, icu.start_law(chain)), (moves, icu.kernel(chain))):
            total = found.sum(-1, keepdims=True)
            assert (np.abs(found - total * law) <= 4.5 * np.sqrt(total * law * (1.0 - law)) + 1.0).all()


def test_charting_and_values_depend_on_the_state_and_the_hidden_baseline(drawn: tuple[Shard, Stays, Course]) -> None:
    _, stays, course = drawn
    stay = np.repeat(np.arange(len(stays.visit)), stays.num_hours)
    for v, vital in enumerate(CARE.vitals):
        state, baseline = course.states[:, vital.chain], stays.baseline[stay, vital.chain]
        for z, b in itertools.product(range(3), range(3)):
            values = course.values[(state == z) & (baseline == b), v]
            charted = values[~np.isnan(values)]
            p = vital.charted[z]
            assert abs(len(charted) - p * len(values)) < 4.5 * np.sqrt(p * (1 - p) * len(values)) + 1
            law = icu.charted_law(vital, charted)[:, z, b] / p
            assert (law > 0).all()
            if vital.scale.highest > 100:  # the rest is cut at its end
                shift = vital.shift[z] + vital.offset * (b - 1)
                score = (charted - vital.scale.mean) / vital.scale.spread - shift
                assert abs(score.mean()) < 5.0 / np.sqrt(len(score)) + 0.01


def test_hours_are_charted_within_themselves_and_within_the_stay(drawn: tuple[Shard, Stays, Course]) -> None:
    _, stays, course = drawn
    stay = np.repeat(np.arange(len(stays.visit)), stays.num_hours)
    hour = np.arange(len(stay)) - course.begin[stay]
    minute = course.minute - stays.first_minute[stay]
    assert (minute // 60 == hour).all()
    assert (minute < stays.num_minutes[stay]).all()


@pytest.mark.parametrize("c", [0, 1])
def test_treatments_fill_the_hours_of_the_worst_state(drawn: tuple[Shard, Stays, Course], c: int) -> None:
    _, stays, course = drawn
    episodes, onset = icu.episodes(stays, course, c), icu.onset_hour(course, c)
    assert (episodes.start < episodes.end).all()
    assert (episodes.end <= (stays.first_minute + stays.num_minutes)[episodes.stay]).all()
    treated = -(-(episodes.end - stays.first_minute[episodes.stay]) // 60) - (
        (episodes.start - stays.first_minute[episodes.stay]) // 60
    )
    assert treated.sum() == (course.states[:, c] == WORST).sum()
    has_onset = np.flatnonzero(onset < stays.num_hours)
    stay, first = np.unique(episodes.stay, return_index=True)
    np.testing.assert_array_equal(stay, has_onset)
    np.testing.assert_array_equal(episodes.hour[first] - course.begin[stay], onset[stay])


def test_fewer_patients_are_the_first_of_more() -> None:
    (few,), (many,) = (list(simulate_spec(SPEC, n, seed=4)) for n in (60, 500))
    a, b = (icu.draw_stays(shard) for shard in (few, many))
    for name in ("visit", "first_minute", "num_minutes", "baseline"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[: len(a.visit)])
    short, long = icu.draw_course(few, a), icu.draw_course(many, b)
    for name in ("states", "minute", "values", "uniform"):
        np.testing.assert_array_equal(getattr(short, name), getattr(long, name)[: len(short.minute)])


# ----------------------------------------------------------------------------------------------------------------- risk
def test_survival_is_that_of_a_share_of_a_clipped_log_logistic_stay() -> None:
    median, steepness, least, most = SPEC.shape.stay_days

    def lasts(days: float) -> float:
        return 1.0 if days <= least else (1.0 / (1.0 + (days / median) ** steepness) if days <= most else 0.0)

    for fatal, (low, high) in enumerate(CARE.share):
        for hours in (1.0, 48.0, 300.0, 1200.0):
            ends = sorted({low, high, *(x for x in (hours / 24 / most, hours / 24 / least) if low < x < high)})
            area = sum(quad(lambda s, h=hours: lasts(h / 24 / s), a, b)[0] for a, b in itertools.pairwise(ends))
            found = icu_risk._survival(SPEC.shape, CARE, 60.0 * hours)[fatal]
            assert found == pytest.approx(area / (high - low), abs=1e-5)


@pytest.mark.parametrize(("preset", "shape"), [("heart_failure", "mimic"), ("kidney", "toy")])
def test_the_class_of_visits_has_the_law_that_is_computed_for_it(preset: str, shape: str) -> None:
    spec = population(preset, shape)
    count = np.zeros((3, NUM_CLASSES))
    for shard in simulate_spec(spec, 8_192, seed=6):
        classes = icu.stay_class(shard, np.arange(len(shard.visits.patient)))
        np.add.at(count, (shard.patients.risk_class[shard.visits.patient], classes), 1.0)
    law, total = icu_risk._class_prior(spec.shape).reshape(3, -1), count.sum(1, keepdims=True)
    assert (np.abs(count - total * law) <= 4.5 * np.sqrt(total * law * (1.0 - law)) + 1.0).all()


TINY = Care(
    chains=(
        Chain(
            start=((0.7, 0.2, 0.1), (0.5, 0.3, 0.2), (0.4, 0.4, 0.2), (0.3, 0.4, 0.3)),
            worsen=(0.1, 0.15),
            recover=(0.2, 0.3),
            worse=(1.0, 1.2, 1.7, 2.0),
            baseline=(0.2, 0.5, 0.3),
        ),
        Chain(
            start=((0.8, 0.1, 0.1), (0.6, 0.3, 0.1), (0.5, 0.3, 0.2), (0.5, 0.2, 0.3)),
            worsen=(0.12, 0.2),
            recover=(0.25, 0.2),
            worse=(1.0, 1.1, 1.5, 1.9),
        ),
    ),
    vitals=(
        Vital("a", 1, "", "", "", None, Scale(20, 4, 5, 40, 0), 0, (0.0, 0.8, 1.2), 0.6, (0.6, 0.7, 0.9)),
        Vital("b", 2, "", "", "", None, Scale(4.5, 1, 1, 5, 0), 0, (0.0, -0.5, -1.5), 0.3, (0.3, 0.2, 0.4)),
        Vital("c", 3, "", "", "", None, Scale(80, 10, 20, 150, 1), 1, (0.0, 0.5, 1.0), -0.4, (0.5, 0.6, 0.7)),
    ),
    boarding=0.001,
)
TINY_HOURS = 3


def charted(vital: Vital, value: float, state: int, baseline: int) -> float:
    if np.isnan(value):
        return 1.0 - vital.charted[state]
    scale, shift = vital.scale, vital.shift[state] + vital.offset * (baseline - 1)
    low, high = ((value + side * scale.step / 2 - scale.mean) / scale.spread - shift for side in (-1, 1))
    below = 0.0 if value == scale.lowest else norm.cdf(low)
    return vital.charted[state] * ((1.0 if value == scale.highest else norm.cdf(high)) - below)


def enumerated(course: Course, stay: int, c: int, k: int, lasts: np.ndarray) -> tuple[float, float]:
    """By all paths of chain c over the longest stay: P(charts | class k); the same and the worst state comes later."""
    chain, rows = TINY.chains[c], course.begin[stay] + np.arange(TINY_HOURS)
    start, moves = icu.start_law(chain)[k], icu.kernel(chain)[k]
    seen = {
        (hour, z, b): np.prod(
            [charted(v, course.values[rows[hour], i], z, b) for i, v in enumerate(TINY.vitals) if v.chain == c]
        )
        * ((z == 2) == (course.states[rows[hour], c] == 2))
        for hour in range(TINY_HOURS)
        for z in range(3)
        for b in range(3)
    }
    total = later = 0.0
    for path in itertools.product(range(3), repeat=len(lasts)):
        probability = start[path[0]] * np.prod([moves[x, y] for x, y in itertools.pairwise(path)])
        shown = sum(
            share * np.prod([seen[hour, path[hour], b] for hour in range(TINY_HOURS)])
            for b, share in enumerate(chain.baseline)
        )
        total += probability * shown
        if 2 in path and path.index(2) >= TINY_HOURS:
            later += probability * shown * lasts[path.index(2)]
    return total, later


def test_risk_equals_the_sum_over_all_paths_of_a_tiny_chain() -> None:
    shape = replace(MIMIC, weeks=30, stay_days=(0.2, 2.0, 0.12, 0.3))
    spec = replace(SPEC, shape=shape)
    shard = simulate_block(spec, seed=0, block=0)
    stays = icu.draw_stays(shard, TINY)
    course = icu.draw_course(shard, stays, TINY)
    risks = icu_risk.outcome_risk(shard, stays, course, TINY_HOURS, TINY)
    longest = 7  # hours begun in the longest stay, .9 x .3 days
    assert stays.num_hours.max() == longest
    law = [icu_risk._survival(shape, TINY, 60.0 * np.arange(longest) + 1.0)[k // 2] for k in range(4)]
    eligible = [icu_risk._survival(shape, TINY, 60.0 * TINY_HOURS)[k // 2] for k in range(4)]
    prior = icu_risk._class_prior(shape).reshape(3, 4)
    chosen = [int(s) for outcome in risks.values() for s in outcome.stay[:4]]
    compared = 0
    for stay in sorted(set(chosen))[:8]:
        patient = shard.visits.patient[stays.visit[stay]]
        by_class = np.array([[enumerated(course, stay, c, k, law[k]) for c in (0, 1)] for k in range(4)])
        weight = prior[shard.patients.risk_class[patient]] * by_class[:, 0, 0] * by_class[:, 1, 0]
        total = (weight * eligible).sum()
        expected = {
            "mortality": (weight * eligible)[2:].sum() / total,
            "arf": (weight * by_class[:, 0, 1] / by_class[:, 0, 0]).sum() / total,
            "shock": (weight * by_class[:, 1, 1] / by_class[:, 1, 0]).sum() / total,
        }
        for name, outcome in risks.items():
            for found in outcome.charts[outcome.stay == stay]:
                assert found == pytest.approx(expected[name], abs=1e-10)
                compared += 1
    assert compared > 12
    assert {name: len(outcome.stay) > 50 for name, outcome in risks.items()} == dict.fromkeys(icu_risk.OUTCOMES, True)


@pytest.fixture(scope="module")
def pooled() -> dict[str, tuple[np.ndarray, np.ndarray, np.ndarray]]:
    """Outcome, risk by charts, risk by latent truth of 8,192 patients."""
    parts: dict[str, list[np.ndarray]] = {name: [] for name in icu_risk.OUTCOMES}
    for shard in simulate_spec(SPEC, 8_192, seed=11):
        stays = icu.draw_stays(shard)
        for name, outcome in icu_risk.outcome_risk(shard, stays, icu.draw_course(shard, stays)).items():
            parts[name].append(np.stack([outcome.happened, outcome.charts, outcome.latent]))
    return {name: tuple(np.concatenate(part, 1)) for name, part in parts.items()}


@pytest.mark.parametrize("name", icu_risk.OUTCOMES)
def test_risks_are_calibrated_in_every_decile(pooled: dict, name: str) -> None:
    happened, *risks = pooled[name]
    for risk in risks:
        for rows in np.array_split(np.argsort(risk), 10):
            error = np.sqrt((risk[rows] * (1.0 - risk[rows])).mean() / len(rows))
            assert abs(happened[rows].mean() - risk[rows].mean()) < 4.0 * error


@pytest.mark.parametrize("name", icu_risk.OUTCOMES)
def test_the_truth_knows_more_than_the_charts_and_they_more_than_nothing(pooled: dict, name: str) -> None:
    happened, charts, latent = pooled[name]

    def log_score(risk: np.ndarray) -> float:
        return float(np.log(np.where(happened == 1.0, risk, 1.0 - risk)).mean())

    assert log_score(latent) > log_score(charts) > log_score(np.full(len(charts), happened.mean())) + 0.005


def test_shares_of_outcomes_are_near_those_of_the_published_cohorts(pooled: dict) -> None:
    # Table 8 of MEDHMP: 402 / 5,038, 693 / 7,182 and 1,581 / 11,695; the first two of the third's stays.
    total = len(pooled["mortality"][0])
    for name, share, eligible in (("arf", 0.080, 0.431), ("shock", 0.096, 0.614), ("mortality", 0.135, 1.0)):
        happened = pooled[name][0]
        assert happened.mean() == pytest.approx(share, rel=0.25)
        assert len(happened) / total == pytest.approx(eligible, rel=0.1)


def test_charts_are_evidence_of_the_trigger(drawn: tuple[Shard, Stays, Course]) -> None:
    shard, stays, course = drawn
    evidence = icu_risk.evidence(shard, stays, course)
    silent = np.setdiff1d(np.arange(len(shard.visits.patient)), stays.visit)
    assert len(silent) > 0
    assert (evidence.chain[silent] == 1.0).all()
    ratio = evidence.chain[stays.visit, 2, 0] / evidence.chain[stays.visit, 0, 0]
    is_b = icu.stay_class(shard, stays.visit) % 2 == 1
    # A likelihood ratio has mean 1 where its denominator holds, and so has its inverse where the numerator does.
    for values in (ratio[~is_b], 1.0 / ratio[is_b]):
        assert abs(values.mean() - 1.0) < 4.0 * values.std() / np.sqrt(len(values))
    assert np.log(ratio[is_b]).mean() > 0.0 > np.log(ratio[~is_b]).mean()
