"""Distillation: the student's softened predictions against the teacher's.

Hinton, Vinyals, Dean (arXiv:1503.02531), as used by "Teacher Guided Training" (arXiv:2208.06825).

    L(b, a) = T^2 KL(softmax(a / T) || softmax(b / T))          a: the teacher's scores, b: the student's

T^2 keeps the size of gradients as T varies. Cross-entropy against the soft labels differs from it by T^2 times the
teacher's entropy, which has no gradient in b; unlike it, this is 0 where student and teacher agree.

Shapes: B samples, K classes; both scores (B, K).

Departures: none. Cost: two log-softmaxes.
"""

from __future__ import annotations

import math

import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import check_reduction, reduce

__all__ = ["DistillationLoss", "distillation_loss"]


def _check_temperature(temperature: float) -> float:
    if not 0 < temperature < math.inf:
        raise InvalidInput(f"temperature must be a finite number above 0; got {temperature}")
    return temperature


def _check_scores(scores: Tensor, teacher_scores: Tensor) -> None:
    if scores.ndim != 2 or teacher_scores.ndim != 2 or len(scores) != len(teacher_scores):
        raise InvalidInput(
            "expected scores (B, K) of student and teacher for the same samples; "
            f"got {tuple(scores.shape)} and {tuple(teacher_scores.shape)}"
        )
    if scores.shape[1] != teacher_scores.shape[1]:
        raise InvalidInput(
            f"the student has {scores.shape[1]} classes and the teacher {teacher_scores.shape[1]}; "
            "give them the same classes in the same order, for instance by picking the teacher's columns"
        )


def distillation_loss(
    scores: Tensor, teacher_scores: Tensor, temperature: float = 1.0, reduction: str = "mean"
) -> Tensor:
    """Return T^2 KL(teacher || student) of the softened predictions.

    Args:
        scores: The student's logits (B, K).
        teacher_scores: The teacher's logits (B, K), a constant if computed without gradients.
        temperature: T, above 0; large values make it a squared distance of centred logits.
        reduction: "mean", "sum" or "none".

    Returns:
        A scalar, or (B,) with reduction "none".

    Raises:
        InvalidInput: If student and teacher differ in classes or samples, or the temperature is not above 0.

    Example:
        >>> import torch
        >>> scores = torch.tensor([[0.0, 0.0]])
        >>> distillation_loss(scores, torch.tensor([[100.0, 0.0]]))  # log 2
        tensor(0.6931)
    """
    _check_scores(scores, teacher_scores)
    T = _check_temperature(temperature)
    log_q, log_p = F.log_softmax(scores / T, dim=1), F.log_softmax(teacher_scores / T, dim=1)
    return reduce(T**2 * F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(dim=1), reduction)


class DistillationLoss(nn.Module):
    """Distillation as a criterion of (scores, teacher_scores); see `distillation_loss`.

    Args:
        temperature: T, above 0.
        reduction: "mean", "sum" or "none".

    Raises:
        InvalidInput: On a temperature not above 0 or an unknown reduction.

    Example:
        >>> import torch
        >>> DistillationLoss(temperature=2.0)(torch.eye(3), torch.eye(3))
        tensor(0.)
    """

    def __init__(self, temperature: float = 1.0, reduction: str = "mean") -> None:
        super().__init__()
        self.temperature = _check_temperature(temperature)
        self.reduction = check_reduction(reduction)

    def forward(self, scores: Tensor, teacher_scores: Tensor) -> Tensor:
        """Return the loss of the student's scores (B, K) against the teacher's (B, K)."""
        return distillation_loss(scores, teacher_scores, self.temperature, self.reduction)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"temperature={self.temperature}, reduction={self.reduction!r}"
