"""V-REx: the variance of the loss over domains.

Krueger et al., "Out-of-Distribution Generalization via Risk Extrapolation" (arXiv:2003.00688), V-REx; one of the
regularisers that "Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778) explains:

    mean_e (l_e - lbar)^2,     l_e the mean cross-entropy of domain e, lbar their mean

Shapes: n domains of B_e samples, d features, K classes (a head with one output is logistic).

Departures: none. Cost: one log-softmax.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from assay.losses._domains import head_scores, mean_losses
from assay.losses._labels import check_reduction, reduce

__all__ = ["VRExPenalty", "vrex_penalty"]


def vrex_penalty(
    features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module, reduction: str = "mean"
) -> Tensor:
    """Return the squared deviation of each domain's loss from their mean.

    Args:
        features: What the head reads, one (B_e, d) per domain; at least two domains.
        targets: Class indices, one (B_e,) per domain.
        head: Maps features to scores (B_e, K).
        reduction: Over domains: "mean" (the variance), "sum" or "none".

    Returns:
        A scalar, or (n,) with reduction "none".

    Raises:
        InvalidInput: On fewer than two domains, wrong shapes or labels, or an unknown reduction.

    Example:
        >>> import torch
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> vrex_penalty([z, z], [y, y], nn.Linear(2, 2)).item()
        0.0
    """
    losses = mean_losses(head_scores(features, targets, head), targets)
    return reduce((losses - losses.mean()).square(), reduction)


class VRExPenalty(nn.Module):
    """The variance of the loss over domains as a criterion; see `vrex_penalty`.

    Args:
        reduction: Over domains: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> import torch
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> VRExPenalty()([z, 2 * z], [y, y], nn.Linear(2, 2)).shape
        torch.Size([])
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> Tensor:
        """Return the penalty of features (B_e, d) and class indices (B_e,) by domain under a head."""
        return vrex_penalty(features, targets, head, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
