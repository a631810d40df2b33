"""Whether a rule predicts by the model's own forward pass."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from assay.models.mlp import MLP
from assay.probes._same_scores import why_not_own_scores
from assay.probes.view import View
from assay.rules.backprop import Backprop
from assay.rules.forward_forward import ForwardForward
from assay.rules.rule import Rule

X = torch.rand(6, 9, generator=torch.Generator().manual_seed(0))


class TwoInputs(nn.Module):
    """A network that can't be run on inputs alone, as a denoiser."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(9, 3)

    def forward(self, z: Tensor, x: Tensor) -> Tensor:
        return self.layer(x) + z


class Denoises(Backprop):
    def _scores(self, x: Tensor) -> Tensor:
        return self.model(x.new_zeros(3), x)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (Backprop(MLP((9,), 3)), None),
        (ForwardForward(MLP((9,), 3), 3), "does not predict by the model's own"),
        (Denoises(TwoInputs()), "no forward pass of its own"),
    ],
)
def test_the_reason_is_told(rule: Rule, reason: str | None) -> None:
    """A curvature would be measured of a function that the rule does not use, or the measurement end in a traceback."""
    found = why_not_own_scores(View(rule.model, rule=rule), X)
    assert found is None if reason is None else reason in (found or "")


def test_without_a_rule_the_scores_are_the_models() -> None:
    """A probe would run a second forward pass for nothing."""
    model = MLP((9,), 3)
    model.register_forward_hook(lambda *_: pytest.fail("it ran"))
    assert why_not_own_scores(View(model), X) is None
