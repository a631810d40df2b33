"""Exponents against the published loops, SciPy's Pareto law, `powerlaw` and what a maximum likelihood must obey."""

import math

import numpy as np
import pytest
import scipy.stats
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.probes.marchenko_pastur import MarchenkoPastur
from assay.probes.power_law_tail import hill_alpha, mle_ks_alpha


def by_loop(values):
    """Every start in turn, as Clauset, Shalizi and Newman describe it; returns alpha, D, start, size."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    best = (math.nan, math.inf, math.nan, 0)
    for i in range(len(x) - 1):
        tail = x[i:]
        k = len(tail)
        alpha = 1 + k / np.log(tail / x[i]).sum()
        distance = np.abs(1 - (tail / x[i]) ** (1 - alpha) - np.arange(k) / k).max()
        if distance < best[1]:
            best = (alpha, distance, x[i], k)
    return best


def spectrum(n=90, d=60, decay=0.4, seed=0):
    """Squared singular values of a Gaussian matrix with a power-law scale of its columns."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(n, d, generator=generator, dtype=torch.float64) * torch.arange(1, d + 1) ** -decay
    return torch.linalg.svdvals(w).square()


def pareto(alpha, n, seed=0):
    """Draws with density exponent alpha from 1 on."""
    return torch.from_numpy(np.random.default_rng(seed).random(n)).neg().add(1) ** (-1 / (alpha - 1))


@pytest.mark.parametrize("decay", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("size", [(3, 2), (40, 12), (90, 60), (300, 300)])
def test_equals_the_loop_over_starts(size, decay):
    """The start with the smallest distance is not found, or its exponent, distance or size is wrong."""
    values = spectrum(*size, decay)
    alpha, distance, xmin, count = by_loop(values)
    fit = mle_ks_alpha(values[torch.randperm(len(values), generator=torch.Generator().manual_seed(1))])
    assert (fit.alpha, fit.distance, fit.xmin) == pytest.approx((alpha, distance, xmin), rel=1e-9)
    assert fit.size == count


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(4, 120), st.floats(-6, 6))
def test_scale_moves_the_start_only(seed, n, exponent):
    """The exponents depend on the size of the weights, or the pruned search misses the best start of odd spectra."""
    values = torch.randn(n, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).mul(2).exp()
    scale = 10.0**exponent
    fit, scaled = mle_ks_alpha(values), mle_ks_alpha(scale * values)
    assert fit.alpha == pytest.approx(by_loop(values)[0], rel=1e-8)
    assert scaled.alpha == pytest.approx(fit.alpha, rel=1e-8)
    assert scaled.xmin == pytest.approx(scale * fit.xmin, rel=1e-9)
    assert hill_alpha(scale * values) == pytest.approx(hill_alpha(values), rel=1e-9)


@pytest.mark.parametrize("alpha", [1.6, 2.5, 4.0])
def test_recovers_paretos_exponent(alpha):
    """An exact power law's exponent is off by more than three standard errors, or the error's size is not that."""
    values = pareto(alpha, 2000)
    fit = mle_ks_alpha(values)
    assert abs(fit.alpha - alpha) < 3 * fit.standard_error
    assert abs(hill_alpha(values) - alpha) < 3 * (alpha - 1) / math.sqrt(1000)
    draws = torch.tensor([hill_alpha(pareto(alpha, 400, seed)) for seed in range(200)])
    assert draws.std().item() == pytest.approx((alpha - 1) / math.sqrt(200), rel=0.2)


def test_exponent_is_scipys_maximum_likelihood():
    """For the chosen start alpha is not the maximum of the Pareto likelihood, or D not SciPy's lower KS distance."""
    values = spectrum()
    fit = mle_ks_alpha(values)
    tail = np.sort(values.numpy())[-fit.size :]
    shape, _, _ = scipy.stats.pareto.fit(tail, floc=0, fscale=tail[0])
    assert fit.alpha == pytest.approx(1 + shape, rel=1e-4)
    law = scipy.stats.pareto(fit.alpha - 1, scale=tail[0])
    both = scipy.stats.kstest(tail, law.cdf).statistic
    assert fit.distance <= both + 1e-12 <= fit.distance + 1 / fit.size + 1e-9  # SciPy takes both limits of the steps


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("values", [spectrum(), pareto(2.5, 300), spectrum(50, 50, 0.8, seed=3)], ids="wpq")
def test_agrees_with_powerlaw(values):
    """The package's fit of the same numbers is another one."""
    powerlaw = pytest.importorskip("powerlaw", reason="powerlaw is not installed")
    theirs = powerlaw.Fit(values.numpy(), verbose=False)
    fit = mle_ks_alpha(values)
    assert (fit.alpha, fit.distance, fit.xmin) == pytest.approx((theirs.alpha, theirs.D, theirs.xmin), rel=1e-6)


def test_hill_of_the_marchenko_pastur_law():
    """Pure noise of 1.5 rows per column does not give the exponent that the integral over its law gives."""
    law = MarchenkoPastur(2 / 3)
    start = law.quantile(torch.tensor([0.5])).item()
    x = torch.linspace(start, law.edges[1], 20001, dtype=torch.float64)
    mean_log = torch.trapezoid(law.density(x) * (x / start).log(), x).item() / 0.5
    noise = torch.randn(750, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert hill_alpha(torch.linalg.svdvals(noise).square()) == pytest.approx(1 + 1 / mean_log, abs=0.02)


def test_equal_values_have_no_exponent():
    """Rounding noise of an orthogonal matrix is fitted."""
    same = 4 + 1e-15 * torch.arange(20, dtype=torch.float64)
    assert math.isnan(hill_alpha(same))
    assert math.isnan(mle_ks_alpha(same).alpha) and math.isnan(mle_ks_alpha(same).distance)
    assert mle_ks_alpha(torch.cat([same, 8 * same])).alpha > 1


@pytest.mark.parametrize("values", [[1.0], [[1.0, 2.0]], [1.0, 0.0], [1.0, -2.0], [1.0, math.nan], [1.0, math.inf]])
def test_refuses_what_has_no_logarithm(values):
    """A zero, a NaN or a single number gives an exponent."""
    for fit in (hill_alpha, mle_ks_alpha):
        with pytest.raises(InvalidInput, match="eigenvalues"):
            fit(torch.tensor(values))
