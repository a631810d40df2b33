"""Cases of the probes of optimizers' steps, for `assay.testing.probes`; they are given no optimizer there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.probes.friction_trace import FrictionTrace
from assay.probes.gradient_noise_scale import GradientNoiseScale
from assay.probes.trust_ratio import TrustRatio
from assay.probes.update_to_weight_ratio import UpdateToWeightRatio

CASES: dict[str, Callable[[], Any]] = {
    "friction-trace": FrictionTrace,
    "gradient-noise-scale": GradientNoiseScale,
    "trust-ratio": TrustRatio,
    "update-to-weight-ratio": UpdateToWeightRatio,
}
