"""Layer normalisation and its gradients on any device, by PyTorch's own fused operators.

Source: Ba et al., "Layer Normalization" (arXiv:1607.06450); Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2.
With r = (var(x) + ε)^(-1/2), x̂ = (x - μ) r and g = w ⊙ dy:

    y = w ⊙ x̂ + b        dx = r [g - x̂ mean(x̂ g) - mean(g)]        dw = Σ_rows dy ⊙ x̂        db = Σ_rows dy

Shapes: x, y and their gradients (R, H), w and b (H,), μ and r (R, 1).

Departure. PyTorch's operators keep x, μ and r only and go over a row once: there is nothing to gain by chunking. What
remains is exactness. On a CPU, for half-precision input and weight, they keep μ and r in half precision: here weight
and bias are cast to float32 first (H elements), which makes them keep float32. And they sum the parameters' gradients
over rows in half precision, which after some thousand rows of bfloat16 is off by several per cent: here backward goes
over blocks of rows that are cast to float32 and stay in the cache.

Cost: one reading of x forward, two of x and dy backward. Memory beyond the results: for half precision three blocks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = ["layer_norm_native", "layer_norm_native_backward"]


def _parameter_dtype(x: Tensor) -> torch.dtype:
    """Return the type in which PyTorch's operators take weight and bias; away from the CPU it has to be the input's."""
    return working_dtype(x.dtype) if x.device.type == "cpu" else x.dtype


def _parameters(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> tuple[Tensor | None, Tensor | None]:
    """Return weight and bias in `_parameter_dtype`; the weight as ones if only that makes the statistics float32."""
    dtype = _parameter_dtype(x)
    if weight is None and dtype != x.dtype:
        weight = x.new_ones(x.shape[1], dtype=dtype)
    return None if weight is None else weight.to(dtype), None if bias is None else bias.to(dtype)


def layer_norm_native(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (R, H), and μ (R, 1) and r (R, 1), which backward needs."""
    with torch.autocast(x.device.type, enabled=False):
        y, mean, r = torch.native_layer_norm(x, x.shape[1:], *_parameters(x, weight, bias), eps)
    return y, mean, r


def layer_norm_native_backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dx (R, H), dw (H,) and db (H,), the latter in the statistics' type; `None` where not needed.

    Args:
        dy: (R, H), the gradient by y.
        x: (R, H).
        mean: (R, 1) of forward.
        r: (R, 1) of forward.
        weight: (H,) or None.
        needs: Whether dx, dw and db are needed.
    """
    rows, columns = x.shape
    scale = None if weight is None else weight.to(r.dtype)
    if x.dtype == r.dtype:
        return _backward(dy, x, mean, r, scale, needs)
    dx = x.new_empty(rows, columns) if needs[0] else None
    dw, db = (x.new_zeros(columns, dtype=r.dtype) if needed else None for needed in needs[1:])
    for block in row_blocks(rows, columns, x.device):
        part = _backward(dy[block].to(r.dtype), x[block].to(r.dtype), mean[block], r[block], scale, needs)
        if dx is not None and part[0] is not None:
            dx[block] = part[0]
        for total, more in zip((dw, db), part[1:], strict=True):
            if total is not None and more is not None:
                total += more
    return dx, dw, db


def _backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, scale: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    zero = x.new_zeros(x.shape[1])  # what tells PyTorch that there is a bias; its values don't matter
    with torch.autocast(x.device.type, enabled=False):
        found = torch.ops.aten.native_layer_norm_backward(dy, x, x.shape[1:], mean, r, scale, zero, needs)
    dx, dw, db = (gradient if needed else None for needed, gradient in zip(needs, found, strict=True))
    return dx, dw, db
