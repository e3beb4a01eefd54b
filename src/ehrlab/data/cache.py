"""Folders that are built once, whole or not at all, however many jobs ask for them.

Every stage of the data layer (MEDS, labels, shards) is a folder whose name holds the content hash of what it was made
from. A folder that exists is complete: it is built beside its final name and renamed as the last act, so neither an
exception nor `kill -9` leaves anything that a later run takes for whole.
"""

from __future__ import annotations

import errno
import hashlib
import json
import logging
import os
import shutil
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import polars as pl

from ehrlab.core.errors import InputError
from ehrlab.core.files import locked, write_whole

logger = logging.getLogger(__name__)

FILES = "files.json"
"""Name and size in bytes of every file of a finished folder, written last; `build_once` compares it with the disk."""

_FULL = (errno.ENOSPC, errno.EDQUOT)


def content_key(*parts: Any) -> str:
    """32 hex digits of the SHA-256 of `parts` as canonical JSON: the name of a stage's folder.

    >>> content_key({"b": 1, "a": [2]}) == content_key({"a": [2], "b": 1})
    True
    """
    text = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def build_once(folder: Path, build: Callable[[Path], None]) -> Path:
    """Return `folder`, calling `build(<folder>.tmp)` first if it does not exist yet.

    `build` is given an empty folder and writes into it. Of several processes that ask at once, one builds and the
    others wait for it. An exception of `build` removes the half-built folder and goes on to the caller.

    Errors: InputError where the disk is full or the cache cannot be written (naming the folder and the free space).
    """
    folder = Path(folder)
    if _is_whole(folder):
        return folder
    with _os_errors(folder), locked(folder.with_name(folder.name + ".lock"), str(folder)):
        if _is_whole(folder):
            return folder
        tmp = folder.with_name(folder.name + ".tmp")
        try:
            # Under the lock nobody else can be at work on these: they are what a killed process left.
            _remove(tmp)
            _remove(folder)
            folder.with_name(f"{folder.name}.content").unlink(missing_ok=True)
            tmp.mkdir()
            build(tmp)
            _write_listing(tmp)
            os.replace(tmp, folder)
        finally:
            _remove(tmp)
    return folder


def folder_digest(folder: Path, leave_out: Collection[str] = ()) -> str:
    """32 hex digits that name the content of a folder of `build_once`, wherever it came from.

    Two data sets that differ elsewhere give the same digest where this stage made the same of both. It is computed once
    and kept beside the folder.

    leave_out   names of files that do not count
    """
    kept = folder.with_name(f"{folder.name}.content")
    listing: dict[str, int] = json.loads((folder / FILES).read_text(encoding="utf-8"))
    names = sorted(set(listing) - set(leave_out))
    if kept.exists():
        digests: dict[str, str] = json.loads(kept.read_text(encoding="utf-8"))
    else:
        digests = {}
        for name in sorted(listing):
            with (folder / name).open("rb") as file:
                digests[name] = hashlib.file_digest(file, "sha256").hexdigest()
        with suppress(OSError):  # a cache that is lent for reading only
            write_whole(kept, json.dumps(digests, indent=1))
    return content_key([[name, digests[name]] for name in names])


def _is_whole(folder: Path) -> bool:
    """True where `folder` exists and holds every file of its listing at its size; False where it must be (re)built."""
    if not folder.is_dir():
        return False
    try:
        listing: dict[str, int] = json.loads((folder / FILES).read_text(encoding="utf-8"))
        whole = all((folder / name).stat().st_size == size for name, size in listing.items())
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        whole = False
    if not whole:
        logger.warning("cache folder %s was changed after it was built; it is built again", folder)
    return whole


def _write_listing(folder: Path) -> None:
    sizes = {p.relative_to(folder).as_posix(): p.stat().st_size for p in sorted(folder.rglob("*")) if p.is_file()}
    (folder / FILES).write_text(json.dumps(sizes, indent=1), encoding="utf-8")


def _remove(path: Path) -> None:
    if path.exists():
        shutil.rmtree(path)


@contextmanager
def _os_errors(folder: Path) -> Iterator[None]:
    """Turn a full disk or an unwritable cache into one clear line."""
    try:
        yield
    except (OSError, pl.exceptions.PolarsError) as error:
        full = getattr(error, "errno", None) in _FULL or "No space left on device" in str(error)
        if not full and not isinstance(error, OSError):
            raise
        what = "the disk is full" if full else f"writing failed ({error.strerror or type(error).__name__})"  # type: ignore[union-attr]
        raise InputError(
            f"cache folder {folder} could not be built: {what}; {_free_space(folder)}. "
            "Free some space, or choose another cache folder."
        ) from None


def _free_space(folder: Path) -> str:
    home = next((p for p in folder.parents if p.is_dir()), Path("/"))
    return f"{shutil.disk_usage(home).free / 2**30:.1f} GiB are free there"
