"""Tiny settings of `assay.optim.SAM`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.optim.sam import SAM

__all__ = ["CASES"]


def _sam(base: type[torch.optim.Optimizer], rho: float, adaptive: bool = False, **options: Any) -> Callable[[], Any]:
    return lambda: lambda parameters: SAM(base(parameters, **options), rho, adaptive)


CASES: dict[str, Callable[[], Any]] = {
    "sam": _sam(torch.optim.SGD, 0.05, lr=0.1, momentum=0.8),
    "sam-adaptive": _sam(torch.optim.SGD, 0.5, True, lr=0.1),
    "sam-adamw": _sam(torch.optim.AdamW, 0.05, lr=0.01),
}
