"""A cache folder is whole or absent, and is built once."""

from __future__ import annotations

import errno
import subprocess
import sys
import time
from pathlib import Path

import polars as pl
import pytest

from ehrlab.core.errors import InputError
from ehrlab.data.cache import build_once, content_key


def write_two(folder: Path) -> None:
    (folder / "a").mkdir()
    (folder / "a" / "x.txt").write_text("x")
    (folder / "y.txt").write_text("yy")


def test_second_call_does_not_build_again(tmp_path: Path) -> None:
    calls: list[Path] = []

    def build(folder: Path) -> None:
        calls.append(folder)
        write_two(folder)

    folder = build_once(tmp_path / "deep" / "key", build)
    assert build_once(tmp_path / "deep" / "key", build) == folder
    assert len(calls) == 1
    assert (folder / "a" / "x.txt").read_text() == "x"
    assert not (tmp_path / "deep" / "key.tmp").exists()


def test_build_that_raises_leaves_nothing_and_the_next_one_succeeds(tmp_path: Path) -> None:
    def broken(folder: Path) -> None:
        write_two(folder)
        raise KeyError("boom")

    with pytest.raises(KeyError, match="boom"):
        build_once(tmp_path / "key", broken)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    assert (build_once(tmp_path / "key", write_two) / "y.txt").exists()


def test_leftover_of_a_killed_build_is_not_taken_for_whole(tmp_path: Path) -> None:
    (tmp_path / "key.tmp" / "a").mkdir(parents=True)
    (tmp_path / "key.tmp" / "half.txt").write_text("half")
    folder = build_once(tmp_path / "key", write_two)
    assert not (folder / "half.txt").exists()


@pytest.mark.parametrize("damage", ["remove", "truncate", "listing"])
def test_folder_that_lost_content_is_built_again(tmp_path: Path, damage: str) -> None:
    folder = build_once(tmp_path / "key", write_two)
    if damage == "remove":
        (folder / "a" / "x.txt").unlink()
    elif damage == "truncate":
        (folder / "y.txt").write_text("")
    else:
        (folder / "files.json").unlink()
    build_once(folder, write_two)
    assert (folder / "a" / "x.txt").read_text() == "x"
    assert (folder / "y.txt").read_text() == "yy"


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        pl.exceptions.ComputeError("parquet: underlying IO error: No space left on device (os error 28)"),
    ],
)
def test_full_disk_is_one_line_that_names_folder_and_space(tmp_path: Path, error: Exception) -> None:
    def full(folder: Path) -> None:
        write_two(folder)
        raise error

    with pytest.raises(InputError, match=r"key.*the disk is full; [\d.]+ GiB are free") as caught:
        build_once(tmp_path / "key", full)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "key.tmp").exists()
    assert not (tmp_path / "key").exists()


def test_cache_below_a_file_is_an_input_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match="could not be built"):
        build_once(tmp_path / "file" / "key", write_two)


JOB = """
import os, sys, time
from pathlib import Path
from ehrlab.data.cache import build_once

root, seconds = Path(sys.argv[1]), float(sys.argv[2])

def build(folder):
    (folder / "y.txt").write_text("yy")
    (root / f"building-{os.getpid()}").touch()
    time.sleep(seconds)

assert (build_once(root / "cold" / "key", build) / "y.txt").read_text() == "yy"
"""


def start(root: Path, seconds: float) -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", JOB, str(root), str(seconds)])


def test_processes_on_a_cold_cache_build_once(tmp_path: Path) -> None:
    jobs = [start(tmp_path, 0.5) for _ in range(3)]
    assert [job.wait(timeout=60) for job in jobs] == [0, 0, 0]
    assert len(list(tmp_path.glob("building-*"))) == 1


def test_kill_nine_leaves_no_folder_and_no_lock(tmp_path: Path) -> None:
    job = start(tmp_path, 600)
    deadline = time.monotonic() + 60
    while not list(tmp_path.glob("building-*")):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    job.kill()
    job.wait()
    assert (tmp_path / "cold" / "key.tmp" / "y.txt").exists()
    assert not (tmp_path / "cold" / "key").exists()
    folder = build_once(tmp_path / "cold" / "key", lambda folder: (folder / "z.txt").touch())
    assert [p.name for p in sorted(folder.iterdir())] == ["files.json", "z.txt"]


def test_content_key_depends_on_every_part() -> None:
    assert len({content_key(1, {"a": 2}), content_key(1, {"a": 3}), content_key(2, {"a": 2}), content_key(1)}) == 4
