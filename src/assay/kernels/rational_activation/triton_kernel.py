"""The group-rational activation in Triton: forward, FlashKAT's backward, and KAT's backward to compare it with.

Paper: "FlashKAT" (arXiv:2505.13813): KAT's backward pass waits for memory since every element adds to the shared
coefficients of its group by atomic additions to global memory. Here a program owns a tile of rows x channels of one
group, sums the tile on chip, and writes the sums where no other program writes; a second sum over tiles follows. So
there is one write per tile and coefficient where KAT has one atomic addition per element and coefficient.

Departure: FlashKAT adds the tiles' sums by atomic additions, in an order that changes from run to run, and loops over
the channels of a group in one program; here gradients are the same in every run.
Shapes: x (R, D); numerator a (G, M), denominator b (G, N) in float32; tiles (T, G, M + N). Not timed on a GPU.
"""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation

__all__ = [
    "ahead_of_time",
    "group_rational_gradients_accumulating_triton",
    "group_rational_gradients_triton",
    "group_rational_triton",
]

FORWARD_BLOCK = 1024
TILE_ROWS, TILE_CHANNELS, TILE_WARPS = 32, 64, 8


@triton.jit
def _polynomials(x, distance, a, b, M: tl.constexpr, N: tl.constexpr):
    """Return P, P', Q and dQ/d|x| at x; `a` and `b` point to the coefficients of each element's group."""
    above = tl.load(a + M - 1) + tl.zeros_like(x)
    above_slope = tl.zeros_like(x)
    for i in tl.static_range(M - 2, -1, -1):
        above_slope = above_slope * x + above
        above = above * x + tl.load(a + i)
    below = tl.abs(tl.load(b + N - 1)) + tl.zeros_like(x)
    below_slope = tl.zeros_like(x)
    for j in tl.static_range(N - 2, -1, -1):
        below_slope = below_slope * distance + below
        below = below * distance + tl.abs(tl.load(b + j))
    below_slope = below_slope * distance + below
    below = below * distance + 1.0
    return above, above_slope, below, below_slope


@triton.jit
def _input_gradient(x, upstream, a, b, M: tl.constexpr, N: tl.constexpr):
    """Return dx, and what the powers of x and |x| are multiplied with in da and in -sign(b) db."""
    distance = tl.abs(x)
    above, above_slope, below, below_slope = _polynomials(x, distance, a, b, M, N)
    of_above = upstream / below
    of_below = of_above * (above / below)
    gradient = of_above * above_slope - of_below * tl.where(x < 0, -below_slope, below_slope)
    return gradient, of_above, of_below


@triton.jit
def forward_kernel(
    x_pointer, a_pointer, b_pointer, result_pointer, elements, channels, group_channels,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One block of consecutive elements per program."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    x = tl.load(x_pointer + place, mask=inside, other=0.0).to(tl.float32)
    group = ((place % channels) // group_channels).to(tl.int32)
    above, _, below, _ = _polynomials(x, tl.abs(x), a_pointer + group * M, b_pointer + group * N, M, N)
    tl.store(result_pointer + place, above / below, mask=inside)


@triton.jit
def backward_kernel(
    upstream_pointer, x_pointer, a_pointer, b_pointer, gradient_pointer, sums_pointer,
    rows, channels, group_channels, group_tiles,
    M: tl.constexpr, N: tl.constexpr, TILE_ROWS: tl.constexpr, TILE_CHANNELS: tl.constexpr,
):  # fmt: skip
    """One tile of one group per program: dx, and the tile's sums of da and -sign(b) db."""
    group = tl.program_id(1) // group_tiles
    row = tl.program_id(0).to(tl.int64) * TILE_ROWS + tl.arange(0, TILE_ROWS)[:, None]
    channel = (tl.program_id(1) % group_tiles) * TILE_CHANNELS + tl.arange(0, TILE_CHANNELS)[None, :]
    inside = (row < rows) & (channel < group_channels)
    place = row * channels + group * group_channels + channel
    x = tl.load(x_pointer + place, mask=inside, other=0.0).to(tl.float32)
    upstream = tl.load(upstream_pointer + place, mask=inside, other=0.0).to(tl.float32)
    gradient, of_above, of_below = _input_gradient(x, upstream, a_pointer + group * M, b_pointer + group * N, M, N)
    tl.store(gradient_pointer + place, gradient, mask=inside)
    tile = tl.program_id(0).to(tl.int64) * tl.num_programs(1) + tl.program_id(1)
    sums = sums_pointer + tile * (M + N)
    for i in tl.static_range(M):
        tl.store(sums + i, tl.sum(of_above))
        of_above = of_above * x
    distance = tl.abs(x)
    for j in tl.static_range(N):
        of_below = of_below * distance
        tl.store(sums + M + j, tl.sum(of_below))


@triton.jit
def accumulating_kernel(
    upstream_pointer, x_pointer, a_pointer, b_pointer, gradient_pointer, sums_pointer,
    elements, channels, group_channels,
    M: tl.constexpr, N: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """KAT's backward: every element adds to the sums of its group (G, M + N) in global memory."""
    place = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = place < elements
    x = tl.load(x_pointer + place, mask=inside, other=0.0).to(tl.float32)
    upstream = tl.load(upstream_pointer + place, mask=inside, other=0.0).to(tl.float32)
    group = ((place % channels) // group_channels).to(tl.int32)
    gradient, of_above, of_below = _input_gradient(x, upstream, a_pointer + group * M, b_pointer + group * N, M, N)
    tl.store(gradient_pointer + place, gradient, mask=inside)
    sums = sums_pointer + group * (M + N)
    for i in tl.static_range(M):
        tl.atomic_add(sums + i, of_above, mask=inside)
        of_above = of_above * x
    distance = tl.abs(x)
    for j in tl.static_range(N):
        of_below = of_below * distance
        tl.atomic_add(sums + M + j, of_below, mask=inside)


def group_rational_triton(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    """Return F(x) (R, D) in x's dtype; a (G, M) and b (G, N) in float32."""
    x, a, b = x.contiguous(), a.contiguous(), b.contiguous()
    result = torch.empty_like(x)
    if x.numel():
        channels, (groups, m), n = x.shape[1], a.shape, b.shape[1]
        grid = (triton.cdiv(x.numel(), FORWARD_BLOCK),)
        forward_kernel[grid](x, a, b, result, x.numel(), channels, channels // groups, M=m, N=n, BLOCK=FORWARD_BLOCK)
    return result


def group_rational_gradients_triton(upstream: Tensor, x: Tensor, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx (R, D) in x's dtype, da (G, M) and db (G, N) in float32; tiles first, then the sum over tiles."""
    upstream, x, a, b = (tensor.contiguous() for tensor in (upstream, x, a, b))
    gradient, (rows, channels), (groups, m), n = torch.empty_like(x), x.shape, a.shape, b.shape[1]
    group_channels = channels // groups
    width = min(TILE_CHANNELS, triton.next_power_of_2(max(1, group_channels)))
    row_tiles, group_tiles = triton.cdiv(rows, TILE_ROWS), triton.cdiv(group_channels, width)
    sums = a.new_empty(row_tiles, groups, group_tiles, m + n)
    if x.numel():
        backward_kernel[(row_tiles, groups * group_tiles)](
            upstream, x, a, b, gradient, sums, rows, channels, group_channels, group_tiles,
            M=m, N=n, TILE_ROWS=TILE_ROWS, TILE_CHANNELS=width, num_warps=TILE_WARPS,
        )  # fmt: skip
    return gradient, *_coefficients(sums.sum((0, 2)), b)


def group_rational_gradients_accumulating_triton(
    upstream: Tensor, x: Tensor, a: Tensor, b: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Return what `group_rational_gradients_triton` returns, by KAT's kernel, which FlashKAT is compared with."""
    upstream, x, a, b = (tensor.contiguous() for tensor in (upstream, x, a, b))
    gradient, (groups, m), n, channels = torch.empty_like(x), a.shape, b.shape[1], x.shape[1]
    sums = a.new_zeros(groups, m + n)
    block = 256  # the official code's
    if x.numel():
        accumulating_kernel[(triton.cdiv(x.numel(), block),)](
            upstream, x, a, b, gradient, sums, x.numel(), channels, channels // groups, M=m, N=n, BLOCK=block
        )
    return gradient, *_coefficients(sums, b)


def _coefficients(sums: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    of_numerator, of_denominator = sums.split([sums.shape[1] - b.shape[1], b.shape[1]], 1)
    return of_numerator, torch.where(b < 0, of_denominator, -of_denominator)


def ahead_of_time() -> list[Compilation]:
    """Return the kernels in the sizes of KAT-B (768 channels in 8 groups) for compiling without a GPU."""
    found = []
    for dtype in ("fp32", "bf16"):
        found += [
            _compilation(forward_kernel, dtype, 4, BLOCK=FORWARD_BLOCK),
            _compilation(backward_kernel, dtype, TILE_WARPS, TILE_ROWS=TILE_ROWS, TILE_CHANNELS=TILE_CHANNELS),
            _compilation(accumulating_kernel, dtype, 4, BLOCK=256),
        ]
    return found


def _compilation(kernel: Any, dtype: str, warps: int, **sizes: int) -> Compilation:
    own = ("x_pointer", "upstream_pointer", "result_pointer", "gradient_pointer")
    pointers = {n: f"*{dtype}" if n in own else "*fp32" for n in kernel.arg_names if n.endswith("_pointer")}
    constants = {"M": 6, "N": 4, **sizes}
    integers = {name: "i32" for name in kernel.arg_names if name not in pointers and name not in constants}
    name = f"group_rational_{kernel.__name__.removesuffix('_kernel')} {dtype} {' x '.join(map(str, sizes.values()))}"
    types, divisible = {**pointers, **integers}, ("channels", "group_channels")
    return Compilation(name, kernel, types, constants, warps=warps, divisible=divisible)
