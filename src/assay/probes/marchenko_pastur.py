"""The Marchenko-Pastur law: the spectrum that a matrix of independent entries has, against which spikes stand out.

Marchenko and Pastur (1967); the fit by the median is Gavish and Donoho's (2014, arXiv:1305.5870), sec. III.E; the
fluctuation of the largest eigenvalue is Johnstone's (2001, Ann. Stat. 29), theorem 1.1.

For W of N x m, N >= m, with independent entries of variance s^2, the m eigenvalues of W^T W have, with q = m / N and
scale = N s^2, edges scale (1 -+ sqrt q)^2 =: a, b and density sqrt((b - x) (x - a)) / (2 pi q scale x).

Departures: the scale is set so that the law's median is the spectrum's. The variance of the entries, the other usual
choice, is raised by the very spikes that one wants to see.

Cost: elementwise; a quantile is 60 bisections of the distribution function.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["MarchenkoPastur", "spike_threshold"]

_TRACY_WIDOM_999 = 3.2724  # the 99.9 % point of the Tracy-Widom law of real matrices


@dataclass(frozen=True)
class MarchenkoPastur:
    """The limiting spectrum of W^T W.

    Args:
        ratio: q = m / N in (0, 1], the smaller over the larger side of W.
        scale: N s^2, the larger side times the variance of an entry; the mean of the law.

    Raises:
        InvalidInput: If one is out of range.

    Example:
        >>> law = MarchenkoPastur(ratio=0.25)
        >>> law.edges, round(law.cdf(torch.tensor([2.25])).item(), 6)
        ((0.25, 2.25), 1.0)
    """

    ratio: float
    scale: float = 1.0

    def __post_init__(self) -> None:
        if not (0 < self.ratio <= 1 and 0 < self.scale < math.inf):
            raise InvalidInput(f"expected 0 < ratio <= 1 and scale > 0, got {self.ratio:g} and {self.scale:g}")

    @property
    def edges(self) -> tuple[float, float]:
        """Where the law's support begins and ends."""
        root = math.sqrt(self.ratio)
        return self.scale * (1 - root) ** 2, self.scale * (1 + root) ** 2

    def density(self, x: Tensor) -> Tensor:
        """Return the density at points of any shape, in float64; 0 outside the edges."""
        x, (a, b) = x.double(), self.edges
        inside = (b - x).clamp(min=0) * (x - a).clamp(min=0)
        return torch.where(inside > 0, inside.sqrt() / (2 * math.pi * self.ratio * self.scale * x), 0.0)

    def cdf(self, x: Tensor) -> Tensor:
        """Return the distribution function at points of any shape, in float64 (closed form)."""
        q, (a, b) = self.ratio, MarchenkoPastur(self.ratio).edges
        y = (x.double() / self.scale).clamp(a, b)
        # The substitution of angles; atan2 is exact at both edges, where arctan's arguments are infinite.
        left, right = (y - a).clamp(min=0), (b - y).clamp(min=0)
        root = (left * right).sqrt()
        total = math.pi * q + root - (1 + q) * torch.atan2(right - left, 2 * root)
        if q < 1:
            total = total + (1 - q) * torch.atan2(a * right - b * left, 2 * (1 - q) * root)
        return (total / (2 * math.pi * q)).clamp(0, 1)

    def quantile(self, p: Tensor) -> Tensor:
        """Return the points below which shares p of the law lie, in float64.

        Raises:
            InvalidInput: If a share lies outside [0, 1].
        """
        p = p.double()
        if not ((p >= 0) & (p <= 1)).all():
            raise InvalidInput("quantiles are of shares in [0, 1]")
        low, high = (torch.full_like(p, edge) for edge in self.edges)
        for _ in range(60):
            middle = (low + high) / 2
            below = self.cdf(middle) < p
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        return (low + high) / 2

    @classmethod
    def fit(cls, eigenvalues: Tensor, ratio: float) -> MarchenkoPastur:
        """Return the law whose median is that of a spectrum.

        Args:
            eigenvalues: Squared singular values (m,), with a positive median.
            ratio: q.

        Raises:
            InvalidInput: If the median is not positive and finite, or q out of range.
        """
        median = torch.quantile(eigenvalues.detach().double(), 0.5).item()
        unit = _median(ratio)
        if not 0 < median < math.inf:
            raise InvalidInput(f"the spectrum's median is {median:g}; a law can be fitted to a positive one only")
        return cls(ratio, median / unit)

    def distance(self, eigenvalues: Tensor) -> float:
        """Return the Kolmogorov-Smirnov distance of a spectrum (m,) from the law, in [0, 1]."""
        expected = self.cdf(eigenvalues.detach().sort().values)
        m = len(expected)
        steps = torch.arange(m + 1, dtype=expected.dtype, device=expected.device) / m
        return torch.maximum((steps[1:] - expected).max(), (expected - steps[:-1]).max()).item()


@lru_cache(maxsize=256)
def _median(ratio: float) -> float:
    """Return the median of the law of scale 1; layers of one shape share it."""
    return MarchenkoPastur(ratio).quantile(torch.tensor(0.5)).item()


def spike_threshold(law: MarchenkoPastur, shape: tuple[int, int]) -> float:
    """Return what the largest eigenvalue of a matrix without spikes exceeds in 1 of 1000 cases.

    The upper edge of a finite matrix fluctuates (Tracy-Widom): an eigenvalue just above `law.edges` is no spike.

    Args:
        law: The law of the bulk.
        shape: Sides of the matrix.

    Example:
        >>> law = MarchenkoPastur(ratio=1.0, scale=100.0)
        >>> law.edges[1], round(spike_threshold(law, (100, 100)))
        (400.0, 436)
    """
    small, large = sorted(shape)
    roots = math.sqrt(max(large - 1, 1)), math.sqrt(small)
    width = sum(roots) * (1 / roots[0] + 1 / roots[1]) ** (1 / 3)
    return law.scale / large * (sum(roots) ** 2 + _TRACY_WIDOM_999 * width)
