"""Rotary position embedding written plainly, as Hugging Face has it, with autograd for the rest.

What the fused implementations must equal. It makes four temporary tensors of the queries' size; in return there are
gradients by cosines and sines, forward mode and `torch.func`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["rope_reference"]


def rope_reference(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor, *, unsqueeze_dim: int = 1) -> tuple[Tensor, Tensor]:
    """Return what `rope` returns, by way of temporary tensors.

    Args, shapes and the result are those of `assay.kernels.rope`; inputs are not checked.
    """
    working = working_dtype(q.dtype)
    cos, sin = (t.to(working).unsqueeze(unsqueeze_dim) for t in (cos, sin))
    rotated_q, rotated_k = (x * cos + _rotate_half(x) * sin for x in (q.to(working), k.to(working)))
    return rotated_q.to(q.dtype), rotated_k.to(k.dtype)


def _rotate_half(x: Tensor) -> Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)
