"""Squared loss on unconstrained features: the global minimum under any decay of the bias, and the saddle at 0.

Zhou et al., "On the Optimization Landscape of Neural Collapse under MSE Loss" (arXiv:2203.01238), theorem on global
optimality, for which the two branches of the bias were worked out anew:

    f(W, H, b) = 1/(2N) |W H + b 1^T - Y|_F^2 + lW/2 |W|_F^2 + lH/2 |H|_F^2 + lb/2 |b|^2

Symbols: K classes, n samples each, N = K n; W (K, d), H (d, N), b (K,), Y (K, N) one-hot; J all ones;
c = sqrt(n lW lH). With K c < 1 the features of a class coincide, H = Hbar (x) 1_n^T, and
Hbar = sqrt(lW / (n lH)) W^T, b = beta 1,

    W Hbar = a (I - J/K) + m J/K,   a = 1 - K c
    lb / (1 + lb) <= K c  (a free bias included)   m = 0,                      beta = 1 / (K (1 + lb))    a simplex
    otherwise                                      m = 1 - K c (1 + 1/lb),     beta = c / lb
    no bias                                        m = a,                      beta = 0        an orthogonal frame

    f* = ((K-1) (1-a)^2 + (1 - m - K beta)^2) / (2K) + c ((K-1) a + m) + lb K beta^2 / 2

with a = m = 0 where K c >= 1. Every other critical point is a strict saddle; at W = H = 0 the Hessian's least
eigenvalue is (lW + lH)/2 - sqrt(((lW - lH)/2)^2 + n/N^2), whatever b's optimum, and negative exactly where K c < 1.

`assay.losses.rescaled_mse_loss(target=1)` is 2/K times the squared loss here: its decays are K/2 times smaller.
Valid for d >= K (d >= K-1 where m = 0). Departures: none. `assay.models.ufm_minimum` has the two cases without decay of
the bias, `assay.models.collapsed_minimum` other losses, numerically.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["SquaredLossMinimum", "origin_curvature", "squared_loss_minimum"]


@dataclass(frozen=True)
class SquaredLossMinimum:
    """Where unconstrained features with squared loss end.

    Args:
        class_scores: W Hbar (K, K), float64, without the bias.
        bias: beta, the same for all classes.
        value: f*, the objective's global minimum.
    """

    class_scores: Tensor
    bias: float
    value: float


def squared_loss_minimum(
    num_classes: int,
    samples_per_class: int,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float | None = 0.0,
) -> SquaredLossMinimum:
    """Return the global minimum in closed form.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lW, above 0.
        feature_decay: lH, above 0.
        bias_decay: lb, 0 or larger; None for a head without a bias.

    Raises:
        InvalidInput: If a number is out of range.

    Example:
        >>> end = squared_loss_minimum(4, 6, 5e-3, 5e-3)
        >>> round(end.class_scores[0, 0].item(), 4), round(end.bias, 4), round(end.value, 6)
        (0.7133, 0.25, 0.035842)
    """
    K, c = num_classes, _cost(num_classes, samples_per_class, weight_decay, feature_decay)
    if bias_decay is not None and not 0 <= bias_decay < math.inf:
        raise InvalidInput(f"bias_decay must be 0 or larger, or None without a bias; got {bias_decay}")
    a = max(0.0, 1 - K * c)
    if bias_decay is None:
        m, beta = a, 0.0
    elif bias_decay / (1 + bias_decay) <= K * c:
        m, beta = 0.0, 1 / (K * (1 + bias_decay))
    else:
        m, beta = 1 - K * c * (1 + 1 / bias_decay), c / bias_decay
    misfit = (K - 1) * (1 - a) ** 2 + (1 - m - K * beta) ** 2
    value = misfit / (2 * K) + c * ((K - 1) * a + m) + (bias_decay or 0.0) * K * beta**2 / 2
    scores = a * torch.eye(K, dtype=torch.float64) + (m - a) / K
    return SquaredLossMinimum(scores, beta, value)


def origin_curvature(num_classes: int, samples_per_class: int, weight_decay: float, feature_decay: float) -> float:
    """Return the Hessian's least eigenvalue in W and H at W = H = 0; below 0, a saddle.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lW, above 0.
        feature_decay: lH, above 0.

    Raises:
        InvalidInput: If a number is out of range.

    Example:
        >>> origin_curvature(4, 6, 5e-3, 5e-3) < 0 < origin_curvature(4, 6, 0.2, 0.2)
        True
    """
    _cost(num_classes, samples_per_class, weight_decay, feature_decay)
    half_gap = (weight_decay - feature_decay) / 2
    return (weight_decay + feature_decay) / 2 - math.sqrt(half_gap**2 + 1 / (num_classes**2 * samples_per_class))


def _cost(K: int, n: int, weight_decay: float, feature_decay: float) -> float:
    """Return c, the price of the class scores' nuclear norm."""
    if K < 2 or n < 1 or not (weight_decay > 0 and feature_decay > 0):
        raise InvalidInput(
            f"expected K >= 2, n >= 1 and decays above 0; got {K} classes, {n} samples each, decays {weight_decay} and "
            f"{feature_decay}"
        )
    return math.sqrt(n * weight_decay * feature_decay)
