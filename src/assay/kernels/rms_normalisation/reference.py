"""Root-mean-square normalisation written plainly, with autograd for the rest.

What the fused implementations must equal. Autograd keeps two to four tensors of the input's size; in return there are
second derivatives, forward mode and `torch.func`.

Shapes: H elements of `normalized_shape`, the last dimensions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["CASTINGS", "rms_norm_reference"]

CASTINGS = ("llama", "gemma", "none")


def rms_norm_reference(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    offset: float = 0.0,
    casting: str = "llama",
) -> Tensor:
    """Return what `rms_norm` returns, with intermediates in memory.

    Args, shapes and the result are those of `assay.kernels.rms_norm`; inputs are not checked.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else tuple(normalized_shape)
    count, dtype = math.prod(shape), input.dtype
    if eps is None:
        eps = torch.finfo(working_dtype(dtype)).eps
    x = input.to(working_dtype(dtype)).flatten(input.dim() - len(shape))
    r = torch.rsqrt(x.square().sum(-1, keepdim=True) / max(count, 1) + eps)
    if casting == "none":
        x, r = x.to(dtype), r.to(dtype)
    normalized = (x * r).view(input.shape)
    if casting == "llama":
        normalized = normalized.to(dtype)
    if weight is None:
        return normalized.to(dtype)
    result = dtype if casting == "gemma" else torch.promote_types(dtype, weight.dtype)
    return (normalized * (weight.to(working_dtype(weight.dtype)) + offset)).to(result)
