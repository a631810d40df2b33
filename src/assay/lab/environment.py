"""Where a trial ran: versions of what decides numbers, processor, cores and memory; nothing that names a machine."""

from __future__ import annotations

import os
import platform
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

# `environment` itself is missing here: in the namespace of `assay.lab` the name belongs to this module.
__all__ = ["usable_cores"]

PACKAGES = (
    "assay", "torch", "numpy", "scipy", "scikit-learn", "torchmetrics", "joblib", "torch-geometric", "triton",
    "lightning", "transformers", "dask", "ray",
)  # fmt: skip


def environment() -> dict[str, Any]:
    """Return the environment as plain data: "python", "platform", "processor", "cores", "memory_bytes", packages.

    Packages that are not installed are left out; none is imported.
    """
    return dict(_environment())


@cache
def _environment() -> dict[str, Any]:
    return {
        "python": platform.python_version(),
        **{name: found for name in PACKAGES if (found := _version(name))},
        "platform": f"{platform.system()} {platform.machine()}",
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_bytes": _memory(),
    }


def usable_cores() -> int:
    """Return how many cores this process may use: a container or an affinity can leave it fewer than there are."""
    from joblib import cpu_count

    return int(cpu_count())


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line.partition(":")[2].strip() for line in cpuinfo.read_text().splitlines() if "model name" in line]
        if names:
            return names[0]
    if platform.system() == "Darwin":
        command = ["sysctl", "-n", "machdep.cpu.brand_string"]
        return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return platform.processor() or platform.machine()


def _memory() -> int | None:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, ValueError, OSError):
        return None
