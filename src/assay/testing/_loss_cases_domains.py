"""Penalties on domains in the setting of `assay.testing.losses`: the batch is one domain, the other one is fixed.

What the setting calls scores are features here, which a fixed linear head reads.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.losses.coral import CORALPenalty
from assay.losses.fish import FishPenalty
from assay.losses.fishr import FishrPenalty
from assay.losses.hessian_alignment import HessianAlignmentPenalty
from assay.losses.irm import IRMPenalty
from assay.losses.vrex import VRExPenalty
from assay.testing._shared import seeded

__all__ = ["CASES"]


class _OfOneBatch(nn.Module):
    """A penalty as a criterion of (scores, targets)."""

    def __init__(self, penalty: nn.Module) -> None:
        super().__init__()
        self.penalty = penalty
        weight, self.other = (torch.randn(size, 5, generator=seeded(5 + size), dtype=torch.float64) for size in (5, 4))
        self.heads = {dtype: _head(weight.to(dtype)) for dtype in (torch.float64, torch.float32, torch.bfloat16)}
        self.labels = torch.arange(4)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        other, head = self.other.to(scores), self.heads[scores.dtype]
        if isinstance(self.penalty, HessianAlignmentPenalty) and self.penalty.kind == "hutchinson":
            return self.penalty([scores, other], [targets, self.labels], head, generator=seeded())
        if isinstance(self.penalty, CORALPenalty) and len(scores) == 1:  # one sample has no covariance
            scores = torch.cat([scores, other[:1]])
        return self.penalty([scores, other], [targets, self.labels], head)


def _head(weight: Tensor) -> nn.Linear:
    head = nn.Linear(5, 5, bias=False, device="meta")  # draws no weights
    head.weight = nn.Parameter(weight)
    return head


def _case(make: Callable[[], nn.Module]) -> Callable[[], Any]:
    return lambda: _OfOneBatch(make())


CASES: dict[str, Callable[[], Any]] = {
    "hessian-alignment-hgp": _case(lambda: HessianAlignmentPenalty(detach_reference=False)),
    "hessian-alignment-diagonal": _case(lambda: HessianAlignmentPenalty("diagonal", detach_reference=False)),
    "hessian-alignment-hutchinson": _case(
        lambda: HessianAlignmentPenalty("hutchinson", num_probes=3, detach_reference=False)
    ),
    "irm": _case(IRMPenalty),
    "vrex": _case(VRExPenalty),
    "fish": _case(FishPenalty),
    "fishr": _case(FishrPenalty),
    "coral": _case(CORALPenalty),
}
