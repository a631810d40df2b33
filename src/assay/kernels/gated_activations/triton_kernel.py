"""Gated activations in Triton: one program per row and block of columns, everything between in float32.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, GeGLU and SwiGLU. GELU's ½(1 + tanh z) is written as
σ(2z), so that both activations are a σ(u): u = a for SiLU, u = √(8/π) (a + 0.044715 a³) for GELU, and

    f'(a) = σ(u) + a σ(u) (1 − σ(u)) u'(a)

Departure: a block has at most 4096 columns where the official code holds a whole row; wide rows need no spills.

Shapes: a, b, c and their gradients (R, I), last dimension dense.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two

__all__ = ["ahead_of_time", "triton_gated_activation", "triton_gated_activation_backward"]

LARGEST = 4096


@triton.jit
def _activate(a: tl.tensor, gelu: tl.constexpr) -> tuple[tl.tensor, tl.tensor]:
    """Return f(a) and f'(a)."""
    if gelu:
        u = 1.5957691216057308 * (a + 0.044715 * a * a * a)
        slope = 1.5957691216057308 * (1 + 3 * 0.044715 * a * a)
    else:
        u = a
        slope = 1.0
    probability = tl.sigmoid(u)
    # Where the sigmoid is 1 or 0 its slope is 0, whatever u' has become.
    curvature = a * probability * (1 - probability)
    return a * probability, probability + tl.where(curvature == 0, 0.0, curvature * slope)


@triton.jit
def forward_kernel(
    a: tl.tensor,
    b: tl.tensor,
    c: tl.tensor,
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    columns: tl.tensor,
    gelu: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write c = f(a) b."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * block + tl.arange(0, block)
    inside = offsets < columns
    gate = tl.load(a + row * stride_a + offsets, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(b + row * stride_b + offsets, mask=inside, other=0.0).to(tl.float32)
    activated, _ = _activate(gate, gelu)
    tl.store(c + row * columns + offsets, (activated * value).to(c.dtype.element_ty), mask=inside)


@triton.jit
def backward_kernel(
    dc: tl.tensor,
    a: tl.tensor,
    b: tl.tensor,
    da: tl.tensor,
    db: tl.tensor,
    stride_dc: tl.tensor,
    stride_a: tl.tensor,
    stride_b: tl.tensor,
    columns: tl.tensor,
    gelu: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write da = dc b f'(a), db = dc f(a)."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * block + tl.arange(0, block)
    inside = offsets < columns
    upstream = tl.load(dc + row * stride_dc + offsets, mask=inside, other=0.0).to(tl.float32)
    gate = tl.load(a + row * stride_a + offsets, mask=inside, other=0.0).to(tl.float32)
    value = tl.load(b + row * stride_b + offsets, mask=inside, other=0.0).to(tl.float32)
    activated, slope = _activate(gate, gelu)
    tl.store(da + row * columns + offsets, (upstream * value * slope).to(da.dtype.element_ty), mask=inside)
    tl.store(db + row * columns + offsets, (upstream * activated).to(db.dtype.element_ty), mask=inside)


def _grid(shape: torch.Size) -> tuple[tuple[int, int], int]:
    """Return programs by rows and blocks of columns, and columns of a block."""
    rows, columns = shape
    block = min(next_power_of_two(columns), LARGEST)
    return (rows, triton.cdiv(columns, block)), block


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def triton_gated_activation(a: Tensor, b: Tensor, activation: str) -> Tensor:
    """Return f(a) ⊙ b, as `gated_activation_blocked` does."""
    a, b = _dense(a), _dense(b)
    c = a.new_empty(a.shape)
    if a.numel():
        grid, block = _grid(a.shape)
        sizes = (a.stride(0), b.stride(0), a.shape[1])
        forward_kernel[grid](a, b, c, *sizes, gelu=activation == "gelu", block=block, num_warps=8)
    return c


def triton_gated_activation_backward(dc: Tensor, a: Tensor, b: Tensor, activation: str) -> tuple[Tensor, Tensor]:
    """Return the gradients by a and b, as `gated_activation_blocked_backward` does."""
    dc, a, b = _dense(dc), _dense(a), _dense(b)
    da, db = a.new_empty(a.shape), a.new_empty(a.shape)
    if a.numel():
        grid, block = _grid(a.shape)
        sizes = (dc.stride(0), a.stride(0), b.stride(0), a.shape[1])
        backward_kernel[grid](dc, a, b, da, db, *sizes, gelu=activation == "gelu", block=block, num_warps=8)
    return da, db


def ahead_of_time() -> list[Compilation]:
    """Return both kernels with both activations at the largest block, in bfloat16 and float32."""
    found = []
    for kernel, pointers, strides in (
        (forward_kernel, ("a", "b", "c"), ("stride_a", "stride_b")),
        (backward_kernel, ("dc", "a", "b", "da", "db"), ("stride_dc", "stride_a", "stride_b")),
    ):
        for name, dtype in (("swiglu", "bf16"), ("geglu", "bf16"), ("geglu", "fp32")):
            types = {**dict.fromkeys(pointers, f"*{dtype}"), **dict.fromkeys((*strides, "columns"), "i32")}
            constants = {"gelu": name == "geglu", "block": LARGEST}
            what = f"{name} {kernel.__name__.removesuffix('_kernel')} {dtype} {LARGEST}"
            found.append(Compilation(what, kernel, types, constants, warps=8, divisible=(*strides, "columns")))
    return found
