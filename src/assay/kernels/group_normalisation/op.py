"""Group normalisation as PyTorch operators: with shapes for the compiler and formulas for autograd.

Saved for backward: the input, the weight, and mean and reciprocal deviation of every group.

Shapes: N samples, C channels in G groups, S positions.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import runs_triton
from assay.kernels._row_blocks import working_dtype
from assay.kernels.group_normalisation.native import group_norm_native, group_norm_native_backward
from assay.kernels.group_normalisation.reference import group_norm_reference

__all__ = ["group_norm_backward", "group_norm_forward"]


@torch.library.custom_op("assay::group_norm", mutates_args=())
def group_norm_forward(
    x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (N, C, S) of x (N, C, S), and its groups' means and reciprocal deviations (N, G)."""
    if runs_triton(x):
        from assay.kernels.group_normalisation.triton_kernel import group_norm_triton

        return group_norm_triton(x, groups, weight, bias, eps)
    return group_norm_native(x, groups, weight, bias, eps)


@group_norm_forward.register_fake
def _(x: Tensor, groups: int, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], groups), dtype=working_dtype(x.dtype))
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


@torch.library.custom_op("assay::group_norm_backward", mutates_args=())
def group_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, groups: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx (N, C, S), dw (C,) and db (C,), the latter in the statistics' type; empty where not needed."""
    arguments = dy, x, mean, r, weight, groups, needs
    if runs_triton(x):
        from assay.kernels.group_normalisation.triton_kernel import group_norm_triton_backward

        found = group_norm_triton_backward(*arguments)
    else:
        found = group_norm_native_backward(*arguments)
    dtypes = x.dtype, r.dtype, r.dtype
    dx, dw, db = (
        x.new_empty(0, dtype=dtype) if gradient is None else gradient.to(dtype)
        for gradient, dtype in zip(found, dtypes, strict=True)
    )
    return dx, dw, db


@group_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, groups: int, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dw, db = (x.new_empty(x.shape[1] if needed else 0, dtype=r.dtype) for needed in needs[1:])
    return x.new_empty(x.shape if needs[0] else 0), dw, db


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, ctx.groups, weight, bias, ctx.eps = inputs
    ctx.bias = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight, mean, r), all_needs = ctx.saved_tensors, ctx.needs_input_grad
    needs = (all_needs[0], all_needs[2], all_needs[3])
    if torch.is_grad_enabled():
        zero = None if ctx.bias is None else x.new_zeros(x.shape[1], dtype=ctx.bias).requires_grad_()

        def plain(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
            return group_norm_reference(a, ctx.groups, w, b, ctx.eps)

        dx, dw, db = differentiable_gradients(plain, (x, weight, zero), needs, dy)
        return dx, None, dw, db, None
    dtypes = x.dtype, None if weight is None else weight.dtype, ctx.bias
    found = group_norm_backward(dy, x, mean, r, weight, ctx.groups, list(needs))
    dx, dw, db = (g.to(dtype) if needed else None for g, dtype, needed in zip(found, dtypes, needs, strict=True))
    return dx, None, dw, db, None


group_norm_forward.register_autograd(_gradients, setup_context=_save)
