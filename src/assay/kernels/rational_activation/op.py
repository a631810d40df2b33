"""The group-rational activation as PyTorch operators: shapes for the compiler, a formula for autograd.

`assay::group_rational` saves x and the coefficients; `assay::group_rational_gradients` computes everything again from
them; second derivatives go by way of the reference. On a GPU with Triton both run Triton's kernels, else the blocks.

Shapes: x (R, D); numerator (G or 1, m + 1), denominator (G or 1, n), a and b the same with G rows.
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
    """Return the coefficients in the working dtype, with a row per group."""
    groups, dtype = max(len(numerator), len(denominator)), torch.promote_types(x.dtype, torch.float32)
    a, b = (tensor.detach().to(dtype).expand(groups, -1).contiguous() for tensor in (numerator, denominator))
    return a, b


def _as(gradient: Tensor, coefficients: Tensor) -> Tensor:
    """Sum over groups that share a row, and round."""
    shared = len(coefficients) == 1 and len(gradient) > 1
    return (gradient.sum(0, keepdim=True) if shared else gradient).to(coefficients.dtype)


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
    return found[0], _as(found[1], numerator), _as(found[2], denominator)


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
