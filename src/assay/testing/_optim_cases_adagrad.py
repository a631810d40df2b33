"""Tiny settings of `assay.optim.AdaGradNorm`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.optim.adagrad_norm import AdaGradNorm

__all__ = ["CASES"]


def _case(granularity: str) -> Callable[[], Any]:
    return lambda: lambda parameters: AdaGradNorm(parameters, lr=0.5, weight_decay=0.01, granularity=granularity)


CASES: dict[str, Callable[[], Any]] = {f"adagrad-norm-{name}": _case(name) for name in ("global", "tensor", "row")}
