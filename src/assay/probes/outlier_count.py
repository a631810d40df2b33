"""How many eigenvalues stand outside the bulk at zero, made decidable: by height, by gap, and the bulk's share.

Sagun, Evci, Guney, Dauphin, Bottou (2017, arXiv:1706.04454) count outliers by eye and find about as many as classes.
Three counts stand for the eye here; the thresholds are ours:

    by height    #{lambda > c lambda_max}, c = 0.1
    by gap       argmax_{i <= limit} lambda_i / lambda_{i+1}, the limit being 3 K for K classes
    bulk share   #{|lambda| < 1e-3 lambda_max} / P

Symbols: P eigenvalues lambda_1 >= ... >= lambda_P, K classes.
Relative thresholds move with lambda_max: compare networks at equal training loss.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["bulk_share", "count_above", "count_before_gap"]


def count_above(eigenvalues: Tensor, fraction: float = 0.1) -> int:
    """Return how many eigenvalues exceed a fraction of the largest.

    Example:
        >>> import torch
        >>> count_above(torch.tensor([10.0, 5.0, 0.9, 0.0, -3.0]))
        2
    """
    falling = _falling(eigenvalues)
    return int((falling > fraction * falling[0]).sum())


def count_before_gap(eigenvalues: Tensor, limit: int) -> int:
    """Return how many eigenvalues lie above the widest relative gap.

    Args:
        eigenvalues: At least two; only positive ones can be outliers.
        limit: Gaps are looked for after at most this many.

    Example:
        >>> import torch
        >>> count_before_gap(torch.tensor([10.0, 9.0, 8.0, 0.5, 0.4]), limit=4)
        3
    """
    falling = _falling(eigenvalues)
    if limit < 1 or len(falling) < 2:
        raise InvalidInput(f"a gap needs limit >= 1 and two eigenvalues, not {limit} and {len(falling)}")
    falling = falling[: limit + 1]
    ratios = falling[:-1] / falling[1:].clamp(min=torch.finfo(falling.dtype).tiny)
    return int(ratios.where(falling[:-1] > 0, 0.0).argmax()) + 1


def bulk_share(eigenvalues: Tensor, fraction: float = 1e-3) -> float:
    """Return the share of all eigenvalues within a fraction of the largest around zero.

    Example:
        >>> import torch
        >>> bulk_share(torch.tensor([10.0, 0.001, 0.0, -0.001]))
        0.75
    """
    falling = _falling(eigenvalues)
    return (falling.abs() < fraction * falling[0]).double().mean().item()


def _falling(eigenvalues: Tensor) -> Tensor:
    if eigenvalues.ndim != 1 or len(eigenvalues) == 0 or not eigenvalues.isfinite().all() or eigenvalues.max() <= 0:
        raise InvalidInput("eigenvalues must be finite, in one dimension, with at least one above 0")
    return eigenvalues.double().sort(descending=True).values
