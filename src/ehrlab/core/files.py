"""Files written whole or not at all, and folders that one process works in at a time."""

from __future__ import annotations

import hashlib
import logging
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

log = logging.getLogger(__name__)

LONGEST_NAME = 160


def slug(text: str) -> str:
    """A name for a file or folder: letters, digits and ._=+- stay, the rest are dashes; a long one ends in its hash.

    >>> slug("medhmp pretrain=[stay]"), len(slug("x" * 500))
    ('medhmp-pretrain=-stay', 160)
    """
    name = re.sub(r"[^A-Za-z0-9._=+-]+", "-", text).strip("-")
    if len(name) <= LONGEST_NAME:
        return name
    return f"{name[: LONGEST_NAME - 9]}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A path beside `path` to write to; it takes the place of `path` at the end, and is removed after an error.

    A reader therefore never meets half a file. The folder is made.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield beside
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, content: str | bytes) -> Path:
    """Write text (UTF-8) or bytes through `replacing`; returns `path`."""
    with replacing(path) as beside:
        beside.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@contextmanager
def locked(lock: Path, what: str) -> Iterator[None]:
    """Hold the lock file against other processes; waits for its holder and says so, naming `what`.

    The operating system lets go of it when its holder dies, so a killed process never blocks the next.
    """
    lock.parent.mkdir(parents=True, exist_ok=True)
    held = FileLock(lock)
    try:
        held.acquire(timeout=0)
    except Timeout:
        log.info("waiting: another process is at work on %s", what)
        held.acquire()
    try:
        yield
    finally:
        held.release()
