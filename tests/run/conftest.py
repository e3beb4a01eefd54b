"""The real command line, in this process where that is enough: importing torch anew costs seconds each time."""

from __future__ import annotations

import logging
import os
import runpy
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from ehrlab.simulation import write_mimic3

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Outcome:
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One cache for all tests, so that the toy cohort is simulated and read once."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def toy_tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The raw tables of data=toy."""
    folder = tmp_path_factory.mktemp("toy_tables")
    write_mimic3(folder, preset="heart_failure", shape="toy", num_patients=400, seed=0)
    return folder


@pytest.fixture
def results(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty results store, which this process and its children use."""
    monkeypatch.setenv("EHRLAB_CACHE", str(cache))
    monkeypatch.setenv("EHRLAB_RESULTS", str(tmp_path / "results"))
    monkeypatch.setenv("EHRLAB_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "results"


@pytest.fixture
def _logging() -> Iterator[None]:
    """Hydra configures logging for the whole process; the next test must not write to this one's streams."""
    root, ours = logging.getLogger(), logging.getLogger("ehrlab")
    handlers, levels = root.handlers[:], (root.level, ours.level)
    yield
    root.handlers[:] = handlers
    root.setLevel(levels[0])
    ours.setLevel(levels[1])


@pytest.fixture
def cli(
    results: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, _logging: None
) -> Callable[..., Outcome]:
    """cli("model=lstm", ...) = `python run.py model=lstm ...` in this process."""
    monkeypatch.chdir(REPOSITORY)
    monkeypatch.setenv("COLUMNS", "200")  # no table cell is wrapped

    def call(*overrides: str) -> Outcome:
        capsys.readouterr()
        monkeypatch.setattr(sys, "argv", ["run.py", *overrides])
        code = 0
        try:
            runpy.run_path("run.py", run_name="__main__")
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        return Outcome(code, *capsys.readouterr())

    return call


@pytest.fixture
def start(results: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """start("model=lstm", ...) = the same command as a process of its own, for what only the system can show."""
    started: list[subprocess.Popen[str]] = []

    def call(*overrides: str, **environment: str) -> subprocess.Popen[str]:
        path = os.pathsep.join([str(REPOSITORY / "src"), str(REPOSITORY / "tests")])
        process = subprocess.Popen(
            [sys.executable, "run.py", *overrides],
            cwd=REPOSITORY,
            env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", **environment},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        started.append(process)
        return process

    yield call
    for process in started:
        if process.poll() is None:
            process.kill()
        process.communicate()


@pytest.fixture
def shell(start: Callable[..., subprocess.Popen[str]]) -> Callable[..., Outcome]:
    """Start a command and wait for its end."""

    def call(*overrides: str, **environment: str) -> Outcome:
        process = start(*overrides, **environment)
        out, err = process.communicate(timeout=300)
        return Outcome(process.returncode, out, err)

    return call
