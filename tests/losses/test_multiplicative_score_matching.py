"""Multiplicative score matching against autograd, denoising in log space, closed-form minimisers and the true score."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from assay.data.geometric_brownian import gbm_noise
from assay.errors import InvalidInput
from assay.losses.multiplicative_score_matching import MultiplicativeDSM, hyvarinen_nonneg, multiplicative_dsm_loss

SIGMA, MU = 0.8, 0.5


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


def noised(count=64, d=3, seed=0):
    """Return x_t, x_0 and t in float64."""
    own = generator(seed)
    x0 = 0.5 + torch.rand(count, d, generator=own, dtype=torch.float64)
    t = 0.1 + 0.9 * torch.rand(count, generator=own, dtype=torch.float64)
    return gbm_noise(x0, t, SIGMA, MU, own), x0, t


def conditional(x_t, x0, t):
    """Return x o grad log p(x_t | x_0) by torch's log-normal distribution and autograd."""
    x = x_t.clone().requires_grad_()
    scale = SIGMA * t.sqrt()[:, None]
    density = torch.distributions.LogNormal(x0.log() + (MU - SIGMA**2 / 2) * t[:, None], scale)
    (s,) = torch.autograd.grad(density.log_prob(x).sum(), x)
    return x_t * s


@pytest.mark.parametrize("weighting", ["paper", "noise"])
def test_it_is_the_weighted_error_to_the_conditional_score(weighting):
    """A constant of the loss would be wrong: it is sigma^4 t^2 |h - h_conditional|^2, or sigma^2 t times that."""
    x_t, x0, t = noised()
    h = torch.randn(x0.shape, generator=generator(1), dtype=torch.float64)
    weights = SIGMA**2 * t * (SIGMA**2 * t if weighting == "paper" else 1)
    expected = (weights * (h - conditional(x_t, x0, t)).square().sum(dim=1)).mean()
    found = multiplicative_dsm_loss(h, x_t, x0, t, SIGMA, MU, weighting)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=0)


def test_gradients_are_those_of_denoising_in_log_space():
    """For the same network, y = log x and weight sigma^4 t^2 the gradients would differ."""
    x_t, x0, t = noised()
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)).double()
    y = x_t.log()
    out = net(torch.cat([y, t[:, None]], dim=1))
    ours = torch.autograd.grad(
        multiplicative_dsm_loss(out - 1, x_t, x0, t, SIGMA, MU), list(net.parameters()), retain_graph=True
    )
    variance = SIGMA**2 * t[:, None]
    target = -(y - x0.log() - (MU - SIGMA**2 / 2) * t[:, None]) / variance  # the score of y given y_0
    ordinary = (variance**2 * (out - target).square()).sum(dim=1).mean()
    for a, b in zip(ours, torch.autograd.grad(ordinary, list(net.parameters())), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-10, atol=1e-14)


def test_the_best_affine_score_is_that_of_the_noised_log_normal():
    """Least squares in the family a + b log x would not end at -1 - (log x - m) / (s^2 + sigma^2 t)."""
    m, s, t, n = 0.3, 0.5, 0.7, 100_000
    own = generator(4)
    x0 = torch.exp(m + s * torch.randn(n, 1, generator=own, dtype=torch.float64))
    times = torch.full((n,), t, dtype=torch.float64)
    x_t = gbm_noise(x0, times, SIGMA, None, own)
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def slope(at):
        loss = multiplicative_dsm_loss(at[0] + at[1] * x_t.log(), x_t, x0, times, SIGMA, SIGMA**2 / 2)
        return torch.autograd.grad(loss, at, create_graph=True)[0]

    hessian = torch.autograd.functional.jacobian(slope, theta)
    a, b = torch.linalg.solve(hessian, -slope(theta).detach()).tolist()  # the loss is quadratic: one step of Newton
    spread = s**2 + SIGMA**2 * t
    assert b == pytest.approx(-1 / spread, rel=0.02)
    assert a == pytest.approx(-1 + m / spread, abs=0.02)


def test_the_module_draws_times_inside_and_averages_over_them():
    """A time of 0 or 1 would be drawn, the network see another t than the noise, or entries be averaged, not summed."""
    seen = []

    def score(x, t):
        seen.append((x, t))
        return -torch.ones_like(x)

    loss = MultiplicativeDSM(SIGMA, levels=10, weighting="noise", generator=generator())
    value = loss(score, torch.ones(20_000, 5, dtype=torch.float64))
    (x, t), steps = seen[0], torch.arange(1, 10, dtype=torch.float64) / 10
    assert t.unique().tolist() == pytest.approx(steps.tolist())
    assert value.item() == pytest.approx(5, rel=0.02), "h = -1 predicts no noise: its error is the noise's variance"
    for k in (0.1, 0.9):
        assert x[t == k].log().std().item() == pytest.approx(SIGMA * math.sqrt(k), rel=0.05)


def test_the_exact_conditional_score_has_no_error_under_a_drift():
    """The module would noise with one drift or volatility and score with another."""
    sigma, mu = 0.6, 0.5

    def score(x, t):  # of noised ones
        return -1 - (x.log() - (mu - sigma**2 / 2) * t[:, None]) / (sigma**2 * t[:, None])

    loss = MultiplicativeDSM(sigma, mu, generator=generator())
    assert loss(score, torch.ones(200, 3, dtype=torch.float64)).item() == pytest.approx(0, abs=1e-20)


@pytest.mark.parametrize(("options", "expected"), [({}, 0.6**2 / 2), ({"weighting": "noise"}, 1.0)])
def test_the_papers_weighting_is_the_default(options, expected):
    """Another weighting would be used: with h = -1 the error is sigma^2 t per entry, or 1 in units of the noise."""
    loss = MultiplicativeDSM(0.6, generator=generator(), **options)
    value = loss(lambda x, t: -torch.ones_like(x), torch.ones(50_000, 4, dtype=torch.float64))
    assert value.item() == pytest.approx(4 * expected, rel=0.03)


def exponential_gamma(x, shape, rate):
    """Return the scaled score of a gamma density: x o ((shape - 1) / x - rate)."""
    return shape - 1 - rate * x


def test_hyvarinen_is_least_at_the_true_score():
    """The loss would prefer a wrong density: the minimiser over (shape, rate) must be that of the gamma's sample."""
    own = torch.distributions.Gamma(torch.tensor(3.0, dtype=torch.float64), torch.tensor(2.0, dtype=torch.float64))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        x = own.sample((20_000, 1))
    theta = torch.zeros(2, dtype=torch.float64, requires_grad=True)

    def slope(at):
        loss = hyvarinen_nonneg(lambda v: exponential_gamma(v, at[0], at[1]), x)
        return torch.autograd.grad(loss, at, create_graph=True)[0]

    hessian = torch.autograd.functional.jacobian(slope, theta)
    found = torch.linalg.solve(hessian, -slope(theta).detach())
    assert found.tolist() == pytest.approx([3.0, 2.0], rel=0.05)


def test_hyvarinen_equals_his_formula_and_estimates_it():
    """Rewriting 2 x s + x^2 s' + x^2 s^2 / 2 with h = x s, or estimating the derivative by signs, would change it."""
    own = generator(2)
    x = 0.2 + torch.rand(5, 4, generator=own, dtype=torch.float64)
    W = torch.randn(4, 4, generator=own, dtype=torch.float64)

    def s(v):
        return torch.tanh(v @ W) - 1 / v

    by_hand = 0.0
    for row in x:
        J = torch.autograd.functional.jacobian(s, row)
        terms = 2 * row * s(row) + row**2 * J.diagonal() + row**2 * s(row) ** 2 / 2
        by_hand += terms.sum().item() / len(x)
    assert hyvarinen_nonneg(lambda v: v * s(v), x).item() == pytest.approx(by_hand, rel=1e-12)
    estimate = hyvarinen_nonneg(lambda v: v * s(v), x, samples=4000, generator=generator(3))
    assert estimate.item() == pytest.approx(by_hand, abs=0.05)


def test_hyvarinen_trains_networks():
    """Its derivatives would not reach a network's parameters."""
    net = nn.Linear(3, 3)
    hyvarinen_nonneg(net, torch.rand(4, 3)).backward()
    assert net.weight.grad is not None and torch.isfinite(net.weight.grad).all()
    assert net.weight.grad.diagonal().abs().min() > 0


@pytest.mark.parametrize("samples", [None, 3])
def test_hyvarinen_takes_networks_that_draw(samples):
    """A network with dropout could not be trained; with all entries kept its loss is that of the network without."""
    net, x = nn.Linear(3, 3), torch.rand(4, 3, generator=generator())
    values = [
        hyvarinen_nonneg(nn.Sequential(net, nn.Dropout(p)), x, samples=samples, generator=generator())
        for p in (0.0, 0.5)
    ]
    torch.testing.assert_close(values[0], hyvarinen_nonneg(net, x, samples=samples, generator=generator()))
    assert torch.isfinite(values[1])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: MultiplicativeDSM(weighting="none"), "weighting must be one of paper, noise, not 'none'"),
        (lambda: MultiplicativeDSM(levels=1), "levels must be at least 2, not 1"),
        (lambda: MultiplicativeDSM(sigma=0.0), "sigma must be above 0, not 0.0"),
        (lambda: MultiplicativeDSM()(lambda x, t: x, torch.zeros(2, 3)), "x0 must be above 0"),
        (
            lambda: MultiplicativeDSM()(lambda x, t: x[:, :1], torch.ones(2, 3)),
            r"the data's shape \(2, 3\), not \(2, 1\)",
        ),
        (lambda: hyvarinen_nonneg(torch.neg, torch.tensor([[-1.0]])), "data must be at least 0"),
        (lambda: hyvarinen_nonneg(torch.neg, torch.ones(1, 1), samples=0), "samples must be at least 1"),
        (lambda: hyvarinen_nonneg(torch.neg, torch.ones(0, 3)), "at least one sample"),
        (lambda: hyvarinen_nonneg(torch.neg, torch.ones(2, 3, dtype=torch.int)), "floating-point type"),
        (lambda: hyvarinen_nonneg(lambda x: -x[:, :1], torch.ones(2, 3)), r"shape \(2, 3\), not \(2, 1\)"),
    ],
)
def test_bad_input_is_refused(call, message):
    """A typo, pixels of 0 or scores that broadcast would train as something else."""
    with pytest.raises(InvalidInput, match=message):
        call()
