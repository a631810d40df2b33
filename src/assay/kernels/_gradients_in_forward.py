"""What operators share that form a linear head's gradients in their forward pass and hand them over in backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.kernels._chunked_head import Gradients, sum_dtype
from assay.kernels._derivatives import refuse_second_order

__all__ = ["fake_gradients", "gradient_tensors", "save_gradients", "scale_gradients"]


def gradient_tensors(found: Gradients, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the gradients as an operator must, as tensors: an empty one stands for a gradient that nobody needs."""
    gi, gw, gb = (like.new_empty(0) if gradient is None else gradient for gradient in found)
    return gi, gw, gb


def fake_gradients(
    input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, needs: tuple[bool, bool, bool]
) -> tuple[Tensor, Tensor, Tensor]:
    """Return tensors of the gradients' shapes and dtypes."""
    gi = input.new_empty(input.shape if needs[0] else 0)
    summed = sum_dtype(input.dtype)
    gw = input.new_empty(linear_weight.shape if needs[1] else 0, dtype=summed if needs[1] else None)
    gb = input.new_empty(linear_weight.shape[0] if needs[2] else 0, dtype=summed if needs[2] else None)
    return gi, gw, gb


def save_gradients(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    """Keep the gradients, all outputs but the first; the last three arguments say which are needed."""
    ctx.needs, ctx.dtype = inputs[-3:], inputs[0].dtype
    ctx.arguments = len(inputs)
    ctx.mark_non_differentiable(*output[1:])
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(*output[1:])


def scale_gradients(name: str) -> Callable[..., tuple[Tensor | None, ...]]:
    """Return the backward function of the operator beneath a public function.

    It scales the gradients in place where that is safe, so that autograd can take them over without a copy: if the
    graph is about to be freed, and if the tensors are no stand-ins that a compiler traces. The gradients' tensors must
    lead the operator's arguments.
    """

    def backward(ctx: Any, grad_loss: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
        refuse_second_order(name)
        found: list[Tensor | None] = [None] * ctx.arguments
        if grad_loss is None:
            return tuple(found)
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        for place, (needed, gradient) in enumerate(zip(ctx.needs, ctx.saved_tensors, strict=True)):
            if needed:
                in_place = type(gradient) is Tensor and not retained
                found[place] = (gradient.mul_(grad_loss) if in_place else gradient * grad_loss).to(ctx.dtype)
        return tuple(found)

    return backward
