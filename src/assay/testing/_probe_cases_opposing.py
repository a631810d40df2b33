"""Cases of the probe of opposing signals, for `assay.testing.probes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.opposing_signals import OpposingSignals

CASES: dict[str, Callable[[], Any]] = {
    "opposing-signals": lambda: OpposingSignals(k=5, lr=0.01),
    "opposing-signals-of-past-steps": lambda: OpposingSignals(k=5),
}
