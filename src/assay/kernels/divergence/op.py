"""Divergences between rows as PyTorch operators: with shapes for the compiler and formulas for autograd.

`assay::divergence` keeps its two inputs; `assay::divergence_backward` forms the gradients from them.

Shapes: R rows (tokens), V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import runs_triton
from assay.kernels._row_blocks import working_dtype
from assay.kernels.divergence.blocked import divergence_blocked, divergence_blocked_backward
from assay.kernels.divergence.reference import divergence_terms_reference

__all__ = ["divergence", "divergence_backward"]


@torch.library.custom_op("assay::divergence", mutates_args=())
def divergence(input: Tensor, target: Tensor, beta: float, log_target: bool, per_class: bool) -> Tensor:
    """Return the divergences of rows (R, 1), or their terms (R, V)."""
    if runs_triton(input):
        from assay.kernels.divergence.triton_kernel import triton_divergence

        return triton_divergence(input, target, beta, log_target, per_class)
    return divergence_blocked(input, target, beta, log_target, per_class)


@divergence.register_fake
def _(input: Tensor, target: Tensor, beta: float, log_target: bool, per_class: bool) -> Tensor:
    return input.new_empty(input.shape[0], input.shape[1] if per_class else 1, dtype=working_dtype(input.dtype))


@torch.library.custom_op("assay::divergence_backward", mutates_args=())
def divergence_backward(
    upstream: Tensor,
    input: Tensor,
    target: Tensor,
    beta: float,
    log_target: bool,
    needs_input: bool,
    needs_target: bool,
) -> tuple[Tensor, Tensor]:
    """Return the gradients by input and target (empty where not needed)."""
    needs = (needs_input, needs_target)
    if runs_triton(input):
        from assay.kernels.divergence.triton_kernel import triton_divergence_backward

        found = triton_divergence_backward(upstream, input, target, beta, log_target, needs)
    else:
        found = divergence_blocked_backward(upstream, input, target, beta, log_target, needs)
    dx, dt = (input.new_empty(0) if gradient is None else gradient for gradient in found)
    return dx, dt


@divergence_backward.register_fake
def _(upstream: Tensor, input: Tensor, target: Tensor, beta: float, log_target: bool, *needs: bool) -> Any:
    return tuple(input.new_empty(input.shape if needed else 0) for needed in needs)


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, target, *ctx.options = inputs
    ctx.save_for_backward(input, target)


def _form_gradients(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    beta, log_target, per_class = ctx.options
    needs = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():

        def reference(x: Tensor, t: Tensor) -> Tensor:
            terms = divergence_terms_reference(x, t, beta, log_target)
            return terms if per_class else terms.sum(1, keepdim=True)

        found = differentiable_gradients(reference, ctx.saved_tensors, needs, upstream)
    else:
        found = divergence_backward(upstream, *ctx.saved_tensors, beta, log_target, *needs)
    dx, dt = (gradient if needed else None for gradient, needed in zip(found, needs, strict=True))
    return dx, dt, None, None, None


divergence.register_autograd(_form_gradients, setup_context=_save_inputs)
