"""Divergences between rows of log-probabilities written plainly, with autograd for the rest.

What the fused implementations must equal. Autograd keeps several (R, V) tensors, and supports everything that it does:
double backward, forward mode, `torch.func`.

Shapes: R rows (tokens), V classes.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["divergence_terms_reference", "jsd_reference", "kl_div_reference"]


def _times_probability(probability: Tensor, difference: Tensor) -> Tensor:
    """Return p (log p - log q), which is 0 where p is 0 whatever q is."""
    return probability * torch.where(probability > 0, difference, 0)


def divergence_terms_reference(input: Tensor, target: Tensor, beta: float, log_target: bool) -> Tensor:
    """Return the terms (R, V) whose sum over a row is its divergence; arguments as in `divergence_blocked`."""
    x, t = input.to(working_dtype(input.dtype)), target.to(working_dtype(target.dtype))
    if not log_target:
        return torch.xlogy(t, t) - torch.where(t > 0, t * x, 0)
    p, q = t.exp(), x.exp()
    if beta == 0:
        return _times_probability(p, t - x)
    if beta == 1:
        return _times_probability(q, x - t)
    mixture = torch.logaddexp(t + math.log(beta), x + math.log1p(-beta))
    return beta * _times_probability(p, t - mixture) + (1 - beta) * _times_probability(q, x - mixture)


def kl_div_reference(input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """Return what `kl_div` returns, with all intermediates in memory.

    Args, shapes and the result are those of `assay.kernels.kl_div`; inputs are not checked.
    """
    terms = divergence_terms_reference(input, target, 0.0, log_target)
    if reduction == "batchmean":
        return terms.sum() / input.shape[0]
    if reduction == "none":
        return terms
    return terms.sum() if reduction == "sum" else terms.mean()


def jsd_reference(
    input: Tensor,
    target: Tensor,
    *,
    beta: float = 0.5,
    reduction: str = "mean",
    labels: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Return what `jsd` returns, with all intermediates in memory.

    Args, shapes and the result are those of `assay.kernels.jsd`; inputs are not checked.
    """
    rows = divergence_terms_reference(input, target, beta, log_target=True).sum(-1)
    if labels is not None:
        rows = torch.where(labels != ignore_index, rows, 0)
    if reduction == "none":
        return rows
    count = rows.numel() if labels is None else (labels != ignore_index).sum()
    return rows.sum() / count if reduction == "mean" else rows.sum()
