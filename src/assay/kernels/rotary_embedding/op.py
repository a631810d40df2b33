"""Rotary position embedding as a PyTorch operator: with shapes for the compiler and a formula for autograd.

Saved for backward: cosines and sines. The gradient of a rotation is the transposed rotation, so the operator is its own
backward, and has derivatives of every order.

Shapes: B batch, N heads of the queries, M heads of the keys, T tokens, D features of a head.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._launch import runs_triton
from assay.kernels.rotary_embedding.blocked import inverse_sine, rope_blocked

__all__ = ["rope_forward"]


@torch.library.custom_op("assay::rope", mutates_args=())
def rope_forward(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    """Return q (B, N, T, D) and k (B, M, T, D) rotated by angles with cosines and sines (1 or B, T, D)."""
    if runs_triton(q):
        from assay.kernels.rotary_embedding.triton_kernel import rope_triton

        return rope_triton(q, k, cos, sin)
    return rope_blocked(q, cos, sin), rope_blocked(k, cos, sin)


@rope_forward.register_fake
def _(q: Tensor, k: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor]:
    return torch.empty_like(q), torch.empty_like(k)


def _save(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[2:])


def _gradients(ctx: Any, dq: Tensor, dk: Tensor) -> tuple[Tensor | None, ...]:
    cos, sin = ctx.saved_tensors
    return *rope_forward(dq, dk, cos, inverse_sine(sin)), None, None


rope_forward.register_autograd(_gradients, setup_context=_save)
