"""Convex losses of one output, each with its gradient and its proximal step; all are sums over the samples.

The losses of Bai, Gautam and Sojoudi (2023, arXiv:2201.01965). Shapes: z, y (n,).
Departures: sums throughout; the paper's robust program takes the mean, which is beta times n here.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["LOSSES", "ConvexLoss", "Hinge", "Logistic", "Squared", "bisect"]


def bisect(decreasing: Callable[[Tensor], Tensor], low: Tensor, high: Tensor, steps: int = 32) -> Tensor:
    """Return where functions cross 0, elementwise; the end of the interval for one that does not."""
    for _ in range(steps):
        middle = (low + high) / 2
        beyond = decreasing(middle) < 0
        low, high = torch.where(beyond, low, middle), torch.where(beyond, middle, high)
    return (low + high) / 2


class ConvexLoss(ABC):
    """A loss l(z, y) of predictions and targets.

    `curvature` bounds its second derivative in one prediction; None for a loss with kinks.
    """

    curvature: float | None = 1.0

    def targets(self, y: Tensor) -> Tensor:
        """Return labels as -1 and 1; regression keeps its targets."""
        if not bool(((y == 1) | (y == -1)).all() or ((y == 1) | (y == 0)).all()):
            raise InvalidInput(
                "expected labels of two classes, as -1 and 1 or as 0 and 1; use loss='squared' for others"
            )
        return torch.where(y > 0, 1.0, -1.0).to(y.dtype)

    @abstractmethod
    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the sum over samples."""

    @abstractmethod
    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the derivative in each prediction (a subgradient at a kink)."""

    @abstractmethod
    def proximal(self, z: Tensor, y: Tensor, rho: float) -> Tensor:
        """Return argmin over x of l(x, y) + rho/2 |x - z|^2."""


class Squared(ConvexLoss):
    """1/2 (z - y)^2."""

    def targets(self, y: Tensor) -> Tensor:
        """Return the targets as they are."""
        return y

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the sum over samples."""
        return (z - y).square().sum() / 2

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Return z - y."""
        return z - y

    def proximal(self, z: Tensor, y: Tensor, rho: float) -> Tensor:
        """Return the weighted mean of z and y."""
        return (y + rho * z) / (1 + rho)


class Logistic(ConvexLoss):
    """log(1 + e^{2z}) - 2 t z with t in {0, 1}, which is log(1 + e^{-2 y z}) with y in {-1, 1}."""

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the sum over samples."""
        return F.softplus(-2 * y * z).sum()

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Return -2 y sigmoid(-2 y z)."""
        return -2 * y * torch.sigmoid(-2 * y * z)

    def proximal(self, z: Tensor, y: Tensor, rho: float) -> Tensor:
        """Solve the scalar equation for the margin, which grows by at most 2 / rho."""
        margin = y * z
        return y * bisect(lambda m: 2 * torch.sigmoid(-2 * m) - rho * (m - margin), margin, margin + 2 / rho)


class Hinge(ConvexLoss):
    """max(0, 1 - y z)."""

    curvature = None

    def value(self, z: Tensor, y: Tensor) -> Tensor:
        """Return the sum over samples."""
        return (1 - y * z).clamp_min(0).sum()

    def gradient(self, z: Tensor, y: Tensor) -> Tensor:
        """Return -y where the margin is below 1."""
        return torch.where(y * z < 1, -y, torch.zeros_like(y))

    def proximal(self, z: Tensor, y: Tensor, rho: float) -> Tensor:
        """Move the margin up by 1 / rho, but not beyond 1."""
        margin = y * z
        return y * torch.maximum(margin, (margin + 1 / rho).clamp_max(1))


LOSSES: dict[str, ConvexLoss] = {"squared": Squared(), "bce": Logistic(), "hinge": Hinge()}
