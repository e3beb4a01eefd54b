"""MIMIC, whichever release the folder holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from ehrlab.data.sources.mimic3 import Mimic3
from ehrlab.data.sources.mimic4 import Mimic4
from ehrlab.data.sources.mimic_common import Mimic
from ehrlab.data.sources.source import DEFAULT_TABLES


def open_mimic(root: Path | str, tables: Sequence[str] = DEFAULT_TABLES) -> Mimic:
    """MIMIC-IV where `root` has a folder hosp/ (in any case), else MIMIC-III. See Mimic for `tables` and errors."""
    root = Path(root)
    is_fourth = root.is_dir() and any(path.is_dir() and path.name.lower() == "hosp" for path in root.iterdir())
    return Mimic4(root, tables) if is_fourth else Mimic3(root, tables)
