"""Layer normalisation written plainly, with autograd for the rest.

What the fused implementations must equal. Autograd keeps several tensors of the input's size; in return there are
second derivatives, forward mode and `torch.func`.

Shapes: H elements of `normalized_shape`, the last dimensions.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["layer_norm_reference"]


def layer_norm_reference(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Return what `layer_norm` returns, with intermediates in memory.

    Args, shapes and the result are those of `assay.kernels.layer_norm`; inputs are not checked.
    """
    dimensions = 1 if isinstance(normalized_shape, int) else len(normalized_shape)
    x = input.to(working_dtype(input.dtype)).flatten(input.dim() - dimensions)
    centred = x - x.mean(-1, keepdim=True)
    y = (centred * torch.rsqrt(centred.square().mean(-1, keepdim=True) + eps)).view(input.shape)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y.to(input.dtype)
