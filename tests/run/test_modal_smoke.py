"""Models of several modalities from raw tables to a report at toy size: MedHMP at its three levels, MEDFuse, rivals."""

import json

import polars as pl
import pytest

from ehrlab.report.collect import group_runs
from ehrlab.report.runs import load_runs
from tiny_language import save_llama

FEW_EPOCHS = tuple(f"training.phases.{name}.max_epochs=1" for name in ("stay", "admission", "finetune"))
MEDHMP = ("model=medhmp", "model.embed_dim=8", "notes.max_tokens=8", *FEW_EPOCHS)
MEDFUSE = (
    *("model=medfuse", "protocol=medfuse_tiny", "text.max_tokens=16", "model.mltm.depth=2", "model.mltm.width=8"),
    *("training.phases.labs.max_epochs=1", "training.max_epochs=1"),
)
CASES = {
    "medhmp, stay": (*MEDHMP, "task=mortality_48h", "baselines.models=[f_cnn]"),
    "medhmp, admission": (*MEDHMP, "task=readmission_30d", "baselines.models=[notes_mlp]"),
    "medhmp, patient": (*MEDHMP, "task=heart_failure", "model.body.embed_dim=8"),
    "medhmp, patient, from scratch": (*MEDHMP, "task=heart_failure", "model.body.embed_dim=8", "model.pretrain=[]"),
    "medfuse": (*MEDFUSE, "task=ten_conditions", "baselines.models=[text_tfidf]"),
}


@pytest.mark.parametrize("case", CASES)
def test_runs_from_raw_tables_to_a_report(cli, results, case):
    done = cli(*CASES[case], "data=toy", "trainer=smoke")
    assert (done.code, done.err.replace("\n", "")[-300:] if done.code else "") == (0, "")
    assert "SIMULATED" in done.out
    runs = list(results.glob("toy/*/*/*/seed=0"))
    assert len(runs) == 1 + ("baselines" in " ".join(CASES[case]))
    for run in runs:
        predictions = pl.read_parquet(run / "predictions.parquet")
        keys = [name for name in ("subject_id", "prediction_time", "label") if name in predictions.columns]
        assert not predictions.select(keys).is_duplicated().any()
        assert predictions["predicted_boolean_probability"].is_between(0, 1).all()
        metrics = json.loads((run / "metrics.json").read_text())
        assert 0 <= metrics["held_out"]["pr_auc"]["value"] <= 1
        assert len(metrics.get("labels", {})) == (10 if "medfuse" in case else 0)


def test_ablations_stand_beside_the_model_with_what_was_changed_in_it(cli, results):
    options = (*MEDFUSE, "task=ten_conditions", "data=toy", "trainer=smoke", "model.lambda_mi=0.2")
    done = cli(*options, "baselines.models=[medfuse medfuse/no_disentangle,labs_mlp]")
    assert done.code == 0, done.err[-300:]
    (group,) = group_runs(load_runs([path.parent for path in results.glob("toy/*/*/*/seed=0/DONE")])[0])
    chosen = {row.name: row.runs[0].config["model"] for row in group.rows}
    starts = (
        "medfuse lambda_mi=0.2 ",
        "medfuse medfuse/no_disentangle lambda_mi=0.2 ",
        "labs_mlp training.max_epochs=1",
    )
    (whole,), (without,), (_,) = ([name for name in chosen if name.startswith(start)] for start in starts)
    assert (chosen[whole]["disentangle"], chosen[without]["disentangle"]) == (True, False)
    assert len(list(results.glob("phases/notes-*/DONE"))) == 1  # the language model is tuned once
    refused = cli(*options, "baselines.models=[medfuse medfuse/no_labtext]")
    assert refused.code != 0
    assert "'medfuse medfuse/no_labtext', which changes text. Run it by itself" in " ".join(refused.err.split())


def test_what_one_hospital_taught_is_taken_to_another(cli, results):
    """Table 11: weights of the pretraining, vocabularies of the data that it saw, another hospital's patients."""
    first = cli(*MEDHMP, "task=mortality_48h", "data=toy", "trainer=smoke")
    assert first.code == 0, first.err[-300:]
    (provenance,) = results.glob("toy/*/*/*/seed=0/provenance.json")
    stores = json.loads(provenance.read_text())["stores"]
    (weights,) = results.glob("phases/admission-*")
    vocabularies = tuple(f"{name}.vocabulary={stores[name]}" for name in ("stays", "codes"))
    taken = (f"model.pretrained={weights}", *vocabularies)
    again = cli(*MEDHMP, *taken, "task=shock_48h", "data=toy", "data.simulation.seed=7", "trainer=smoke")
    assert again.code == 0, again.err[-300:]
    assert len(list(results.glob("phases/*/DONE"))) == 2  # none was trained in the second hospital
    (run,) = results.glob("toy/shock_48h/*/*/seed=0")
    assert [phase.name for phase in (run / "phases").iterdir()] == ["finetune"]
    visits = (*MEDHMP, "model.body.embed_dim=8", "data=trinetx", "data.simulation.num_patients=400", "trainer=smoke")
    coded = cli(*visits, "task=copd", taken[0], f"codes.vocabulary={stores['codes']}")  # visits, no admissions
    assert coded.code == 0, coded.err[-300:]
    assert "in the vocabulary of diagnoses" in coded.out
    assert "Give the vocabulary of data that have them" in " ".join(cli(*visits, "task=copd", taken[0]).err.split())
    lost = cli(*MEDHMP, taken[0], "task=shock_48h", "data=toy", "data.simulation.seed=8", "trainer=smoke")
    assert lost.code != 0  # without the first hospital's vocabularies the weights do not fit
    assert "Give the vocabularies of the data that it was trained on" in " ".join(lost.err.split()), lost.err[-600:]


def test_models_that_read_different_tables_are_compared_on_the_same_samples(cli, results):
    """Each job of a sweep reads what its model needs; one column of the report must hold them all."""
    jobs = (("model=notes_mlp", "notes.max_tokens=8"), (*MEDHMP, "model.pretrain=[]"))
    for job in jobs:
        done = cli(*job, "task=readmission_30d", "data=toy", "trainer=smoke")
        assert done.code == 0, done.err[-300:]
    runs = load_runs([path.parent for path in results.glob("toy/*/*/*/seed=0/DONE")])[0]
    assert len({run.provenance["data"] for run in runs}) == len(jobs)
    (group,) = group_runs(runs)
    assert {row.name.split()[0] for row in group.rows} == {"notes_mlp", "medhmp"}


def test_pretraining_is_shared_by_the_tasks_and_by_what_is_pretrained(cli, results):
    tasks = [("task=mortality_48h",), ("task=shock_48h",), ("task=shock_48h", "model.pretrain=[stay]")]
    patients = ("task=heart_failure", "model.body.embed_dim=8")
    for change in (*tasks, patients):
        done = cli(*MEDHMP, *change, "data=toy", "trainer=smoke")
        assert done.code == 0, done.err[-300:]
    assert len(list(results.glob("phases/stay-*/DONE"))) == 1
    assert len(list(results.glob("phases/admission-*/DONE"))) == 1
    assert len(list(results.glob("toy/*/*/*/seed=0/DONE"))) == 4


def test_two_language_models_of_one_tokenizer_are_two_configurations(cli, results, tmp_path):
    """What is stored of a text are ids; the weights that read them are part of a run's identity."""
    command = ("model=text_frozen", "protocol=medfuse_tiny", "text.max_tokens=16", "training.max_epochs=1", "data=toy")
    for seed in (0, 1):
        llama = save_llama(tmp_path / f"llama{seed}", seed)
        done = cli(*command, "trainer=smoke", "task=ten_conditions", f"text.model={llama}")
        assert done.code == 0, done.err[-300:]
        assert "training text_frozen" in done.out
    assert len(list(results.glob("toy/*/*/*/seed=0/DONE"))) == 2


def test_a_modality_that_no_sample_has_seen_is_refused(cli, results):
    shorter = cli("model=f_cnn", "task=mortality_48h", "task.hours=24", "data=toy", "trainer=smoke")
    assert "error: stays: expected some that are known when task 'mortality_48h' asks, found none" in shorter.err
    assert "set stays.hours to the task's hours" in shorter.err
    early = cli("model=notes_mlp", "task=mortality_48h", "notes.max_tokens=8", "data=toy", "trainer=smoke")
    assert "error: notes: expected some that are known when task 'mortality_48h' asks, found none" in early.err
    assert not list(results.rglob("DONE"))
