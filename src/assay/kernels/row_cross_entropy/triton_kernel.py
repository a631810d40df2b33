"""Losses of rows of logits and their gradient in Triton: one program per row, two passes over its classes.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, CrossEntropy. The first pass is the online softmax:
with the largest logit m so far and the sum d of e^(x - m), a block updates d ← d e^(m - m') + Σ e^(x - m'). The second
writes the gradient, which may take the logits' place. It serves `cross_entropy`, and the chunks of
`linear_cross_entropy`.

Departures. A block has at most 8192 classes. The label's entry, softmax − 1, is formed in float32 among the others.
tanh(x) is 2 σ(2x) − 1. A z-loss is weighted by class weights, as the rest of a row's loss is.

Shapes: logits and gradient (C, V), last dimension dense; labels, scale and losses (C,).
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._cross_entropy_rows import LossTerms
from assay.kernels._launch import next_power_of_two, warps_for

__all__ = ["ahead_of_time", "triton_row_losses"]

LARGEST = 8192


@triton.jit
def _read(
    logits: tl.tensor, offsets: tl.tensor, inside: tl.tensor, softcap: tl.tensor, has_softcap: tl.constexpr
) -> tl.tensor:
    """Return capped logits, minus infinity outside."""
    values = tl.load(logits + offsets, mask=inside, other=0.0).to(tl.float32)
    if has_softcap:
        values = softcap * (2 * tl.sigmoid(2 * values / softcap) - 1)
    return tl.where(inside, values, float("-inf"))


@triton.jit
def _first_pass(
    logits: tl.tensor,
    weight: tl.tensor,
    columns: tl.tensor,
    softcap: tl.tensor,
    has_weight: tl.constexpr,
    has_smoothing: tl.constexpr,
    has_softcap: tl.constexpr,
    block: tl.constexpr,
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the largest logit, the sum of exponentials relative to it, and the (weighted) average of the logits."""
    largest = -3.0e38  # finite, so that a first block of minus infinities leaves the sum 0
    total = 0.0
    average = 0.0
    for start in range(0, columns, block):
        offsets = start + tl.arange(0, block)
        inside = offsets < columns
        values = _read(logits, offsets, inside, softcap, has_softcap)
        higher = tl.maximum(largest, tl.max(values))
        total = total * tl.exp(largest - higher) + tl.sum(tl.exp(values - higher))
        largest = higher
        if has_smoothing:
            if has_weight:
                values = values * tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32)
            average += tl.sum(tl.where(inside, values, 0.0)) / columns
    return largest, total, average


@triton.jit
def row_losses_kernel(
    logits: tl.tensor,
    gradient: tl.tensor,
    labels: tl.tensor,
    weight: tl.tensor,
    weight_mean: tl.tensor,
    scale: tl.tensor,
    losses: tl.tensor,
    stride_logits: tl.tensor,
    stride_gradient: tl.tensor,
    columns: tl.tensor,
    ignore_index: tl.tensor,
    label_smoothing: tl.tensor,
    z_loss: tl.tensor,
    softcap: tl.tensor,
    has_gradient: tl.constexpr,
    has_weight: tl.constexpr,
    has_scale: tl.constexpr,
    has_smoothing: tl.constexpr,
    has_softcap: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a row's loss, and its gradient times the row's scale."""
    row = tl.program_id(0).to(tl.int64)
    logits += row * stride_logits
    gradient += row * stride_gradient
    label = tl.load(labels + row)
    if label == ignore_index:
        tl.store(losses + row, 0.0)
        if has_gradient:
            for start in range(0, columns, block):
                offsets = start + tl.arange(0, block)
                tl.store(gradient + offsets, tl.zeros([block], gradient.dtype.element_ty), mask=offsets < columns)
        return

    of_label = tl.sum(_read(logits, label + tl.arange(0, 1), tl.arange(0, 1) == 0, softcap, has_softcap))
    largest, total, average = _first_pass(
        logits, weight, columns, softcap, has_weight, has_smoothing, has_softcap, block
    )
    log_normalizer = largest + tl.log(total)
    at_label = 1 - label_smoothing
    of_softmax = at_label + 2 * z_loss * log_normalizer
    loss = at_label * (largest - of_label + tl.log(total)) + z_loss * log_normalizer * log_normalizer
    mean_weight = 1.0
    if has_weight:
        label_weight = tl.load(weight + label).to(tl.float32)
        mean_weight = tl.load(weight_mean).to(tl.float32)
        at_label *= label_weight
        of_softmax *= label_weight
        loss *= label_weight
    if has_smoothing:
        loss += label_smoothing * (log_normalizer * mean_weight - average)
        of_softmax += label_smoothing * mean_weight
    tl.store(losses + row, loss)

    if has_gradient:
        row_scale = 1.0
        if has_scale:
            row_scale = tl.load(scale + row).to(tl.float32)
        for start in range(0, columns, block):
            offsets = start + tl.arange(0, block)
            inside = offsets < columns
            values = _read(logits, offsets, inside, softcap, has_softcap)
            slope = tl.exp(values - largest) / total * of_softmax - tl.where(offsets == label, at_label, 0.0)
            if has_smoothing:
                share = label_smoothing / columns
                if has_weight:
                    slope -= share * tl.load(weight + offsets, mask=inside, other=0.0).to(tl.float32)
                else:
                    slope -= share
            if has_softcap:
                slope *= 1 - (values / softcap) * (values / softcap)
            tl.store(gradient + offsets, (slope * row_scale).to(gradient.dtype.element_ty), mask=inside)


def triton_row_losses(
    logits: Tensor,
    labels: Tensor,
    terms: LossTerms,
    *,
    scale: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Return the losses of rows of logits, and write the gradient of their weighted sum.

    Args:
        logits: (C, V).
        labels: (C,) int64 labels in [0, V), or `terms.ignore_index`.
        terms: What a row's loss is made of.
        scale: (C,) weights of the rows in the gradient, 1 by default.
        gradient: (C, V), contiguous, is overwritten by the gradient; may be the logits themselves.

    Returns:
        Losses (C,) in float32.
    """
    rows, columns = logits.shape
    losses = logits.new_empty(rows, dtype=torch.float32)
    if not rows:
        return losses
    logits = logits if logits.stride(1) == 1 else logits.contiguous()
    weight, into = terms.class_weight, logits if gradient is None else gradient
    block = min(next_power_of_two(columns), LARGEST)
    row_losses_kernel[(rows,)](
        logits,
        into,
        labels.contiguous(),
        losses if weight is None else weight.contiguous(),
        losses if weight is None else weight.mean(),
        losses if scale is None else scale.contiguous(),
        losses,
        logits.stride(0),
        into.stride(0),
        columns,
        terms.ignore_index,
        terms.label_smoothing,
        terms.z_loss,
        terms.softcap or 0.0,
        has_gradient=gradient is not None,
        has_weight=weight is not None,
        has_scale=scale is not None,
        has_smoothing=terms.label_smoothing > 0,
        has_softcap=terms.softcap is not None,
        block=block,
        num_warps=warps_for(block),
    )
    return losses


def ahead_of_time() -> list[Compilation]:
    """Return the plain loss, its gradient, and the gradient with all options, at the largest block."""
    options = ("has_gradient", "has_weight", "has_scale", "has_smoothing", "has_softcap")
    floats = ("weight", "weight_mean", "scale", "losses")
    found = []
    for name, given in (("loss", ()), ("gradient", options[:1]), ("all options", options)):
        for dtype in ("bf16", "fp32"):
            types = {"logits": f"*{dtype}", "gradient": f"*{dtype}", "labels": "*i64", **dict.fromkeys(floats, "*fp32")}
            types |= dict.fromkeys(("stride_logits", "stride_gradient", "columns", "ignore_index"), "i32")
            types |= dict.fromkeys(("label_smoothing", "z_loss", "softcap"), "fp32")
            constants = {**{option: option in given for option in options}, "block": LARGEST}
            divisible = ("stride_logits", "stride_gradient", "columns")
            what = f"cross_entropy {name} {dtype} {LARGEST}"
            found.append(
                Compilation(what, row_losses_kernel, types, constants, warps=warps_for(LARGEST), divisible=divisible)
            )
    return found
