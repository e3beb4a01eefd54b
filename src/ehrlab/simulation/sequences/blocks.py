"""Nine blocks with the sixteen cohorts of RLTF (AAAI-25 GenAI4Health, Table 4), in numbers.

Codes of the cohorts are those that the paper prints, and all of them. Eight are in no list of FY2024 because they have
been divided since (`codes.RETIRED`); AMI's are printed with a 1 for the I (12109 for I21.09). Two sets are not what
their names say, and stay: `sickle_cell` is D57.3, the *trait*; `surgical_complications` holds D64.81 (anemia due to
chemotherapy) and Z28.3 (underimmunisation), which single-level CCS puts there.

Prevalences are the paper's. Everything else is made up, with plausible courses: how long states last, what they show.
The strength of the signals was set on the exact oracle alone (docs/simulation_sequences.md); no model was run before.
"""

from __future__ import annotations

import hashlib

from ehrlab.simulation.sequences.commons import DIAGNOSES, DRUGS, EVALUATIONS, SERVICES
from ehrlab.simulation.sequences.solved import AT_VISIT
from ehrlab.simulation.sequences.spec import Block, Signal, Spec, Target
from ehrlab.simulation.spec import BLOCK_SIZE


def _target(
    cohort: str,
    name: str,
    percent: float,
    relative: tuple[float, ...],
    again: float,
    codes: str,
    in_hospital: bool = False,
) -> Target:
    prevalence = round(percent / 100.0, 6)
    return Target(cohort, name, prevalence, relative, AT_VISIT[cohort], again, tuple(codes.split()), in_hospital)


def _signal(name: str, coded: tuple[float, ...], codes: str, in_hospital: bool = False) -> Signal:
    return Signal(name, coded, tuple(codes.split()), in_hospital)


INFECTION = Block(
    "infection",
    ("well", "susceptible", "local", "systemic", "critical"),
    moves=(
        (0, 1, 0.00018), (0, 2, 0.0004), (1, 0, 0.002), (1, 2, 0.012), (2, 1, 0.04), (2, 0, 0.03), (2, 3, 0.007),
        (3, 1, 0.05), (3, 4, 0.02), (4, 3, 0.06), (4, 1, 0.04),
    ),
    signals=(
        _signal("immunity", (0.008, 0.22, 0.18, 0.22, 0.20), "Z79.52 D84.9 D70.9 Z94.0"),
        _signal("local", (0.03, 0.06, 0.45, 0.40, 0.30), "N39.0 L03.90 J20.9 L03.115 J06.9"),
        _signal("fever", (0.012, 0.02, 0.12, 0.45, 0.50), "R50.9 D72.829 R65.10"),
        _signal("collapse", (0.008, 0.012, 0.03, 0.12, 0.55), "R41.82 I95.9 R65.11", True),
        _signal("oral drug", (0.03, 0.05, 0.40, 0.20, 0.10), "drug:amoxicillin drug:azithromycin drug:cephalexin"),
        _signal("iv drug", (0.002, 0.006, 0.04, 0.40, 0.55), "drug:vancomycin drug:ceftriaxone drug:piperacillin"),
        _signal("culture", (0.004, 0.01, 0.08, 0.40, 0.45), "cpt:87040 cpt:87086"),
        _signal("critical care", (0.001, 0.001, 0.003, 0.04, 0.45), "cpt:99291 pcs:02HV33Z pcs:5A1945Z", True),
        _signal("pressor", (0.0005, 0.0005, 0.001, 0.01, 0.35), "drug:norepinephrine", True),
    ),
    targets=(
        _target("septicemia", "Septicemia Except In Labor", 0.871, (0.001, 0.006, 0.06, 1.0, 1.0), 0.20,
                "A41.9 R65.20 R78.81 A41.51 A41.01 A41.50 A41.89", True),
        _target("pneumonia", "Pneumonia Except That Caused By Tuberculosis Or Sexually Transmitted Disease", 1.611,
                (0.004, 0.02, 0.30, 1.0, 0.8), 0.15, "J18.9 J18.1 J15.9 J18.0 J12.9 J15.6 J15.8 J16.8 J17"),
        _target("respiratory_failure", "Respiratory Failure; Insufficiency; Arrest Adult", 1.167,
                (0.002, 0.01, 0.06, 0.45, 1.0), 0.25, "J96.00 J96.10 Z99.81 J96.90 J96.20 J80 Z99.11", True),
        _target("shock", "Shock", 0.341, (0.0005, 0.002, 0.012, 0.12, 1.0), 0.15, "R65.21 R57.9 R57.0 R57.8", True),
    ),
)  # fmt: skip

HEART = Block(
    "heart",
    ("well", "coronary", "rhythm", "unstable"),
    moves=(
        (0, 1, 0.00014), (0, 2, 0.00010), (0, 3, 0.000005), (1, 2, 0.0003), (1, 3, 0.0016), (2, 3, 0.0004),
        (3, 1, 0.05), (3, 2, 0.01),
    ),
    signals=(
        _signal("coronary", (0.008, 0.40, 0.12, 0.50), "I25.10 Z95.5 I25.2 Z95.1"),
        _signal("chest pain", (0.03, 0.06, 0.04, 0.45), "R07.9 I20.0 R07.89 I24.9 R94.39"),
        _signal("rhythm", (0.03, 0.06, 0.20, 0.12), "R55 R42 I51.7 I34.0 R94.31"),
        _signal("anticoagulant", (0.006, 0.02, 0.30, 0.08), "Z79.01 drug:apixaban drug:warfarin"),
        _signal("antianginal", (0.006, 0.18, 0.10, 0.40), "drug:nitroglycerin drug:clopidogrel"),
        _signal("electrocardiogram", (0.03, 0.12, 0.30, 0.35), "cpt:93000 cpt:93306 cpt:93224"),
        _signal("catheter", (0.0005, 0.01, 0.004, 0.15), "cpt:93458 pcs:4A023N7 pcs:027034Z", True),
    ),
    targets=(
        _target("acute_myocardial_infarction", "Acute Myocardial Infarction", 0.524, (0.003, 0.04, 0.03, 1.0), 0.15,
                "I21.4 I21.3 I21.19 I21.09 I21.29", True),
        _target("conduction_disorders", "Conduction Disorders", 1.767, (0.01, 0.12, 1.0, 0.30), 0.30,
                "Z95.0 I44.7 I45.10 Z95.810 I44.0 Z45.018 I44.2 Z45.02 I45.2 I44.1 I45.9 I44.30 I44.69 I45.4 I45.81 "
                "I45.89 Z95.9 Z95.818"),
        _target("dysrhythmias", "Cardiac Dysrhythmias", 6.643, (0.04, 0.20, 1.0, 0.40), 0.30,
                "I48.91 R00.2 R00.0 I49.9 R00.1 I47.1 I48.92 I47.2 I49.1 I49.49 I47.9"),
    ),
)  # fmt: skip

METABOLIC = Block(
    "metabolic",
    ("well", "lipids", "resistant", "diabetic"),
    moves=((0, 1, 0.00018), (0, 2, 0.0003), (1, 2, 0.0008), (1, 0, 0.0008), (2, 1, 0.0004), (2, 3, 0.0020)),
    signals=(
        _signal("obesity", (0.05, 0.10, 0.25, 0.22), "E66.9 Z68.35 R63.5 Z68.41"),
        _signal("family", (0.006, 0.012, 0.06, 0.05), "Z83.3 Z83.438 R03.0"),
        _signal("thirst", (0.008, 0.008, 0.05, 0.14), "R35.0 R63.1"),
        _signal("statin", (0.015, 0.25, 0.12, 0.25), "drug:atorvastatin drug:simvastatin drug:rosuvastatin"),
        _signal("insulin", (0.002, 0.003, 0.05, 0.40), "drug:metformin drug:glipizide Z79.4 drug:insulin_glargine"),
        _signal("lipid panel", (0.05, 0.16, 0.12, 0.16), "cpt:80061"),
        _signal("glycated hemoglobin", (0.02, 0.03, 0.15, 0.30), "cpt:83036"),
    ),
    targets=(
        _target("diabetes", "Diabetes Mellitus Without Complication", 11.13, (0.012, 0.02, 0.18, 1.0), 0.45,
                "E11.9 R73.09 R73.01 E10.9 R81 R73.02 E13.9 Z96.41"),
        _target("lipid_disorders", "Disorders Of Lipid Metabolism", 4.857, (0.05, 1.0, 0.40, 0.70), 0.40,
                "E78.5 E78.2 E78.0 E78.1"),
    ),
)  # fmt: skip

SURGERY = Block(
    "surgery",
    ("none", "planned", "recovering", "complicated"),
    moves=((0, 1, 0.0009), (1, 2, 0.08), (1, 0, 0.01), (2, 0, 0.03), (2, 3, 0.005), (3, 2, 0.05)),
    signals=(
        _signal("before", (0.012, 0.50, 0.05, 0.05), "Z01.818 M17.11 K80.20 K40.90 Z01.810"),
        _signal("after", (0.012, 0.03, 0.50, 0.45), "Z98.890 Z47.1 Z48.815 G89.18 Z96.651"),
        _signal("operation", (0.0005, 0.02, 0.12, 0.08), "cpt:47562 cpt:27447 cpt:49505 pcs:0FT44ZZ pcs:0SRD0J9", True),
        _signal("wound", (0.004, 0.005, 0.05, 0.40), "Z48.00 L03.311 L02.211 Z48.03"),
        _signal("analgesic", (0.012, 0.05, 0.35, 0.30), "drug:oxycodone drug:cefazolin"),
        _signal("repair", (0.001, 0.001, 0.008, 0.20), "cpt:97597 cpt:10180"),
    ),
    targets=(
        _target("surgical_complications", "Complications Of Surgical Procedures Or Medical Care", 0.64,
                (0.002, 0.01, 0.15, 1.0), 0.25,
                "T81.4XXA T81.31XA T81.89XA I97.89 K91.89 T88.8XXA R50.82 T81.30XA D64.81 I95.81 J95.811 K94.23 K91.2 "
                "T82.818A I97.3 T88.9XXS Z28.3"),
    ),
)  # fmt: skip

LUNG = Block(
    "lung",
    ("well", "chronic", "pleural"),
    moves=((0, 1, 0.00016), (0, 2, 0.000006), (1, 0, 0.0005), (1, 2, 0.0011), (2, 1, 0.05)),
    signals=(
        _signal("chronic", (0.015, 0.40, 0.30), "J44.9 F17.210 Z87.891 J44.1 J45.909"),
        _signal("breath", (0.03, 0.10, 0.40), "R06.02 R05.9 R06.00"),
        _signal("pleural pain", (0.006, 0.02, 0.35), "R07.81 R07.1 R91.8 R04.2"),
        _signal("inhaler", (0.02, 0.40, 0.30), "drug:albuterol drug:tiotropium drug:salmeterol"),
        _signal("chest film", (0.03, 0.10, 0.40), "cpt:71046 cpt:94060 cpt:71250"),
        _signal("drainage", (0.0003, 0.001, 0.15), "cpt:32555 pcs:0W9930Z pcs:0W9B30Z", True),
    ),
    targets=(
        _target("pleurisy_pneumothorax", "Pleurisy; Pneumothorax; Pulmonary Collapse", 0.516, (0.003, 0.025, 1.0), 0.20,
                "J98.19 J91.8 J93.9 J94.8 R09.1 J86.9 J94.2"),
    ),
)  # fmt: skip

BOWEL = Block(
    "bowel",
    ("well", "prone", "bleeding"),
    moves=((0, 1, 0.0004), (0, 2, 0.00002), (1, 0, 0.003), (1, 2, 0.0025), (2, 1, 0.05)),
    signals=(
        _signal("reflux", (0.03, 0.32, 0.25), "K21.9 K29.70 R10.13 K57.30 K27.9"),
        _signal("blood loss", (0.004, 0.012, 0.35), "D62 R19.5 D50.0"),
        _signal("acid blocker", (0.03, 0.35, 0.45), "drug:omeprazole drug:pantoprazole"),
        _signal("painkiller", (0.02, 0.12, 0.10), "drug:naproxen"),
        _signal("endoscopy", (0.006, 0.04, 0.25), "cpt:45378 cpt:43239 cpt:82270"),
        _signal("transfusion", (0.001, 0.002, 0.12), "cpt:36430 pcs:30233N1", True),
    ),
    targets=(
        _target("gastrointestinal_hemorrhage", "Gastrointestinal Hemorrhage", 1.517, (0.006, 0.04, 1.0), 0.20,
                "K92.1 K92.2 K62.5 K92.0 K22.8 K25.4"),
    ),
)  # fmt: skip

KIDNEY = Block(
    "kidney",
    ("well", "dry", "chronic", "strained", "injured"),
    moves=(
        (0, 1, 0.004), (0, 2, 0.00012), (1, 0, 0.05), (1, 2, 0.001), (1, 4, 0.0006), (2, 3, 0.008), (3, 2, 0.05),
        (3, 4, 0.008), (4, 2, 0.06),
    ),
    signals=(
        _signal("vomiting", (0.015, 0.35, 0.04, 0.15, 0.15), "R11.2 R19.7 K52.9 A09"),
        _signal("chronic", (0.006, 0.01, 0.40, 0.45, 0.40), "N18.9 N18.30 I12.9 R80.9 N18.4"),
        _signal("oliguria", (0.004, 0.015, 0.03, 0.10, 0.40), "R94.4 R33.9 R34"),
        _signal("diuretic", (0.015, 0.03, 0.25, 0.40, 0.30), "drug:furosemide drug:spironolactone"),
        _signal("potassium", (0.006, 0.08, 0.05, 0.20, 0.12), "drug:potassium_chloride"),
        _signal("basic panel", (0.06, 0.25, 0.20, 0.40, 0.45), "cpt:80048 cpt:82565"),
        _signal("dialysis", (0.0003, 0.0005, 0.004, 0.01, 0.15), "cpt:90935 pcs:5A1D70Z", True),
    ),
    targets=(
        _target("fluid_electrolyte", "Fluid And Electrolyte Disorders", 21.5, (0.04, 0.90, 0.20, 1.0, 0.90), 0.25,
                "E86.0 E87.6 E87.1 E87.5 E87.8 E87.2 E87.79 E86.9 E87.0 E86.1 E87.3 E87.4 T78.3XXA"),
        _target("acute_renal_failure", "Acute And Unspecified Renal Failure", 1.319, (0.001, 0.02, 0.02, 0.12, 1.0),
                0.20, "N17.9 N19 N17.0 N17.8", True),
    ),
)  # fmt: skip

HEMOGLOBIN = Block(
    "hemoglobin",
    ("normal", "carrier"),
    moves=(),
    risk="race",
    worsening=(1.0, 1.0),
    congenital=(0.00006, 0.0022),
    signals=(
        _signal("screening", (0.004, 0.05), "Z13.0 Z83.2"),
        _signal("trait", (0.0008, 0.08), "D58.2 D56.3 R71.8"),
        _signal("electrophoresis", (0.0005, 0.05), "cpt:83020 drug:folic_acid"),
    ),
    targets=(_target("sickle_cell", "Sickle Cell Disease", 0.036, (0.0002, 1.0), 0.30, "D57.3"),),
)

BRAIN = Block(
    "brain",
    ("well", "atherosclerotic", "unstable"),
    moves=((0, 1, 0.00012), (0, 2, 0.000006), (1, 2, 0.0014), (2, 1, 0.05)),
    signals=(
        _signal("carotid", (0.004, 0.30, 0.30), "I65.29 Z86.73 I65.23 I70.0"),
        _signal("transient", (0.006, 0.02, 0.35), "G45.9 R20.2 R47.01 R29.810 H53.9"),
        _signal("gait", (0.015, 0.06, 0.15), "R26.89 H53.8"),
        _signal("antiplatelet", (0.03, 0.30, 0.35), "drug:aspirin"),
        _signal("imaging", (0.015, 0.05, 0.35), "cpt:70450 cpt:93880 cpt:70551"),
    ),
    targets=(
        _target("acute_cerebrovascular", "Acute Cerebrovascular Disease", 0.648, (0.003, 0.04, 1.0), 0.20,
                "I67.89 I63.50 I66.9 I61.9 I63.40 I62.9 I63.30 I60.9 I63.239 I62.00", True),
    ),
)  # fmt: skip

RLTF = Spec((INFECTION, HEART, METABOLIC, SURGERY, LUNG, BOWEL, KIDNEY, HEMOGLOBIN, BRAIN))

# Raised when code changes what the same parameters mean; changed parameters show in the digest by themselves.
_REVISION = 1


def _specification() -> str:
    described = repr((BLOCK_SIZE, RLTF, DIAGNOSES, SERVICES, EVALUATIONS, DRUGS))
    return f"sequences-{_REVISION}-{hashlib.sha256(described.encode()).hexdigest()[:12]}"


SPECIFICATION = _specification()
"""Names the population: a cache of simulated tables is stale when it differs."""
