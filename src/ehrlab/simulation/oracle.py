"""The exact Bayes risk of every sample of a simulated cohort, given each of several information sets.

Of tasks about whole records; those of questions about one admission or stay are in one_admission.py.

codes    the visits' sets of codes in order, the times of the first visit, which opens the record, and the landmark; but
         not when between the two the other visits fell, nor how long they took
+time    and when
+labs, +notes  and what the laboratory tests and the notes of the visits say
latent   the true state at the landmark (its week's and the one before) and the true static traits
Demographics, and so the risk class, are known in each. What a visit shows is known from its end.
"""

from __future__ import annotations

import itertools
import json
import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

from ehrlab.core.errors import InputError
from ehrlab.core.files import replacing
from ehrlab.simulation import admissions, first_diagnosis
from ehrlab.simulation.chain import NUM_FAMILY, NUM_RISK
from ehrlab.simulation.filter import Filter, law
from ehrlab.simulation.folder import MARK
from ehrlab.simulation.knobs import Knobs, turn
from ehrlab.simulation.one_admission import CodedConditions, StayOutcome
from ehrlab.simulation.population import Bools, Floats, Ints, simulate_spec
from ehrlab.simulation.question import Asked, Question, emitted, refuses_death
from ehrlab.simulation.records import LAYOUTS, SOURCES, Records, code_likelihood, read
from ehrlab.simulation.spec import RACES, Shape, Spec, population
from ehrlab.simulation.specification import SPECIFICATION
from ehrlab.simulation.strata import Strata, year_share
from ehrlab.simulation.untimed import UntimedFilter

log = logging.getLogger(__name__)


def write_oracle(
    raw_root: Path,
    task: Mapping[str, Any],
    samples: pl.DataFrame,
    out: Path,
    *,
    subject_ids: Callable[[pl.Series], pl.Series],
    modalities: Sequence[str] | None = None,
) -> bool:
    """Write `out`: subject_id, prediction_time and one column per information set, a row per sample in their order.

    A task with several labels has a column label as well, and a row per sample and label.

    raw_root     folder of simulated tables; its mark says which patients are drawn anew
    task         kind ("first_diagnosis", ...) and the fields of the task
    samples      subject_id, prediction_time
    subject_ids  subject ids of the samples from the raw tables' patient ids
    modalities   of SOURCES, what can be known beside codes and times; None: what the folder holds tables of. What a
                 modality tells is drawn with the patients, so it can be asked for where no table was written

    False, with the reason in the log, for a question whose exact risk is not known. InputError for a folder that is no
    simulated one or of another version, and for samples of other patients.
    """
    mark = _mark(raw_root)
    knobs = Knobs(**{f.name: mark[f.name] for f in fields(Knobs) if f.name in mark})
    spec = turn(population(mark["preset"], mark["shape"]), knobs)
    question = _QUESTIONS.get(str(task["kind"]))
    if question is None:
        log.info("no exact risk is known for tasks of kind %s", task["kind"])
        return False
    if reason := question.refuses(spec, mark["layout"], task):
        log.info("%s", reason)
        return False
    told = str(mark.get("modalities", "")).split() if modalities is None else modalities
    known = [name for name in SOURCES if name in told]
    shards = simulate_spec(spec, int(mark["num_patients"]), int(mark["seed"]))
    asked = Asked(spec, mark["layout"], shards, samples, subject_ids, known, task)
    # Many products of small matrices: a second thread costs more than it brings (measured: 14 times the CPU time).
    with threadpool_limits(1):
        risks = question(asked)
    table = samples.select(pl.col("subject_id").cast(pl.Int64), pl.col("prediction_time").cast(pl.Datetime("us")))
    if labels := question.labels(task):
        table = table.join(pl.DataFrame({"label": labels}), how="cross", maintain_order="left_right")
    table = table.with_columns(pl.Series(name, values.ravel(), dtype=pl.Float64) for name, values in risks.items())
    with replacing(out) as beside:
        table.write_parquet(beside)
    return True


def information_sets(modalities: Sequence[str]) -> list[tuple[str, ...]]:
    """The subsets of what can be known beside the codes, the smallest first: () for codes alone.

    >>> ["+".join(("codes", *chosen)) for chosen in information_sets(["time", "labs"])]
    ['codes', 'codes+time', 'codes+labs', 'codes+time+labs']
    """
    return [chosen for size in range(len(modalities) + 1) for chosen in itertools.combinations(modalities, size)]


def _beliefs(
    shape: Shape, records: Records, rows: Ints, visits: Ints, timed: Filter, untimed: UntimedFilter
) -> Iterator[tuple[str, Floats]]:
    """Information set, and the beliefs at the landmarks of `rows` given it; `visits` are theirs."""
    flags = records.visit_flags[visits]
    codes, patterns = code_likelihood(shape, flags), flags @ (1 << np.arange(flags.shape[1]))
    told: dict[str, tuple[Floats, Floats]] = {}
    for chosen in information_sets(list(records.evidence)):
        chain_evidence, family_evidence = codes, np.ones((len(visits), NUM_FAMILY))
        for name in chosen:
            chain, family = records.evidence[name]
            chain_evidence, family_evidence = chain_evidence * chain[visits], family_evidence * family[visits]
        told["".join(f"+{name}" for name in chosen)] = chain_evidence, family_evidence
    without_times = dict(zip(told, untimed.runs(list(told.values())), strict=True))
    for chosen in information_sets(["time", *records.evidence]):
        key = "".join(f"+{name}" for name in chosen if name != "time")
        is_timed = "time" in chosen
        belief = timed.run(*told[key], same=None if key else patterns) if is_timed else without_times.pop(key)
        yield "+".join(("codes", *chosen)), belief
    yield "latent", timed.truth(records.trait[rows], records.states[rows])


def _records(asked: Asked) -> Records:
    return read(asked.shards, LAYOUTS[asked.layout], asked.samples, asked.modalities, asked.subject_ids)


class _FirstDiagnosis(Question):
    """See first_diagnosis.py."""

    def refuses(self, spec: Spec, layout: str, task: Mapping[str, Any]) -> str | None:
        patterns = {9: task["icd9"], 10: task["icd10"]}
        means = emitted(spec, layout, lambda version, bare: any(re.fullmatch(p, bare) for p in patterns[version]))
        if means != set(spec.disease.target):
            return (
                f"no exact risk of a first diagnosis whose codes (task.icd9, task.icd10) are not those of the disease "
                f"that the tables simulate, {spec.disease.name}"
            )
        if task["window"] != "until":
            return "no exact risk of a first diagnosis for histories that begin late (task.window is not 'until')"
        if not self._rule(layout, task).can_tell(law(spec.shape, 0)):
            return f"no exact risk of a first diagnosis {task['lead_days']} days ahead, within the reach of one stay"
        return None

    def _rule(self, layout: str, task: Mapping[str, Any]) -> first_diagnosis.Rule:
        return first_diagnosis.Rule(
            task["lead_days"], task["num_controls"], task["min_visits"], LAYOUTS[layout].grain_days
        )

    def __call__(self, asked: Asked) -> dict[str, Floats]:
        shape, layout, task, records = asked.spec.shape, asked.layout, asked.task, _records(asked)
        rule = self._rule(layout, task)
        index = records.landmark - rule.grain_days + rule.lead_days
        # Rounded, because differences of days that are no whole minutes would be many more times than there are.
        elapsed, which = np.unique(np.round((index - records.first_end) * 1440.0) / 1440.0, return_inverse=True)
        history: dict[str, Floats] = {}
        laws = [law(shape, risk) for risk in range(NUM_RISK)]
        eligible = [first_diagnosis.Eligible(of_risk, rule) for of_risk in laws]
        futures = first_diagnosis.matching(laws, rule, eligible)
        values = [e.values(future) for e, future in zip(eligible, futures, strict=True)]
        population = first_diagnosis.population_likelihoods(laws[0], rule, values, elapsed)[which]
        for risk, (of_risk, future) in enumerate(zip(laws, futures, strict=True)):
            rows = np.flatnonzero(records.risk == risk)
            histories, visits = records.histories(rows, of_risk.weeks)
            timed, untimed = Filter(of_risk, histories), UntimedFilter(of_risk, histories)
            for name, belief in _beliefs(shape, records, rows, visits, timed, untimed):
                of_rows = first_diagnosis.likelihoods(future, histories.landmark_week, index[rows], belief)
                history.setdefault(name, np.empty((records.num_samples, 2)))[rows] = of_rows
        strata = Strata(shape, layout, task["age_band_years"])
        shares = strata.of(
            records.age, year_share(records.entry), records.first_end,
            records.is_female, records.race == RACES.index("black"), records.risk,
        )  # fmt: skip
        matched = np.einsum("nr,nro->no", shares, population)
        return {name: first_diagnosis.probability(v, matched, rule.num_controls) for name, v in history.items()}


class _Admissions(Question):
    """See admissions.py."""

    def refuses(self, spec: Spec, layout: str, task: Mapping[str, Any]) -> str | None:
        if spec.shape.stay_days is None:
            return f"no exact risk of tasks about hospital stays for tables of layout {layout}, whose stays are shorter"
        return refuses_death(task)

    def __call__(self, asked: Asked) -> dict[str, Floats]:
        shape, task, records = asked.spec.shape, asked.task, _records(asked)
        out: dict[str, Floats] = {}
        in_last = task["kind"] == "in_hospital_mortality" and task["include_last_admission"]
        for risk in range(NUM_RISK):
            of_risk = law(shape, risk)
            rows = np.flatnonzero(records.risk == risk)
            histories, visits = records.histories(rows, of_risk.weeks)
            untimed = UntimedFilter(of_risk, histories, ends_at_landmark=True, is_survived=not in_last)
            week, is_diagnosed = (histories.landmark // 7.0).astype(np.int64), histories.diagnosed < of_risk.weeks
            if in_last:
                histories, _ = records.histories(rows, of_risk.weeks, in_last_visit=True)
            blocked, last_stay = week - histories.landmark_week, admissions.LastStay(of_risk)
            for name, belief in _beliefs(shape, records, rows, visits, Filter(of_risk, histories), untimed):
                if in_last and ("time" in name or name == "latent"):
                    belief = _placed(belief, blocked)
                answer = self._answer(last_stay, belief, week, histories.landmark, is_diagnosed, task)
                out.setdefault(name, np.empty(records.num_samples))[rows] = answer
        return out

    def _answer(
        self,
        last_stay: admissions.LastStay,
        belief: Floats,
        week: Ints,
        landmark: Floats,
        is_diagnosed: Bools,
        task: Mapping[str, Any],
    ) -> Floats:
        if task["kind"] == "readmission":
            return admissions.readmission(
                last_stay.law,
                belief[:, :, 0],
                week + 1,
                landmark + task["days"],
                is_diagnosed,
                keep_early_deaths=task["keep_early_deaths"],
            )
        if task["include_last_admission"]:
            return last_stay.known(belief, week, is_diagnosed)
        return last_stay.next(belief[:, :, 0], week + 1, is_diagnosed)


def _placed(belief: Floats, blocked: Ints) -> Floats:
    """The belief at 0 on the third axis, moved to `blocked`."""
    out = np.zeros_like(belief)
    rows = np.arange(len(belief))
    out[rows, :, blocked] = belief[:, :, 0]
    return out


_QUESTIONS: dict[str, Question] = {
    "first_diagnosis": _FirstDiagnosis(),
    "in_hospital_mortality": _Admissions(),
    "readmission": _Admissions(),
    "stay_onset": StayOutcome(),
    "stay_death": StayOutcome(),
    "conditions": CodedConditions(),
}


def _mark(raw_root: Path) -> dict[str, Any]:
    path = raw_root / MARK
    try:
        mark: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, json.JSONDecodeError):
        raise InputError(f"exact risk: expected simulated tables with {MARK} in {raw_root}, found none") from None
    if mark.get("specification") != SPECIFICATION:
        raise InputError(
            f"exact risk: expected tables of the simulator's specification {SPECIFICATION}, found "
            f"{mark.get('specification')} in {raw_root}; simulate the tables again"
        )
    if mark.get("layout") not in LAYOUTS:
        raise InputError(
            f"exact risk: expected a layout of {', '.join(LAYOUTS)}, found {mark.get('layout')} in {raw_root}; "
            "choose other tables"
        )
    return mark
