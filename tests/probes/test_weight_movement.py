import copy
import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.probes.view import View
from assay.probes.weight_movement import WeightMovement


def network():
    """Two linear layers around a normalisation."""
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))


def test_distance_by_layer_and_over_all():
    """Biases count, layers are mixed up, or the distance is not relative to the first measurement."""
    model, probe = network(), WeightMovement()
    assert set(probe.measure(View(model)).values()) == {0.0}
    before = [model[0].weight.detach().clone(), model[2].weight.detach().clone()]
    model[0].weight.data += 0.1
    model[0].bias.data += 100
    model[1].weight.data += 100
    values = probe.measure(View(model))
    assert values.keys() == {"weight_movement", "weight_movement/0", "weight_movement/2"}
    moved = 0.1 * 12**0.5
    assert values["weight_movement/0"] == pytest.approx(moved / before[0].norm().item(), rel=1e-5)
    assert values["weight_movement/2"] == 0.0
    whole = torch.cat([w.flatten() for w in before]).norm().item()
    assert values["weight_movement"] == pytest.approx(moved / whole, rel=1e-5)


def test_a_given_reference_is_used_and_kept():
    """A resumed run measures from where it was resumed, or the reference changes with the user's tensors."""
    model = network()
    start = copy.deepcopy(model.state_dict())
    probe = WeightMovement(start)
    model[0].weight.data *= 2
    start["0.weight"].zero_()
    assert probe.measure(View(model))["weight_movement/0"] == pytest.approx(1.0)


def test_tied_weights_count_once_and_frozen_ones_too():
    """A shared weight is counted twice, or a frozen one left out."""
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = model[0].weight
    model[2].requires_grad_(False)
    assert WeightMovement().measure(View(model)).keys() == {"weight_movement", "weight_movement/0", "weight_movement/2"}


def test_what_has_no_distance_is_said():
    """NaN weights, weights that were 0, no weights or another network give a number."""
    model, probe = network(), WeightMovement()
    model[0].weight.data.zero_()
    values = probe.measure(View(model))
    assert math.isnan(values["weight_movement/0"]) and "0 in the reference" in probe.skipped["weight_movement/0"]
    assert values["weight_movement/2"] == 0.0
    model[0].weight.data.fill_(math.nan)
    assert math.isnan(probe.measure(View(model))["weight_movement"])
    assert math.isnan(WeightMovement().measure(View(nn.ReLU()))["weight_movement"])
    with pytest.raises(InvalidInput, match="one probe per network"):
        probe.measure(View(nn.Sequential(nn.Linear(3, 5))))
