"""`linear_jsd` as users call it: checks, autocast and reduction around the operators."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.kernels._derivatives import refuse_forward_mode
from assay.kernels._head_arguments import autocast, check_chunking, check_head
from assay.kernels.divergence.options import check_beta, check_labels_of_rows, check_reduction, mean_of_rows
from assay.kernels.fused_linear_jsd.op import linear_jsd_rows, linear_jsd_sum

__all__ = ["linear_jsd"]


def linear_jsd(
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
    chunk_size: int | None = None,
    accumulate_dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Distil one linear head into another by `jsd`, without ever holding all logits of either.

    Equals `jsd(log_softmax(z / T), log_softmax(z' / T), ...)` with the student's logits $z$ and the teacher's $z'$. The
    student's gradients are formed during forward (for "none": again during backward); the teacher gets none. Softmax
    and divergence are float32 for half-precision inputs, and the result stays float32. Second derivatives
    (`create_graph=True`), forward mode and `torch.func.grad` raise; `linear_jsd_reference` has them.

    Args:
        input: (..., H) hidden states of the student, floating point; leading dimensions count as rows.
        linear_weight: (V, H) the student's head, of the input's dtype (outside autocast).
        teacher_input: (..., G) hidden states of the teacher, with the same leading dimensions and dtype.
        teacher_weight: (V, G) the teacher's head, of the same dtype.
        linear_bias: (V,), of the input's dtype.
        teacher_bias: (V,), of the input's dtype.
        beta: In [0, 1]; 0 is the forward divergence KL(teacher‖student), 1 the reverse one.
        temperature: T, above 0, of both softmaxes. The loss is not multiplied by T².
        reduction: "mean" (over the rows that count; nan if there are none), "sum" or "none".
        labels: (...), int64; rows whose label is `ignore_index` count, and cost, nothing.
        ignore_index: See `labels`.
        chunk_size: Rows whose logits exist at once, at least 1; chosen from the shapes by default.
        accumulate_dtype: In which the weight's gradient is summed over chunks, as in `linear_cross_entropy`.

    Returns:
        A scalar, or a divergence per row for "none"; float32, or float64 for float64 inputs.

    Raises:
        InvalidInput: If shapes, dtypes, devices or options do not fit.

    Source: Hsu et al. (arXiv:2410.10989), FusedLinearJSD of the official code; Agarwal et al. (arXiv:2306.13649).

    Example:
        >>> hidden, head = torch.randn(2, 5, 8), torch.nn.Linear(8, 100, bias=False)
        >>> seen, teacher = torch.randn(2, 5, 16), torch.nn.Linear(16, 100, bias=False)
        >>> linear_jsd(hidden, head.weight, seen, teacher.weight, temperature=2.0).shape
        torch.Size([])
    """
    student = (autocast(input), autocast(linear_weight), None if linear_bias is None else autocast(linear_bias))
    teacher = (
        autocast(teacher_input.detach()),
        autocast(teacher_weight.detach()),
        None if teacher_bias is None else autocast(teacher_bias.detach()),
    )
    _check_heads(student, teacher)
    check_beta("linear_jsd", beta)
    if not 0.0 < temperature < math.inf:
        raise InvalidInput(f"linear_jsd: temperature must be finite and above 0, not {temperature}")
    check_reduction("linear_jsd", reduction, ("mean", "sum", "none"))
    check_chunking("linear_jsd", chunk_size, accumulate_dtype)
    check_labels_of_rows("linear_jsd", labels, input)

    count = math.prod(input.shape[:-1])
    student = (student[0].reshape(count, input.shape[-1]), *student[1:])
    teacher = (teacher[0].reshape(count, teacher_input.shape[-1]), *teacher[1:])
    kept = None if labels is None else labels.reshape(-1) != ignore_index
    options = (kept, float(beta), float(temperature), chunk_size, accumulate_dtype)
    if reduction == "none":
        return linear_jsd_rows(*student, *teacher, *options).view(input.shape[:-1])
    needs = [torch.is_grad_enabled() and t is not None and t.requires_grad for t in student]
    total = linear_jsd_sum(*student, *teacher, *options, *needs)[0]
    return total if reduction == "sum" else mean_of_rows(total, count, labels, ignore_index)


def _check_heads(student: tuple[Tensor, Tensor, Tensor | None], teacher: tuple[Tensor, Tensor, Tensor | None]) -> None:
    name = "linear_jsd"
    check_head(name, *student, names=("input", "linear_weight", "linear_bias"))
    check_head(name, *teacher, names=("teacher_input", "teacher_weight", "teacher_bias"))
    for what, of_student, of_teacher in (
        ("leading dimensions", tuple(student[0].shape[:-1]), tuple(teacher[0].shape[:-1])),
        ("dtype", student[0].dtype, teacher[0].dtype),
        ("device", student[0].device, teacher[0].device),
        ("number of classes", student[1].shape[0], teacher[1].shape[0]),
    ):
        if of_student != of_teacher:
            raise InvalidInput(
                f"{name}: student and teacher must have the same {what}, not {of_student} and {of_teacher}"
            )
    refuse_forward_mode(name, *student)
