"""Stochastic Lanczos quadrature against known spectra, exact moments and sampling theory."""

from __future__ import annotations

import math

import pytest
import torch

from assay.errors import InvalidInput
from assay.probes._lanczos import random_unit
from assay.probes.spectral_density import Estimate, SpectralDensity, estimate_spectrum

BULK = 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
SPECTRUM = torch.cat([BULK, torch.arange(1.0, 11.0, dtype=torch.float64)])


def test_outliers_come_once_with_reorthogonalisation_and_as_ghosts_without() -> None:
    """Ghosts would be counted as eigenvalues; or the option would do nothing."""
    found = {full: estimate_spectrum(torch.diag(SPECTRUM), steps=80, reorthogonalize=full, draws=2) for full in (1, 0)}
    torch.testing.assert_close(found[1].largest(1e-9)[:10], SPECTRUM[1000:].flip(0), rtol=1e-8, atol=0)
    assert [int((nodes > 0.5).sum()) for nodes in found[1].nodes] == [10, 10]
    assert all((nodes > 0.5).sum() > 20 for nodes in found[0].nodes)
    torch.testing.assert_close(found[0].nodes.amax(1), torch.full((2,), 10.0, dtype=torch.float64))


def test_moments_are_those_of_the_start_vectors() -> None:
    """Nodes and weights would not be the quadrature of v^T q(A) v, exact for degrees up to 2 m - 1."""
    A = torch.randn(40, 40, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    A = (A + A.T) / 12
    found = estimate_spectrum(A, steps=4, draws=3, seed=5)
    v = torch.stack([random_unit(40, seed=5 + i, like=A) for i in range(3)])
    for degree in range(8):
        exact = torch.einsum("rp,pq,rq->r", v, torch.linalg.matrix_power(A, degree), v)
        torch.testing.assert_close((found.weights * found.nodes**degree).sum(1), exact, rtol=0, atol=1e-10)


def test_estimates_and_their_errors_are_right_on_average() -> None:
    """The trace would be biased, or its standard error too small: z-scores of many runs have mean 0, spread 1."""
    A = torch.diag(torch.linspace(-1, 3, 30, dtype=torch.float64) ** 3)
    exact = {d: (A.diagonal() ** d).sum().item() for d in (1, 2)}
    for degree, trace in exact.items():
        runs = [estimate_spectrum(A, steps=5, draws=12, seed=100 * s).trace(degree) for s in range(60)]
        z = torch.tensor([(value - trace) / error for value, error in runs])
        assert abs(z.mean()) < 3 / math.sqrt(60) * 1.2 and 0.7 < z.std() < 1.5


def test_a_whole_krylov_space_gives_the_exact_spectrum() -> None:
    """With m = P every eigenvalue must be a node, and an exhausted space must end the run and not repeat."""
    values = torch.tensor([-2.0, 0.0, 0.5, 3.0], dtype=torch.float64)
    found = estimate_spectrum(torch.diag(values), steps=50, draws=1)
    torch.testing.assert_close(found.nodes[0], values, rtol=0, atol=1e-12)
    twice = estimate_spectrum(torch.diag(values.repeat(3)), steps=50, draws=1)
    assert twice.nodes.shape == (1, 12) and (twice.weights[0] > 0).sum() == 4
    torch.testing.assert_close(twice.nodes[0, :4], values, rtol=0, atol=1e-12)
    assert twice.extremes() == pytest.approx((-2, 3)) and math.isnan(twice.moment(1).error)


def test_draws_advance_together_or_apart_alike() -> None:
    """A memory limit would change the result."""
    A = torch.diag(SPECTRUM)
    whole = estimate_spectrum(A, steps=10, draws=5)
    apart = estimate_spectrum(A, steps=10, draws=5, memory=2 * 10 * 1010 * 8)
    torch.testing.assert_close(whole.nodes, apart.nodes, rtol=1e-12, atol=1e-12)
    with pytest.raises(InvalidInput, match="reorthogonalize=False"):
        estimate_spectrum(A, steps=10, memory=10 * 1010 * 8 - 1)


def test_kernels_spread_each_node_by_their_rule() -> None:
    """A width would not be the published one: seen from the variance that one node's density has."""
    nodes = torch.tensor([[-1.0, 0.0, 3.0]], dtype=torch.float64)
    only = SpectralDensity(nodes, torch.tensor([[0.0, 1.0, 0.0]], dtype=torch.float64), torch.zeros(1, 3), 9)
    widths = {"ghorbani": math.sqrt(1e-5 * 4), "papyan": 2.1 * 2 / (2 * math.sqrt(8 * math.log(3)))}
    for kernel, sigma in widths.items():
        grid, density, _ = only.density(kernel, points=20_001)  # type: ignore[arg-type]
        first, second = ((grid - t).abs().argmin() for t in (0.0, sigma))
        slope = (density[first] / density[second]).log() / (grid[second] ** 2 - grid[first] ** 2)
        assert slope.item() == pytest.approx(1 / (2 * sigma**2), rel=1e-6)
    with pytest.raises(InvalidInput, match="papyan-log"):
        only.density("gauss")  # type: ignore[arg-type]


@pytest.mark.parametrize("kernel", ["ghorbani", "papyan", "papyan-log"])
def test_densities_hold_the_mass_of_the_spectrum(kernel: str) -> None:
    """The density would not integrate to one, or not put the bulk's mass at zero."""
    found = estimate_spectrum(torch.diag(SPECTRUM), steps=60, draws=3)
    grid, density, error = found.density(kernel)  # type: ignore[arg-type]
    assert torch.trapezoid(density, grid).item() == pytest.approx(1, abs=0.06)
    assert (error >= 0).all()
    if kernel == "ghorbani":
        middle = grid.abs() < 0.1
        assert torch.trapezoid(density[middle], grid[middle]).item() == pytest.approx(1000 / 1010, abs=0.01)


def test_share_counts_eigenvalues_in_a_band() -> None:
    """The bulk's share would be that of nodes, not of eigenvalues."""
    share = estimate_spectrum(torch.diag(SPECTRUM), steps=60, draws=20).share(-0.1, 0.1)
    assert isinstance(share, Estimate) and abs(share.value - 1000 / 1010) < 3 * share.error < 0.01


def test_the_largest_are_cut_where_they_stop_to_converge() -> None:
    """Ritz values that are no eigenvalues would be handed out as such."""
    dense = torch.diag(torch.cat([torch.linspace(0, 1, 300, dtype=torch.float64), torch.tensor([5.0, 9.0])]))
    top = estimate_spectrum(dense, steps=25, draws=3).largest(1e-6)
    torch.testing.assert_close(top[:2], torch.tensor([9.0, 5.0], dtype=torch.float64), rtol=1e-10, atol=0)
    assert all((dense.diagonal() - value).abs().min() < 1e-5 for value in top)
    assert len(top) < 25


def test_bad_arguments_are_refused() -> None:
    """No steps or no draws would end in an empty tensor."""
    for options in ({"steps": 0}, {"draws": 0}):
        with pytest.raises(InvalidInput):
            estimate_spectrum(torch.eye(3), **options)
