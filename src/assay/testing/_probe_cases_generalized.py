"""Cases of the probe of generalized collapse."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.generalized_collapse import GeneralizedCollapse

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {
    "generalized-collapse": GeneralizedCollapse,
    "generalized-collapse-search": lambda: GeneralizedCollapse(3, code_restarts=1),
}
