"""Cases of the probe that compares two domains."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.probes.head_hessian import HeadHessian
from assay.testing._shared import seeded

__all__ = ["CASES"]

OTHER = (torch.randn(20, 4, generator=seeded(4)), torch.arange(20) % 3)

CASES: dict[str, Callable[[], Any]] = {
    "head-hessian": lambda: HeadHessian(tuple(t.clone() for t in OTHER), batch_size=8),
}
