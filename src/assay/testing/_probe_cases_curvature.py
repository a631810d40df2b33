"""Conformance cases of the curvature probes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.probes.gradient_smoothness import GradientNormalizedSmoothness
from assay.probes.hessian_spectrum import HessianSpectrum
from assay.probes.hessian_trace import HessianTrace
from assay.probes.sharpness import Sharpness

__all__ = ["CASES"]

CASES: dict[str, Callable[[], Any]] = {
    "sharpness": lambda: Sharpness(k=2),
    "sharpness-ggn-layer": lambda: Sharpness(matrix="ggn", groups=["6"]),
    "gradient-smoothness": lambda: GradientNormalizedSmoothness(directions=1),
    "hessian-trace": lambda: HessianTrace(draws=4),
    "hessian-trace-fisher": lambda: HessianTrace(6, "fisher", method="hutch++"),
    "hessian-spectrum": lambda: HessianSpectrum(steps=12, draws=2, dtype=torch.float64),
    "hessian-spectrum-empirical-fisher": lambda: HessianSpectrum(
        "empirical-fisher", steps=6, reorthogonalize=False, dtype=torch.float64
    ),
}
