"""What a trained generator is judged by: prompts, continuations, files and what is kept between generators."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import polars as pl
import pytest

from ehrlab.core.batch import Tokens
from ehrlab.core.errors import InputError
from ehrlab.core.model import SequenceGenerator
from ehrlab.evaluation import utility
from ehrlab.evaluation.sequences import read_completions
from ehrlab.models.chiron import Chiron
from ehrlab.run.completion import CompletionSettings, complete, judge_generator, prompts, synthesise, useful
from sequences import BOS, EOS, GENERATOR_SPEC, TOKENS, VISIT, tokens_of
from tiny import GENERATORS, build_generator
from token_data import TokenStub, token_stub

SETTINGS = CompletionSettings(
    cut=2, max_new_tokens=9, num_held_out=50, num_train=12, num_samples=2, num_synthetic=5, num_trees=3, batch_size=7
)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> TokenStub:
    return token_stub(tmp_path_factory.mktemp("tokens"), sizes=(30, 9, 40))


@pytest.fixture(params=GENERATORS)
def model(request: pytest.FixtureRequest) -> SequenceGenerator:
    return build_generator(f"model={request.param}").eval()


def judged(model: SequenceGenerator, data: TokenStub, folder: Path, **settings: Any) -> dict[str, Any]:
    folder.mkdir()
    return judge_generator(
        model, data, SETTINGS, folder, seed=0, device="cpu", num_bootstrap=20, bootstrap_seed=0, **settings
    )


@pytest.fixture
def tokenizer(monkeypatch: pytest.MonkeyPatch) -> None:
    """The stub's ids mean nothing."""

    class Nothing:
        def write(self, path: Path) -> None:
            path.write_text("{}")

    monkeypatch.setattr(TokenStub, "tokenizer", lambda self: Nothing(), raising=False)


def records(*ids: list[int]) -> pl.DataFrame:
    return pl.DataFrame({"subject_id": range(len(ids)), "ids": ids})


@pytest.mark.parametrize(
    ("ids", "cut", "length"),
    [
        ([BOS, 5, VISIT, 9, 10, VISIT, 11, EOS], 1, 5),  # that there is another visit is to be written, too
        ([BOS, 5, VISIT, 9, 10, VISIT, 11, EOS], 2, 4),
        ([BOS, VISIT, 9, 10, VISIT, 11, 12], 1, 6),
        ([BOS, VISIT, 9, VISIT, 10, VISIT, 11], 2, 3),
    ],
)
def test_a_prompt_is_the_record_without_its_last_codes(ids: list[int], cut: int, length: int) -> None:
    assert prompts(records(ids), TOKENS, cut)["length"].to_list() == [length]


def test_a_record_of_no_more_codes_than_the_cut_is_left_out() -> None:
    given = records([BOS, VISIT, 9, 10], [BOS, VISIT, 9, 10, 11], [BOS, 5])
    assert prompts(given, TOKENS, 2)["subject_id"].to_list() == [1]


def test_prompt_and_truth_are_the_record_for_every_generator(model: SequenceGenerator, data: TokenStub) -> None:
    found = complete(model, data, SETTINGS, seed=0, device="cpu")
    whole = pl.concat([data.sequences(split).frame().select("subject_id", "ids") for split in ("train", "held_out")])
    joined = found.join(whole, on="subject_id")
    assert joined.select((pl.concat_list("prompt", "truth") == pl.col("ids")).all()).item()
    assert found["truth"].list.eval(pl.element() >= TOKENS.first_code).list.sum().eq(SETTINGS.cut).all()
    assert found.filter(split="train").height <= SETTINGS.num_train
    assert found["generated"].list.len().max() <= SETTINGS.max_new_tokens
    assert found.filter(split="held_out")["target_probability"].is_between(0, 1).all()
    assert found.filter(split="train")["target_probability"].null_count() == found.filter(split="train").height
    read_completions(found, TOKENS)


def test_the_seed_decides_what_is_written_and_not_which_records_are_continued(
    model: SequenceGenerator, data: TokenStub
) -> None:
    first, again, other = (complete(model, data, SETTINGS, seed=seed, device="cpu") for seed in (0, 0, 1))
    assert first.equals(again)
    assert first.select("subject_id", "split", "prompt", "truth").equals(
        other.select("subject_id", "split", "prompt", "truth")
    )
    if type(model).__name__ != "LSTMGenerator":  # a beam search draws nothing
        assert not first.equals(other)


def test_records_from_nothing_begin_as_training_records_do(model: SequenceGenerator, data: TokenStub) -> None:
    made = synthesise(model, data, SETTINGS, seed=0, device="cpu")
    assert made is not None
    assert made.height == SETTINGS.num_synthetic
    heads = {tuple(ids[: ids.index(VISIT)]) for ids in data.sequences("train").frame()["ids"].to_list()}
    for ids in made["ids"].to_list():
        assert any(tuple(ids[: len(head)]) == head for head in heads)
    assert synthesise(model, data, replace(SETTINGS, num_synthetic=0), seed=0, device="cpu") is None


@pytest.mark.usefixtures("tokenizer")
def test_a_run_leaves_the_files_that_it_was_judged_by(data: TokenStub, tmp_path: Path) -> None:
    metrics = judged(build_generator("model=chiron"), data, tmp_path / "run")
    names = {"completions", "predictions", "synthetic", "utility"}
    assert {path.name for path in (tmp_path / "run").iterdir()} == {f"{n}.parquet" for n in names} | {"tokenizer.json"}
    assert metrics["num_samples"] == pl.read_parquet(tmp_path / "run" / "predictions.parquet").height
    assert metrics["tokens"]["targets"] == TOKENS.targets


class Parrot(Chiron):
    """Goes on with a training record whose next visit comes behind the same prompt, another one each time; or stops."""

    def __init__(self, data: TokenStub) -> None:
        super().__init__(GENERATOR_SPEC, size="tiny")
        self.known = data.sequences("train").frame()["ids"].to_list()

    def generate(self, prompt: Tokens, *args: Any, **settings: Any) -> Tokens:
        found = []
        for ids, real in zip(prompt.ids, prompt.mask):
            begun = ids[real].tolist()
            fits = [record for record in self.known if record[: len(begun) + 1] == [*begun, VISIT]]
            found.append(fits[0] if fits else [*begun, EOS])
            if fits:
                self.known.remove(fits[0])
                self.known.append(fits[0])
        return tokens_of(found)


@pytest.mark.usefixtures("tokenizer")
def test_a_parrot_is_found_out_and_looks_real_though_few_records_are_long_enough_to_be_continued(
    tmp_path: Path,
) -> None:
    data = token_stub(tmp_path, sizes=(300, 5, 250))
    few = replace(SETTINGS, cut=8, num_train=40, num_held_out=200, num_samples=0, num_synthetic=150)
    (tmp_path / "run").mkdir()
    found = judge_generator(
        Parrot(data), data, few, tmp_path / "run", seed=0, device="cpu", num_bootstrap=50, bootstrap_seed=0
    )
    assert found["num_train"] < 15
    assert found["num_samples"] < 75
    assert found["privacy"]["copies_train"]["value"] == 1
    assert found["privacy"]["counts"] == {"generated": 150, "train": 200, "held_out": 200, "searched": 300}
    length = found["fidelity"]["records"]["sequence_length"]
    assert length["value"] < 2 * length["floor"]


@pytest.mark.usefixtures("tokenizer")
def test_risks_without_generated_records_are_computed_once_for_all_generators(
    data: TokenStub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[str, ...]] = []
    predict = utility.predict

    def watched(*args: Any, trained_on: tuple[str, ...], **settings: Any) -> pl.DataFrame:
        asked.append(trained_on)
        return predict(*args, trained_on=trained_on, **settings)

    monkeypatch.setattr(utility, "predict", watched)
    cache = tmp_path / "cache"
    first, second = (
        judged(build_generator("model=chiron", seed=seed), data, tmp_path / f"run{seed}", cache=cache)
        for seed in (0, 1)
    )
    assert asked == [utility.GENERATED, utility.GIVEN, utility.GENERATED]
    assert first["utility"]["real_auroc"] == second["utility"]["real_auroc"]
    completions = pl.read_parquet(tmp_path / "run1" / "completions.parquet")
    anew = useful(completions, TOKENS, SETTINGS, None)
    assert pl.read_parquet(tmp_path / "run1" / "utility.parquet").equals(anew)
    fewer = completions.filter(pl.col("subject_id") != completions["subject_id"][0])
    for changed in (fewer, completions.with_columns(truth="generated")):
        asked.clear()
        useful(changed, TOKENS, SETTINGS, cache)
        assert utility.GIVEN in asked
    asked.clear()
    useful(completions, TOKENS, replace(SETTINGS, num_trees=4), cache)
    assert utility.GIVEN in asked


def test_a_target_that_never_occurs_is_refused_before_anything_is_generated(data: TokenStub, tmp_path: Path) -> None:
    nothing = replace(data, spec=replace(GENERATOR_SPEC, tokens=replace(TOKENS, targets=())))
    with pytest.raises(InputError, match="no training record holds a code of its target"):
        judged(build_generator("model=chiron"), nothing, tmp_path / "run")


def test_a_cut_that_leaves_no_prompt_is_refused(data: TokenStub) -> None:
    with pytest.raises(InputError, match=r"completion\.cut=99: no held_out record has more codes"):
        complete(build_generator("model=chiron"), data, replace(SETTINGS, cut=99), seed=0, device="cpu")


@pytest.mark.parametrize("name", ["cut", "max_new_tokens", "num_held_out", "num_trees", "batch_size"])
def test_sizes_below_one_are_refused_by_name(name: str) -> None:
    with pytest.raises(InputError, match=rf"completion\.{name}: expected at least 1, found 0"):
        replace(SETTINGS, **{name: 0})


def test_probabilities_do_not_depend_on_the_size_of_a_batch(data: TokenStub) -> None:
    """But for chance: other batches draw other numbers. The mean over the records has a standard error of .01."""
    model = build_generator("model=chiron").eval()
    many = replace(SETTINGS, num_samples=60, num_train=0)
    small, large = (complete(model, data, replace(many, batch_size=size), seed=0, device="cpu") for size in (1, 500))
    means = [found["target_probability"].mean() for found in (small, large)]
    assert means[0] == pytest.approx(means[1], abs=0.04)
    assert means[0] > 0.1
