"""Assay: training papers as working parts, probes that show what a network learns, and claims put to a fair test."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from assay.lab.experiment import Experiment
    from assay.lab.study import Study
    from assay.streams import Streams
    from assay.watch import Watch

__version__ = "0.1.0"
__all__ = ["Experiment", "Streams", "Study", "Watch", "__version__"]

_LAZY = {
    "Experiment": "assay.lab.experiment",
    "Streams": "assay.streams",
    "Study": "assay.lab.study",
    "Watch": "assay.watch",
}
_SUBPACKAGES = (
    "compress", "data", "decode", "graph", "infinite", "kernels", "lab", "losses", "models", "nn", "optim", "probes",
    "rules", "scale", "testing",
)  # fmt: skip


def __getattr__(name: str) -> object:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name]), name)
    if name in _SUBPACKAGES:
        return importlib.import_module(f"assay.{name}")
    raise AttributeError(f"module 'assay' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*__all__, *_SUBPACKAGES])
