"""The exact risk of what happens in an intensive-care stay after its first hours, from what is charted until then.

MEDHMP's stay-level tasks (arXiv 2310.07871; cohorts of FIDDLE, Tang et al. 2020): of adults whose stay lasts 48 hours,
death in hospital; respiratory failure (ARF) and shock that begin later, among those who had none before. A stay's two
chains are independent given its class (icu.py), so a forward filter of 3 x 3 hidden values per chain and class is
exact; the class has the population's law, itself computed without sampling; what follows the filter is a backward
recursion over hours, weighted with the law of the remaining length.

Two information sets: "charts", all charted and given in the first hours and the patient's demographics (risk class);
"latent", the true states until then, the true trigger and the true weekly state, but not the outcome itself.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import numpy as np

from ehrlab.simulation import chain as weekly
from ehrlab.simulation import icu
from ehrlab.simulation.care import CARE, NUM_BASELINES, NUM_CLASSES, NUM_LEVELS, WORST, Care
from ehrlab.simulation.evidence import Evidence
from ehrlab.simulation.icu import DAY, Course, Stays
from ehrlab.simulation.population import Bools, Floats, Ints, Shard
from ehrlab.simulation.spec import EVENTS, Shape
from ehrlab.simulation.visits import IS_DIAGNOSED, expected_visits

HOURS = 48
ADULT = 18.0  # years
OUTCOMES = ("arf", "shock", "mortality")  # the first two: onset of the worst state in the chain of this index

_NODES = 4000  # of midpoint rules; survival functions have jumps, which limits them to about 1e-6
_FATAL = np.arange(NUM_CLASSES) // 2
_TRIGGER_B = EVENTS.index("trigger_b")


@dataclass(frozen=True, eq=False)
class Outcome:
    """The eligible stays of one task, what happened, and its exact probability by information set."""

    stay: Ints  # row of Stays
    happened: Bools
    charts: Floats
    latent: Floats


def outcome_risk(
    shard: Shard, stays: Stays, course: Course, hours: int = HOURS, care: Care = CARE
) -> dict[str, Outcome]:
    """Of each of OUTCOMES, the stays in which it may still happen after `hours` and its risk at that moment."""
    visits, shape = shard.visits, shard.spec.shape
    visit = stays.visit
    patient = visits.patient[visit]
    is_adult = shard.patients.age[patient] + visits.start_day[visit] / 365.25 >= ADULT
    chosen = np.flatnonzero((stays.num_minutes >= 60 * hours) & is_adult)
    visit, patient = visit[chosen], patient[chosen]
    risk_class = shard.patients.risk_class[patient]
    lasts = _survival(shape, care, 60.0 * hours)[_FATAL]  # [class]

    log_likelihood, filtered = np.zeros((len(chosen), NUM_CLASSES)), []
    paths = np.zeros((len(chosen), NUM_CLASSES))
    for c in range(len(care.chains)):
        log, state = chain_filter(course, chosen, c, hours, care)
        log_likelihood += log
        filtered.append(state)
        paths += _path(course, chosen, c, hours, care)
    charts = _posterior(np.log(_class_prior(shape).reshape(-1, NUM_CLASSES) * lasts)[risk_class] + log_likelihood)

    week = visits.week[visit]
    is_diagnosed = shard.latent.diagnosis_week[patient] <= week
    death = np.stack(
        [[weekly.visit_death_probability(shape, risk, bool(d)) for d in (0, 1)] for risk in range(weekly.NUM_RISK)]
    )
    dies = death[risk_class, is_diagnosed.astype(np.int64), shard.latent.states[patient, week]]
    classes = icu.stay_class(shard, visit)
    known = np.where(_FATAL == 1, dies[:, None], 1.0 - dies[:, None])
    known *= np.arange(NUM_CLASSES) % 2 == classes[:, None] % 2
    with np.errstate(divide="ignore"):
        latent = _posterior(np.log(known * lasts) + paths)

    out = {}
    for c, name in enumerate(OUTCOMES[:-1]):
        onset = icu.onset_hour(course, c)[chosen]
        rows = np.flatnonzero(onset >= hours)
        later = _onset_later(shape, care, c, hours)  # [class, state]
        seen = np.einsum("nks,ks->nk", filtered[c][rows], later)
        last = course.states[course.begin[chosen[rows]] + hours - 1, c]
        out[name] = Outcome(
            stay=chosen[rows],
            happened=onset[rows] < stays.num_hours[chosen[rows]],
            charts=(charts[rows] * seen).sum(1),
            latent=(latent[rows] * later[:, last].T).sum(1),
        )
    fatal = _FATAL == 1
    out[OUTCOMES[-1]] = Outcome(chosen, classes >= 2, charts[:, fatal].sum(1), latent[:, fatal].sum(1))
    return out


def evidence(shard: Shard, stays: Stays, course: Course, care: Care = CARE) -> Evidence:
    """What all that is charted of a stay says of its trigger; whether the visit is fatal is known when it is read."""
    out = Evidence.silent(len(shard.visits.patient))
    every = np.arange(len(stays.visit))
    longest = int(stays.num_hours.max(initial=0))
    log = np.sum([chain_filter(course, every, c, longest, care)[0] for c in range(len(care.chains))], axis=0)
    log = np.take_along_axis(log, 2 * _FATAL[icu.stay_class(shard, stays.visit)][:, None] + np.array([0, 1]), 1)
    out.chain[stays.visit] = np.exp(log - log.max(1, keepdims=True))[:, [0, 0, 1], None]
    return out


def _posterior(log: Floats) -> Floats:
    weight = np.exp(log - log.max(1, keepdims=True))
    return weight / weight.sum(1, keepdims=True)


# --------------------------------------------------------------------------------------------------------------- filter
def chain_filter(course: Course, chosen: Ints, c: int, hours: int, care: Care = CARE) -> tuple[Floats, Floats]:
    """Of the first `hours` of the chosen stays (of all, where they are shorter), for chain c:

    log P(what is charted and given | class): [stay, class];  P(last state | that, class): [stay, class, state].
    """
    num_hours = np.minimum(np.diff(course.begin)[chosen], hours)
    order = np.argsort(-num_hours, kind="stable")
    begin = course.begin[chosen][order]
    running = len(order) - np.searchsorted(num_hours[order][::-1], np.arange(1, num_hours.max(initial=0) + 1))
    chain = care.chains[c]
    moves, law = icu.kernel(chain), icu.start_law(chain)
    # [class, stay, baseline, state]
    alpha = np.einsum("ks,b->kbs", law, np.array(chain.baseline))[:, None] * np.ones((1, len(order), 1, 1))
    log = np.zeros((NUM_CLASSES, len(order)))
    tables = _tables(care)
    for hour, n in enumerate(running.tolist()):
        if hour:
            alpha[:, :n] = alpha[:, :n] @ moves[:, None]
        shown = _shown(course, begin[:n] + hour, c, care, tables)
        alpha[:, :n] *= shown
        total = alpha[:, :n].sum((2, 3))
        alpha[:, :n] /= total[:, :, None, None]
        log[:, :n] += np.log(total)
    back = np.empty_like(order)
    back[order] = np.arange(len(order))
    return log[:, back].T, alpha.sum(2)[:, back].transpose(1, 0, 2)


@functools.lru_cache(maxsize=8)
def _tables(care: Care) -> tuple[Floats, ...]:
    """Per vital, icu.charted_law of every number that can be charted, then of none: [number, baseline, state]."""
    out = []
    for vital in care.vitals:
        count = round((vital.scale.highest - vital.scale.lowest) / vital.scale.step) + 1
        numbers = np.append(vital.scale.lowest + vital.scale.step * np.arange(count), np.nan)
        out.append(icu.charted_law(vital, numbers).swapaxes(1, 2))
    return tuple(out)


def _shown(course: Course, row: Ints, c: int, care: Care, tables: tuple[Floats, ...]) -> Floats:
    """P(what an hour shows of the chain | baseline, state): [row, baseline, state]."""
    treated = course.states[row, c] == WORST
    shown = np.broadcast_to(
        ((np.arange(NUM_LEVELS) == WORST) == treated[:, None])[:, None].astype(np.float64),
        (len(row), NUM_BASELINES, NUM_LEVELS),
    ).copy()
    for v, vital in enumerate(care.vitals):
        if vital.chain == c:
            number = (course.values[row, v] - vital.scale.lowest) / vital.scale.step
            index = np.where(np.isnan(number), len(tables[v]) - 1, np.rint(np.nan_to_num(number))).astype(np.int64)
            shown *= tables[v][index]
    return shown


def _path(course: Course, chosen: Ints, c: int, hours: int, care: Care) -> Floats:
    """log P(the true states of the first `hours` | class): [stay, class]; every chosen stay lasts as long."""
    chain = care.chains[c]
    states = course.states[course.begin[chosen][:, None] + np.arange(hours), c].astype(np.int64)
    with np.errstate(divide="ignore"):
        law, moves = np.log(icu.start_law(chain)), np.log(icu.kernel(chain))
    return law[:, states[:, 0]].T + moves[:, states[:, :-1], states[:, 1:]].sum(2).T


# --------------------------------------------------------------------------------------------------- laws of the future
def _survival(shape: Shape, care: Care, minutes: Floats | float) -> Floats:
    """P(a stay lasts at least as long | alive, fatal): [fatal, ...]."""
    assert shape.stay_days is not None
    minutes = np.asarray(minutes, np.float64)
    out = []
    for low, high in care.share:
        share = low + (high - low) * (np.arange(_NODES) + 0.5) / _NODES
        out.append(_admission_survival(shape, minutes[..., None] / share / DAY).mean(-1))
    return np.stack(out)


def _admission_survival(shape: Shape, days: Floats) -> Floats:
    """P(an admission lasts at least as long)."""
    assert shape.stay_days is not None
    median, steepness, least, most = shape.stay_days
    inside = 1.0 / (1.0 + (np.maximum(days, least) / median) ** steepness)
    return np.where(days <= least, 1.0, np.where(days <= most, inside, 0.0))


@functools.lru_cache(maxsize=16)
def _onset_later(shape: Shape, care: Care, c: int, hours: int) -> Floats:
    """P(chain c reaches its worst state at hour `hours` or later, within the stay | class, state the hour before).

    Given that the stay lasts `hours`: [class, state]; of the worst state, P(it is there again or still) means nothing.
    """
    assert shape.stay_days is not None
    moves = icu.kernel(care.chains[c])
    longest = int(shape.stay_days[3] * 24.0 * np.max(care.share)) + 1
    later = np.arange(hours, max(longest, hours) + 1)
    # Hour t exists in stays of more than 60 t minutes.
    lasts = _survival(shape, care, 60.0 * later + 1.0) / _survival(shape, care, 60.0 * hours)[:, None]
    out = np.zeros((NUM_CLASSES, NUM_LEVELS))
    for t in range(len(later) - 1, -1, -1):
        out = moves[:, :, WORST] * lasts[_FATAL, t, None] + np.einsum("kst,kt->ks", moves[:, :, :WORST], out[:, :WORST])
    return out


@functools.lru_cache(maxsize=16)
def _class_prior(shape: Shape) -> Floats:
    """Law of a visit's class by risk class, [risk, fatal, trigger B]: shares of the expected numbers of visits."""
    out = np.empty((weekly.NUM_RISK, 2, 2))
    for risk in range(weekly.NUM_RISK):
        came = expected_visits(shape, risk).sum((0, 2))  # [kind, event, state]
        dies = np.stack([weekly.visit_death_probability(shape, risk, bool(d)) for d in IS_DIAGNOSED])[:, None]
        for fatal, number in enumerate((came * (1.0 - dies), came * dies)):
            by_event = number.sum((0, 2))
            out[risk, fatal] = by_event[:_TRIGGER_B].sum(), by_event[_TRIGGER_B]
    return out / out.sum((1, 2), keepdims=True)
