"""Spectral density of a symmetric matrix from products alone, with errors: stochastic Lanczos quadrature.

Ghorbani, Krishnan, Xiao (2019, arXiv:1901.10159), algorithm 1; Golub and Welsch (1969). For a random unit vector v, m
Lanczos steps give T = U diag(theta) U^T; theta with weights omega_l = U_1l^2 is the Gauss quadrature of v's measure:

    (1/P) tr q(A)  =  E_v sum_l omega_l q(theta_l)      exact over v for polynomials q of degree up to 2m - 1
    density(t)     =  mean over draws of sum_l omega_l N(t; theta_l, sigma^2)

Kernel widths sigma: "ghorbani" sigma^2 = 1e-5 max(1, range), normalised to integral one; "papyan" (2019,
arXiv:1901.08244, appendix) sigma = 2 / ((m-1) sqrt(8 ln 3)) after mapping the range, widened by 5 %, to [-1, 1];
"papyan-log" the same for log(|theta| + 1e-5) with ln 1.04; or none: read `nodes` and `weights`.

Symbols: A (P, P), r draws, m steps; nodes theta, weights omega, residuals (r, m), padded with weight 0 where a run
ended early because its space was exhausted.

Departures: full reorthogonalisation (one pass, a second where it is needed), since without it single eigenvalues come
as several nodes. Standard errors over draws are new here.
Cost: r m products, 4 r m^2 P flops, m P numbers in memory for each draw that advances together.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._lanczos import random_unit, step, tridiagonal
from assay.probes.eigenpairs import SymmetricMap

__all__ = ["Density", "Estimate", "SpectralDensity", "estimate_spectrum"]

Kernel = Literal["ghorbani", "papyan", "papyan-log"]


class Estimate(NamedTuple):
    """A mean over draws and its standard error, NaN for a single draw."""

    value: float
    error: float


class Density(NamedTuple):
    """A smoothed density on a grid: `values` with standard errors `errors` at the points `grid`, all (n,) float64."""

    grid: Tensor
    values: Tensor
    errors: Tensor


@dataclass(frozen=True)
class SpectralDensity:
    """What stochastic Lanczos quadrature found.

    Attributes:
        nodes: Ritz values (r, m), float64, rising.
        weights: Their weights (r, m); each row sums to one.
        residuals: How far each node is from an eigenvalue at most (r, m).
        size: P.
    """

    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    size: int

    def moment(self, degree: int) -> Estimate:
        """Return tr(A^degree) / P."""
        return _estimate((self.weights * self.nodes**degree).sum(1))

    def trace(self, degree: int = 1) -> Estimate:
        """Return tr(A^degree)."""
        value, error = self.moment(degree)
        return Estimate(self.size * value, self.size * error)

    def share(self, low: float, high: float) -> Estimate:
        """Return the share of eigenvalues in the open interval (low, high)."""
        return _estimate((self.weights * ((self.nodes > low) & (self.nodes < high))).sum(1))

    def extremes(self) -> tuple[float, float]:
        """Return the smallest and the largest node of weight above rounding."""
        seen = self.nodes[self.weights > 0]
        return seen.min().item(), seen.max().item()

    def largest(self, tolerance: float = 1e-3) -> Tensor:
        """Return the largest eigenvalues, falling, down to where the draws stop agreeing with eigenvalues.

        Args:
            tolerance: A node counts as an eigenvalue if its residual is below this times its magnitude.

        Returns:
            The longest such list (k,) that a draw gives.
        """
        found = []
        for nodes, weights, residuals in zip(self.nodes, self.weights, self.residuals, strict=True):
            seen = weights > 0
            theta, off = nodes[seen].flip(0), residuals[seen].flip(0)
            good = (off <= tolerance * theta.abs()).long().cumprod(0).sum()
            found.append(theta[:good])
        return max(found, key=len)

    def density(self, kernel: Kernel = "ghorbani", points: int = 2000) -> Density:
        """Return the smoothed density.

        Args:
            kernel: The rule for its width, see the head of this module.
            points: Of the grid.

        Raises:
            InvalidInput: If there is no such kernel.
        """
        if kernel not in ("ghorbani", "papyan", "papyan-log"):
            raise InvalidInput(f"kernel must be 'ghorbani', 'papyan' or 'papyan-log', not {kernel!r}")
        theta = (self.nodes.abs() + 1e-5).log() if kernel == "papyan-log" else self.nodes
        low, high = theta.amin(1).mean().item(), theta.amax(1).mean().item()
        if kernel == "ghorbani":
            sigma, margin = math.sqrt(1e-5 * max(1.0, high - low)), 0.01
        else:
            kappa, half = (1.04 if kernel == "papyan-log" else 3.0), max(1.05 * (high - low) / 2, 1e-12)
            sigma, margin = half * 2 / ((max(theta.shape[1], 2) - 1) * math.sqrt(8 * math.log(kappa))), 0.05 * half
        grid = torch.linspace(low - margin, high + margin, points, dtype=torch.float64)
        draws = torch.stack([_smoothed(grid, t, w, sigma) for t, w in zip(theta, self.weights, strict=True)])
        if kernel == "ghorbani":
            draws = draws / torch.trapezoid(draws, grid, dim=1)[:, None]
        error = draws.std(0) / math.sqrt(len(draws)) if len(draws) > 1 else torch.full_like(grid, math.nan)
        return Density(grid, draws.mean(0), error)


def estimate_spectrum(
    matrix: SymmetricMap,
    *,
    steps: int = 90,
    draws: int = 10,
    reorthogonalize: bool = True,
    seed: int = 0,
    memory: int = 2**30,
) -> SpectralDensity:
    """Estimate the spectral density of a symmetric matrix.

    Args:
        matrix: Symmetric (P, P); `CurvatureMatrix` or a tensor.
        steps: m, the products per draw; at most P are taken.
        draws: r, random start vectors; errors need at least 2.
        reorthogonalize: False keeps three vectors per draw instead of m, and lets ghosts appear.
        seed: Of the first start vector; the others follow.
        memory: Bytes that the bases may take; as many draws advance together as fit.

    Raises:
        InvalidInput: If steps or draws are below 1, one basis does not fit, or a product is not finite.

    Example:
        >>> import torch
        >>> found = estimate_spectrum(torch.diag(torch.tensor([0.0, 0.0, 0.0, 4.0])), steps=4, draws=2)
        >>> [round(abs(v), 4) for v in found.extremes()]
        [0.0, 4.0]
    """
    P = matrix.shape[0]
    if steps < 1 or draws < 1:
        raise InvalidInput(f"steps and draws must be at least 1, not {steps} and {draws}")
    m = min(steps, P)
    basis = (m if reorthogonalize else 3) * P * matrix.dtype.itemsize
    if basis > memory:
        raise InvalidInput(
            f"{m} vectors of {P} parameters take {basis / 2**30:.1f} GiB, more than memory={memory / 2**30:.1f} GiB; "
            "take fewer steps, a part of the parameters or reorthogonalize=False"
        )
    found: list[tuple[Tensor, Tensor, Tensor]] = []
    for first in range(0, draws, memory // basis):
        seeds = range(seed + first, seed + min(draws, first + memory // basis))
        found += _runs(matrix, seeds, m, reorthogonalize)
    nodes, weights, residuals = (torch.stack(parts) for parts in zip(*found, strict=True))
    return SpectralDensity(nodes, weights, residuals, P)


def _runs(matrix: SymmetricMap, seeds: range, m: int, full: bool) -> list[tuple[Tensor, Tensor, Tensor]]:
    """Advance one Lanczos run per seed together; return each run's nodes, weights and residuals."""
    P, r = matrix.shape[0], len(seeds)
    V = torch.empty(r, m if full else 2, P, dtype=matrix.dtype, device=matrix.device)
    for i, seed in enumerate(seeds):
        V[i, 0] = random_unit(P, seed=seed, like=V)
    alphas: list[list[float]] = [[] for _ in seeds]
    betas: list[list[float]] = [[0.0] for _ in seeds]
    active = list(range(r))
    for j in range(m):
        if not active:
            break
        last = j if full else min(j, 1)
        products = _times_rows(matrix, V[active, last])
        for i, w in zip(list(active), products, strict=True):
            alpha, beta = step(w, V[i, : last + 1], betas[i][-1], full=full)
            alphas[i].append(alpha)
            exhausted = beta <= max(1e-10, 10 * torch.finfo(V.dtype).eps) * max(abs(a) for a in alphas[i])
            betas[i].append(0.0 if exhausted or j + 1 == P else beta)
            if exhausted:
                active.remove(i)
            elif j + 1 < m:
                if not full and j > 0:
                    V[i, 0] = V[i, 1]
                torch.mul(w, 1 / beta, out=V[i, j + 1 if full else 1])
    return [_quadrature(a, b, m) for a, b in zip(alphas, betas, strict=True)]


def _quadrature(alphas: list[float], betas: list[float], m: int) -> tuple[Tensor, Tensor, Tensor]:
    theta, U = torch.linalg.eigh(tridiagonal(alphas, betas[1:]))
    none = theta.new_zeros(m - len(theta))  # of a run that ended early
    return (
        torch.cat([theta, none + theta[-1]]),
        torch.cat([U[0].square(), none]),
        torch.cat([betas[-1] * U[-1].abs(), none]),
    )


def _times_rows(matrix: SymmetricMap, rows: Tensor) -> Tensor:
    """Return the matrix times each row; `CurvatureMatrix` does it without transposing."""
    found: Tensor = matrix.times_rows(rows) if hasattr(matrix, "times_rows") else (matrix @ rows.T).T.contiguous()
    return found


def _smoothed(grid: Tensor, theta: Tensor, omega: Tensor, sigma: float) -> Tensor:
    return torch.exp(-(((grid[:, None] - theta) / sigma) ** 2) / 2) @ omega / (sigma * math.sqrt(2 * math.pi))


def _estimate(draws: Tensor) -> Estimate:
    error = draws.std().item() / math.sqrt(len(draws)) if len(draws) > 1 else math.nan
    return Estimate(draws.mean().item(), error)
