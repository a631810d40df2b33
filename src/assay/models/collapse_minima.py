"""Closed forms of where unconstrained features must end: value and scores of the global minimum, CE and MSE.

Kothapalli's review (2023, arXiv:2206.04041), unconstrained features and layer-peeled models; layer-peeled with
cross-entropy: Fang, He, Long, Su (2021, arXiv:2101.12699). Z = W Hbar (K, K) are the scores of the class means, row k
those of class k, without the bias.

With decay, min over W Hbar = Z of lW/2 |W|^2 + n lH/2 |Hbar|^2 is c |Z|_* (nuclear norm), c = sqrt(n lW lH):

    MSE, no bias    Z = (1 - K c) I              K ((1-z)^2 / (2K) + c z)           orthogonal frame
    MSE, bias 1/K   Z = (1 - K c) (I - J/K)      (K-1) ((1-z)^2 / (2K) + c z)       simplex
    CE, either      Z = t (I - J/K)              log(1 + (K-1) e^-t) + (K-1) c t    simplex, t = log(1/c - (K-1))

for K c < 1, beyond which Z = 0. With mean squared norms of the rows bounded by EW and EH instead, |Z|_* is at most
K sqrt(EW EH), so that Z has the same form, and the largest scale that this (or a perfect fit, for MSE) allows.

Symbols: K classes, n samples each, J all ones. MSE is 1/(2N) sum over samples of |z - e_y|^2. Valid for d >= K.
`assay.models.collapsed_minimum` solves for any symmetric loss and for decay of the bias, numerically.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["layer_peeled_minimum", "ufm_minimum"]


def ufm_minimum(
    loss: str, num_classes: int, samples_per_class: int, weight_decay: float, feature_decay: float, bias: bool = True
) -> tuple[float, Tensor]:
    """Return the global minimum of the unconstrained features model with weight decay.

    Args:
        loss: "cross-entropy" or "mse".
        num_classes: K, at least 2.
        samples_per_class: n, at least 1.
        weight_decay: lW, above 0.
        feature_decay: lH, above 0.
        bias: Whether the head has a bias, free of decay.

    Returns:
        The objective's value, and Z (K, K) in float64.

    Raises:
        InvalidInput: If the loss is neither, or a number is out of range.

    Example:
        >>> value, Z = ufm_minimum("mse", 4, 10, 5e-3, 5e-3, bias=False)
        >>> round(value, 8), round(Z[0, 0].item(), 6)
        (0.06124555, 0.936754)
    """
    K, n = _checked(loss, num_classes), samples_per_class
    if n < 1 or weight_decay <= 0 or feature_decay <= 0:
        raise InvalidInput(
            f"expected n >= 1 and decays above 0; got {n} samples per class, decays {weight_decay} and {feature_decay}"
        )
    c = math.sqrt(n * weight_decay * feature_decay)
    scale = 0.0
    if K * c < 1:
        scale = 1 - K * c if loss == "mse" else math.log(1 / c - (K - 1))
    Z = scale * _shape(loss, K, bias)
    return _fit(loss, K, scale, bias) + c * Z.trace().item(), Z


def layer_peeled_minimum(
    loss: str, num_classes: int, weight_bound: float, feature_bound: float, bias: bool = True
) -> tuple[float, Tensor]:
    """Return the global minimum of the layer-peeled model: unconstrained features under bounds of the norms.

    Args:
        loss: "cross-entropy" or "mse".
        num_classes: K, at least 2.
        weight_bound: EW, on the squared norm of each classifier row (or their mean; the minimum is the same).
        feature_bound: EH, on that of each sample's features.
        bias: Whether the head has a bias.

    Returns:
        The mean loss, and Z (K, K) in float64.

    Raises:
        InvalidInput: If the loss is neither, or a number is out of range.

    Example:
        >>> value, Z = layer_peeled_minimum("cross-entropy", 3, 4.0, 1.0)  # cos 120 degrees is -1/2
        >>> round(value, 6), [round(z, 6) for z in Z[0].tolist()]
        (0.094923, [2.0, -1.0, -1.0])
    """
    K = _checked(loss, num_classes)
    if weight_bound <= 0 or feature_bound <= 0:
        raise InvalidInput(f"expected bounds above 0; got {weight_bound} and {feature_bound}")
    shape = _shape(loss, K, bias)
    scale = math.sqrt(weight_bound * feature_bound) * K / shape.trace().item()
    if loss == "mse":
        scale = min(scale, 1.0)
    return _fit(loss, K, scale, bias), scale * shape


def _checked(loss: str, num_classes: int) -> int:
    if loss not in ("cross-entropy", "mse"):
        raise InvalidInput(f"loss must be 'cross-entropy' or 'mse', not {loss!r}; see collapsed_minimum for others")
    if num_classes < 2:
        raise InvalidInput(f"num_classes must be at least 2, not {num_classes}")
    return num_classes


def _shape(loss: str, K: int, bias: bool) -> Tensor:
    """Return I for squared loss without a bias, and else I - J/K; all its singular values are 1 or 0."""
    identity = torch.eye(K, dtype=torch.float64)
    return identity if loss == "mse" and not bias else identity - 1 / K


def _fit(loss: str, K: int, scale: float, bias: bool) -> float:
    """Return the mean loss at scores of that scale; squared loss misses each of the shape's directions alike."""
    if loss == "cross-entropy":
        return math.log1p((K - 1) * math.exp(-scale))
    return (K - 1 if bias else K) * (1 - scale) ** 2 / (2 * K)
