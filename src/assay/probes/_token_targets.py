"""Targets of a language model in the form of its scores, one row per token."""

from __future__ import annotations

from torch import Tensor

__all__ = ["targets_by_row"]


def targets_by_row(scores: Tensor, y: Tensor) -> Tensor:
    """Return targets (n, ...) for scores (n, C): flattened where each of several targets of a sample has a row.

    Args:
        scores: (n, C), as `View.token_scores` returns them.
        y: Targets of the samples: (B, ...), or (B, T) with B T = n.
    """
    # windows of one token have as many rows as samples, so the lengths don't tell
    one_each = y.ndim > 1 and not y.is_floating_point() and y.numel() == len(scores) < scores.numel()
    return y.flatten() if one_each or len(y) != len(scores) else y
