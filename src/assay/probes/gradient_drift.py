"""Drift against diffusion: are a layer's mini-batch gradients mostly their mean, or mostly noise?

Shwartz-Ziv and Tishby (2017, arXiv:1703.00810), section on the two phases of SGD: over an epoch's mini-batches b,

    mean = |mean_b g_b|_F / |W|_F        deviation = |std_b g_b|_F / |W|_F        ratio = mean / deviation

They call a ratio above 1 drift, below 1 diffusion, and date compression by the change. The ratio falls with every
fit and depends on the size of the mini-batches (the deviation goes with 1 / sqrt(size)); compare at one size.

Shapes: B mini-batches, gradients (B, ...) of one weight (...). The deviation divides by B, as the critique's code does.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["GradientDrift", "gradient_snr"]


class GradientDrift(NamedTuple):
    """Length of the mean and of the deviation of mini-batch gradients, relative to the weight's, and their ratio."""

    mean: float
    deviation: float
    ratio: float


def gradient_snr(gradients: Tensor, weight: Tensor | None = None) -> GradientDrift:
    """Return how mini-batch gradients of one weight drift and scatter.

    Args:
        gradients: One gradient per mini-batch (B, ...), B at least 2, all at the same weight.
        weight: The weight (...), whose length is the unit; 1 is if not given.

    Returns:
        Numbers of at least 0; the ratio is infinite where all gradients are equal, NaN where all are 0.

    Raises:
        InvalidInput: If there is one gradient only, shapes differ, or a number is not finite.

    Example:
        >>> import torch
        >>> gradient_snr(torch.tensor([[1.0, 2.0], [1.0, -2.0]]))
        GradientDrift(mean=1.0, deviation=2.0, ratio=0.5)
    """
    if gradients.ndim < 1 or len(gradients) < 2:
        raise InvalidInput(f"expected gradients of at least 2 mini-batches, got shape {tuple(gradients.shape)}")
    if weight is not None and weight.shape != gradients.shape[1:]:
        raise InvalidInput(f"gradients of {tuple(gradients.shape[1:])} do not fit a weight of {tuple(weight.shape)}")
    if not gradients.isfinite().all():
        raise InvalidInput("a gradient is NaN or infinite")
    g = gradients.detach().double()
    mean, deviation = g.mean(dim=0).norm().item(), g.std(dim=0, correction=0).norm().item()
    unit = 1.0 if weight is None else weight.detach().double().norm().item()
    if not unit > 0:
        raise InvalidInput(f"the weight has length {unit}; gradients relative to it are undefined")
    ratio = mean / deviation if deviation > 0 else (math.inf if mean > 0 else math.nan)
    return GradientDrift(mean / unit, deviation / unit, ratio)
