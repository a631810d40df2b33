"""`kl_div` and `jsd` as users call them: checks and reduction around the operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels.divergence.op import divergence
from assay.kernels.divergence.options import check_beta, check_labels_of_rows, check_reduction, mean_of_rows

__all__ = ["jsd", "kl_div"]


def kl_div(input: Tensor, target: Tensor, *, reduction: str = "mean", log_target: bool = False) -> Tensor:
    """Kullback-Leibler divergence of log-probabilities that keeps nothing but its inputs for backward.

    Takes the arguments of `torch.nn.functional.kl_div` and equals it: Σ P (log P - input). Sums are float32 for half
    precision, and the result stays float32. A term is 0 where P is 0, even if the input is minus infinity, where
    PyTorch's is nan. Second derivatives go through the plain reference; forward mode raises.

    Args:
        input: (..., V) log-probabilities, floating point.
        target: (..., V), of the input's shape and dtype: probabilities P, or their logarithms.
        reduction: "mean" (over all elements, as in PyTorch), "batchmean" (the sum divided by the first dimension, what
            the divergence is by its definition), "sum" or "none".
        log_target: Whether the target is given as logarithms.

    Returns:
        A scalar, or (..., V) for "none"; float32, or float64 for float64 inputs.

    Raises:
        InvalidInput: If shapes, dtypes, devices or options do not fit.

    Source: Hsu et al. (arXiv:2410.10989), KLDiv of the official code.

    Example:
        >>> student, teacher = torch.randn(2, 4, 10).log_softmax(-1)
        >>> kl_div(student, teacher, reduction="batchmean", log_target=True).shape
        torch.Size([])
    """
    _check_pair("kl_div", input, target)
    check_reduction("kl_div", reduction, ("mean", "batchmean", "sum", "none"))
    if reduction == "batchmean" and input.dim() == 0:
        raise InvalidInput('kl_div: reduction "batchmean" needs a batch dimension, not a scalar')
    rows = (-1, input.shape[-1]) if input.dim() and input.numel() else (1, input.numel())
    found = divergence(input.reshape(rows), target.reshape(rows), 0.0, log_target, reduction == "none")
    if reduction == "none":
        return found.view(input.shape)
    total = found.sum()
    if reduction == "sum":
        return total
    count = input.numel() if reduction == "mean" else input.shape[0]
    return total / count if count else total * math.nan


def jsd(
    input: Tensor,
    target: Tensor,
    *,
    beta: float = 0.5,
    reduction: str = "mean",
    labels: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    r"""Jensen-Shannon divergence of log-probabilities, generalised, that keeps nothing but its inputs for backward.

    With the student's log-probabilities as input, $Q$, the teacher's as target, $P$, and $M = \beta P + (1-\beta) Q$,
    a row's divergence is $\beta\,KL(P\|M) + (1-\beta)\,KL(Q\|M)$. At the ends, where that is 0, it is the limit over
    $\beta$ or $1-\beta$: `beta=0` gives $KL(P\|Q)$ (forward), `beta=1` gives $KL(Q\|P)$ (reverse). Sums are float32 for
    half precision, and the result stays float32. Both arguments get gradients. Second derivatives go through the plain
    reference; forward mode raises.

    Args:
        input: (..., V) log-probabilities of the student, floating point.
        target: (..., V) log-probabilities of the teacher, of the input's dtype.
        beta: In [0, 1].
        reduction: "mean" (over the rows that count; nan if there are none), "sum" or "none".
        labels: (...), int64; rows whose label is `ignore_index` count for nothing. Other values play no role.
        ignore_index: See `labels`.

    Returns:
        A scalar, or a divergence per row in the shape (...) for "none"; float32, or float64 for float64 inputs.

    Raises:
        InvalidInput: If shapes, dtypes, devices or options do not fit.

    Source: Agarwal et al. (arXiv:2306.13649), eq. (1); Hsu et al. (arXiv:2410.10989), JSD of the official code.

    Example:
        >>> student, teacher = torch.randn(2, 4, 10).log_softmax(-1)
        >>> jsd(student, teacher, beta=0.1).shape
        torch.Size([])
    """
    _check_pair("jsd", input, target)
    if input.dim() < 1 or input.shape[-1] < 1:
        raise InvalidInput(f"jsd: input must have shape (..., V) with V > 0, not {tuple(input.shape)}")
    check_beta("jsd", beta)
    check_reduction("jsd", reduction, ("mean", "sum", "none"))
    check_labels_of_rows("jsd", labels, input)
    classes = input.shape[-1]
    found = divergence(input.reshape(-1, classes), target.reshape(-1, classes), float(beta), True, False)
    rows = found.view(input.shape[:-1])
    if labels is not None:
        rows = torch.where(labels != ignore_index, rows, 0)
    if reduction == "none":
        return rows
    return rows.sum() if reduction == "sum" else mean_of_rows(rows.sum(), rows.numel(), labels, ignore_index)


def _check_pair(name: str, input: Tensor, target: Tensor) -> None:
    if not input.is_floating_point():
        raise InvalidInput(f"{name}: input must be floating point log-probabilities, not {input.dtype}")
    for what, of_input, of_target in (
        ("shape", tuple(input.shape), tuple(target.shape)),
        ("dtype", input.dtype, target.dtype),
        ("device", input.device, target.device),
    ):
        if of_input != of_target:
            raise InvalidInput(f"{name}: input and target must have the same {what}, not {of_input} and {of_target}")
    refuse_forward_mode(name, input, target)
