"""Divergences between rows of log-probabilities and their gradients on any device, a block of rows at a time.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), KLDiv and JSD of the official code; Agarwal et al., "On-Policy
Distillation" (arXiv:2306.13649), eq. (1). With x = log Q (student), t = log P (teacher), M = βP + (1-β)Q, a row's is

    Σ β P (t - ln M) + (1-β) Q (x - ln M)      dx = (1-β) Q (x - ln M)      dt = β P (t - ln M)

and at the ends, where this is 0, its limits over β and 1-β: β = 0 is KL(P‖Q) (forward), β = 1 is KL(Q‖P) (reverse).
With `log_target=False` t is P itself, for β = 0 only, as in `torch.nn.functional.kl_div`.

Shapes: x, t and their gradients (R, V), B rows of a block.

Departures. 0 ln 0 is 0: classes with a log-probability of minus infinity are allowed. The teacher's gradient is there.
Gradients are formed in backward, from the two inputs, where the official code forms one in forward and keeps it.

Cost: three exponentials and a logarithm per class, twice; memory beyond the results: five blocks.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = [
    "divergence_blocked",
    "divergence_blocked_backward",
    "divergence_terms",
    "input_gradient",
    "log_mixture",
    "target_gradient",
]


def divergence_blocked(input: Tensor, target: Tensor, beta: float, log_target: bool, per_class: bool) -> Tensor:
    """Return the divergences of rows.

    Args:
        input: (R, V), x.
        target: (R, V), t, or P without `log_target`.
        beta: β in [0, 1].
        log_target: Whether the target is given as logarithms.
        per_class: Whether to return each class's term instead of their sum.

    Returns:
        (R, V) if `per_class`, else (R, 1), in `working_dtype`.
    """
    rows, classes = input.shape
    working = working_dtype(input.dtype)
    result = input.new_empty(rows, classes if per_class else 1, dtype=working)
    for block in row_blocks(rows, classes, input.device):
        x, t = input[block].to(working), target[block].to(working)
        terms = divergence_terms(x, t, log_mixture(x, t, beta), beta, log_target)
        result[block] = terms if per_class else terms.sum(1, keepdim=True)
    return result


def divergence_blocked_backward(
    upstream: Tensor, input: Tensor, target: Tensor, beta: float, log_target: bool, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by input and target, `None` where not needed.

    Args:
        upstream: (R, V) or (R, 1), as the result.
        input: (R, V).
        target: (R, V).
        beta: β.
        log_target: Whether the target is given as logarithms.
        needs: Whether the gradients by input and by target are needed.
    """
    rows, classes = input.shape
    working = working_dtype(input.dtype)
    dx, dt = (t.new_empty(t.shape) if needed else None for t, needed in zip((input, target), needs, strict=True))
    for block in row_blocks(rows, classes, input.device):
        x, t = input[block].to(working), target[block].to(working)
        mixture, factor = log_mixture(x, t, beta), upstream[block]
        if dx is not None:
            dx[block] = input_gradient(x, t, mixture, beta, log_target).mul_(factor)
        if dt is not None:
            dt[block] = target_gradient(x, t, mixture, beta, log_target).mul_(factor)
    return dx, dt


def log_mixture(x: Tensor, t: Tensor, beta: float) -> Tensor | None:
    """Return ln M (B, V), which the functions below need; `None` at the ends."""
    return torch.logaddexp(t + math.log(beta), x + math.log1p(-beta)) if 0 < beta < 1 else None


def divergence_terms(x: Tensor, t: Tensor, mixture: Tensor | None, beta: float, log_target: bool = True) -> Tensor:
    """Return the terms (B, V) whose sum over a row is its divergence.

    Args:
        x: (B, V), in the working dtype.
        t: (B, V), in the working dtype.
        mixture: From `log_mixture`.
        beta: β.
        log_target: Whether t is given as logarithms.
    """
    if not log_target:
        return torch.xlogy(t, t).sub_((t * x).masked_fill_(t == 0, 0))
    if mixture is not None:
        return _weighted(x, mixture, 1 - beta).add_(_weighted(t, mixture, beta))
    return _weighted(t, x) if beta == 0 else _weighted(x, t)


def input_gradient(x: Tensor, t: Tensor, mixture: Tensor | None, beta: float, log_target: bool = True) -> Tensor:
    """Return dx (B, V); arguments as for `divergence_terms`."""
    if not log_target:
        return -t
    if mixture is not None:
        return _weighted(x, mixture, 1 - beta)
    return t.exp().neg_() if beta == 0 else _weighted(x, t).add_(x.exp())


def target_gradient(x: Tensor, t: Tensor, mixture: Tensor | None, beta: float, log_target: bool = True) -> Tensor:
    """Return dt (B, V); arguments as for `divergence_terms`."""
    if not log_target:
        return t.log().add_(1).sub_(x)
    if mixture is not None:
        return _weighted(t, mixture, beta)
    return _weighted(t, x).add_(t.exp()) if beta == 0 else x.exp().neg_()


def _weighted(logarithm: Tensor, other: Tensor, share: float = 1.0) -> Tensor:
    """Return share * p * (ln p - other), which is 0 where p is 0 whatever the other is."""
    probability = logarithm.exp()
    terms = torch.sub(logarithm, other).mul_(probability).masked_fill_(probability == 0, 0)
    return terms if share == 1 else terms.mul_(share)
