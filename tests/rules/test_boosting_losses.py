"""Criteria of torch's in gradient boosting: every step lowers the loss, or the criterion is refused."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._boosting_losses import Differentiable
from assay.rules.gradient_boosting import GradientBoosting


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _rule(loss: Callable[[Tensor, Tensor], Tensor], outputs: int) -> GradientBoosting:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, outputs)).double()
    return GradientBoosting(model, loss=loss, step_units=2, shrinkage=0.5, generator=_generator(2))


X = torch.randn(60, 4, generator=_generator(1)).double()
NUMBERS = X.sum(1, keepdim=True)
CLASSES = torch.arange(60) % 3


@pytest.mark.parametrize(
    ("loss", "y"),
    [
        (nn.L1Loss(), NUMBERS + 3),  # no curvature
        (nn.MultiMarginLoss(), (X[:, :3]).argmax(1)),  # differentiable only once
        (nn.HuberLoss(), NUMBERS + 5),  # nearly all samples are where it is linear
        (nn.HuberLoss(), NUMBERS),
    ],
)
def test_every_stage_lowers_a_criterion(loss: nn.Module, y: Tensor) -> None:
    """Stages would be scaled by 0, thrown far beyond the minimum, or torch would refuse a second derivative."""
    rule = _rule(loss, 3 if y.ndim == 1 else 1)
    start = loss(torch.zeros(60, rule.output.out_features).double(), y).item()
    losses = [start, *rule.fit(X, y)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.75 * start
    assert losses[-1] == pytest.approx(loss(rule.predict(X), y).item(), rel=1e-9)


def test_a_step_that_goes_too_far_is_halved() -> None:
    """Newton's step on a loss that flattens out, log cosh, would land on the far side, above where it started."""
    raw, f, y = torch.full((1, 1), 1.5).double(), torch.full((1, 1), -1.0).double(), torch.zeros(1, 1).double()
    exact = (torch.tensor(1.5).tanh() / (1 - torch.tensor(1.5).tanh() ** 2)).item()  # 5.0, and then 2.5
    own = Differentiable(lambda scores, targets: (scores - targets).cosh().log().mean())
    assert own.newton(y, raw, f) == pytest.approx(exact / 2, rel=1e-6)
    assert own.newton(y, raw, -f) == pytest.approx(-exact / 2, rel=1e-6)
    assert own.newton(y, torch.zeros(1, 1).double(), f) == 0.0


def test_plain_vectors_are_columns_to_a_criterion() -> None:
    """Targets (N,) of one output would be compared with every sample's score."""
    plain, column = (_rule(nn.SmoothL1Loss(), 1) for _ in range(2))
    assert plain.fit(X, NUMBERS[:, 0]) == column.fit(X, NUMBERS)


@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda scores, y: (scores.argmax(1) != y).double().mean(), "no gradient"),
        (nn.CrossEntropyLoss(reduction="none"), "one number"),
        (nn.BCEWithLogitsLoss(), "can't be used with scores"),
    ],
)
def test_refuses_a_criterion_that_it_cannot_follow(loss: Callable[[Tensor, Tensor], Tensor], message: str) -> None:
    """The user would meet an error of autograd's, from somewhere inside."""
    with pytest.raises(InvalidInput, match=message):
        _rule(loss, 3).fit(X, CLASSES)


def test_other_losses_start_from_zero() -> None:
    """The first stage would be fitted beside a constant that the documentation does not have."""
    for loss in (F.cross_entropy, nn.HuberLoss()):
        rule = _rule(loss, 3)
        rule.start(CLASSES if loss is F.cross_entropy else NUMBERS.expand(-1, 3))
        assert not rule.predict(X).any()
