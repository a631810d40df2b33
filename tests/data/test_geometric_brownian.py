"""Geometric Brownian noise against the moments of a log-normal, simulation and what it must refuse."""

from __future__ import annotations

import math

import pytest
import torch

from assay.data.geometric_brownian import gbm_noise, log_normal_like
from assay.errors import InvalidInput


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("mu", [None, 0.0, 0.9])
def test_moments_are_those_of_the_process(mu):
    """Drift or variance would be wrong: mean and variance of the logarithm, and E x_t = x_0 exp(mu t)."""
    n, sigma, t, x0 = 200_000, 0.8, 0.6, 1.7
    x = gbm_noise(torch.full((n, 1), x0, dtype=torch.float64), t, sigma, mu, generator())
    drift = sigma**2 / 2 if mu is None else mu
    logs = (x / x0).log()
    variance = sigma**2 * t
    assert logs.mean().item() == pytest.approx((drift - sigma**2 / 2) * t, abs=4 * math.sqrt(variance / n))
    assert logs.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / n))
    assert x.mean().item() == pytest.approx(x0 * math.exp(drift * t), rel=4 * math.sqrt(math.expm1(variance) / n))


def test_it_is_what_small_steps_lead_to():
    """The closed form would not solve dX = mu X dt + sigma X dW, here by Milstein's steps in x on the same path."""
    steps, sigma, mu = 1000, 0.8, 0.2
    increments = torch.randn(steps, generator=generator(3), dtype=torch.float64) / math.sqrt(steps)
    x = torch.tensor(1.3, dtype=torch.float64)
    for dw in increments:
        x = x * (1 + mu / steps + sigma * dw + sigma**2 / 2 * (dw**2 - 1 / steps))
    exact = 1.3 * torch.exp((mu - sigma**2 / 2) + sigma * increments.sum())
    torch.testing.assert_close(x, exact, rtol=1e-2, atol=0)


def test_every_sample_has_its_own_time():
    """Times would be matched to the wrong axis."""
    x = gbm_noise(torch.ones(4, 1000, 2), torch.tensor([0.0, 0.01, 0.25, 1.0]), 0.8, generator=generator())
    assert x.log().std(dim=(1, 2)).tolist() == pytest.approx([0.0, 0.08, 0.4, 0.8], rel=0.1)


def test_the_start_has_the_moments_of_the_data():
    """The sampler would start darker, or with another spread, than noised data have."""
    x = gbm_noise(1 + torch.rand(500, 7, generator=generator(1)), 1.0, generator=generator(2))
    start = log_normal_like(x, 4000, generator(3))
    assert start.shape == (4000, 7)
    assert start.log().mean().item() == pytest.approx(x.log().mean().item(), abs=0.02)
    assert start.log().std().item() == pytest.approx(x.log().std().item(), rel=0.02)


@pytest.mark.parametrize(
    ("x0", "t", "options", "message"),
    [
        (torch.tensor([[0.0, 1.0]]), 0.5, {}, "x0 must be above 0 everywhere; the smallest entry is 0"),
        (torch.tensor([[math.nan]]), 0.5, {}, "x0 must be above 0"),
        (torch.ones(2, 3), torch.ones(3), {}, r"one per sample, \(2,\); got shape \(3,\)"),
        (torch.ones(2, 3), -0.5, {}, "times must be at least 0; got -0.5"),
        (torch.ones(2, 3), 0.5, {"sigma": 0.0}, "sigma must be a finite number above 0; got 0.0"),
    ],
)
def test_bad_input_is_refused(x0, t, options, message):
    """Pixels of 0 or a time per pixel would become NaN or noise of the wrong shape."""
    with pytest.raises(InvalidInput, match=message):
        gbm_noise(x0, t, **options)
