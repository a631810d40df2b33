"""Tiny settings of `assay.optim.GradientNormalizedNewton`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from assay.optim import gradient_normalized_newton
from assay.optim.curvature import LowRank

__all__ = ["CASES"]


class GradientNormalizedNewton(gradient_normalized_newton.GradientNormalizedNewton):
    """Turns the closures of the checks, which call `backward()`, into losses with a gradient.

    It has the name of what it tests, by which the checks look for classes without a case.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step on the value and the gradients that a closure gives."""
        params = [p for group in self.param_groups for p in group["params"]]

        def loss() -> Tensor:
            self.zero_grad()
            value = closure()  # type: ignore[misc]
            linear = sum((p * p.grad).sum() for p in params if p.grad is not None)
            return value.detach() + linear - linear.detach()

        return super().step(loss)


def _size(params: Sequence[Tensor]) -> int:
    return sum(p.numel() for p in params)


def _dense(params: Sequence[Tensor]) -> Tensor:
    return torch.diag(torch.linspace(0.1, 1, _size(params), dtype=torch.float64))


def _rows(params: Sequence[Tensor]) -> LowRank:
    return LowRank(torch.linspace(-1, 1, 3 * _size(params), dtype=torch.float64).sin().view(3, -1))


def _product(params: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
    return _dense(params).mv


def _newton(**options: Any) -> Callable[[], Any]:
    return lambda: lambda parameters: GradientNormalizedNewton(parameters, **options)


CASES: dict[str, Callable[[], Any]] = {
    "gradient-normalized-newton": _newton(curvature=_dense),
    "gradient-normalized-newton-zero": _newton(curvature="zero", lr=0.5),
    "gradient-normalized-newton-low-rank": _newton(curvature=_rows, gamma0=0.1),
    "gradient-normalized-newton-products": _newton(curvature=_product),
}
