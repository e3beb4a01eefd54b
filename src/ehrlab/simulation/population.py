"""Patients drawn from a specification, block by block; the latent truth stays beside what a record would show.

    for shard in simulate("heart_failure", "mimic", num_patients=5_000, seed=0):
        shard.visits.week, shard.codes.code, shard.latent.states ...

Patient i belongs to block i // BLOCK_SIZE, and a block is always drawn whole from streams keyed by (seed, block): the
patient is the same whatever the number of patients, shards or processes. Memory is bounded by one block.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ehrlab.core.errors import InputError
from ehrlab.simulation import chain
from ehrlab.simulation import drugs as formulary
from ehrlab.simulation.codes import Vocabulary, vocabulary
from ehrlab.simulation.network import CONDITIONS, onset_days
from ehrlab.simulation.spec import ACUTE, BLOCK_SIZE, FLAGS, RACES, Shape, Spec, population
from ehrlab.simulation.streams import Stream, choose, standard_normal, stream

Ints = NDArray[np.integer]
Floats = NDArray[np.floating]
Bools = NDArray[np.bool_]

NEVER = np.inf
_OWN_CODES = 14  # habitual background codes of a patient
_SLOT_SHAPE = 4  # of the negative binomial number of background slots


@dataclass(frozen=True)
class Patients:
    """One entry per patient. Frailty and family history appear in no table."""

    age: Floats  # years at entry
    is_female: Bools
    race: Ints  # index into RACES
    risk_class: Ints
    frailty: Ints
    family_history: Ints
    entry: Floats  # uniform in [0, 1): a layout turns it into the date of entry


@dataclass(frozen=True)
class Visits:
    """One entry per visit, by patient and time. Times are days since the start of the patient's entry week."""

    patient: Ints  # row of Patients
    week: Ints
    start_day: Floats
    end_day: Floats  # after start_day; the next visit starts later
    flags: Bools  # [visit, flag]: the codes of FLAGS that the chain asked for
    is_first_diagnosis: Bools
    is_fatal: Bools  # died at the end of this visit


@dataclass(frozen=True)
class Orders:
    """Things attached to visits: code is an index into the vocabulary, drugs.DRUGS or the disease's procedures."""

    visit: Ints  # row of Visits, ascending
    code: Ints  # distinct within a visit


@dataclass(frozen=True)
class Latent:
    """What no record shows. The chain runs on after death: weeks after `death_day` mean nothing."""

    states: NDArray[np.int8]  # [patient, week], after the week's move
    events: NDArray[np.int8]  # [patient, week]
    diagnosis_week: Ints  # number of weeks when never diagnosed
    death_day: Floats  # inf when alive at the end
    onset_day: Floats  # [patient, condition] of network.CONDITIONS, relative to entry
    acute: Bools  # [visit, acute condition] of spec.ACUTE; all False where visits are no hospital stays


@dataclass(frozen=True)
class Shard:
    """The patients first_patient, first_patient + 1, ... of a population."""

    spec: Spec
    seed: int
    block: int
    first_patient: int
    patients: Patients
    visits: Visits
    codes: Orders
    drugs: Orders
    procedures: Orders
    latent: Latent

    @property
    def num_patients(self) -> int:
        return len(self.patients.age)

    @property
    def vocabulary(self) -> Vocabulary:
        return vocabulary(self.spec)


def simulate(preset: str, shape: str, num_patients: int, seed: int) -> Iterator[Shard]:
    """Shards of at most BLOCK_SIZE patients each, in order. Arguments are checked before the first is drawn."""
    check_size(num_patients, seed)
    return simulate_spec(population(preset, shape), num_patients, seed)


def check_size(num_patients: int, seed: int) -> None:
    if num_patients < 1:
        raise InputError(f"simulator: num_patients must be at least 1, found {num_patients}; ask for more patients")
    if not 0 <= seed < 2**63:
        raise InputError(f"simulator: seed must lie in [0, 2**63), found {seed}; choose another seed")


def simulate_spec(spec: Spec, num_patients: int, seed: int) -> Iterator[Shard]:
    """As `simulate`, for a specification of one's own (an experiment that switches a mechanism off)."""
    for block in range(-(-num_patients // BLOCK_SIZE)):
        yield _first(simulate_block(spec, seed, block), num_patients - block * BLOCK_SIZE)


def simulate_block(spec: Spec, seed: int, block: int) -> Shard:
    """The BLOCK_SIZE patients of one block; independent of every other block, so blocks may run in any process."""
    patients = _draw_patients(spec, seed, block)
    draws = stream(spec.disease.name, seed, block, Stream.NETWORK).random((BLOCK_SIZE, len(CONDITIONS)))
    onset = onset_days(draws, patients.age, patients.is_female)
    latent, visits, diagnosed = _run_chain(spec, patients, onset, seed, block)
    codes = _draw_codes(spec, patients, visits, diagnosed, latent, seed, block)
    drugs, procedures = _draw_orders(spec, visits, diagnosed, onset, seed, block)
    return Shard(spec, seed, block, block * BLOCK_SIZE, patients, visits, codes, drugs, procedures, latent)


# ---------------------------------------------------------------------------------------------------- static traits
def _draw_patients(spec: Spec, seed: int, block: int) -> Patients:
    shape = spec.shape
    u = stream(spec.disease.name, seed, block, Stream.STATIC).random((7, BLOCK_SIZE))
    mean, spread, lowest, highest = shape.age
    age = np.clip(mean + spread * standard_normal(u[0], u[1]), lowest, highest)
    is_female = u[2] < shape.female
    race = choose(shape.races, u[3])
    score = 0.05 * (age - mean) + 0.2 * ~is_female + 0.3 * (race == RACES.index("black"))
    return Patients(
        age=age,
        is_female=is_female,
        race=race,
        risk_class=np.digitize(score, shape.risk_cut),
        frailty=choose(shape.frailty_share, u[4]),
        family_history=(u[5] < shape.family_share).astype(np.int64),
        entry=u[6],
    )


# ------------------------------------------------------------------------------------------------------ weekly chain
@dataclass(frozen=True, eq=False)
class _Tables:
    """The matrices of `chain`, laid out for one gather per patient and week."""

    stay: Floats  # [risk * family * event * state] P(state does not change); then those of the visit clock, then 1
    move: Floats  # the same rows, [row, state] cumulative P(new state | it changes)
    start: Floats  # [risk, state] cumulative
    hazard: Floats  # [risk * state]; then those of the visit clock, [frailty * risk * state]
    visit: Floats  # [frailty * event * state]
    death: Floats  # [diagnosed * risk * state]


@functools.lru_cache(maxsize=16)
def _tables(shape: Shape) -> _Tables:
    risks, families = range(chain.NUM_RISK), range(chain.NUM_FAMILY)
    kernels = np.stack([[chain.kernel(shape, risk, family) for family in families] for risk in risks])
    kernels = kernels.reshape(-1, chain.NUM_STATES)
    hazard = [chain.diagnosis_hazard(shape, risk) for risk in risks]
    if shape.time < 1.0:
        frailties = range(len(shape.frailty))
        at_visits = [
            chain.visit_clock_kernel(shape, risk, u, family) for risk in risks for family in families for u in frailties
        ]
        kernels = np.concatenate(
            [kernels, *(np.stack(at_visits).reshape(-1, chain.NUM_STATES), np.eye(chain.NUM_STATES))]
        )
        hazard += [chain.visit_clock_hazard(shape, risk, u) for u in frailties for risk in risks]
    diagonal = np.arange(len(kernels)) % chain.NUM_STATES
    rows = np.arange(len(kernels))
    stay = kernels[rows, diagonal]
    leave = kernels.copy()
    leave[rows, diagonal] = 0.0
    return _Tables(
        stay=stay,
        move=_cumulative(leave),
        start=_cumulative(np.stack([chain.start(shape, risk) for risk in risks])),
        hazard=np.concatenate(hazard),
        visit=np.concatenate([chain.visit_probability(shape, f).ravel() for f in range(len(shape.frailty))]),
        death=np.concatenate(
            [chain.visit_death_probability(shape, risk, diagnosed) for diagnosed in (False, True) for risk in risks]
        ),
    )


def _cumulative(rows: Floats) -> Floats:
    """Row-wise cumulative shares without the last column, so that (u >= row).sum() is the drawn index."""
    total = rows.sum(1, keepdims=True)
    cumulative = np.cumsum(rows, 1) / np.where(total > 0, total, 1.0)
    # From the last possible outcome on, no rounding of a sum to .999... may let a draw through to an impossible one.
    last = rows.shape[1] - 1 - np.argmax(rows[:, ::-1] > 0, axis=1)
    cumulative[np.arange(rows.shape[1]) >= last[:, None]] = 2.0
    return cumulative[:, :-1]


class _VisitClock:
    """Which weeks of which patients follow the visit clock (chain.VisitClock), and what happens in them."""

    def __init__(self, spec: Spec, patients: Patients, tables: _Tables, seed: int, block: int) -> None:
        shape = spec.shape
        frailties = len(shape.frailty)
        clocks = [chain.visit_clock(shape, frailty) for frailty in range(frailties)]
        draws = stream(spec.disease.name, seed, block, Stream.CLOCK).random((shape.weeks, BLOCK_SIZE), np.float32)
        self.ticks = draws >= shape.time
        self.came = np.zeros(BLOCK_SIZE, bool)
        self._tables = tables
        self._visit = np.array([clock.visit for clock in clocks])[patients.frailty]
        self._event = np.array([clock.event for clock in clocks])[patients.frailty]
        of_kernel = (patients.risk_class * chain.NUM_FAMILY + patients.family_history) * frailties + patients.frailty
        calendar_rows = chain.NUM_RISK * chain.NUM_FAMILY * chain.NUM_EVENTS * chain.NUM_STATES
        self._rows = calendar_rows + of_kernel * chain.NUM_EVENTS * chain.NUM_STATES
        self._no_move = calendar_rows * (1 + frailties)
        of_hazard = 1 + patients.frailty
        self._hazards = (of_hazard * chain.NUM_RISK + patients.risk_class) * chain.NUM_STATES

    def arrive(
        self, week: int, visit: Floats, which: Floats, free: Bools, state: Ints, event: Ints, row: Ints
    ) -> tuple[Ints, Ints]:
        """Event, and row of the kernel's table, with the visit clock's in its weeks."""
        ticks = self.ticks[week]
        self.came = ticks & free & (visit < self._visit)
        a, b = self._event[:, 1], self._event[:, 2]
        at_visit = (which < a + b).astype(np.int64) + (which < b)
        event = np.where(ticks, at_visit * self.came, event)
        moved = np.where(self.came, self._rows + event * chain.NUM_STATES + state, self._no_move + state)
        return event, np.where(ticks, moved, row)

    def at_visit(self, week: int, state: Ints, hazard: Floats, chance: Floats) -> tuple[Floats, Floats]:
        """P(diagnosis) and P(visit) given the new state, with the visit clock's in its weeks."""
        ticks = self.ticks[week]
        diagnosed = np.where(self.came, self._tables.hazard[self._hazards + state], 0.0)
        return np.where(ticks, diagnosed, hazard), np.where(ticks, self.came.astype(np.float64), chance)


def _run_chain(spec: Spec, patients: Patients, onset: Floats, seed: int, block: int) -> tuple[Latent, Visits, Bools]:
    """States, visits and, per visit, whether the target had been diagnosed before it or is at it."""
    shape, n, num_states = spec.shape, BLOCK_SIZE, chain.NUM_STATES
    weeks = shape.weeks
    tables = _tables(shape)
    rng = stream(spec.disease.name, seed, block, Stream.CHAIN)
    state = (rng.random(n)[:, None] >= tables.start[patients.risk_class]).sum(1)
    # One uniform per decision: event, move, diagnosis, visit, length of stay, day and hour, death.
    uniforms = rng.random((weeks, 7, n), np.float32)

    kernel_base = (patients.risk_class * chain.NUM_FAMILY + patients.family_history) * chain.NUM_EVENTS * num_states
    visit_base = patients.frailty * chain.NUM_EVENTS * num_states
    hazard_base = patients.risk_class * num_states
    death_elsewhere = shape.death_elsewhere * np.array(shape.risk_death)[patients.risk_class]
    clock = _VisitClock(spec, patients, tables, seed, block) if shape.time < 1.0 else None
    states, events = np.empty((weeks, n), np.int8), np.empty((weeks, n), np.int8)
    is_visit = np.zeros((weeks, n), bool)
    diagnosis_week = np.full(n, weeks)
    death_day, fatal_week = np.full(n, NEVER), np.full(n, -1)
    in_hospital_until = np.full(n, -1)  # last week in which a stay keeps a patient from the next visit
    alive = np.ones(n, bool)
    for week in range(weeks):
        u = uniforms[week]
        _, a, b = chain.event_probability(shape, entry=week == 0)
        event = (u[0] < a + b).astype(np.int64) + (u[0] < b)
        row = kernel_base + event * num_states + state
        free = alive & (in_hospital_until < week)
        if clock is not None and week > 0:
            event, row = clock.arrive(week, u[3], u[0], free, state, event, row)
        stay = tables.stay[row]
        movers = np.flatnonzero(u[1] >= stay)
        rescaled = (u[1, movers] - stay[movers]) / (1.0 - stay[movers])
        state[movers] = (rescaled[:, None] >= tables.move[row[movers]]).sum(1)

        hazard, chance = tables.hazard[hazard_base + state], tables.visit[visit_base + event * num_states + state]
        if clock is not None and week > 0:
            hazard, chance = clock.at_visit(week, state, hazard, chance)
        diagnosed_now = (u[2] < hazard) & free & (diagnosis_week == weeks)
        diagnosis_week[diagnosed_now] = week
        visit = (u[3] < chance) & free | diagnosed_now
        if week == 0:
            visit[:] = True

        who = np.flatnonzero(visit)
        start_day, end_day = _stay(shape, week, u[4, who], u[5, who])
        in_hospital_until[who] = (end_day // 7).astype(np.int64)
        past = (diagnosis_week[who] < weeks) * (chain.NUM_RISK * num_states)
        dies = u[6, who] < tables.death[past + hazard_base[who] + state[who]]
        fatal = who[dies]
        fatal_week[fatal], death_day[fatal] = week, end_day[dies]
        elsewhere = np.flatnonzero(free & ~visit & (u[6] < death_elsewhere))
        death_day[elsewhere] = week * 7 + 7.0 * u[5, elsewhere]
        alive[fatal] = alive[elsewhere] = False
        states[week], events[week], is_visit[week] = state, event, visit

    patient, week_of = np.nonzero(is_visit.T)
    start_day, end_day = _stay(shape, week_of, uniforms[week_of, 4, patient], uniforms[week_of, 5, patient])
    flag_table = np.moveaxis(chain.flag_probability(shape), 0, -1)  # event, state, flag
    probability = flag_table[events[week_of, patient], states[week_of, patient]]
    visits = Visits(
        patient=patient,
        week=week_of,
        start_day=start_day,
        end_day=end_day,
        flags=rng.random(probability.shape) < probability,
        is_first_diagnosis=week_of == diagnosis_week[patient],
        is_fatal=week_of == fatal_week[patient],
    )
    acute = np.zeros((len(patient), len(ACUTE)), bool)
    if shape.stay_days is not None:
        draws = stream(spec.disease.name, seed, block, Stream.ACUTE).random(acute.shape)
        acute = draws < np.array([condition.probability for condition in ACUTE])
    latent = Latent(
        np.ascontiguousarray(states.T), np.ascontiguousarray(events.T), diagnosis_week, death_day, onset, acute
    )
    return latent, visits, week_of >= diagnosis_week[patient]


def _stay(shape: Shape, week: Ints | int, length: Floats, moment: Floats) -> tuple[Floats, Floats]:
    """Start and end day of visits in `week`. Without hospital stays (`stay_days` None) a visit ends within its day.

    The record begins with the entry visit, so week 0 does.
    """
    moment = np.where(np.asarray(week) > 0, moment.astype(np.float64), 0.0)
    start = np.asarray(week) * 7 + 7.0 * moment
    if shape.stay_days is None:
        day = np.floor(start)
        return start, start + (day + 1.0 - start) * (0.01 + 0.9 * length)
    median, steepness, least, most = shape.stay_days
    odds = length.astype(np.float64) / (1.0 - length)
    return start, start + np.clip(median * odds ** (1.0 / steepness), least, most)


# ------------------------------------------------------------------------------------------------------------ codes
@functools.lru_cache(maxsize=16)
def _background(num_codes: int, zipf: tuple[float, float], mean_slots: float) -> tuple[Floats, Floats]:
    """Cumulative laws of the background code's rank and of the number of background slots."""
    exponent, offset = zipf
    weight = (np.arange(1, num_codes + 1) + offset) ** -exponent
    # Negative binomial by its ratio of successive terms; 120 slots are beyond any mean used here.
    p = _SLOT_SHAPE / (_SLOT_SHAPE + mean_slots)
    k = np.arange(120)
    terms = np.concatenate([[p**_SLOT_SHAPE], (k + _SLOT_SHAPE) / (k + 1) * (1.0 - p)]).cumprod()
    return np.cumsum(weight)[:-1] / weight.sum(), np.cumsum(terms)


def _draw_codes(
    spec: Spec, patients: Patients, visits: Visits, diagnosed: Bools, latent: Latent, seed: int, block: int
) -> Orders:
    """Diagnosis codes: target, flags, chronic and acute conditions, then habit and Zipf background; never none."""
    shape, words = spec.shape, vocabulary(spec)
    rng = stream(spec.disease.name, seed, block, Stream.CODES)
    num_visits = len(visits.patient)
    visit_parts, code_parts = [], []

    def emit(visit: Ints, code: Ints) -> None:
        visit_parts.append(visit)
        code_parts.append(code)

    again = diagnosed & (rng.random(num_visits) < shape.target_again)
    hit = np.flatnonzero(visits.is_first_diagnosis | again)
    emit(hit, words.target.draw(rng.random(len(hit))))
    for flag, span in enumerate(words.flags):
        hit = np.flatnonzero(visits.flags[:, flag])
        emit(hit, span.draw(rng.random(len(hit))))
    present = latent.onset_day[visits.patient] <= visits.start_day[:, None]
    coded = present & (rng.random(present.shape, np.float32) < shape.network_code)
    for condition, span in enumerate(words.network):
        if span.size:
            hit = np.flatnonzero(coded[:, condition])
            emit(hit, span.draw(rng.random(len(hit))))

    if shape.stay_days is not None:
        draws = rng.random(latent.acute.shape)
        coded = draws < np.where(latent.acute, shape.acute_code[1], shape.acute_code[0])
        for condition, span in enumerate(words.acute):
            if span.size:
                hit = np.flatnonzero(coded[:, condition])
                emit(hit, span.draw(rng.random(len(hit))))

    num_background = len(words.codes) - words.background
    ranks, slots = _background(num_background, shape.zipf, shape.background_mean)
    num_slots = np.searchsorted(slots, rng.random(num_visits))
    signal = np.bincount(np.concatenate(visit_parts), minlength=num_visits)
    num_slots = np.where(signal + num_slots == 0, 1, num_slots)
    visit = np.repeat(np.arange(num_visits), num_slots)
    own = np.searchsorted(ranks, rng.random((len(patients.age), _OWN_CODES)), side="right")
    # Geometric(1/4): the first of a patient's own codes returns most often.
    pick = np.minimum(np.log1p(-rng.random(len(visit))) / np.log(0.75), _OWN_CODES - 1).astype(np.int64)
    code = own[visits.patient[visit], pick]
    fresh = np.flatnonzero(rng.random(len(visit)) >= shape.habit)
    code[fresh] = np.searchsorted(ranks, rng.random(len(fresh)), side="right")
    emit(visit, words.background + code)
    return _distinct(visit_parts, code_parts, len(words.codes))


def _draw_orders(
    spec: Spec, visits: Visits, diagnosed: Bools, onset: Floats, seed: int, block: int
) -> tuple[Orders, Orders]:
    """Drugs and procedures.

    They depend on what the codes already tell (flags, the diagnosis) or on conditions outside the chain, so that given
    the diagnosis codes they tell nothing more of the target: the exact risk given the codes is the one given them too.
    """
    rng = stream(spec.disease.name, seed, block, Stream.ORDERS)
    num_visits = len(visits.patient)
    visit_parts, drug_parts = [], []

    def give(drug: str, hit: Bools) -> None:
        visit_parts.append(np.flatnonzero(hit))
        drug_parts.append(np.full(len(visit_parts[-1]), formulary.INDEX[drug]))

    present = onset[visits.patient] <= visits.start_day[:, None]
    for i, condition in enumerate(CONDITIONS):
        if condition.drug:
            give(condition.drug, present[:, i] & (rng.random(num_visits) < spec.shape.condition_drug))
    for drug in spec.disease.drugs:
        give(drug, diagnosed & ~visits.is_first_diagnosis & (rng.random(num_visits) < spec.shape.target_drug))
    for drug, probability in spec.shape.common_drugs:
        give(drug, rng.random(num_visits) < probability)

    procedure_visit, procedure = [], []
    for i, (flag, _) in enumerate(spec.disease.procedures):
        hit = np.flatnonzero(visits.flags[:, FLAGS.index(flag)] & (rng.random(num_visits) < spec.shape.flag_procedure))
        procedure_visit.append(hit)
        procedure.append(np.full(len(hit), i))
    return (
        _distinct(visit_parts, drug_parts, len(formulary.DRUGS)),
        _distinct(procedure_visit, procedure, len(spec.disease.procedures)),
    )


def _distinct(visit_parts: Sequence[Ints], code_parts: Sequence[Ints], num_codes: int) -> Orders:
    key = np.concatenate(visit_parts).astype(np.int64) * num_codes + np.concatenate(code_parts)
    key.sort()
    key = key[np.concatenate([[True], key[1:] != key[:-1]])] if len(key) else key
    return Orders(*np.divmod(key, num_codes))


# ------------------------------------------------------------------------------------------------------------- cutting
def _first(shard: Shard, num_patients: int) -> Shard:
    """The first patients of a shard: every table is ordered by patient, so each is cut at its end."""
    if num_patients >= shard.num_patients:
        return shard

    def cut(part: object, length: int) -> dict[str, Any]:
        return {name: values[:length] for name, values in vars(part).items()}

    num_visits = int(np.searchsorted(shard.visits.patient, num_patients))

    def orders(part: Orders) -> Orders:
        return Orders(**cut(part, int(np.searchsorted(part.visit, num_visits))))

    return Shard(
        shard.spec, shard.seed, shard.block, shard.first_patient,
        Patients(**cut(shard.patients, num_patients)),
        Visits(**cut(shard.visits, num_visits)),
        orders(shard.codes), orders(shard.drugs), orders(shard.procedures),
        Latent(**{**cut(shard.latent, num_patients), "acute": shard.latent.acute[:num_visits]}),
    )  # fmt: skip
