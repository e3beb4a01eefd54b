"""The JSON files of the benchmarks as one table: benchmarks/BENCHMARKS.md.

    python benchmarks/render.py

Renders whatever files there are, and nothing else: a number without its file cannot get in.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from measuring import HERE, RATIO, measured, short

HEAD = """\
# Speed and memory

Written by `python benchmarks/render.py` from the JSON files beside this page; `make bench` measures all anew. Medians,
in parentheses the extremes of the repeats. MiB is the peak of a process, x a ratio of two measurements of one round.
The load is the average over the minute before a benchmark began: 0 on a quiet machine.
"""
EMPTY = "\nNothing has been measured yet: `make bench`.\n"
COLUMNS = ("what", "measured", "target", "machine", "commit", "from")


def target(number: Mapping[str, Any]) -> str:
    """What was aimed at and whether it was met; empty where nothing was.

    >>> target({"unit": "s", "median": 0.6, "at_most": 0.5})
    'at most 0.5 s: missed'
    """
    if "at_most" in number:
        aim, met = f"at most {short(number['at_most'])}", number["median"] <= number["at_most"]
    elif "at_least" in number:
        aim, met = f"at least {short(number['at_least'])}", number["median"] >= number["at_least"]
    else:
        return ""
    return f"{aim} {number['unit']}: {'met' if met else 'missed'}"


def rows(name: str, found: Mapping[str, Any]) -> list[tuple[bool, tuple[str, ...]]]:
    """(is no ratio, cells) of every number of a file."""
    machine = found["machine"]
    where = f"{machine['processor']}, {machine['cores']} cores, load {found['load_average']['before']}"
    commit = found["commit"][:10] + (" + changes" if found["dirty"] else "")
    return [
        (number["unit"] != RATIO, (number["what"], measured(number), target(number), where, commit, _link(name)))
        for number in found["numbers"]
    ]


def page(records: Mapping[str, Mapping[str, Any]]) -> str:
    """Ratios first, then in the order of the files."""
    if not records:
        return HEAD + EMPTY
    found = [row for name in records for row in rows(name, records[name])]
    ordered = [cells for _, cells in sorted(found, key=lambda row: row[0])]
    lines = [COLUMNS, ("---",) * len(COLUMNS), *ordered]
    table = "".join(f"| {' | '.join(line)} |\n" for line in lines)
    return f"{HEAD}\n{table}\n" + "".join(about(name, record) for name, record in records.items())


def about(name: str, found: Mapping[str, Any]) -> str:
    """One line on how a file's numbers were made."""
    setting = ", ".join(f"{key.replace('_', ' ')} {_text(value)}" for key, value in found["setting"].items())
    versions = ", ".join(f"{package} {version}" for package, version in found["versions"].items())
    machine = found["machine"]
    return (
        f"* {_link(name)} by `bench_{name}.py`, {found['date'][:10]}: {setting}. "
        f"{machine['memory_gib']} GiB, {machine['system']}; {versions}.\n"
    )


def _link(name: str) -> str:
    return f"[{name}.json]({name}.json)"


def _text(value: Any) -> str:
    return f"{value:,}" if type(value) is int else str(value)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--folder", type=Path, default=HERE, help="of the JSON files and the page; default: beside")
    folder = parser.parse_args().folder
    records = {}
    for path in sorted(folder.glob("*.json")):
        records[path.stem] = json.loads(path.read_text(encoding="utf-8"))
        if missing := {"numbers", "setting", "commit", "machine"} - set(records[path.stem]):
            sys.exit(f"error: {path}: no record of a benchmark (without {', '.join(sorted(missing))}). Delete it.")
    out = folder / "BENCHMARKS.md"
    out.write_text(page(records), encoding="utf-8")
    print(f"-> {out}")


if __name__ == "__main__":
    main()
