"""UpdateToWeightRatio against steps of known length."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.optim.lamb import LAMB
from assay.probes.update_to_weight_ratio import UpdateToWeightRatio
from assay.watch import Watch


def test_under_lamb_it_is_the_learning_rate():
    """The reference would not be the last measurement, or tensors be mixed."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    data = torch.randn(8, 3, generator=torch.Generator().manual_seed(0)).double(), torch.arange(8) % 2
    optimizer, watch = LAMB(model.parameters(), lr=0.02), Watch(model, [UpdateToWeightRatio()], data)
    assert watch.measure(0)["update_to_weight"] == 0
    for step in (1, 2):
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()
        found = watch.measure(step)
        for name in ("0.weight", "2.weight"):
            assert found[f"update_to_weight/{name}"] == pytest.approx(0.02, rel=1e-12)


def test_all_parameters_together_are_one_vector():
    """The total would be a mean of ratios."""
    model = nn.Linear(2, 1)
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[3.0, 0.0]]))
        model.bias.copy_(torch.tensor([4.0]))
    watch = Watch(model, [UpdateToWeightRatio()], (torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)))
    watch.measure(0)
    with torch.no_grad():
        model.bias.sub_(1.0)
    found = watch.measure(1)
    assert found["update_to_weight"] == pytest.approx(1 / 5)
    assert (found["update_to_weight/weight"], found["update_to_weight/bias"]) == (0.0, 0.25)


def test_zero_weights_have_no_ratio():
    """A division by 0 would give infinity."""
    model = nn.Linear(2, 1, bias=False)
    nn.init.zeros_(model.weight)
    watch = Watch(model, [UpdateToWeightRatio()], (torch.zeros(2, 2), torch.zeros(2, dtype=torch.long)))
    assert math.isnan(watch.measure(0)["update_to_weight"])
    assert "were 0" in watch.skipped["update_to_weight"]
