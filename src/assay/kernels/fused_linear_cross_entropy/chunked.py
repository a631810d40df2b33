"""The loss of a linear classifier head without its logits, and the gradients in the same pass.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, FusedLinearCrossEntropy. Rows go through the head in chunks;
the buffer of a chunk's logits is overwritten by their gradient, which two matrix products turn into the chunk's part of the
gradients of input and weight. So one (C, V) buffer is all that ever exists of the (R, V) logits.

Shapes: R rows (tokens), H input features, V classes, C rows of a chunk, B rows of a block.

Departures. The softmax works on blocks of a chunk that fit into the cache, in float32 for half-precision inputs, and the
loss is float32. Gradients are formed for the *sum* of the losses, so that the division by the number of tokens happens
after the products, where half precision cannot underflow. Rows with the ignored label are left out of the products.
Chunks are larger than the paper's C = R H / V: fewer, larger products are faster, and half-precision weight gradients, which
are rounded once per chunk, more exact.

Cost: the three matrix products of the plain computation, 6 R H V operations; memory beyond the gradients: the C V buffer.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from assay.errors import InvalidInput

# Half-precision sums over this many chunks have 1.3 to 2 times the rounding error of one product; over 64, 6 times.
_EXACT_CHUNKS = 8

__all__ = ["Gradients", "LossTerms", "chunk_rows", "linear_cross_entropy_chunked"]


@dataclass(frozen=True)
class LossTerms:
    """What one row's loss is made of; the arguments of `linear_cross_entropy` of the same names."""

    ignore_index: int = -100
    label_smoothing: float = 0.0
    z_loss: float = 0.0
    softcap: float | None = None


class Gradients(NamedTuple):
    """Gradients of the sum of the losses; `None` where none was asked for."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def chunk_rows(rows: int, features: int, classes: int) -> int:
    """Return how many rows go through the head at once.

    An eighth of the rows, so that the buffer stays small against the logits that are avoided, but not below 256, where the
    products become slow, and no more than make the buffer as large as the weight (or 64 MiB of float32, if that is more).

    Args:
        rows: R, rows in the batch.
        features: H, input features.
        classes: V, classes.
    """
    at_most = max(features, 2**24 // max(classes, 1))
    return max(1, min(rows, at_most, max(256, -(-rows // 8))))


def _block_rows(classes: int, device: torch.device) -> int:
    """Rows whose float32 logits stay in the cache of a CPU, or keep a GPU busy."""
    size = 2**21 if device.type == "cpu" else 2**26
    return max(torch.get_num_threads() if device.type == "cpu" else 1, size // (4 * max(classes, 1)))


def _row_losses_(
    logits: Tensor, labels: Tensor, scale: Tensor | None, class_weight: Tensor | None, terms: LossTerms, gradient: bool
) -> Tensor:
    """Return the losses (B,) of a block of logits (B, V), and overwrite the logits with their gradient times `scale` (B,)."""
    smoothing, classes = terms.label_smoothing, logits.shape[1]
    slope = None
    if terms.softcap is not None:
        logits.div_(terms.softcap).tanh_()
        slope = (1 - logits.square()) if gradient else None
        logits.mul_(terms.softcap)

    labels = labels.unsqueeze(1)
    largest = logits.amax(1)
    distance = largest - logits.gather(1, labels).squeeze(1)
    weighted_mean = None
    if smoothing:
        weighted_mean = logits.mean(1) if class_weight is None else (logits @ class_weight) / classes
    probability = torch.softmax(logits, 1, out=logits)
    # the largest probability is exp(largest - log sum exp), and never too small for a logarithm
    excess = -probability.amax(1).log()
    log_normalizer = largest + excess

    row_weight = None if class_weight is None else class_weight[labels.squeeze(1)]
    mean_weight = 1.0 if class_weight is None else class_weight.mean()
    losses = (distance + excess) * (1 - smoothing)
    if terms.z_loss:
        losses = losses + terms.z_loss * log_normalizer.square()
    if row_weight is not None:
        losses = losses * row_weight
    if weighted_mean is not None:
        losses = losses + smoothing * (mean_weight * log_normalizer - weighted_mean)
    if gradient:
        _gradient_(probability, labels, log_normalizer, row_weight, mean_weight, class_weight, scale, terms)
        if slope is not None:
            logits.mul_(slope)
    return losses


def _gradient_(
    probability: Tensor,
    labels: Tensor,
    log_normalizer: Tensor,
    row_weight: Tensor | None,
    mean_weight: Tensor | float,
    class_weight: Tensor | None,
    scale: Tensor | None,
    terms: LossTerms,
) -> None:
    """Overwrite softmax probabilities (B, V) with the gradient of the losses with respect to the (capped) logits."""
    smoothing, classes = terms.label_smoothing, probability.shape[1]
    at_label = torch.full_like(log_normalizer, 1 - smoothing)
    of_softmax = at_label + 2 * terms.z_loss * log_normalizer
    if row_weight is not None:
        at_label, of_softmax = at_label * row_weight, of_softmax * row_weight
    of_softmax = of_softmax + smoothing * mean_weight
    if smoothing or terms.z_loss or row_weight is not None:
        probability.mul_(of_softmax.unsqueeze(1))
    probability.scatter_add_(1, labels, -at_label.unsqueeze(1))
    if smoothing:
        probability.sub_(smoothing / classes if class_weight is None else class_weight * (smoothing / classes))
    if scale is not None:
        probability.mul_(scale.unsqueeze(1))


def _check_labels(target: Tensor, classes: int, ignore_index: int) -> None:
    outside = ((target < 0) | (target >= classes)) & (target != ignore_index)
    if target.device.type != "cpu":
        torch._assert_async(~outside.any(), "linear_cross_entropy: a label is out of range")
    elif bool(outside.any()):
        raise InvalidInput(
            f"linear_cross_entropy: label {int(target[outside][0])} is outside [0, {classes}) "
            f"and is not ignore_index={ignore_index}"
        )


@torch.no_grad()
def linear_cross_entropy_chunked(
    input: Tensor,
    linear_weight: Tensor,
    target: Tensor,
    linear_bias: Tensor | None,
    class_weight: Tensor | None,
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
        target: (R,) int64 labels.
        linear_bias: (V,) or None.
        class_weight: (V,) or None.
        terms: What a row's loss is made of.
        scale: (R,) weights of the rows in the gradients (the upstream gradient), 1 by default.
        chunk_size: C, by default `chunk_rows`.
        accumulate_dtype: In which the weight's gradient is summed over the chunks, by default the weight's
            for up to 8 chunks and float32 for more.
        gradients: Which gradients to form: of input, weight, bias.

    Returns:
        Losses (R,) in float32 (float64 for float64 inputs), zero for ignored rows, and the gradients.

    Raises:
        InvalidInput: If a label is out of range.
    """
    _check_labels(target, linear_weight.shape[0], terms.ignore_index)
    kept = (target != terms.ignore_index).nonzero().squeeze(1)
    arguments = (linear_weight, linear_bias, class_weight, terms, chunk_size, accumulate_dtype, gradients)
    if kept.numel() == target.numel():
        return _all_rows(input, target, scale, *arguments)
    kept_scale = None if scale is None else scale[kept]
    kept_losses, found = _all_rows(input[kept], target[kept], kept_scale, *arguments)
    losses = kept_losses.new_zeros(target.shape).index_copy_(0, kept, kept_losses)
    if found.input is not None:
        full = input.new_zeros(input.shape).index_copy_(0, kept, found.input)
        found = found._replace(input=full)
    return losses, found


def _all_rows(
    input: Tensor,
    target: Tensor,
    scale: Tensor | None,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    class_weight: Tensor | None,
    terms: LossTerms,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
    gradients: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    (rows, features), classes = input.shape, linear_weight.shape[0]
    size = min(chunk_size or chunk_rows(rows, features, classes), max(rows, 1))
    working = torch.float32 if input.dtype in (torch.float16, torch.bfloat16) else input.dtype
    accumulate_dtype = accumulate_dtype or (working if rows > _EXACT_CHUNKS * size else input.dtype)
    if class_weight is not None:
        class_weight = class_weight.to(working)
    buffer = input.new_empty(size, classes)
    losses = input.new_empty(rows, dtype=working)
    found = Gradients(
        input.new_empty(rows, features) if gradients[0] else None,
        linear_weight.new_zeros(classes, features, dtype=accumulate_dtype) if gradients[1] else None,
        input.new_zeros(classes, dtype=working) if gradients[2] else None,
    )
    for start in range(0, rows, size):
        chunk = slice(start, min(start + size, rows))
        inputs, logits = input[chunk], buffer[: chunk.stop - start]
        if linear_bias is None:
            torch.mm(inputs, linear_weight.t(), out=logits)
        else:
            torch.addmm(linear_bias, inputs, linear_weight.t(), out=logits)
        chunk_scale = None if scale is None else scale[chunk]
        losses[chunk] = _chunk_losses_(logits, target[chunk], chunk_scale, class_weight, terms, any(gradients), working)
        if found.input is not None:
            torch.mm(logits, linear_weight, out=found.input[chunk])
        if found.weight is not None:
            _add_weight_gradient_(found.weight, logits, inputs)
        if found.bias is not None:
            found.bias.add_(logits.sum(0, dtype=working))
    weight, bias = (None if total is None else total.to(input.dtype) for total in found[1:])
    return losses, Gradients(found.input, weight, bias)


def _add_weight_gradient_(total: Tensor, logits_gradient: Tensor, inputs: Tensor) -> None:
    """Add a chunk's part (C, V)ᵀ (C, H) to the weight's gradient; in a wider type by slices, for the product's own copy."""
    if total.dtype == inputs.dtype:
        total.addmm_(logits_gradient.t(), inputs)
        return
    for part, columns in zip(total.split(4096), logits_gradient.split(4096, dim=1), strict=True):
        part.add_(columns.t() @ inputs)


def _chunk_losses_(
    logits: Tensor,
    labels: Tensor,
    scale: Tensor | None,
    class_weight: Tensor | None,
    terms: LossTerms,
    gradient: bool,
    working: torch.dtype,
) -> Tensor:
    """Return a chunk's losses (C,) and overwrite its logits (C, V) with their gradient, block by block in `working`."""
    rows, classes = logits.shape
    size = min(rows, _block_rows(classes, logits.device))
    scratch = None if logits.dtype == working else logits.new_empty(size, classes, dtype=working)
    losses = []
    for start in range(0, rows, size):
        block = slice(start, min(start + size, rows))
        values = logits[block] if scratch is None else scratch[: block.stop - start].copy_(logits[block])
        block_scale = None if scale is None else scale[block]
        losses.append(_row_losses_(values, labels[block], block_scale, class_weight, terms, gradient))
        if gradient and scratch is not None:
            logits[block] = values
    return torch.cat(losses)
