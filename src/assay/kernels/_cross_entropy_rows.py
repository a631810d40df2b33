"""Losses of rows of logits and their gradient, a block of rows at a time that stays in the cache.

What `cross_entropy` and `linear_cross_entropy` have in common: the formula, its options and their checks.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, CrossEntropy: softmax, loss and gradient of a row in
one go, the gradient over the logits.

Shapes: C rows, V classes, B rows of a block.

Departures. Softmax and loss are float32 for half-precision logits. The gradient is that of the *sum* of the losses,
weighted by `scale`: a mean is divided where half precision cannot underflow. A loss is the sum of two nonnegative
terms, the distance of the label's logit from the largest one and minus the logarithm of the largest probability, so
that confident predictions keep their digits.

Cost: two exponentials per logit where a soft cap is used, else one; B V float32 of scratch memory for half precision.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._launch import runs_triton
from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = ["REDUCTIONS", "LossTerms", "check_labels", "check_options", "mean_loss", "row_losses"]

REDUCTIONS = ("mean", "sum", "none")


@dataclass(frozen=True)
class LossTerms:
    """What one row's loss is made of; the arguments of `linear_cross_entropy`, `class_weight` being its `weight`."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    class_weight: Tensor | None = None


def check_options(name: str, reduction: str, label_smoothing: float, z_loss: float, softcap: float | None) -> None:
    """Check the options of a cross-entropy.

    Raises:
        InvalidInput: In the name of the function that was given them.
    """
    if reduction not in REDUCTIONS:
        raise InvalidInput(f"{name}: reduction must be one of {', '.join(REDUCTIONS)}, not {reduction!r}")
    if not 0.0 <= label_smoothing <= 1.0:
        raise InvalidInput(f"{name}: label_smoothing must be in [0, 1], not {label_smoothing}")
    if not 0.0 <= z_loss < math.inf:
        raise InvalidInput(f"{name}: z_loss must be finite and at least 0, not {z_loss}")
    if softcap is not None and not 0.0 < softcap < math.inf:
        raise InvalidInput(f"{name}: softcap must be finite and above 0, or None, not {softcap}")


def check_labels(name: str, target: Tensor, classes: int, ignore_index: int) -> None:
    """Check that labels are classes or ignored; on a GPU without waiting for the answer.

    Raises:
        InvalidInput: If one is not (on a CPU; a GPU stops at a device-side assertion).
    """
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if target.device.type != "cpu":
        torch._assert_async(~outside.any(), f"{name}: a label is out of range")
    elif bool(outside.any()):
        raise InvalidInput(
            f"{name}: label {int(target[outside][0])} is outside [0, {classes}) and is not ignore_index={ignore_index}"
        )


def mean_loss(total: Tensor, labels: Tensor, weight: Tensor | None, ignore_index: int) -> Tensor:
    """Divide by the weight of the labels; without any the mean is nan and its gradients are 0, as PyTorch has it."""
    kept = labels != ignore_index
    if weight is None:
        count = kept.sum().to(total.dtype)
    else:
        count = (weight.detach().to(total.dtype)[torch.where(kept, labels, 0)] * kept).sum()
    return torch.where(count > 0, total / torch.where(count > 0, count, 1), math.nan)


def row_losses(
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
        labels: (C,) int64 labels in [0, V), or `terms.ignore_index`: such a row has loss and gradient 0.
        terms: What a row's loss is made of.
        scale: (C,) weights of the rows in the gradient (the upstream gradient), 1 by default.
        gradient: (C, V) of the logits' dtype, is overwritten by the gradient; may be the logits themselves.

    Returns:
        Losses (C,) in `working_dtype`.
    """
    working = working_dtype(logits.dtype)
    if terms.class_weight is not None:
        terms = replace(terms, class_weight=terms.class_weight.to(working))
    if runs_triton(logits):
        from assay.kernels.row_cross_entropy.triton_kernel import triton_row_losses

        return triton_row_losses(logits, labels, terms, scale=scale, gradient=gradient)
    kept = labels != terms.ignore_index
    losses = _losses_by_blocks(logits, torch.where(kept, labels, 0), terms, scale, gradient)
    if not kept.all():
        losses.masked_fill_(~kept, 0)
        if gradient is not None:
            gradient.index_fill_(0, (~kept).nonzero().squeeze(1), 0)
    return losses


def _losses_by_blocks(
    logits: Tensor, labels: Tensor, terms: LossTerms, scale: Tensor | None, gradient: Tensor | None
) -> Tensor:
    """Go through the rows block by block, in the gradient's memory where it has the right type, else in scratch."""
    rows, classes = logits.shape
    working = working_dtype(logits.dtype)
    direct = gradient if gradient is not None and gradient.dtype == working and gradient.is_contiguous() else None
    losses, blocks = logits.new_empty(rows, dtype=working), list(row_blocks(rows, classes, logits.device))
    scratch = logits.new_empty(blocks[0].stop if blocks and direct is None else 0, classes, dtype=working)
    for block in blocks:
        values = scratch[: block.stop - block.start] if direct is None else direct[block]
        if values.data_ptr() != logits[block].data_ptr():
            values.copy_(logits[block])
        block_scale = None if scale is None else scale[block]
        losses[block] = _row_losses_(values, labels[block].unsqueeze(1), terms, block_scale, gradient is not None)
        if gradient is not None and direct is None:
            gradient[block] = values
    return losses


def _row_losses_(logits: Tensor, labels: Tensor, terms: LossTerms, scale: Tensor | None, gradient: bool) -> Tensor:
    """Return the losses (B,) of logits (B, V) with labels (B, 1), and overwrite these by their scaled gradient."""
    smoothing, class_weight, slope = terms.label_smoothing, terms.class_weight, None
    if terms.softcap is not None:
        logits.div_(terms.softcap).tanh_()
        slope = (1 - logits.square()) if gradient else None
        logits.mul_(terms.softcap)
    largest = logits.amax(1)
    distance = largest - logits.gather(1, labels).squeeze(1)
    if smoothing:
        average = logits.mean(1) if class_weight is None else logits @ class_weight / logits.shape[1]

    probability = torch.softmax(logits, 1, out=logits)
    # The largest probability is exp(largest - log-sum-exp), and never too small for its logarithm.
    excess = -probability.amax(1).log()
    log_normalizer = largest + excess

    losses = (1 - smoothing) * (distance + excess)
    if terms.z_loss:
        losses += terms.z_loss * log_normalizer.square()
    if class_weight is not None:
        losses *= class_weight[labels.squeeze(1)]
    if smoothing:
        losses += smoothing * (log_normalizer * (1 if class_weight is None else class_weight.mean()) - average)
    if gradient:
        _gradient_(probability, labels, log_normalizer, terms)
        if slope is not None:
            probability.mul_(slope)
        if scale is not None:
            probability.mul_(scale.unsqueeze(1))
    return losses


def _gradient_(probability: Tensor, labels: Tensor, log_normalizer: Tensor, terms: LossTerms) -> None:
    """Overwrite probabilities (B, V) with the losses' gradient by the (capped) logits."""
    smoothing, class_weight = terms.label_smoothing, terms.class_weight
    at_label = probability.new_full(labels.shape, 1 - smoothing)
    of_softmax = at_label + 2 * terms.z_loss * log_normalizer.unsqueeze(1)
    if class_weight is not None:
        at_label, of_softmax = at_label * class_weight[labels], of_softmax * class_weight[labels]
    if smoothing:
        of_softmax += smoothing * (1 if class_weight is None else class_weight.mean())
    if terms.z_loss or class_weight is not None:  # else it is 1
        probability.mul_(of_softmax)
    probability.scatter_add_(1, labels, -at_label)
    if smoothing:
        probability.sub_((1 if class_weight is None else class_weight) * (smoothing / probability.shape[1]))
