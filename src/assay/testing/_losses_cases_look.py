"""The leave-one-out k-nearest-neighbour loss in the setting of `assay.testing.losses`: five features, five labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from assay.losses.leave_one_out import LeaveOneOutKNNLoss
from assay.nn.feature_bank import FeatureBank
from assay.testing._shared import seeded

__all__ = ["CASES"]


def _against_a_bank(**options: Any) -> LeaveOneOutKNNLoss:
    bank = FeatureBank(size=40, dim=5)
    bank.update(torch.randn(30, 5, generator=seeded(7)), torch.arange(30) % 5, torch.arange(30))
    return LeaveOneOutKNNLoss(bank=bank, **options)


CASES: dict[str, Callable[[], Any]] = {
    "leave-one-out-knn": lambda: _against_a_bank(k=8),
    "leave-one-out-knn-skip": lambda: _against_a_bank(k=4, temperature=0.5, on_empty="skip"),
}
