"""Three functions of one variable on which diffGrad is to find the global minimum and Adam to overshoot it.

Paper: diffGrad (arXiv:1909.11015), section on the analysis by synthetic functions; 300 steps from x = -1 with
betas (0.95, 0.999). The derivatives are those of the paper's functions (the official notebook's second one lacks a
factor of 8 within).

Shapes: x is (3,), an entry per function. Each optimizer runs at all learning rates at once, as groups of its own.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.lab.resources import check_deadline
from assay.names import resolve
from assay.streams import Streams

__all__ = ["analytic", "global_basin", "slopes", "values"]

STEPS = 300
BASINS = ((-1e9, 0.0), (-0.9, -0.26), (-0.4, 0.4))  # between the walls or local maxima beside the global minimum


def values(x: Tensor) -> Tensor:
    """Return F1(x_1), F2(x_2) and F3(x_3), (3,)."""
    first, second, third = x.unbind()
    piece = torch.where(third <= -0.4, third + 0.75, torch.where(third <= 0, -7 / 8 * third, 7 / 8 * third))
    piece = torch.where(third > 0.4, -third + 0.75, piece)
    return torch.stack(
        [
            torch.where(first <= 0, (first + 0.3) ** 2, (first - 0.2) ** 2 + 0.05),
            torch.where(second <= -0.9, -40 * second - 35.15, second**3 + second * torch.sin(8 * second) + 0.85),
            torch.where((third <= -0.5) | (third > 0.5), third**2, piece),
        ]
    )


def slopes(x: Tensor) -> Tensor:
    """Return the derivatives of `values`, (3,)."""
    first, second, third = x.unbind()
    inside = torch.where(third <= -0.4, 1.0, torch.where(third <= 0, -7 / 8, torch.where(third <= 0.4, 7 / 8, -1.0)))
    smooth = 3 * second**2 + 8 * second * torch.cos(8 * second) + torch.sin(8 * second)
    return torch.stack(
        [
            torch.where(first <= 0, 2 * first + 0.6, 2 * first - 0.4),
            torch.where(second <= -0.9, -40.0, smooth),
            torch.where((third <= -0.5) | (third > 0.5), 2 * third, inside),
        ]
    )


def global_basin(x: Tensor) -> Tensor:
    """Return which entries are in the basin of their function's global minimum, bool (3,)."""
    low, high = torch.tensor(BASINS, dtype=x.dtype).T
    return (x > low) & (x < high)


def analytic(streams: Streams, *, optimizer: str, rate_factor: float, rates: int, spread: float) -> dict[str, float]:
    """Run an optimizer on the three functions at a grid of learning rates from 0.01 to 0.5.

    Args:
        streams: "init" draws the start.
        optimizer: A name in `assay.optim`, without its learning rate.
        rate_factor: What every rate of the grid is multiplied by.
        rates: Points of the grid, evenly spaced in the logarithm.
        spread: The start is uniform within this distance of -1.

    Returns:
        "global_share", the share of rates and functions that end in the global basin; "global_share_f1" to "_f3".
    """
    start = -1 + spread * (2 * torch.rand((), generator=streams.torch("init"), dtype=torch.float64) - 1)
    grid = torch.logspace(-2, torch.tensor(0.5).log10().item(), rates).tolist()
    points = [torch.nn.Parameter(start.repeat(3)) for _ in grid]
    groups = [{"params": [x], "lr": rate_factor * rate} for x, rate in zip(points, grid, strict=True)]
    steps = resolve("optim", optimizer)(groups, betas=(0.95, 0.999))
    for _ in range(STEPS):
        check_deadline()
        for x in points:
            x.grad = slopes(x.detach())
        steps.step()
    found = torch.stack([global_basin(x.detach()) for x in points]).double().mean(0)
    return {"global_share": found.mean().item()} | {f"global_share_f{i}": f for i, f in enumerate(found.tolist(), 1)}
