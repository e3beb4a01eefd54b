"""Laws that hold for every simulated patient, and the freedom from how many are made."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import pytest
import yaml

from ehrlab.core.errors import InputError
from ehrlab.simulation import codes, simulate
from ehrlab.simulation.network import CONDITIONS, WARM_UP_YEARS, onset_days
from ehrlab.simulation.population import Shard, simulate_block, simulate_spec
from ehrlab.simulation.spec import BLOCK_SIZE, PRESETS, SHAPES, population

TASKS = Path(__file__).parents[2] / "conf" / "task"


@pytest.fixture(scope="module", params=[("heart_failure", "mimic"), ("amnesia", "trinetx"), ("kidney", "toy")])
def shards(request: pytest.FixtureRequest) -> list[Shard]:
    preset, shape = request.param
    return list(simulate(preset, shape, 1_300, seed=2))


def arrays(value: object) -> Iterator[np.ndarray]:
    if isinstance(value, np.ndarray):
        yield value
    elif is_dataclass(value):
        for field in fields(value):
            if field.name != "spec":
                yield from arrays(getattr(value, field.name))


def test_a_patient_is_the_same_whatever_the_number_of_patients() -> None:
    spec = population("heart_failure", "mimic")
    few, many = list(simulate_spec(spec, BLOCK_SIZE + 76, seed=4)), list(simulate_spec(spec, BLOCK_SIZE + 500, seed=4))
    assert [shard.num_patients for shard in few] == [BLOCK_SIZE, 76]
    for a, b in zip(few, many, strict=True):
        for x, y in zip(arrays(a), arrays(b), strict=True):
            np.testing.assert_array_equal(x, y[: len(x)])
    assert few[1].visits.patient.max() == 75


def test_a_block_does_not_depend_on_the_blocks_made_before_it() -> None:
    spec = population("copd", "trinetx")
    in_order = list(simulate_spec(spec, 2 * BLOCK_SIZE, seed=9))
    for block in (1, 0):
        for x, y in zip(arrays(simulate_block(spec, 9, block)), arrays(in_order[block]), strict=True):
            np.testing.assert_array_equal(x, y)


def test_seeds_and_diseases_make_other_patients() -> None:
    entries = [
        next(simulate(preset, "mimic", 50, seed)).patients.entry
        for preset, seed in (("heart_failure", 0), ("heart_failure", 1), ("kidney", 0))
    ]
    assert not np.intersect1d(entries[0], entries[1]).size
    assert not np.intersect1d(entries[0], entries[2]).size


def test_tasks_on_outcomes_share_one_population() -> None:
    assert population("in_hospital_mortality", "mimic") == population("readmission_30d", "mimic")


@pytest.mark.parametrize("path", [*TASKS.glob("*.yaml"), *TASKS.glob("rare_code/*.yaml")], ids=lambda path: path.stem)
def test_every_task_has_patients_among_whom_its_target_occurs_or_is_told_that_none_has_it(path: Path) -> None:
    task = yaml.safe_load(path.read_text())
    if "path" in task:
        return  # labels that another tool made
    name, num_simulated = task["name"], 0
    assert name in PRESETS
    for shape in SHAPES:
        try:
            words = codes.vocabulary(population(name, shape))
        except InputError:
            continue
        num_simulated += 1
        if path.parent.name == "rare_code":
            assert {code.replace(".", "") for code in words.codes} & set(task["icd9"])
    assert num_simulated


def test_what_no_patient_has_is_refused_with_a_remedy() -> None:
    for preset, shape, remedy in (("sickle_cell", "mimic", "data=sequences"), ("shock_48h", "trinetx", "data=mimic")):
        with pytest.raises(InputError, match=remedy):
            population(preset, shape)
    words = codes.vocabulary(population("heart_failure", "mimic"))
    assert "282.5" not in words.codes


def test_every_patient_enters_with_a_visit_and_no_visit_is_without_codes(shards: list[Shard]) -> None:
    for shard in shards:
        first = np.searchsorted(shard.visits.patient, np.arange(shard.num_patients))
        np.testing.assert_array_equal(shard.visits.patient[first], np.arange(shard.num_patients))
        assert (shard.visits.week[first] == 0).all()
        np.testing.assert_array_equal(np.unique(shard.codes.visit), np.arange(len(shard.visits.patient)))


def test_codes_are_distinct_and_ordered_within_a_visit(shards: list[Shard]) -> None:
    for shard in shards:
        for orders, size in ((shard.codes, len(shard.vocabulary.codes)), (shard.drugs, 1_000)):
            key = orders.visit * size + orders.code
            assert (np.diff(key) > 0).all()


def test_stays_are_positive_and_never_overlap(shards: list[Shard]) -> None:
    for shard in shards:
        visits = shard.visits
        assert (visits.end_day > visits.start_day).all()
        same = visits.patient[1:] == visits.patient[:-1]
        assert (visits.start_day[1:][same] > visits.end_day[:-1][same]).all()


def test_nothing_follows_death_and_a_fatal_visit_ends_at_it(shards: list[Shard]) -> None:
    num_fatal = 0
    for shard in shards:
        visits, death = shard.visits, shard.latent.death_day[shard.visits.patient]
        assert (visits.end_day <= death).all()
        np.testing.assert_array_equal(visits.end_day[visits.is_fatal], death[visits.is_fatal])
        num_fatal += visits.is_fatal.sum()
    assert num_fatal > 10


def test_the_target_is_coded_at_the_first_diagnosis_and_never_before(shards: list[Shard]) -> None:
    for shard in shards:
        words, visits = shard.vocabulary, shard.visits
        is_target = (shard.codes.code >= words.target.start) & (
            shard.codes.code < words.target.start + words.target.size
        )
        visit = shard.codes.visit[is_target]
        week, patient = visits.week[visit], visits.patient[visit]
        assert (week >= shard.latent.diagnosis_week[patient]).all()
        diagnosed = shard.latent.diagnosis_week < shard.spec.shape.weeks
        assert diagnosed.sum() == visits.is_first_diagnosis.sum()
        assert np.isin(np.flatnonzero(visits.is_first_diagnosis), visit).all()


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("preset", sorted(set(PRESETS.values())))
def test_vocabulary_holds_real_codes_once_and_the_target_family_only_as_target(preset: str, shape: str) -> None:
    spec = population(preset, shape)
    words = codes.vocabulary(spec)
    assert len(set(words.codes)) == len(words.codes)
    bare = {code.replace(".", "") for code in words.codes}
    assert bare <= set(codes.diagnoses()["ICD9_CODE"])
    assert all(codes.dotted(code.replace(".", "")) == code for code in words.codes)
    rest = words.codes[words.target.start + words.target.size :]
    assert not [code for code in rest if code.startswith(spec.disease.excluded)]
    assert len(words.codes) - words.background == spec.shape.num_background
    assert {code for _, code in spec.disease.procedures} <= {
        f"{code[:2]}.{code[2:]}" for code in codes.procedures()["ICD9_CODE"]
    }


def test_condition_onset_inverts_a_piecewise_constant_hazard() -> None:
    # Three conditions by hand at age 50, male: obesity (.02 a year) at mid budget, then pain at hazard .03 before and
    # .03 e^.3 after the onset of obesity.
    names = [condition.name for condition in CONDITIONS]
    obesity, pain = names.index("obesity"), names.index("pain")
    uniform = np.full((2, len(CONDITIONS)), 0.999)
    uniform[:, obesity] = 1 - np.exp(-0.02 * 3.0)  # three years after the warm-up begins
    uniform[0, pain] = 1 - np.exp(-0.03 * 2.0)  # before obesity
    uniform[1, pain] = 1 - np.exp(-0.03 * 3.0 - 0.03 * np.exp(0.3) * 4.0)  # four years after it
    onset = onset_days(uniform, np.full(2, 50.0), np.zeros(2, bool)) / 365.25 + WARM_UP_YEARS
    np.testing.assert_allclose(onset[:, obesity], 3.0)
    np.testing.assert_allclose(onset[:, pain], [2.0, 7.0])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("sepsis", "mimic", 5, 0), "unknown simulator preset 'sepsis'"),
        (("copd", "eicu", 5, 0), "unknown simulator shape 'eicu'"),
        (("copd", "mimic", 0, 0), "num_patients must be at least 1"),
        (("copd", "mimic", 5, -1), "seed must lie in"),
    ],
)
def test_impossible_requests_name_what_was_expected(arguments: tuple[str, str, int, int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        simulate(*arguments)
