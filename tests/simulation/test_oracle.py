"""The exact risks of whole cohorts: calibrated, ordered by what is known, and at the prior where nothing predicts."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.cohorts.admissions import InHospitalMortality, Readmission
from ehrlab.data.cohorts.first_diagnosis import FirstDiagnosis
from ehrlab.data.cohorts.task import Task
from ehrlab.data.meds import MedsDataset, SplitSettings, build
from ehrlab.data.sources.ids import hash_ids
from ehrlab.data.sources.mimic3 import Mimic3
from ehrlab.data.sources.source import Source
from ehrlab.data.sources.trinetx import open_trinetx
from ehrlab.simulation import spec, write_mimic3, write_trinetx
from ehrlab.simulation.calibration import NUM_BINS, reliability
from ehrlab.simulation.chain import NUM_RISK
from ehrlab.simulation.oracle import write_oracle
from ehrlab.simulation.population import simulate_spec
from ehrlab.simulation.spec import RACES, population
from ehrlab.simulation.strata import Strata, known_age

HEART_FAILURE = FirstDiagnosis("heart_failure", icd9=[r"39891", r"402\d1", r"404\d[13]", r"428\d*"], icd10=[])
KIDNEY = FirstDiagnosis("kidney", icd9=["28521", r"585\d*", "5939", "75310", r"403\d*"], icd10=[])
DEATH, READMISSION = InHospitalMortality("in_hospital_mortality"), Readmission("readmission_30d")
FORECAST = InHospitalMortality("in_hospital_mortality", include_last_admission=False)
KINDS = {FirstDiagnosis: "first_diagnosis", InHospitalMortality: "in_hospital_mortality", Readmission: "readmission"}


def _integers(raw: pl.Series) -> pl.Series:
    return raw.cast(pl.Int64)


def _hashes(raw: pl.Series) -> pl.Series:
    return raw.to_frame("id").select(hash_ids(pl.col("id"))).to_series()


def _question(task: Task) -> dict[str, Any]:
    return {"kind": KINDS[type(task)], **vars(task)}


@pytest.fixture(scope="module", autouse=True)
def shorter_records() -> Iterator[None]:
    """Of three years or less. The laws are the same, and what they cost grows faster than their length.

    The records' own length: benchmarks/calibrate_oracle.py, docs/simulation.md.
    """
    with pytest.MonkeyPatch.context() as patch:
        for name in ("MIMIC", "MIMIC_OUTCOMES"):
            patch.setattr(spec, name, replace(getattr(spec, name), weeks=156))
        kidney = replace(population("kidney", "trinetx").shape, weeks=130)
        patch.setattr(spec, "_TRINETX_OF", {**spec._TRINETX_OF, "kidney": kidney})
        yield


class Populations:
    """Raw tables and MEDS data of a population, each made once."""

    def __init__(self, folder: Path) -> None:
        self._folder, self._made = folder, dict[str, tuple[Path, MedsDataset]]()

    def __call__(self, layout: str, preset: str, num_patients: int, **knobs: Any) -> tuple[Path, MedsDataset]:
        name = "-".join(map(str, (layout, preset, num_patients, *itertools.chain(*sorted(knobs.items())))))
        if name not in self._made:
            root = self._folder / name
            write = write_mimic3 if layout == "mimic" else write_trinetx
            write(root / "raw", preset, num_patients, 0, **knobs)
            read: Callable[..., Source] = Mimic3 if layout == "mimic" else open_trinetx
            source = read(root / "raw", ["diagnoses"])
            build(source, root / "meds", SplitSettings(seed=0, train=0.75, tuning=0.1), True)
            self._made[name] = root / "raw", MedsDataset.open(root / "meds")
        return self._made[name]


@pytest.fixture(scope="module")
def populations(tmp_path_factory: pytest.TempPathFactory) -> Populations:
    return Populations(tmp_path_factory.mktemp("populations"))


def _risks(
    made: tuple[Path, MedsDataset], task: Task, out: Path, modalities: Sequence[str]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Labels, and the exact risk per information set."""
    root, meds = made
    samples = task.cohort(meds).samples
    is_mimic = json.loads((root / "SIMULATED.json").read_text())["layout"] == "mimic3"
    ids = _integers if is_mimic else _hashes
    assert write_oracle(root, _question(task), samples, out / "oracle.parquet", subject_ids=ids, modalities=modalities)
    oracle = pl.read_parquet(out / "oracle.parquet")
    assert oracle.columns[:2] == ["subject_id", "prediction_time"]
    assert oracle.select("subject_id", "prediction_time").equals(samples.select("subject_id", "prediction_time"))
    return samples["boolean_value"].to_numpy(), {name: oracle[name].to_numpy() for name in oracle.columns[2:]}


def _assert_calibrated(label: np.ndarray, risks: Mapping[str, np.ndarray]) -> None:
    for name, risk in risks.items():
        found = reliability(risk, label)
        assert 0.0 <= risk.min() <= risk.max() <= 1.0
        assert abs(found.z_of_all) < 4, name
        assert abs(found.z_of_score) < 4, name
        assert found.chi2 < 40, name  # ten degrees of freedom: one in 50,000 is above


SETS = ["codes", "codes+time", "codes+labs", "codes+notes", "codes+time+labs", "codes+time+notes", "codes+labs+notes"]


def test_first_diagnosis_on_mimic_is_calibrated_and_gains_by_what_is_known(
    populations: Populations, tmp_path: Path
) -> None:
    label, risks = _risks(populations("mimic", "heart_failure", 6_000), HEART_FAILURE, tmp_path, ["labs", "notes"])
    assert list(risks) == [*SETS, "codes+time+labs+notes", "latent"]
    _assert_calibrated(label, risks)
    _assert_ordered(label, risks, [("codes", "codes+labs"), ("codes+time", "codes+time+notes")])
    _assert_ordered(label, risks, [("codes+time", "codes+time+labs+notes"), ("codes+time+labs+notes", "latent")])


def _assert_ordered(label: np.ndarray, risks: Mapping[str, np.ndarray], pairs: list[tuple[str, str]]) -> None:
    for less, more in pairs:
        low, high = (reliability(risks[name], label).average_precision for name in (less, more))
        assert high > low, (less, more)


def test_first_diagnosis_on_trinetx_is_calibrated_and_times_tell(populations: Populations, tmp_path: Path) -> None:
    label, risks = _risks(populations("trinetx", "kidney", 1_600), KIDNEY, tmp_path, ["labs"])
    assert list(risks) == ["codes", "codes+time", "codes+labs", "codes+time+labs", "latent"]
    _assert_calibrated(label, risks)
    _assert_ordered(label, risks, [("codes+time+labs", "latent")])
    # Nobody who knows less can score better in expectation, and the times do tell something.
    gain = _log_score(risks["codes+time"], label) - _log_score(risks["codes"], label)
    assert gain.mean() > -2.0 * gain.std() / np.sqrt(len(gain))
    assert np.abs(risks["codes+time"] - risks["codes"]).max() > 0.05


def _log_score(risk: np.ndarray, label: np.ndarray) -> np.ndarray:
    return np.log(np.where(label, risk, 1.0 - risk))


@pytest.mark.parametrize("task", [DEATH, FORECAST, READMISSION], ids=["death", "death forecast", "readmission"])
def test_outcomes_of_admissions_are_calibrated(task: Task, populations: Populations, tmp_path: Path) -> None:
    label, risks = _risks(populations("mimic", "in_hospital_mortality", 2_000), task, tmp_path, ["notes"])
    _assert_calibrated(label, risks)
    _assert_ordered(label, risks, [("codes+time+notes", "latent")])


def test_without_a_mechanism_everybody_is_at_the_prior(populations: Populations, tmp_path: Path) -> None:
    label, risks = _risks(populations("mimic", "heart_failure", 3_000, null=True), HEART_FAILURE, tmp_path, ["notes"])
    for name, risk in risks.items():
        # Near the record's end it counts how late in it the landmark lies, which no mechanism is needed for.
        assert np.quantile(np.abs(risk - 0.25), 0.8) < 0.01, name
    _assert_calibrated(label, risks)


def test_in_the_visits_own_time_only_their_order_counts(populations: Populations, tmp_path: Path) -> None:
    label, risks = _risks(populations("trinetx", "kidney", 1_200, time=0.0), KIDNEY, tmp_path, [])
    _assert_calibrated(label, risks)
    assert np.abs(risks["codes+time"] - risks["codes"]).max() < 0.02


def test_strata_hold_the_risk_classes_that_the_population_holds() -> None:
    kidney = population("kidney", "trinetx")
    age, is_female, is_black, risk = (
        np.concatenate(parts)
        for parts in zip(
            *(
                (p.age, p.is_female, p.race == RACES.index("black"), p.risk_class)
                for p in (shard.patients for shard in simulate_spec(kidney, 6_000, 1))
            ),
            strict=True,
        )
    )
    year = np.random.default_rng(0).random(len(age))
    shares = Strata(kidney.shape, "trinetx", 5).of(age, year, np.zeros(len(age)), is_female, is_black, risk)
    np.testing.assert_allclose(shares.sum(1), 1.0)
    band = known_age("trinetx", age, year, np.zeros(len(age))) // 5
    for group in ((10, True, False), (12, False, False), (11, False, True)):
        mine = (band == group[0]) & (is_female == group[1]) & (is_black == group[2])
        found = np.bincount(risk[mine], minlength=NUM_RISK) / mine.sum()
        assert (np.abs(found - shares[mine][0]) < 4.5 * np.sqrt(shares[mine][0] / mine.sum()) + 1e-9).all()


def test_what_is_not_known_is_said(populations: Populations, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    root, meds = populations("mimic", "heart_failure", 3_000, null=True)
    samples, out = HEART_FAILURE.cohort(meds).samples, tmp_path / "oracle.parquet"
    caplog.set_level("INFO", logger="ehrlab.simulation")
    other = {"icd9": KIDNEY.icd9}  # of a disease that these tables do not simulate
    for change in ({"kind": "shock"}, {"window": "last_six_months"}, {"lead_days": 60}, other):
        assert not write_oracle(root, _question(HEART_FAILURE) | change, samples, out, subject_ids=_integers)
        assert "no exact risk" in caplog.messages[-1]
        assert not out.exists()
    strangers = samples.with_columns(pl.col("subject_id") + 10**9)
    with pytest.raises(InputError, match="same tables"):
        write_oracle(root, _question(HEART_FAILURE), strangers, out, subject_ids=_integers)
    with pytest.raises(InputError, match="SIMULATED"):
        write_oracle(tmp_path, _question(HEART_FAILURE), samples, out, subject_ids=_integers)


def test_reliability_finds_a_biased_and_an_overconfident_risk() -> None:
    rng = np.random.default_rng(0)
    risk = rng.beta(1.0, 3.0, 20_000)
    label = rng.random(len(risk)) < risk
    good = reliability(risk, label)
    assert max(abs(good.z_of_all), abs(good.z_of_score)) < 4
    assert good.chi2 < 40
    assert len(good.z) == NUM_BINS
    assert reliability(0.9 * risk, label).z_of_all > 4
    sharp = risk**2 / (risk**2 + (1.0 - risk) ** 2)
    assert reliability(sharp, label).z_of_score > 4
