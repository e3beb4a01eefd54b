"""Sections of a clinical note, found by their headings, in the spellings of MIMIC-III, MIMIC-IV-Note and the simulator.

A note is read line by line. What may be used is listed, and everything else is not: text is taken only from under a
heading whose whole title is a known spelling of a wanted section (SPELLINGS), up to the next heading:

* a title with a cut phrase in it ("Discharge Diagnosis:", "HISTORY OF PRESENT ILLNESS AND HOSPITAL COURSE:"), also in
  the middle of a line, since in some notes all stands in one paragraph;
* the title of another known section, with a colon, or alone on its line;
* any other title in capitals, or alone on its line, that ends with a colon and has an empty line before it. Without
  the empty line it is an item of a list ("CAD: s/p CABG").

A note without such headings gives nothing. A section that a note has twice is taken where it is first filled.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import lru_cache

SPELLINGS: dict[str, str] = {
    "chief complaint": r"(chief |presenting )?complaints?( s)?|cc|reason for (this )?(admission|hospitalization)",
    "history of present illness": (
        r"(brief )?(history|hx|hist) of( the)? (present|presenting|current) (illness|complaint|problem)( hpi)?"
        r"|hpi|present illness"
    ),
    "past medical history": (
        r"(past|prior|previous) ((medical|med|surgical)( and| or)? ?){1,2}(history|hx|problems)( pmh)?"
        r"( (and )?past surgical history)?|(past|medical) (history|hx)|medical and surgical history|pmhx?( pshx?)?"
    ),
    "medications on admission": (
        r"(current |home |outpatient |prior )?(medications?|meds|medicines)( prior)?"
        r" (on|upon|at|to|before) (the time of )?(admission|presentation|arrival|home)"
        r"|(home|outpatient|admission|admitting|pre ?admission|current( home| outpatient)?)"
        r" (medications?|meds|medicines)( list)?|medications?|meds"
    ),
    "social history": r"(social|psychosocial) (history|hx)|shx?|soc hx",
    "family history": r"family( medical)? (history|hx)|fhx?|fam hx",
    "allergies": r"(drug )?allerg(y|ies)( to medications| adverse reactions)?|adverse drug reactions",
    "review of systems": r"review of systems|ros",
    "physical examination": r"(admission )?(physical )?(exam|examination)( on admission)?",
}
"""Section -> the whole title, in lower case, anything but letters and digits read as a blank."""

OTHERS = (
    r"(admission|discharge) date|date of (birth|admission|discharge)|dob|sex|service|attending|name|unit no"
    r"|(pertinent |laboratory |lab |admission |imaging |radiology )+(results?|data|studies|findings|labs?)"
    r"|(major )?(surgical or invasive )?procedures?|past surgical history|psh|transferred from|mode of arrival|course"
)
"""Titles that end a section and cannot be asked for."""

CUT = (
    "diagnosis",
    "diagnoses",
    "diag",
    "dx",
    "ddx",
    "icd code",
    "icd 9 code",
    "icd 10 code",
    "discharge",
    "d c",
    "dc med",
    "dc medication",
    "hospital course",
    "hosp course",
    "hospital summary",
    "hospital stay",
    "hospitalization course",
    "hospitalisation course",
    "inpatient course",
    "clinical course",
    "icu course",
    "micu course",
    "sicu course",
    "ccu course",
    "floor course",
    "operative course",
    "postoperative course",
    "post op course",
    "postop course",
    "brief course",
    "course by",
    "course during",
    "course in",
    "course of hospitalization",
    "course of hospitalisation",
    "course of stay",
    "course on the",
    "course while",
    "assessment",
    "impression",
    "imp",
    "plan",
    "a p",
    "disposition",
    "dispo",
    "condition",
    "problem list",
    "principal problem",
    "primary problem",
    "hospital problem",
    "active problem",
    "active issues",
    "chronic issues",
    "transitional issues",
    "follow up",
    "followup",
    "cause of death",
    "death summary",
    "addendum",
)
"""A title with one of these phrases states the label, or what was known at the end of the admission only."""

_VERB = r"['\u2019 ]?e?d\b"  # dx'd, d/c'd; the normal form of a title has a blank for the apostrophe
_YEARS = r"(?:\d\d?\W)?(?:19|20)\d\d|\d+\W?(?:years?|yrs?)"
_ONCE = rf"(?:in(?!\W+(?:order|hospital|house))|with|since|last|as a|at age|{_YEARS})\b"
_TOLD = {
    "dx": rf"{_VERB}|[^\w:]+{_ONCE}",
    "d c": rf"{_VERB}|[/ ][obw]\b",  # "he'd c/o pain"
    "course in": r"[^\w:]+(?:the[^\w:]+)?(?:ed|er|emergency)\b",
}
"""Phrase of CUT -> what follows it where it is told of earlier years, or of the hours before the admission."""

_DATES = re.compile(r"(date of )?discharge date|date of discharge")  # tells nothing, and stands above everything
_AMBIGUOUS = re.compile(r"medications?|meds")  # among the medications at discharge, once a cut section has begun
_TITLE = r"[^\W\d_][\w '/&,.()\-]{0,79}?"
_LEAD = r"[^\w\n]*(?:\d{1,2}[.)]\s*)?"
_WITH_COLON = re.compile(rf"{_LEAD}({_TITLE})\s*:(.*)")
_WORD = r"[^\W\d_][\w'/&()\-]*"
_MOST_WORDS, _MOST_LETTERS = 8, 80
_NO_TITLE = re.compile(r"[,;?]|\d{3}")
_ANONYMOUS = re.compile(r"\[\*\*.*?\*\*\]", flags=re.DOTALL)


class SectionFinder:
    """Finds `sections` (names of SPELLINGS) and never takes what a title with one of the phrases `cut` stands over."""

    def __init__(self, sections: Sequence[str], cut: Sequence[str] = CUT) -> None:
        self.sections = tuple(sections)
        phrases = "|".join(map(_pattern, sorted(map(_normal, cut))))
        # A list without phrases matches nothing.
        self._cut = re.compile(rf"\b(?:{phrases})s?\b" if phrases else r"(?!)", flags=re.IGNORECASE)
        around = rf"(?:{_WORD}[ \t]+){{0,4}}"
        # "DX/TX:" and "DIAGNOSIS #1:", but no time of the day
        after = rf"(?:(?:[ \t]+|[ \t]*[/&][ \t]*){_WORD}){{0,3}}(?:[ \t#]*\d\d?(?=[ \t]*:(?!\d)))?[ \t]*:"
        self._cut_within = re.compile(
            rf"(?:^|[ \t]|(?<=\W)){around}(?:{phrases})s?{after}" if phrases else r"(?!)", flags=re.IGNORECASE
        )
        self._names = {name: re.compile(spelling) for name, spelling in SPELLINGS.items()}
        self._others = re.compile(OTHERS)
        self._kind = lru_cache(10_000)(self._classify)  # most lines of a hospital begin alike

    def find(self, text: str) -> dict[str, str]:
        """Section -> its text with single blanks, in the order of `sections`; those that are missing or empty lack.

        De-identified places of MIMIC-III are "___", as in MIMIC-IV.
        """
        found: dict[str, list[str]] = {}
        current: list[str] | None = None
        is_cut, after_blank = False, True
        for line in _ANONYMOUS.sub("___", text).splitlines():
            title, rest = self._heading(line, after_blank)
            after_blank = not line.strip()
            if title is not None:
                kind = self._kind(title)
                is_cut |= kind == "cut"
                current = None
                if kind in self.sections and not (is_cut and _AMBIGUOUS.fullmatch(title)) and not found.get(kind):
                    current = found.setdefault(kind, [])
                line = rest
            if current is None:
                continue
            within = self._cut_within.search(line) if ":" in line and self._cut.search(line) else None
            if within:
                line = line[: within.start()]
            if line.strip():
                current.append(" ".join(line.split()))
            if within:
                current, is_cut = None, True
        return {name: " ".join(found[name]) for name in self.sections if found.get(name)}

    def _heading(self, line: str, after_blank: bool) -> tuple[str | None, str]:
        """The normal form of the title with which the line begins, and what follows it; (None, "") without one."""
        if match := _WITH_COLON.match(line):
            title, rest = _normal(match[1]), match[2]
            if len(title.split()) <= _MOST_WORDS:
                if self._kind(title) is not None:
                    return title, rest
                if after_blank and (match[1].isupper() or not rest.strip()):
                    return title, rest
        alone = line.strip()
        if not alone or len(alone) > _MOST_LETTERS or _NO_TITLE.search(alone):
            return None, ""
        bare = _normal(alone)
        kind = self._kind(bare)
        if kind is None or len(bare.split()) > _MOST_WORDS:
            return None, ""
        is_title = alone.isupper() or all(word[0].isupper() for word in alone.split() if len(word) > 3)
        # A short last line of a paragraph ("of unknown diagnosis.") is no title.
        is_title |= after_blank or (kind == "cut" and alone[0].isupper() and alone[-1] != ".")
        return (bare, "") if is_title else (None, "")

    def _classify(self, title: str) -> str | None:
        """ "cut", the name of a section, "other", or None for a title that is not known."""
        is_date = _DATES.fullmatch(title)
        if not is_date and self._cut.search(title):
            return "cut"
        for name, spelling in self._names.items():
            if spelling.fullmatch(title):
                return name
        return "other" if is_date or self._others.fullmatch(title) else None


def _pattern(phrase: str) -> str:
    """Of a phrase in its normal form, with anything but letters and digits for a blank."""
    told = f"(?!{_TOLD[phrase]})" if phrase in _TOLD else ""
    return re.escape(phrase).replace(r"\ ", r"[\W_]+") + told


def _normal(title: str) -> str:
    """Lower case, every run of anything but letters and digits a blank.

    >>> _normal("  HISTORY OF PRESENT ILLNESS (HPI)")
    'history of present illness hpi'
    """
    return " ".join(re.sub(r"[\W_]+", " ", title.lower()).split())
