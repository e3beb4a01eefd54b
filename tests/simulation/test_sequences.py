"""The sequence population: its laws, its freedom from how many patients are made, and the export that is read back."""

from __future__ import annotations

import json
from dataclasses import fields, is_dataclass
from pathlib import Path

import numpy as np
import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.sources import open_trinetx
from ehrlab.simulation.population import Orders
from ehrlab.simulation.sequences import SPECIFICATION, chain, codes, simulate, write_sequences
from ehrlab.simulation.sequences.blocks import RLTF
from ehrlab.simulation.sequences.oracle import observe
from ehrlab.simulation.sequences.population import Shard, simulate_batch
from ehrlab.simulation.sequences.spec import PLACES
from ehrlab.simulation.spec import BLOCK_SIZE

NUM_PATIENTS = 20_480


@pytest.fixture(scope="module")
def shards() -> list[Shard]:
    return list(simulate(NUM_PATIENTS, seed=3))


def arrays(value: object) -> list[np.ndarray]:
    if isinstance(value, np.ndarray):
        return [value]
    if is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in fields(value) if field.name != "spec"]
        return [array for name in names for array in arrays(getattr(value, name))]
    return []


# ------------------------------------------------------------------------------------------------------ specification
def test_solving_again_gives_the_frozen_numbers() -> None:
    for block in RLTF.blocks:
        for i, target in enumerate(block.targets):
            assert chain.solve(RLTF, block, i) == pytest.approx(target.at_visit, rel=1e-9)
            assert chain.prevalence(RLTF, block, np.array(target.coded)) == pytest.approx(target.prevalence, abs=1e-12)


def test_the_specification_is_frozen() -> None:
    """Fixed before any model was run on it; a change needs a word in docs/decisions.md."""
    assert SPECIFICATION == "sequences-1-3557efc73935"


def test_probabilities_are_probabilities() -> None:
    for block in RLTF.blocks:
        size, risks = len(block.states), len(RLTF.risk_share(block))
        assert 2 <= size <= 5
        assert chain.kernel(block).shape == (risks, size, size)
        assert (chain.kernel(block) >= 0).all()
        np.testing.assert_allclose(chain.kernel(block).sum(2), 1.0)
        for law in (*block.signals, *block.targets):
            assert len(law.coded) == size
            assert 0 < min(law.coded) <= max(law.coded) < 1  # nothing is impossible, so that no filter divides by zero


def test_sixteen_cohorts_have_the_codes_of_the_paper() -> None:
    printed = [code for target in RLTF.targets for code in target.codes]
    assert len(RLTF.targets) == 16
    assert len(printed) == len(set(printed)) == 131
    billable = codes.diagnoses()
    assert {code for code in printed if code not in billable} == set(codes.RETIRED)
    assert billable["D57.3"] == "Sickle-cell trait"


def test_the_vocabulary_has_the_papers_size_and_only_real_codes() -> None:
    words = codes.vocabulary(RLTF)
    pairs = list(zip(words.system, words.code, strict=True))
    assert len(set(pairs)) == len(pairs) == 7_954
    for system, code in pairs:
        if system == codes.ICD10CM:
            assert code in codes.diagnoses() or code in codes.RETIRED
        elif system == codes.ICD10PCS:
            assert code in codes.procedures()
        elif system == codes.CPT:
            assert len(code) == 5
            assert code.isdigit()
    for name in (codes.ICD10PCS, codes.CPT, codes.RXNORM):
        assert words.system.count(name) > 100


def test_nothing_but_a_target_has_a_code_of_its_categories() -> None:
    words = codes.vocabulary(RLTF)
    categories = {code[:3] for target in RLTF.targets for code in target.codes}
    last_target = words.targets[-1].start + words.targets[-1].size
    start = words.background[0].start
    assert last_target == 131
    assert not {code[:3] for code in words.code[start : start + words.background[0].size]} & categories


# ----------------------------------------------------------------------------------------------------------- patients
def test_prevalences_are_the_papers_within_binomial_error(shards: list[Shard]) -> None:
    ever = np.concatenate([_ever(shard) for shard in shards])
    wanted = np.array([target.prevalence for target in RLTF.targets])
    error = np.sqrt(wanted * (1 - wanted) / NUM_PATIENTS)
    assert (np.abs(ever.mean(0) - wanted) < 3.5 * error).all()  # P(one of 16 outside) < 1 %


def _ever(shard: Shard) -> np.ndarray:
    shown = np.concatenate(observe(shard).targets, axis=1)
    out = np.zeros((shard.num_patients, shown.shape[1]), bool)
    np.logical_or.at(out, shard.visits.patient, shown)
    return out


def test_sequences_have_the_papers_length(shards: list[Shard]) -> None:
    visits = np.concatenate([np.bincount(s.visits.patient, minlength=s.num_patients) for s in shards])
    tokens = np.concatenate([np.bincount(s.visits.patient[s.codes.visit], minlength=s.num_patients) for s in shards])
    assert visits.min() >= 1
    assert visits.max() == 48
    assert tokens.mean() == pytest.approx(105, abs=3)
    assert np.mean(tokens > 512) < 0.001


def test_hidden_states_follow_the_exact_chain(shards: list[Shard]) -> None:
    last = np.concatenate([shard.latent.states[:, :, -1] for shard in shards])
    for b, block in enumerate(RLTF.blocks):
        law = np.einsum(
            "c,cs,cst->t", RLTF.risk_share(block), chain.start(RLTF, block), chain.powers(RLTF, block)[:, -1]
        )
        found = np.bincount(last[:, b], minlength=len(law)) / NUM_PATIENTS
        assert (np.abs(found - law) < 4.5 * np.sqrt(law * (1 - law) / NUM_PATIENTS)).all()


def test_visits_are_one_a_week_from_day_0_and_never_empty(shards: list[Shard]) -> None:
    for shard in shards[:3]:
        visits = shard.visits
        first = np.searchsorted(visits.patient, np.arange(shard.num_patients))
        assert (visits.day[first] == 0).all()
        week = visits.day // 7
        same = visits.patient[1:] == visits.patient[:-1]
        assert (week[1:] > week[:-1])[same].all()
        assert ((visits.day + visits.nights) // 7 == week).all()
        diagnoses = np.array(shard.vocabulary.system)[shard.codes.code] == codes.ICD10CM
        assert len(np.unique(shard.codes.visit[diagnoses])) == len(visits.patient)
        key = shard.codes.visit * RLTF.vocabulary_size + shard.codes.code
        assert (np.diff(key) > 0).all()


def test_a_patient_is_the_same_whatever_the_number_of_patients() -> None:
    few, many = list(simulate(BLOCK_SIZE + 76, seed=4)), list(simulate(BLOCK_SIZE + 500, seed=4))
    assert [shard.num_patients for shard in few] == [BLOCK_SIZE, 76]
    for a, b in zip(few, many, strict=True):
        for x, y in zip(arrays(a), arrays(b), strict=True):
            np.testing.assert_array_equal(x, y[: len(x)])
    assert few[1].visits.patient.max() == 75
    assert isinstance(few[1].codes, Orders)


def test_batches_do_not_depend_on_each_other_and_seeds_make_other_patients() -> None:
    in_order = list(simulate(2 * BLOCK_SIZE, seed=9))
    for x, y in zip(arrays(simulate_batch(RLTF, 9, 1)), arrays(in_order[1]), strict=True):
        np.testing.assert_array_equal(x, y)
    other = next(simulate(BLOCK_SIZE, seed=10))
    assert not np.intersect1d(in_order[0].patients.entry, other.patients.entry).size
    assert not np.intersect1d(in_order[0].patients.entry, in_order[1].patients.entry).size


def test_sizes_are_checked_before_a_patient_is_drawn() -> None:
    with pytest.raises(InputError, match="num_patients"):
        simulate(0, seed=0)


# ------------------------------------------------------------------------------------------------------------- export
@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("raw") / "sequences"
    write_sequences(path, BLOCK_SIZE + 60, seed=3)
    return path


def test_the_projects_reader_gives_back_every_token(root: Path, shards: list[Shard]) -> None:
    source = open_trinetx(root, ("diagnoses", "procedures", "drugs"))
    found: dict[int, dict[str, int]] = {}
    events = {table.name: table.frame.collect() for table in source.tables()}
    coded = pl.concat([events[name].select("subject_id", "code") for name in ("diagnoses", "procedures", "drugs")])
    for (subject,), rows in coded.group_by("subject_id"):
        found[int(subject)] = dict(rows["code"].value_counts().iter_rows())
    for shard, patients in ((shards[0], (0, 5, 700)), (shards[1], (59,))):
        for patient in patients:
            index = shard.codes.code[shard.visits.patient[shard.codes.visit] == patient]
            wanted: dict[str, int] = {}
            for i in index:
                code = _meds(shard.vocabulary.system[i], shard.vocabulary.code[i])
                wanted[code] = wanted.get(code, 0) + 1
            assert found[shard.first_patient + patient] == wanted
    assert len(found) == BLOCK_SIZE + 60
    starts = events["encounter"].filter(pl.col("code").str.starts_with("ENCOUNTER_START//"))
    assert set(starts["code"]) == {f"ENCOUNTER_START//{place}" for place in PLACES}
    assert starts["time"].dt.year().min() == 2016


def _meds(system: str, code: str) -> str:
    return {
        codes.ICD10CM: f"DIAGNOSIS//ICD//10//{code}",
        codes.ICD10PCS: f"PROCEDURE//ICD//10//{code}",
        codes.CPT: f"PROCEDURE//CPT//{code}",
        codes.HCPCS: f"PROCEDURE//HCPCS//{code}",
        codes.RXNORM: f"DRUG//RXNORM//{code}",
    }[system]


def test_the_age_band_is_told_by_the_record(root: Path, shards: list[Shard]) -> None:
    patient = pl.read_csv(root / "patient.csv", infer_schema=False)
    entry = (
        pl.read_csv(root / "encounter.csv", infer_schema=False).group_by("patient_id").agg(pl.col("start_date").min())
    )
    rows = patient.join(entry, on="patient_id", how="left", maintain_order="left").head(BLOCK_SIZE)
    age = rows["start_date"].str.slice(0, 4).cast(pl.Int64) - rows["year_of_birth"].cast(pl.Int64)
    band = np.searchsorted([lowest for lowest, _ in RLTF.age_bands[1:]], age.to_numpy(), side="right")
    np.testing.assert_array_equal(band, shards[0].patients.age_band)


def test_fewer_patients_are_the_first_of_more_in_every_table(root: Path, tmp_path: Path) -> None:
    write_sequences(tmp_path / "few", 90, seed=3)
    for table in ("patient", "encounter", "diagnosis", "procedure", "medication_ingredient"):
        few, many = ((path / f"{table}.csv").read_bytes() for path in (tmp_path / "few", root))
        assert many.startswith(few)


def test_the_mark_names_the_population_and_the_folder_must_be_empty(root: Path) -> None:
    mark = json.loads((root / "SIMULATED.json").read_text())
    assert (mark["layout"], mark["preset"], mark["specification"]) == ("trinetx", "sequences", SPECIFICATION)
    with pytest.raises(InputError, match="new or empty"):
        write_sequences(root, 3, seed=0)
