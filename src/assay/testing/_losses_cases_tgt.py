"""Distillation and teacher-guided training in the setting of `assay.testing.losses`: the teacher's part is fixed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from assay.losses._labels import label_column, pick
from assay.losses.distillation import DistillationLoss
from assay.losses.teacher_guided import TeacherGuidedLoss
from assay.testing._shared import seeded

__all__ = ["CASES"]


class _FromTable(nn.Module):
    """Distillation whose teacher has one row of scores per class."""

    def __init__(self, loss: DistillationLoss) -> None:
        super().__init__()
        self.loss = loss
        self.table = torch.randn(5, 5, generator=seeded(3), dtype=torch.float64)

    @property
    def reduction(self) -> str:
        return self.loss.reduction

    @reduction.setter
    def reduction(self, name: str) -> None:
        self.loss.reduction = name

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        column = label_column(scores, targets)
        pick(scores, column)  # a label out of range is said in one line
        return self.loss(scores, self.table.to(scores)[column.squeeze(1)])


class _OfScores(nn.Module):
    """Teacher-guided training of a student that gives its inputs as scores, with explored inputs that are fixed."""

    def __init__(self) -> None:
        super().__init__()
        self.fixed = torch.randn(4, 5, generator=seeded(4), dtype=torch.float64)
        self.loss = TeacherGuidedLoss(self._explore, weight=0.5, temperature=2.0)

    def _explore(self, inputs: Tensor, student: Any, teacher: Any) -> Tensor:
        return self.fixed.to(inputs)

    def forward(self, scores: Tensor, targets: Tensor) -> Tensor:
        return self.loss(scores, targets, _same, _flipped)


def _same(x: Tensor) -> Tensor:
    return x


def _flipped(x: Tensor) -> Tensor:
    return x.flip(1)


CASES: dict[str, Callable[[], Any]] = {
    "distillation": lambda: _FromTable(DistillationLoss(temperature=2.0)),
    "teacher-guided": _OfScores,
}
