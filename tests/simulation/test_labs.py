"""Laboratory tests: their laws, the likelihood that a filter reads, and the freedom from how many patients follow."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy.stats import norm

from ehrlab.simulation import analytes, labs
from ehrlab.simulation.analytes import STAGE_EFFECT
from ehrlab.simulation.chain import MODERATOR_OF, STAGE_OF
from ehrlab.simulation.measure import Scale
from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.population import Shard, simulate_block, simulate_spec
from ehrlab.simulation.spec import ACUTE, STAGES, population

POPULATIONS = [("heart_failure", "mimic"), ("kidney", "trinetx"), ("copd", "toy"), ("amnesia", "mimic")]


@pytest.fixture(scope="module", params=POPULATIONS[:2], ids="/".join)
def shard(request: pytest.FixtureRequest) -> Shard:
    return simulate_block(population(*request.param), seed=3, block=1)


# ----------------------------------------------------------------------------------------------------- what a number is
@pytest.mark.parametrize(
    "scale",
    [
        Scale(6.2, 0.9, 1, 6, 0),  # coarse, and half of it beyond the range
        Scale(3.5, 0.8, 0.5, 6, 1),
        Scale(0.02, 0.8, 0.01, 0.6, 2, is_log=True),
        Scale(3, 0.9, 0, 60, 0, is_log=True),  # zero can be written, though its logarithm is none
    ],
)
@pytest.mark.parametrize("shift", [0.0, -1.3])
def test_probabilities_of_all_numbers_that_can_be_written_sum_to_one(scale: Scale, shift: float) -> None:
    numbers = np.arange(round(scale.lowest / scale.step), round(scale.highest / scale.step) + 1) * scale.step
    probability = scale.probability(numbers, shift)
    assert probability.sum() == pytest.approx(1.0, abs=1e-12)
    drawn = scale.written(np.random.default_rng(0).standard_normal(40_000) + shift)
    share = np.bincount(np.rint((drawn - scale.lowest) / scale.step).astype(int), minlength=len(numbers)) / len(drawn)
    error = np.sqrt(probability * (1.0 - probability) / len(drawn)) + 1e-9
    assert (np.abs(share - probability) < 5.0 * error)[probability > 1e-3].all()


def test_probability_of_a_number_is_that_of_its_interval() -> None:
    log = Scale(120.0, 0.4, 5, 900, 0, is_log=True)
    expected = norm.cdf((np.log(200.5 / 120.0)) / 0.4 - 1.5) - norm.cdf((np.log(199.5 / 120.0)) / 0.4 - 1.5)
    assert log.probability(np.array(200.0), 1.5) == pytest.approx(expected, rel=1e-9)
    assert log.probability(np.array(900.0), 0.0) == pytest.approx(norm.sf(np.log(899.5 / 120.0) / 0.4), rel=1e-9)


# --------------------------------------------------------------------------------------------------- what hangs on what
@pytest.mark.parametrize(("preset", "shape"), POPULATIONS)
def test_a_test_hangs_on_one_block_that_exists(preset: str, shape: str) -> None:
    spec = population(preset, shape)
    blocks = {"stage", "moderator", "trigger_a", "trigger_b"}
    conditions = {condition.name for condition in (*CONDITIONS, *ACUTE)}
    names = {test.name for test in (*analytes.LABS, *analytes.CLINIC)}
    for links in (analytes.COMMON, analytes.LINKS[preset]):
        assert set(Counter(link.test for link in links).values()) == {1}
        assert {link.test for link in links} <= names
    assert {link.block for link in analytes.COMMON} <= conditions
    assert {link.block for link in analytes.LINKS[preset]} == blocks
    for analyte in labs.analytes_of(spec):
        assert ((analyte.ordered > 0.0) & (analyte.ordered < 1.0)).all()
        assert analyte.test.scale.lowest < analyte.test.scale.mean < analyte.test.scale.highest * 1.1
        if spec.shape.stay_days is None:
            assert analyte.block not in {condition.name for condition in ACUTE}


def test_the_disease_takes_a_test_from_what_it_hangs_on_elsewhere() -> None:
    def block(preset: str, shape: str, name: str) -> str | None:
        return next(a.block for a in labs.analytes_of(population(preset, shape)) if a.test.name == name)

    assert block("heart_failure", "mimic", "creatinine") == "kidney_injury"
    assert block("kidney", "mimic", "creatinine") == "stage"
    assert block("heart_failure", "trinetx", "creatinine") is None  # no hospital stay, no acute condition
    assert block("heart_failure", "mimic", "platelets") is None


def test_primed_and_refractory_look_alike() -> None:
    """The knob `order` makes equal what came of A first and of B first: labs must not tell them apart."""
    assert STAGE_EFFECT[STAGES.index("primed")] == STAGE_EFFECT[STAGES.index("refractory")]


def level(shard: Shard, block: str) -> np.ndarray:
    """Independent of labs._level: the value of a block at each visit."""
    visits, latent = shard.visits, shard.latent
    names = [condition.name for condition in CONDITIONS]
    if block in names:
        return (visits.start_day >= latent.onset_day[visits.patient, names.index(block)]).astype(int)
    if block in ("kidney_injury", "urinary_infection"):
        return latent.acute[:, int(block == "urinary_infection")].astype(int)
    if block.startswith("trigger"):
        return (latent.events[visits.patient, visits.week] == (1 if block == "trigger_a" else 2)).astype(int)
    state = latent.states[visits.patient, visits.week]
    return (STAGE_OF if block == "stage" else MODERATOR_OF)[state]


# ----------------------------------------------------------------------------------------------------------------- laws
def test_orders_and_values_have_their_stated_frequencies(shard: Shard) -> None:
    drawn, is_female = labs.draw(shard), shard.patients.is_female[shard.visits.patient]
    checked = 0
    for j, analyte in enumerate(labs.analytes_of(shard.spec)):
        scale, rows = analyte.test.scale, drawn.analyte == j
        visit, value = drawn.visit[rows], drawn.value[rows]
        now = level(shard, analyte.block) if analyte.block else np.zeros(len(is_female), int)
        score = np.log(np.maximum(value, scale.step / 4) / scale.mean) if scale.is_log else value - scale.mean
        score = score / scale.spread - analyte.test.female * is_female[visit]
        for v in range(len(analyte.shift)):
            at = now == v
            p = analyte.ordered[v]
            assert abs(at[visit].sum() - p * at.sum()) < 4.5 * np.sqrt(p * (1 - p) * at.sum()) + 1
            fine = scale.step < 0.2 * scale.spread * (scale.mean if scale.is_log else 1.0)
            if fine and at[visit].sum() > 30:
                within = score[at[visit]]
                assert abs(within.mean() - analyte.shift[v]) < 5.0 / np.sqrt(len(within)) + 0.03
                checked += 1
    assert checked > 40


def test_evidence_is_the_density_of_what_is_written_and_of_what_is_not(shard: Shard) -> None:
    drawn = labs.draw(shard)
    evidence = labs.evidence(shard, drawn)
    tests = labs.analytes_of(shard.spec)
    for visit in (0, 7, 191):
        written = dict(zip(drawn.analyte[drawn.visit == visit], drawn.value[drawn.visit == visit], strict=True))
        woman = shard.patients.is_female[shard.visits.patient[visit]]

        def factor(block: str, value: int, visit: int = visit, written: dict = written, woman: bool = woman) -> float:
            out = 1.0
            for j, analyte in enumerate(tests):
                if analyte.block != block:
                    continue
                if j not in written:
                    out *= 1.0 - analyte.ordered[value]
                    continue
                scale, x = analyte.test.scale, written[j]
                ends = np.array([x - scale.step / 2, x + scale.step / 2])
                with np.errstate(divide="ignore", invalid="ignore"):
                    ends = np.log(ends / scale.mean) if scale.is_log else ends - scale.mean
                ends = ends / scale.spread - analyte.shift[value] - analyte.test.female * woman
                if x <= scale.lowest:
                    ends[0] = -np.inf
                if x >= scale.highest:
                    ends[1] = np.inf
                out *= analyte.ordered[value] * (norm.cdf(ends[1]) - norm.cdf(ends[0]))
            return out

        expected = np.array(
            [
                [
                    factor("stage", STAGE_OF[state])
                    * factor("moderator", MODERATOR_OF[state])
                    * factor("trigger_a", int(event == 1))
                    * factor("trigger_b", int(event == 2))
                    for state in range(30)
                ]
                for event in range(3)
            ]
        )
        np.testing.assert_allclose(
            evidence.chain[visit] / evidence.chain[visit].max(), expected / expected.max(), rtol=1e-6
        )
        for found, conditions in ((evidence.condition[visit], CONDITIONS), (evidence.acute[visit], ACUTE)):
            for row, condition in zip(found, conditions, strict=True):
                expected = np.array([factor(condition.name, 0), factor(condition.name, 1)])
                np.testing.assert_allclose(row / row.max(), expected / expected.max(), rtol=1e-6)
    assert (evidence.family == 1.0).all()


def test_the_posterior_of_an_acute_condition_is_calibrated() -> None:
    posterior, truth = [], []
    for shard in simulate_spec(population("heart_failure", "mimic"), 4_096, seed=8):
        evidence = labs.evidence(shard, labs.draw(shard))
        for i, condition in enumerate(ACUTE):
            weight = evidence.acute[:, i] * np.array([1.0 - condition.probability, condition.probability])
            posterior.append(weight[:, 1] / weight.sum(1))
            truth.append(shard.latent.acute[:, i])
    p, y = np.concatenate(posterior), np.concatenate(truth)
    for rows in np.array_split(np.argsort(p), 10):
        assert abs(y[rows].mean() - p[rows].mean()) < 4.0 * np.sqrt((p[rows] * (1 - p[rows])).mean() / len(rows)) + 1e-4
    assert p[y].mean() > p[~y].mean() + 0.3


def test_evidence_speaks_for_the_true_value_of_every_block(shard: Shard) -> None:
    evidence = labs.evidence(shard, labs.draw(shard))
    rows, visits, latent = np.arange(len(shard.visits.patient)), shard.visits, shard.latent
    state, event = latent.states[visits.patient, visits.week], latent.events[visits.patient, visits.week]
    share = evidence.chain / evidence.chain.sum((1, 2), keepdims=True)
    assert share[rows, event, state].mean() > 1.05 / 90
    hit = np.log(evidence.condition[:, :, 1] / evidence.condition[:, :, 0])
    present = latent.onset_day[visits.patient] <= visits.start_day[:, None]
    linked = {a.block for a in labs.analytes_of(shard.spec)}
    for i, condition in enumerate(CONDITIONS):
        if condition.name in linked:
            assert hit[present[:, i], i].mean() > 0.0 > hit[~present[:, i], i].mean()
        else:
            assert (hit[:, i] == 0.0).all()


# -------------------------------------------------------------------------------------------------------------- repeats
def test_later_values_are_the_first_and_noise_that_depends_on_nothing() -> None:
    shard = simulate_block(population("heart_failure", "mimic"), seed=1, block=0)
    drawn = labs.draw(shard)
    series = labs.series(shard, drawn)
    tests = labs.analytes_of(shard.spec)
    key = series.visit * len(tests) + series.analyte
    first_of, index = np.unique(key, return_index=True)  # by minute within a test, so the first comes first
    np.testing.assert_array_equal(first_of, drawn.visit * len(tests) + drawn.analyte)
    np.testing.assert_array_equal(series.value[index], drawn.value)
    np.testing.assert_array_equal(series.minute[index], drawn.minute)
    assert (series.minute >= np.floor(shard.visits.start_day * 1440)[series.visit]).all()
    assert (series.minute <= shard.visits.end_day[series.visit] * 1440).all()
    j = next(j for j, analyte in enumerate(tests) if analyte.test.name == "urea")
    later = np.setdiff1d(np.flatnonzero(series.analyte == j), index)
    first = series.value[index[np.searchsorted(first_of, key[later])]]
    noise = np.log(series.value[later] / first) / (0.5 * tests[j].test.scale.spread)
    injured = shard.latent.acute[series.visit[later], 0]
    assert abs(noise.std() - 1.0) < 0.05
    for rows in (injured, ~injured):
        assert abs(noise[rows].mean()) < 5.0 / np.sqrt(rows.sum()) + 0.02


def test_labs_of_fewer_patients_are_the_first_of_more() -> None:
    spec = population("copd", "mimic")
    (few,), (many,) = (list(simulate_spec(spec, n, seed=4)) for n in (90, 700))
    for make in (labs.draw, lambda shard: labs.series(shard, labs.draw(shard))):
        a, b = make(few), make(many)
        assert 0 < len(a.visit) < len(b.visit)
        for name in ("visit", "analyte", "value", "minute"):
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name)[: len(a.visit)])
