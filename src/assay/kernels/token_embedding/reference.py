"""The embedding written plainly, with autograd for the rest.

What the fused implementations must equal. In return for slowness there are second derivatives, forward mode and
`torch.func`.

Shapes: T tokens, V words, H features.
"""

from __future__ import annotations

from torch import Tensor

from assay.kernels._row_blocks import working_dtype

__all__ = ["embedding_reference"]


def embedding_reference(input: Tensor, weight: Tensor, padding_idx: int | None = None) -> Tensor:
    """Return what `embedding` returns; its gradient is summed in float32 for half precision.

    Args, shapes and the result are those of `assay.kernels.embedding`; inputs are not checked.
    """
    rows = weight.to(working_dtype(weight.dtype))[input]
    if padding_idx is not None:
        padding = (input == padding_idx % len(weight)).unsqueeze(-1)
        rows = rows.detach().where(padding, rows)
    return rows.to(weight.dtype)
