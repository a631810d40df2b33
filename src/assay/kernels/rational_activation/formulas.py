"""The group-rational activation and its gradients as pointwise formulas and sums, for a compiler to fuse.

Paper: "FlashKAT" (arXiv:2505.13813), with the kernels of its official code for the formulas. With upstream gradient o,
    F = P/Q,   P = sum_{i=0..m} a_i x^i,   Q = 1 + sum_{j=1..n} |b_j| |x|^j,
    dx = o (P'/Q - P Q'/Q^2),   da_i = sum o x^i / Q,   db_j = -sign(b_j) sum o |x|^j P / Q^2,   sign(0) = 1.

Shapes: x, o, results (R, G, D_g): R rows, G groups of D_g channels; a (G, m + 1), |b| (G, n), all in the working dtype.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["rational_gradients_into", "rational_into"]


def rational_into(result: Tensor, x: Tensor, a: Tensor, b: Tensor) -> None:
    """Write F(x) into `result`."""
    z = x.to(a.dtype)
    above, _ = _horner(z, a)
    below, _ = _horner(z.abs(), torch.cat([torch.ones_like(b[:, :1]), b], 1))
    result.copy_(above / below)


def rational_gradients_into(result: Tensor, upstream: Tensor, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Write dx into `result`; return the sums over rows and channels of da and -sign(b) db, (m + 1 + n, G)."""
    z = x.to(a.dtype)
    distance = z.abs()
    above, above_slope = _horner(z, a)
    below, below_slope = _horner(distance, torch.cat([torch.ones_like(b[:, :1]), b], 1))
    of_above = upstream.to(a.dtype) / below
    of_below = of_above * (above / below)
    result.copy_(of_above * above_slope - of_below * torch.where(z < 0, -below_slope, below_slope))
    sums = []
    for _ in range(a.shape[1]):
        sums.append(of_above.sum((0, 2)))
        of_above = of_above * z
    for _ in range(b.shape[1]):
        of_below = of_below * distance
        sums.append(of_below.sum((0, 2)))
    return torch.stack(sums)


def _horner(x: Tensor, coefficients: Tensor) -> tuple[Tensor, Tensor]:
    """Return a polynomial and its derivative at x (R, G, D_g), coefficients (G, k) from the lowest power on."""
    value = coefficients[:, -1:].expand(x.shape)
    slope = torch.zeros_like(x)
    for i in range(coefficients.shape[1] - 2, -1, -1):
        slope = slope * x + value
        value = value * x + coefficients[:, i : i + 1]
    return value, slope
