"""Gated activations as PyTorch operators: with shapes for the compiler and formulas for autograd.

`assay::gated_activation` keeps a and b; `assay::gated_activation_backward` computes the activation again.

Shapes: a, b and the result (R, I).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import runs_triton
from assay.kernels.gated_activations.blocked import gated_activation_blocked, gated_activation_blocked_backward
from assay.kernels.gated_activations.reference import geglu_reference, swiglu_reference

__all__ = ["gated_activation", "gated_activation_backward"]

_REFERENCES = {"silu": swiglu_reference, "gelu": geglu_reference}


@torch.library.custom_op("assay::gated_activation", mutates_args=())
def gated_activation(a: Tensor, b: Tensor, activation: str, compiled: bool) -> Tensor:
    """Return f(a) ⊙ b with f "silu" or "gelu"; on a CPU perhaps by a compiled body."""
    if runs_triton(a):
        from assay.kernels.gated_activations.triton_kernel import triton_gated_activation

        return triton_gated_activation(a, b, activation)
    return gated_activation_blocked(a, b, activation, compiled=compiled)


@gated_activation.register_fake
def _(a: Tensor, b: Tensor, activation: str, compiled: bool) -> Tensor:
    return a.new_empty(a.shape)


@torch.library.custom_op("assay::gated_activation_backward", mutates_args=())
def gated_activation_backward(
    dc: Tensor, a: Tensor, b: Tensor, activation: str, compiled: bool
) -> tuple[Tensor, Tensor]:
    """Return the gradients by a and b."""
    if runs_triton(a):
        from assay.kernels.gated_activations.triton_kernel import triton_gated_activation_backward

        return triton_gated_activation_backward(dc, a, b, activation)
    return gated_activation_blocked_backward(dc, a, b, activation, compiled=compiled)


@gated_activation_backward.register_fake
def _(dc: Tensor, a: Tensor, b: Tensor, activation: str, compiled: bool) -> tuple[Tensor, Tensor]:
    return a.new_empty(a.shape), a.new_empty(a.shape)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    a, b, ctx.activation, ctx.compiled = inputs
    ctx.save_for_backward(a, b)


def _recompute(ctx: Any, dc: Tensor) -> tuple[Tensor | None, ...]:
    a, b = ctx.saved_tensors
    if torch.is_grad_enabled():
        reference = _REFERENCES[ctx.activation]
        return (*differentiable_gradients(reference, (a, b), ctx.needs_input_grad[:2], dc), None, None)
    return (*gated_activation_backward(dc, a, b, ctx.activation, ctx.compiled), None, None)


gated_activation.register_autograd(_recompute, setup_context=_save_inputs)
