"""Fishr: the samples' gradients shall vary alike in all domains.

Rame, Dancette, Cord, "Fishr: Invariant Gradient Variances for Out-of-Distribution Generalization" (arXiv:2109.02934);
one of the regularisers that "Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778) explains:

    mean_e |v_e - vbar|^2,     v_e = mean_i g_i^2 - (mean_i g_i)^2,     vbar = mean_e v_e

with g_i the gradient of sample i's cross-entropy with respect to the head, which for a linear head is r_i z_i^T
(and r_i for the bias), r_i = softmax - onehot(y_i): so the mean of squares is mean r_ik^2 z_ij^2.

Shapes: n domains of B_e samples, d features, K classes (a head with one output is logistic).

Departures: no per-sample gradients are formed; hence linear heads only. No moving average over steps, as in their
Coloured MNIST; their DomainBed code has one. Cost: two products of the size of the head's forward pass per domain.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from assay.losses._domains import deviations, linear_domains
from assay.losses._labels import check_reduction, reduce

__all__ = ["FishrPenalty", "fishr_penalty"]


def fishr_penalty(
    features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module, reduction: str = "mean"
) -> Tensor:
    """Return each domain's squared distance from the mean variance of gradients.

    Args:
        features: What the head reads, one (B_e, d) per domain; at least two domains.
        targets: Class indices, one (B_e,) per domain.
        head: A `torch.nn.Linear` that maps features to scores (B_e, K).
        reduction: Over domains: "mean", "sum" or "none".

    Returns:
        A scalar, or (n,) with reduction "none".

    Raises:
        InvalidInput: On fewer than two domains, wrong shapes or labels, an unknown reduction or a head not linear.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> fishr_penalty([z, z], [y, y], nn.Linear(2, 2)).item()
        0.0
    """
    variances = [domain.variance() for domain in linear_domains(features, targets, head)]
    return reduce(deviations(variances, torch.stack(variances).mean(dim=0)), reduction)


class FishrPenalty(nn.Module):
    """Invariant gradient variances as a criterion on the domains of a step; see `fishr_penalty`.

    Args:
        reduction: Over domains: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> z, y = torch.eye(2), torch.tensor([0, 1])
        >>> FishrPenalty()([z, 2 * z], [y, y], nn.Linear(2, 2)).shape
        torch.Size([])
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, features: Sequence[Tensor], targets: Sequence[Tensor], head: nn.Module) -> Tensor:
        """Return the penalty of features (B_e, d) and class indices (B_e,) by domain under a linear head."""
        return fishr_penalty(features, targets, head, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
