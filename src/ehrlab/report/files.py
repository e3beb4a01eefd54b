"""Files written whole or not at all, and JSON and YAML read with one clear error."""

import json
from pathlib import Path
from typing import Any

import yaml

from ehrlab.core.errors import InputError
from ehrlab.core.files import write_whole


def write_atomically(path: Path, content: str | bytes) -> Path:
    """`core.files.write_whole` with one clear error."""
    try:
        return write_whole(path, content)
    except OSError as error:
        raise InputError(
            f"report file {path}: cannot be written ({error.strerror}); free space or choose --out"
        ) from None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object. Raises InputError naming the file when it is missing, damaged, or not an object."""
    return _object(path, _text(path), json.loads, json.JSONDecodeError, "JSON")


def read_yaml(path: Path) -> dict[str, Any]:
    """A plain YAML mapping (a resolved config). Raises InputError naming the file when it is not one."""
    return _object(path, _text(path), yaml.safe_load, yaml.YAMLError, "YAML")


def read_bytes(path: Path) -> bytes:
    """Raises InputError naming the file when it cannot be read."""
    try:
        return path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise InputError(f"{path}: expected a file, found nothing there; was the folder copied incompletely?") from None
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: cannot be read ({type(error).__name__})") from None


def _object(path: Path, text: str, parse: Any, failure: type[Exception], kind: str) -> dict[str, Any]:
    try:
        content = parse(text)
    except failure:
        raise InputError(
            f"{path}: expected {kind}, found text that does not parse; remove the run and repeat it"
        ) from None
    if not isinstance(content, dict):
        raise InputError(f"{path}: expected a {kind} mapping, found {type(content).__name__}")
    return content
