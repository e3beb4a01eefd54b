"""Which laboratory tests and clinic measurements exist, and which latent thing each of them hangs on.

Means, spreads and ranges are those of an adult hospital population, rounded; item numbers and labels are MIMIC's
D_LABITEMS', LOINC codes public. In one population a test hangs on one latent block (`LINKS`: the disease's own table,
else the common one) or on none; that is what lets an exact filter take each test by itself. Tests of a patient have no
level of their own: given the latent truth they vary around the same mean as everybody's (and sex's).
"""

from __future__ import annotations

from dataclasses import dataclass

from ehrlab.simulation.measure import Scale

OUTPATIENT_ORDERS = 0.12
"""x P(a laboratory test is ordered) where a visit is no hospital stay."""

STAGE_EFFECT = (0.0, 0.1, 0.5, 1.0, 0.1)
"""Share of a link's effect in each stage of the chain, in the order of spec.STAGES."""


@dataclass(frozen=True)
class Test:
    """A number that a visit may bring.

    normal   range of reference, outside of which the number is flagged
    ordered  P(measured at a hospital stay), where nothing it hangs on is present; clinic measurements: at any visit
    repeated P(measured again on each later day of the stay, once ordered)
    female   shift for women, in standard deviations
    """

    name: str
    loinc: str
    unit: str | None
    scale: Scale
    normal: tuple[float, float]
    ordered: float
    repeated: float = 0.0
    female: float = 0.0
    itemid: int | None = None  # None: measured in the clinic, in no laboratory
    label: str = ""
    fluid: str = "Blood"
    category: str = "Chemistry"


@dataclass(frozen=True)
class Link:
    """Test `test` hangs on `block`; at full effect by `shift` standard deviations, and it is ordered `more` often.

    block  "stage" (effect by STAGE_EFFECT), "moderator", "trigger_a", "trigger_b" (the event of the visit's week), a
           condition of network.CONDITIONS or of spec.ACUTE (effect when present)
    """

    test: str
    block: str
    shift: float
    more: float = 0.0


def _lab(
    name: str,
    itemid: int,
    label: str,
    loinc: str,
    unit: str | None,
    scale: Scale,
    normal: tuple[float, float],
    orders: tuple[float, float],
    *,
    female: float = 0.0,
    fluid: str = "Blood",
    category: str = "Chemistry",
) -> Test:
    return Test(name, loinc, unit, scale, normal, *orders, female, itemid, label, fluid, category)


def _log(median: float, spread: float, lowest: float, highest: float, decimals: int) -> Scale:
    return Scale(median, spread, lowest, highest, decimals, is_log=True)


_CELLS = "Hematology"
_GAS = "Blood Gas"

LABS = (
    _lab("sodium", 50983, "Sodium", "2951-2", "mEq/L", Scale(139, 3.5, 105, 175, 0), (133, 145), (0.88, 0.6)),
    _lab("potassium", 50971, "Potassium", "2823-3", "mEq/L", Scale(4.2, 0.5, 2, 8.5, 1), (3.3, 5.1), (0.88, 0.6)),
    _lab("chloride", 50902, "Chloride", "2075-0", "mEq/L", Scale(103, 4.5, 70, 135, 0), (96, 108), (0.86, 0.6)),
    _lab("bicarbonate", 50882, "Bicarbonate", "1963-8", "mEq/L", Scale(25.5, 3.6, 5, 50, 0), (22, 32), (0.86, 0.6)),
    _lab("anion_gap", 50868, "Anion Gap", "1863-0", "mEq/L", Scale(13.5, 2.8, 3, 40, 0), (8, 20), (0.84, 0.5)),
    _lab("urea", 51006, "Urea Nitrogen", "3094-0", "mg/dL", _log(19, 0.40, 2, 250, 0), (6, 20), (0.87, 0.6)),
    _lab(
        "creatinine", 50912, "Creatinine", "2160-0", "mg/dL", _log(0.95, 0.30, 0.1, 20, 1), (0.4, 1.2), (0.87, 0.6),
        female=-0.5,
    ),
    _lab("glucose", 50931, "Glucose", "2345-7", "mg/dL", _log(108, 0.22, 30, 900, 0), (70, 105), (0.86, 0.6)),
    _lab("calcium", 50893, "Calcium, Total", "2000-8", "mg/dL", Scale(8.8, 0.6, 4, 15, 1), (8.4, 10.3), (0.70, 0.4)),
    _lab("magnesium", 50960, "Magnesium", "2601-3", "mg/dL", Scale(2.0, 0.25, 0.5, 5, 1), (1.6, 2.6), (0.72, 0.5)),
    _lab("phosphate", 50970, "Phosphate", "2777-1", "mg/dL", Scale(3.5, 0.8, 0.5, 12, 1), (2.7, 4.5), (0.68, 0.4)),
    _lab("albumin", 50862, "Albumin", "1751-7", "g/dL", Scale(3.6, 0.5, 1, 6, 1), (3.4, 4.8), (0.35, 0.08)),
    _lab("bilirubin", 50885, "Bilirubin, Total", "1975-2", "mg/dL", _log(0.6, 0.5, 0.1, 50, 1), (0, 1.5), (0.35, 0.1)),
    _lab(
        "alt", 50861, "Alanine Aminotransferase (ALT)", "1742-6", "IU/L", _log(26, 0.6, 3, 9000, 0), (0, 40),
        (0.35, 0.1),
    ),
    _lab(
        "ast", 50878, "Asparate Aminotransferase (AST)", "1920-8", "IU/L", _log(28, 0.55, 4, 9000, 0), (0, 40),
        (0.35, 0.1),
    ),
    _lab("alp", 50863, "Alkaline Phosphatase", "6768-6", "IU/L", _log(80, 0.35, 10, 2000, 0), (39, 117), (0.33, 0.08)),
    _lab(
        "ldh", 50954, "Lactate Dehydrogenase (LD)", "2532-0", "IU/L", _log(220, 0.32, 50, 9000, 0), (94, 250),
        (0.2, 0.05),
    ),
    _lab("ggt", 50927, "Gamma Glutamyltransferase", "2324-2", "IU/L", _log(30, 0.7, 3, 3000, 0), (8, 61), (0.05, 0.0)),
    _lab(
        "wbc", 51301, "White Blood Cells", "804-5", "K/uL", _log(8.8, 0.32, 0.1, 150, 1), (4, 11), (0.88, 0.55),
        category=_CELLS,
    ),
    _lab(
        "hemoglobin", 51222, "Hemoglobin", "718-7", "g/dL", Scale(12.4, 1.6, 3, 20, 1), (12, 18), (0.88, 0.55),
        female=-0.6, category=_CELLS,
    ),
    _lab(
        "platelets", 51265, "Platelet Count", "777-3", "K/uL", _log(220, 0.33, 5, 1500, 0), (150, 440), (0.88, 0.55),
        category=_CELLS,
    ),
    _lab("rdw", 51277, "RDW", "788-0", "%", Scale(14.3, 1.3, 10, 30, 1), (10.5, 15.5), (0.86, 0.45), category=_CELLS),
    _lab("mcv", 51250, "MCV", "787-2", "fL", Scale(89.5, 5.5, 55, 130, 0), (82, 98), (0.86, 0.45), category=_CELLS),
    _lab("inr", 51237, "INR(PT)", "5895-7", None, _log(1.12, 0.14, 0.7, 15, 1), (0.9, 1.2), (0.6, 0.35),
         category=_CELLS),
    _lab("ptt", 51275, "PTT", "3173-2", "sec", _log(29, 0.18, 15, 150, 1), (22, 35), (0.55, 0.3), category=_CELLS),
    _lab("neutrophils", 51256, "Neutrophils", "761-7", "%", Scale(69, 10, 2, 98, 1), (50, 70), (0.45, 0.1),
         category=_CELLS),
    _lab("lymphocytes", 51244, "Lymphocytes", "731-0", "%", Scale(20, 8, 1, 80, 1), (18, 42), (0.45, 0.1),
         category=_CELLS),
    _lab("eosinophils", 51200, "Eosinophils", "711-2", "%", _log(1.6, 0.7, 0.1, 40, 1), (0, 4), (0.45, 0.1),
         category=_CELLS),
    _lab("fibrinogen", 51214, "Fibrinogen, Functional", "3255-7", "mg/dL", _log(330, 0.3, 40, 1500, 0), (150, 400),
         (0.08, 0.03), category=_CELLS),
    _lab("lactate", 50813, "Lactate", "32693-4", "mmol/L", _log(1.5, 0.35, 0.3, 25, 1), (0.5, 2), (0.3, 0.12),
         category=_GAS),
    _lab("po2", 50821, "pO2", "11556-8", "mm Hg", _log(95, 0.28, 20, 600, 0), (85, 105), (0.25, 0.15), category=_GAS),
    _lab("pco2", 50818, "pCO2", "11557-6", "mm Hg", _log(39, 0.15, 10, 150, 0), (35, 45), (0.25, 0.15), category=_GAS),
    _lab("carboxyhemoglobin", 50805, "Carboxyhemoglobin", "20563-3", "%", _log(1.2, 0.5, 0.1, 30, 1), (0, 3),
         (0.06, 0.0), category=_GAS),
    _lab("crp", 50889, "C-Reactive Protein", "1988-5", "mg/L", _log(10, 1.0, 0.1, 500, 1), (0, 5), (0.12, 0.03)),
    _lab("nt_probnp", 50963, "NTproBNP", "33762-6", "pg/mL", _log(700, 1.1, 5, 70_000, 0), (0, 450), (0.12, 0.0)),
    _lab("troponin_t", 51003, "Troponin T", "6598-7", "ng/mL", _log(0.02, 0.8, 0.01, 25, 2), (0, 0.01), (0.25, 0.1)),
    _lab("ck_mb", 50911, "Creatine Kinase, MB Isoenzyme", "6773-6", "ng/mL", _log(3.2, 0.5, 1, 500, 0), (0, 10),
         (0.25, 0.1)),
    _lab("ldl", 50905, "Cholesterol, LDL, Calculated", "2090-9", "mg/dL", Scale(98, 28, 10, 350, 0), (0, 129),
         (0.18, 0.0)),
    _lab("hdl", 50904, "Cholesterol, HDL", "2085-9", "mg/dL", _log(46, 0.25, 8, 150, 0), (41, 150), (0.18, 0.0),
         female=0.6),
    _lab("triglycerides", 51000, "Triglycerides", "1644-4", "mg/dL", _log(115, 0.42, 15, 3000, 0), (0, 149),
         (0.19, 0.0)),
    _lab("hba1c", 50852, "% Hemoglobin A1c", "4548-4", "%", _log(5.7, 0.10, 3, 18, 1), (4.8, 5.9), (0.15, 0.0)),
    _lab("tsh", 50993, "Thyroid Stimulating Hormone", "3016-3", "uIU/mL", _log(1.9, 0.6, 0.01, 100, 2), (0.27, 4.2),
         (0.17, 0.0)),
    _lab("ferritin", 50924, "Ferritin", "2276-4", "ng/mL", _log(160, 0.8, 3, 5000, 0), (30, 400), (0.14, 0.0)),
    _lab("iron", 50952, "Iron", "2498-4", "ug/dL", _log(65, 0.45, 5, 350, 0), (45, 160), (0.14, 0.0)),
    _lab("b12", 51010, "Vitamin B12", "2170-9", "pg/mL", _log(480, 0.42, 50, 2000, 0), (240, 900), (0.12, 0.0)),
    _lab("folate", 50925, "Folate", "2284-8", "ng/mL", _log(11, 0.4, 1, 20, 1), (3, 20), (0.11, 0.0)),
    _lab("homocysteine", 50945, "Homocysteine", "13965-9", "umol/L", _log(11, 0.32, 2, 100, 1), (4.5, 12.4),
         (0.05, 0.0)),
    _lab("cortisol", 50909, "Cortisol", "2143-6", "ug/dL", _log(15, 0.45, 0.5, 100, 1), (2, 20), (0.06, 0.0)),
    _lab("pth", 50965, "Parathyroid Hormone", "2731-8", "pg/mL", _log(52, 0.45, 3, 2500, 0), (15, 65), (0.08, 0.0)),
    _lab("uric_acid", 51007, "Uric Acid", "3084-1", "mg/dL", Scale(5.9, 1.5, 0.5, 16, 1), (3.4, 7), (0.08, 0.0),
         female=-0.5),
    _lab("cea", 50900, "Carcinoembyronic Antigen (CEA)", "2039-6", "ng/mL", _log(2.1, 0.55, 0.5, 2000, 1), (0, 4),
         (0.05, 0.0)),
    _lab("urine_wbc", 51516, "WBC", "5821-4", "#/hpf", _log(3, 0.9, 0, 500, 0), (0, 5), (0.45, 0.03), fluid="Urine",
         category=_CELLS),
    _lab("urine_albumin", 51070, "Albumin/Creatinine, Urine", "14958-3", "mg/g", _log(20, 0.9, 0.5, 9000, 1), (0, 30),
         (0.08, 0.0), fluid="Urine"),
)  # fmt: skip

# Of outpatient visits; within an intensive-care stay there are charts instead (icu.py).
CLINIC = (
    Test("systolic", "8480-6", "mm[Hg]", Scale(126, 13, 60, 250, 0), (90, 140), 0.45),
    Test("diastolic", "8462-4", "mm[Hg]", Scale(75, 9, 30, 150, 0), (60, 90), 0.45),
    Test("heart_rate", "8867-4", "/min", Scale(76, 11, 30, 200, 0), (60, 100), 0.40),
    Test("respiratory_rate", "9279-1", "/min", Scale(16.5, 2.2, 6, 50, 0), (12, 20), 0.20),
    Test("spo2", "59408-5", "%", Scale(97.2, 1.5, 60, 100, 0), (94, 100), 0.20),
    Test("temperature", "8310-5", "Cel", Scale(36.7, 0.35, 33, 42, 1), (36.1, 37.5), 0.30),
    Test("bmi", "39156-5", "kg/m2", Scale(26.5, 2.2, 12, 70, 1), (18.5, 25), 0.25),
)

# Common to all populations, unless the disease's own table below says what the test hangs on.
COMMON = (
    Link("systolic", "hypertension", 0.8),
    Link("diastolic", "hypertension", 0.5),
    Link("ldl", "lipids", 0.8, 0.15),
    Link("triglycerides", "lipids", 0.8, 0.15),
    Link("hdl", "obesity", -0.5),
    Link("bmi", "obesity", 2.2, 0.15),
    Link("eosinophils", "asthma", 0.8, 0.10),
    Link("tsh", "thyroid", 1.2, 0.20),
    Link("ck_mb", "ischemic", 0.6, 0.15),
    Link("inr", "afib", 1.5, 0.25),
    Link("heart_rate", "afib", 0.7),
    Link("magnesium", "reflux", -0.5),
    Link("ferritin", "anemia", -1.0, 0.20),
    Link("iron", "anemia", -1.0, 0.20),
    Link("hemoglobin", "anemia", -1.2),
    Link("cea", "cancer", 1.2, 0.15),
    Link("ldh", "cancer", 0.7, 0.10),
    Link("alp", "cancer", 0.5),
    Link("pth", "osteoporosis", 0.6, 0.05),
    Link("b12", "neuropathy", -0.7, 0.10),
    Link("creatinine", "kidney_injury", 1.5),
    Link("urea", "kidney_injury", 1.2),
    Link("wbc", "urinary_infection", 1.0),
    Link("urine_wbc", "urinary_infection", 1.5, 0.40),
)

# The disease's own: its stage, its moderator disease, its trigger events.
LINKS = {
    "heart_failure": (
        Link("nt_probnp", "stage", 1.0, 0.25),
        Link("sodium", "stage", -0.5),
        Link("albumin", "stage", -0.5, 0.15),
        Link("rdw", "stage", 0.5),
        Link("bilirubin", "stage", 0.4, 0.10),
        Link("glucose", "moderator", 1.2),
        Link("hba1c", "moderator", 1.5, 0.25),
        Link("troponin_t", "trigger_a", 1.5, 0.45),
        Link("po2", "trigger_b", -1.0, 0.30),
        Link("lactate", "trigger_b", 0.8, 0.25),
        Link("spo2", "trigger_b", -1.0),
        Link("respiratory_rate", "stage", 0.4),
    ),
    "kidney": (
        Link("creatinine", "stage", 1.0),
        Link("urea", "stage", 0.8),
        Link("phosphate", "stage", 0.5, 0.10),
        Link("hemoglobin", "stage", -0.5),
        Link("bicarbonate", "stage", -0.4),
        Link("pth", "stage", 0.8, 0.12),
        Link("glucose", "moderator", 1.2),
        Link("hba1c", "moderator", 1.5, 0.25),
        Link("urine_albumin", "moderator", 1.0, 0.20),
        Link("lactate", "trigger_a", 0.8, 0.20),
        Link("sodium", "trigger_a", 0.8),
        Link("potassium", "trigger_b", 1.0),
        Link("uric_acid", "trigger_b", 1.0, 0.15),
    ),
    "copd": (
        Link("pco2", "stage", 1.0, 0.20),
        Link("bicarbonate", "stage", 0.7),
        Link("chloride", "stage", -0.4),
        Link("spo2", "stage", -0.7, 0.15),
        Link("respiratory_rate", "stage", 0.5, 0.10),
        Link("carboxyhemoglobin", "moderator", 1.5, 0.10),
        Link("lymphocytes", "trigger_a", 0.8, 0.15),
        Link("temperature", "trigger_a", 1.0, 0.20),
        Link("po2", "trigger_b", -1.0, 0.30),
        Link("neutrophils", "trigger_b", 0.9, 0.20),
        Link("crp", "trigger_b", 1.2, 0.25),
    ),
    "amnesia": (
        Link("b12", "stage", -0.7, 0.20),
        Link("homocysteine", "stage", 0.9, 0.15),
        Link("folate", "stage", -0.5, 0.15),
        Link("mcv", "moderator", 0.8),
        Link("ggt", "moderator", 1.3, 0.15),
        Link("cortisol", "trigger_a", 0.8, 0.10),
        Link("fibrinogen", "trigger_b", 0.8, 0.15),
        Link("crp", "trigger_b", 0.8, 0.20),
    ),
}
