"""Root-mean-square normalisation as PyTorch operators: with shapes for the compiler and formulas for autograd.

Saved for backward: the input, the weight, and r, one number per row.

Shapes: R rows, H columns.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import differentiable_gradients
from assay.kernels._launch import LARGEST_BLOCK, runs_triton
from assay.kernels._row_blocks import working_dtype
from assay.kernels.rms_normalisation.blocked import result_dtype, rms_norm_blocked, rms_norm_blocked_backward
from assay.kernels.rms_normalisation.reference import rms_norm_reference

__all__ = ["rms_norm_backward", "rms_norm_forward"]


@torch.library.custom_op("assay::rms_norm", mutates_args=())
def rms_norm_forward(
    x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: str
) -> tuple[Tensor, Tensor]:
    """Return y (R, H) of x (R, H), and r (R,)."""
    if runs_triton(x) and 0 < x.shape[1] <= LARGEST_BLOCK:
        from assay.kernels.rms_normalisation.triton_kernel import rms_norm_triton

        return rms_norm_triton(x, weight, eps, offset, casting)
    with torch.autocast(x.device.type, enabled=False):
        return rms_norm_blocked(x, weight, eps, offset, casting)


@rms_norm_forward.register_fake
def _(x: Tensor, weight: Tensor | None, eps: float, offset: float, casting: str) -> tuple[Tensor, Tensor]:
    y = x.new_empty(x.shape, dtype=result_dtype(x.dtype, weight, casting))
    return y, x.new_empty(x.shape[0], dtype=working_dtype(x.dtype))


@torch.library.custom_op("assay::rms_norm_backward", mutates_args=())
def rms_norm_backward(
    dy: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, offset: float, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    """Return dx (R, H) and dw (H,), empty where not needed."""
    if runs_triton(x) and 0 < x.shape[1] <= LARGEST_BLOCK:
        from assay.kernels.rms_normalisation.triton_kernel import rms_norm_triton_backward

        dx, dw = rms_norm_triton_backward(dy, x, r, weight, offset, (needs_x, needs_weight))
    else:
        with torch.autocast(x.device.type, enabled=False):
            dx, dw = rms_norm_blocked_backward(dy, x, r, weight, offset, (needs_x, needs_weight))
    return x.new_empty(0) if dx is None else dx, x.new_empty(0) if dw is None else dw


@rms_norm_backward.register_fake
def _(
    dy: Tensor, x: Tensor, r: Tensor, weight: Tensor | None, offset: float, needs_x: bool, needs_weight: bool
) -> tuple[Tensor, Tensor]:
    dw = x.new_empty(0) if weight is None or not needs_weight else torch.empty_like(weight)
    return x.new_empty(x.shape if needs_x else 0), dw


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, weight, *ctx.options = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(x, weight, output[1])


def _gradients(ctx: Any, dy: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    (x, weight, r), (eps, offset, casting) = ctx.saved_tensors, ctx.options
    needs = ctx.needs_input_grad[:2]
    if torch.is_grad_enabled():

        def plain(a: Tensor, w: Tensor | None) -> Tensor:
            return rms_norm_reference(a, a.shape[1:], w, eps, offset=offset, casting=casting)

        return *differentiable_gradients(plain, (x, weight), needs, dy), None, None, None
    dx, dw = rms_norm_backward(dy, x, r, weight, offset, *needs)
    return dx if needs[0] else None, dw if needs[1] else None, None, None, None


rms_norm_forward.register_autograd(_gradients, setup_context=_save)
