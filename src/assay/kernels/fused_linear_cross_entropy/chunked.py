"""The loss of a linear classifier head without its logits, and the gradients in the same pass.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, FusedLinearCrossEntropy. Rows go through the head in
chunks; the buffer of a chunk's logits is overwritten by their gradient, which two matrix products turn into the chunk's
part of the gradients of input and weight. So one (C, V) buffer is all that ever exists of the (R, V) logits.

Shapes: R rows (tokens), H input features, V classes, C rows of a chunk, B rows of a block.

Departures. The softmax works on blocks of a chunk that fit into the cache, in float32 for half-precision inputs, and
the loss is float32. Gradients are formed for the *sum* of the losses, so that the division by the number of tokens
happens after the products, where half precision cannot underflow. Rows with the ignored label are left out of the
products. Chunks are larger than the paper's C = R H / V: fewer, larger products are faster, and half-precision weight
gradients, which are rounded once per chunk, more exact.

Cost: the three matrix products of the plain computation, 6 R H V operations; memory beyond the gradients: C V logits.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from assay.errors import InvalidInput

# Half-precision sums over this many chunks have 1.3 to 2 times the rounding error of one product; over 64, 6 times.
_EXACT_CHUNKS = 8

__all__ = ["Gradients", "LossTerms", "chunk_rows", "linear_cross_entropy_chunked", "sum_dtype", "working_dtype"]


@dataclass(frozen=True)
class LossTerms:
    """What one row's loss is made of; the arguments of `linear_cross_entropy`, `class_weight` being its `weight`."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None
    class_weight: Tensor | None = None


class Gradients(NamedTuple):
    """Gradients of the weighted sum of the losses; `None` where none was asked for."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def working_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of softmax and loss for inputs of a type."""
    return torch.float32 if dtype in (torch.float16, torch.bfloat16) else dtype


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the type of gradients that are summed over rows: a sum that is yet to be divided can overflow float16."""
    return torch.float32 if dtype == torch.float16 else dtype


def chunk_rows(rows: int, features: int, classes: int) -> int:
    """Return how many rows go through the head at once.

    An eighth of the rows, so that the buffer stays small against the logits that are avoided, but not below 256, where
    the products become slow, and no more than make the buffer as large as the weight (or 64 MiB of float32).

    Args:
        rows: R, rows in the batch.
        features: H, input features.
        classes: V, classes.
    """
    at_most = max(features, 2**24 // max(classes, 1))
    return max(1, min(rows, at_most, max(256, -(-rows // 8))))


def linear_cross_entropy_chunked(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    terms: LossTerms,
    *,
    scale: Tensor | None = None,
    chunk_size: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
    gradients: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Tensor, Gradients]:
    """Return the losses of all rows, and the gradients of their sum weighted by `scale`.

    Args:
        input: (R, H).
        linear_weight: (V, H), of the input's dtype.
        linear_bias: (V,), of the input's dtype, or None.
        target: (R,) int64 labels.
        terms: What a row's loss is made of.
        scale: (R,) weights of the rows in the gradients (the upstream gradient), 1 by default.
        chunk_size: C, by default `chunk_rows`.
        accumulate_dtype: In which the weight's gradient is summed over the chunks; by default the weight's type for up
            to 8 chunks and float32 for more.
        gradients: Which gradients to form: of input, weight, bias.

    Returns:
        Losses (R,) in `working_dtype`, 0 for ignored rows; and gradients, those of weight and bias in `sum_dtype`.

    Raises:
        InvalidInput: If a label is out of range.
    """
    _check_labels(target, linear_weight.shape[0], terms.ignore_index)
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        if terms.class_weight is not None:
            terms = replace(terms, class_weight=terms.class_weight.to(working_dtype(input.dtype)))
        kept = (target != terms.ignore_index).nonzero().squeeze(1)
        everything = kept.numel() == target.numel()
        losses, found = _losses_and_gradients(
            input if everything else input[kept],
            linear_weight,
            linear_bias,
            target if everything else target[kept],
            terms,
            scale if everything or scale is None else scale[kept],
            chunk_size or chunk_rows(kept.numel(), *reversed(linear_weight.shape)),
            accumulate_dtype,
            gradients,
        )
        return (losses, found) if everything else _with_ignored(losses, found, kept, target.numel())


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if target.device.type != "cpu":
        torch._assert_async(~outside.any(), "linear_cross_entropy: a label is out of range")
    elif bool(outside.any()):
        raise InvalidInput(
            f"linear_cross_entropy: label {int(target[outside][0])} is outside [0, {classes}) "
            f"and is not ignore_index={ignore_index}"
        )


def _with_ignored(losses: Tensor, found: Gradients, kept: Tensor, rows: int) -> tuple[Tensor, Gradients]:
    """Put losses and input gradients of the rows that count among zeros for those that don't."""
    losses = losses.new_zeros(rows).index_copy_(0, kept, losses)
    if found.input is not None:
        full = found.input.new_zeros(rows, found.input.shape[1])
        found = found._replace(input=full.index_copy_(0, kept, found.input))
    return losses, found


def _losses_and_gradients(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    terms: LossTerms,
    scale: Tensor | None,
    chunk_size: int,
    accumulate_dtype: torch.dtype | None,
    gradients: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """Go through rows that all count, chunk by chunk."""
    (rows, features), classes = input.shape, linear_weight.shape[0]
    working, summed = working_dtype(input.dtype), sum_dtype(input.dtype)
    if accumulate_dtype is None:
        accumulate_dtype = working if rows > _EXACT_CHUNKS * chunk_size else summed
    buffer = input.new_empty(min(chunk_size, rows), classes)
    losses = input.new_empty(rows, dtype=working)
    found = Gradients(
        input.new_empty(rows, features) if gradients[0] else None,
        input.new_zeros(classes, features, dtype=accumulate_dtype) if gradients[1] else None,
        input.new_zeros(classes, dtype=working) if gradients[2] else None,
    )
    for start in range(0, rows, chunk_size):
        chunk = slice(start, min(start + chunk_size, rows))
        inputs, logits = input[chunk], buffer[: chunk.stop - start]
        if linear_bias is None:
            torch.mm(inputs, linear_weight.t(), out=logits)
        else:
            torch.addmm(linear_bias, inputs, linear_weight.t(), out=logits)
        chunk_scale = None if scale is None else scale[chunk]
        losses[chunk] = _chunk_losses_(logits, target[chunk], terms, chunk_scale, any(gradients))
        if found.input is not None:
            torch.mm(logits, linear_weight, out=found.input[chunk])
        if found.weight is not None:
            _add_weight_gradient_(found.weight, logits, inputs)
        if found.bias is not None:
            found.bias.add_(logits.sum(0, dtype=working))
    weight, bias = (None if total is None else total.to(summed) for total in found[1:])
    return losses, Gradients(found.input, weight, bias)


def _add_weight_gradient_(total: Tensor, logits_gradient: Tensor, inputs: Tensor) -> None:
    """Add a chunk's part (C, V)ᵀ (C, H) to the weight's gradient; by slices if the product needs a copy to be cast."""
    if total.dtype == inputs.dtype:
        total.addmm_(logits_gradient.t(), inputs)
        return
    for part, columns in zip(total.split(4096), logits_gradient.split(4096, dim=1), strict=True):
        part.add_(columns.t() @ inputs)


def _block_rows(classes: int, device: torch.device) -> int:
    """Rows whose float32 logits stay in the cache of a CPU, or keep a GPU busy."""
    size = 2**21 if device.type == "cpu" else 2**26
    return max(torch.get_num_threads() if device.type == "cpu" else 1, size // (4 * classes))


def _chunk_losses_(logits: Tensor, labels: Tensor, terms: LossTerms, scale: Tensor | None, gradient: bool) -> Tensor:
    """Return a chunk's losses (C,) and overwrite its logits (C, V) with their gradient, block by block."""
    rows, classes = logits.shape
    working = working_dtype(logits.dtype)
    size = min(rows, _block_rows(classes, logits.device))
    scratch = None if logits.dtype == working else logits.new_empty(size, classes, dtype=working)
    losses = []
    for start in range(0, rows, size):
        block = slice(start, min(start + size, rows))
        values = logits[block] if scratch is None else scratch[: block.stop - start].copy_(logits[block])
        block_scale = None if scale is None else scale[block]
        losses.append(_row_losses_(values, labels[block].unsqueeze(1), terms, block_scale, gradient))
        if gradient and scratch is not None:
            logits[block] = values
    return torch.cat(losses)


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
