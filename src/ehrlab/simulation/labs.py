"""Laboratory tests and clinic measurements of each visit, and what they say about the latent truth.

Whether a test is ordered and what it shows depend on one latent block each (analytes.py), so that a test that was not
ordered says something too. The first value of a stay is sufficient: later ones are the first and noise that depends on
nothing. Rounding is part of the law (measure.py): `evidence` is exact for the values as the tables hold them.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ehrlab.simulation import analytes
from ehrlab.simulation.analytes import STAGE_EFFECT, Link, Test
from ehrlab.simulation.chain import MODERATOR_OF, NUM_EVENTS, STAGE_OF
from ehrlab.simulation.codes import vocabulary
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.measure import Floats, split
from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.population import Ints, Shard
from ehrlab.simulation.spec import ACUTE, EVENTS, Spec
from ehrlab.simulation.streams import Stream, stream

_NETWORK = {condition.name: i for i, condition in enumerate(CONDITIONS)}
_ACUTE = {condition.name: i for i, condition in enumerate(ACUTE)}

_FIRST_HOURS = 6.0  # from admission, within which the first sample is taken
_MOST_DAYS = 14  # of repeats
_REPEAT_NOISE = 0.5  # standard deviation of later values around the first, x the test's


@dataclass(frozen=True, eq=False)
class Analyte:
    """A test in one population: the block that it hangs on, None for none, and its laws by the block's value.

    Values: the stage, no or yes of the moderator disease, of the trigger event, of the condition; 0 alone for none.
    """

    test: Test
    block: str | None
    shift: Floats  # [value] standard deviations
    ordered: Floats  # [value] probability


@dataclass(frozen=True, eq=False)
class Labs:
    """The first value of each test that a visit brought, by visit and analyte."""

    visit: Ints  # row of Visits
    analyte: Ints  # index into analytes_of(spec)
    value: Floats  # as written
    minute: Ints  # of the sample, since the start of the patient's entry week


@functools.cache
def analytes_of(spec: Spec) -> tuple[Analyte, ...]:
    """What is measured in this population: in hospitals laboratory tests, elsewhere clinic measurements as well."""
    own = {link.test: link for link in analytes.LINKS[spec.disease.name]}
    links = {link.test: link for link in analytes.COMMON if _exists(spec, link)} | own
    in_hospital = spec.shape.stay_days is not None
    tests = analytes.LABS if in_hospital else (*analytes.LABS, *analytes.CLINIC)
    return tuple(_analyte(test, links.get(test.name), in_hospital) for test in tests)


def _exists(spec: Spec, link: Link) -> bool:
    """A condition whose codes all belong to the disease does not exist in its population."""
    words = vocabulary(spec)
    span = words.network[_NETWORK[link.block]] if link.block in _NETWORK else words.acute[_ACUTE[link.block]]
    return span.size > 0


def _analyte(test: Test, link: Link | None, in_hospital: bool) -> Analyte:
    effect, shift, more = np.zeros(1), 0.0, 0.0
    if link is not None:
        effect = np.array(STAGE_EFFECT if link.block == "stage" else (0.0, 1.0))
        shift, more = link.shift, link.more
    fewer = 1.0 if in_hospital or test.itemid is None else analytes.OUTPATIENT_ORDERS
    return Analyte(test, link.block if link else None, shift * effect, fewer * (test.ordered + more * effect))


# -------------------------------------------------------------------------------------------------------------- drawing
def draw(shard: Shard) -> Labs:
    visits, spec = shard.visits, shard.spec
    tests = analytes_of(spec)
    rng = stream(spec.disease.name, shard.seed, shard.block, Stream.LABS)
    # Row by row, so that the draws of a visit do not depend on how many follow.
    uniforms = rng.random((len(visits.patient), len(tests) + 1))
    is_female = shard.patients.is_female[visits.patient]
    values = np.full((len(visits.patient), len(tests)), np.nan)
    for j, analyte in enumerate(tests):
        level = _level(shard, analyte.block)
        hit, score = split(uniforms[:, j], analyte.ordered[level])
        shift = analyte.shift[level[hit]] + analyte.test.female * is_female[hit]
        values[hit, j] = analyte.test.scale.written(score + shift)
    visit, which = np.nonzero(~np.isnan(values))
    wait = np.minimum(_FIRST_HOURS * 60.0, 720.0 * (visits.end_day - visits.start_day)) * uniforms[:, -1]
    minute = np.floor(visits.start_day * 1440.0 + wait).astype(np.int64)
    return Labs(visit, which, values[visit, which], minute[visit])


def _level(shard: Shard, block: str | None) -> Ints:
    """The value of a block at each visit."""
    visits, latent = shard.visits, shard.latent
    if block is None:
        return np.zeros(len(visits.patient), np.int64)
    if block in _NETWORK:
        return (latent.onset_day[visits.patient, _NETWORK[block]] <= visits.start_day).astype(np.int64)
    if block in _ACUTE:
        return latent.acute[:, _ACUTE[block]].astype(np.int64)
    if block in EVENTS:
        return (latent.events[visits.patient, visits.week] == EVENTS.index(block)).astype(np.int64)
    state = latent.states[visits.patient, visits.week]
    return STAGE_OF[state] if block == "stage" else MODERATOR_OF[state]


def series(shard: Shard, labs: Labs) -> Labs:
    """The first values and those of the later days of a stay, by visit, minute and analyte."""
    tests = analytes_of(shard.spec)
    last = np.floor(shard.visits.end_day * 1440.0).astype(np.int64)[labs.visit]
    num_days = np.clip((last - labs.minute) // 1440, 0, _MOST_DAYS)
    row = np.repeat(np.arange(len(labs.visit)), num_days)
    day = np.arange(len(row)) - np.repeat(np.cumsum(num_days) - num_days, num_days) + 1
    uniforms = stream(shard.spec.disease.name, shard.seed, shard.block, Stream.LAB_REPEAT).random(len(row))
    hit, score = split(uniforms, np.array([analyte.test.repeated for analyte in tests])[labs.analyte[row]])
    row, day = row[hit], day[hit]
    which, again = labs.analyte[row], np.empty(len(row))
    order = np.argsort(which, kind="stable")
    bounds = np.searchsorted(which[order], np.arange(len(tests) + 1))
    for j, analyte in enumerate(tests):
        mine = order[bounds[j] : bounds[j + 1]]
        again[mine] = analyte.test.scale.again(labs.value[row[mine]], score[mine], _REPEAT_NOISE)
    visit = np.concatenate([labs.visit, labs.visit[row]])
    minute = np.concatenate([labs.minute, labs.minute[row] + 1440 * day])
    which = np.concatenate([labs.analyte, which])
    order = np.lexsort((which, minute, visit))
    return Labs(visit[order], which[order], np.concatenate([labs.value, again])[order], minute[order])


# ------------------------------------------------------------------------------------------------------------- evidence
def evidence(shard: Shard, labs: Labs) -> Evidence:
    """The likelihood of every visit's orders and first values.

    Factors are scaled so that the likeliest value of each block has 1 for each test: only their ratios mean anything.
    """
    num_visits, tests = len(shard.visits.patient), analytes_of(shard.spec)
    is_female = shard.patients.is_female[shard.visits.patient]
    values = np.full((num_visits, len(tests)), np.nan)
    values[labs.visit, labs.analyte] = labs.value
    out = Evidence.silent(num_visits)
    stage, moderator = np.ones((num_visits, len(STAGE_EFFECT))), np.ones((num_visits, 2))
    events = np.ones((num_visits, NUM_EVENTS))
    for j, analyte in enumerate(tests):
        block = analyte.block
        if block is None:
            continue
        factors = likelihood(analyte, values[:, j], is_female)
        if block in _NETWORK:
            out.condition[:, _NETWORK[block]] *= factors
        elif block in _ACUTE:
            out.acute[:, _ACUTE[block]] *= factors
        elif block in EVENTS:
            events *= factors[:, (np.arange(NUM_EVENTS) == EVENTS.index(block)).astype(np.int64)]
        else:
            target = stage if block == "stage" else moderator
            target *= factors
    state = stage[:, STAGE_OF] * moderator[:, MODERATOR_OF]
    return Evidence(events[:, :, None] * state[:, None, :], out.family, out.condition, out.acute)


def likelihood(analyte: Analyte, value: Floats, is_female: np.ndarray) -> Floats:
    """P(what is written of a test, or that nothing is | value of the block), its maximum set to 1: [visit, value].

    value  NaN where the test was not ordered
    """
    ordered = ~np.isnan(value)
    out = np.repeat(1.0 - analyte.ordered[None], len(value), axis=0)
    shift = analyte.shift + analyte.test.female * is_female[ordered, None]
    out[ordered] = analyte.ordered * analyte.test.scale.probability(value[ordered, None], shift)
    return out / out.max(1, keepdims=True)
