"""The loss of a linear classifier head without its logits, and the gradients in the same pass.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, FusedLinearCrossEntropy. The loop over chunks of
rows and the matrix products are in `assay.kernels._chunked_head`, the loss of a chunk's logits and its gradient in
`assay.kernels._cross_entropy_rows`.

Shapes: R rows (tokens), H input features, V classes, C rows of a chunk.

Departures. Rows with the ignored label are left out of the products. Others: see the two modules.

Cost: the three matrix products of the plain computation, 6 R H V operations; memory beyond the gradients: C V logits.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels._chunked_head import Gradients, chunk_rows, losses_and_gradients, with_left_out
from assay.kernels._cross_entropy_rows import LossTerms, check_labels, row_losses

__all__ = ["linear_cross_entropy_chunked"]


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
    check_labels("linear_cross_entropy", target, linear_weight.shape[0], terms.ignore_index)
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        kept = (target != terms.ignore_index).nonzero().squeeze(1)
        everything = kept.numel() == target.numel()
        labels = target if everything else target[kept]
        weights = scale if everything or scale is None else scale[kept]

        def chunk_losses(chunk: slice, logits: Tensor, gradient: bool) -> Tensor:
            chunk_scale = None if weights is None else weights[chunk]
            into = logits if gradient else None
            return row_losses(logits, labels[chunk], terms, scale=chunk_scale, gradient=into)

        losses, found = losses_and_gradients(
            input if everything else input[kept],
            linear_weight,
            linear_bias,
            chunk_losses,
            chunk_size=chunk_size or chunk_rows(kept.numel(), *reversed(linear_weight.shape)),
            accumulate_dtype=accumulate_dtype,
            gradients=gradients,
        )
        return (losses, found) if everything else with_left_out(losses, found, kept, target.numel())
