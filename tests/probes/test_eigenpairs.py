"""Top eigenpairs against dense diagonalisation, of matrices and of small networks."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from assay.errors import InvalidInput
from assay.probes.curvature_matrix import CurvatureMatrix
from assay.probes.eigenpairs import top_eigenpairs


def _network(channels: bool) -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        if channels:
            layers = (nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(27, 4))
            model, x = nn.Sequential(*layers), torch.randn(60, 1, 8, 8)
        else:
            model, x = nn.Sequential(nn.Linear(10, 8), nn.Tanh(), nn.Linear(8, 4)), torch.randn(60, 10)
        for parameter in model.parameters():
            parameter.data *= 2
    return model, x, torch.arange(60) % 4


@pytest.mark.parametrize("channels", [False, True])
@pytest.mark.parametrize("matrix", ["hessian", "ggn", "fisher", "empirical-fisher"])
def test_the_top_ten_of_a_network_agree_with_the_dense_matrix(channels: bool, matrix: str) -> None:
    """Eigenvalues would be off by more than 1e-4 of themselves in float32."""
    model, x, y = _network(channels)
    dense = CurvatureMatrix(model, None, (x, y), matrix=matrix, dtype=torch.float64).dense()  # type: ignore[arg-type]
    values = torch.linalg.eigvalsh(dense)
    expected = values[values.abs().argsort(descending=True)][:10]
    found = top_eigenpairs(CurvatureMatrix(model, None, (x, y), matrix=matrix), 10)  # type: ignore[arg-type]
    assert found.converged
    torch.testing.assert_close(found.values, expected, rtol=1e-4, atol=0)
    residuals = (dense.float() @ found.vectors - found.vectors * found.values.float()).norm(dim=0).double()
    assert (residuals <= found.residuals + 1e-5 * expected[0].abs()).all()
    torch.testing.assert_close(found.vectors.T @ found.vectors, torch.eye(10), rtol=0, atol=1e-4)


def test_a_known_spectrum_is_found_to_eight_digits_and_without_copies() -> None:
    """Outliers would come twice (ghosts), or stop short of their value."""
    bulk = 1e-3 * torch.randn(1000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    outliers = torch.arange(1.0, 11.0, dtype=torch.float64)
    found = top_eigenpairs(torch.diag(torch.cat([bulk, outliers])), 10, tolerance=1e-9, max_steps=80)
    torch.testing.assert_close(found.values, outliers.flip(0), rtol=1e-8, atol=0)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.sampled_from([-4.0, -1.0, 0.0, 1.0, 4.0]), min_size=1, max_size=7), st.integers(0, 1000))
def test_multiple_eigenvalues_come_as_often_as_they_occur(values: list[float], seed: int) -> None:
    """An exhausted subspace would end the search early, or bring values that are none."""
    P = len(values)
    generator = torch.Generator().manual_seed(seed)
    Q = torch.linalg.qr(torch.randn(P, P, generator=generator, dtype=torch.float64)).Q
    A = Q * torch.tensor(values, dtype=torch.float64) @ Q.T
    found = top_eigenpairs((A + A.T) / 2, P, max_steps=20)
    expected = torch.tensor(sorted(values), dtype=torch.float64)
    torch.testing.assert_close(found.values.sort().values, expected, rtol=0, atol=1e-8)


def test_too_few_steps_are_admitted() -> None:
    """A result that has not converged would look like one that has."""
    A = torch.diag(torch.linspace(0.9, 1, 500, dtype=torch.float64))
    found = top_eigenpairs(A, 5, tolerance=1e-8, max_steps=8)
    assert not found.converged and found.residuals.max() > 1e-8
    true = (A @ found.vectors - found.vectors * found.values).norm(dim=0)
    torch.testing.assert_close(found.residuals, true, rtol=1e-3, atol=1e-9)


def test_the_seed_decides_and_the_global_generator_stays() -> None:
    """Two calls would differ, or a training loop's random numbers would change."""
    A = torch.diag(torch.arange(50.0))
    before = torch.get_rng_state()
    first, second = (top_eigenpairs(A, 3, seed=1) for _ in range(2))
    assert torch.equal(first.vectors, second.vectors) and torch.equal(torch.get_rng_state(), before)


def test_bad_arguments_are_refused() -> None:
    """Asking for more pairs than there are would fail somewhere inside."""
    for options in ({"k": 0}, {"k": 4}, {"k": 2, "max_steps": 1}, {"tolerance": 0.0}):
        with pytest.raises(InvalidInput):
            top_eigenpairs(torch.eye(3), **options)  # type: ignore[arg-type]
