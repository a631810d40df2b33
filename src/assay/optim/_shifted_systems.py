"""Solves (H + lam I) d = -g for one symmetric H and g and several lam, in whichever form H is known.

    dense (P, P)           a Cholesky factorisation per lam
    rows R, H = R^T R      one eigendecomposition of R R^T (r, r) for all lam (Woodbury's formula, with the part of g
                           outside the span of the rows kept apart, as a small lam would divide its rounding). R R^T has
                           the squared condition of R: eigenvalues are off by rounding times the largest, and solutions
                           for lam near that or below it are wrong where there are such small ones
    products v -> H v      Lanczos from g until the system of the smallest lam is solved, or 200 products are spent and
                           their space has to do; the Krylov space of a shifted matrix is that of the matrix, so larger
                           lam need no further product

Every solver answers None where H + lam I is not positive definite (to rounding), which only dense matrices and products
can be.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["DenseSystem", "KrylovSystem", "RowsSystem", "ShiftedSystem"]

MOST_PRODUCTS = 200
CHECK_EVERY = 5


class ShiftedSystem(Protocol):
    """What all have in common."""

    def solve(self, lam: float) -> Tensor | None:
        """Return d (P,), or None where the matrix is not positive definite."""


class DenseSystem:
    """H (P, P) and g (P,)."""

    def __init__(self, H: Tensor, g: Tensor) -> None:
        self.H, self.g = H, g

    def solve(self, lam: float) -> Tensor | None:
        """Return -(H + lam I)^-1 g."""
        shifted = self.H.clone()
        shifted.diagonal().add_(lam)
        factor, info = torch.linalg.cholesky_ex(shifted)
        if info.item():
            return None
        return -torch.cholesky_solve(self.g[:, None], factor)[:, 0]


class RowsSystem:
    """R (r, P), of which H = R^T R, and g (P,)."""

    def __init__(self, rows: Tensor, g: Tensor) -> None:
        values, vectors = torch.linalg.eigh(rows @ rows.T)
        eps = torch.finfo(g.dtype).eps
        kept = values > len(values) * eps * values.amax().clamp(min=torch.finfo(g.dtype).tiny)
        self.values = values[kept]
        self.basis = (vectors[:, kept].T @ rows) / self.values.sqrt()[:, None]
        self.within = self.basis @ g
        outside = g - self.basis.T @ self.within
        outside = outside - self.basis.T @ (self.basis @ outside)
        # what rounding left must not be divided by a small lam
        noise = 10 * len(values) ** 0.5 * eps * g.norm()
        self.outside = torch.where(outside.norm() > noise, outside, torch.zeros_like(outside))

    def solve(self, lam: float) -> Tensor | None:
        """Return -(R^T R + lam I)^-1 g."""
        return -(self.basis.T @ (self.within / (self.values + lam)) + self.outside / lam)


class KrylovSystem:
    """A function v -> H v, g (P,), and the smallest lam that will be asked for; nothing to solve where not `finite`."""

    def __init__(self, product: Callable[[Tensor], Tensor], g: Tensor, lam: float) -> None:
        self.length = g.norm()
        vectors, alphas, betas = [g / self.length], [], []
        tolerance = torch.finfo(g.dtype).eps ** 0.5
        for count in range(1, min(MOST_PRODUCTS, len(g)) + 1):
            w = product(vectors[-1])
            alphas.append(torch.dot(w, vectors[-1]))
            basis = torch.stack(vectors)
            for _ in range(2):  # against all, twice: the recurrence alone loses orthogonality
                w = w - basis.T @ (basis @ w)
            betas.append(w.norm())
            self.finite = bool(betas[-1].isfinite())
            if not self.finite:
                return
            if betas[-1] <= tolerance**2 * self.length or len(vectors) == len(g):
                break
            if count % CHECK_EVERY == 0 and self._residual(alphas, betas, lam) <= tolerance:
                break
            vectors.append(w / betas[-1])
        count = len(alphas)
        self.basis = torch.stack(vectors[:count])
        self.values, self.rotation = torch.linalg.eigh(_tridiagonal(alphas, betas))

    def solve(self, lam: float) -> Tensor | None:
        """Return -(H + lam I)^-1 g, its residual the root of rounding times |g|, or more if products ran out."""
        if self.values[0] + lam <= 0:
            return None
        y = self.rotation @ (self.rotation[0] / (self.values + lam))
        return -self.length * (self.basis.T @ y)

    def _residual(self, alphas: list[Tensor], betas: list[Tensor], lam: float) -> float:
        """Return the residual's length relative to that of g."""
        T = _tridiagonal(alphas, betas)
        first = torch.zeros_like(T[0])
        first[0] = 1.0
        y = torch.linalg.solve(T + lam * torch.eye(len(T), dtype=T.dtype, device=T.device), first)
        return float(betas[-1] * y[-1].abs())


def _tridiagonal(alphas: list[Tensor], betas: list[Tensor]) -> Tensor:
    T = torch.diag(torch.stack(alphas))
    if len(alphas) > 1:
        beside = torch.stack(betas[: len(alphas) - 1])
        T = T + torch.diag(beside, 1) + torch.diag(beside, -1)
    return T
