"""Raw tables in the MIMIC-III layout, of any size, for timing: random visits, codes by Zipf's law, no meaning.

The defaults have the shape of MedDiffusion's kidney cohort: 2,000 patients, 39 visits each, 4.7 codes in a visit out
of 8,800.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import polars as pl


@dataclass(frozen=True)
class Size:
    """Rows written."""

    patients: int
    admissions: int
    diagnoses: int
    procedures: int
    prescriptions: int


def write(
    root: Path,
    num_patients: int = 2000,
    mean_visits: float = 39.0,
    mean_codes: float = 4.85,
    num_codes: int = 8800,
    seed: int = 0,
) -> Size:
    """Write PATIENTS, ADMISSIONS, DIAGNOSES_ICD, PROCEDURES_ICD and PRESCRIPTIONS as .csv.gz into `root`.

    A patient's last admission ends in death with probability 1/2 where it held a code that carries risk, else 1/10.
    """
    rng = np.random.default_rng(seed)
    visits = np.maximum(2, rng.poisson(mean_visits, num_patients))
    subject = np.repeat(np.arange(1, num_patients + 1), visits)
    num_admissions = len(subject)
    hadm = 100_000 + np.arange(1, num_admissions + 1)
    is_first = np.diff(subject, prepend=0) > 0
    is_last = np.diff(subject, append=0) != 0
    gaps = np.where(is_first, rng.integers(0, 3650, num_admissions), 1 + rng.geometric(1 / 30, num_admissions))
    total = np.cumsum(gaps)
    days = total - np.maximum.accumulate(np.where(is_first, total - gaps, 0))
    admitted = np.datetime64("2100-01-01T08:00:00") + days.astype("timedelta64[D]")
    discharged = admitted + np.timedelta64(20, "h")

    weight = 1.0 / np.arange(1, num_codes + 1) ** 0.9
    per_visit = 1 + rng.poisson(mean_codes - 1, num_admissions)
    of_visit = np.repeat(np.arange(num_admissions), per_visit)
    code = rng.permutation(num_codes)[rng.choice(num_codes, len(of_visit), p=weight / weight.sum())]
    risky = np.bincount(of_visit, weights=code < num_codes // 50, minlength=num_admissions) > 0
    dies = is_last & (rng.random(num_admissions) < np.where(risky, 0.5, 0.1))
    diagnoses = (
        pl.DataFrame({"visit": of_visit, "code": code})
        .unique(maintain_order=True)
        .with_columns(seq=pl.int_range(1, pl.len() + 1).over("visit"))
    )
    visit = diagnoses["visit"].to_numpy()

    drug = "Drug " + pl.Series(rng.integers(0, 2000, 3 * num_admissions)).cast(pl.String)

    def times(values: np.ndarray) -> pl.Series:
        return pl.Series(values.astype("datetime64[us]")).dt.strftime("%Y-%m-%d %H:%M:%S")

    def save(name: str, **columns: object) -> int:
        table = pl.DataFrame({"ROW_ID": None, **columns}).with_columns(ROW_ID=pl.int_range(1, pl.len() + 1))
        table.write_csv(root / f"{name}.csv.gz", compression="gzip", compression_level=3)
        return table.height

    root.mkdir(parents=True, exist_ok=True)
    people = np.arange(1, num_patients + 1)
    died_at = np.where(dies, discharged, np.datetime64("NaT"))
    last_death = died_at[is_last]
    return Size(
        patients=save(
            "PATIENTS",
            SUBJECT_ID=people,
            GENDER=np.where(rng.random(num_patients) < 0.5, "F", "M"),
            DOB=times(np.datetime64("2030-01-01") + rng.integers(0, 14_600, num_patients).astype("timedelta64[D]")),
            DOD=times(last_death),
            EXPIRE_FLAG=dies[is_last].astype(int),
        ),
        admissions=save(
            "ADMISSIONS",
            SUBJECT_ID=subject,
            HADM_ID=hadm,
            ADMITTIME=times(admitted),
            DISCHTIME=times(discharged),
            DEATHTIME=times(died_at),
            ADMISSION_TYPE="EMERGENCY",
            DISCHARGE_LOCATION=np.where(dies, "DEAD/EXPIRED", "HOME"),
            INSURANCE="Medicare",
            ETHNICITY="WHITE",
            DIAGNOSIS="SEPSIS",
            HOSPITAL_EXPIRE_FLAG=dies.astype(int),
        ),
        diagnoses=save(
            "DIAGNOSES_ICD",
            SUBJECT_ID=subject[visit],
            HADM_ID=hadm[visit],
            SEQ_NUM=diagnoses["seq"],
            ICD9_CODE=(diagnoses["code"] + 10_000).cast(pl.String),
        ),
        procedures=save(
            "PROCEDURES_ICD",
            SUBJECT_ID=np.repeat(subject, 2),
            HADM_ID=np.repeat(hadm, 2),
            SEQ_NUM=np.tile([1, 2], num_admissions),
            ICD9_CODE=pl.Series(rng.integers(0, 1000, 2 * num_admissions)).cast(pl.String).str.zfill(4),
        ),
        prescriptions=save(
            "PRESCRIPTIONS",
            SUBJECT_ID=np.repeat(subject, 3),
            HADM_ID=np.repeat(hadm, 3),
            STARTDATE=times(np.repeat(admitted, 3)),
            ENDDATE=times(np.repeat(discharged, 3)),
            DRUG_TYPE="MAIN",
            DRUG=drug,
            FORMULARY_DRUG_CD=drug,
            NDC="0",
            DOSE_VAL_RX="1",
            DOSE_UNIT_RX="mg",
            ROUTE="PO",
        ),
    )
