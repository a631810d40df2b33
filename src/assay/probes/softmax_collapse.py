"""Softmax collapse: the share of samples whose softmax is exactly one-hot in the loss's floating point type.

Prieto, Barsbey, Mediano, Birdal (2025, arXiv:2501.04697), section on softmax collapse: with the largest score
subtracted, the denominator 1 + sum_{j != max} exp(z_j - z_max) rounds to 1 once the gap exceeds about log(2 / eps):
16.6 in float32, 36.7 in float64, 7.6 in float16. A fitted sample then has gradient exactly 0.

Shapes: scores (B, K) before softmax, targets (B,). Cost: B K exponentials per batch, memory of three numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import Metric

from assay.errors import InvalidInput
from assay.probes.class_statistics import check_labels

__all__ = ["SoftmaxCollapse"]


class SoftmaxCollapse(Metric):
    """Share of samples with a collapsed softmax, and of samples whose cross-entropy is exactly 0.

    Measure it on the training data, in the type in which the loss is computed.

    Args:
        dtype: The loss's type, a `torch.dtype` or its name ("float16").
        **metric_options: Passed to `torchmetrics.Metric`.

    Example:
        >>> probe = SoftmaxCollapse()
        >>> probe.update(torch.tensor([[20.0, 0.0], [1.0, 0.0]]), torch.tensor([1, 0]))
        >>> probe.compute()
        {'softmax_collapse': 0.5, 'zero_terms': 0.0}
    """

    consumes = ("scores", "targets")
    full_state_update = False
    higher_is_better = False
    is_differentiable = False
    collapsed: Tensor
    zero: Tensor
    total: Tensor

    def __init__(self, dtype: torch.dtype | str = torch.float32, **metric_options: Any) -> None:
        super().__init__(**metric_options)
        found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
        if not isinstance(found, torch.dtype) or not found.is_floating_point:
            raise InvalidInput(f"dtype must be a floating point type such as 'float32', not {dtype!r}")
        self.loss_dtype = found
        self.skipped: dict[str, str] = {}
        for name in ("collapsed", "zero", "total"):
            self.add_state(name, torch.zeros((), dtype=torch.float64), dist_reduce_fx="sum")

    def update(self, scores: Tensor, targets: Tensor) -> None:
        """Take in a batch.

        Args:
            scores: Class scores before softmax (B, K).
            targets: Classes (B,).

        Raises:
            InvalidInput: If shapes, types or labels are wrong.
        """
        check_labels(scores, targets, scores.shape[-1])
        z = scores.detach().to(self.loss_dtype)
        denominator = (z - z.amax(dim=1, keepdim=True)).exp().sum(dim=1)
        loss = F.cross_entropy(z, targets, reduction="none")
        finite = scores.isfinite().all(dim=1)
        # A NaN makes the sums NaN, which is what compute then reports.
        self.collapsed = self.collapsed.to(scores.device) + torch.where(finite, denominator == 1, math.nan).sum()
        self.zero = self.zero.to(scores.device) + torch.where(finite, loss == 0, math.nan).sum()
        self.total = self.total.to(scores.device) + len(scores)

    def compute(self) -> dict[str, float]:
        """Return both shares, 0 to 1; NaN, with the reason in `skipped`, if a score was not finite."""
        values = {
            "softmax_collapse": (self.collapsed / self.total).item(),
            "zero_terms": (self.zero / self.total).item(),
        }
        reason = "the scores contain NaN or infinity" if self.total > 0 else "no samples were seen"
        self.skipped = {key: reason for key, value in values.items() if math.isnan(value)}
        return values
