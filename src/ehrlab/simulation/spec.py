"""Parameters of the patient simulator: a population is a disease (codes) x a care shape (numbers).

The numbers of the latent chain, of care and of coding are here, in frozen dataclasses, and nowhere else (the chronic
conditions beside the target are in `network`). They were chosen from Table 1 of MedDiffusion (arXiv 2310.02520: visits
per patient, codes per visit, distinct codes) and plausible epidemiology. The strength of the signal was set with one
model, a logistic regression on code counts: the MIMIC shape's first setting gave it a PR-AUC of .34 at a prior of .25;
prodrome and false codes, commitment and starting stages were then changed until it stood at .45 to .53. No sequence
model and no method of a paper was run before these numbers stood. Rates and hazards are per week unless said otherwise.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from ehrlab.core.errors import InputError

# Patients are made in blocks of this many, each from its own random streams. The number is part of the specification:
# another one makes other patients.
BLOCK_SIZE = 1024

STAGES = ("stable", "primed", "early", "late", "refractory")
STABLE, PRIMED, EARLY, LATE, REFRACTORY = range(5)
REGIMES = ("quiet", "routine", "intense")
EVENTS = ("none", "trigger_a", "trigger_b")
RACES = ("white", "black", "asian", "hispanic", "other")
FLAGS = ("trigger_a", "trigger_b", "prodrome", "moderator")

SHAPES = ("mimic", "trinetx", "toy")


@dataclass(frozen=True)
class Acute:
    """A condition of one hospital stay; present or not independently of all else."""

    name: str
    codes: tuple[str, ...]  # the commonest first
    probability: float


ACUTE = (Acute("kidney_injury", ("584.9", "584.5"), 0.20), Acute("urinary_infection", ("599.0",), 0.14))


@dataclass(frozen=True)
class Disease:
    """The codes (ICD-9-CM, dotted) in which one target disease shows itself; within a group the commonest first."""

    name: str
    target: tuple[str, ...]
    excluded: tuple[str, ...]  # prefixes of all that a cohort could call the target: nothing but `target` emits them
    trigger_a: tuple[str, ...]
    trigger_b: tuple[str, ...]
    prodrome: tuple[str, ...]
    moderator: tuple[str, ...]
    drugs: tuple[str, ...]  # given once the target is diagnosed
    procedures: tuple[tuple[str, str], ...]  # (flag that brings it, ICD-9 procedure)


@dataclass(frozen=True)
class Shape:
    """Demography, latent chain, care and coding habits of one kind of record."""

    weeks: int
    age: tuple[float, float, float, float]  # mean, standard deviation, lowest, highest: years at entry
    female: float
    races: tuple[float, ...]  # shares in the order of RACES
    # static traits that no table shows
    frailty: tuple[float, ...] = (0.6, 1.0, 1.5)  # x routine visit rate
    frailty_share: tuple[float, ...] = (0.35, 0.40, 0.25)
    family_share: float = 0.35  # family history of the target (later: told in notes only)
    risk_cut: tuple[float, float] = (-0.5, 0.7)  # of .05 (age - mean) + .2 male + .3 black -> risk class 0, 1, 2
    # latent chain
    start_stage: tuple[float, ...] = (0.65, 0.22, 0.10, 0.01, 0.02)  # before the entry week
    entry_events: tuple[float, float] = (0.50, 0.12)  # P(entry visit is due to A), P(... to B)
    rate_a: float = 0.0010
    rate_b: float = 0.0021
    # mean stay: primed, early, late, refractory
    stage_weeks: tuple[float, ...] = (150.0, 50.0, 600.0, 150.0)
    commit: tuple[float, float] = (0.10, 0.95)  # P(primed -> early | B) without and with the moderator disease
    without_family: float = 0.60  # x commit without family history
    hazard: tuple[float, ...] = (0.00004, 0.00006, 0.0006, 0.025, 0.00003)  # of diagnosis, by stage
    risk_hazard: tuple[float, float, float] = (0.8, 1.0, 1.25)  # x hazard by risk class
    moderator_start: tuple[float, float, float] = (0.35, 0.45, 0.55)  # prevalence at entry, by risk class
    moderator_onset: tuple[float, float, float] = (0.0004, 0.0006, 0.0009)
    # care regime and visits
    regime_weeks: tuple[float, float, float] = (150.0, 60.0, 7.0)  # mean stay
    escalate: float = 0.35  # P(a trigger event moves care to intense)
    visit_rate: tuple[float, float, float] = (0.0014, 0.0020, 0.050)  # by regime
    prodrome_visits: float = 2.0  # x visit rate in early and late
    event_visit: float = 0.92  # P(visit | trigger event)
    # hospital stay, log-logistic: median, shape, least, most; None: every visit ends within its day
    stay_days: tuple[float, ...] | None = (6.0, 2.2, 0.3, 60.0)
    # coding, given a visit
    hit: float = 0.95  # P(trigger code | trigger event)
    false_code: tuple[float, float] = (0.03, 0.03)  # P(A code), P(B code) without the event: rule-outs, copied problems
    prodrome_code: tuple[float, ...] = (0.08, 0.10, 0.40, 0.65, 0.08)  # by stage
    moderator_code: tuple[float, float] = (0.06, 0.75)  # without, with the moderator disease
    target_again: float = 0.6  # P(target coded at a visit after the diagnosis)
    network_code: float = 0.75  # P(a chronic condition that is present is coded)
    acute_code: tuple[float, float] = (0.01, 0.85)  # P(acute condition coded) at a stay without, with it
    background_mean: float = 13.5  # slots per visit; repeated codes merge, so fewer distinct ones appear
    num_background: int = 5_000  # codes
    zipf: tuple[float, float] = (1.0, 18.0)  # exponent, offset of the rank
    habit: float = 0.62  # P(a slot repeats one of the patient's own codes)
    # orders, given a visit
    condition_drug: float = 0.35  # P(drug of a chronic condition that is present)
    target_drug: float = 0.5  # P(each drug of the target), after the visit that diagnoses it
    flag_procedure: float = 0.3  # P(each procedure of a flag | the flag is coded)
    common_drugs: tuple[tuple[str, float], ...] = (
        ("acetaminophen", 0.6),
        ("heparin", 0.5),
        ("docusate", 0.4),
        ("ondansetron", 0.25),
    )
    # death
    death_at_visit: tuple[float, ...] = (0.03, 0.04, 0.06, 0.12, 0.03)  # by stage
    intense_death: float = 1.5  # x in the intense regime
    diagnosed_death: float = 1.5  # x after the diagnosis
    risk_death: tuple[float, float, float] = (0.7, 1.0, 1.5)
    death_elsewhere: float = 0.0003  # per week, x risk_death
    # knobs (class Knobs)
    time: float = 1.0
    order: float = 1.0


@dataclass(frozen=True)
class Spec:
    """A population: who falls ill of what, in which kind of care."""

    disease: Disease
    shape: Shape


HEART_FAILURE = Disease(
    "heart_failure",
    target=("428.0", "428.22", "428.32", "428.9"),
    excluded=("428", "398.91", "402", "404"),
    trigger_a=("410.71", "411.1", "410.41", "410.91", "429.83"),
    trigger_b=("518.81", "276.69", "514", "511.9", "785.51"),
    prodrome=("786.05", "782.3", "780.79", "424.0", "425.4"),
    moderator=("250.00", "585.9", "250.40", "403.91"),
    drugs=("furosemide", "metoprolol"),
    procedures=(("trigger_a", "37.22"), ("trigger_a", "36.07"), ("trigger_b", "96.71"), ("prodrome", "88.72")),
)
KIDNEY = Disease(
    "kidney",
    target=("585.9", "585.3", "585.4", "585.6"),
    excluded=("585", "285.21", "593.9", "753.1", "403", "404"),
    trigger_a=("276.51", "558.9", "276.52", "787.91", "038.9", "008.8"),
    trigger_b=("584.9", "584.5", "580.9", "583.9", "E947.8"),
    prodrome=("791.0", "782.3", "285.9", "780.79", "276.7", "790.6"),
    moderator=("250.00", "250.40", "250.02", "250.60"),
    drugs=("furosemide", "allopurinol"),
    procedures=(("trigger_a", "99.18"), ("trigger_b", "38.95"), ("trigger_b", "39.95"), ("prodrome", "88.76")),
)
COPD = Disease(
    "copd",
    target=("496", "491.21", "492.8", "491.9"),
    excluded=("490", "491", "492", "494", "496", "493.2"),
    trigger_a=("466.0", "465.9", "487.1", "079.99", "466.19"),
    trigger_b=("486", "482.9", "485", "493.92", "518.82"),
    prodrome=("786.05", "786.2", "780.79", "786.07", "799.02"),
    moderator=("305.1", "V15.82"),
    drugs=("tiotropium", "albuterol"),
    procedures=(("trigger_a", "93.94"), ("trigger_b", "96.71"), ("trigger_b", "33.24"), ("prodrome", "89.37")),
)
AMNESIA = Disease(
    "amnesia",
    target=("780.93",),
    excluded=("780.93", "437.7", "294", "290", "291.1", "292.83", "300.12", "331"),
    trigger_a=("300.00", "311", "309.0", "296.20", "309.81"),
    trigger_b=("435.9", "434.91", "850.9", "780.09", "437.1"),
    prodrome=("780.79", "780.52", "780.4", "781.2", "799.51"),
    moderator=("327.23", "305.00", "303.90"),
    drugs=("donepezil",),
    procedures=(("trigger_a", "94.39"), ("trigger_b", "87.03"), ("trigger_b", "88.91"), ("prodrome", "89.14")),
)

# Rare admissions. Defaults of Shape where nothing is said.
MIMIC = Shape(
    weeks=364,
    age=(65.0, 13.0, 18.0, 97.0),
    female=0.46,
    races=(0.74, 0.13, 0.04, 0.06, 0.03),
)
# Patients who come less often and die more: of those with two admissions, 37 % die in the last (Table 1's MIMIC column,
# if it is RETAIN's cohort: docs/tasks.md); 4 % of the survived admissions are followed by another (MEDHMP, Table 8).
MIMIC_OUTCOMES = replace(
    MIMIC,
    rate_a=0.00045,
    rate_b=0.00095,
    visit_rate=(0.00105, 0.0015, 0.040),
    death_at_visit=(0.125, 0.155, 0.24, 0.42, 0.125),
)
# A few hundred patients must fill six tasks: few strata to match in, and many who fall ill. For tests only.
TOY = replace(
    MIMIC,
    age=(65.0, 3.0, 60.0, 69.9),
    races=(0.8, 0.2, 0.0, 0.0, 0.0),
    start_stage=(0.40, 0.31, 0.24, 0.03, 0.02),
    visit_rate=(0.008, 0.010, 0.06),
    background_mean=6.0,
    num_background=400,
)
# Dense outpatient care; a visit of any kind ends within its week.
TRINETX = Shape(
    weeks=260,
    age=(56.0, 14.0, 20.0, 88.0),
    female=0.53,
    races=(0.66, 0.16, 0.05, 0.08, 0.05),
    start_stage=(1.0, 0.0, 0.0, 0.0, 0.0),
    entry_events=(0.1, 0.1),
    rate_a=0.024,
    rate_b=0.024,
    stage_weeks=(9.0, 30.0, 200.0, 40.0),
    commit=(0.05, 0.95),
    without_family=0.40,
    hazard=(0.00002, 0.00003, 0.0005, 0.035, 0.00001),
    regime_weeks=(24.0, 24.0, 9.0),
    escalate=0.0,
    visit_rate=(0.16, 0.55, 2.5),
    prodrome_visits=1.25,
    event_visit=0.96,
    stay_days=None,
    hit=0.96,
    false_code=(0.012, 0.012),
    prodrome_code=(0.05, 0.06, 0.24, 0.45, 0.05),
    moderator_code=(0.006, 0.36),
    target_again=0.3,
    network_code=0.12,
    background_mean=4.5,
    num_background=8_790,
    zipf=(1.05, 12.0),
    common_drugs=(("acetaminophen", 0.06), ("ondansetron", 0.02)),
    death_at_visit=(0.0004, 0.0005, 0.0008, 0.0020, 0.0004),
    death_elsewhere=0.0001,
)

# What Table 1 says of each TriNetX extract beyond the common shape: density of visits, length of a visit, vocabulary.
_TRINETX_OF = {
    "heart_failure": TRINETX,
    "kidney": TRINETX,
    "copd": replace(
        TRINETX,
        visit_rate=(0.060, 0.28, 1.6),
        stage_weeks=(9.0, 34.0, 160.0, 40.0),
        commit=(0.10, 0.90),
        false_code=(0.018, 0.018),
        prodrome_code=(0.06, 0.07, 0.22, 0.40, 0.06),
        background_mean=2.95,
        num_background=10_040,
        zipf=(1.0, 12.0),
    ),
    "amnesia": replace(
        TRINETX,
        visit_rate=(0.16, 0.57, 2.6),
        stage_weeks=(10.0, 32.0, 180.0, 40.0),
        false_code=(0.010, 0.010),
        prodrome_code=(0.04, 0.05, 0.18, 0.36, 0.04),
        background_mean=1.83,
        num_background=9_020,
        zipf=(0.95, 12.0),
    ),
}
DISEASES = {disease.name: disease for disease in (HEART_FAILURE, KIDNEY, COPD, AMNESIA)}

# Task -> disease of the population that serves it. The cohorts of RLTF (conf/task/rare_code) have the disease of which
# their codes are signs, where there is one. No number of a population, and so not in the specification.
PRESETS = {name: name for name in DISEASES} | {
    "in_hospital_mortality": "heart_failure",
    "readmission_30d": "heart_failure",
    "arf_48h": "heart_failure",
    "shock_48h": "heart_failure",
    "mortality_48h": "heart_failure",
    "ten_conditions": "heart_failure",
    "acute_cerebrovascular": "amnesia",
    "acute_myocardial_infarction": "heart_failure",
    "acute_renal_failure": "kidney",
    "conduction_disorders": "heart_failure",
    "diabetes": "heart_failure",
    "dysrhythmias": "heart_failure",
    "fluid_electrolyte": "kidney",
    "gastrointestinal_hemorrhage": "heart_failure",
    "lipid_disorders": "heart_failure",
    "pleurisy_pneumothorax": "heart_failure",
    "pneumonia": "copd",
    "respiratory_failure": "heart_failure",
    "septicemia": "kidney",
    "shock": "heart_failure",
    "sickle_cell": "heart_failure",
    "surgical_complications": "heart_failure",
}
# Their patients come less often and die more (MIMIC_OUTCOMES). What happens in intensive care after 48 hours was set on
# the disease's own shape (care.py), and the ten conditions are there as common as in the releases, or nearer to it.
_OUTCOMES = frozenset({"in_hospital_mortality", "readmission_30d"})
# Tasks that ask for what patients of a shape never have, and where it can be had.
_NEVER = {
    "mimic": {"sickle_cell": "data=sequences or data=trinetx"},
    "toy": {
        "conduction_disorders": "data=mimic, data=trinetx or data=sequences",
        "sickle_cell": "data=sequences or data=trinetx",
    },
    "trinetx": dict.fromkeys(("arf_48h", "shock_48h", "mortality_48h", "ten_conditions"), "data=mimic or data=mimic4"),
}


def population(preset: str, shape: str) -> Spec:
    """The specification behind a preset (a task's name) and a care shape ("mimic", "trinetx" or "toy")."""
    if preset not in PRESETS:
        raise InputError(f"unknown simulator preset '{preset}': expected one of {', '.join(sorted(PRESETS))}")
    if shape not in SHAPES:
        raise InputError(f"unknown simulator shape '{shape}': expected one of {', '.join(SHAPES)}")
    if remedy := _NEVER.get(shape, {}).get(preset):
        raise InputError(
            f"simulator: expected a task whose targets occur in shape '{shape}', but those of '{preset}' do not; "
            f"choose {remedy}, or the patients of another task (data.simulation.preset)"
        )
    disease = DISEASES[PRESETS[preset]]
    mimic = MIMIC_OUTCOMES if preset in _OUTCOMES else MIMIC
    return Spec(disease, {"mimic": mimic, "toy": TOY, "trinetx": _TRINETX_OF[disease.name]}[shape])


def representative(preset: str, shape: str) -> str:
    """One name for all presets of the same population: their patients are the same, and are simulated once."""
    wanted = population(preset, shape)
    alike = (name for name in PRESETS if name not in _NEVER.get(shape, {}) and population(name, shape) == wanted)
    return next(alike)


def shapes() -> dict[str, Shape]:
    """Every shape of care by name, with those that a disease has of its own."""
    own = {f"trinetx of {disease}": shape for disease, shape in _TRINETX_OF.items()}
    return {"mimic": MIMIC, "mimic of outcomes": MIMIC_OUTCOMES, "toy": TOY, **own}
