"""Root-mean-square normalisation and its gradients on any device, a block of rows at a time.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, RMSNorm (Zhang & Sennrich, arXiv:1910.07467). With
r = (mean_j x_j² + ε)^(-1/2) and m = dy ⊙ (w + o):

    y = (x r) ⊙ (w + o)        dx = r [m - x r² mean_j(m_j x_j)]        dw = Σ_rows dy ⊙ (x r)

Shapes: x, y and their gradients (R, H), w (H,), r (R, 1).

Departures. dx never overwrites dy, which a residual branch may still need. Intermediates are float32 for half
precision; only what the casting asks for is rounded. With casting "none" the mean square is float32 too, where the
official code's overflows in float16 from |x| = 256 on.

Cost: forward reads x and writes y, backward reads x and dy and writes dx; the passes between are over a block that
stays in the cache. Memory beyond the results: a block.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = ["result_dtype", "rms_norm_blocked", "rms_norm_blocked_backward"]


def result_dtype(dtype: torch.dtype, weight: Tensor | None, casting: str) -> torch.dtype:
    """Return the result's type: the input's with casting "gemma", else the promoted one of input and weight."""
    return dtype if weight is None or casting == "gemma" else torch.promote_types(dtype, weight.dtype)


def rms_norm_blocked(
    x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: str
) -> tuple[Tensor, Tensor]:
    """Return y (R, H) and r (R,), which backward needs."""
    rows, columns = x.shape
    working = working_dtype(x.dtype)
    y = x.new_empty(rows, columns, dtype=result_dtype(x.dtype, weight, casting))
    r = x.new_empty(rows, 1, dtype=working)
    scale = None if weight is None else weight.to(working) + offset
    blocks = list(row_blocks(rows, columns, x.device))
    scratch = y if y.dtype == working else _scratch(x, blocks, working)
    for block in blocks:
        values = y[block] if y.dtype == working else scratch[: block.stop - block.start]
        values.copy_(x[block])
        torch.linalg.vector_norm(values, dim=1, keepdim=True, out=r[block])
        r[block].square_().mul_(1 / max(columns, 1)).add_(eps).rsqrt_()
        values.mul_(r[block].to(x.dtype) if casting == "none" else r[block])
        if scale is not None:
            if casting != "gemma" and x.dtype != working:
                values.copy_(y[block].copy_(values) if y.dtype == x.dtype else values.to(x.dtype))
            values.mul_(scale)
        if values.dtype != y.dtype:
            y[block] = values
    return y, r.squeeze(1)


def _scratch(like: Tensor, blocks: Sequence[slice], dtype: torch.dtype) -> Tensor:
    """Return a buffer for the rows of one block, of which the first is the largest."""
    return like.new_empty(blocks[0].stop if blocks else 0, like.shape[1], dtype=dtype)


def rms_norm_blocked_backward(
    dy: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, offset: float, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx (R, H) in x's dtype and dw (H,) in the weight's, `None` where not needed.

    Args:
        dy: (R, H), the gradient by y.
        x: (R, H).
        r: (R,) of forward.
        weight: (H,) or None.
        offset: o.
        needs: Whether dx and dw are needed.
    """
    rows, columns = x.shape
    scale = None if weight is None else weight.to(r.dtype) + offset
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs[0] else None
    dw = x.new_zeros(columns, dtype=r.dtype) if needs[1] else None
    blocks = list(row_blocks(rows, columns, x.device))
    scratch = [_scratch(x, blocks, r.dtype) for _ in range(1 if x.dtype == dy.dtype == r.dtype else 3)]
    for block in blocks:
        factor, values, upstream = r[block], x[block], dy[block]
        product, *copies = (buffer[: block.stop - block.start] for buffer in scratch)
        if copies:
            values, upstream = (copy.copy_(t) for copy, t in zip(copies, (values, upstream), strict=True))
        torch.mul(upstream, values, out=product)
        if dw is not None:
            dw.addmv_(product.t(), factor)
        if dx is not None:
            mean = (product.sum(1) if scale is None else product @ scale) / max(columns, 1)
            gradient = product.copy_(upstream) if scale is None else torch.mul(upstream, scale, out=product)
            gradient.addcmul_(values, (mean * factor.square()).neg_().unsqueeze(1))
            torch.mul(gradient, factor.unsqueeze(1), out=gradient if dx.dtype != r.dtype else dx[block])
            if dx.dtype != r.dtype:
                dx[block] = gradient
    return dx, None if dw is None or weight is None else dw.to(weight.dtype)
