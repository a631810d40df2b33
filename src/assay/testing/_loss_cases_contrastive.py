"""Contrastive losses in the setting of `assay.testing.losses`: what it calls scores are features here."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.losses.spectral_contrastive import SpectralContrastiveLoss
from assay.losses.supervised_contrastive import SupervisedContrastiveLoss
from assay.testing._shared import seeded

__all__ = ["CASES"]


class _OfOneView(nn.Module):
    """The spectral contrastive loss of (scores, targets): the second view is a fixed map of the first."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = SpectralContrastiveLoss()
        self.fixed: Tensor
        self.register_buffer("fixed", torch.randn(7, 5, generator=seeded(5)))

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        fixed = self.fixed.to(scores)
        first = torch.cat([scores / 10, fixed[:2]])  # one sample alone has no others
        return self.loss(first, first @ fixed[2:])


CASES: dict[str, Callable[[], Any]] = {
    "supervised-contrastive": SupervisedContrastiveLoss,
    "supervised-contrastive-warm": lambda: SupervisedContrastiveLoss(temperature=1.0),
    "spectral-contrastive": _OfOneView,
}
