"""Cases of SOP: the criterion as it scores new samples, and its loss with noise variables on every sample."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.losses.sop import SOPLoss, sop_loss

__all__ = ["CASES"]


class _SameNoiseForAll(nn.Module):
    """SOP's loss where every sample has the same u and v, so that the order of a batch does not matter."""

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        self.reduction = reduction

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        u, v = torch.full((scores.shape[0], 1), 0.5), torch.full(scores.shape, 0.3)
        return sop_loss(scores, targets, u, v, reduction=self.reduction)


CASES: dict[str, Callable[[], Any]] = {
    "sop-new-samples": lambda: SOPLoss(num_samples=6, num_classes=5).eval(),
    "sop-noise": _SameNoiseForAll,
}
