"""CPU seconds and peak memory of raw MIMIC-layout tables to MEDS, each repeat in a fresh process.

    python benchmarks/bench_sources.py [--patients 2000] [--repeats 3] [--out benchmarks/sources.json]

2,000 patients, 78,000 admissions, 370,000 diagnoses with procedures and prescriptions, gzip-compressed. Expected: below
3 CPU seconds (import of the libraries included) and 1 GiB.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import polars as pl

import synthetic_mimic3

JOB = """
import json, resource, sys
from pathlib import Path
from ehrlab.data import meds
from ehrlab.data.sources import open_mimic

out = Path(sys.argv[2])
out.mkdir()
meds.build(open_mimic(sys.argv[1]), out, meds.SplitSettings(), simulated=True)
usage = resource.getrusage(resource.RUSAGE_SELF)
print(json.dumps({"cpu_s": usage.ru_utime + usage.ru_stime, "peak_mib": usage.ru_maxrss / 1024}))
"""


def measure(raw: Path, out: Path) -> dict[str, float]:
    """One build in a process of its own: its peak memory is then nobody else's."""
    done = subprocess.run([sys.executable, "-c", JOB, str(raw), str(out)], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patients", type=int, default=2000)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    settings = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw = Path(folder) / "raw"
        size = synthetic_mimic3.write(raw, num_patients=settings.patients)
        measure(raw, Path(folder) / "warm-up")
        runs = [measure(raw, Path(folder) / f"meds{i}") for i in range(settings.repeats)]
    result: dict[str, Any] = {
        "rows": asdict(size),
        "cpu_s": {
            "median": round(statistics.median(run["cpu_s"] for run in runs), 2),
            "all": [round(run["cpu_s"], 2) for run in runs],
        },
        "peak_mib": round(max(run["peak_mib"] for run in runs)),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count(), "python": platform.python_version()},
        "polars": pl.__version__,
    }
    text = json.dumps(result, indent=1)
    print(text)
    if settings.out:
        settings.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
