"""Rotary position embedding in Triton: a program per token.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), section 3.2, RoPE; the formula is in `blocked`. Queries and keys
are rotated by the same launch: the program of a token goes through the heads of the queries, then through those of the
keys.

Shapes: B batch, N and M heads of queries and keys, T tokens, D features of a head; x (B, N, T, D) of any strides with
adjacent features; cos and sin (1 or B, T, D).

Checked in Triton's interpreter and compiled ahead of time; never timed on a GPU.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from assay.kernels._ahead_of_time import Compilation
from assay.kernels._launch import next_power_of_two

__all__ = ["ahead_of_time", "rope_triton"]


@triton.jit
def _turn(
    x, y, x_offset, y_offset, x_head, y_head, first_head, heads, cos1, cos2, sin1, sin2, half,
    HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    head = (first_head + tl.arange(0, HEADS)[:, None]).to(tl.int64)
    feature = tl.arange(0, HALF)[None, :]
    inside = (head < heads) & (feature < half)
    source = x + x_offset + head * x_head + feature
    x1 = tl.load(source, mask=inside, other=0.0).to(tl.float32)
    x2 = tl.load(source + half, mask=inside, other=0.0).to(tl.float32)
    target = y + y_offset + head * y_head + feature
    tl.store(target, x1 * cos1 - x2 * sin1, mask=inside)
    tl.store(target + half, x2 * cos2 + x1 * sin2, mask=inside)


@triton.jit
def _rotate(
    q, k, cos, sin, new_q, new_k,
    q_batch, q_head, q_token, k_batch, k_head, k_token,
    nq_batch, nq_head, nq_token, nk_batch, nk_head, nk_token, angle_batch,
    q_heads, k_heads, length, half, HEADS: tl.constexpr, HALF: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0).to(tl.int64)
    batch, token = program // length, program % length
    feature = tl.arange(0, HALF)
    angle = batch * angle_batch + token * 2 * half + feature
    cos1 = tl.load(cos + angle, mask=feature < half, other=0.0).to(tl.float32)[None, :]
    cos2 = tl.load(cos + angle + half, mask=feature < half, other=0.0).to(tl.float32)[None, :]
    sin1 = tl.load(sin + angle, mask=feature < half, other=0.0).to(tl.float32)[None, :]
    sin2 = tl.load(sin + angle + half, mask=feature < half, other=0.0).to(tl.float32)[None, :]
    x_offset, y_offset = batch * q_batch + token * q_token, batch * nq_batch + token * nq_token
    for first in range(0, q_heads, HEADS):
        _turn(q, new_q, x_offset, y_offset, q_head, nq_head, first, q_heads, cos1, cos2, sin1, sin2, half, HEADS, HALF)
    x_offset, y_offset = batch * k_batch + token * k_token, batch * nk_batch + token * nk_token
    for first in range(0, k_heads, HEADS):
        _turn(k, new_k, x_offset, y_offset, k_head, nk_head, first, k_heads, cos1, cos2, sin1, sin2, half, HEADS, HALF)


def rope_triton(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return q (B, N, T, D) and k (B, M, T, D) rotated, with their strides, as `rope_blocked` does."""
    given = q, k
    q, k = (x if x.stride(3) == 1 else x.contiguous() for x in given)
    new_q, new_k = torch.empty_like(q), torch.empty_like(k)
    cos, sin = cos.contiguous(), sin.contiguous()
    batch, heads, length, features = q.shape
    if q.numel() or k.numel():
        half = next_power_of_two(features // 2)
        group = min(next_power_of_two(max(heads, k.shape[1])), max(1, 4096 // half))
        _rotate[(batch * length,)](
            q, k, cos, sin, new_q, new_k,
            *q.stride()[:3], *k.stride()[:3], *new_q.stride()[:3], *new_k.stride()[:3],
            cos.stride(0) if cos.shape[0] > 1 else 0,
            heads, k.shape[1], length, features // 2, group, half, num_warps=4,
        )  # fmt: skip
    rotated_q, rotated_k = (
        new if old.stride(3) == 1 else torch.empty_like(old).copy_(new)
        for old, new in zip(given, (new_q, new_k), strict=True)
    )
    return rotated_q, rotated_k


def ahead_of_time() -> list[Compilation]:
    """Return typical settings of the kernel, to be compiled without a GPU."""
    found = []
    for dtype, heads, features in (("bf16", 32, 128), ("fp32", 32, 128), ("bf16", 8, 64), ("fp32", 8, 256)):
        data = dict.fromkeys(("q", "k", "cos", "sin", "new_q", "new_k"), f"*{dtype}")
        strides = [f"{x}_{d}" for x in ("q", "k", "nq", "nk") for d in ("batch", "head", "token")] + ["angle_batch"]
        numbers = dict.fromkeys([*strides, "q_heads", "k_heads", "length", "half"], "i32")
        half = features // 2
        constants = {"HEADS": min(heads, 4096 // half), "HALF": half}
        name = f"rope {dtype} {heads} heads of {features}"
        found.append(Compilation(name, _rotate, data | numbers, constants, divisible=(*strides, "half")))
    return found
