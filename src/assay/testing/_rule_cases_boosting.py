"""Cases of gradient boosting, whose updates take all samples and fit one stage each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from assay.models.cnn import CNN
from assay.models.mlp import MLP
from assay.rules.gradient_boosting import GradientBoosting

__all__ = ["BOOSTING_CASES"]


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _case(make: Callable[[], nn.Module], *shape: int, **options: Any) -> Callable[[], object]:
    def factory() -> object:
        from assay.testing.rules import RuleCase, two_blobs

        settings = {"step_units": 2, "shrinkage": 0.5, "max_iterations": 20} | options
        return RuleCase(GradientBoosting(make(), generator=_generator(2), **settings), *two_blobs(*shape), epochs=6)

    return factory


def _mlp() -> nn.Module:
    return MLP((16,), 2, width=6, depth=1, activation="sigmoid", generator=_generator(0))


def _on_cnn() -> nn.Module:
    cnn = CNN((1, 8, 8), 2, channels=(4, 6), generator=_generator(0))
    head = MLP((24,), 2, width=4, depth=1, activation="tanh", generator=_generator(1))
    return nn.Sequential(cnn[:-1], head)


BOOSTING_CASES: dict[str, Callable[[], object]] = {
    "gradient-boosting": _case(_mlp, 16),
    "gradient-boosting-logistic": _case(_mlp, 16, loss="logistic", subsample=1.0),
    "gradient-boosting-criterion": _case(_mlp, 16, loss=nn.CrossEntropyLoss(label_smoothing=0.1)),
    "gradient-boosting-body": _case(_on_cnn, 1, 8, 8),
}
