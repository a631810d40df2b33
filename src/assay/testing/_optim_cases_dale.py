"""Tiny settings of the exponentiated gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from assay.optim.exponentiated_gradient import ExponentiatedGradient

__all__ = ["CASES"]


def _made(**options: Any) -> Callable[[], Any]:
    return lambda: lambda parameters: ExponentiatedGradient(parameters, **{"lr": 0.5, **options})


CASES: dict[str, Callable[[], Any]] = {
    "exponentiated-gradient": _made(),
    "exponentiated-gradient-everywhere": _made(min_ndim=0, weight_decay=0.01),
}
