"""Noise that multiplies: positive data after a time of geometric Brownian motion, and where such noising ends.

Paper: "Dale meets Langevin" (arXiv:2510.02730, v1), the forward process dX = mu X dt + sigma X dW. At time t in [0, 1]

    X_t = x_0 o exp((mu - sigma^2 / 2) t + sigma sqrt(t) Z),     Z ~ N(0, I)

so log x_t is normal around log x_0 with drift (mu - sigma^2 / 2) t and variance sigma^2 t, and E x_t = x_0 e^{mu t}.
With the default mu = sigma^2 / 2 the mean of the logarithm stays.

Shapes: x_0 and x_t (B, ...), positive; t (B,) or one number.

Know before use: x near 0 has a logarithm near minus infinity. The paper adds 1 to pixels in [0, 1], which is part of
the method. For sigma = 0.8 the noise does not hide the data at t = 1; samples start from a log-normal fitted to the
noised data.
Cost: one normal draw and one exp per entry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["gbm_noise", "log_normal_like"]


def gbm_noise(
    x0: Tensor,
    t: Tensor | float,
    sigma: float = 0.8,
    mu: float | None = None,
    generator: torch.Generator | None = None,
) -> Tensor:
    """Return data after geometric Brownian motion.

    Args:
        x0: (B, ...), above 0.
        t: Times, (B,) or one for all, 0 or more.
        sigma: Volatility, above 0.
        mu: Drift; None is sigma^2 / 2, which keeps the mean of the logarithm.
        generator: Draws the noise; None is torch's global generator.

    Returns:
        As x0.

    Raises:
        InvalidInput: If an entry of x0 is not above 0, a time is below 0, shapes do not fit, or sigma is out of range.

    Example:
        >>> x = gbm_noise(torch.ones(2, 3), torch.tensor([0.0, 0.5]), generator=torch.Generator().manual_seed(0))
        >>> x[0].tolist(), bool((x > 0).all())
        ([1.0, 1.0, 1.0], True)
    """
    drift = _drift(sigma, mu)
    times = torch.as_tensor(t, dtype=x0.dtype, device=x0.device)
    if times.ndim > 1 or (times.ndim == 1 and len(times) != len(x0)):
        raise InvalidInput(f"t must be one number or one per sample, ({len(x0)},); got shape {tuple(times.shape)}")
    if not (times >= 0).all():
        raise InvalidInput(f"times must be at least 0; got {times.min().item():g}")
    _positive("x0", x0)
    times = times.view(-1, *[1] * (x0.ndim - 1)) if times.ndim else times
    z = torch.randn(x0.shape, generator=generator, dtype=x0.dtype, device=x0.device)
    return x0 * torch.exp((drift - sigma**2 / 2) * times + sigma * times.sqrt() * z)


def log_normal_like(x: Tensor, count: int, generator: torch.Generator | None = None) -> Tensor:
    """Return log-normal samples whose entries all have the mean and the deviation of log x over samples and entries.

    Given noised data at t = 1, these are what the paper's samplers start from.

    Args:
        x: (B, ...), above 0.
        count: n, samples to draw.
        generator: Source of the draws; None is torch's global generator.

    Returns:
        (n, ...), entries independent of each other.

    Raises:
        InvalidInput: If an entry of x is not above 0.

    Example:
        >>> log_normal_like(torch.full((4, 2), 3.0), 1).round(decimals=4)  # no deviation
        tensor([[3., 3.]])
    """
    _positive("x", x)
    logs = x.log()
    z = torch.randn((count, *x.shape[1:]), generator=generator, dtype=x.dtype, device=x.device)
    return torch.exp(logs.mean() + logs.std(correction=0) * z)


def _drift(sigma: float, mu: float | None) -> float:
    if not 0 < sigma < math.inf:
        raise InvalidInput(f"sigma must be a finite number above 0; got {sigma}")
    return sigma**2 / 2 if mu is None else mu


def _positive(name: str, x: Tensor) -> None:
    if not (x > 0).all():
        raise InvalidInput(
            f"{name} must be above 0 everywhere; the smallest entry is {x.min().item():g} (the paper adds 1 to pixels)"
        )
