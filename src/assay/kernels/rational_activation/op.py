"""The group-rational activation as PyTorch operators: shapes for the compiler, a formula for autograd.

`assay::group_rational` saves x and the coefficients; `assay::group_rational_gradients` computes everything again from
them; second derivatives go by way of the reference. On a GPU both run the Triton kernels where Triton is installed, elsewhere and everywhere else the blocks.

Shapes: x (R, D), a = numerator (G, m + 1), b = denominator (G, n).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import runs_triton
from assay.kernels.rational_activation.blocked import group_rational_blocked, group_rational_gradients_blocked
from assay.kernels.rational_activation.reference import group_rational_reference

__all__ = ["group_rational_gradients_op", "group_rational_op"]


def _working(x: Tensor, numerator: Tensor, denominator: Tensor) -> tuple[Tensor, Tensor]:
    dtype = torch.promote_types(x.dtype, torch.float32)
    return numerator.detach().to(dtype), denominator.detach().to(dtype)


@torch.library.custom_op("assay::group_rational", mutates_args=())
def group_rational_op(x: Tensor, numerator: Tensor, denominator: Tensor, compiled: bool) -> Tensor:
    """Return F(x) (R, D) in x's dtype."""
    a, b = _working(x, numerator, denominator)
    if runs_triton(x):
        from assay.kernels.rational_activation.triton_kernel import group_rational_triton

        return group_rational_triton(x, a, b)
    return group_rational_blocked(x, a, b, compiled=compiled)


@group_rational_op.register_fake
def _(x: Tensor, numerator: Tensor, denominator: Tensor, compiled: bool) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("assay::group_rational_gradients", mutates_args=())
def group_rational_gradients_op(
    upstream: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, compiled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients by x, numerator and denominator in these tensors' dtypes."""
    a, b = _working(x, numerator, denominator)
    if runs_triton(x):
        from assay.kernels.rational_activation.triton_kernel import group_rational_gradients_triton

        found = group_rational_gradients_triton(upstream, x, a, b)
    else:
        found = group_rational_gradients_blocked(upstream, x, a, b, compiled=compiled)
    return found[0], found[1].to(numerator.dtype), found[2].to(denominator.dtype)


@group_rational_gradients_op.register_fake
def _(
    upstream: Tensor, x: Tensor, numerator: Tensor, denominator: Tensor, compiled: bool
) -> tuple[Tensor, Tensor, Tensor]:
    return x.new_empty(x.shape), numerator.new_empty(numerator.shape), denominator.new_empty(denominator.shape)


def _save(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.compiled = inputs
    ctx.save_for_backward(*tensors)


def _backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
    if torch.is_grad_enabled():  # somebody wants second derivatives
        needs = ctx.needs_input_grad[:3]
        return (*differentiable_gradients(group_rational_reference, ctx.saved_tensors, needs, upstream), None)
    return (*group_rational_gradients_op(upstream, *ctx.saved_tensors, ctx.compiled), None)


group_rational_op.register_autograd(_backward, setup_context=_save)
