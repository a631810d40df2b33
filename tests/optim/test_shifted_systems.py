"""Solvers for several shifts: against a dense solve, where the shift is small, and where the matrix is indefinite."""

from __future__ import annotations

import pytest
import torch

from assay.optim._shifted_systems import DenseSystem, KrylovSystem, RowsSystem


@pytest.mark.parametrize("rank", [3, 9])
@pytest.mark.parametrize("lam", [1e-6, 1e-2, 10.0])
def test_all_forms_solve_the_same_system(rank: int, lam: float) -> None:
    """A form would solve for another shift, or lose digits where the matrix is singular and the shift small."""
    generator = torch.Generator().manual_seed(rank)
    R = torch.randn(rank, 12, generator=generator, dtype=torch.float64)
    inside = R.T @ torch.randn(rank, generator=generator, dtype=torch.float64)
    for g in (inside, torch.randn(12, generator=generator, dtype=torch.float64)):
        expected = -torch.linalg.solve(R.T @ R + lam * torch.eye(12, dtype=torch.float64), g)
        for system in (DenseSystem(R.T @ R, g), RowsSystem(R, g), KrylovSystem((R.T @ R).mv, g, 1e-6)):
            found = system.solve(lam)
            assert found is not None
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6 * expected.norm().item())


def test_rows_keep_a_gradient_in_their_span_finite_for_any_shift() -> None:
    """Rounding would be divided by the shift: a Fisher matrix of few samples and a large radius give a wild step."""
    R = torch.randn(3, 40, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = R.mean(0)
    found = RowsSystem(R, g).solve(1e-30)
    torch.testing.assert_close(found, -torch.linalg.pinv(R.T @ R) @ g, rtol=1e-8, atol=1e-10)


def test_indefinite_matrices_are_reported() -> None:
    """A step along negative curvature would be taken as if the model had a minimum."""
    H, g = torch.diag(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64)), torch.ones(3, dtype=torch.float64)
    for system in (DenseSystem(H, g), KrylovSystem(H.mv, g, 1.0)):
        assert system.solve(1.0) is None
        torch.testing.assert_close(system.solve(5.0), -1 / torch.tensor([6.0, 3.0, 8.0], dtype=torch.float64))
