"""FrictionTrace against what DiffGrad's next step does."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.optim.diffgrad import DiffGrad
from assay.probes.friction_trace import FrictionTrace
from assay.probes.view import View
from assay.watch import Watch


def network():
    """A float64 network with large weights, and data."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()
    with torch.no_grad():
        for p in model.parameters():
            p.copy_(3 * torch.randn(p.shape, generator=generator, dtype=torch.float64))
    return model, (torch.randn(8, 3, generator=generator).double(), torch.randint(0, 2, (8,), generator=generator))


def stepped(model, optimizer, data, index):
    """Take a step on every other sample, from a first one on."""
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(data[0][index::2]), data[1][index::2]).backward()
    optimizer.step()


@pytest.mark.parametrize("weight_decay", [0.0, 0.3])
def test_it_shows_the_friction_of_each_step(weight_decay):
    """The gradients compared would not be those that the optimizer has compared."""
    model, data = network()
    seen = {}

    def listen(change):
        seen[tuple(change.shape)] = torch.sigmoid(change)
        return torch.sigmoid(change)

    optimizer = DiffGrad(model.parameters(), lr=0.1, weight_decay=weight_decay, friction=listen)
    watch = Watch(model, [FrictionTrace(optimizer)], data)
    for index in range(3):
        stepped(model, optimizer, data, index)
        found = watch.measure(index)
        for name, p in model.named_parameters():
            assert found[f"friction/{name}"] == pytest.approx(seen[tuple(p.shape)].mean().item(), rel=1e-12)
        entries = torch.cat([xi.flatten() for xi in seen.values()])
        assert found["friction"] == pytest.approx(entries.mean().item(), rel=1e-12)
        assert found["friction_max"] == pytest.approx(entries.max().item(), rel=1e-12)
        assert found["friction_p99"] == found["friction_max"], "of 26 entries the 99th percentile is the largest"


def test_without_an_optimizer_it_shows_a_first_step():
    """The gradient would not be that of the mean loss over all batches."""
    model, (x, y) = network()
    found = Watch(model, [FrictionTrace()], (x, y), batch_size=3).measure(0)
    model.zero_grad()
    nn.functional.cross_entropy(model(x), y).backward()
    for name, p in model.named_parameters():
        assert found[f"friction/{name}"] == pytest.approx(p.grad.abs().sigmoid().mean().item(), rel=1e-12)


def test_the_percentile_is_the_least_number_that_99_of_100_entries_do_not_exceed():
    """It would be the maximum, or a neighbour in rank; 26 entries can't tell."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(25, 12, bias=False, dtype=torch.float64)
    x, y = 20 * torch.randn(9, 25, generator=generator).double(), torch.arange(9)
    found = Watch(model, [FrictionTrace()], (x, y)).measure(0)
    nn.functional.cross_entropy(model(x), y).backward()
    entries = sorted(model.weight.grad.abs().sigmoid().flatten().tolist())
    expected = next(e for e in entries if sum(other <= e for other in entries) >= 297)
    assert found["friction_p99"] == pytest.approx(expected, rel=1e-12)
    assert entries[-5] < entries[-4] < entries[-3] < entries[-1] == pytest.approx(found["friction_max"], rel=1e-12)


def test_a_complex_weight_has_the_friction_of_both_parts():
    """The gradient would be refused, or one friction be given to both parts, which DiffGrad steps apart."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Linear(3, 2, bias=False, dtype=torch.complex128)
    x = torch.randn(8, 3, dtype=torch.complex128, generator=generator)
    y = torch.randint(0, 2, (8,), generator=generator)
    found = FrictionTrace().measure(View(model, scores=lambda output: output.abs()), [(x, y)])
    nn.functional.cross_entropy(model(x).abs(), y).backward()
    expected = torch.view_as_real(model.weight.grad).abs().sigmoid().mean().item()
    assert found["friction/weight"] == pytest.approx(expected, rel=1e-12)


def test_what_took_no_step_is_left_out():
    """A half would be shown for a parameter without a gradient, or for steps that the probe has not seen."""
    model, data = network()
    optimizer = DiffGrad(model.parameters(), lr=0.1)
    stepped(model, optimizer, data, 0)
    probe = FrictionTrace(optimizer)
    watch = Watch(model, [probe], data)
    assert math.isnan(watch.measure(0)["friction"])
    assert "made no step" in watch.skipped["friction"]
    stepped(model, optimizer, data, 1)
    optimizer.zero_grad()
    model[2].weight.grad = torch.ones(2, 4, dtype=torch.float64)
    optimizer.step()
    assert [key for key in watch.measure(1) if "/" in key] == ["friction/2.weight"]
    probe.remove()
    probe.remove()
    stepped(model, optimizer, data, 1)
    assert not optimizer._optimizer_step_pre_hooks


def test_other_optimizers_are_refused():
    """Their states have no previous gradient."""
    with pytest.raises(InvalidInput, match="states of a DiffGrad, got SGD"):
        FrictionTrace(torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=0.1))
