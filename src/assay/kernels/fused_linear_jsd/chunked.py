"""The divergence between two linear heads without their logits, and the student's gradients in the same pass.

Source: Hsu et al., "Liger Kernel" (arXiv:2410.10989), FusedLinearJSD of the official code. The loop over chunks of rows
is `assay.kernels._chunked_head`, the divergence `assay.kernels.divergence`. With logits z at temperature T,
x = log softmax(z / T) and the divergence's gradient dx,

    dz = (dx - softmax(z / T) Σ dx) / T

Shapes: R rows (tokens), H and G features of student and teacher, V classes, C rows of a chunk, B rows of a block.

Departures. Rows that are not to count are left out of the products. Log-softmax and divergence are float32 for half
precision. Others: see `_chunked_head`.

Cost: three products with the student's head and one with the teacher's; memory beyond the gradients: 2 C V logits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.kernels._chunked_head import Gradients, chunk_rows, losses_and_gradients, project, with_left_out
from assay.kernels._launch import runs_triton
from assay.kernels._row_blocks import row_blocks, working_dtype
from assay.kernels.divergence.blocked import divergence_terms, input_gradient, log_mixture

__all__ = ["Teacher", "linear_jsd_chunked", "logits_divergence"]


@dataclass(frozen=True)
class Teacher:
    """The other head: input (R, G), weight (V, G), and bias (V,) or None."""

    input: Tensor
    weight: Tensor
    bias: Tensor | None


def linear_jsd_chunked(
    input: Tensor,
    linear_weight: Tensor,
    linear_bias: Tensor | None,
    teacher: Teacher,
    kept: Tensor | None,
    *,
    beta: float,
    temperature: float,
    scale: Tensor | None = None,
    chunk_size: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
    gradients: tuple[bool, bool, bool] = (False, False, False),
) -> tuple[Tensor, Gradients]:
    """Return the divergences of all rows, and the student's gradients of their sum weighted by `scale`.

    Args:
        input: (R, H).
        linear_weight: (V, H), of the input's dtype.
        linear_bias: (V,), of the input's dtype, or None.
        teacher: The other head, of the input's dtype.
        kept: (R,) bool, which rows count; None for all.
        beta: The teacher's share in the mixture.
        temperature: T.
        scale: (R,) weights of the rows in the gradients (the upstream gradient), 1 by default.
        chunk_size: C, by default `chunk_rows`.
        accumulate_dtype: As in `losses_and_gradients`.
        gradients: Which gradients to form: of input, weight, bias.

    Returns:
        Divergences (R,) in `working_dtype`, 0 for rows that don't count; and gradients, those of weight and bias in
        `sum_dtype`.
    """
    with torch.no_grad(), torch.autocast(input.device.type, enabled=False):
        chosen = None if kept is None else kept.nonzero().squeeze(1)
        rows = input if chosen is None else input[chosen]
        seen = teacher.input if chosen is None else teacher.input[chosen]
        weights = scale if chosen is None or scale is None else scale[chosen]
        size = chunk_size or chunk_rows(rows.shape[0], *reversed(linear_weight.shape))
        buffer = rows.new_empty(min(size, rows.shape[0]), linear_weight.shape[0])

        def chunk_losses(chunk: slice, logits: Tensor, gradient: bool) -> Tensor:
            targets = buffer[: logits.shape[0]]
            project(seen[chunk], teacher.weight, teacher.bias, targets)
            chunk_scale = None if weights is None else weights[chunk]
            into = logits if gradient else None
            return logits_divergence(logits, targets, beta, temperature, scale=chunk_scale, gradient=into)

        losses, found = losses_and_gradients(
            rows,
            linear_weight,
            linear_bias,
            chunk_losses,
            chunk_size=size,
            accumulate_dtype=accumulate_dtype,
            gradients=gradients,
        )
        return (losses, found) if chosen is None else with_left_out(losses, found, chosen, input.shape[0])


def logits_divergence(
    logits: Tensor,
    targets: Tensor,
    beta: float,
    temperature: float,
    *,
    scale: Tensor | None = None,
    gradient: Tensor | None = None,
) -> Tensor:
    """Return the divergences of rows of logits, and write the gradient of their weighted sum.

    Args:
        logits: (C, V) of the student.
        targets: (C, V) logits of the teacher.
        beta: β.
        temperature: T.
        scale: (C,) weights of the rows in the gradient, 1 by default.
        gradient: (C, V), is overwritten by the gradient; may be the logits themselves.

    Returns:
        Divergences (C,) in `working_dtype`.
    """
    if runs_triton(logits):
        from assay.kernels.fused_linear_jsd.triton_kernel import triton_logits_divergence

        return triton_logits_divergence(logits, targets, beta, temperature, scale=scale, gradient=gradient)
    rows, classes = logits.shape
    working = working_dtype(logits.dtype)
    losses = logits.new_empty(rows, dtype=working)
    for block in row_blocks(rows, classes, logits.device):
        x, t = (torch.log_softmax(z[block].to(working) / temperature, 1) for z in (logits, targets))
        mixture = log_mixture(x, t, beta)
        losses[block] = divergence_terms(x, t, mixture, beta).sum(1)
        if gradient is not None:
            dx = input_gradient(x, t, mixture, beta)
            total = dx.sum(1, keepdim=True)
            dz = dx.addcmul_(x.exp_(), total, value=-1).div_(temperature)
            gradient[block] = dz if scale is None else dz.mul_(scale[block].unsqueeze(1))
    return losses
