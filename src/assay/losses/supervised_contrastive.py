"""Supervised contrastive loss (SupCon): samples of one class attract each other, all others repel.

Khosla et al., "Supervised Contrastive Learning" (arXiv:2004.11362), eq. (2), the form with the mean outside of the
logarithm; one of the losses that "Investigating the Benefits of Projection Head for Representation Learning"
(arXiv:2403.11391) trains with and without a projection head.

    L_i = log sum_{a != i} exp(z_i.z_a / tau)  -  1/|P(i)| sum_{p in P(i)} z_i.z_p / tau,    z = h / |h|

Shapes: B samples h (B, D), targets (B,); P(i) are the other samples of i's label.

With a label per image and two augmented views of each, stacked to a batch of 2B, it is NT-Xent (SimCLR).

Departures: a sample alone in its class has no positive and gets the loss 0; it counts in the mean, as in the official
code since its repair. The official code's factor tau / 0.07 ("base temperature") is left out.
Cost: B^2 D multiply-adds and a few matrices (B, B).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import check_reduction, reduce

__all__ = ["SupervisedContrastiveLoss", "supervised_contrastive_loss"]

ABSENT = -1e30  # the exponent of a sample against itself: finite, so that a batch of one has a gradient


def _check_temperature(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise InvalidInput(f"temperature must be a finite number above 0; got {temperature}")
    return temperature


def supervised_contrastive_loss(
    features: Tensor, targets: Tensor, temperature: float = 0.1, reduction: str = "mean"
) -> Tensor:
    """Return the supervised contrastive loss of a batch.

    Args:
        features: (B, D), of any length; brought to unit length here, half precision raised to float32.
        targets: Labels (B,); only whether two are equal counts.
        temperature: tau, above 0.
        reduction: "mean", "sum" (both over all B samples) or "none".

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: On wrong shapes, float targets or an option out of range.

    Example:
        >>> z, y = torch.eye(2)[[0, 0, 1]], torch.tensor([0, 0, 1])
        >>> supervised_contrastive_loss(z, y, temperature=1.0, reduction="none")  # log(e + 1) - 1; the last is alone
        tensor([0.3133, 0.3133, 0.0000])
    """
    _check_temperature(temperature)
    _check(features, targets)
    with torch.autocast(features.device.type, enabled=False):
        z = F.normalize(features if features.dtype == torch.float64 else features.float(), dim=1)
        similarities = z @ z.T / temperature
        own = torch.eye(len(z), dtype=torch.bool, device=z.device)
        positive = (targets[:, None] == targets) & ~own
        others = similarities.masked_fill(own, ABSENT).logsumexp(dim=1)
        count = positive.sum(dim=1)
        attraction = torch.where(positive, similarities, 0.0).sum(dim=1) / count.clamp(min=1)
        return reduce(torch.where(count > 0, others - attraction, 0.0), reduction)


def _check(features: Tensor, targets: Tensor) -> None:
    if features.ndim != 2 or not features.is_floating_point():
        raise InvalidInput(f"features must be floats (B, D); got {features.dtype} {tuple(features.shape)}")
    if targets.shape != features.shape[:1] or targets.is_floating_point() or targets.is_complex():
        raise InvalidInput(
            f"targets must be integer labels ({len(features)},); got {targets.dtype} {tuple(targets.shape)}"
        )


class SupervisedContrastiveLoss(nn.Module):
    """Supervised contrastive loss as a criterion on features; see `supervised_contrastive_loss`.

    Args:
        temperature: tau, above 0.
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On a temperature not above 0 or an unknown reduction.

    Example:
        >>> views = torch.eye(3).repeat(2, 1)  # two views of each of three images: NT-Xent
        >>> SupervisedContrastiveLoss(temperature=1.0)(views, torch.arange(3).repeat(2))
        tensor(0.9048)
    """

    def __init__(self, temperature: float = 0.1, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature = _check_temperature(temperature)
        self.reduction = check_reduction(reduction)

    def forward(self, features: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of features (B, D), usually a projection head's output, with labels (B,)."""
        return supervised_contrastive_loss(features, targets, self.temperature, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
