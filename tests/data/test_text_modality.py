"""Batch.text: the named sections in their order, then abnormal labs; never what states the label."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ehrlab.core.batch import Text
from ehrlab.core.errors import InputError
from ehrlab.data.modalities.base import admissions, with_admissions
from ehrlab.data.modalities.sections import CUT, SPELLINGS, SectionFinder
from ehrlab.data.modalities.text import TextModality
from ehrlab.data.modalities.words import SpecialTokens, share_out
from ehrlab.data.sources import open_mimic
from ehrlab.simulation import simulate
from ehrlab.simulation.mimic3 import write_mimic3
from ehrlab.simulation.note_text import LABEL_SECTIONS, SECTIONS, SUMMARY, write_notes
from ehrlab.simulation.notes import facts
from raw_tables import dataset_of
from tiny_language import NURSING, Row, dataset, dated, lab, note, samples_at, save_bert, served, stay

WANTED = TextModality.sections
FINDER = SectionFinder(WANTED)
SENTINEL = "zzsentinel"


# ------------------------------------------------------------------------------------------------------------ sections
@pytest.fixture(scope="module")
def simulated() -> list[str]:
    shard = next(simulate("heart_failure", "toy", 48, seed=5))
    return write_notes(shard, facts(shard)).filter(category=SUMMARY)["text"].to_list()


def bodies(text: str) -> dict[str, str]:
    """The sections of a simulated note, by its own headings."""
    found, heading = {}, ""
    for line in text.splitlines():
        if line[:-1] in SECTIONS and line.endswith(":"):
            heading = line[:-1]
            found[heading] = ""
        elif heading:
            found[heading] += line + "\n"
    return found


def planted(text: str) -> str:
    """The note with a sentinel at both ends of each section that states the label."""
    for i, heading in enumerate(LABEL_SECTIONS):
        body = bodies(text)[heading].rstrip()
        text = text.replace(f"{heading}:\n{body}", f"{heading}:\n{SENTINEL}{i} {body} {SENTINEL}{i}")
    return text


def test_the_sections_of_a_simulated_note_are_found_whole(simulated: list[str]) -> None:
    finder = SectionFinder([*WANTED, "social history", "family history"])
    for text in simulated:
        found, own = finder.find(text), bodies(text)
        for name in (*WANTED, "social history", "family history"):
            heading = next(h for h in SECTIONS if h.lower() == name)
            expected = " ".join(own[heading].replace("[**Age **]", "___").split())
            assert "[**" in expected or found[name] == expected


def test_what_states_the_label_in_a_simulated_note_changes_nothing(simulated: list[str]) -> None:
    finder = SectionFinder(list(SPELLINGS))
    for text in simulated:
        marked = planted(text)
        assert marked.count(SENTINEL) == 2 * len(LABEL_SECTIONS)
        found = finder.find(marked)
        assert found == finder.find(text)
        assert not any(SENTINEL in body for body in found.values())


KEPT_TITLES = {
    "chief complaint": ["Chief Complaint:", "CHIEF COMPLAINT:", "CC:", "CHIEF COMPLAINT", "REASON FOR ADMISSION:"],
    "history of present illness": [
        "History of Present Illness:",
        "HISTORY OF PRESENT ILLNESS:",
        "HISTORY OF THE PRESENT ILLNESS:",
        "HPI:",
        "HISTORY OF PRESENTING ILLNESS",
        "BRIEF HISTORY OF PRESENT ILLNESS:",
    ],
    "past medical history": [
        "Past Medical History:",
        "PAST MEDICAL HISTORY:",
        "PMH:",
        "PAST MEDICAL AND SURGICAL HISTORY:",
        "PAST MEDICAL HISTORY/PAST SURGICAL HISTORY:",
        "Past Medical History",
        "PREVIOUS MEDICAL HISTORY:",
    ],
    "medications on admission": [
        "Medications on Admission:",
        "MEDICATIONS ON ADMISSION:",
        "ADMISSION MEDICATIONS:",
        "HOME MEDICATIONS:",
        "MEDICATIONS AT HOME:",
        "MEDICATIONS PRIOR TO ADMISSION:",
        "Preadmission medications:",
        "OUTPATIENT MEDICATIONS:",
    ],
}
CUT_TITLES = [
    "Discharge Diagnosis:",
    "DISCHARGE DIAGNOSES:",
    "DISCHARGE DIAGNOSIS",
    "Discharge diagnosis",
    "Final Diagnosis:",
    "FINAL DIAGNOSES.",
    "PRINCIPAL DIAGNOSIS:",
    "Primary diagnoses:",
    "Brief Hospital Course:",
    "HOSPITAL COURSE BY SYSTEM:",
    "SUMMARY OF HOSPITAL COURSE:",
    "HISTORY OF PRESENT ILLNESS AND HOSPITAL COURSE:",
    "Assessment and Plan:",
    "A/P:",
    "IMPRESSION:",
    "Discharge Medications:",
    "MEDICATIONS ON DISCHARGE:",
    "Discharge Condition:",
    "CONDITION ON DISCHARGE:",
    "Discharge Instructions:",
    "DISCHARGE DISPOSITION:",
    "# Active Issues:",
    "1. Discharge Diagnosis:",
]
OTHER_TITLES = [
    "Social History:",
    "FAMILY HISTORY:",
    "Allergies:",
    "PHYSICAL EXAMINATION:",
    "Pertinent Results:",
    "LABS ON ARRIVAL:",
]


@st.composite
def written(draw: st.DrawFn) -> tuple[str, list[str]]:
    """A note of kept, cut and other sections in any order, and the names of the kept ones."""
    kept = draw(st.lists(st.sampled_from(WANTED), unique=True))
    cut = draw(st.lists(st.sampled_from(CUT_TITLES), min_size=1, max_size=4))
    other = draw(st.lists(st.sampled_from(OTHER_TITLES), max_size=2))
    parts = [(draw(st.sampled_from(KEPT_TITLES[name])), f"kept{WANTED.index(name)} text of it") for name in kept]
    parts += [(title, f"{SENTINEL} text\n{SENTINEL} more: and more") for title in cut]
    parts += [(title, "othertext") for title in other]
    order = draw(st.permutations(parts))
    joint = draw(st.sampled_from(["\n", " ", "\n\n"]))  # some titles stand alone on their line, some do not
    lines = [f"{title}{joint if title.endswith(':') else chr(10)}{body}" for title, body in order]
    return draw(st.sampled_from(["\n", "\n\n"])).join(lines), kept


@given(written())
def test_kept_sections_are_found_in_any_spelling_and_cut_ones_never_seen(note_and_kept: tuple[str, list[str]]) -> None:
    text, kept = note_and_kept
    found = FINDER.find(text)
    assert list(found) == [name for name in WANTED if name in kept]
    for name, body in found.items():
        assert body.startswith(f"kept{WANTED.index(name)} text of it")
        assert SENTINEL not in body
        assert sum(f"kept{i}" in body for i in range(len(WANTED))) == 1


def test_a_cut_title_in_the_middle_of_a_paragraph_ends_it() -> None:
    text = "HPI: He came with pain. DISCHARGE DIAGNOSIS: secret.\nsecret too\nPMH: asthma"
    assert FINDER.find(text) == {"history of present illness": "He came with pain.", "past medical history": "asthma"}


def test_lists_paragraphs_and_words_of_the_kind_do_not_end_a_section() -> None:
    text = (
        "PAST MEDICAL HISTORY:\n1. CAD: s/p CABG\nCOPD: on oxygen\nDM\n\nHPI:\nShe has a long history\nof unknown\n"
        "diagnosis.\nIn the ED: vitals: T 98. At 10:30 stable.\n\nOn the floor: well."
    )
    assert FINDER.find(text) == {
        "history of present illness": "She has a long history of unknown diagnosis. In the ED: vitals: T 98. "
        "At 10:30 stable. On the floor: well.",
        "past medical history": "1. CAD: s/p CABG COPD: on oxygen DM",
    }


def test_plain_medications_are_those_of_admission_only_before_what_was_known_at_the_end() -> None:
    assert FINDER.find("MEDICATIONS:\naspirin") == {"medications on admission": "aspirin"}
    assert FINDER.find("DISCHARGE CONDITION:\ngood\n\nMEDICATIONS:\naspirin") == {}
    # The date of discharge stands above everything and is no such thing.
    assert FINDER.find("Admission Date: ___  Discharge Date: ___\n\nMeds:\naspirin") == {
        "medications on admission": "aspirin"
    }


def test_a_section_is_taken_where_it_is_first_filled() -> None:
    text = "Chief Complaint:\n\nHPI:\nfirst\n\nChief Complaint:\npain\n\nHPI:\nsecond"
    assert FINDER.find(text) == {"chief complaint": "pain", "history of present illness": "first"}


@pytest.mark.parametrize("text", ["", " \n", "Pt arrived via stretcher.", "Discharge Diagnosis:\nasthma", "HPI:\n\n"])
def test_a_note_without_the_sections_gives_nothing(text: str) -> None:
    assert FINDER.find(text) == {}


def test_deidentified_places_are_read_as_in_mimic4() -> None:
    assert FINDER.find("HPI: [**Known lastname 12**] saw Dr. [**Last Name\n(un) **] twice") == {
        "history of present illness": "___ saw Dr. ___ twice"
    }


# ------------------------------------------------------------------------------------------------------ tokens in room
@given(st.lists(st.integers(1, 40), min_size=1, max_size=6), st.integers(0, 100))
def test_room_is_used_up_and_no_part_is_cut_for_a_longer_one(lengths: list[int], room: int) -> None:
    shares = share_out(lengths, room)
    assert sum(shares) == min(room, sum(lengths))
    assert all(0 <= share <= length for share, length in zip(shares, lengths))
    cut = [share for share, length in zip(shares, lengths) if share < length]
    assert all(share <= min(cut) + 1 for share in shares if cut)


SUMMARY_TEXT = f"""Chief Complaint:
chest pain

History of Present Illness:
old cough and new fever and worse pain of the chest and a cough

Past Medical History:
fever

Medications on Admission:
aspirin

Brief Hospital Course:
{SENTINEL} stable

Discharge Diagnosis:
{SENTINEL} better"""


def seen(
    path: Path, rows: list[Row], times: list[tuple[int, float]], **settings: Any
) -> tuple[Text, list[str], TextModality, Path]:
    """The group of the samples, each one's text, the modality and its store."""
    from transformers import AutoTokenizer

    meds = dataset(path / "meds", rows)
    modality = TextModality(**({"model": "tiny", "labtext": False} | settings))
    group, store, reader = served(modality, meds, path, samples_at(meds, times))
    assert isinstance(group, Text)
    np.testing.assert_array_equal(reader.lengths(), group.mask.sum(1))  # type: ignore[attr-defined]
    spec = modality.spec(store)
    assert group.ids.max() < spec.num_tokens
    assert (group.ids[~group.mask] == spec.pad_id).all()
    tokenizer = AutoTokenizer.from_pretrained(store / "tokenizer")
    texts = [tokenizer.decode(ids[mask]) for ids, mask in zip(group.ids, group.mask)]
    return group, texts, modality, store


HISTORY = "old cough and new fever and worse pain of the chest and a cough"
WHOLE = (
    "chief complaint : chest pain history of present illness : "
    f"{HISTORY} past medical history : fever medications on admission : aspirin"
)


def test_the_text_is_the_sections_in_their_order_and_nothing_else(tmp_path: Path) -> None:
    _, texts, _, store = seen(tmp_path, [*stay(1), note(1, dated(9), SUMMARY_TEXT)], [(1, 10)])
    assert texts == [WHOLE]
    assert SENTINEL not in (store / "tokenizer" / "tokenizer.json").read_text()
    assert SENTINEL not in str(pl.read_parquet(store / "sections").to_dict())
    assert json.loads((store / "text.json").read_text())["counts"] == {
        "notes": 1, "notes with a section": 1, **dict.fromkeys(WANTED, 1)
    }  # fmt: skip


def test_another_order_of_the_sections_is_another_order_of_the_text(tmp_path: Path) -> None:
    rows = [*stay(1), note(1, 2, SUMMARY_TEXT)]
    _, texts, _, _ = seen(tmp_path, rows, [(1, 5)], sections=["past medical history", "chief complaint"])
    assert texts == ["past medical history : fever chief complaint : chest pain"]


@pytest.mark.parametrize("max_tokens", [16, 20, 25, 30])
def test_a_text_that_is_cut_keeps_the_order_and_the_beginning_of_every_section(tmp_path: Path, max_tokens: int) -> None:
    group, texts, _, _ = seen(tmp_path, [*stay(1), note(1, 2, SUMMARY_TEXT)], [(1, 5)], max_tokens=max_tokens)
    assert group.mask.sum() == max_tokens < len(WHOLE.split())
    heads = ["chief complaint :", "history of present", "past medical history", "medications on admission"]
    places = [texts[0].find(head) for head in heads]
    assert places == sorted(places)
    assert places[0] == 0
    assert -1 not in places
    if max_tokens >= 20:  # every part but the history fits into its share
        assert "complaint : chest pain history" in texts[0]
        assert texts[0].endswith("medications on admission : aspirin")


def test_special_tokens_stand_around_the_whole_text(tmp_path: Path) -> None:
    rows = [*stay(1), note(1, 2, SUMMARY_TEXT), *stay(2)]
    model = save_bert(tmp_path / "bert")
    group, _, modality, store = seen(tmp_path, rows, [(1, 5), (2, 5)], model=model, max_tokens=20)
    begin, end = 2, 3
    first = group.ids[0].tolist()
    assert (first[0], first[-1], len(first)) == (begin, end, 20)
    assert not {begin, end} & set(first[1:-1])
    assert not group.mask[1].any()
    assert modality.spec(store).model == model


def test_special_tokens_of_a_tokenizer_are_told_apart() -> None:
    class Llama:
        def __call__(self, text: str, **kwargs: bool) -> dict[str, list[int]]:
            ids = [1, 7] if "return_special_tokens_mask" in kwargs else [9]
            return {"input_ids": ids, "special_tokens_mask": [1, 0]}

    assert SpecialTokens.of(Llama()) == SpecialTokens(before=(1,), after=(), between=(9,))


# ------------------------------------------------------------------------------------------------ which notes are seen
def test_a_note_after_the_prediction_is_not_seen_but_the_summary_of_the_day_of_discharge_is(tmp_path: Path) -> None:
    rows = [
        *stay(1, 0, 5.5),
        note(1, 1, "Chief Complaint:\nfever", NURSING),
        note(1, 5.8, "Chief Complaint:\ncough", NURSING),
        note(1, dated(5), "Past Medical History:\npain"),
    ]
    _, texts, _, _ = seen(tmp_path, rows, [(1, 0.5), (1, 5.2), (1, 5.5), (1, 5.9)])
    early, history = "chief complaint : fever", " past medical history : pain"
    assert texts == ["", early, early + history, "chief complaint : cough" + history]


def test_a_section_is_that_of_the_last_note_that_has_it(tmp_path: Path) -> None:
    rows = [
        *stay(1),
        note(1, 1, "Chief Complaint:\nfever\n\nPMH:\nold pain", NURSING),
        note(1, 2, "Chief Complaint:\ncough", NURSING),
        note(1, 3, "Chief Complaint:\n\nnothing", "NOTE//ECG"),
    ]
    _, texts, _, _ = seen(tmp_path, rows, [(1, 5)], categories=["NURSING"])
    assert texts == ["chief complaint : cough past medical history : old pain"]


def test_an_empty_note_and_a_sample_without_admission_are_padding(tmp_path: Path) -> None:
    rows = [*stay(1), note(1, 2, SUMMARY_TEXT), *stay(2), note(2, 2, "  "), *stay(3), note(3, 2, "no headings")]
    group, texts, _, _ = seen(tmp_path, rows, [(2, 5), (3, 5), (1, -1)])
    assert texts == ["", "", ""]
    assert group.ids.shape == (3, 1)


def test_the_vocabulary_knows_training_subjects_only(tmp_path: Path) -> None:
    rows = [*stay(1), note(1, 2, "HPI: cough"), *stay(2), note(2, 2, "HPI: zebra")]
    meds = dataset(tmp_path / "meds", rows, splits={2: "held_out"})
    served(TextModality(model="tiny", labtext=False), meds, tmp_path, samples_at(meds, [(1, 5)]))
    words = json.loads((tmp_path / "stores" / "store" / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert "cough" in words
    assert "zebra" not in words
    assert words["<pad>"] == 0


# -------------------------------------------------------------------------------------------------------------- labtext
LABTEXT = (
    r"abnormal laboratory results : creatinine high 2( \. \d( \d)?)? mg / dl"  # a little below 2.4: outliers are cut
)


def test_abnormal_labs_stand_behind_the_sections_and_know_nothing_later(tmp_path: Path) -> None:
    rows = [*stay(1), note(1, 1, "PMH: fever"), lab(1, 1, 1.0), lab(1, 2, 2.4), lab(1, 4, 1.0)]
    for subject in range(2, 30):
        rows += [*stay(subject), lab(subject, 1, 1.0 + subject / 100)]
    times = [(1, 1.5), (1, 3), (1, 5)]
    _, texts, _, _ = seen(tmp_path, rows, times, labtext=True)
    fever = "past medical history : fever"
    assert [texts[0], texts[2]] == [fever, fever]
    assert re.fullmatch(f"{fever} {LABTEXT}", texts[1])


def test_without_notes_the_text_is_labtext(tmp_path: Path) -> None:
    rows = [*stay(1), lab(1, 2, 2.4)]
    for subject in range(2, 30):
        rows += [*stay(subject), lab(subject, 1, 1.0 + subject / 100)]
    _, texts, _, _ = seen(tmp_path, rows, [(1, 5), (5, 5)], labtext=True, notes=False)
    assert re.fullmatch(LABTEXT, texts[0])
    assert texts[1] == ""


# ---------------------------------------------------------------------------------------------------------- whole data
def test_no_label_reaches_the_text_from_raw_tables_on(tmp_path: Path) -> None:
    raw = tmp_path / "raw"
    write_mimic3(raw, "heart_failure", 30, 3, shape="toy", modalities=("labs", "notes"))
    path = next(p for p in raw.iterdir() if p.name.upper().startswith("NOTEEVENTS"))
    table = pl.read_csv(path, infer_schema=False)
    is_summary = table["CATEGORY"] == "Discharge summary"
    text = pl.Series([planted(t) if s else t for t, s in zip(table["TEXT"], is_summary)])
    path.unlink()
    table.with_columns(TEXT=text).write_csv(raw / "NOTEEVENTS.csv")
    meds = dataset_of(open_mimic(raw, ["diagnoses", "labs", "notes"]))

    ends = meds.scan().filter(pl.col("code").str.starts_with("HOSPITAL_DISCHARGE")).collect()
    table = ends.select("subject_id", prediction_time="time").with_row_index("sample")
    samples = with_admissions(table, admissions(meds))
    group, store, _ = served(TextModality(model="tiny", max_tokens=300), meds, tmp_path, samples)
    assert (group.mask.sum(1) > 20).all()  # everybody has a summary at the time of discharge
    for file in (store / "sections").glob("*.parquet"):
        sections = pl.read_parquet(file)
        assert not sections["text"].str.contains(SENTINEL).any()
    words = json.loads((store / "tokenizer" / "tokenizer.json").read_text())["model"]["vocab"]
    assert not any(SENTINEL in word for word in words)
    assert {"complaint", "creatinine", "high"} <= set(words)


# ---------------------------------------------------------------------------------------------------------- bad input
def test_data_without_notes_or_labs_are_refused_with_the_switch_to_turn(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"text: expected clinical notes, found none"):
        seen(tmp_path / "a", stay(1), [(1, 5)])
    rows = [*stay(1), note(1, 1, "HPI: cough")]
    with pytest.raises(InputError, match=r"text\.labtext=true: .*Or set text\.labtext=false"):
        seen(tmp_path / "b", rows, [(1, 5)], labtext=True)


def test_notes_without_headings_are_refused_with_their_number(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"found none among 1 notes\. Choose other text\.sections"):
        seen(tmp_path, [*stay(1), note(1, 1, "Pt resting.")], [(1, 5)])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"max_tokens": 8}, r"text\.max_tokens: expected at least 16"),
        ({"notes": False, "labtext": False}, "both switched off"),
        ({"sections": ["diagnosis"]}, "expected some of chief complaint"),
        ({"sections": []}, "expected one or more"),
        ({"sections": "allergies"}, r"text\.sections: expected a list"),
        ({"cut_sections": [*CUT, "Chief Complaint"]}, "among text.cut_sections too"),
    ],
)
def test_settings_that_make_no_sense_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        TextModality(**settings)


def test_a_model_that_is_not_on_disk_is_refused_before_anything_is_built(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="expected a folder, found none"):
        TextModality(model=str(tmp_path / "absent")).fingerprint()
