"""TrustRatio against the steps that optimizers make."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.optim.lamb import LAMB
from assay.optim.lars import LARS
from assay.probes.trust_ratio import TrustRatio
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


TINY = 1e-8
OPTIMIZERS = {
    "lamb": lambda p: LAMB(p, lr=TINY, weight_decay=0.1, layer_adaptation=False),
    "lamb-uncorrected": lambda p: LAMB(p, lr=TINY, weight_decay=0.1, layer_adaptation=False, bias_correction=False),
    "lars": lambda p: LARS(p, lr=TINY, weight_decay=0.1, layer_adaptation=False),
    "adamw": lambda p: torch.optim.AdamW(p, lr=TINY, weight_decay=0.1),
    "adam": lambda p: torch.optim.Adam(p, lr=TINY, weight_decay=0.1),
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


def test_what_is_no_optimizer_is_refused():
    """A name would fail deep inside."""
    with pytest.raises(InvalidInput, match="reads an optimizer's states, got str"):
        TrustRatio("lamb")
