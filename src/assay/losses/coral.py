"""CORAL: features of all domains shall have the same covariance and mean.

Sun and Saenko, "Deep CORAL" (arXiv:1607.01719), eq. (1), in the form that domain generalisation uses (DomainBed); one
of the regularisers that "Understanding Hessian Alignment for Domain Generalization" (arXiv:2308.11778) explains:

    mean over pairs e < f of [ |C_e - C_f|_F^2 / d^2 + |m_e - m_f|^2 / d ]

with the mean m_e and the covariance C_e (over B_e - 1) of domain e's features.

Shapes: n domains of B_e samples, d features.

Departures from Deep CORAL: means are matched, too, the factor is 1 / d^2 and not 1 / (4 d^2), pairs are averaged.
Cost: one product (d, B_e) (B_e, d) per domain.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._domains import check_features
from assay.losses._labels import check_reduction, reduce

__all__ = ["CORALPenalty", "coral_penalty"]


def coral_penalty(features: Sequence[Tensor], reduction: str = "mean") -> Tensor:
    """Return the distance of the first two moments for each pair of domains.

    Args:
        features: One (B_e, d) per domain; at least two domains of two samples each.
        reduction: Over pairs: "mean", "sum" or "none" (in the order 01, 02, ..., 12, ...).

    Returns:
        A scalar, or one number per pair with reduction "none".

    Raises:
        InvalidInput: On fewer than two domains, wrong shapes, a domain of one sample or an unknown reduction.

    Example:
        >>> z = torch.eye(2)
        >>> coral_penalty([z, z + 2]).item()  # means differ by 2 in both features
        4.0
    """
    moments = [_moments(z) for z in check_features(features)]
    pairs = [
        (m - other_m).square().mean() + (C - other_C).square().mean()
        for (m, C), (other_m, other_C) in combinations(moments, 2)
    ]
    return reduce(torch.stack(pairs), reduction)


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    if len(features) < 2:
        raise InvalidInput("a domain has 1 sample; a covariance needs at least 2: take larger batches per domain")
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


class CORALPenalty(nn.Module):
    """CORAL as a criterion on the domains of a step; see `coral_penalty`.

    Args:
        reduction: Over pairs of domains: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> CORALPenalty()([torch.eye(2), torch.eye(2)]).item()
        0.0
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(
        self, features: Sequence[Tensor], targets: Sequence[Tensor] | None = None, head: nn.Module | None = None
    ) -> Tensor:
        """Return the penalty of features (B_e, d) by domain; it needs no targets and no head."""
        return coral_penalty(features, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
