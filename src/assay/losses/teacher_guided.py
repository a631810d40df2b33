"""Teacher-guided training: cross-entropy on the labelled batch, distillation on new inputs near it.

Paper: "Teacher Guided Training" (arXiv:2208.06825), its training objective.

    L = mean_i CE(f(x_i), y_i) + weight mean_j T^2 KL(softmax(h(x~_j) / T) || softmax(f(x~_j) / T)),    x~ = explore(x)

f is the student, h the teacher, `explore` mostly `assay.data.LatentExploration`. Plain distillation has x~ = x.

Shapes: B samples; inputs (B, ...), targets (B,), scores (B, K).

Departures: weight and T are ours to choose; new inputs are made afresh at every call, one for each labelled one. Cost:
two forward passes of the student, one of the teacher, and the exploration.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.losses._labels import label_column, pick
from assay.losses.distillation import DistillationLoss

__all__ = ["TeacherGuidedLoss"]


class TeacherGuidedLoss(nn.Module):
    """Cross-entropy on labelled inputs and distillation on explored ones.

    The networks are arguments of `forward`, so that the criterion holds no parameters. Freeze the teacher and put it in
    eval mode; its scores are computed without gradients.

    Args:
        explore: Called as `explore(x, student, teacher)`, returns new inputs (M, ...); None is x itself.
        weight: Of the distillation term, 0 or larger.
        temperature: T, above 0.

    Raises:
        InvalidInput: On a weight below 0 or a temperature not above 0.

    Example:
        >>> student, teacher = nn.Linear(4, 3), nn.Linear(4, 3)
        >>> loss = TeacherGuidedLoss()(torch.ones(2, 4), torch.tensor([0, 2]), student, teacher)
        >>> loss.backward()
        >>> student.weight.grad.shape, teacher.weight.grad
        (torch.Size([3, 4]), None)
    """

    def __init__(
        self, explore: Callable[..., Tensor] | None = None, weight: float = 1.0, temperature: float = 1.0
    ) -> None:
        super().__init__()
        if not 0 <= weight < math.inf:
            raise InvalidInput(f"weight must be a finite number, 0 or larger; got {weight}")
        self.explore, self.weight = explore, weight
        self.distillation = DistillationLoss(temperature)

    def forward(
        self, inputs: Tensor, targets: Tensor, student: Callable[[Tensor], Any], teacher: Callable[[Tensor], Any]
    ) -> Tensor:
        """Return the objective.

        Args:
            inputs: The labelled inputs (B, ...).
            targets: Their classes (B,).
            student: Maps inputs to scores (B, K).
            teacher: Likewise, with the same classes.

        Raises:
            InvalidInput: If targets do not fit the scores, or student and teacher have different classes.
        """
        scores = student(inputs)
        column = label_column(scores, targets)
        labelled = -pick(F.log_softmax(scores, dim=1), column).mean()
        explored = inputs if self.explore is None else self.explore(inputs, student, teacher).detach()
        with torch.no_grad():
            soft = teacher(explored)
        return labelled + self.weight * self.distillation(student(explored), soft)

    def extra_repr(self) -> str:
        """Show the options."""
        return f"weight={self.weight}"
