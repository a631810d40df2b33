"""Gram-matrix spectra against torch's singular value decomposition."""

import pytest
import torch

from assay.errors import InvalidInput
from assay.probes import singular_values as module
from assay.probes.singular_values import as_matrix, leading_singular_vectors, squared_singular_values


def matrix(h, d, seed=0, dtype=torch.float64):
    """Gaussian entries."""
    return torch.randn(h, d, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("shape", [(300, 200), (150, 310), (5, 5), (1, 7)])
@pytest.mark.parametrize("method", ["gram", "svd"])
def test_equals_svdvals(monkeypatch, shape, method):
    """A triangle, a piece of rows or a side of the Gram matrix is missing."""
    monkeypatch.setattr(module, "_PIECE", 7000)  # several pieces of rows
    w = matrix(*shape)
    expected = torch.linalg.svdvals(w).square().flip(0)
    assert torch.allclose(squared_singular_values(w, method=method), expected, rtol=1e-9, atol=1e-12 * expected[-1])


def test_float64_accuracy_is_as_stated():
    """Eigenvalues above 1e-9 of the largest have fewer than the five digits promised."""
    w = matrix(200, 200) * torch.logspace(0, -6, 200, dtype=torch.float64)
    exact, found = torch.linalg.svdvals(w).square().flip(0), squared_singular_values(w)
    relied = exact > 1e-9 * exact[-1]
    assert relied.sum() > 100
    assert ((found - exact).abs() / exact)[relied].max() < 1e-5
    assert (found >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_float32_mode_keeps_three_digits(dtype):
    """The quick mode loses more than it says, or half precision is multiplied in half precision."""
    w = matrix(256, 256, dtype=dtype)
    exact = torch.linalg.svdvals(w.double()).square().flip(0)
    found = squared_singular_values(w, dtype=torch.float32)
    relied = exact > 1e-4 * exact[-1]
    assert found.dtype == torch.float32
    assert ((found - exact).abs() / exact)[relied].max() < 1e-3


@pytest.mark.parametrize("shape", [(60, 40), (40, 60), (30, 30)])
def test_leading_vectors_are_those_of_the_svd(shape):
    """A vector is on the wrong side, not of length 1, or out of order."""
    w = matrix(*shape)
    left, values, right = leading_singular_vectors(w, 3)
    U, s, Vh = torch.linalg.svd(w)
    assert torch.allclose(values, s[:3])
    assert torch.allclose((left * U[:, :3]).sum(0).abs(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose((right * Vh[:3].T).sum(0).abs(), torch.ones(3, dtype=torch.float64))
    assert torch.allclose(left.T @ w @ right, values.diag(), atol=1e-9)  # the signs belong together


@pytest.mark.parametrize("tall", [True, False])
def test_vectors_beyond_the_rank_are_zero(tall):
    """A direction is made out of rounding noise."""
    w = torch.outer(torch.arange(1.0, 6.0), torch.ones(4))
    left, values, right = leading_singular_vectors(w if tall else w.T, 2)
    assert values[1] < 1e-6 * values[0]
    assert ((left if tall else right)[:, 1] == 0).all()


def test_weights_are_matrices_with_a_row_per_output():
    """A convolution is cut otherwise, or what is no matrix passes."""
    assert as_matrix(torch.zeros(8, 3, 5, 5)).shape == (8, 75)
    for bad in (torch.zeros(3), torch.zeros(2, 2, dtype=torch.int64), torch.zeros(2, 2, dtype=torch.complex64)):
        with pytest.raises(InvalidInput, match="weight matrix"):
            as_matrix(bad)
    for rank in (0, 5):
        with pytest.raises(InvalidInput, match="singular vectors"):
            leading_singular_vectors(torch.zeros(4, 6), rank)
