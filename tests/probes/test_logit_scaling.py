import math
from itertools import pairwise

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from assay.probes.logit_scaling import LogitScalingAlignment
from assay.probes.view import View

KEY = "logit_scaling_alignment"


def network(seed=0, bias=False, depth=3):
    """A ReLU network in float64."""
    torch.manual_seed(seed)
    sizes = [5, *[16] * (depth - 1), 4]
    layers = [m for a, b in pairwise(sizes) for m in (nn.Linear(a, b, bias=bias), nn.ReLU())]
    return nn.Sequential(*layers[:-1]).double()


def data(n=30):
    """Inputs and labels."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 5, generator=generator, dtype=torch.float64), torch.randint(4, (n,), generator=generator)


def batches(x, y, size):
    """Cut into pairs."""
    return list(zip(x.split(size), y.split(size), strict=True))


@pytest.mark.parametrize("size", [30, 7])
def test_equals_autograd_by_hand(size):
    """The cosine, its sign, or the weighting of uneven batches is wrong."""
    model, (x, y) = network(bias=True), data()
    values = LogitScalingAlignment().measure(View(model), batches(x, y, size))
    F.cross_entropy(model(x), y).backward()
    groups = {KEY: list(model.parameters())}
    groups |= {f"{KEY}/{name}": list(m.parameters()) for name, m in model.named_children() if list(m.parameters())}
    assert values.keys() == groups.keys()
    for key, parameters in groups.items():
        theta = torch.cat([p.detach().flatten() for p in parameters])
        gradient = torch.cat([p.grad.flatten() for p in parameters])
        assert values[key] == pytest.approx(F.cosine_similarity(-gradient, theta, dim=0).item(), rel=1e-9)


@pytest.mark.parametrize("depth", [1, 2, 4])
def test_homogeneous_networks_obey_eulers_identity(depth):
    """For a bias-free ReLU net <grad f, theta> = depth * f: with L = -f_y the cosine is depth * f_y / (|grad| |theta|)."""
    model, (x, y) = network(depth=depth), data()
    view = View(model, loss=lambda scores, targets: -scores.gather(1, targets[:, None]).mean())
    value = LogitScalingAlignment(per_layer=False).measure(view, [(x, y)])[KEY]
    f = model(x).gather(1, y[:, None]).mean()
    gradient = torch.cat([g.flatten() for g in torch.autograd.grad(f, list(model.parameters()))])
    theta = torch.cat([p.detach().flatten() for p in model.parameters()])
    assert value == pytest.approx((depth * f / gradient.norm() / theta.norm()).item(), rel=1e-9)


def test_a_fitted_linear_model_only_scales():
    """Where growing the weights is the only way to lower the loss, the cosine is not 1."""
    model = nn.Linear(2, 2, bias=False).double()
    model.weight.data = 5 * torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    x = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
    value = LogitScalingAlignment().measure(View(model), [(x, torch.tensor([0, 1]))])[KEY]
    assert value == pytest.approx(1.0, abs=1e-12)


def test_frozen_unused_and_zero_parameters():
    """A frozen layer counts, an unused one fails, or a gradient of 0 gives a number."""
    model = network(bias=True)
    model[0].requires_grad_(False)
    model.unused = nn.Linear(2, 2)
    model.forward = lambda x: nn.Sequential.forward(nn.Sequential(*list(model.children())[:-1]), x)
    probe = LogitScalingAlignment()
    values = probe.measure(View(model), batches(*data(), 10))
    assert f"{KEY}/0" not in values and math.isfinite(values[KEY])
    assert math.isnan(values[f"{KEY}/unused"]) and "0" in probe.skipped[f"{KEY}/unused"]


def test_tied_weights_count_once():
    """A shared weight enters the norms twice."""
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.ReLU(), nn.Linear(4, 4, bias=False)).double()
    model[2].weight = model[0].weight
    x, y = torch.randn(8, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64), torch.arange(8) % 4
    value = LogitScalingAlignment().measure(View(model), [(x, y)])[KEY]
    (gradient,) = torch.autograd.grad(F.cross_entropy(model(x), y), [model[0].weight])
    expected = F.cosine_similarity(-gradient.flatten(), model[0].weight.detach().flatten(), dim=0)
    assert value == pytest.approx(expected.item(), rel=1e-9)


class Negated:
    """A rule that predicts otherwise than its model."""

    def __init__(self, model, sign):
        self.model, self.sign = model, sign

    def predict(self, x):
        return self.sign * self.model(x).detach()

    def features(self, x):
        return {"input": x}

    def head(self):
        return None


def test_a_rule_with_its_own_inference_is_skipped_with_a_reason():
    """The gradient of scores that the rule does not predict with is reported as if it were the network's."""
    model, (x, y) = network(), data()
    probe = LogitScalingAlignment()
    own = probe.measure(View(model, rule=Negated(model, -1)), [(x, y)])
    assert math.isnan(own[KEY]) and "forward pass" in probe.skipped[KEY]
    assert probe.measure(View(model, rule=Negated(model, 1)), [(x, y)]) == probe.measure(View(model), [(x, y)])


def test_gradient_hooks_of_the_user_do_not_run():
    """Measuring triggers hooks that the user put on parameters."""
    model, calls = network(), []
    model[0].weight.register_hook(lambda g: calls.append(1))
    LogitScalingAlignment().measure(View(model), [data()])
    assert not calls and model[0].weight.grad is None
