"""Sequence patients drawn block of patients by block of patients, with the latent truth beside what a record shows.

    for shard in simulate(num_patients=20_000, seed=0):
        shard.visits.day, shard.codes.code, shard.latent.states ...

Patient i belongs to batch i // BLOCK_SIZE, and a batch is always drawn whole from streams keyed by (seed, batch): the
patient is the same whatever the number of patients, and memory is bounded by one batch. ("Block" alone means a hidden
chain here, so the batches of patients are called batches.)
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from ehrlab.simulation.population import Bools, Floats, Ints, Orders, check_size
from ehrlab.simulation.sequences import chain
from ehrlab.simulation.sequences.blocks import RLTF
from ehrlab.simulation.sequences.codes import Vocabulary, vocabulary
from ehrlab.simulation.sequences.spec import PLACES, Background, Block, Spec
from ehrlab.simulation.spec import BLOCK_SIZE
from ehrlab.simulation.streams import Stream, choose, stream

POPULATION = "sequences"  # name of the streams


@dataclass(frozen=True)
class Patients:
    """One entry per patient. Frailty appears in no table."""

    age: Ints  # calendar years at entry, as year of entry minus year of birth: what a record tells
    age_band: Ints
    is_female: Bools
    race: Ints  # index into simulation.spec.RACES
    frailty: Ints
    entry: Floats  # uniform in [0, 1): the writer turns it into the date of entry


@dataclass(frozen=True)
class Visits:
    """One entry per visit, by patient and time; at most one in a week, the first on day 0."""

    patient: Ints  # row of Patients
    day: Ints  # since entry
    place: Ints  # index into spec.PLACES
    nights: Ints  # of an inpatient stay, which ends within its week: it cannot overlap the next visit, nor foretell it


@dataclass(frozen=True)
class Latent:
    """What no record shows."""

    states: NDArray[np.int8]  # [patient, block, week], after the week's move


@dataclass(frozen=True)
class Shard:
    """The patients first_patient, first_patient + 1, ... of the population."""

    spec: Spec
    seed: int
    first_patient: int
    patients: Patients
    visits: Visits
    codes: Orders  # visit, index into the vocabulary
    latent: Latent

    @property
    def num_patients(self) -> int:
        return len(self.patients.age)

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary(self.spec)


def simulate(num_patients: int, seed: int, spec: Spec = RLTF) -> Iterator[Shard]:
    """Shards of at most BLOCK_SIZE patients each, in order. Arguments are checked before the first is drawn."""
    check_size(num_patients, seed)
    return _shards(num_patients, seed, spec)


def _shards(num_patients: int, seed: int, spec: Spec) -> Iterator[Shard]:
    for batch in range(-(-num_patients // BLOCK_SIZE)):
        yield _first(simulate_batch(spec, seed, batch), num_patients - batch * BLOCK_SIZE)


def simulate_batch(spec: Spec, seed: int, batch: int) -> Shard:
    """The BLOCK_SIZE patients of one batch; independent of every other batch, so batches may run in any process."""
    patients = _draw_patients(spec, seed, batch)
    states = _run_chains(spec, patients, seed, batch)
    patient, week = _draw_visits(spec, patients, seed, batch)
    signal = _draw_signal(spec, states, patient, week, seed, batch)
    codes, place, day, nights = _draw_rest(spec, patient, week, signal, seed, batch)
    visits = Visits(patient, day, place, nights)
    return Shard(spec, seed, batch * BLOCK_SIZE, patients, visits, codes, Latent(states))


def risk_class(block: Block, age_band: Ints, race: Ints) -> Ints:
    return age_band if block.risk == "age" else (race == 1).astype(np.int64)


# ---------------------------------------------------------------------------------------------------- static traits
def _draw_patients(spec: Spec, seed: int, batch: int) -> Patients:
    u = stream(POPULATION, seed, batch, Stream.SEQUENCE_STATIC).random((6, BLOCK_SIZE))
    band = choose(spec.age_share, u[0])
    lowest, highest = np.array(spec.age_bands).T
    return Patients(
        age=lowest[band] + np.floor(u[1] * (highest - lowest + 1)[band]).astype(np.int64),
        age_band=band,
        is_female=u[2] < spec.female,
        race=choose(spec.race_share, u[3]),
        frailty=choose(spec.frailty_share, u[4]),
        entry=u[5],
    )


# ------------------------------------------------------------------------------------------------------ weekly chains
@dataclass(frozen=True, eq=False)
class _Rows:
    """The kernels of all blocks and risk classes in one table: row = base of (block, risk class) + state."""

    base: tuple[Ints, ...]  # [block][risk class]
    start: tuple[Floats, ...]  # [block][risk class, state] cumulative
    stay: Floats  # [row]
    leave: Floats  # [row, state] cumulative P(new state | it changes)
    first: Ints  # [row] row of the same block and risk class in state 0


@functools.lru_cache(maxsize=4)
def _rows(spec: Spec) -> _Rows:
    widest = max(len(block.states) for block in spec.blocks)
    base, starts, stay, leave, first = [], [], [], [], []
    num_rows = 0
    for block in spec.blocks:
        moves = chain.kernel(block)
        num_risks, num_states, _ = moves.shape
        base.append(num_rows + num_states * np.arange(num_risks))
        starts.append(np.cumsum(chain.start(spec, block), 1)[:, :-1])
        away = moves * (1.0 - np.eye(num_states))
        total = away.sum(2, keepdims=True)
        # An absorbing state leaves for nowhere; its row is never used.
        share = np.cumsum(np.divide(away, total, out=np.zeros_like(away), where=total > 0), 2)
        # From the last possible state on, no rounding may let a draw through to an impossible one.
        last = num_states - 1 - np.argmax(away[..., ::-1] > 0, axis=2)
        share[np.arange(num_states) >= last[..., None]] = 2.0
        padded = np.full((num_risks * num_states, widest), 2.0)
        padded[:, :num_states] = share.reshape(-1, num_states)
        leave.append(padded)
        stay.append(np.diagonal(moves, axis1=1, axis2=2).ravel())
        first.append(np.repeat(base[-1], num_states))
        num_rows += num_risks * num_states
    return _Rows(tuple(base), tuple(starts), np.concatenate(stay), np.concatenate(leave), np.concatenate(first))


def _run_chains(spec: Spec, patients: Patients, seed: int, batch: int) -> NDArray[np.int8]:
    """State of each block in each week: [patient, block, week]."""
    rows = _rows(spec)
    rng = stream(POPULATION, seed, batch, Stream.SEQUENCE_BLOCKS)
    num_blocks = len(spec.blocks)
    entry = rng.random((num_blocks, BLOCK_SIZE))
    parts = []
    for b, block in enumerate(spec.blocks):
        risk = risk_class(block, patients.age_band, patients.race)
        parts.append(rows.base[b][risk] + (entry[b][:, None] >= rows.start[b][risk]).sum(1))
    row = np.concatenate(parts)
    out = np.empty((spec.weeks, num_blocks * BLOCK_SIZE), np.int8)
    out[0] = row - rows.first[row]
    for week in range(1, spec.weeks):
        u = rng.random(len(row))
        stay = rows.stay[row]
        movers = np.flatnonzero(u >= stay)
        rescaled = (u[movers] - stay[movers]) / (1.0 - stay[movers])
        old = row[movers]
        row[movers] = rows.first[old] + (rescaled[:, None] >= rows.leave[old]).sum(1)
        out[week] = row - rows.first[row]
    return np.ascontiguousarray(out.reshape(spec.weeks, num_blocks, BLOCK_SIZE).transpose(2, 1, 0))


# ------------------------------------------------------------------------------------------------------------ visits
def _draw_visits(spec: Spec, patients: Patients, seed: int, batch: int) -> tuple[Ints, Ints]:
    """Patient and week of each visit, by patient and week."""
    rng = stream(POPULATION, seed, batch, Stream.SEQUENCE_VISITS)
    is_visit = rng.random((BLOCK_SIZE, spec.weeks)) < np.array(spec.visit)[patients.frailty][:, None]
    is_visit[:, 0] = True
    is_visit &= np.cumsum(is_visit, 1) <= spec.max_visits
    patient, week = np.nonzero(is_visit)
    return patient, week


def _draw_signal(
    spec: Spec, states: NDArray[np.int8], patient: Ints, week: Ints, seed: int, batch: int
) -> tuple[list[Ints], list[Ints]]:
    """(visit, code) of targets and context codes, in parts."""
    words = vocabulary(spec)
    rng = stream(POPULATION, seed, batch, Stream.SEQUENCE_CODES)
    num_visits = len(patient)
    visits: list[Ints] = []
    codes: list[Ints] = []
    spans = iter(words.targets)
    for b, block in enumerate(spec.blocks):
        state = states[patient, b, week]
        for target in block.targets:
            u = rng.random((2, num_visits))
            hit = np.flatnonzero(u[0] < np.array(target.coded)[state])
            who, index = np.unique(patient[hit], return_index=True)
            first = np.full(BLOCK_SIZE, num_visits)
            first[who] = hit[index]
            ordinal = np.arange(num_visits)
            hit = np.flatnonzero((ordinal == first[patient]) | (ordinal > first[patient]) & (u[1] < target.again))
            visits.append(hit)
            codes.append(next(spans).draw(rng.random(len(hit))))
        for signal, span in zip(block.signals, words.signals[b], strict=True):
            hit = np.flatnonzero(rng.random(num_visits) < np.array(signal.coded)[state])
            visits.append(hit)
            codes.append(span.draw(rng.random(len(hit))))
    return visits, codes


# ---------------------------------------------------------------------------------------- background, place, calendar
@functools.lru_cache(maxsize=16)
def _zipf(size: int, law: tuple[float, float]) -> Floats:
    """Cumulative law of the rank, without its end."""
    exponent, offset = law
    weight = (np.arange(1, size + 1) + offset) ** -exponent
    return np.cumsum(weight)[:-1] / weight.sum()


def _draw_rest(
    spec: Spec, patient: Ints, week: Ints, signal: tuple[list[Ints], list[Ints]], seed: int, batch: int
) -> tuple[Orders, Ints, Ints, Ints]:
    """All codes; place, day and nights of each visit. None of it depends on a state, given the signal."""
    words = vocabulary(spec)
    rng = stream(POPULATION, seed, batch, Stream.SEQUENCE_LAYOUT)
    num_visits = len(patient)
    visits, codes = list(signal[0]), list(signal[1])
    laws = (spec.diagnoses, spec.services, spec.procedures, spec.drugs)
    for law, span in zip(laws, words.background, strict=True):
        visit, rank = _background(law, _zipf(span.size, law.zipf), patient, rng)
        visits.append(visit)
        codes.append(span.start + rank)
    u = rng.random((4, num_visits))
    in_hospital = np.zeros(num_visits, bool)
    for visit, code in zip(visits, codes, strict=True):
        in_hospital[visit[words.in_hospital[code]]] = True
    place = np.where(in_hospital, choose(spec.place_share[1], u[0]), choose(spec.place_share[0], u[0]))
    evaluated = np.flatnonzero(u[1] < spec.evaluated)
    visits.append(evaluated)
    codes.append(words.evaluations + place[evaluated])

    weekday = np.where(week == 0, 0, np.floor(7.0 * u[2])).astype(np.int64)
    nights = np.where(place == PLACES.index("IMP"), np.floor(u[3] * (7 - weekday)), 0).astype(np.int64)
    key = np.unique(np.concatenate(visits) * len(words) + np.concatenate(codes))
    return Orders(*np.divmod(key, len(words))), place, 7 * week + weekday, nights


def _background(law: Background, ranks: Floats, patient: Ints, rng: np.random.Generator) -> tuple[Ints, Ints]:
    """(visit, rank) of one kind of background code."""
    failure = law.slots / (1.0 + law.slots)
    slots = law.least + np.floor(np.log1p(-rng.random(len(patient))) / np.log(failure)).astype(np.int64)
    visit = np.repeat(np.arange(len(patient)), slots)
    rank = np.searchsorted(ranks, rng.random(len(visit)), side="right")
    if law.own:
        own = np.searchsorted(ranks, rng.random((BLOCK_SIZE, law.own)), side="right")
        u = rng.random((2, len(visit)))
        # Geometric(1/4): the first of a patient's own codes returns most often.
        pick = np.minimum(np.log1p(-u[0]) / np.log(0.75), law.own - 1).astype(np.int64)
        rank = np.where(u[1] < law.habit, own[patient[visit], pick], rank)
    return visit, rank


# ------------------------------------------------------------------------------------------------------------- cutting
def _first(shard: Shard, num_patients: int) -> Shard:
    """The first patients of a shard: every table is ordered by patient, so each is cut at its end."""
    if num_patients >= shard.num_patients:
        return shard
    num_visits = int(np.searchsorted(shard.visits.patient, num_patients))
    num_codes = int(np.searchsorted(shard.codes.visit, num_visits))
    patients = Patients(*(getattr(shard.patients, f.name)[:num_patients] for f in fields(Patients)))
    visits = Visits(*(getattr(shard.visits, f.name)[:num_visits] for f in fields(Visits)))
    codes = Orders(shard.codes.visit[:num_codes], shard.codes.code[:num_codes])
    latent = Latent(shard.latent.states[:num_patients])
    return Shard(shard.spec, shard.seed, shard.first_patient, patients, visits, codes, latent)
