"""Divergences between rows of logits and their gradient in Triton: one program per row, three passes over its classes.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), FusedLinearJSD of the official code, where PyTorch computes the
log-softmaxes and the gradient's last step. Here the first pass is an online softmax of both rows, the second sums the
divergence and its gradient by the log-probabilities, and the third writes the gradient by the logits in their place.

Shapes: logits, targets and gradient (C, V), last dimension dense; scale and losses (C,).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two, warps_for
from assay.kernels.divergence.triton_kernel import kind_of, terms_and_gradients

__all__ = ["ahead_of_time", "triton_logits_divergence"]

LARGEST = 4096


@triton.jit
def _online(values: tl.tensor, largest: tl.tensor, total: tl.tensor) -> tuple[tl.tensor, tl.tensor]:
    """Return the largest value and the sum of exponentials after one more block."""
    higher = tl.maximum(largest, tl.max(values))
    return higher, total * tl.exp(largest - higher) + tl.sum(tl.exp(values - higher))


@triton.jit
def _read(logits: tl.tensor, offsets: tl.tensor, inside: tl.tensor, temperature: tl.tensor) -> tl.tensor:
    """Return logits over the temperature, minus infinity outside."""
    return tl.load(logits + offsets, mask=inside, other=float("-inf")).to(tl.float32) / temperature


@triton.jit
def logits_divergence_kernel(
    logits: tl.tensor,
    targets: tl.tensor,
    gradient: tl.tensor,
    scale: tl.tensor,
    losses: tl.tensor,
    stride_logits: tl.tensor,
    stride_targets: tl.tensor,
    stride_gradient: tl.tensor,
    columns: tl.tensor,
    beta: tl.tensor,
    temperature: tl.tensor,
    kind: tl.constexpr,
    has_gradient: tl.constexpr,
    has_scale: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a row's divergence, and its gradient times the row's scale."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride_logits
    targets += row * stride_targets
    gradient += row * stride_gradient
    largest_x = -3.0e38
    largest_t = -3.0e38
    sum_x = 0.0
    sum_t = 0.0
    for start in range(0, columns, block):
        offsets = start + tl.arange(0, block)
        inside = offsets < columns
        largest_x, sum_x = _online(_read(logits, offsets, inside, temperature), largest_x, sum_x)
        largest_t, sum_t = _online(_read(targets, offsets, inside, temperature), largest_t, sum_t)
    excess_x = tl.log(sum_x)
    excess_t = tl.log(sum_t)

    loss = 0.0
    total = 0.0
    for start in range(0, columns, block):
        offsets = start + tl.arange(0, block)
        inside = offsets < columns
        x = _read(logits, offsets, inside, temperature) - largest_x - excess_x
        t = _read(targets, offsets, inside, temperature) - largest_t - excess_t
        terms, slope, _ = terms_and_gradients(x, t, beta, kind)
        loss += tl.sum(tl.where(inside, terms, 0.0))
        total += tl.sum(tl.where(inside, slope, 0.0))
    tl.store(losses + row, loss)

    if has_gradient:
        factor = 1.0 / temperature
        if has_scale:
            factor *= tl.load(scale + row).to(tl.float32)
        for start in range(0, columns, block):
            offsets = start + tl.arange(0, block)
            inside = offsets < columns
            x = _read(logits, offsets, inside, temperature) - largest_x - excess_x
            t = _read(targets, offsets, inside, temperature) - largest_t - excess_t
            _, slope, _ = terms_and_gradients(x, t, beta, kind)
            slope = (slope - tl.exp(x) * total) * factor
            tl.store(gradient + offsets, slope.to(gradient.dtype.element_ty), mask=inside)


def triton_logits_divergence(
    logits: Tensor,
    targets: Tensor,
    beta: float,
    temperature: float,
    *,
    scale: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Return the divergences of rows of logits, and write the gradient of their weighted sum.

    Args:
        logits: (C, V) of the student, last dimension dense.
        targets: (C, V) logits of the teacher, last dimension dense.
        beta: β.
        temperature: T.
        scale: (C,) weights of the rows in the gradient, 1 by default.
        gradient: (C, V), contiguous, is overwritten by the gradient; may be the logits themselves.

    Returns:
        Divergences (C,) in float32.
    """
    rows, columns = logits.shape
    losses, into = logits.new_empty(rows, dtype=torch.float32), logits if gradient is None else gradient
    if rows:
        block = min(next_power_of_two(columns), LARGEST)
        weights = losses if scale is None else scale.contiguous()
        strides = (logits.stride(0), targets.stride(0), into.stride(0))
        logits_divergence_kernel[(rows,)](
            logits, targets, into, weights, losses, *strides, columns, beta, temperature,
            kind=kind_of(beta, log_target=True), has_gradient=gradient is not None, has_scale=scale is not None,
            block=block, num_warps=warps_for(block),
        )  # fmt: skip
    return losses


def ahead_of_time() -> list[Compilation]:
    """Return the loss alone and the loss with its gradient, at the largest block."""
    found = []
    strides = ("stride_logits", "stride_targets", "stride_gradient", "columns")
    for dtype, gradient in (("bf16", False), ("bf16", True), ("fp32", True)):
        types = {**dict.fromkeys(("logits", "targets", "gradient"), f"*{dtype}"), "scale": "*fp32", "losses": "*fp32"}
        types |= {**dict.fromkeys(strides, "i32"), "beta": "fp32", "temperature": "fp32"}
        constants = {"has_gradient": gradient, "has_scale": gradient, "block": LARGEST}
        constants["kind"] = kind_of(0.5, log_target=True).value
        name = f"linear_jsd {'gradient' if gradient else 'loss'} {dtype} {LARGEST}"
        kernel = logits_divergence_kernel
        found.append(Compilation(name, kernel, types, constants, warps=warps_for(LARGEST), divisible=strides))
    return found
