"""Titles that state the label end a section however they are abbreviated, and lines of a history do not."""

import pytest

from ehrlab.data.modalities.sections import CUT, SectionFinder
from ehrlab.data.modalities.text import TextModality

FINDER = SectionFinder(TextModality.sections)
STATED = [
    *("DX", "Dx", "DXS", "FINAL DX", "Final Dx", "PRINCIPAL DX", "Primary dx", "SECONDARY DX", "WORKING DX", "DDX"),
    *("D/C DX", "DC DX", "Discharge Dx", "DX AT DISCHARGE", "ADMITTING DX", "Admission dx", "DX/TX", "DX 1", "DX LIST"),
    *("FINAL DIAG", "PRIN DIAG", "DIAGNOSIS #1", "ICD-9 CODES", "DX IN ORDER", "IMP", "IMP/PLAN"),
    *(
        "COURSE IN HOSPITAL",
        "COURSE IN THE HOSPITAL",
        "Course in the MICU",
        "COURSE IN HOUSE",
        "HOSPITALIZATION COURSE",
    ),
    *(
        "HOSP. COURSE",
        "COURSE OF HOSPITALIZATION",
        "INPATIENT COURSE",
        "SICU COURSE",
        "POST-OP COURSE",
        "HOSPITAL STAY",
    ),
    *("Principal Problem", "PRIMARY PROBLEM", "Active Hospital Problems", "ACTIVE PROBLEMS", "Problem List"),
    *("D/C MEDS", "DC MEDICATIONS", "D/C", "D/C INSTRUCTIONS", "DISPO"),
]
TOLD = [
    "hx of CHF: on lasix",
    "Dx'd with COPD in 2003: on home oxygen",
    "COPD, dx\u2019d 2003: inhalers",
    "Breast CA dx'd in 2003: lumpectomy",
    "Breast CA dx 2003: lumpectomy",
    "Breast CA (dx 3/2003): lumpectomy",
    "Asthma dx 5 years ago: albuterol",
    "Asthma dx in childhood: albuterol",
    "Recently d/c'd from rehab: was well",
    "He'd c/o pain: none now",
    "Course in the ED: T 98, lasix given",
    "ED course: lasix given",
]


@pytest.mark.parametrize("title", STATED)
@pytest.mark.parametrize("rest", [": secret", ":\nsecret", ": secret 1: more\nsecret 2: more"])
@pytest.mark.parametrize("blank", ["\n", "\n\n"])
def test_what_states_the_label_is_seen_under_none_of_its_titles(title: str, rest: str, blank: str) -> None:
    text = f"HPI:\nold cough{blank}{title}{rest}\n\nPMH:\nasthma"
    assert FINDER.find(text) == {"history of present illness": "old cough", "past medical history": "asthma"}


@pytest.mark.parametrize("title", STATED)
def test_nor_in_the_middle_of_a_paragraph(title: str) -> None:
    found = FINDER.find(f"HPI: He came with an old cough. {title}: secret\nsecret")
    assert found == {"history of present illness": "He came with an old cough."}


@pytest.mark.parametrize("line", TOLD)
def test_an_abbreviation_of_a_history_ends_no_section(line: str) -> None:
    for text in (f"PMH:\nold\n{line}\nnew", f"PMH:\nold. {line}\nnew"):
        assert FINDER.find(text) == {"past medical history": " ".join(text.split()[1:])}


def test_an_abbreviation_in_a_sentence_is_a_word() -> None:
    text = (
        "Pt with hx of CHF, dx'd with COPD in 2003, was d/c'd home. New dx of AF, in the ED in fair condition at 10:30."
    )
    assert FINDER.find(f"HPI: {text}") == {"history of present illness": text}


def test_phrases_are_in_their_normal_form() -> None:
    """Else a list of phrases would hold one that no title has."""
    for phrase in CUT:
        assert SectionFinder(["chief complaint"], [phrase]).find(f"CC:\npain\n{phrase.upper()}:\nsecret") == {
            "chief complaint": "pain"
        }
