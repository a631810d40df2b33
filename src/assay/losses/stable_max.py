"""StableMax cross-entropy: softmax with a linear tail in place of exp, so that floating point never absorbs a class.

Paper: "Grokking at the Edge of Numerical Stability" (arXiv:2501.04697).

    s(x) = x + 1 (x >= 0),  1 / (1 - x) (x < 0);     StableMax(z)_i = s(z_i) / sum_j s(z_j);     L = -log StableMax(z)_y

Shapes: B samples, K classes; scores z (B, K), targets y (B,).

We compute in logarithms: log s(x) = g(x) = sign(x) log(1 + |x|), so StableMax(z) = softmax(g(z)). The loss is
log(1 + sum_{j != y} s_j / s_y) and its gradient for the true class is minus the sum of the others', so neither rounds
to 0 while the others' share is a normal number; the official code, which takes 1 - p_y, needs float64 for that.

Departures: no 1e-30 in the denominator (1 - x >= 1 wherever it is used); `upcast` (float64, the official code's
default and ours) can be switched off. The result has the scores' type, at least float32. Cost: scores are
the only (B, K) tensor kept for the backward pass, which computes g again; differentiable twice.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.losses._labels import check_reduction, label_column, pick, reduce, scatter

__all__ = ["StableMaxCrossEntropy", "log_stablemax", "stablemax_cross_entropy"]


def _log_s(x: Tensor) -> Tensor:
    """Return g(x) = sign(x) log(1 + |x|); a constant sign gives the slope 1 at 0, where autograd's |x| has slope 0."""
    sign = torch.where(x < 0, -1.0, 1.0).to(x.dtype)
    return sign * torch.log1p(sign * x)


def log_stablemax(scores: Tensor, dim: int = -1) -> Tensor:
    """Return log StableMax along an axis, the counterpart of `torch.log_softmax`.

    Args:
        scores: Any shape.
        dim: The axis of the classes.

    Returns:
        Tensor of the same shape and type; its exponentials sum to 1 along `dim`.

    Example:
        >>> log_stablemax(torch.tensor([1.0, -1.0])).exp()  # s = 2 and 1/2
        tensor([0.8000, 0.2000])
    """
    return F.log_softmax(_log_s(scores), dim=dim)


class _StableMaxLoss(torch.autograd.Function):
    """Per-sample loss (B,) that keeps only the scores; its backward is made of differentiable operations."""

    generate_vmap_rule = True

    @staticmethod
    def forward(scores: Tensor, column: Tensor, dtype: torch.dtype) -> Tensor:
        g = _log_s(scores.to(dtype))
        others = scatter(g, column, torch.full_like(g[:, :1], -torch.inf)).logsumexp(dim=1)
        return torch.logaddexp(others - pick(g, column), torch.zeros_like(others))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, torch.dtype], output: Tensor) -> None:
        scores, column, ctx.dtype = inputs
        ctx.save_for_backward(scores, column)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        scores, column = ctx.saved_tensors
        z = scores.to(ctx.dtype)
        shares = log_stablemax(z).exp()
        others = shares.scatter(1, column, torch.zeros_like(shares[:, :1]))
        slopes = others.scatter(1, column, -others.sum(dim=1, keepdim=True))
        return (gradient[:, None] * slopes / (1 + z.abs())).to(scores.dtype), None, None


def stablemax_cross_entropy(scores: Tensor, targets: Tensor, reduction: str = "mean", upcast: bool = True) -> Tensor:
    """Return -log StableMax(scores)[target].

    Args:
        scores: Logits (B, K).
        targets: Class indices (B,).
        reduction: "mean", "sum" or "none".
        upcast: Compute in float64, as the official code does; otherwise in the scores' type, at least float32.

    Returns:
        A scalar, or (B,) with reduction "none", in the scores' type, at least float32.

    Raises:
        InvalidInput: On wrong shapes, float targets or, on a CPU, labels out of range.

    Example:
        >>> scores, targets = torch.tensor([[1e6, 0.0, 0.0]]), torch.tensor([0])
        >>> bool(stablemax_cross_entropy(scores, targets) > 0), bool(F.cross_entropy(scores, targets) > 0)
        (True, False)
    """
    column = label_column(scores, targets)
    result = torch.promote_types(scores.dtype, torch.float32)
    losses = _StableMaxLoss.apply(scores, column, torch.float64 if upcast else result)
    return reduce(losses, reduction).to(result)


class StableMaxCrossEntropy(nn.Module):
    """Cross-entropy with StableMax in softmax's place; see `stablemax_cross_entropy`.

    Args:
        reduction: "mean", "sum" or "none".
        upcast: Compute in float64, as the official code does; otherwise in the scores' type, at least float32.

    Raises:
        InvalidInput: On an unknown reduction.

    Example:
        >>> StableMaxCrossEntropy()(torch.zeros(2, 4), torch.tensor([0, 3]))  # uniform: log 4
        tensor(1.3863)
    """

    def __init__(self, reduction: str = "mean", upcast: bool = True) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        self.upcast = upcast

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        """Return the loss of scores (B, K) against class indices (B,)."""
        return stablemax_cross_entropy(scores, targets, self.reduction, self.upcast)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"reduction={self.reduction!r}, upcast={self.upcast}"
