"""The chunked linear cross-entropy as PyTorch operators: with shapes for the compiler and formulas for autograd.

`assay::linear_cross_entropy_sum` forms the gradients in its forward pass and hands them over in its backward pass,
times the upstream gradient. `assay::linear_cross_entropy_rows` returns a loss per row; since the weight's gradient sums
over rows, it has to wait for the upstream gradients of all rows: backward goes through the chunks again.

Shapes: R rows (tokens), H input features, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._cross_entropy_rows import LossTerms
from assay.kernels._derivatives import refuse_second_order
from assay.kernels._gradients_in_forward import fake_gradients, gradient_tensors, save_gradients, scale_gradients
from assay.kernels._row_blocks import working_dtype
from assay.kernels.fused_linear_cross_entropy.chunked import linear_cross_entropy_chunked

__all__ = ["linear_cross_entropy_rows", "linear_cross_entropy_rows_backward", "linear_cross_entropy_sum"]

_DIFFERENTIATED = 3  # input, linear_weight and linear_bias lead the arguments


@torch.library.custom_op("assay::linear_cross_entropy_sum", mutates_args=())
def linear_cross_entropy_sum(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of the losses and its gradients by input, weight and bias (empty where not needed)."""
    losses, found = linear_cross_entropy_chunked(
        input,
        linear_weight,
        linear_bias,
        target,
        LossTerms(ignore_index, label_smoothing, z_loss, softcap, weight),
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        gradients=(needs_input, needs_weight, needs_bias),
    )
    return (losses.sum(), *gradient_tensors(found, input))


@linear_cross_entropy_sum.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    loss = input.new_empty((), dtype=working_dtype(input.dtype))
    return (loss, *fake_gradients(input, linear_weight, linear_bias, rest[-3:]))


linear_cross_entropy_sum.register_autograd(scale_gradients("linear_cross_entropy"), setup_context=save_gradients)


@torch.library.custom_op("assay::linear_cross_entropy_rows", mutates_args=())
def linear_cross_entropy_rows(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
) -> Tensor:
    """Return the losses (R,) of all rows."""
    terms = LossTerms(ignore_index, label_smoothing, z_loss, softcap, weight)
    losses, _ = linear_cross_entropy_chunked(input, linear_weight, linear_bias, target, terms, chunk_size=chunk_size)
    return losses


@linear_cross_entropy_rows.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Tensor, *rest: Any) -> Tensor:
    return input.new_empty(target.shape, dtype=working_dtype(input.dtype))


@torch.library.custom_op("assay::linear_cross_entropy_rows_backward", mutates_args=())
def linear_cross_entropy_rows_backward(
    grad_losses: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    target: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients of the losses weighted by `grad_losses` (R,)."""
    _, found = linear_cross_entropy_chunked(
        input,
        linear_weight,
        linear_bias,
        target,
        LossTerms(ignore_index, label_smoothing, z_loss, softcap, weight),
        scale=grad_losses,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        gradients=(needs_input, needs_weight, needs_bias),
    )
    return gradient_tensors(found, input)


@linear_cross_entropy_rows_backward.register_fake
def _(grad_losses: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *rest: Any) -> Any:
    return fake_gradients(input, linear_weight, linear_bias, rest[-3:])


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    input, linear_weight, linear_bias, target, weight, *ctx.options = inputs
    ctx.save_for_backward(input, linear_weight, linear_bias, target, weight)


def _recompute_gradients(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_order("linear_cross_entropy")
    needs = ctx.needs_input_grad[:_DIFFERENTIATED]
    found = linear_cross_entropy_rows_backward(grad_losses, *ctx.saved_tensors, *ctx.options, *needs)
    dtype = ctx.saved_tensors[0].dtype
    leading = tuple(g.to(dtype) if needed else None for needed, g in zip(needs, found, strict=True))
    return leading + (None,) * (2 + len(ctx.options))


linear_cross_entropy_rows.register_autograd(_recompute_gradients, setup_context=_save_inputs)
