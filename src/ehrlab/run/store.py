"""The results store: one folder per run, found by what determines its numbers, immutable once DONE."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ehrlab.core.errors import InputError
from ehrlab.core.files import locked, write_whole
from ehrlab.core.model import AnyPhase, Phase

DONE = "DONE"
"""Characters of a folder's name; file systems know 255 bytes, and what is written below adds to it."""


def content_hash(content: Mapping[str, Any]) -> str:
    """Hash of nested plain data, independent of key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def differing_keys(old: Any, new: Any, path: str = "") -> list[str]:
    """Dotted keys at which two nested structures differ, with both values.

    >>> differing_keys({"model": {"lambda_s": 0.5, "width": 8}}, {"model": {"lambda_s": 1.0, "width": 8}})
    ['model.lambda_s: 0.5 -> 1.0']
    """
    if isinstance(old, Mapping) and isinstance(new, Mapping):
        keys = sorted({*old, *new})
        return [d for k in keys for d in differing_keys(old.get(k), new.get(k), f"{path}.{k}" if path else k)]
    return [] if old == new else [f"{path}: {old} -> {new}"]


def write_json(path: Path, content: Any) -> None:
    write_whole(path, json.dumps(content, indent=1, sort_keys=True))


def shared_phase_folder(results: Path, phase: AnyPhase, identity: Mapping[str, Any]) -> Path:
    """Where a phase lies that several runs share: named by all that determines it, so that it is trained once."""
    kept = without(identity, phase.ignores)
    if phase.view in kept.get("records", {}):  # what another phase reads does not determine this one
        kept["records"] = kept["records"][phase.view]
    if isinstance(phase, Phase) and phase.reads is not None:
        kept["model"] = {key: value for key, value in kept["model"].items() if key in phase.reads}
    return results / "phases" / f"{phase.name}-{content_hash(kept)[:16]}"


def without(content: Mapping[str, Any], keys: frozenset[str], path: str = "") -> dict[str, Any]:
    """Nested plain data without some dotted keys.

    >>> without({"model": {"lambda_s": 0.5, "width": 8}, "task": {}}, frozenset({"task", "model.lambda_s"}))
    {'model': {'width': 8}}
    """
    kept = {}
    for key, value in content.items():
        dotted = f"{path}{key}"
        if dotted not in keys:
            kept[key] = without(value, keys, f"{dotted}.") if isinstance(value, Mapping) else value
    return kept


@dataclass(frozen=True)
class RunFolder:
    """A run's folder and the identity (config without paths and hardware, data content) that it must keep."""

    path: Path
    identity: Mapping[str, Any]

    @property
    def done(self) -> bool:
        return (self.path / DONE).exists()

    def check(self) -> None:
        """Refuse a folder that another configuration or other data began."""
        record = self.path / "identity.json"
        if not record.exists():
            return
        try:
            old = json.loads(record.read_text())
        except json.JSONDecodeError as error:
            raise InputError(f"run folder {self.path}: identity.json is not JSON. Delete the folder.") from error
        if differing := differing_keys(old, json.loads(json.dumps(self.identity))):
            raise InputError(
                f"run folder {self.path} belongs to another run; it differs in {'; '.join(differing)}. "
                "Choose another paths.run, or delete the folder."
            )

    @contextmanager
    def claim(self) -> Iterator[None]:
        """Hold the run against other processes; released by the operating system when the process dies."""
        with locked(self.path / ".lock", str(self.path)):
            self.check()
            if not (self.path / "identity.json").exists():
                write_json(self.path / "identity.json", self.identity)
            yield

    def finish(self) -> None:
        write_whole(self.path / DONE, "")
