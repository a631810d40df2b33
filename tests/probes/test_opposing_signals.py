"""Groups and measures of a step: against gradient descent by hand, a full sort, SciPy, and data made to oppose."""

from __future__ import annotations

import copy
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.stats import kurtosis, pearsonr
from torch import nn

from assay.errors import InvalidInput
from assay.probes.opposing_signals import OpposingSignals
from assay.probes.view import View
from assay.watch import Watch


def network(seed=0):
    """A ReLU network in float64."""
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(5, 16), nn.ReLU(), nn.Linear(16, 3)).double()


def data(N=60):
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(N, 5, generator=generator, dtype=torch.float64), torch.randint(3, (N,), generator=generator)


def batches(x, y, size):
    """Cut into pairs."""
    return list(zip(x.split(size), y.split(size), strict=True))


def losses(model, x, y):
    """Each sample's loss."""
    return F.cross_entropy(model(x), y, reduction="none").detach()


def step(model, x, y, lr):
    """One step of gradient descent, in place."""
    optimizer = torch.optim.SGD(model.parameters(), lr=lr)
    optimizer.zero_grad()
    F.cross_entropy(model(x), y).backward()
    optimizer.step()


def gradient(model, x, y):
    """The gradient of the mean loss as one vector."""
    return torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))])


@pytest.mark.parametrize("size", [60, 7])
def test_groups_and_measures_equal_steps_by_hand(size):
    """Changes, groups or a measure are wrong, or depend on how samples are cut into batches."""
    model, (x, y) = network(), data()
    probe = OpposingSignals(k=4, lr=0.8)
    values = probe.measure(View(model), batches(x, y, size))
    stepped = copy.deepcopy(model)
    curve = [losses(model, x, y)]
    for _ in range(2):
        step(stepped, x, y, 0.8)
        curve.append(losses(stepped, x, y))
    change, after = curve[1] - curve[0], curve[2] - curve[1]
    order = change.argsort()
    assert (
        probe.up.indices.tolist() == order[-4:].flip(0).tolist() and probe.down.indices.tolist() == order[:4].tolist()
    )
    assert torch.equal(probe.up.inputs, x[probe.up.indices]) and torch.equal(probe.down.targets, y[probe.down.indices])
    assert torch.allclose(probe.up.changes, change[probe.up.indices], rtol=1e-9)
    up, down = (gradient(model, x[g], y[g]) for g in (order[-4:], order[:4]))
    expected = {
        "opposition": F.cosine_similarity(up, down, dim=0).item(),
        "oscillation": pearsonr(change, after).statistic,
        "concentration": (change[order[-4:]].abs().sum() + change[order[:4]].abs().sum()).item()
        / change.abs().sum().item(),
        "delta_kurtosis": kurtosis(change.numpy(), fisher=False),
        "rising_share": float(np.mean(change.numpy() > 0)),
    }
    assert values == pytest.approx(expected, rel=1e-6)


def test_small_steps_change_losses_as_the_gradients_say():
    """Delta_i is not -lr g_i^T grad L to first order."""
    model, (x, y) = network(), data(24)
    probe = OpposingSignals(k=12, lr=1e-5)
    probe.measure(View(model), [(x, y)])
    mean = gradient(model, x, y)
    for group in (probe.up, probe.down):
        expected = [-1e-5 * (gradient(model, x[i : i + 1], y[i : i + 1]) @ mean).item() for i in group.indices.tolist()]
        assert group.changes.tolist() == pytest.approx(expected, rel=1e-2, abs=1e-8)


def test_past_steps_are_measured_as_steps_tried_out():
    """Looking back mixes up the steps, their order or their sign."""
    model, (x, y) = network(), data()
    looking_back, ahead = OpposingSignals(k=4), OpposingSignals(k=4, lr=0.8)
    first = ahead.measure(View(model), [(x, y)])
    assert all(math.isnan(v) for v in looking_back.measure(View(model), [(x, y)]).values())
    assert "three measurements" in looking_back.skipped["opposition"]
    step(model, x, y, 0.8)
    second = ahead.measure(View(model), [(x, y)])
    looking_back.measure(View(model), [(x, y)])
    step(model, x, y, 0.8)
    values = looking_back.measure(View(model), [(x, y)])
    assert values["oscillation"] == pytest.approx(first["oscillation"], rel=1e-6)
    for key in ("opposition", "concentration", "delta_kurtosis", "rising_share"):
        assert values[key] == pytest.approx(second[key], rel=1e-6)


def test_clusters_made_to_oppose_are_found():
    """Two clusters that pull one weight apart, just beyond the edge of stability, are not the groups, or don't alternate."""
    fitted = torch.linspace(-1, 1, 20, dtype=torch.float64)
    x = torch.zeros(26, 2, dtype=torch.float64)
    x[:20, 0], x[20:23, 1], x[23:, 1] = fitted, 3.0, -3.0
    y = torch.cat([fitted, torch.full((6,), 3.0)])[:, None]
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.tensor([[1.0, 0.02]], dtype=torch.float64)
    sharpness = 6 * 9 / 26
    probe = OpposingSignals(k=3, lr=2.02 / sharpness)
    view = View(model, loss=lambda scores, targets: (scores - targets).square().mean() / 2)
    values = probe.measure(view, [(x, y)])
    assert set(probe.up.indices.tolist()) == {20, 21, 22} and set(probe.down.indices.tolist()) == {23, 24, 25}
    assert values["opposition"] == pytest.approx(-1) and values["oscillation"] == pytest.approx(-1, abs=1e-3)
    assert values["concentration"] == pytest.approx(1)


def test_nothing_to_compare_is_said():
    """A step that changes nothing, a diverged network or a rule of its own gives groups."""
    model, (x, y) = network(), data()
    probe = OpposingSignals(k=4)
    for _ in range(3):
        values = probe.measure(View(model), [(x, y)])
    assert all(math.isnan(v) for v in values.values()) and "no loss changed" in probe.skipped["opposition"]
    assert probe.up is None
    with pytest.raises(InvalidInput, match="no groups"):
        probe.figure()

    probe = OpposingSignals(k=4, lr=0.1)
    model[0].weight.data[0, 0] = math.nan
    probe.measure(View(model), [(x, y)])
    assert set(probe.skipped.values()) == {"a loss is NaN or infinite"}

    class Negated:
        def __init__(self, model):
            self.model = model

        def predict(self, x):
            return -self.model(x)

        def features(self, x):
            return {"input": x}

        def head(self):
            return None

    model = network()
    probe.measure(View(model, rule=Negated(model)), [(x, y)])
    assert "forward pass" in probe.skipped["oscillation"]


def test_frozen_and_tied_weights():
    """A frozen weight is stepped, a tied one twice, or an unused one breaks the measurement."""
    (x, y), model = data(), network()
    model[0].requires_grad_(False)
    model.unused = nn.Linear(2, 2).double()
    model.forward = lambda x: model[2](model[1](model[0](x)))
    probe = OpposingSignals(k=4, lr=0.5)
    probe.measure(View(model), [(x, y)])
    stepped = copy.deepcopy(model[2])
    hidden = model[1](model[0](x)).detach()
    before = losses(stepped, hidden, y)
    step(stepped, hidden, y, 0.5)
    change = losses(stepped, hidden, y) - before
    assert torch.allclose(probe.up.changes, change.sort(descending=True).values[:4])
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(InvalidInput, match="no trainable"):
        probe.measure(View(model), [(x, y)])


@pytest.mark.parametrize("options", [{"k": 0}, {"lr": 0.0}, {"lr": math.inf}])
def test_bad_options_are_refused(options):
    """Empty groups or steps of no size are measured."""
    with pytest.raises(InvalidInput):
        OpposingSignals(**options)


def test_too_few_samples_are_refused():
    """A sample is in both groups."""
    with pytest.raises(InvalidInput, match="cannot give two groups"):
        OpposingSignals(k=4, lr=0.1).measure(View(network()), [data(7)])


def test_the_figure_shows_each_sample_of_both_groups():
    """Images are missing, or what is no image breaks the figure."""
    torch.manual_seed(0)
    images, labels = torch.randn(30, 3, 4, 4), torch.arange(30) % 3
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 3))
    probe = OpposingSignals(k=7, lr=0.1)
    Watch(model, [probe], (images, labels)).measure(0)
    panels = [axes for axes in probe.figure().axes if axes.images]
    assert len(panels) == 14
    assert panels[0].get_title().startswith(str(labels[probe.up.indices[0]].item()))
    shown, low, high = panels[7].images[0].get_array(), *torch.cat([probe.up.inputs, probe.down.inputs]).aminmax()
    expected = (images[probe.down.indices[0]] - low) / (high - low)
    assert np.allclose(shown, expected.movedim(0, -1), atol=1e-6)

    Watch(model, [probe], (images.flatten(1), labels)).measure(0)
    assert [axes.images[0].get_array().shape for axes in probe.figure().axes] == [(7, 48), (7, 48)]
