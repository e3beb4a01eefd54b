"""A search is the run of its best candidate, found by validation alone."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from ehrlab.core.model import Model
from ehrlab.report.history import read_choices, read_history
from ehrlab.training.recipe import Recipe
from ehrlab.training.runner import WEIGHTS, run_phase
from ehrlab.training.search import search_phase
from stub_data import TRAINER, StubData, recipe, stub_data
from tiny import build

RECIPES = {f"optimizer.lr={lr}": recipe(optimizer=partial(torch.optim.Adam, lr=lr)) for lr in (1e-6, 3e-2, 1e-3)}


@pytest.fixture
def data() -> StubData:
    return stub_data()


def fresh() -> Model:
    return build("model=lstm", seed=0)


def search(data: StubData, folder: Path, recipes: dict[str, Recipe] = RECIPES, **options: Any) -> Any:
    model = fresh()
    record = search_phase(model, model.phases()[0], data, recipes, TRAINER, folder, seed=0, **options)
    return model, record


def alone(data: StubData, folder: Path, name: str) -> Model:
    model = fresh()
    run_phase(model, model.phases()[0], data, RECIPES[name], TRAINER, folder, seed=0)
    return model


def test_it_is_the_run_of_the_candidate_with_the_best_score(data: StubData, tmp_path: Path) -> None:
    model, record = search(data, tmp_path / "phases/fit")
    scores = record["searched"]
    assert list(scores) == list(RECIPES)
    assert len(set(scores.values())) == 3
    assert record["chosen"] == min(scores, key=scores.get)
    lone = alone(data, tmp_path / "alone/phases/fit", record["chosen"])
    for name, tensor in lone.state_dict().items():
        assert torch.equal(tensor, model.state_dict()[name])
    assert read_history(tmp_path) == read_history(tmp_path / "alone")
    assert read_choices(tmp_path) == {"fit": (record["chosen"], 3)}
    assert read_choices(tmp_path / "alone") == {}


def test_a_higher_score_wins_where_higher_is_better(data: StubData, tmp_path: Path) -> None:
    recipes = {name: replace(one, monitor="val/auroc", mode="max") for name, one in RECIPES.items()}
    _, record = search(data, tmp_path, recipes)
    assert record["best_score"] == max(record["searched"].values()) > min(record["searched"].values())


def test_the_test_split_is_not_read(data: StubData, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    loader: Callable[..., Any] = type(data).loader

    def noted(self: StubData, split: str, **options: Any) -> Any:
        seen.append(split)
        return loader(self, split, **options)

    monkeypatch.setattr(type(data), "loader", noted)
    search(data, tmp_path)
    assert set(seen) == {"train", "tuning"}


def test_a_finished_search_is_loaded_and_one_that_was_killed_goes_on(data: StubData, tmp_path: Path) -> None:
    model, record = search(data, tmp_path / "whole")
    again, found = search(data, tmp_path / "whole")
    assert (found["reused"], found["chosen"]) == (True, record["chosen"])
    assert all(map(torch.equal, model.parameters(), again.parameters()))

    first = next(iter(RECIPES))
    alone(data, tmp_path / "killed" / first, first)
    before = (tmp_path / "killed" / first / "DONE").read_bytes()
    resumed, record_of_resumed = search(data, tmp_path / "killed")
    assert (tmp_path / "killed" / first / "DONE").read_bytes() == before
    assert record_of_resumed["searched"] == record["searched"]
    assert all(map(torch.equal, model.parameters(), resumed.parameters()))


def test_only_the_chosen_weights_are_kept(data: StubData, tmp_path: Path) -> None:
    search(data, tmp_path)
    assert [path.relative_to(tmp_path) for path in tmp_path.rglob(WEIGHTS)] == [Path(WEIGHTS)]
    assert json.loads((tmp_path / "DONE").read_text())["searched"]


def test_what_diverges_is_out(data: StubData, tmp_path: Path) -> None:
    diverging = recipe(optimizer=partial(torch.optim.SGD, lr=float("inf")))
    _, record = search(data, tmp_path / "one", {"inf": diverging} | RECIPES)
    assert record["searched"]["inf"] is None
    assert record["chosen"] in RECIPES
    with pytest.raises(FloatingPointError, match=r"not finite with any of inf\. Search lower rates"):
        search(data, tmp_path / "none", {"inf": diverging})
