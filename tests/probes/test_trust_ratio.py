"""TrustRatio against the steps that optimizers make."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.optim.coat_adamw import COATAdamW
from assay.optim.diffgrad import DiffGrad
from assay.optim.lamb import LAMB
from assay.optim.lars import LARS
from assay.probes.trust_ratio import TrustRatio
from assay.probes.view import View
from assay.watch import Watch


def network():
    """A float64 network and data."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model, (torch.randn(8, 3, generator=generator).double(), torch.randint(0, 2, (8,), generator=generator))


def stepped(model, optimizer, data, steps):
    """Take steps."""
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(data[0]), data[1]).backward()
        optimizer.step()


class Named(torch.optim.Adam):
    """A user's Adam, plain in its steps."""


TINY = 1e-8
OPTIMIZERS = {
    "lamb": lambda p: LAMB(p, lr=TINY, weight_decay=0.1, layer_adaptation=False),
    "lamb-uncorrected": lambda p: LAMB(p, lr=TINY, weight_decay=0.1, layer_adaptation=False, bias_correction=False),
    "lars": lambda p: LARS(p, lr=TINY, weight_decay=0.1, layer_adaptation=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=TINY, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=TINY, weight_decay=0.1),
    "adam-subclass": lambda p: Named(p, lr=TINY),
    "sgd": lambda p: torch.optim.SGD(p, lr=TINY, momentum=0.9, weight_decay=0.1),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_it_is_the_weights_norm_over_the_steps(name):
    """The direction would not be what the optimizer steps along: without a ratio, the step over a tiny rate."""
    model, data = network()
    optimizer = OPTIMIZERS[name](model.parameters())
    stepped(model, optimizer, data, 2)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    stepped(model, optimizer, data, 1)
    found = Watch(model, [TrustRatio(optimizer)], data).measure(0)
    for layer in ("0.weight", "2.weight"):
        step = (before[layer] - model.get_parameter(layer).detach()) / TINY
        assert found[f"trust_ratio/{layer}"] == pytest.approx((before[layer].norm() / step.norm()).item(), rel=1e-5)
    values = [v for k, v in found.items() if "/" in k]
    assert (found["trust_ratio_min"], found["trust_ratio_max"]) == (min(values), max(values))
    assert len(values) == 2, "biases have no ratio"


def test_amsgrad_divides_by_the_largest_moment():
    """After a large gradient, the direction would be longer than the step that amsgrad makes."""
    weight = nn.Parameter(torch.ones(2, 2, dtype=torch.float64))
    optimizer = torch.optim.Adam([weight], lr=TINY, betas=(0.9, 0.1), amsgrad=True)
    for size in (10.0, 0.1):
        weight.grad, before = torch.full_like(weight, size), weight.detach().clone()
        optimizer.step()
    holder = nn.Module()
    holder.weight = weight
    expected = (before.norm() * TINY / (before - weight.detach()).norm()).item()
    assert TrustRatio(optimizer).measure(View(holder))["trust_ratio/weight"] == pytest.approx(expected, rel=1e-5)


def test_without_an_optimizer_it_is_the_gradients():
    """The gradient would not be that of the mean loss over all batches."""
    model, (x, y) = network()
    found = Watch(model, [TrustRatio()], (x, y), batch_size=3).measure(0)
    nn.functional.cross_entropy(model(x), y).backward()
    for name in ("0.weight", "2.weight"):
        p = model.get_parameter(name)
        assert found[f"trust_ratio/{name}"] == pytest.approx((p.norm() / p.grad.norm()).item(), rel=1e-9)


def test_before_the_first_step_it_is_nan_with_a_reason():
    """A ratio would come out of no moments."""
    model, data = network()
    watch = Watch(model, [TrustRatio(LAMB(model.parameters()))], data)
    assert math.isnan(watch.measure(0)["trust_ratio_min"])
    assert "no moments of a weight yet" in watch.skipped["trust_ratio_min"]


def complex_network():
    """A complex layer, its input and labels; scores are absolute values."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2, bias=False, dtype=torch.complex128)
    with torch.no_grad():
        model.weight.copy_(torch.randn(2, 3, dtype=torch.complex128, generator=generator))
    x = torch.randn(8, 3, dtype=torch.complex128, generator=generator)
    return model, x, torch.randint(0, 2, (8,), generator=generator)


def test_a_complex_weight_has_a_real_ratio():
    """The gradient would be refused, or the square root of Adam's second moment be taken as a complex number's."""
    model, x, y = complex_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=TINY)
    for _ in range(3):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(x).abs(), y).backward()
        before = model.weight.detach().clone()
        optimizer.step()
    view = View(model, scores=lambda output: output.abs())
    step = (before - model.weight.detach()) / TINY
    ratio = (before.abs().square().sum() / step.abs().square().sum()).sqrt().item()
    assert TrustRatio(optimizer).measure(view)["trust_ratio/weight"] == pytest.approx(ratio, rel=1e-5)
    (gradient,) = torch.autograd.grad(nn.functional.cross_entropy(model(x).abs(), y), model.weight)
    ratio = (model.weight.abs().square().sum() / gradient.abs().square().sum()).sqrt().item()
    assert TrustRatio().measure(view, [(x[:3], y[:3]), (x[3:], y[3:])])["trust_ratio/weight"] == pytest.approx(ratio)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (torch.optim.RAdam, "got RAdam"),
        (torch.optim.NAdam, "got NAdam"),
        (DiffGrad, "got DiffGrad"),
        (COATAdamW, "got COATAdamW"),
        (lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, nesterov=True), "got SGD with nesterov=True"),
        (lambda p: "lamb", "got str"),
    ],
    ids=["radam", "nadam", "diffgrad", "coat-adamw", "nesterov", "name"],
)
def test_what_steps_along_something_else_is_refused(make, said):
    """States named as Adam's would be read as Adam's, whatever the optimizer makes of them."""
    with pytest.raises(InvalidInput, match=f"{said}; give one of these"):
        TrustRatio(make([nn.Parameter(torch.ones(2, 2))]))
