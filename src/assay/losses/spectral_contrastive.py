"""Spectral contrastive loss: two views of a sample attract, views of different samples shall be orthogonal.

HaoChen et al., "Provable Guarantees for Self-Supervised Deep Learning with Spectral Contrastive Loss"
(arXiv:2106.04156); the loss in which "Investigating the Benefits of Projection Head for Representation Learning"
(arXiv:2403.11391) analyses linear networks.

    L = -2 E[f(x)^T f(x+)] + E[(f(x)^T f(x'))^2]

estimated without bias, x' being the second views of the batch's other samples:

    L_i = -2 a_i.b_i + 1/(B-1) sum_{j != i} (a_i.b_j)^2

Shapes: first views a and second views b of B samples, both (B, D), not normalised.

For linear f the population's loss and its minimum are known: `assay.models.LinearContrastive`. It is of fourth order in
f, so that large steps diverge. Departures: none. Cost: B^2 D multiply-adds and a matrix (B, B).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import check_reduction, reduce

__all__ = ["SpectralContrastiveLoss", "spectral_contrastive_loss"]


def spectral_contrastive_loss(first: Tensor, second: Tensor, reduction: str = "mean") -> Tensor:
    """Return the spectral contrastive loss of two views.

    Args:
        first: Features of the first views (B, D), at least two samples.
        second: Features of the second views (B, D), in the same order.
        reduction: "mean", "sum" or "none", over samples.

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: On wrong shapes, a batch of one sample or an unknown reduction.

    Example:
        >>> spectral_contrastive_loss(torch.eye(3), torch.eye(3))
        tensor(-2.)
    """
    if first.ndim != 2 or first.shape != second.shape or not first.is_floating_point():
        raise InvalidInput(
            f"expected two views of shape (B, D), floats; got {first.dtype} {tuple(first.shape)} and "
            f"{second.dtype} {tuple(second.shape)}"
        )
    if len(first) < 2:
        raise InvalidInput(f"a batch of {len(first)} has no other samples to contrast with; take at least 2")
    similarities = first @ second.T
    own = torch.eye(len(first), dtype=torch.bool, device=first.device)
    repulsion = similarities.masked_fill(own, 0.0).square().sum(dim=1) / (len(first) - 1)
    return reduce(repulsion - 2 * similarities.diagonal(), reduction)


class SpectralContrastiveLoss(nn.Module):
    """Spectral contrastive loss as a criterion on two views; see `spectral_contrastive_loss`.

    Args:
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> SpectralContrastiveLoss()(torch.ones(2, 1), torch.ones(2, 1))
        tensor(-1.)
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)

    def forward(self, first: Tensor, second: Tensor) -> Tensor:
        """Return the loss of features (B, D) of the first and of the second views."""
        return spectral_contrastive_loss(first, second, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}"
