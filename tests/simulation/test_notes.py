"""Facts have the probabilities that the filter is told, and words add nothing to them."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrlab.data.sources import mimic3
from ehrlab.data.sources.raw import Events, RawTable
from ehrlab.simulation import codes, note_text, simulate
from ehrlab.simulation.chain import MODERATOR_OF, NUM_EVENTS, NUM_STATES, STAGE_OF
from ehrlab.simulation.drugs import DRUGS, INDEX
from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.note_text import LABEL_SECTIONS, NURSING, SECTIONS, SUMMARY, WORDS, noteevents, write_notes
from ehrlab.simulation.notes import AFFIRMED, DENIED, NOT_TOLD, NOTES, Facts, evidence, facts
from ehrlab.simulation.population import Shard
from ehrlab.simulation.spec import ACUTE, EVENTS, STAGES

DISEASES = ("heart_failure", "kidney", "copd", "amnesia")
HEADINGS = tuple(f"{heading}:" for heading in SECTIONS)


@pytest.fixture(scope="module")
def shard() -> Shard:
    return next(simulate("heart_failure", "toy", 1_024, seed=5))


@pytest.fixture(scope="module")
def told(shard: Shard) -> Facts:
    return facts(shard)


@pytest.fixture(scope="module")
def notes(shard: Shard, told: Facts) -> pl.DataFrame:
    return write_notes(shard, told)


def sections(text: str) -> dict[str, str]:
    """Body by heading; the part before the first heading is ''."""
    parts: dict[str, list[str]] = {"": []}
    heading = ""
    for line in text.splitlines():
        if line in HEADINGS:
            heading = line[:-1]
            parts[heading] = []
        else:
            parts[heading].append(line)
    return {name: "\n".join(lines).strip() for name, lines in parts.items()}


def summaries(notes: pl.DataFrame) -> list[dict[str, str]]:
    """One per visit."""
    return [sections(text) for text in notes.filter(pl.col("category") == SUMMARY)["text"]]


def titles_of(shard: Shard) -> list[str]:
    titles = dict(codes.diagnoses().select("ICD9_CODE", "LONG_TITLE").iter_rows())
    return [titles[code.replace(".", "")] for code in shard.vocabulary.codes]


def state_and_event(shard: Shard) -> tuple[np.ndarray, np.ndarray]:
    visits, latent = shard.visits, shard.latent
    return latent.states[visits.patient, visits.week], latent.events[visits.patient, visits.week]


def present(shard: Shard) -> np.ndarray:
    return shard.latent.onset_day[shard.visits.patient] <= shard.visits.start_day[:, None]


def assert_share(happens: np.ndarray, probability: float) -> None:
    error = np.sqrt(probability * (1.0 - probability) / max(len(happens), 1))
    assert len(happens) >= 30
    assert abs(happens.mean() - probability) <= 4.5 * error


# --------------------------------------------------------------------------------------------------------------- facts
def test_the_law_names_the_conditions_in_their_order_and_gives_probabilities() -> None:
    assert [mention.name for mention in NOTES.conditions] == [condition.name for condition in CONDITIONS]
    assert [mention.name for mention in NOTES.acute] == [condition.name for condition in ACUTE]
    assert [max(mention.listed) > 0 for mention in NOTES.conditions] == [bool(c.drug) for c in CONDITIONS]
    np.testing.assert_allclose(np.array(NOTES.complaint).sum(1), np.ones(len(EVENTS)))
    assert len(NOTES.symptom) == len(STAGES)


def test_facts_have_the_stated_probabilities(shard: Shard, told: Facts) -> None:
    state, event = state_and_event(shard)
    assert_share(told.symptom != NOT_TOLD, NOTES.symptom_told)
    for stage, probability in enumerate(NOTES.symptom):
        said = told.symptom[STAGE_OF[state] == stage]
        assert_share(said[said != NOT_TOLD] == AFFIRMED, probability)
    for moderator, probability in enumerate(NOTES.moderator.affirmed):
        said = told.moderator[MODERATOR_OF[state] == moderator]
        assert_share(said[said != NOT_TOLD] == AFFIRMED, probability)
    for cause, sounds in itertools.product(range(NUM_EVENTS), repeat=2):
        assert_share(told.complaint[event == cause] == sounds, NOTES.complaint[cause][sounds])


def test_conditions_and_their_drugs_come_up_with_the_stated_probabilities(shard: Shard, told: Facts) -> None:
    for i, mention in enumerate(NOTES.conditions):
        if mention.told:
            assert_share(told.condition[:, i] != NOT_TOLD, mention.told)
        for is_present in (0, 1):
            here = present(shard)[:, i] == is_present
            said = told.condition[here, i]
            if mention.told:
                assert_share(said[said != NOT_TOLD] == AFFIRMED, mention.affirmed[is_present])
            assert_share(told.home_drug[here, i], mention.listed[is_present])
    for i, mention in enumerate(NOTES.acute):
        for is_present in (0, 1):
            said = told.acute[shard.latent.acute[:, i] == is_present, i]
            assert_share(said != NOT_TOLD, mention.told)
            assert_share(said[said != NOT_TOLD] == AFFIRMED, mention.affirmed[is_present])


def test_a_patient_states_one_family_history_which_is_seldom_wrong(shard: Shard, told: Facts) -> None:
    says = told.family != NOT_TOLD
    assert_share(says, NOTES.family_told)
    patient, stated = shard.visits.patient[says], told.family[says]
    stated_by: dict[int, int] = dict(zip(patient.tolist(), stated.tolist()))
    np.testing.assert_array_equal(stated, [stated_by[p] for p in patient.tolist()])
    truth = shard.patients.family_history[list(stated_by)]
    assert_share(np.array(list(stated_by.values())) != truth, NOTES.family_wrong)


# ------------------------------------------------------------------------------------------------------------ evidence
def test_evidence_is_the_stated_probability_of_what_is_told(shard: Shard, told: Facts) -> None:
    seen = evidence(shard, told)
    says = {NOT_TOLD: lambda p: 1.0, DENIED: lambda p: 1.0 - p, AFFIRMED: lambda p: p}
    for visit in range(0, 500, 7):
        for event, state in ((0, 0), (1, 13), (2, NUM_STATES - 1)):
            expected = NOTES.complaint[event][told.complaint[visit]]
            expected *= says[told.symptom[visit]](NOTES.symptom[STAGE_OF[state]])
            expected *= says[told.moderator[visit]](NOTES.moderator.affirmed[MODERATOR_OF[state]])
            assert seen.chain[visit, event, state] == pytest.approx(expected, rel=1e-12)
        for is_present in (0, 1):
            for i, mention in enumerate(NOTES.conditions):
                expected = says[told.condition[visit, i]](mention.affirmed[is_present])
                expected *= says[int(told.home_drug[visit, i])](mention.listed[is_present])
                assert seen.condition[visit, i, is_present] == pytest.approx(expected, rel=1e-12)
            for i, mention in enumerate(NOTES.acute):
                expected = says[told.acute[visit, i]](mention.affirmed[is_present])
                assert seen.acute[visit, i, is_present] == pytest.approx(expected, rel=1e-12)


def assert_mean_is_one(ratio: np.ndarray) -> None:
    assert abs(ratio.mean() - 1.0) <= 5.0 * ratio.std() / np.sqrt(len(ratio)) + 1e-12


def test_likelihood_ratios_against_the_truth_have_mean_one(shard: Shard, told: Facts) -> None:
    seen, visit = evidence(shard, told), np.arange(len(told.symptom))
    state, event = state_and_event(shard)
    truth = seen.chain[visit, event, state]
    for other_event, other_state in itertools.product(range(NUM_EVENTS), range(0, NUM_STATES, 7)):
        assert_mean_is_one(seen.chain[:, other_event, other_state] / truth)
    for factor, is_present in ((seen.condition, present(shard)), (seen.acute, shard.latent.acute)):
        for i in range(factor.shape[1]):
            here = is_present[:, i].astype(np.int64)
            assert_mean_is_one(factor[visit, i, 1 - here] / factor[visit, i, here])


def test_what_is_told_of_the_family_twice_counts_once(shard: Shard, told: Facts) -> None:
    seen = evidence(shard, told).family
    of_patient = np.ones((shard.num_patients, 2))
    np.multiply.at(of_patient, shard.visits.patient, seen)
    truth = shard.patients.family_history
    row = np.arange(shard.num_patients)
    assert_mean_is_one(of_patient[row, 1 - truth] / of_patient[row, truth])
    ever = np.bincount(shard.visits.patient, told.family != NOT_TOLD) > 0
    assert {tuple(factors) for factors in of_patient[ever]} == {(0.03, 0.97), (0.97, 0.03)}
    np.testing.assert_array_equal(of_patient[~ever], 1.0)


def test_evidence_is_silent_where_nothing_is_told_or_a_condition_does_not_exist() -> None:
    outpatients = next(simulate("kidney", "trinetx", 40, seed=1))
    told = facts(outpatients)
    assert (told.acute == NOT_TOLD).all()
    assert (evidence(outpatients, told).acute == 1.0).all()
    kidney = next(simulate("kidney", "mimic", 40, seed=1))
    told, missing = facts(kidney), [span.size == 0 for span in kidney.vocabulary.acute]
    assert missing == [True, False]  # kidney injury is the population's own trigger
    assert (told.acute[:, missing] == NOT_TOLD).all()
    assert (evidence(kidney, told).acute[:, missing] == 1.0).all()
    assert (evidence(kidney, told).acute[:, ~np.array(missing)] != 1.0).any()


# ------------------------------------------------------------------------------------------------------------- prefix
def test_a_cut_shard_has_the_beginning_of_the_notes(shard: Shard, told: Facts, notes: pl.DataFrame) -> None:
    few = next(simulate("heart_failure", "toy", 37, seed=5))
    few_told = facts(few)
    for field in fields(few_told):
        values = getattr(few_told, field.name)
        np.testing.assert_array_equal(values, getattr(told, field.name)[: len(values)])
    few_notes = write_notes(few, few_told)
    assert few_notes.equals(notes.head(len(few_notes)))
    assert few_notes["visit"].max() == len(few.visits.patient) - 1


def test_seeds_and_blocks_make_other_notes(shard: Shard, notes: pl.DataFrame) -> None:
    for other in (replace(shard, seed=6), replace(shard, block=1)):
        assert not write_notes(other, facts(other))["text"].equals(notes["text"])


# --------------------------------------------------------------------------------------------------------------- words
@pytest.mark.parametrize("disease", DISEASES)
def test_the_summary_has_the_documented_sections_in_order_and_the_nursing_note_none(disease: str) -> None:
    few = next(simulate(disease, "mimic", 60, seed=2))
    for category, text in write_notes(few, facts(few)).select("category", "text").iter_rows():
        headings = tuple(line[:-1] for line in text.splitlines() if line in HEADINGS)
        assert headings == (SECTIONS if category == SUMMARY else ())
        if category == SUMMARY:
            assert all(sections(text).values())
    assert SECTIONS[SECTIONS.index("Brief Hospital Course") :] == LABEL_SECTIONS


def test_each_visit_has_one_summary_and_some_have_a_nursing_note(shard: Shard, notes: pl.DataFrame) -> None:
    num_visits = len(shard.visits.patient)
    np.testing.assert_array_equal(notes.filter(pl.col("category") == SUMMARY)["visit"], np.arange(num_visits))
    nursed = notes.filter(pl.col("category") == NURSING)["visit"]
    assert nursed.is_unique().all()
    assert_share(np.isin(np.arange(num_visits), nursed), note_text.HABITS.nursing)


def test_words_do_not_read_the_latent_truth_nor_the_clock(shard: Shard, told: Facts, notes: pl.DataFrame) -> None:
    hidden: Any = None
    blind = replace(
        shard,
        latent=hidden,
        patients=replace(shard.patients, age=hidden, risk_class=hidden, frailty=hidden, family_history=hidden),
        visits=replace(shard.visits, week=hidden, flags=hidden, is_first_diagnosis=hidden),
    )
    assert write_notes(blind, told).equals(notes)
    later = replace(
        shard, visits=replace(shard.visits, start_day=shard.visits.start_day * 2, end_day=shard.visits.end_day * 3)
    )
    assert write_notes(later, told)["text"].equals(notes["text"])


def test_before_the_hospital_course_nothing_depends_on_the_codes_and_orders_of_the_visit(
    shard: Shard, told: Facts, notes: pl.DataFrame
) -> None:
    last = np.append(shard.visits.patient[1:] != shard.visits.patient[:-1], True)
    keep = ~last[shard.codes.visit] | (np.arange(len(shard.codes.visit)) % 3 == 0)
    fewer_codes = replace(shard.codes, visit=shard.codes.visit[keep], code=shard.codes.code[keep])
    keep = ~last[shard.drugs.visit]
    no_drugs = replace(shard.drugs, visit=shard.drugs.visit[keep], code=shard.drugs.code[keep])
    other = summaries(write_notes(replace(shard, codes=fewer_codes, drugs=no_drugs), told))
    changed = 0
    for visit, (a, b) in enumerate(zip(summaries(notes), other)):
        before = [name for name in a if name not in LABEL_SECTIONS]
        assert {name: a[name] for name in before} == {name: b[name] for name in before}
        changed += last[visit] and a["Discharge Diagnosis"] != b["Discharge Diagnosis"]
    assert changed > 300


def test_nursing_notes_tell_none_of_the_facts(shard: Shard, told: Facts, notes: pl.DataFrame) -> None:
    silent = Facts(**{f.name: np.zeros_like(getattr(told, f.name)) for f in fields(told)})
    nursing = pl.col("category") == NURSING
    assert write_notes(shard, silent).filter(nursing).equals(notes.filter(nursing))


def test_the_discharge_diagnosis_names_the_codes_of_the_visit(shard: Shard, notes: pl.DataFrame) -> None:
    titles = titles_of(shard)
    expected: dict[int, list[str]] = {}
    for visit, code in zip(shard.codes.visit.tolist(), shard.codes.code.tolist()):
        expected.setdefault(visit, []).append(titles[code])
    for visit, parts in enumerate(summaries(notes)):
        assert parts["Discharge Diagnosis"].splitlines() == expected[visit]


def test_the_past_history_starts_empty_and_has_the_target_only_after_its_diagnosis(
    shard: Shard, notes: pl.DataFrame
) -> None:
    visits, words = shard.visits, shard.vocabulary
    first = np.append(True, visits.patient[1:] != visits.patient[:-1])
    names = {"CHF", "Congestive heart failure", "heart failure"}
    names |= set(titles_of(shard)[words.target.start :][: words.target.size])
    later = 0
    for visit, parts in enumerate(summaries(notes)):
        past = parts["Past Medical History"]
        assert (past in note_text.NO_PAST) == first[visit]
        listed = {name.removeprefix("- ") for name in past.replace(", ", "\n").splitlines()}
        if listed & names:
            assert visits.week[visit] > shard.latent.diagnosis_week[visits.patient[visit]]
            later += 1
    assert later > 100


def test_admission_medications_are_the_home_drugs_and_the_target_s_of_earlier_visits(
    shard: Shard, told: Facts, notes: pl.DataFrame
) -> None:
    ordered: dict[int, set[int]] = {}
    target = {INDEX[drug] for drug in shard.spec.disease.drugs}
    parts = summaries(notes)
    for visit, patient in enumerate(shard.visits.patient.tolist()):
        listed = parts[visit]["Medications on Admission"].lower()
        expected = {INDEX[c.drug] for c, has in zip(CONDITIONS, told.home_drug[visit]) if has and c.drug}
        expected |= ordered.get(patient, set()) & target
        found = {i for i, drug in enumerate(DRUGS) if drug.name in listed or drug.title.lower() in listed}
        assert found == expected
        ordered.setdefault(patient, set()).update(shard.drugs.code[shard.drugs.visit == visit].tolist())


def test_no_word_of_the_history_tells_whether_a_finding_is_affirmed(told: Facts, notes: pl.DataFrame) -> None:
    histories = [parts["History of Present Illness"] for parts in summaries(notes)]
    words = [set(history.lower().replace(".", " ").replace(",", " ").split()) for history in histories]
    afib = [condition.name for condition in CONDITIONS].index("afib")
    for answers in (told.symptom, told.condition[:, afib], told.acute[:, 1]):
        affirmed, denied = np.flatnonzero(answers == AFFIRMED), np.flatnonzero(answers == DENIED)
        yes, no = (Counter(word for visit in group for word in words[visit]) for group in (affirmed, denied))
        for word in set(yes) | set(no):
            assert abs(yes[word] / len(affirmed) - no[word] / len(denied)) < 0.45
    for term in ("palpitations", "skipped beats", "fluttering"):
        holds = np.array([term in history for history in histories])
        groups = [holds[told.condition[:, afib] == answer] for answer in (AFFIRMED, DENIED)]
        together = np.concatenate(groups).mean()
        assert together > 0.05
        for group in groups:
            assert_share(group, together)
        assert holds[told.condition[:, afib] == NOT_TOLD].any()


@pytest.mark.parametrize("disease", DISEASES)
def test_no_phrase_stands_for_two_facts(disease: str) -> None:
    words = WORDS[disease]
    findings = [
        words.symptom,
        words.moderator,
        *note_text.CONDITION_FINDINGS.values(),
        *note_text.ACUTE_FINDINGS.values(),
    ]

    def assert_apart(*groups: Iterable[str]) -> None:
        counts = Counter(phrase.lower() for group in groups for phrase in group)
        assert not [phrase for phrase, count in counts.items() if count > 1]

    assert_apart(*(finding.terms for finding in findings))
    assert_apart(*(finding.present + finding.absent for finding in findings), note_text.FILLER, note_text.HYPOTHETICAL)
    assert_apart(note_text.AFFIRM, note_text.DENY, note_text.BOTH, note_text.HYPOTHETICAL)
    assert_apart(*words.complaints, note_text.OTHER_COMPLAINTS)
    assert_apart(note_text.RELATIVES, note_text.IN_LAWS)
    assert_apart(note_text.FAMILY_AFFIRMED, note_text.FAMILY_DENIED, note_text.FAMILY_OTHER, note_text.FAMILY_NOT_TOLD)
    assert set(note_text.CONDITION_FINDINGS) == {condition.name for condition in CONDITIONS}
    assert set(note_text.ACUTE_FINDINGS) == {condition.name for condition in ACUTE}


def test_the_target_is_named_outside_its_sections_in_no_summary(notes: pl.DataFrame) -> None:
    """Nobody who reads the four sections that precede the family history learns the target's name."""
    for parts in summaries(notes):
        open_text = " ".join(parts[name] for name in ("", *SECTIONS[:2], "Social History", "Medications on Admission"))
        assert not [name for name in WORDS["heart_failure"].target if name in open_text]


@pytest.mark.parametrize("answer", [DENIED, AFFIRMED])
def test_a_visit_has_random_numbers_enough_for_the_longest_note(shard: Shard, told: Facts, answer: int) -> None:
    everything = Facts(**{f.name: np.full_like(getattr(told, f.name), answer) for f in fields(told)})
    assert len(write_notes(shard, everything)) >= len(shard.visits.patient)


# ----------------------------------------------------------------------------------------------------- MIMIC-III table
def test_noteevents_are_read_as_the_release_s(shard: Shard, notes: pl.DataFrame, tmp_path: Path) -> None:
    num_visits = len(shard.visits.patient)
    keys = {"SUBJECT_ID": pl.Series(shard.visits.patient + 10), "HADM_ID": pl.Series(np.arange(num_visits) + 100)}
    base = np.datetime64("2130-05-01", "us")
    admit, discharge = (
        base + (day * 86_400e6).astype("timedelta64[us]") for day in (shard.visits.start_day, shard.visits.end_day)
    )
    table = noteevents(shard, keys, admit, discharge)
    assert table.columns == [
        "SUBJECT_ID", "HADM_ID", "CHARTDATE", "CHARTTIME", "STORETIME",
        "CATEGORY", "DESCRIPTION", "CGID", "ISERROR", "TEXT",
    ]  # fmt: skip
    assert table["TEXT"].equals(notes["text"], check_names=False)
    visit = notes["visit"].to_numpy()
    summary = (table["CATEGORY"] == SUMMARY).to_numpy()
    assert table["CHARTTIME"].is_null().to_numpy().tolist() == summary.tolist()
    charted = table["CHARTTIME"].to_numpy()[~summary]
    assert (charted >= admit[visit][~summary]).all()
    assert (charted < discharge[visit][~summary]).all()
    np.testing.assert_array_equal(
        table["CHARTDATE"].to_numpy()[summary], discharge[visit][summary].astype("datetime64[D]")
    )

    path = tmp_path / "NOTEEVENTS.csv"
    table.with_row_index("ROW_ID", offset=1).write_csv(
        path, quote_style="non_numeric", datetime_format="%Y-%m-%d %H:%M:%S"
    )
    raw = RawTable("notes", [path], mimic3.Mimic3.layouts["notes"].columns)
    events = mimic3.notes(Events(raw)).frame.collect()
    assert events["fault"].is_null().all()
    kept = notes.filter(~pl.col("is_error"))
    assert 0 < len(notes) - len(kept) < 0.02 * len(notes)
    assert events["text_value"].to_list() == kept["text"].to_list()
    assert events["visit_id"].to_list() == (kept["visit"] + 100).to_list()
