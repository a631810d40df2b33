"""The probe of gradient norms in the setting of `assay.testing.probes`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.gradient_norm_trace import GradientNormTrace

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {"gradient-norm-trace": GradientNormTrace}
