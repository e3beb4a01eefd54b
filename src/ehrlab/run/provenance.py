"""Where a number comes from."""

from __future__ import annotations

import platform
import resource
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("ehrlab", "torch", "lightning", "torchmetrics", "polars", "pyarrow", "numpy", "scikit-learn")


def _git(*args: str) -> str | None:
    """Output of a git command in the source checkout; None where the package is not in one."""
    try:
        done = subprocess.run(
            ["git", *args], cwd=Path(__file__).parent, capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def provenance(data_fingerprint: str, wall_seconds: float, device: str) -> dict[str, Any]:
    """Commit, data, versions, device, wall time (s) and peak memory (MiB, of this process) of a finished run."""
    status = _git("status", "--porcelain", "--untracked-files=no")
    cuda = torch.cuda.is_available()
    return {
        "commit": _git("rev-parse", "HEAD"),
        "uncommitted_changes": None if status is None else bool(status),
        "data": data_fingerprint,
        "finished": datetime.now(UTC).isoformat(timespec="seconds"),
        "wall_seconds": round(wall_seconds, 1),
        "peak_memory_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
        "peak_gpu_memory_mib": torch.cuda.max_memory_allocated() // 2**20 if cuda else None,
        "device": torch.cuda.get_device_name() if cuda and device != "cpu" else platform.processor() or "cpu",
        "command": shlex.join(["python", *sys.argv]),
        "python": sys.version.split()[0],
        "platform": platform.platform(terse=True),
        "versions": {package: version(package) for package in PACKAGES},
    }
