"""Layer normalisation as PyTorch operators: with shapes for the compiler and formulas for autograd.

Saved for backward: the input, the weight, and mean and reciprocal deviation of every row.

Shapes: R rows, H columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import LARGEST_BLOCK, runs_triton
from assay.kernels._row_blocks import working_dtype
from assay.kernels.layer_normalisation.native import layer_norm_native, layer_norm_native_backward
from assay.kernels.layer_normalisation.reference import layer_norm_reference

__all__ = ["layer_norm_backward", "layer_norm_forward"]


@torch.library.custom_op("assay::layer_norm", mutates_args=())
def layer_norm_forward(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return y (R, H) of x (R, H), and its rows' means (R, 1) and reciprocal deviations (R, 1)."""
    if runs_triton(x) and 0 < x.shape[1] <= LARGEST_BLOCK:
        from assay.kernels.layer_normalisation.triton_kernel import layer_norm_triton

        return layer_norm_triton(x, weight, bias, eps)
    return layer_norm_native(x, weight, bias, eps)


@layer_norm_forward.register_fake
def _(x: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    statistics = x.new_empty((x.shape[0], 1), dtype=working_dtype(x.dtype))
    return x.new_empty(x.shape), statistics, torch.empty_like(statistics)


@torch.library.custom_op("assay::layer_norm_backward", mutates_args=())
def layer_norm_backward(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return dx (R, H), dw (H,) and db (H,), the latter in the statistics' type; empty where not needed."""
    arguments = dy, x, mean, r, weight, (needs[0], needs[1], needs[2])
    if runs_triton(x) and 0 < x.shape[1] <= LARGEST_BLOCK:
        from assay.kernels.layer_normalisation.triton_kernel import layer_norm_triton_backward

        found = layer_norm_triton_backward(*arguments)
    else:
        found = layer_norm_native_backward(*arguments)
    dtypes = x.dtype, r.dtype, r.dtype
    dx, dw, db = (
        x.new_empty(0, dtype=dtype) if gradient is None else gradient.to(dtype)
        for gradient, dtype in zip(found, dtypes, strict=True)
    )
    return dx, dw, db


@layer_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, mean: Tensor, r: Tensor, weight: Tensor | None, needs: list[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    dw, db = (x.new_empty(x.shape[1] if needed else 0, dtype=r.dtype) for needed in needs[1:])
    return x.new_empty(x.shape if needs[0] else 0), dw, db


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    x, weight, bias, ctx.eps = inputs
    ctx.bias = None if bias is None else bias.dtype
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(x, weight, *output[1:])


def _gradients(ctx: Any, dy: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight, mean, r), needs = ctx.saved_tensors, ctx.needs_input_grad[:3]
    if torch.is_grad_enabled():
        zero = None if ctx.bias is None else x.new_zeros(x.shape[1], dtype=ctx.bias).requires_grad_()

        def plain(a: Tensor, w: Tensor | None, b: Tensor | None) -> Tensor:
            return layer_norm_reference(a, a.shape[1:], w, b, ctx.eps)

        return *differentiable_gradients(plain, (x, weight, zero), needs, dy), None
    dtypes = x.dtype, None if weight is None else weight.dtype, ctx.bias
    found = layer_norm_backward(dy, x, mean, r, weight, list(needs))
    gradients = (g.to(dtype) if needed else None for g, dtype, needed in zip(found, dtypes, needs, strict=True))
    return *gradients, None


layer_norm_forward.register_autograd(_gradients, setup_context=_save)
