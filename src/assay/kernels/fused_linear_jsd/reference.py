"""The divergence between two linear heads, written plainly: logits first, then the divergence, autograd for the rest.

What the chunked implementation must equal. It keeps several (R, V) tensors, and supports everything that autograd does.

Shapes: R rows (tokens), H and G features of student and teacher, V classes.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.kernels._row_blocks import working_dtype
from assay.kernels.divergence.reference import jsd_reference

__all__ = ["linear_jsd_reference"]


def linear_jsd_reference(
    input: Tensor,
    linear_weight: Tensor,
    teacher_input: Tensor,
    teacher_weight: Tensor,
    *,
    linear_bias: Tensor | None = None,
    teacher_bias: Tensor | None = None,
    beta: float = 0.5,
    temperature: float = 1.0,
    reduction: str = "mean",
    labels: Tensor | None = None,
    ignore_index: int = -100,
) -> Tensor:
    """Return what `linear_jsd` returns, with all logits in memory.

    Args, shapes and the result are those of `assay.kernels.linear_jsd`; inputs are not checked.
    """

    def log_probabilities(logits: Tensor) -> Tensor:
        return torch.log_softmax(logits.to(working_dtype(logits.dtype)) / temperature, -1)

    student = log_probabilities(F.linear(input, linear_weight, linear_bias))
    with torch.no_grad():
        teacher = log_probabilities(F.linear(teacher_input, teacher_weight, teacher_bias))
    return jsd_reference(student, teacher, beta=beta, reduction=reduction, labels=labels, ignore_index=ignore_index)
