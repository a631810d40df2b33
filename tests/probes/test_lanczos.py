"""The Lanczos step: orthogonality to rounding, and the three-term recurrence."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.probes._lanczos import orthogonalise, random_unit, step, tridiagonal


def test_the_basis_is_orthonormal_and_projects_to_t() -> None:
    """Vectors would drift towards converged eigenvectors, or alpha and beta would not be the projected matrix."""
    P, m = 200, 60
    values = torch.cat([torch.linspace(0, 1e-2, P - 10, dtype=torch.float64), torch.logspace(0, 2, 10).double()])
    basis = torch.empty(m, P, dtype=torch.float64)
    basis[0] = random_unit(P, seed=0, like=basis)
    alphas, betas = [], [0.0]
    for j in range(m):
        w = values * basis[j]
        alpha, beta = step(w, basis[: j + 1], betas[-1])
        alphas.append(alpha)
        betas.append(beta)
        if j + 1 < m:
            basis[j + 1] = w / beta
    assert (basis @ basis.T - torch.eye(m)).abs().max() < 1e-10
    T = basis * values @ basis.T
    torch.testing.assert_close(tridiagonal(alphas, betas[1:]), T, rtol=0, atol=1e-10)


def test_heavy_cancellation_takes_a_second_pass() -> None:
    """One pass against a vector that is almost in the span leaves its rounding errors, amplified."""
    basis = torch.eye(50, dtype=torch.float64)[:20]
    w = torch.ones(50, dtype=torch.float64)
    w[20:] = 1e-12
    orthogonalise(w, basis)
    assert (basis @ w).abs().max() < 1e-15 * w.norm()


def test_a_product_that_is_not_finite_is_refused() -> None:
    """NaN would run through all steps and end in LAPACK's error."""
    basis = torch.eye(3)[:1]
    with pytest.raises(InvalidInput, match="not finite"):
        step(torch.tensor([0.0, float("nan"), 1.0]), basis, 0.0)


def test_random_directions_are_isotropic() -> None:
    """E v v^T would not be I / P, and every trace would be biased."""
    like = torch.zeros(1, dtype=torch.float64)
    v = torch.stack([random_unit(5, seed=s, like=like) for s in range(4000)])
    torch.testing.assert_close(v.T @ v / 4000, torch.eye(5, dtype=torch.float64) / 5, rtol=0, atol=0.02)
