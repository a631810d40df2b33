"""Root-mean-square normalisation in Triton: a program per row forward, a program per share of the rows backward.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, RMSNorm; formulas in `blocked`. The weight's
gradient needs no atomics: every program of the backward launch sums the rows of its share in registers and writes one
row of a buffer, which is summed afterwards. So the result is the same on every run.

Shapes: R rows, H columns, P programs; x, y and their gradients (R, H), w (H,), r (R,), partial sums (P, H).

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
from assay.kernels.rms_normalisation.blocked import result_dtype

__all__ = ["ahead_of_time", "rms_norm_triton", "rms_norm_triton_backward"]


@triton.jit
def _forward(
    x, w, y, r, stride, columns, eps, offset, CASTING: tl.constexpr, WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    row = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    stored = tl.load(x + row * stride + column, mask=inside, other=0.0)
    values = stored.to(tl.float32)
    factor = 1.0 / tl.sqrt_rn(tl.sum(values * values, 0) / columns + eps)
    tl.store(r + row, factor)
    if CASTING == "none":
        factor = factor.to(stored.dtype).to(tl.float32)
    values = values * factor
    if WEIGHT:
        if CASTING != "gemma":
            values = values.to(stored.dtype).to(tl.float32)
        values = values * (tl.load(w + column, mask=inside, other=0.0).to(tl.float32) + offset)
    tl.store(y + row * columns + column, values, mask=inside)


@triton.jit
def _backward(
    dy, x, r, w, dx, partial, stride_dy, stride_x, rows, columns, share, offset,
    WEIGHT: tl.constexpr, NEEDS_X: tl.constexpr, NEEDS_WEIGHT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    column = tl.arange(0, BLOCK)
    inside = column < columns
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for row in range(program * share, min((program + 1) * share, rows)):
        upstream = tl.load(dy + row * stride_dy + column, mask=inside, other=0.0).to(tl.float32)
        values = tl.load(x + row * stride_x + column, mask=inside, other=0.0).to(tl.float32)
        factor = tl.load(r + row)
        values = values * factor
        if NEEDS_WEIGHT:
            total += upstream * values
        if NEEDS_X:
            if WEIGHT:  # read again for every row: it is in the cache, and registers are scarce
                upstream = upstream * (tl.load(w + column, mask=inside, other=0.0).to(tl.float32) + offset)
            mean = tl.sum(upstream * values, 0) / columns
            tl.store(dx + row * columns + column, factor * (upstream - values * mean), mask=inside)
    if NEEDS_WEIGHT:
        tl.store(partial + program * columns + column, total, mask=inside)


def rms_norm_triton(x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: str) -> tuple[Tensor, Tensor]:
    """Return y (R, H) and r (R,), as `rms_norm_blocked` does."""
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, columns = x.shape
    y = x.new_empty(rows, columns, dtype=result_dtype(x.dtype, weight, casting))
    r = x.new_empty(rows, dtype=torch.float32)
    if rows:
        block = next_power_of_two(columns)
        w = x if weight is None else weight.contiguous()
        _forward[(rows,)](
            x, w, y, r, x.stride(0), columns, eps, offset, casting, weight is not None, block,
            num_warps=warps_for(block),
        )  # fmt: skip
    return y, r


def rms_norm_triton_backward(
    dy: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, offset: float, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return dx (R, H) and dw (H,), as `rms_norm_blocked_backward` does."""
    dy = dy if dy.stride(1) == 1 else dy.contiguous()
    x = x if x.stride(1) == 1 else x.contiguous()
    rows, columns = x.shape
    block, programs = next_power_of_two(columns), persistent_programs(x.device, rows)
    dx = x.new_empty(rows, columns) if needs[0] else None
    partial = x.new_empty(programs, columns, dtype=torch.float32) if needs[1] else None
    if rows:
        _backward[(programs,)](
            dy, x, r, x if weight is None else weight.contiguous(), x if dx is None else dx,
            r if partial is None else partial, dy.stride(0), x.stride(0), rows, columns, -(-rows // programs), offset,
            weight is not None, *needs, block, num_warps=warps_for(block),
        )  # fmt: skip
    return dx, None if partial is None or weight is None else partial.sum(0).to(weight.dtype)


def ahead_of_time() -> list[Compilation]:
    """Return typical settings of the kernels, to be compiled without a GPU."""
    found = []
    for dtype, columns in (("bf16", 1024), ("bf16", 4096), ("fp32", 4096), ("bf16", 16384), ("fp32", 16384)):
        data, numbers = f"*{dtype}", "*fp32"
        constants: dict[str, Any] = {"WEIGHT": True, "BLOCK": columns}
        types = {"x": data, "w": data, "y": data, "r": numbers, "stride": "i32", "columns": "i32"}
        types |= {"eps": "fp32", "offset": "fp32"}
        options: dict[str, Any] = {"warps": warps_for(columns)}
        name = f"{dtype} {columns}"
        forward = Compilation(
            f"rms_norm forward {name}", _forward, types, constants | {"CASTING": "llama"},
            divisible=("stride", "columns"), **options,
        )  # fmt: skip
        types = {"dy": data, "x": data, "r": numbers, "w": data, "dx": data, "partial": numbers}
        types |= dict.fromkeys(("stride_dy", "stride_x", "rows", "columns", "share"), "i32") | {"offset": "fp32"}
        backward = Compilation(
            f"rms_norm backward {name}", _backward, types, constants | {"NEEDS_X": True, "NEEDS_WEIGHT": True},
            divisible=("stride_dy", "stride_x", "columns"), **options,
        )  # fmt: skip
        found += [forward, backward]
    return found
