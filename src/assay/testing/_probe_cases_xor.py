"""Cases of the probes that XOR clusters need."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.probes.cluster_axes import ClusterAlignment
from assay.probes.linear_rule import LinearAgreement
from assay.testing._shared import seeded

__all__ = ["CASES"]

HELD_OUT = (torch.randn(20, 4, generator=seeded(4)), torch.arange(20) % 3)

CASES: dict[str, Callable[[], Any]] = {
    "linear-agreement": lambda: LinearAgreement(tuple(t.clone() for t in HELD_OUT), batch_size=8),
    "cluster-alignment": lambda: ClusterAlignment(torch.eye(3, 8)),
}
