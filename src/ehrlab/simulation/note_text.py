"""Notes in words: discharge summaries and nursing admission notes with the look of MIMIC-III's.

What each part of a note may depend on, besides chance from a stream of its own (`Stream.NOTE_TEXT`):

| part | depends on |
|-|-|
| Admission Date, Discharge Date | nothing: shifted by chance, and the age is masked, so that a note tells no time |
| Sex, Social History | sex |
| Chief Complaint | the fact of the complaint |
| History of Present Illness | facts of complaint, symptom, moderator, conditions and acute conditions; sex |
| Past Medical History | codes of earlier visits |
| Family History | the fact of family history; sex |
| Medications on Admission | home drugs (a fact), and the target's drugs that were ordered at earlier visits |
| Brief Hospital Course | codes of this visit |
| Discharge Diagnosis | codes of this visit, all of them, by name |
| Discharge Medications | as on admission, and what was ordered at this visit, the network's drugs excepted |
| Discharge Condition | death at this visit |
| a nursing admission note | codes of earlier visits, sex; none of the facts, which are known from discharge on |

The latent truth is never read: given facts, codes, orders and sex the words are independent of it. Whoever predicts the
codes of the visit has to cut everything from `Brief Hospital Course` on (LABEL_SECTIONS): the course says in prose what
some of these codes say. Whoever predicts death in hospital has the nursing note only.

The words of a finding are the same where it is affirmed, denied, or merely feared, advised on or had by somebody else,
and the last three happen whatever the truth; only some of its sentences are of one kind. So the negation must be read.
The facts can be read off a note all the same: no phrase stands for two of them.

The drug of a chronic condition is on the list because of the condition and not because it was ordered before: orders
would tell of the condition what the evidence of the facts does not count. They agree all the same, as whoever got the
drug at an earlier visit has the condition.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import polars as pl
from numpy.typing import NDArray

from ehrlab.simulation import codes
from ehrlab.simulation.drugs import DRUGS, INDEX
from ehrlab.simulation.folder import frame
from ehrlab.simulation.network import CONDITIONS
from ehrlab.simulation.notes import AFFIRMED, NOT_TOLD, Facts
from ehrlab.simulation.notes import facts as facts_of
from ehrlab.simulation.population import Orders, Shard
from ehrlab.simulation.spec import ACUTE
from ehrlab.simulation.streams import Stream, stream

SECTIONS = (
    "Chief Complaint",
    "History of Present Illness",
    "Past Medical History",
    "Social History",
    "Family History",
    "Medications on Admission",
    "Brief Hospital Course",
    "Discharge Diagnosis",
    "Discharge Medications",
    "Discharge Condition",
)
"""Headings of a discharge summary, in order; each stands at the start of a line, with a colon."""

LABEL_SECTIONS = SECTIONS[6:]
"""What is known, and tells the codes of the visit or how it ended, at its end only."""

SUMMARY, NURSING = "Discharge summary", "Nursing/other"
"""Categories of the release."""

T = TypeVar("T")


@dataclass(frozen=True)
class Finding:
    """How one finding is spoken of. `terms` follow "reports", "denies" and "no" alike."""

    terms: tuple[str, ...]
    present: tuple[str, ...]  # whole sentences that affirm it
    absent: tuple[str, ...]  # whole sentences that deny it


@dataclass(frozen=True)
class Words:
    """How the target disease of a population is spoken of."""

    target: tuple[str, ...]
    symptom: Finding
    moderator: Finding
    complaints: tuple[tuple[str, ...], tuple[str, ...]]  # after trigger A, after trigger B


@dataclass(frozen=True)
class Habits:
    """How often writers do what they do. Language only: none of it depends on the truth."""

    own_sentence: float = 0.35  # a told finding in a sentence that only affirms, or only denies
    hypothetical: float = 0.08  # a finding, told or not, in a sentence that says nothing of the patient
    in_law: float = 0.30  # the target in somebody who is no blood relative
    other_illness: float = 0.45  # another disease of a relative
    typo: float = 0.30  # each of two in the history
    nursing: float = 0.40  # a visit has a nursing admission note
    retracted: float = 0.01  # a nursing note was entered in error
    most_listed: int = 8  # earlier codes in the past history
    most_discussed: int = 4  # codes in the hospital course


HABITS = Habits()
_DRAWS = 400  # uniforms per visit: its notes take about 130, and 250 where every fact is told

# ------------------------------------------------------------------------------------------------------------ language
_DIABETES = Finding(
    ("diabetes", "DM2", "high sugars", "type 2 diabetes", "elevated fingersticks"),
    ("Last A1c was 9.1.", "Fingersticks at home run in the 200s.", "{Who} checks sugars twice a day for DM."),
    ("Last A1c was 5.3.", "Sugars have always been in the normal range.", "Screened for DM last year, A1c 5.4."),
)

WORDS = {
    "heart_failure": Words(
        ("heart failure", "CHF", "congestive heart failure", "a weak heart"),
        Finding(
            ("dyspnea on exertion", "DOE", "orthopnea", "ankle swelling", "PND", "getting winded on the stairs"),
            (
                "{Who} now sleeps on three pillows.",
                "Has to stop for breath after half a block.",
                "Shoes have become too tight by evening.",
                "{Who} has put on eight pounds in a fortnight.",
            ),
            (
                "{Who} sleeps flat on one pillow.",
                "Climbs two flights of stairs without stopping.",
                "Shoes fit as always by evening.",
                "Weight has been stable to the pound.",
            ),
        ),
        _DIABETES,
        (
            ("Chest pain", "Chest pressure at rest", "CP", "Left arm and chest pain", "Crushing chest pain"),
            ("Respiratory distress", "SOB", "Shortness of breath", "Acute dyspnea", "Hypoxia", "Trouble breathing"),
        ),
    ),
    "kidney": Words(
        ("kidney disease", "renal failure", "CKD", "kidneys that failed"),
        Finding(
            ("foamy urine", "itching all over", "ankle swelling", "nocturia", "a metallic taste"),
            (
                "{Who} gets up four times a night to void.",
                "Food has come to taste of metal.",
                "Socks leave deep marks by evening.",
            ),
            ("{Who} sleeps through the night without voiding.", "Food tastes as ever.", "Socks leave no marks."),
        ),
        _DIABETES,
        (
            ("Vomiting and diarrhea", "N/V/D", "Dehydration", "Nausea and vomiting", "Diarrhea"),
            ("Elevated creatinine", "Decreased urine output", "Abnormal labs", "Dark urine", "Flank pain and low UOP"),
        ),
    ),
    "copd": Words(
        ("COPD", "emphysema", "chronic bronchitis", "bad lungs"),
        Finding(
            ("dyspnea on exertion", "DOE", "morning sputum", "a chronic cough", "getting winded on the stairs"),
            (
                "{Who} fills a cup with phlegm each morning.",
                "Has to stop for breath after half a block.",
                "Can no longer keep up with friends on level ground.",
            ),
            (
                "Airways are clear in the morning.",
                "Climbs two flights of stairs without stopping.",
                "Keeps up with friends on level ground.",
            ),
        ),
        Finding(
            ("smoking", "tobacco use", "cigarettes", "a smoking habit"),
            ("Two packs a day since age 20.", "Has a 40 pack-year history."),
            ("Has never lit a cigarette.", "Lifelong never-smoker."),
        ),
        (
            ("Cough and fever", "Productive cough", "Sore throat", "URI symptoms", "Flu-like illness"),
            ("Respiratory distress", "SOB", "Shortness of breath", "Fever and hypoxia", "Acute dyspnea"),
        ),
    ),
    "amnesia": Words(
        ("dementia", "memory loss", "Alzheimer's", "loss of memory"),
        Finding(
            ("forgetfulness", "word-finding difficulty", "misplacing things", "getting lost", "short-term memory loss"),
            (
                "{Who} asks the same question three times over.",
                "Bills have gone unpaid for months.",
                "The stove was left on twice.",
            ),
            (
                "{Who} recalls last week's visitors in detail.",
                "Keeps up with the bills alone.",
                "Does the crossword daily.",
            ),
        ),
        Finding(
            ("sleep apnea", "OSA", "loud snoring", "witnessed apneas"),
            ("The bed partner sees breathing stop at night.", "Wakes up unrefreshed and gasping."),
            ("Breathing is quiet all night.", "Sleep study last year was normal."),
        ),
        (
            ("Anxiety", "Depressed mood", "Panic", "Low mood and poor sleep", "Tearfulness"),
            ("Slurred speech", "Fall with head strike", "Transient weakness", "Confusion", "TIA symptoms"),
        ),
    ),
}
"""By the name of the disease."""

OTHER_COMPLAINTS = (
    "Abdominal pain", "Fall", "Fever", "Weakness", "Back pain", "Leg pain", "Hip pain", "Rash", "Constipation",
    "Pleuritic pain after a fall", "Cough", "Headache", "Syncope", "Elective surgery", "Wound check", "Foot ulcer",
    "Dizziness", "Abnormal imaging", "Epistaxis", "Lethargy", "Failure to thrive", "Neck pain", "Right arm pain",
    "Swelling of the arm", "Jaw pain", "Pain control", "Hives", "Knee pain after a fall",
)  # fmt: skip

CONDITION_FINDINGS = {
    "hypertension": Finding(
        ("high blood pressure", "HTN", "hypertension", "elevated pressures"),
        (
            "Home BP log runs in the 160s.",
            "Pressures have been hard to control.",
            "BP was 170s at the last visit.",
        ),
        ("Home BP log runs in the 120s.", "Pressures have always been normal.", "BP was 110s at the last visit."),
    ),
    "lipids": Finding(
        ("high cholesterol", "HLD", "hyperlipidemia", "raised LDL"),
        ("Last LDL was 171.", "Cholesterol has been above goal for years."),
        ("Last LDL was 84.", "Cholesterol has been at goal for years."),
    ),
    "obesity": Finding(
        ("obesity", "excess weight", "trouble with weight"),
        ("BMI 38 at the last visit.", "{Who} has been to a bariatric clinic."),
        ("BMI 22 at the last visit.", "{Who} has a slim build."),
    ),
    "pain": Finding(
        ("chronic back pain", "chronic pain", "low back pain", "daily aches"),
        ("Sees the pain clinic each month.", "Cannot sit for long because of the back."),
        ("Lifts and bends freely.", "The back gives no trouble."),
    ),
    "depression": Finding(
        ("low mood", "depression", "loss of interest", "feeling down"),
        ("PHQ-9 was 16.", "Has given up all hobbies."),
        ("PHQ-9 was 1.", "Mood is good and hobbies are kept up."),
    ),
    "asthma": Finding(
        ("wheezing", "asthma attacks", "nocturnal wheeze", "chest tightness in the cold"),
        ("Uses a rescue inhaler most days.", "Spring pollen sets off the bronchi each year."),
        ("Has never needed an inhaler.", "Lungs have always been quiet."),
    ),
    "thyroid": Finding(
        ("cold intolerance", "thyroid trouble", "dry skin", "a low thyroid"),
        ("Last TSH was 14.", "Wears two sweaters indoors."),
        ("Last TSH was 1.8.", "Tolerates cold rooms well."),
    ),
    "osteoarthritis": Finding(
        ("joint stiffness", "arthritis", "sore knees", "OA"),
        ("Knees crack and take ten minutes to loosen in the morning.", "Awaits a knee replacement."),
        ("Knees bend freely in the morning.", "Joints have given no trouble."),
    ),
    "ischemic": Finding(
        ("exertional chest pain", "angina", "chest pain with walking", "CAD", "exertional CP"),
        ("Takes nitro before climbing hills.", "Stress test last year was positive.", "Has had a stent for CAD."),
        (
            "Walks hills at a pace without nitro.",
            "Stress test last year was negative.",
            "Cath last year was clean.",
        ),
    ),
    "afib": Finding(
        ("palpitations", "racing heartbeat", "fluttering in the chest", "AF", "skipped beats"),
        ("The pulse is felt to jump about.", "Heart goes off like a drum for minutes.", "Was cardioverted once."),
        ("Heartbeat is felt to be even.", "Holter last year showed sinus rhythm."),
    ),
    "stroke": Finding(
        ("arm weakness from a stroke", "a prior CVA", "residual weakness", "old stroke deficits"),
        ("Walks with a brace since rehab for a CVA.", "Speech never quite came back."),
        ("Strength has always been equal on both sides.", "MRI brain last year was clean."),
    ),
    "reflux": Finding(
        ("heartburn", "acid reflux", "GERD", "sour taste after meals", "indigestion at night"),
        ("Chews antacids after most meals.", "Has raised the head of the bed for the acid."),
        ("Eats spicy food without trouble.", "Antacids have never been needed."),
    ),
    "anemia": Finding(
        ("anemia", "low blood counts", "feeling tired out", "pallor"),
        ("Last Hct was 27.", "Got iron infusions in the spring."),
        ("Last Hct was 42.", "Donates blood twice a year."),
    ),
    "cancer": Finding(
        ("weight loss", "night sweats", "a tumor", "cancer", "poor appetite for months"),
        ("Is followed in oncology clinic.", "Clothes hang loose since winter."),
        ("Screening is up to date and clean.", "Clothes fit as before."),
    ),
    "osteoporosis": Finding(
        ("brittle bones", "osteoporosis"),
        ("DEXA was -3.1.",),
        ("DEXA was -0.4.",),
    ),
    "neuropathy": Finding(
        ("numb feet", "tingling in the feet", "neuropathy", "burning soles"),
        ("Cannot feel the bathroom tiles.", "Has burnt a foot without noticing."),
        ("Feels the bathroom tiles well.", "Monofilament test was normal."),
    ),
}

ACUTE_FINDINGS = {
    "kidney_injury": Finding(
        ("poor oral intake", "low urine output", "decreased PO intake", "scant urine", "oliguria"),
        ("Has hardly drunk anything since falling ill.", "Voided once in the last day."),
        ("Has kept up with fluids all along.", "Voids as often as ever."),
    ),
    "urinary_infection": Finding(
        ("dysuria", "burning with urination", "urinary frequency", "urgency", "cloudy urine"),
        ("It stings on passing water.", "Dipstick at the PCP was positive."),
        ("Passes water with ease.", "Dipstick at the PCP was negative."),
    ),
}

AFFIRM = (
    "{Who} reports {x}.", "{Who} endorses {x}.", "{Who} notes {x}.", "C/o {x}.", "There has been {x} on most days.",
    "ROS positive for {x}.", "{Who} has had {x} for some time.", "+ {x}.", "{Who} admits to {x}.",
)  # fmt: skip
DENY = (
    "{Who} denies {x}.", "No {x}.", "There has been no {x} on any day.", "ROS negative for {x}.",
    "{Who} has had no {x} for some time.", "Neg for {x}.", "{Who} specifically denies {x}.", "Without {x}.",
)  # fmt: skip
BOTH = (
    "{Who} endorses {x} but denies {y}.", "{Who} denies {y} but does report {x}.", "No {y}; there is {x}.",
    "ROS positive for {x}, negative for {y}.", "ROS negative for {y}, positive for {x}.", "C/o {x}, not of {y}.",
)  # fmt: skip
HYPOTHETICAL = (
    "{Who} was told last month to call for {x}.", "Return precautions for {x} were given in clinic.",
    "{Who} was advised to come in should there be {x}.", "{Who} asks whether the pills can cause {x}.",
    "A neighbor was in hospital with {x} last week.", "A leaflet on {x} was given at the last visit.",
    "{Spouse} has had {x}.", "{Who} worries about getting {x}.", "A cousin of the {spouse} reports {x}.",
)  # fmt: skip
FILLER = (
    "{Who} lives independently.", "Was in usual state of health until then.", "Recent travel was unremarkable.",
    "No sick contacts.", "Saw the PCP two weeks ago.", "Vital signs on arrival were reviewed.", "{Spouse} called EMS.",
    "History is limited by the hour.", "Outside records were requested.", "Took all pills this morning.",
    "Received 1L NS in the ED.", "CXR and EKG were done in the ED.", "Blood was drawn and cultures sent.",
    "{Who} was transferred to the floor.", "Appeared comfortable on the floor.", "No recent antibiotics.",
    "Vaccinations are up to date.", "{Spouse} is at the bedside.", "Code status was confirmed.", "Sleeps poorly.",
    "Denies recent trauma.", "Symptoms came on gradually.", "Had been doing well at home.", "Misses doses at times.",
)  # fmt: skip
OPENING = (
    "[**Known lastname **] is a [**Age **] year old {sex} who presents with {x}.",
    "Pt is a [**Age **] yo {sex} p/w {x}.",
    "This is a [**Age **] y/o {sex} admitted for {x}.",
    "[**Age **] yo {sex}, brought in for {x}.",
    "[**Age **] year old {sex} with {x}.",
)
SINCE = ("since this morning", "for three days", "for a week or so", "since yesterday", "over the past days", "")

SOCIAL = (
    "Lives alone.", "Lives with {spouse}.", "Retired teacher.", "Retired bus driver.", "Has two grown children.",
    "Ambulates with a cane.", "Independent in ADLs.", "Worked in a bakery.", "Lives in [**Location (un) **].",
    "From an assisted living facility.", "Enjoys gardening.", "Has VNA services.", "Worked as a clerk.",
)  # fmt: skip

RELATIVES = ("Father", "Mother", "Brother", "Sister", "Maternal uncle", "Paternal aunt", "Grandmother", "Twin brother")
IN_LAWS = ("{Spouse}", "Mother-in-law", "Stepfather", "Adoptive mother", "Brother-in-law", "{Spouse}'s father")
FAMILY_AFFIRMED = (
    "{rel} with {x}.", "{rel} died of {x}.", "{rel} has {x}.", "Significant for {x} ({rel}).", "{rel} had {x}.",
    "There is {x} in the family: {rel}.", "{rel} and a second blood relative with {x}.",
)  # fmt: skip
FAMILY_DENIED = (
    "No family history of {x}.", "Denies {x} in the family.", "Negative for {x}.", "{rel} without {x}, nor others.",
    "There is no {x} in the family.", "No blood relative with {x}.", "{rel} and siblings never had {x}.",
)  # fmt: skip
FAMILY_IN_LAW = ("{rel} with {x}.", "{rel} died of {x}.", "{rel} has {x}.", "{rel} had {x}.")
FAMILY_OTHER = (
    "{rel} with breast cancer.", "{rel} died of colon cancer.", "{rel} with gout.", "{rel} had migraine.",
    "{rel} lived to 96.", "{rel} with glaucoma.", "{rel} died in the war.", "{rel} had melanoma.",
)  # fmt: skip
FAMILY_NOT_TOLD = ("Not obtained.", "Unable to obtain.", "Deferred.", "Was not asked.", "See old chart.")

_PLANS = (
    "was managed with medication adjustments", "improved with supportive care", "remained stable", "was monitored",
    "was discussed with the consulting team", "was worked up and treated", "was followed with serial labs",
    "to be followed up as an outpatient", "continued on the home regimen", "responded to treatment",
)  # fmt: skip
_CALM = (
    "The PCP was informed.", "Tolerated a regular diet.", "Seen by PT, cleared.",
    "Case management was involved.", "Lines were removed.", "Prophylaxis: SC heparin, bowel regimen.",
)  # fmt: skip
_CONDITION = (
    "Mental Status: Clear and coherent.\nLevel of Consciousness: Alert and interactive.",
    "Stable.",
    "Good. Ambulatory - Independent.",
    "Fair, ambulatory with assistance.",
)
_NURSING = (
    "Pt arrived from ER via stretcher.", "A&O x3, MAE, follows commands.", "Oriented to unit and call bell.",
    "VSS, afebrile.", "Skin intact.", "PIV x2 patent.", "{Spouse} in to visit, updated by team.", "Voiding via urinal.",
    "Lungs clear to bases.", "Denies pain at present.", "Turned and repositioned.", "Belongings sent home.",
    "Diet advanced as ordered.", "Fall precautions in place.", "Admission history completed.",
)  # fmt: skip

# As writers call what they know well; everything else by the classification's own title.
_FAMILIAR = {
    "401.9": ("HTN", "Hypertension", "high blood pressure"),
    "272.4": ("HLD", "Hyperlipidemia", "high cholesterol"),
    "414.01": ("CAD", "Coronary artery disease"),
    "427.31": ("AF", "Atrial fibrillation", "afib"),
    "530.81": ("GERD", "Reflux", "acid reflux"),
    "428.0": ("CHF", "Congestive heart failure", "heart failure"),
    "250.00": ("DM2", "Diabetes", "Type 2 diabetes"),
    "518.81": ("h/o respiratory failure", "prior respiratory failure"),
    "584.9": ("h/o ARF", "prior acute renal failure", "prior AKI"),
    "599.0": ("h/o UTI", "recurrent UTIs", "urinary tract infections"),
    "585.9": ("CKD", "Chronic kidney disease"),
    "496": ("COPD", "Chronic obstructive lung disease"),
    "780.93": ("Memory loss", "Amnesia"),
    "244.9": ("Hypothyroidism",),
    "285.9": ("Anemia",),
    "311": ("Depression",),
    "493.90": ("Asthma",),
    "278.00": ("Obesity",),
    "305.1": ("Tobacco use",),
    "486": ("h/o pneumonia", "PNA"),
}
NO_PAST = ("None on file.", "See OMR.", "Not on record here.", "No prior admissions here.")
_NO_DRUGS = ("None.", "No home medications.", "Unknown.")
_OVER_THE_COUNTER = ("Multivitamin daily", "Calcium 500 mg PO DAILY", "Senna PRN", "Vitamin D 1000 units daily")


# ------------------------------------------------------------------------------------------------------------- writing
class _Pen:
    """The choices of one visit's notes, taken one after the other from a row of uniforms."""

    def __init__(self, row: list[float]) -> None:
        self._next = iter(row).__next__

    def chance(self, probability: float) -> bool:
        return self._next() < probability

    def uniform(self) -> float:
        return self._next()

    def below(self, number: int) -> int:
        return int(self._next() * number)

    def pick(self, options: Sequence[T]) -> T:
        return options[int(self._next() * len(options))]

    def some(self, options: Sequence[T], most: int) -> list[T]:
        """At most so many different ones, as a choice that comes up again is dropped."""
        return list(dict.fromkeys(self.pick(options) for _ in range(most)))

    def shuffle(self, items: list[str]) -> None:
        for i in range(len(items) - 1, 0, -1):
            j = int(self._next() * (i + 1))
            items[i], items[j] = items[j], items[i]

    def run(self, items: Sequence[T], most: int) -> list[T]:
        """At most so many of the items, one after the other from a random place on, around the end."""
        size = len(items)
        if size <= most:
            return list(items)
        begin = self.below(size)
        return [items[(begin + i) % size] for i in range(most)]


@dataclass(frozen=True)
class _Person:
    """How a note calls its patient; of a visit, so that writers differ."""

    who: tuple[str, ...]
    sex: tuple[str, ...]
    spouse: str

    def fill(self, template: str, pen: _Pen, **slots: str) -> str:
        """The template with {Who} = the patient, {spouse}, {Spouse}, and the slots."""
        return template.format(Who=pen.pick(self.who), spouse=self.spouse, Spouse=self.spouse.capitalize(), **slots)


_PERSONS = (
    _Person(("Pt", "Patient", "He", "The patient"), ("man", "male", "M", "gentleman"), "wife"),
    _Person(("Pt", "Patient", "She", "The patient"), ("woman", "female", "F", "lady"), "husband"),
)


@functools.cache
def _titles(vocabulary: codes.Vocabulary) -> tuple[str, ...]:
    names = dict(codes.diagnoses().select("ICD9_CODE", "LONG_TITLE").iter_rows())
    return tuple(names[code.replace(".", "")] for code in vocabulary.codes)


@functools.cache
def _remembered(vocabulary: codes.Vocabulary) -> tuple[tuple[str, ...], ...]:
    """What each code is called when it has become history."""
    return tuple(_FAMILIAR.get(code, (name,)) for code, name in zip(vocabulary.codes, _titles(vocabulary)))


# Each drug as three kinds of writers put it.
_PRESCRIPTIONS = tuple(
    (
        f"{drug.title} {drug.dose} {drug.unit} {drug.route} DAILY",
        f"{drug.name} {drug.dose}{drug.unit} daily",
        f"{drug.name.capitalize()} {drug.dose} {drug.unit} {drug.form} Sig: One (1) {drug.route} as directed",
    )
    for drug in DRUGS
)


def write_notes(shard: Shard, facts: Facts) -> pl.DataFrame:
    """Notes of a shard, visit by visit, the nursing note before the summary.

    visit i64; category str (SUMMARY or NURSING); days_in f64 since the admission (a summary is written at discharge);
    is_error bool; text str
    """
    visits, num_visits = shard.visits, len(shard.visits.patient)
    rng = stream(shard.spec.disease.name, shard.seed, shard.block, Stream.NOTE_TEXT)
    rows = rng.random((num_visits, _DRAWS), np.float32)
    titles, remembered = _titles(shard.vocabulary), _remembered(shard.vocabulary)
    words = WORDS[shard.spec.disease.name]
    findings, told = _findings(words, facts)
    complaints = facts.complaint.tolist()
    family = facts.family.tolist()
    home = _home_drugs(facts)
    ordered, coded = _by_visit(shard.drugs, num_visits), _by_visit(shard.codes, num_visits)
    by_network = {INDEX[condition.drug] for condition in CONDITIONS if condition.drug}
    of_target = {INDEX[drug] for drug in shard.spec.disease.drugs} - by_network
    to_go = {i for i, drug in enumerate(DRUGS) if drug.route in ("PO", "IH")} - by_network
    patients, is_female = visits.patient.tolist(), shard.patients.is_female.tolist()
    is_fatal, length = visits.is_fatal.tolist(), (visits.end_day - visits.start_day).tolist()

    columns: dict[str, list] = {name: [] for name in _COLUMNS}

    def add(*values: object) -> None:
        for column, value in zip(columns.values(), values):
            column.append(value)

    earlier_codes: dict[int, None] = {}  # in the order in which they came
    earlier_drugs: set[int] = set()
    for visit in range(num_visits):
        patient = patients[visit]
        if visit and patient != patients[visit - 1]:
            earlier_codes, earlier_drugs = {}, set()
        pen, person = _Pen(rows[visit].tolist()), _PERSONS[is_female[patient]]
        past = list(earlier_codes)
        if pen.chance(HABITS.nursing):
            is_error = pen.chance(HABITS.retracted)
            days_in = min(0.25, 0.5 * length[visit]) * pen.uniform()
            add(visit, NURSING, days_in, is_error, _nursing(pen, person, past, remembered, findings))
        drugs = sorted({*home[visit], *(earlier_drugs & of_target)})
        given = sorted({*drugs, *(drug for drug in ordered[visit] if drug in to_go)})
        style = pen.below(3)
        parts = (
            _dates(pen),
            person.sex[2],
            pen.pick(("MEDICINE", "CARDIOTHORACIC", "SURGERY", "NEUROLOGY", "MEDICINE")),
            *_complaint_and_history(pen, person, words, complaints[visit], findings, told[visit]),
            _past(pen, past, remembered),
            " ".join(person.fill(sentence, pen) for sentence in pen.some(SOCIAL, 1 + pen.below(3))),
            _family(pen, person, words, family[visit]),
            _medications(pen, drugs, style, extra=True),
            _course(pen, coded[visit], titles, findings),
            "\n".join(titles[code] for code in coded[visit]),
            _medications(pen, given, style, extra=False),
            "Expired" if is_fatal[visit] else pen.pick(_CONDITION),
        )
        add(visit, SUMMARY, length[visit], False, _SUMMARY_FORM.format(*parts))
        earlier_codes.update(dict.fromkeys(coded[visit]))
        earlier_drugs.update(ordered[visit])
    return pl.DataFrame(columns, schema=_COLUMNS)


_COLUMNS = {"visit": pl.Int64, "category": pl.String, "days_in": pl.Float64, "is_error": pl.Boolean, "text": pl.String}
_SUMMARY_FORM = (
    "{}\n\nSex: {}     Service: {}\n\nAllergies:\nNo Known Allergies / Adverse Drug Reactions\n\n"
    + "\n\n".join(f"{heading}:\n{{}}" for heading in SECTIONS)
)


def _by_visit(orders: Orders, num_visits: int) -> list[list[int]]:
    begin = np.searchsorted(orders.visit, np.arange(num_visits + 1)).tolist()
    code = orders.code.tolist()
    return [code[a:b] for a, b in itertools.pairwise(begin)]


def _home_drugs(facts: Facts) -> list[list[int]]:
    drugs = [INDEX[condition.drug] if condition.drug else -1 for condition in CONDITIONS]
    return [[drug for drug, is_listed in zip(drugs, row) if is_listed] for row in facts.home_drug.tolist()]


def _findings(words: Words, facts: Facts) -> tuple[list[Finding], list[list[int]]]:
    """The findings that a history can tell, and how each visit's does."""
    findings = [
        words.symptom,
        words.moderator,
        *(CONDITION_FINDINGS[condition.name] for condition in CONDITIONS),
        *(ACUTE_FINDINGS[condition.name] for condition in ACUTE),
    ]
    told = np.column_stack([facts.symptom, facts.moderator, facts.condition, facts.acute])
    return findings, told.tolist()


def _dates(pen: _Pen) -> str:
    year, month, day = 2101 + pen.below(99), 1 + pen.below(12), 1 + pen.below(24)
    admitted, discharged = f"{year}-{month}-{day}", f"{year}-{month}-{day + pen.below(4)}"
    return f"Admission Date:  [**{admitted}**]     Discharge Date:  [**{discharged}**]"


def _complaint_and_history(
    pen: _Pen, person: _Person, words: Words, complaint: int, findings: list[Finding], told: list[int]
) -> tuple[str, str]:
    options = words.complaints[complaint - 1] if complaint else OTHER_COMPLAINTS
    chief = pen.pick(options)
    heard = pen.pick(options) if complaint else chief  # the same, perhaps in other words
    heard = heard[0].lower() + heard[1:] if heard[1].islower() else heard
    since = pen.pick(SINCE)
    opening = person.fill(pen.pick(OPENING), pen, x=f"{heard} {since}" if since else heard, sex=pen.pick(person.sex))

    sentences: list[str] = []
    said: tuple[list[str], list[str]] = ([], [])  # denied, affirmed: told as lists of terms
    for finding, answer in zip(findings, told):
        if answer != NOT_TOLD:
            if pen.chance(HABITS.own_sentence):
                sentences.append(person.fill(pen.pick(finding.present if answer == AFFIRMED else finding.absent), pen))
            else:
                said[answer].append(pen.pick(finding.terms))
        if pen.chance(HABITS.hypothetical):
            sentences.append(person.fill(pen.pick(HYPOTHETICAL), pen, x=pen.pick(finding.terms)))
    denied, affirmed = (_lists(pen, terms) for terms in said)
    while denied and affirmed and pen.chance(0.5):
        x, y = _joined(affirmed.pop(), "and"), _joined(denied.pop(), "or")
        sentences.append(person.fill(pen.pick(BOTH), pen, x=x, y=y))
    sentences += [person.fill(pen.pick(AFFIRM), pen, x=_joined(terms, "and")) for terms in affirmed]
    sentences += [person.fill(pen.pick(DENY), pen, x=_joined(terms, "or")) for terms in denied]
    sentences += [person.fill(sentence, pen) for sentence in pen.some(FILLER, 2 + pen.below(4))]
    pen.shuffle(sentences)
    history = " ".join([opening, *sentences])
    for _ in range(2):
        if pen.chance(HABITS.typo):
            history = _misspelt(history, pen.below(len(history) - 2))
    return chief, history


def _lists(pen: _Pen, terms: list[str]) -> list[list[str]]:
    """The terms in random order, in lists of one to four."""
    pen.shuffle(terms)
    lists = []
    while terms:
        size = 1 + pen.below(4)
        lists.append(terms[:size])
        terms = terms[size:]
    return lists


def _joined(terms: list[str], conjunction: str) -> str:
    return terms[0] if len(terms) == 1 else f"{', '.join(terms[:-1])} {conjunction} {terms[-1]}"


def _misspelt(text: str, at: int) -> str:
    """Two letters inside a word change places, if there are two at the place: never the first of a word."""
    if text[at : at + 3].isalpha() and text[at : at + 3].islower():
        return f"{text[: at + 1]}{text[at + 2]}{text[at + 1]}{text[at + 3 :]}"
    return text


def _past(pen: _Pen, past: list[int], remembered: Sequence[Sequence[str]]) -> str:
    if not past:
        return pen.pick(NO_PAST)
    names = [pen.pick(remembered[code]) for code in pen.run(past, HABITS.most_listed)]
    return "\n".join(f"- {name}" for name in names) if pen.chance(0.5) else ", ".join(names)


def _family(pen: _Pen, person: _Person, words: Words, told: int) -> str:
    sentences = []
    if told != NOT_TOLD:
        template = pen.pick(FAMILY_AFFIRMED if told == AFFIRMED else FAMILY_DENIED)
        sentences.append(person.fill(template, pen, x=pen.pick(words.target), rel=pen.pick(RELATIVES)))
    if pen.chance(HABITS.in_law):
        who = person.fill(pen.pick(IN_LAWS), pen)
        sentences.append(person.fill(pen.pick(FAMILY_IN_LAW), pen, x=pen.pick(words.target), rel=who))
    if pen.chance(HABITS.other_illness):
        sentences.append(person.fill(pen.pick(FAMILY_OTHER), pen, rel=pen.pick(RELATIVES)))
    pen.shuffle(sentences)
    return " ".join(sentences) if sentences else pen.pick(FAMILY_NOT_TOLD)


def _medications(pen: _Pen, drugs: list[int], style: int, *, extra: bool) -> str:
    lines = [_PRESCRIPTIONS[drug][style] for drug in drugs]
    if extra and pen.chance(0.3):
        lines.append(pen.pick(_OVER_THE_COUNTER))
    pen.shuffle(lines)
    if not lines:
        return pen.pick(_NO_DRUGS)
    return "\n".join(f"{i}. {line}" for i, line in enumerate(lines, 1)) if style else ", ".join(lines)


def _course(pen: _Pen, coded: list[int], titles: Sequence[str], findings: list[Finding]) -> str:
    lines = [f"# {titles[code]}: {pen.pick(_PLANS)}." for code in pen.run(coded, HABITS.most_discussed)]
    lines.append(pen.pick(_CALM))
    lines.append(f"Low threshold to reassess for {pen.pick(pen.pick(findings).terms)}.")
    return "\n".join(lines)


def _nursing(
    pen: _Pen, person: _Person, past: list[int], remembered: Sequence[Sequence[str]], findings: list[Finding]
) -> str:
    lines = [person.fill(sentence, pen) for sentence in pen.some(_NURSING, 3 + pen.below(3))]
    lines.append(f"Plan: monitor, call HO for {pen.pick(pen.pick(findings).terms)}.")
    pen.shuffle(lines)
    names = ", ".join(pen.pick(remembered[code]) for code in pen.run(past, 3))
    return f"Nursing Admission Note\nPMH per old chart: {names or 'none'}\n{' '.join(lines)}"


# ----------------------------------------------------------------------------------------------------- MIMIC-III table
def noteevents(
    shard: Shard,
    keys: dict[str, pl.Series],
    admit: NDArray[np.datetime64],
    discharge: NDArray[np.datetime64],
    told: Facts | None = None,
) -> pl.DataFrame:
    """NOTEEVENTS in the release's columns without ROW_ID: a summary has a date and no time, as there.

    keys               SUBJECT_ID and HADM_ID of each visit
    admit, discharge   of each visit, datetime64[us]
    told               `notes.facts(shard)`, where it is at hand
    """
    notes = write_notes(shard, facts_of(shard) if told is None else told)
    visit = notes["visit"].to_numpy()
    is_summary = notes["category"] == SUMMARY
    into = (notes["days_in"].to_numpy() * 1440.0).astype("timedelta64[m]")
    charted = np.where(is_summary.to_numpy(), discharge[visit], admit[visit] + into)
    return frame(
        {
            "SUBJECT_ID": keys["SUBJECT_ID"].gather(visit),
            "HADM_ID": keys["HADM_ID"].gather(visit),
            "CHARTDATE": pl.Series(charted).dt.date(),
            "CHARTTIME": pl.Series(charted),
            "STORETIME": pl.Series(charted + np.timedelta64(7, "m")),
            "CATEGORY": notes["category"],
            "DESCRIPTION": "Report",
            "CGID": pl.Series(14_000 + visit % 5_000),
            "ISERROR": notes["is_error"].cast(pl.Int64),
            "TEXT": notes["text"],
        }
    ).with_columns(
        pl.when(~is_summary).then("CHARTTIME").alias("CHARTTIME"),
        pl.when(~is_summary).then("STORETIME").alias("STORETIME"),
        pl.when(~is_summary).then("CGID").alias("CGID"),
        pl.when(pl.col("ISERROR") == 1).then("ISERROR").alias("ISERROR"),
    )
