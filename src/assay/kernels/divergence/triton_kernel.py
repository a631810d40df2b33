"""Divergences between rows of log-probabilities and their gradients in Triton.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), KLDiv and JSD of the official code; formulas in `blocked`.
Forward is one program per row with a loop over blocks of classes, backward one program per row and block. ln M is
formed from the larger of the two logarithms, so that it neither overflows nor underflows.

Shapes: input, target and gradients (R, V), result and upstream (R, 1) or (R, V); last dimensions dense.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two, warps_for

__all__ = ["ahead_of_time", "kind_of", "terms_and_gradients", "triton_divergence", "triton_divergence_backward"]

LARGEST = 4096

# How the divergence is written: KL(P|Q) of probabilities P, of logarithms, KL(Q|P), or between.
PROBABILITIES, FORWARD, REVERSE, BETWEEN = (tl.constexpr(i) for i in range(4))


@triton.jit
def _weighted(logarithm: tl.tensor, other: tl.tensor) -> tl.tensor:
    probability = tl.exp(logarithm)
    return tl.where(probability > 0, probability * (logarithm - other), 0.0)


@triton.jit
def terms_and_gradients(
    x: tl.tensor, t: tl.tensor, beta: tl.tensor, kind: tl.constexpr
) -> tuple[tl.tensor, tl.tensor, tl.tensor]:
    """Return the terms and their gradients by x and t."""
    if kind == PROBABILITIES:
        of_input = -t
        of_target = tl.log(t) + 1 - x
        terms = tl.where(t == 0, 0.0, t * (tl.log(t) - x))
    elif kind == FORWARD:
        terms = _weighted(t, x)
        of_input = -tl.exp(t)
        of_target = terms + tl.exp(t)
    elif kind == REVERSE:
        terms = _weighted(x, t)
        of_input = terms + tl.exp(x)
        of_target = -tl.exp(x)
    else:
        larger = tl.maximum(x, t)
        mixture = larger + tl.log(beta * tl.exp(t - larger) + (1 - beta) * tl.exp(x - larger))
        of_input = (1 - beta) * _weighted(x, mixture)
        of_target = beta * _weighted(t, mixture)
        terms = of_input + of_target
    return terms, of_input, of_target


@triton.jit
def forward_kernel(
    input: tl.tensor,
    target: tl.tensor,
    result: tl.tensor,
    stride_input: tl.tensor,
    stride_target: tl.tensor,
    columns: tl.tensor,
    beta: tl.tensor,
    kind: tl.constexpr,
    per_class: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write a row's divergence, or its terms."""
    row = tl.program_id(0).to(tl.int64)
    total = 0.0
    for start in range(0, columns, block):
        offsets = start + tl.arange(0, block)
        inside = offsets < columns
        x = tl.load(input + row * stride_input + offsets, mask=inside, other=0.0).to(tl.float32)
        t = tl.load(target + row * stride_target + offsets, mask=inside, other=0.0).to(tl.float32)
        terms, _, _ = terms_and_gradients(x, t, beta, kind)
        if per_class:
            tl.store(result + row * columns + offsets, terms, mask=inside)
        else:
            total += tl.sum(tl.where(inside, terms, 0.0))
    if not per_class:
        tl.store(result + row, total)


@triton.jit
def backward_kernel(
    upstream: tl.tensor,
    input: tl.tensor,
    target: tl.tensor,
    dx: tl.tensor,
    dt: tl.tensor,
    stride_input: tl.tensor,
    stride_target: tl.tensor,
    columns: tl.tensor,
    beta: tl.tensor,
    kind: tl.constexpr,
    per_class: tl.constexpr,
    needs_input: tl.constexpr,
    needs_target: tl.constexpr,
    block: tl.constexpr,
) -> None:
    """Write the gradients of a block of a row."""
    row = tl.program_id(0).to(tl.int64)
    offsets = tl.program_id(1) * block + tl.arange(0, block)
    inside = offsets < columns
    x = tl.load(input + row * stride_input + offsets, mask=inside, other=0.0).to(tl.float32)
    t = tl.load(target + row * stride_target + offsets, mask=inside, other=0.0).to(tl.float32)
    if per_class:
        factor = tl.load(upstream + row * columns + offsets, mask=inside, other=0.0)
    else:
        factor = tl.load(upstream + row)
    _, of_input, of_target = terms_and_gradients(x, t, beta, kind)
    if needs_input:
        tl.store(dx + row * columns + offsets, (of_input * factor).to(dx.dtype.element_ty), mask=inside)
    if needs_target:
        tl.store(dt + row * columns + offsets, (of_target * factor).to(dt.dtype.element_ty), mask=inside)


def kind_of(beta: float, log_target: bool) -> tl.constexpr:
    """Return how the kernels write a divergence."""
    if not log_target:
        return PROBABILITIES
    return FORWARD if beta == 0 else REVERSE if beta == 1 else BETWEEN


def _dense(tensor: Tensor) -> Tensor:
    return tensor if tensor.stride(1) == 1 else tensor.contiguous()


def triton_divergence(input: Tensor, target: Tensor, beta: float, log_target: bool, per_class: bool) -> Tensor:
    """Return the divergences of rows, as `divergence_blocked` does."""
    input, target = _dense(input), _dense(target)
    rows, columns = input.shape
    result = input.new_zeros(rows, columns if per_class else 1, dtype=torch.float32)
    if input.numel():
        block = min(next_power_of_two(columns), LARGEST)
        sizes = (input.stride(0), target.stride(0), columns, beta)
        options = {"kind": kind_of(beta, log_target), "per_class": per_class, "block": block}
        forward_kernel[(rows,)](input, target, result, *sizes, **options, num_warps=warps_for(block))
    return result


def triton_divergence_backward(
    upstream: Tensor, input: Tensor, target: Tensor, beta: float, log_target: bool, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients by input and target, as `divergence_blocked_backward` does."""
    input, target, upstream = _dense(input), _dense(target), upstream.contiguous()
    rows, columns = input.shape
    dx, dt = (t.new_empty(t.shape) if needed else None for t, needed in zip((input, target), needs, strict=True))
    if input.numel():
        block = min(next_power_of_two(columns), LARGEST)
        into = (input if dx is None else dx, target if dt is None else dt)
        sizes = (input.stride(0), target.stride(0), columns, beta)
        options = {"kind": kind_of(beta, log_target), "per_class": upstream.shape[1] == columns > 1, "block": block}
        backward_kernel[(rows, triton.cdiv(columns, block))](
            upstream, input, target, *into, *sizes, **options,
            needs_input=needs[0], needs_target=needs[1], num_warps=warps_for(block),
        )  # fmt: skip
    return dx, dt


def ahead_of_time() -> list[Compilation]:
    """Return the three divergences of logarithms, forward and backward, in bfloat16, and the mixture in float32."""
    found = []
    sizes = {"stride_input": "i32", "stride_target": "i32", "columns": "i32", "beta": "fp32"}
    settings = (("kl", "bf16", FORWARD), ("reverse kl", "bf16", REVERSE), ("jsd", "bf16", BETWEEN))
    for name, dtype, kind in (*settings, ("jsd", "fp32", BETWEEN)):
        pair = {"input": f"*{dtype}", "target": f"*{dtype}"}
        options = {"kind": kind.value, "per_class": False, "block": LARGEST}
        needs = {"needs_input": True, "needs_target": True}
        divisible = ("stride_input", "stride_target", "columns")
        warps = warps_for(LARGEST)
        for kernel, types, constants in (
            (forward_kernel, {**pair, "result": "*fp32"}, options),
            (
                backward_kernel,
                {"upstream": "*fp32", **pair, "dx": f"*{dtype}", "dt": f"*{dtype}"},
                {**options, **needs},
            ),
        ):
            what = f"{name} {kernel.__name__.removesuffix('_kernel')} {dtype} {LARGEST}"
            found.append(Compilation(what, kernel, {**types, **sizes}, constants, warps, divisible=divisible))
    return found
