"""The law against numerical integration, its moments and random matrices."""

import math

import pytest
import torch
from scipy.integrate import quad

from assay.errors import InvalidInput
from assay.probes.marchenko_pastur import MarchenkoPastur, spike_threshold


def noise(h, d, seed, scale=1.0):
    """Eigenvalues of W^T W for Gaussian W."""
    w = scale * torch.randn(h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.linalg.svdvals(w).square().flip(0)


@pytest.mark.parametrize("ratio", [0.01, 0.3, 0.9, 1.0])
def test_distribution_function_is_the_integral_of_the_density(ratio):
    """The closed form, its branches or its edges are wrong."""
    law = MarchenkoPastur(ratio, scale=3.0)
    a, b = law.edges

    def density(x):
        return law.density(torch.tensor(x, dtype=torch.float64)).item()

    for share in (0.03, 0.4, 0.8):
        x = a + share * (b - a)
        expected = quad(density, a, x, epsabs=1e-11, limit=200)[0]
        assert law.cdf(torch.tensor(x, dtype=torch.float64)).item() == pytest.approx(expected, abs=1e-8)
    outside = torch.tensor([a - 1, a, b, b + 1], dtype=torch.float64)
    assert law.cdf(outside).tolist() == pytest.approx([0, 0, 1, 1], abs=1e-12)
    assert law.density(outside[[0, 3]]).tolist() == [0, 0]
    assert quad(lambda x: x * density(x), a, b, limit=200)[0] == pytest.approx(3.0, rel=1e-6)  # the mean is the scale


@pytest.mark.parametrize("ratio", [0.05, 0.6, 1.0])
def test_quantile_inverts_the_distribution_function(ratio):
    """A quantile has another share of the law below it."""
    law = MarchenkoPastur(ratio, scale=0.2)
    shares = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert torch.allclose(law.cdf(law.quantile(shares)), shares, atol=1e-9)
    assert law.quantile(shares)[[0, -1]].tolist() == pytest.approx(law.edges, abs=1e-9)


@pytest.mark.parametrize("shape", [(600, 400), (200, 500), (300, 300)])
def test_gaussian_matrices_obey_the_law(shape):
    """The fitted scale, the ratio, or the distance of noise from its own law is wrong."""
    ratio = min(shape) / max(shape)
    law = MarchenkoPastur.fit(noise(*shape, seed=0, scale=0.5), ratio)
    assert law.scale == pytest.approx(0.25 * max(shape), rel=0.02)
    assert law.distance(noise(*shape, seed=1, scale=0.5)) < 0.02
    assert MarchenkoPastur(ratio, 2 * law.scale).distance(noise(*shape, seed=1, scale=0.5)) > 0.2


def test_distance_is_the_kolmogorov_smirnov_distance():
    """A hand-made sample's distance is not its largest gap."""
    law = MarchenkoPastur(0.5)
    points = law.quantile(torch.tensor([0.1, 0.2, 0.9]))
    assert law.distance(points) == pytest.approx(max(0.9 - 2 / 3, 2 / 3 - 0.2, 0.1), abs=1e-6)


def test_noise_seldom_has_a_spike():
    """The largest eigenvalue of noise is above the threshold far more often than in 1 of 1000 cases, or never near."""
    law = MarchenkoPastur(0.5, scale=40.0)
    ratios = torch.tensor([noise(40, 20, seed)[-1].item() for seed in range(1000)]) / spike_threshold(law, (20, 40))
    assert (ratios > 1).sum() <= 6
    assert (
        (ratios * spike_threshold(law, (20, 40))) > law.edges[1]
    ).float().mean() < 0.35  # Tracy-Widom: P(> 0) = 0.17
    assert ratios.max() > 0.9


def test_a_spike_does_not_move_the_bulk():
    """One large eigenvalue changes the law fitted to the rest."""
    values = noise(300, 200, seed=0)
    law = MarchenkoPastur.fit(values, 2 / 3)
    values[-1] *= 1000
    assert MarchenkoPastur.fit(values, 2 / 3) == law


@pytest.mark.parametrize(("ratio", "scale"), [(0.0, 1.0), (1.1, 1.0), (0.5, 0.0), (0.5, math.nan), (math.nan, 1.0)])
def test_refuses_what_is_no_law(ratio, scale):
    """A ratio or scale out of range is computed with."""
    with pytest.raises(InvalidInput, match="ratio"):
        MarchenkoPastur(ratio, scale)


def test_refuses_a_spectrum_of_zeros_and_shares_above_one():
    """A law is fitted to nothing, or a quantile of more than all is given."""
    with pytest.raises(InvalidInput, match="median"):
        MarchenkoPastur.fit(torch.zeros(10), 0.5)
    with pytest.raises(InvalidInput, match="shares"):
        MarchenkoPastur(0.5).quantile(torch.tensor([1.5]))
