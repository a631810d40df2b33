"""Group normalisation and its gradients on any device, by PyTorch's own fused operators.

Source: Wu and He, "Group Normalization" (arXiv:1803.08494); GroupNorm of Liger's official code. It is layer
normalisation of every group of channels, with scale and shift by channel: per group of M = C/G · S elements, with
r = (var(x) + ε)^(-1/2), x̂ = (x - μ) r and g = w ⊙ dy,

    y = w ⊙ x̂ + b        dx = r [g - x̂ mean(x̂ g) - mean(g)]        dw = Σ_{n,s} dy ⊙ x̂        db = Σ_{n,s} dy

Shapes: x, y and their gradients (N, C, S), w and b (C,), μ and r (N, G).

Departure. As with layer normalisation there is nothing to save: x, μ and r are kept. What remains is exactness: on a
CPU PyTorch's operators round in between for half-precision input. Here forward takes weight and bias in float32, which
makes them keep float32 statistics, and backward goes over samples, a few at a time, that are cast to float32.

Cost: one reading of x forward, two of x and dy backward. Memory beyond the results: for half precision three samples,
or 1 MiB per thread where samples are smaller.
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.kernels._row_blocks import row_blocks, working_dtype

__all__ = ["group_norm_native", "group_norm_native_backward"]


def _parameter(x: Tensor, parameter: Tensor | None) -> Tensor | None:
    """Return a parameter as PyTorch's operators take it: contiguous, away from the CPU in the input's type."""
    if parameter is None:
        return None
    return parameter.to(working_dtype(x.dtype) if x.device.type == "cpu" else x.dtype).contiguous()


def group_norm_native(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (N, C, S), and μ and r (N, G), which backward needs."""
    if weight is None and x.device.type == "cpu" and working_dtype(x.dtype) != x.dtype:
        weight = x.new_ones(x.shape[1])  # only a float32 weight makes the statistics float32
    with torch.autocast(x.device.type, enabled=False):
        samples, channels, positions = x.shape
        scale, shift = _parameter(x, weight), _parameter(x, bias)
        return torch.native_group_norm(x.contiguous(), scale, shift, samples, channels, positions, groups, eps)


def group_norm_native_backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, groups: int, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dx (N, C, S), dw (C,) and db (C,), the latter in the statistics' type; `None` where not needed.

    Args:
        dy: (N, C, S), the gradient by y.
        x: (N, C, S).
        mean: (N, G) of forward.
        r: (N, G) of forward.
        weight: (C,) or None.
        groups: G.
        needs: Whether dx, dw and db are needed.
    """
    # PyTorch's operator has no gradient of a bias without a weight.
    scale = x.new_ones(x.shape[1], dtype=r.dtype) if weight is None else weight.to(r.dtype).contiguous()
    if x.dtype == r.dtype:
        return _backward(dy, x, mean, r, scale, groups, needs)
    samples, channels, positions = x.shape
    dx = torch.empty_like(x, memory_format=torch.contiguous_format) if needs[0] else None
    dw, db = (x.new_zeros(channels, dtype=r.dtype) if needed else None for needed in needs[1:])
    for block in row_blocks(samples, channels * positions, x.device):
        exact = dy[block].to(r.dtype), x[block].to(r.dtype)
        part = _backward(*exact, mean[block], r[block], scale, groups, needs)
        if dx is not None and part[0] is not None:
            dx[block] = part[0]
        for total, more in zip((dw, db), part[1:], strict=True):
            if total is not None and more is not None:
                total += more
    return dx, dw, db


def _backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, scale: Tensor, groups: int, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    with torch.autocast(x.device.type, enabled=False):
        found = torch.ops.aten.native_group_norm_backward(
            dy.contiguous(), x.contiguous(), mean, r, scale, *x.shape, groups, needs
        )
    dx, dw, db = (gradient if needed else None for needed, gradient in zip(needs, found, strict=True))
    return dx, dw, db
