"""Cases of the probes that compare features before and after a projection head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.probes.feature_weighting import FeatureWeighting
from assay.probes.linear_probe import LinearProbe
from assay.testing._shared import seeded

__all__ = ["CASES"]

HELD_OUT = (torch.randn(20, 4, generator=seeded(4)), torch.arange(20) % 3)

CASES: dict[str, Callable[[], Any]] = {
    "feature-weighting": FeatureWeighting,
    "feature-weighting-directions": lambda: FeatureWeighting(["0", "4"], directions=torch.eye(2, 4)),
    "linear-probe": lambda: LinearProbe(["0", "5"], tuple(t.clone() for t in HELD_OUT), batch_size=8),
}
