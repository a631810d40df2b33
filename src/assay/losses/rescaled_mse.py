"""Squared loss against a one-hot vector of height M, with a weight for the true class.

Papers: "Are All Losses Created Equal: A Neural Collapse Perspective" (arXiv:2210.02192), which compares target M = 15
with cross-entropy's relatives; "On the Optimization Landscape of Neural Collapse under MSE Loss" (arXiv:2203.01238),
which adds the weight alpha of the true class (the rescaled loss of Hui and Belkin).

    L(z, y) = (1/K) [ alpha (z_y - M)^2 + sum_{j != y} z_j^2 ]

Shapes: B samples, K classes; scores z (B, K), targets y (B,).

Departures: none. As in the official code the loss is a mean over samples *and* classes, so gradients are 2/K of the
squared distance's; with alpha = M = 1 it is `torch.nn.MSELoss` on one-hot targets. Cost: one pass, one (B, K) residual.
"""

from __future__ import annotations

import math

from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import check_reduction, label_column, pick, reduce, scatter

__all__ = ["RescaledMSELoss", "rescaled_mse_loss"]


def _check_positive(name: str, value: float) -> float:
    if not 0 < value < math.inf:
        raise InvalidInput(f"{name} must be a finite number above 0; got {value}")
    return value


def rescaled_mse_loss(
    scores: Tensor, targets: Tensor, target: float = 15.0, alpha: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Return the squared distance to `target` times one-hot, averaged over classes.

    Args:
        scores: Scores (B, K), read as they are (no softmax).
        targets: Class indices (B,).
        target: M, what the true class's score should be; above 0.
        alpha: Weight of the true class's square; above 0.
        reduction: "mean", "sum" (both over samples) or "none".

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: On wrong shapes, float targets, an option not above 0 or, on a CPU, labels out of range.

    Example:
        >>> import torch
        >>> rescaled_mse_loss(torch.tensor([[15.0, 2.0]]), torch.tensor([0]))
        tensor(2.)
    """
    column = label_column(scores, targets)
    residual_of_class = pick(scores, column) - _check_positive("target", target)
    residual = scatter(scores, column, residual_of_class[:, None])
    weighted = residual.square().sum(dim=1) + (_check_positive("alpha", alpha) - 1) * residual_of_class.square()
    return reduce(weighted / scores.shape[1], reduction)


class RescaledMSELoss(nn.Module):
    """Squared loss against `target` times one-hot as a criterion; see `rescaled_mse_loss`.

    Args:
        target: M, what the true class's score should be; above 0.
        alpha: Weight of the true class's square; above 0.
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an option not above 0 or an unknown reduction.

    Example:
        >>> import torch
        >>> RescaledMSELoss(target=1.0)(torch.eye(3), torch.arange(3))
        tensor(0.)
    """

    def __init__(self, target: float = 15.0, alpha: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.target = _check_positive("target", target)
        self.alpha = _check_positive("alpha", alpha)
        self.reduction = check_reduction(reduction)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of scores (B, K) against class indices (B,)."""
        return rescaled_mse_loss(scores, targets, self.target, self.alpha, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"target={self.target}, alpha={self.alpha}, reduction={self.reduction!r}"
