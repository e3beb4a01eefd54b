"""P(first coded at a visit) in the state of highest risk: the roots that give each cohort the paper's prevalence.

Printed by `python -m ehrlab.simulation.sequences.table --solve`; a test solves them again.
"""

AT_VISIT = {
    "septicemia": 0.09268755038624187,
    "pneumonia": 0.06650657641251433,
    "respiratory_failure": 0.11775162615271287,
    "shock": 0.10282801743700615,
    "acute_myocardial_infarction": 0.023412882767461094,
    "conduction_disorders": 0.01056277264178642,
    "dysrhythmias": 0.032441279581441614,
    "diabetes": 0.0850288799002186,
    "lipid_disorders": 0.012224164003980627,
    "surgical_complications": 0.03187017764708063,
    "pleurisy_pneumothorax": 0.03391159843256271,
    "gastrointestinal_hemorrhage": 0.04447628611543281,
    "fluid_electrolyte": 0.09731088052622554,
    "acute_renal_failure": 0.058279846480635306,
    "sickle_cell": 0.04063018355254521,
    "acute_cerebrovascular": 0.03708755088370964,
}
