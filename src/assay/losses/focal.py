"""Focal loss: cross-entropy that turns away from samples it already fits.

Paper: "Are All Losses Created Equal: A Neural Collapse Perspective" (arXiv:2210.02192), where it is one of four losses
with the same global minimisers up to scale; the loss itself is eq. (4) of Lin et al. (arXiv:1708.02002).

    L(z, y) = -(1 - p_y)^gamma log p_y,    p = softmax(z)

Shapes: B samples, K classes; scores z (B, K), targets y (B,).

Departures: 1 - p_y is `-expm1(log p_y)`, which keeps its digits where p_y is near 1, and is kept above the smallest
normal number, since for gamma < 1 its power has an infinite slope at 0. Cost: one log-softmax, as cross-entropy.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import check_reduction, label_column, pick, reduce

__all__ = ["FocalLoss", "focal_loss"]


def _check_gamma(gamma: float) -> float:
    if not 0 <= gamma < math.inf:
        raise InvalidInput(f"gamma must be a finite number, 0 or larger; got {gamma}")
    return gamma


def focal_loss(scores: Tensor, targets: Tensor, gamma: float = 3.0, reduction: str = "mean") -> Tensor:
    """Return the focal loss, -(1 - p_y)^gamma log p_y.

    Args:
        scores: Logits (B, K).
        targets: Class indices (B,).
        gamma: Focusing exponent, 0 or larger; 0 is cross-entropy. The paper's runs use 3.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: On wrong shapes, float targets, a negative gamma or, on a CPU, labels out of range.

    Example:
        >>> scores, targets = torch.tensor([[2.0, 0.0], [0.0, 0.0]]), torch.tensor([0, 1])
        >>> bool(focal_loss(scores, targets, gamma=0.0) == F.cross_entropy(scores, targets))
        True
    """
    column = label_column(scores, targets)
    log_p = pick(F.log_softmax(scores, dim=1), column)
    missing = (-torch.expm1(log_p)).clamp(min=torch.finfo(log_p.dtype).tiny)
    return reduce(-(missing ** _check_gamma(gamma)) * log_p, reduction)


class FocalLoss(nn.Module):
    """Focal loss as a criterion; see `focal_loss`.

    Args:
        gamma: Focusing exponent, 0 or larger; 0 is cross-entropy.
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On a negative gamma or an unknown reduction.

    Example:
        >>> FocalLoss(gamma=2.0)(torch.zeros(4, 3), torch.tensor([0, 1, 2, 0])).shape
        torch.Size([])
    """

    def __init__(self, gamma: float = 3.0, reduction: str = "mean") -> None:
        super().__init__()
        self.gamma = _check_gamma(gamma)
        self.reduction = check_reduction(reduction)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of scores (B, K) against class indices (B,)."""
        return focal_loss(scores, targets, self.gamma, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"gamma={self.gamma}, reduction={self.reduction!r}"
