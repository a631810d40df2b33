"""The sampled convex program: a lasso on random ReLU features, by FISTA.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), the sampled convex program (SCP); Beck and Teboulle (2009) for FISTA:

    min over a  l( sum_i (X u_i)_+ a_i, y ) + beta |a|_1       u_i random on the unit sphere

Shapes: n samples, N features; features (n, N), a (N,).
Departures: momentum restarts where it points uphill (O'Donoghue and Candes 2015), which keeps the minimum.
Cost: O(n N) per iteration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.models._convex_losses import ConvexLoss

__all__ = ["solve_lasso"]


def solve_lasso(
    features: Tensor, y: Tensor, loss: ConvexLoss, beta: float, iters: int
) -> tuple[Tensor, list[tuple[float, float]]]:
    """Return a, and per step how far it moved and 0, as ADMM's residuals are pairs."""
    curvature = (loss.curvature or 0.0) * float(torch.linalg.matrix_norm(features, 2)) ** 2
    step = 1 / max(curvature, 1e-300)
    a = extrapolated = features.new_zeros(features.shape[1])
    momentum, moves = 1.0, []
    for _ in range(iters):
        moved = extrapolated - step * (features.T @ loss.gradient(features @ extrapolated, y))
        new = moved.sign() * (moved.abs() - step * beta).clamp_min(0)
        if ((extrapolated - new) @ (new - a)).item() > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        extrapolated = new + (momentum - 1) / following * (new - a)
        moves.append(((new - a).norm().item(), 0.0))
        a, momentum = new, following
    return a, moves
