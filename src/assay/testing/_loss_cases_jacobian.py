"""The homeostatic loss in the setting of `assay.testing.losses`: each row of scores is a state of a fixed field."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.losses.jacobian_symmetry import JacobianSymmetryLoss
from assay.testing._shared import seeded

__all__ = ["CASES"]


class _OfAField(nn.Module):
    """The exact loss of tanh(W s) at s = scores, as a criterion of (scores, targets)."""

    def __init__(self) -> None:
        super().__init__()
        self.loss = JacobianSymmetryLoss(samples=None)
        self.weight = torch.randn(5, 5, generator=seeded(5), dtype=torch.float64)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        weight = self.weight.to(scores)
        return self.loss(lambda s: torch.tanh(s / 8 @ weight), scores)


CASES: dict[str, Callable[[], Any]] = {"jacobian-symmetry": _OfAField}
