"""The simulator's specification: every number of it, in words, and the digest that names it.

`specification.txt` beside this file is what was fixed before any method of a paper was run on simulated patients
(docs/decisions.md). A test compares it with the code; `freeze()` writes it anew, which makes another population:
results on the old one then belong to a digest that no longer exists.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from pprint import pformat

from ehrlab.simulation import analytes, care, network, notes, spec
from ehrlab.simulation.note_text import HABITS

FROZEN = Path(__file__).with_name("specification.txt")

# Raised when code changes what the same numbers mean; changed numbers show in the digest by themselves.
_REVISION = 3


def describe() -> str:
    """All numbers of all modalities, one heading per part. The sequences' are in `sequences.spec`."""
    parts = {
        "revision": _REVISION,
        "patients per block": spec.BLOCK_SIZE,
        "diseases": spec.DISEASES,
        "shapes": spec.shapes(),
        "chronic conditions": (network.WARM_UP_YEARS, network.CONDITIONS),
        "acute conditions": spec.ACUTE,
        "laboratory tests": (analytes.LABS, analytes.CLINIC, analytes.COMMON, analytes.LINKS),
        "orders and stages": (analytes.OUTPATIENT_ORDERS, analytes.STAGE_EFFECT),
        "intensive care": care.CARE,
        "notes": (notes.NOTES, HABITS),
    }
    return "".join(f"# {name}\n{pformat(value, width=120, sort_dicts=False)}\n\n" for name, value in parts.items())


SPECIFICATION = f"{_REVISION}-{hashlib.sha256(describe().encode()).hexdigest()[:12]}"
"""Names the population: a cache of simulated tables is stale when it differs."""


def freeze() -> None:
    FROZEN.write_text(describe(), encoding="utf-8")
