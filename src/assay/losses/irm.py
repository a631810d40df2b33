"""IRM's penalty: how much each domain would like to rescale the scores.

Arjovsky, Bottou, Gulrajani, Lopez-Paz, "Invariant Risk Minimization" (arXiv:1907.02893), IRMv1; one of the regularisers
that "Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778) explains:

    mean_e (d/dw l_e(w f))^2 at w = 1,     where d/dw l_e = mean_i <softmax(f_i) - onehot(y_i), f_i>

Shapes: n domains of B_e samples, d features, K classes (a head with one output is logistic); scores f (B_e, K).

Departures: the closed form for double backward. As in the authors' Coloured MNIST the square is of the whole batch's
derivative, which is biased upwards by its variance; DomainBed multiplies the derivatives of two halves.
Cost: one softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.losses._domains import head_scores, residuals
from assay.losses._labels import check_reduction, reduce

__all__ = ["IRMPenalty", "irm_penalty"]


def irm_penalty(
    features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module, reduction: str = "mean"
) -> Tensor:
    """Return the squared derivative of each domain's loss by a factor on its scores.

    Args:
        features: What the head reads, one (B_e, d) per domain; at least two domains.
        targets: Class indices, one (B_e,) per domain.
        head: Maps features to scores (B_e, K).
        reduction: Over domains: "mean", "sum" or "none".

    Returns:
        A scalar, or (n,) with reduction "none".

    Raises:
        InvalidInput: On fewer than two domains, wrong shapes or labels, or an unknown reduction.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> irm_penalty([z, z], [y, y], lambda z: 0 * z).item()  # no scores, nothing to rescale
        0.0
    """
    scores = head_scores(features, targets, head)
    slopes = [(residuals(f, y)[1] * f).sum(dim=1).mean() for f, y in zip(scores, targets, strict=True)]
    return reduce(torch.stack(slopes).square(), reduction)


class IRMPenalty(nn.Module):
    """IRMv1's penalty as a criterion on the domains of a step; see `irm_penalty`.

    Args:
        reduction: Over domains: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> IRMPenalty()([z, 2 * z], [y, y], nn.Linear(2, 2)).shape
        torch.Size([])
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> Tensor:
        """Return the penalty of features (B_e, d) and class indices (B_e,) by domain under a head."""
        return irm_penalty(features, targets, head, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
