"""The nearest-neighbour probe in the setting of `assay.testing.probes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.knn_accuracy import KNNAccuracy

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {"knn-accuracy": lambda: KNNAccuracy(k=3)}
