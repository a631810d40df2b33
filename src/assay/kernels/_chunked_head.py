"""Losses of a linear head over many classes, a chunk of rows at a time, with the gradients in the same pass.

What `linear_cross_entropy` and `linear_jsd` have in common; any loss that is a sum over rows of logits fits.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, FusedLinearCrossEntropy. Rows go through the head in
chunks; the buffer of a chunk's logits is overwritten by their gradient, which two matrix products turn into the chunk's
part of the gradients of input and weight. So one (C, V) buffer is all that ever exists of the (R, V) logits.

Shapes: R rows (tokens), H input features, V classes, C rows of a chunk.

Departures. Gradients are formed for the *sum* of the losses, so that the division by the number of tokens happens
after the products, where half precision cannot underflow. Chunks are larger than the paper's C = R H / V: fewer,
larger products are faster, and half-precision weight gradients, which are rounded once per chunk, more exact.

Cost: the three matrix products of the plain computation, 6 R H V operations; memory beyond the gradients: C V logits.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["ChunkLosses", "Gradients", "chunk_rows", "losses_and_gradients", "project", "sum_dtype", "with_left_out"]

# Half-precision sums over this many chunks have 1.3 to 2 times the rounding error of one product; over 64, 6 times.
_EXACT_CHUNKS = 8

# Given the rows of a chunk and their logits (C, V), returns losses (C,); overwrites the logits with their gradient if
# the last argument is true.
ChunkLosses = Callable[[slice, Tensor, bool], Tensor]


class Gradients(NamedTuple):
    """Gradients of the weighted sum of the losses; `None` where none was asked for."""

    input: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


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


def losses_and_gradients(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    chunk_losses: ChunkLosses,
    *,
    chunk_size: int,
    accumulate_dtype: torch.dtype | None,
    gradients: tuple[bool, bool, bool],
) -> tuple[Tensor, Gradients]:
    """Go through the rows chunk by chunk.

    Args:
        input: (R, H).
        linear_weight: (V, H), of the input's dtype.
        linear_bias: (V,), of the input's dtype, or None.
        chunk_losses: The loss.
        chunk_size: C.
        accumulate_dtype: In which the weight's gradient is summed over the chunks; by default the weight's type for up
            to 8 chunks and float32 for more.
        gradients: Which gradients to form: of input, weight, bias.

    Returns:
        Losses (R,) in `working_dtype`; and gradients, those of weight and bias in `sum_dtype`.
    """
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
        project(inputs, linear_weight, linear_bias, logits)
        losses[chunk] = chunk_losses(chunk, logits, any(gradients))
        if found.input is not None:
            torch.mm(logits, linear_weight, out=found.input[chunk])
        if found.weight is not None:
            _add_weight_gradient_(found.weight, logits, inputs)
        if found.bias is not None:
            found.bias.add_(logits.sum(0, dtype=working))
    weight, bias = (None if total is None else total.to(summed) for total in found[1:])
    return losses, Gradients(found.input, weight, bias)


def project(inputs: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, logits: Tensor) -> None:
    """Write a linear head's logits (C, V) of inputs (C, H) into a buffer."""
    if linear_bias is None:
        torch.mm(inputs, linear_weight.t(), out=logits)
    else:
        torch.addmm(linear_bias, inputs, linear_weight.t(), out=logits)


def with_left_out(losses: Tensor, found: Gradients, kept: Tensor, rows: int) -> tuple[Tensor, Gradients]:
    """Put losses and input gradients of the rows that count among zeros for those that don't.

    Args:
        losses: Losses of the rows that count.
        found: Gradients of their sum.
        kept: The indices of these rows.
        rows: R, the number of all rows.
    """
    losses = losses.new_zeros(rows).index_copy_(0, kept, losses)
    if found.input is not None:
        full = found.input.new_zeros(rows, found.input.shape[1])
        found = found._replace(input=full.index_copy_(0, kept, found.input))
    return losses, found


def _add_weight_gradient_(total: Tensor, logits_gradient: Tensor, inputs: Tensor) -> None:
    """Add a chunk's part (C, V)ᵀ (C, H) to the weight's gradient; by slices if the product needs a copy to be cast."""
    if total.dtype == inputs.dtype:
        total.addmm_(logits_gradient.t(), inputs)
        return
    for part, columns in zip(total.split(4096), logits_gradient.split(4096, dim=1), strict=True):
        part.add_(columns.t() @ inputs)
