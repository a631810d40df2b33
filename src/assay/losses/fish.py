"""Fish: reward gradients of different domains that point the same way.

Shi et al., "Gradient Matching for Domain Generalization" (arXiv:2104.09937), inter-domain gradient matching; one of the
regularisers that "Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778) explains:

    - mean over pairs e < f of <g_e, g_f>,     g_e the gradient of domain e's mean cross-entropy

Shapes: n domains of B_e samples, d features, K classes (a head with one output is logistic).

Departures: Fish itself follows this objective to first order, by going through the domains with an inner optimizer and
averaging weights; here it is the objective, exactly, and as in the Hessian alignment paper by the head only.
Like the original it is not bounded from below: keep its weight small. Cost: one product of the size of the head's
forward pass per domain with a linear head, a double backward with any other.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from assay.losses._domains import head_domains
from assay.losses._labels import check_reduction, reduce

__all__ = ["FishPenalty", "fish_penalty"]


def fish_penalty(
    features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module, reduction: str = "mean"
) -> Tensor:
    """Return the negative inner product of the head's gradients for each pair of domains.

    Args:
        features: What the head reads, one (B_e, d) per domain; at least two domains.
        targets: Class indices, one (B_e,) per domain.
        head: Maps features to scores (B_e, K).
        reduction: Over pairs: "mean", "sum" or "none" (in the order 01, 02, ..., 12, ...).

    Returns:
        A scalar, or one number per pair with reduction "none".

    Raises:
        InvalidInput: On fewer than two domains, wrong shapes or labels, or an unknown reduction.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> fish_penalty([z, z], [y, y], nn.Linear(2, 2)).item() < 0
        True
    """
    gradients = [domain.gradient for domain in head_domains(features, targets, head)]
    return reduce(torch.stack([-torch.dot(g, h) for g, h in combinations(gradients, 2)]), reduction)


class FishPenalty(nn.Module):
    """Gradient matching as a criterion on the domains of a step; see `fish_penalty`.

    Args:
        reduction: Over pairs of domains: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> FishPenalty()([z, 2 * z], [y, y], nn.Linear(2, 2)).shape
        torch.Size([])
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> Tensor:
        """Return the penalty of features (B_e, d) and class indices (B_e,) by domain under a head."""
        return fish_penalty(features, targets, head, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
