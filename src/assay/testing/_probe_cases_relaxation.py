"""Probes of relaxation networks in the setting of `assay.testing.probes`, whose model has no fixed point to look at."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.error_signals import ErrorAlignment
from assay.probes.jacobian_symmetry import JacobianAsymmetry

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {"error-alignment": ErrorAlignment, "jacobian-asymmetry": JacobianAsymmetry}
