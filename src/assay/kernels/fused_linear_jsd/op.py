"""The chunked divergence between two heads as operators: with shapes for the compiler and formulas for autograd.

`assay::linear_jsd_sum` forms the student's gradients in its forward pass and hands them over in its backward pass,
times the upstream gradient. `assay::linear_jsd_rows` returns a divergence per row, and goes through the chunks again
when the upstream gradients of all rows have come.

Shapes: R rows (tokens), H and G features of student and teacher, V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._derivatives import refuse_second_order
from assay.kernels._gradients_in_forward import fake_gradients, gradient_tensors, save_gradients, scale_gradients
from assay.kernels._row_blocks import working_dtype
from assay.kernels.fused_linear_jsd.chunked import Teacher, linear_jsd_chunked

__all__ = ["linear_jsd_rows", "linear_jsd_rows_backward", "linear_jsd_sum"]


@torch.library.custom_op("assay::linear_jsd_sum", mutates_args=())
def linear_jsd_sum(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    kept: Tensor | None,
    beta: float,
    temperature: float,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return the sum of the divergences and its gradients by the student's tensors (empty where not needed)."""
    losses, found = linear_jsd_chunked(
        input,
        linear_weight,
        linear_bias,
        Teacher(teacher_input, teacher_weight, teacher_bias),
        kept,
        beta=beta,
        temperature=temperature,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        gradients=(needs_input, needs_weight, needs_bias),
    )
    return (losses.sum(), *gradient_tensors(found, input))


@linear_jsd_sum.register_fake
def _(input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *rest: Any) -> tuple[Tensor, ...]:
    loss = input.new_empty((), dtype=working_dtype(input.dtype))
    return (loss, *fake_gradients(input, linear_weight, linear_bias, rest[-3:]))


linear_jsd_sum.register_autograd(scale_gradients("linear_jsd"), setup_context=save_gradients)


@torch.library.custom_op("assay::linear_jsd_rows", mutates_args=())
def linear_jsd_rows(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    kept: Tensor | None,
    beta: float,
    temperature: float,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
) -> Tensor:
    """Return the divergences (R,) of all rows."""
    teacher = Teacher(teacher_input, teacher_weight, teacher_bias)
    options: dict[str, Any] = {"beta": beta, "temperature": temperature, "chunk_size": chunk_size}
    return linear_jsd_chunked(input, linear_weight, linear_bias, teacher, kept, **options)[0]


@linear_jsd_rows.register_fake
def _(input: Tensor, *rest: Any) -> Tensor:
    return input.new_empty(input.shape[0], dtype=working_dtype(input.dtype))


@torch.library.custom_op("assay::linear_jsd_rows_backward", mutates_args=())
def linear_jsd_rows_backward(
    grad_losses: Tensor,
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    teacher_bias: Tensor | None,
    kept: Tensor | None,
    beta: float,
    temperature: float,
    chunk_size: int | None,
    accumulate_dtype: torch.dtype | None,
    needs_input: bool,
    needs_weight: bool,
    needs_bias: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the student's gradients of the divergences weighted by `grad_losses` (R,)."""
    _, found = linear_jsd_chunked(
        input,
        linear_weight,
        linear_bias,
        Teacher(teacher_input, teacher_weight, teacher_bias),
        kept,
        beta=beta,
        temperature=temperature,
        scale=grad_losses,
        chunk_size=chunk_size,
        accumulate_dtype=accumulate_dtype,
        gradients=(needs_input, needs_weight, needs_bias),
    )
    return gradient_tensors(found, input)


@linear_jsd_rows_backward.register_fake
def _(grad_losses: Tensor, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, *rest: Any) -> Any:
    return fake_gradients(input, linear_weight, linear_bias, rest[-3:])


def _save_inputs(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.options = inputs[7:]


def _recompute_gradients(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    refuse_second_order("linear_jsd")
    needs = ctx.needs_input_grad[:3]
    found = linear_jsd_rows_backward(grad_losses, *ctx.saved_tensors, *ctx.options, *needs)
    dtype = ctx.saved_tensors[0].dtype
    leading = tuple(g.to(dtype) if needed else None for needed, g in zip(needs, found, strict=True))
    return leading + (None,) * (4 + len(ctx.options))


linear_jsd_rows.register_autograd(_recompute_gradients, setup_context=_save_inputs)
