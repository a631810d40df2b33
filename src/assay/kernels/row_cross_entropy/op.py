"""Cross-entropy of rows of logits as PyTorch operators: with shapes for the compiler and formulas for autograd.

`assay::cross_entropy_rows` keeps the logits, and forms their gradient when the upstream gradient has come.
`assay::cross_entropy_rows_` overwrites the logits with their gradient at once; `InPlaceRows` is its autograd formula,
since an operator that changes an argument cannot have one.

Shapes: R rows (tokens), V classes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from assay.kernels._cross_entropy_rows import LossTerms, check_labels, row_losses
from assay.kernels._derivatives import differentiable_gradients, refuse_second_order
from assay.kernels._row_blocks import row_blocks, working_dtype
from assay.kernels.row_cross_entropy.reference import cross_entropy_reference

__all__ = ["InPlaceRows", "cross_entropy_rows", "cross_entropy_rows_", "cross_entropy_rows_backward"]


@torch.library.custom_op("assay::cross_entropy_rows", mutates_args=())
def cross_entropy_rows(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """Return the losses (R,) of logits (R, V)."""
    check_labels("cross_entropy", labels, logits.shape[1], ignore_index)
    return row_losses(logits, labels, LossTerms(ignore_index, label_smoothing, z_loss, softcap, weight))


@torch.library.custom_op("assay::cross_entropy_rows_backward", mutates_args=())
def cross_entropy_rows_backward(
    grad_losses: Tensor,
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """Return the logits' gradient of the losses weighted by `grad_losses` (R,)."""
    gradient = logits.new_empty(logits.shape)
    terms = LossTerms(ignore_index, label_smoothing, z_loss, softcap, weight)
    row_losses(logits, labels, terms, scale=grad_losses, gradient=gradient)
    return gradient


@torch.library.custom_op("assay::cross_entropy_rows_", mutates_args={"logits"})
def cross_entropy_rows_(
    logits: Tensor,
    labels: Tensor,
    weight: Tensor | None,
    ignore_index: int,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
) -> Tensor:
    """Return the losses (R,), and overwrite each row of logits with the gradient of its loss."""
    check_labels("cross_entropy", labels, logits.shape[1], ignore_index)
    terms = LossTerms(ignore_index, label_smoothing, z_loss, softcap, weight)
    return row_losses(logits, labels, terms, gradient=logits)


def _fake_losses(logits: Tensor, labels: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(labels.shape, dtype=working_dtype(logits.dtype))


cross_entropy_rows.register_fake(_fake_losses)
cross_entropy_rows_.register_fake(_fake_losses)


@cross_entropy_rows_backward.register_fake
def _(grad_losses: Tensor, logits: Tensor, *rest: Any) -> Tensor:
    return logits.new_empty(logits.shape)


def _save_logits(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    logits, labels, weight, *ctx.options = inputs
    ctx.save_for_backward(logits, labels, weight)


def _form_gradient(ctx: Any, grad_losses: Tensor) -> tuple[Tensor | None, ...]:
    logits, labels, weight = ctx.saved_tensors
    nothing = (None,) * (2 + len(ctx.options))
    if not torch.is_grad_enabled():
        return (cross_entropy_rows_backward(grad_losses, logits, labels, weight, *ctx.options), *nothing)
    names = ("ignore_index", "label_smoothing", "z_loss", "softcap")
    options = dict(zip(names, ctx.options, strict=True))

    def reference(logits: Tensor) -> Tensor:
        return cross_entropy_reference(logits, labels, weight=weight, reduction="none", **options)

    return (*differentiable_gradients(reference, (logits,), (True,), grad_losses), *nothing)


cross_entropy_rows.register_autograd(_form_gradient, setup_context=_save_logits)


class InPlaceRows(torch.autograd.Function):
    """`cross_entropy_rows_` with the gradient that it leaves in place of the logits."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, *arguments: Any) -> Tensor:
        """Return the losses (R,); `arguments` are those of `cross_entropy_rows_` after the logits."""
        # A detached tensor has the memory and the version counter of its original: whoever needs the logits for a
        # backward pass of their own is told by autograd that they have changed.
        gradient = logits.detach()
        losses = cross_entropy_rows_(gradient, *arguments)
        ctx.arguments = len(arguments)
        ctx.save_for_backward(gradient)
        return losses

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> Any:
        """Scale the rows by the upstream gradient: in place where the graph is about to be freed, else into a copy."""
        refuse_second_order("cross_entropy")
        (gradient,) = ctx.saved_tensors
        scale = grad_outputs[0].unsqueeze(1)
        if torch.compiler.is_compiling():  # which fuses this
            return ((gradient * scale).to(gradient.dtype), *(None,) * ctx.arguments)
        retained = torch._C._autograd._get_current_graph_task_keep_graph()
        found = gradient.clone() if retained else gradient
        for block in row_blocks(found.shape[0], found.shape[1], found.device):
            # In float32: 1 / R rounded to bfloat16 would scale all gradients by up to 0.4 per cent too much or little.
            found[block] = found[block].to(scale.dtype).mul_(scale[block])
        return (found, *(None,) * ctx.arguments)
