"""Gradient noise against its schedule, the chi distribution and random walks."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.errors import InvalidInput
from assay.models.mlp import MLP
from assay.optim.gradient_noise import GradientNoise, accumulated_deviation, add_gradient_noise_
from assay.optim.sam import SAM


def _weights(entries: int = 100_000) -> nn.Parameter:
    weights = nn.Parameter(torch.zeros(entries))
    weights.grad = torch.zeros(entries)
    return weights


@pytest.mark.parametrize(("t", "variance"), [(0, 0.3), (9, 0.3 / 10**0.55), (999, 0.3 / 1000**0.55)])
def test_the_variance_follows_the_schedule(t, variance):
    """Taken as a deviation, or counted from 1, the noise would have another size."""
    weights = _weights()
    add_gradient_noise_([weights], t, eta=0.3, generator=torch.Generator().manual_seed(t))
    assert float(weights.grad.var()) == pytest.approx(variance, rel=0.02)


def test_without_a_gradient_weights_walk_at_random():
    """Noise would not add up over steps as the schedule says: variance lr^2 eta sum (1 + t)^-gamma."""
    weights = _weights()
    optimizer = torch.optim.SGD([weights], lr=0.1)
    GradientNoise(optimizer, eta=0.5)
    for _ in range(30):
        weights.grad.zero_()
        optimizer.step()
    expected = 0.1 * math.sqrt(0.5 * sum((1 + t) ** -0.55 for t in range(30)))
    assert float(weights.detach().std()) == pytest.approx(expected, rel=0.02)
    assert accumulated_deviation(0.1, 30, 0.5) == pytest.approx(expected)
    # the integral of the schedule, which the sum approaches
    integral = 0.1 * math.sqrt(0.5 * ((1 + 1e5) ** 0.45 - 1) / 0.45)
    assert accumulated_deviation(0.1, 100_000, 0.5) == pytest.approx(integral, rel=0.01)


def test_clipping_comes_before_the_noise():
    """Noise that is clipped as well would be nearly gone: its norm grows with the number of entries."""
    weights = _weights()
    weights.grad.fill_(1.0)
    optimizer = torch.optim.SGD([weights], lr=1.0)
    GradientNoise(optimizer, eta=0.04, clip_norm=1.0)
    optimizer.step()
    clipped = -torch.full_like(weights, 1 / math.sqrt(len(weights)))
    noise = (weights.detach() - clipped).norm()
    # a chi distribution with n degrees of freedom has mean sqrt(n - 1/2) nearly, and deviation sqrt(1/2)
    assert float(noise) == pytest.approx(0.2 * math.sqrt(len(weights) - 0.5), abs=0.2 * 4 * math.sqrt(0.5))


@pytest.mark.parametrize("fused", [False, True])
def test_a_scaled_loss_gets_the_same_noise(fused):
    """A scaler leaves unscaling to a fused optimizer, whose gradients would be 2^16 times the noise; t would count overflows."""
    weights = _weights()
    optimizer = torch.optim.SGD([weights], lr=1.0, fused=fused)
    noise = GradientNoise(optimizer, eta=0.25, clip_norm=2.0)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.tensor(0.0))
    weights.grad.fill_(float(scaler.get_scale()))
    scaler.step(optimizer)
    scaler.update()
    assert noise.t == 1
    # gradients of 1, clipped to a norm of 2
    assert float(weights.detach().mean()) == pytest.approx(-2 / math.sqrt(len(weights)), abs=4 * 0.5 / math.sqrt(1e5))
    assert float(weights.detach().std()) == pytest.approx(0.5, rel=0.02)
    before = weights.detach().clone()
    weights.grad[3] = math.inf
    scaler.step(optimizer)
    assert torch.equal(weights, before) and noise.t == 1


def test_no_noise_is_the_plain_optimizer():
    """The baseline, noise of variance 0, would be another optimizer."""
    runs = []
    for noisy in (False, True):
        model = MLP((6,), 3, width=8, generator=torch.Generator().manual_seed(0))
        optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
        if noisy:
            GradientNoise(optimizer, eta=0.0)
        for step in range(3):
            optimizer.zero_grad()
            x = torch.randn(5, 6, generator=torch.Generator().manual_seed(step))
            model(x).square().sum().backward()
            optimizer.step()
        runs.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    assert torch.equal(*runs)


def test_a_network_of_zeros_learns_nothing_without_noise():
    """The paper's worst initialisation would not be what it is: only the last bias has a gradient."""
    model = MLP((6,), 3, width=8, depth=4)
    for p in model.parameters():
        nn.init.zeros_(p)
    scores = model(torch.randn(5, 6, generator=torch.Generator().manual_seed(0)))
    nn.functional.cross_entropy(scores, torch.tensor([0, 0, 1, 1, 2])).backward()
    moving = [name for name, p in model.named_parameters() if p.grad.abs().max() > 0]
    assert moving == ["head.bias"]


def test_what_has_no_gradient_gets_no_noise():
    """Frozen weights would walk away; complex gradients would get noise on their real part only."""
    frozen, complex_ = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(50_000, dtype=torch.complex64))
    complex_.grad = torch.zeros_like(complex_)
    add_gradient_noise_([frozen, complex_], 0, eta=1.0, generator=torch.Generator().manual_seed(0))
    assert frozen.grad is None
    assert float(complex_.grad.real.var()) == pytest.approx(1, rel=0.05)
    assert float(complex_.grad.imag.var()) == pytest.approx(1, rel=0.05)


@pytest.mark.parametrize("options", [{"eta": -1.0}, {"eta": math.inf}, {"gamma": -0.1}, {"clip_norm": 0.0}])
def test_bad_options_are_refused(options):
    """A negative variance would be a NaN in the middle of a run."""
    with pytest.raises(InvalidInput):
        GradientNoise(torch.optim.SGD([_weights(3)], lr=0.1), **options)


def test_optimizers_that_evaluate_several_times_are_refused():
    """A line search would see another function at every evaluation."""
    for optimizer in (torch.optim.LBFGS([_weights(3)]), SAM(torch.optim.SGD([_weights(3)], lr=0.1))):
        with pytest.raises(InvalidInput, match="several times"):
            GradientNoise(optimizer)
    with pytest.raises(InvalidInput, match="at least 0"):
        add_gradient_noise_([_weights(3)], -1, 0.3)
