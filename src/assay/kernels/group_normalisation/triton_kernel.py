"""Group normalisation in Triton: a program per group of a sample, forward and backward.

Source: GroupNorm of Liger's official code; formulas in `native`. Groups of images are too long for registers, so
programs go over them in blocks. The gradients of weight and bias need no atomics: each program writes the sums of its
own channels of its own sample, and these are summed over samples afterwards. So the result is the same on every run.

Shapes: N samples, C channels in G groups, S positions, D = C/G channels in a group; x, y and their gradients (N, C, S),
w and b (C,), mean and r (N, G), sums over positions of both gradients (2, N, C).

Checked in Triton's interpreter and compiled ahead of time; never timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two

__all__ = ["ahead_of_time", "group_norm_triton", "group_norm_triton_backward"]

LONGEST_BLOCK = 4096


@triton.jit
def _forward(
    x, w, b, y, mean, r, groups, depth, positions, eps,
    WEIGHT: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    length = depth * positions
    start = program * length
    column = tl.arange(0, BLOCK)
    total = tl.zeros((BLOCK,), dtype=tl.float32)
    for offset in range(0, length, BLOCK):
        total += tl.load(x + start + offset + column, mask=offset + column < length, other=0.0).to(tl.float32)
    average = tl.sum(total, 0) / length
    squares = tl.zeros((BLOCK,), dtype=tl.float32)
    for offset in range(0, length, BLOCK):
        inside = offset + column < length
        values = tl.load(x + start + offset + column, mask=inside, other=0.0).to(tl.float32)
        values = tl.where(inside, values - average, 0.0)
        squares += values * values
    factor = 1.0 / tl.sqrt_rn(tl.sum(squares, 0) / length + eps)
    tl.store(mean + program, average)
    tl.store(r + program, factor)
    channel = (program % groups) * depth
    for offset in range(0, length, BLOCK):
        inside = offset + column < length
        values = tl.load(x + start + offset + column, mask=inside, other=0.0).to(tl.float32)
        values = (values - average) * factor
        if WEIGHT:
            values *= tl.load(w + channel + (offset + column) // positions, mask=inside, other=0.0).to(tl.float32)
        if BIAS:
            values += tl.load(b + channel + (offset + column) // positions, mask=inside, other=0.0).to(tl.float32)
        tl.store(y + start + offset + column, values, mask=inside)


@triton.jit
def _backward(
    dy, x, mean, r, w, dx, partial, groups, depth, positions, total_channels,
    WEIGHT: tl.constexpr, NEEDS_X: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    start = program * depth * positions
    channel = (program % groups) * depth
    average, factor = tl.load(mean + program), tl.load(r + program)
    column = tl.arange(0, BLOCK)
    group_sum = 0.0
    group_projection = 0.0
    for d in range(0, depth):
        upstream_sum = tl.zeros((BLOCK,), dtype=tl.float32)
        projection = tl.zeros((BLOCK,), dtype=tl.float32)
        for offset in range(0, positions, BLOCK):
            inside = offset + column < positions
            place = start + d * positions + offset + column
            upstream = tl.load(dy + place, mask=inside, other=0.0).to(tl.float32)
            values = tl.load(x + place, mask=inside, other=0.0).to(tl.float32)
            upstream_sum += upstream
            projection += upstream * (values - average) * factor
        channel_sum, channel_projection = tl.sum(upstream_sum, 0), tl.sum(projection, 0)
        tl.store(partial + program * depth + d, channel_projection)
        tl.store(partial + total_channels + program * depth + d, channel_sum)
        if WEIGHT:
            scale = tl.load(w + channel + d).to(tl.float32)
            group_sum += scale * channel_sum
            group_projection += scale * channel_projection
        else:
            group_sum += channel_sum
            group_projection += channel_projection
    if NEEDS_X:
        length = depth * positions
        for offset in range(0, length, BLOCK):
            inside = offset + column < length
            upstream = tl.load(dy + start + offset + column, mask=inside, other=0.0).to(tl.float32)
            values = tl.load(x + start + offset + column, mask=inside, other=0.0).to(tl.float32)
            if WEIGHT:
                upstream *= tl.load(w + channel + (offset + column) // positions, mask=inside, other=0.0).to(tl.float32)
            values = (values - average) * factor
            gradient = factor * (upstream - (values * group_projection + group_sum) / length)
            tl.store(dx + start + offset + column, gradient, mask=inside)


def _block(length: int) -> int:
    return min(next_power_of_two(length), LONGEST_BLOCK)


def group_norm_triton(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (N, C, S), and μ and r (N, G), as `group_norm_native` does."""
    x = x.contiguous()
    samples, channels, positions = x.shape
    depth = channels // groups
    y = torch.empty_like(x)
    mean, r = x.new_empty(2, samples, groups, dtype=torch.float32).unbind()
    if samples:
        w, b = (x if tensor is None else tensor.contiguous() for tensor in (weight, bias))
        _forward[(samples * groups,)](
            x, w, b, y, mean, r, groups, depth, positions, eps, weight is not None, bias is not None,
            _block(depth * positions), num_warps=8,
        )  # fmt: skip
    return y, mean, r


def group_norm_triton_backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, groups: int, needs: list[bool]
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Return dx (N, C, S), dw (C,) and db (C,), as `group_norm_native_backward` does."""
    dy, x = dy.contiguous(), x.contiguous()
    samples, channels, positions = x.shape
    dx = torch.empty_like(x) if needs[0] else None
    partial = x.new_empty(2, samples, channels, dtype=torch.float32)
    if samples:
        _backward[(samples * groups,)](
            dy, x, mean, r, x if weight is None else weight.contiguous(), x if dx is None else dx, partial,
            groups, channels // groups, positions, samples * channels, weight is not None, needs[0],
            _block(positions), num_warps=8,
        )  # fmt: skip
    return dx, partial[0].sum(0) if needs[1] else None, partial[1].sum(0) if needs[2] else None


def ahead_of_time() -> list[Compilation]:
    """Return typical settings of the kernels, to be compiled without a GPU."""
    found = []
    integers = dict.fromkeys(("groups", "depth", "positions"), "i32")
    for dtype, block in (("bf16", 1024), ("bf16", LONGEST_BLOCK), ("fp32", LONGEST_BLOCK)):
        data, numbers = f"*{dtype}", "*fp32"
        name = f"{dtype} {block}"
        types = {"x": data, "w": data, "b": data, "y": data, "mean": numbers, "r": numbers, **integers, "eps": "fp32"}
        constants = {"WEIGHT": True, "BIAS": True, "BLOCK": block}
        found.append(Compilation(f"group_norm forward {name}", _forward, types, constants, warps=8))
        types = {"dy": data, "x": data, "mean": numbers, "r": numbers, "w": data, "dx": data, "partial": numbers}
        types |= {**integers, "total_channels": "i32"}
        constants = {"WEIGHT": True, "NEEDS_X": True, "BLOCK": block}
        found.append(Compilation(f"group_norm backward {name}", _backward, types, constants, warps=8))
    return found
