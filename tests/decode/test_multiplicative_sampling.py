"""The multiplicative samplers against exact log-normal marginals, their recursion, each other and additive diffusion."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import assay.decode
from assay.decode.multiplicative_sampling import DaleLangevinSampler, UnconstrainedMultiplicativeSampler
from assay.errors import InvalidInput

SIGMA, MEAN, DEVIATION = 0.8, 0.3, 0.5
KINDS = [DaleLangevinSampler, UnconstrainedMultiplicativeSampler]


def generator(seed=0):
    """A generator of a test's own."""
    return torch.Generator().manual_seed(seed)


def exact(mu):
    """Return the scaled score of noised log-normal data."""

    def scaled_score(x, t):
        mean = MEAN + (mu - SIGMA**2 / 2) * t[:, None]
        return -1 - (x.log() - mean) / (DEVIATION**2 + SIGMA**2 * t[:, None])

    return scaled_score


def start(count, mu):
    """Return draws from the marginal at t = 1."""
    z = torch.randn(count, 1, generator=generator(), dtype=torch.float64)
    return torch.exp(MEAN + mu - SIGMA**2 / 2 + math.sqrt(DEVIATION**2 + SIGMA**2) * z)


@pytest.mark.parametrize("mu", [SIGMA**2 / 2, 0.0])
@pytest.mark.parametrize("kind", KINDS)
def test_exact_scores_return_the_data(kind, mu):
    """A drift term would be wrong: samples' log-mean and log-deviation would not be those of the data."""
    logs = kind(exact(mu), SIGMA, mu, n_steps=200)(start(20_000, mu), generator=generator(1)).log()
    assert logs.mean().item() == pytest.approx(MEAN, abs=0.02)
    assert logs.std().item() == pytest.approx(DEVIATION, abs=0.02)


def log_moments(n):
    """Return mean and variance of log x after n Dale-Langevin steps with exact scores, which keep it normal."""
    mean, variance = MEAN, DEVIATION**2 + SIGMA**2
    delta = 1 / n
    for k in range(n, 0, -1):
        pull = delta * SIGMA**2 / (DEVIATION**2 + SIGMA**2 * k / n)
        mean, variance = mean - pull * (mean - MEAN), (1 - pull) ** 2 * variance + delta * SIGMA**2
    return mean, variance


def test_dale_langevin_takes_the_steps_of_its_recursion():
    """Level, time or size of a step would be off by one: at few steps the variance is known exactly."""
    n, count = 4, 100_000
    logs = DaleLangevinSampler(exact(SIGMA**2 / 2), SIGMA, n_steps=n)(
        start(count, SIGMA**2 / 2), generator=generator(1)
    ).log()
    mean, variance = log_moments(n)
    assert logs.mean().item() == pytest.approx(mean, abs=4 * math.sqrt(variance / count))
    assert logs.var().item() == pytest.approx(variance, rel=4 * math.sqrt(2 / count))


def test_both_samplers_agree_as_steps_shrink():
    """On the same noise the paths would not come together like the square root of the step, Euler's strong order."""
    gaps = []
    for n in (50, 800):
        ends = [k(exact(0.1), SIGMA, 0.1, n_steps=n)(start(2000, 0.1), generator=generator(2)).log() for k in KINDS]
        gaps.append((ends[0] - ends[1]).square().mean().sqrt().item())
    assert gaps[0] / gaps[1] == pytest.approx(4, rel=0.3)


@settings(max_examples=30, deadline=None)
@given(
    st.floats(-30, 30),
    st.floats(-5, 5),
    st.sampled_from([1, 3]),
    st.floats(0.01, 1.0),
    st.lists(st.floats(-3, 3).filter(lambda x: abs(x) > 0.1), min_size=1, max_size=4),
)
def test_signs_stay_for_any_score(slope, offset, inner, step, values):
    """A wrong score, large steps or negative entries would turn a sign."""
    x = torch.tensor([values], dtype=torch.float64)
    sampler = DaleLangevinSampler(
        lambda x, t: offset + slope * t[:, None] * x.sign(), n_steps=3, inner_steps=inner, step_size=step
    )
    for later in sampler.trajectory(x, generator=generator()):
        assert torch.equal(later.sign(), x.sign())


def test_the_unconstrained_sampler_turns_signs_in_large_steps():
    """The contrast that the paper draws would be none."""
    for kind, turned in zip(KINDS, (False, True), strict=True):
        x = kind(lambda x, t: -torch.ones_like(x), 1.0, 0.0, n_steps=1)(torch.ones(2000, 1), generator=generator())
        assert bool((x < 0).any()) is turned


def test_additive_diffusion_is_the_same_sampler_of_exponentials():
    """The study's additive control would not be the variance-exploding reverse process p += d s^2 score + sqrt(d) s Z."""
    n, delta = 20, 1 / 20
    p = torch.randn(50, 2, generator=generator(5), dtype=torch.float64)

    def score(p, t):
        return -p / (0.3 + SIGMA**2 * t[:, None])

    found = DaleLangevinSampler(lambda x, t: score(x.log(), t) - 1, SIGMA, n_steps=n)(p.exp(), generator=generator(6))
    draws = generator(6)
    for k in range(n, 0, -1):
        t = torch.full((50,), k / n, dtype=torch.float64)
        z = torch.randn(p.shape, generator=draws, dtype=torch.float64)
        p = p + delta * SIGMA**2 * score(p, t) + math.sqrt(delta) * SIGMA * z
    torch.testing.assert_close(found.log(), p, rtol=1e-10, atol=1e-12)


def test_annealing_and_inner_steps():
    """The noise would not shrink level by level, or levels have another number of steps."""
    flat = DaleLangevinSampler(lambda x, t: -torch.ones_like(x), SIGMA, n_steps=3, inner_steps=2, anneal=0.0)
    path = torch.stack(list(flat.trajectory(torch.ones(500, 1), generator=generator()))).log()
    assert len(path) == 6
    moves = torch.diff(path, dim=0, prepend=torch.zeros(1, 500, 1)).std(dim=(1, 2))
    assert moves[:2].tolist() == pytest.approx([SIGMA / math.sqrt(6)] * 2, rel=0.15)
    assert moves[2:].abs().max() < 1e-6, "an anneal factor of 0 leaves noise to the first level only"


def test_noise_falls_by_the_same_share_at_every_level():
    """A part of the noise would be left out, or the share be applied to steps instead of levels."""
    sampler = DaleLangevinSampler(lambda x, t: -torch.ones_like(x), SIGMA, n_steps=3, inner_steps=2, anneal=0.5)
    path = torch.stack(list(sampler.trajectory(torch.ones(4000, 1), generator=generator()))).log()
    moves = torch.diff(path, dim=0, prepend=torch.zeros(1, 4000, 1)).std(dim=(1, 2))
    expected = [SIGMA / math.sqrt(6) * share for share in (1, 1, 0.5, 0.5, 0.25, 0.25)]
    assert moves.tolist() == pytest.approx(expected, rel=0.06)


def test_samples_are_reproducible_and_the_seam_offers_its_first_parts():
    """The global generator would be used, the score be called with a gradient, or the lazy seam not find its modules."""
    sampler = assay.decode.DaleLangevinSampler(exact(SIGMA**2 / 2), SIGMA, n_steps=5)
    before = torch.get_rng_state()
    first, second = (sampler(torch.ones(3, 1, requires_grad=True), generator=generator(9)) for _ in range(2))
    assert torch.equal(first, second) and not first.requires_grad
    assert torch.equal(before, torch.get_rng_state())
    assert {"DaleLangevinSampler", "UnconstrainedMultiplicativeSampler"} <= set(dir(assay.decode))
    assert set(assay.decode.__all__) == set(dir(assay.decode))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_steps": 0}, "n_steps must be at least 1, not 0"),
        ({"inner_steps": 0}, "inner_steps must be at least 1, not 0"),
        ({"sigma": -1.0}, "sigma must be a finite number above 0, not -1.0"),
        ({"step_size": math.nan}, "step_size must be a finite number above 0, not nan"),
        ({"anneal": 1.5}, "anneal must be between 0 and 1, not 1.5"),
    ],
)
def test_options_out_of_range_are_refused(options, message):
    """A bad option would sample from something else."""
    with pytest.raises(InvalidInput, match=message):
        DaleLangevinSampler(torch.neg, **options)
