"""Layer normalisation in Triton: a program per row forward, a program per share of the rows backward.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, LayerNorm; formulas in `native`. The gradients of
weight and bias need no atomics: every program of the backward launch sums the rows of its share in registers and writes
one row of a buffer, which is summed afterwards. So the result is the same on every run.

Shapes: R rows, H columns, P programs; x, y and their gradients (R, H), w and b (H,), mean and r (R, 1), partial sums of
both gradients (2, P, H).

Checked in Triton's interpreter and compiled ahead of time; never timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two, persistent_programs, warps_for

__all__ = ["ahead_of_time", "layer_norm_triton", "layer_norm_triton_backward"]


@triton.jit
def _forward(x, w, b, y, mean, r, stride, columns, eps, WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr):
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    values = tl.load(x + row * stride + column, mask=inside, other=0.0).to(tl.float32)
    average = tl.sum(values, 0) / columns
    values = tl.where(inside, values - average, 0.0)
    factor = 1.0 / tl.sqrt_rn(tl.sum(values * values, 0) / columns + eps)
    tl.store(mean + row, average)
    tl.store(r + row, factor)
    values = values * factor
    if WEIGHT:
        values = values * tl.load(w + column, mask=inside, other=0.0).to(tl.float32)
    if BIAS:
        values = values + tl.load(b + column, mask=inside, other=0.0).to(tl.float32)
    tl.store(y + row * columns + column, values, mask=inside)


@triton.jit
def _backward(
    dy, x, mean, r, w, dx, partial, stride_dy, stride_x, rows, columns, share, programs,
    WEIGHT: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_PARAMETERS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    weight_total = tl.zeros((BLOCK,), dtype=tl.float32)
    bias_total = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program * share, min((program + 1) * share, rows)):
        upstream = tl.load(dy + row * stride_dy + column, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(r + row)
        values = (values - tl.load(mean + row)) * factor
        if NEEDS_PARAMETERS:
            weight_total += upstream * values
            bias_total += upstream
        if NEEDS_X:
            if WEIGHT:  # read again for every row: it is in the cache, and registers are scarce
                upstream = upstream * tl.load(w + column, mask=inside, other=0.0).to(tl.float32)
            projection = tl.sum(upstream * values, 0) / columns
            average = tl.sum(upstream, 0) / columns
            tl.store(dx + row * columns + column, factor * (upstream - values * projection - average), mask=inside)
    if NEEDS_PARAMETERS:
        tl.store(partial + program * columns + column, weight_total, mask=inside)
        tl.store(partial + (programs + program) * columns + column, bias_total, mask=inside)


def layer_norm_triton(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (R, H), and μ (R, 1) and r (R, 1), as `layer_norm_native` does."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, columns = x.shape
    y = x.new_empty(rows, columns)
    mean, r = x.new_empty(2, rows, 1, dtype=torch.float32).unbind()
    if rows:
        block = next_power_of_two(columns)
        w, b = (x if tensor is None else tensor.contiguous() for tensor in (weight, bias))
        _forward[(rows,)](
            x, w, b, y, mean, r, x.stride(0), columns, eps, weight is not None, bias is not None, block,
            num_warps=warps_for(block),
        )  # fmt: skip
    return y, mean, r


def layer_norm_triton_backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dx (R, H), dw (H,) and db (H,), as `layer_norm_native_backward` does."""
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, columns = x.shape
    block, programs = next_power_of_two(columns), persistent_programs(x.device, rows)
    dx = x.new_empty(rows, columns) if needs[0] else None
    partial = x.new_empty(2, programs, columns, dtype=torch.float32)
    if rows:
        _backward[(programs,)](
            dy, x, mean, r, x if weight is None else weight.contiguous(), x if dx is None else dx, partial,
            dy.stride(0), x.stride(0), rows, columns, -(-rows // programs), programs,
            weight is not None, needs[0], needs[1] or needs[2], block, num_warps=warps_for(block),
        )  # fmt: skip
    return dx, partial[0].sum(0) if needs[1] else None, partial[1].sum(0) if needs[2] else None


def ahead_of_time() -> list[Compilation]:
    """Return typical settings of the kernels, to be compiled without a GPU."""
    found = []
    for dtype, columns in (("bf16", 1024), ("bf16", 4096), ("fp32", 4096), ("bf16", 16384), ("fp32", 16384)):
        data, numbers = f"*{dtype}", "*fp32"
        constants: dict[str, Any] = {"WEIGHT": True, "BLOCK": columns}
        types = {"x": data, "w": data, "b": data, "y": data, "mean": numbers, "r": numbers}
        types |= {"stride": "i32", "columns": "i32", "eps": "fp32"}
        options: dict[str, Any] = {"warps": warps_for(columns)}
        name = f"{dtype} {columns}"
        forward = Compilation(
            f"layer_norm forward {name}", _forward, types, constants | {"BIAS": True},
            divisible=("stride", "columns"), **options,
        )  # fmt: skip
        types = {"dy": data, "x": data, "mean": numbers, "r": numbers, "w": data, "dx": data, "partial": numbers}
        types |= dict.fromkeys(("stride_dy", "stride_x", "rows", "columns", "share", "programs"), "i32")
        backward = Compilation(
            f"layer_norm backward {name}", _backward, types, constants | {"NEEDS_X": True, "NEEDS_PARAMETERS": True},
            divisible=("stride_dy", "stride_x", "columns"), **options,
        )  # fmt: skip
        found += [forward, backward]
    return found
