"""Gradient boosting of part of the stages, and of networks that are not what they seem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._boosting_stage import fit_and_gradient
from assay.rules.gradient_boosting import GradientBoosting


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


X = torch.randn(60, 4, generator=_generator(1)).double()
TARGETS = 100 + X.sum(1, keepdim=True)


def _boosted(model: nn.Sequential, **options: object) -> GradientBoosting:
    return GradientBoosting(model.double(), step_units=2, shrinkage=0.5, generator=_generator(2), **options)


def _model(*body: nn.Module, outputs: int = 1) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(*body, nn.Linear(4, 6), nn.Sigmoid(), nn.Linear(6, outputs))


def _stages(rule: GradientBoosting, y: Tensor, stages: int) -> None:
    for _, _ in zip(range(stages), rule.phases(3), strict=False):
        rule.step(X, y, torch.optim.SGD(rule.parameters(), lr=0.1))


@pytest.mark.parametrize("before", [0, 3])
def test_stages_that_were_not_fitted_add_nothing(before: int) -> None:
    """After an early stop the copy would have no bias, or that of an earlier fit."""
    rule = _boosted(_model(), loss="squared")
    _stages(rule, TARGETS, before)
    _stages(rule, TARGETS - 50, 1)
    now = rule.model(X).detach()
    torch.testing.assert_close(rule.to_module()(X).detach(), now)
    for scores in rule.staged_scores(X)[1:]:
        torch.testing.assert_close(scores, now)


def test_a_stage_trained_by_backward_counts_before_its_line_search() -> None:
    """The last stage of a loop of one's own would lose its bias in the copy."""
    rule = _boosted(_model(), loss="squared")
    rule.start(TARGETS)
    rule.backward(X, TARGETS + 1)
    torch.optim.SGD(rule.parameters(), lr=0.5).step()
    torch.testing.assert_close(rule.to_module(1)(X), rule.model(X))


class _Residual(nn.Sequential):
    def forward(self, x: Tensor) -> Tensor:
        return x + super().forward(x)


def test_a_sequential_with_a_forward_of_its_own_stays_whole() -> None:
    """The stages would be fitted to features of a network without its skip connection."""
    y = torch.arange(60) % 3
    rule = _boosted(_model(_Residual(nn.Linear(4, 4), nn.Tanh()), outputs=3))
    losses = rule.fit(X, y)
    assert losses[-1] == pytest.approx(F.cross_entropy(rule.model(X), y).item(), rel=1e-9)
    with pytest.raises(InvalidInput, match="ends in _Residual"):
        GradientBoosting(_Residual(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 4)))


@pytest.mark.parametrize("change", ["data", "double"])
def test_features_are_fresh_in_every_fit(change: str) -> None:
    """Stages would be fitted to what the body gave before its weights were set by `.data`, or in another precision."""
    y, x = torch.arange(60) % 3, X.float()
    rule = _boosted(_model(nn.Linear(4, 4), nn.Tanh(), outputs=3)).float()
    rule.fit(x, y)
    if change == "data":
        rule.model[0].weight.data.mul_(-3)
    else:
        rule.double()
        x = x.double()
    assert rule.fit(x, y)[-1] == pytest.approx(F.cross_entropy(rule.model(x), y).item(), rel=1e-5)


def test_activations_in_place_are_the_same_activations() -> None:
    """The pre-activations that autograd differentiates by would be overwritten."""
    phi, r = X.numpy(), TARGETS.numpy()
    values = torch.randn(4 * 2 + 2 + 2 + 1, generator=_generator()).double().numpy()
    (loss, gradient), (expected, slopes) = (
        fit_and_gradient(values, phi, r, nn.ELU(inplace=inplace), 0.1) for inplace in (True, False)
    )
    assert loss == expected
    np.testing.assert_allclose(gradient, slopes, rtol=1e-12)
