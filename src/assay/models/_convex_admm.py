"""ADMM for the convex program of a two-layer ReLU network.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), Algorithm 3.1 and its randomised block coordinate descent. With copies
v = u (penalty), s = G u >= 0 (constraints) and scaled duals lam, nu:

    u    <- argmin l(F u, y) + rho/2 |u - v + lam|^2 + rho/2 |G u - s + nu|^2
    v_i  <- max(1 - beta / (rho |u_i + lam_i|), 0) (u_i + lam_i)        s <- max(G u + nu, 0)
    lam  <- lam + t (u - v)                                             nu <- nu + t (G u - s)

The first step is linear for squared loss: (I + F^T F / rho + G^T G) u = F^T y / rho + v - lam + G^T (s - nu).
Symbols as in `_convex_program`; t is the paper's gamma_a / rho.

Departures. (1) G_i^T G_i = X^T X for every pattern, and F sees only v - w: sums and differences of v and w separate, so
that the factor is P d or n wide (whichever is less) instead of 2 P d; the iterates are the same. (2) Logistic and hinge
loss get one more copy, z = F u, with the loss's proximal step, so that the one factor serves them too; the robust hinge
is in `_convex_robust`. (3) Block coordinate
descent scales a block's gradient by the d x d matrix that bounds its curvature instead of by a number.
Cost per iteration: O(n d P) plus the factor squared; block coordinate descent O(n d P) per sweep, and no factor.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from assay.models._convex_losses import Squared
from assay.models._convex_program import ConvexProgram
from assay.models._convex_robust import Cones, RobustFit

__all__ = ["Solution", "solve_admm"]


@dataclass(frozen=True)
class Solution:
    """What ADMM ends with: u (dense, early useful), v (sparse) and the primal residuals |u - v|, |G u - s| per step."""

    u: Tensor
    v: Tensor
    residuals: list[tuple[float, float]]


def solve_admm(
    program: ConvexProgram,
    rho: float,
    iters: int,
    dual_step: float = 1.0,
    coordinate: torch.Generator | None = None,
) -> Solution:
    """Run ADMM from zero; a generator for `coordinate` asks for block coordinate descent in place of the factor."""
    constraints: Halfspaces | Cones = Cones(program, dual_step) if program.robust else Halfspaces(program, dual_step)
    fit = _fit(program, rho, dual_step, constraints.identities, coordinate)
    u, v, lam = program.zeros(), program.zeros(), program.zeros()
    residuals = []
    for _ in range(iters):
        u = fit.minimise(v - lam + constraints.pull(), u)
        v = shrink_blocks(u + lam, program.beta / rho)
        lam = lam + dual_step * (u - v)
        fit.update(u)
        residuals.append(((u - v).norm().item(), constraints.update(u)))
    return Solution(u, v, residuals)


def shrink_blocks(u: Tensor, threshold: float) -> Tensor:
    """Return the proximal point of threshold times the sum of the blocks' lengths."""
    return u * (1 - threshold / u.norm(dim=-1, keepdim=True).clamp_min(1e-300)).clamp_min(0)


class Fit(Protocol):
    """The first step: it knows the loss."""

    def minimise(self, pull: Tensor, u: Tensor) -> Tensor:
        """Return argmin of the loss plus rho/2 (u^T (I + G^T G) u - 2 pull^T u); u is where a search may start."""

    def update(self, u: Tensor) -> None:
        """Update the fit's own copies and duals."""


def _fit(program: ConvexProgram, rho: float, dual_step: float, identities: int, rbcd: torch.Generator | None) -> Fit:
    if rbcd is not None:
        return CoordinateFit(program, rho, rbcd)
    if program.robust:
        return RobustFit(program, rho, dual_step, identities)
    return LinearFit(program, rho) if isinstance(program.loss, Squared) else ProximalFit(program, rho, dual_step)


class Normal:
    """Solve (I + G^T G + weight F^T F) u = b with one Cholesky factor."""

    def __init__(self, program: ConvexProgram, weight: float) -> None:
        X, D = program.X, program.D
        self.program, (P, n), d = program, D.shape, X.shape[1]
        M = torch.eye(d, dtype=X.dtype, device=X.device) + X.T @ X
        self.block = torch.linalg.cholesky(M)
        self.dual = n < P * d
        if self.dual:  # Woodbury's identity: F (I x M)^-1 F^T is an elementwise product of two Gram matrices
            inner = (D.T @ D) * (X @ torch.cholesky_solve(X.T, self.block))
            inner.diagonal().add_(1 / (2 * weight))
        else:
            features = (D.T[:, :, None] * X[:, None, :]).reshape(n, P * d)
            inner = torch.block_diag(*[M] * P) + 2 * weight * features.T @ features
        self.factor = torch.linalg.cholesky(inner)

    def _divide(self, b: Tensor) -> Tensor:
        """Return M^-1 for every block of (P, d)."""
        return torch.cholesky_solve(b.T, self.block).T

    def solve(self, b: Tensor) -> Tensor:
        """Return u (2, P, d): sums and differences of v and w apart, since F sees only the differences."""
        total, difference = self._divide(b[0] + b[1]), b[0] - b[1]
        if self.dual:
            divided, X, D = self._divide(difference), self.program.X, self.program.D
            z = torch.cholesky_solve((divided @ X.T * D).sum(dim=0)[:, None], self.factor)[:, 0]
            difference = divided - self._divide((D * z) @ X)
        else:
            difference = torch.cholesky_solve(difference.reshape(-1, 1), self.factor).view_as(difference)
        return torch.stack([total + difference, total - difference]) / 2


class LinearFit:
    """Squared loss: the first step is one solve."""

    def __init__(self, program: ConvexProgram, rho: float) -> None:
        self.normal, self.constant = Normal(program, 1 / rho), program.predict_transposed(program.y) / rho

    def minimise(self, pull: Tensor, u: Tensor) -> Tensor:
        """Solve the normal equations."""
        return self.normal.solve(self.constant + pull)

    def update(self, u: Tensor) -> None:
        """There is no copy."""


class ProximalFit:
    """Any loss with a proximal step, on a copy z of the predictions."""

    def __init__(self, program: ConvexProgram, rho: float, dual_step: float) -> None:
        self.program, self.rho, self.dual_step = program, rho, dual_step
        self.normal = Normal(program, 1.0)
        self.z, self.mu = torch.zeros_like(program.y), torch.zeros_like(program.y)

    def minimise(self, pull: Tensor, u: Tensor) -> Tensor:
        """Solve the normal equations for the copy at hand."""
        return self.normal.solve(pull + self.program.predict_transposed(self.z - self.mu))

    def update(self, u: Tensor) -> None:
        """Step the copy and its dual."""
        predictions = self.program.predict(u)
        self.z = self.program.loss.proximal(predictions + self.mu, self.program.y, self.rho)
        self.mu = self.mu + self.dual_step * (predictions - self.z)


class CoordinateFit:
    """Smooth losses: sweeps over the blocks in random order, each with one bounded Newton step."""

    def __init__(
        self,
        program: ConvexProgram,
        rho: float,
        generator: torch.Generator,
        sweeps: int = 5,
        tolerance: float = 1e-4,
    ) -> None:
        self.program, self.rho, self.generator = program, rho, generator
        self.sweeps, self.tolerance = sweeps, tolerance
        self.gram = program.X.T @ program.X
        identity = torch.eye(len(self.gram), dtype=self.gram.dtype, device=self.gram.device)
        # F_i^T F_i <= X^T X = G_i^T G_i, so that this bounds each block's second derivative.
        bound = ((program.loss.curvature or 0.0) + rho) * self.gram + rho * identity
        self.factor = torch.linalg.cholesky(bound)

    def minimise(self, pull: Tensor, u: Tensor) -> Tensor:
        """Sweep until a sweep moves u by less than the tolerance, relative to u."""
        u, z = u.clone(), self.program.predict(u)
        for _ in range(self.sweeps):
            moved = 0.0
            for block in torch.randperm(2 * u.shape[1], generator=self.generator).tolist():
                sign, i = divmod(block, u.shape[1])
                step = self._step(u[sign, i], pull[sign, i], z, i, 1 - 2 * sign)
                u[sign, i] += step
                z = z + (1 - 2 * sign) * self.program.D[i] * (self.program.X @ step)
                moved += step.square().sum().item()
            if moved <= self.tolerance**2 * u.square().sum().item():
                break
        return u

    def _step(self, u: Tensor, pull: Tensor, z: Tensor, i: int, sign: int) -> Tensor:
        residual = self.program.loss.gradient(z, self.program.y) * self.program.D[i]
        gradient = sign * (residual @ self.program.X) + self.rho * (u + self.gram @ u - pull)
        return -torch.cholesky_solve(gradient[:, None], self.factor)[:, 0]

    def update(self, u: Tensor) -> None:
        """There is no copy."""


class Halfspaces:
    """G u >= 0 on the copy s."""

    identities = 1

    def __init__(self, program: ConvexProgram, dual_step: float) -> None:
        self.program, self.dual_step = program, dual_step
        self.s = program.constrain(program.zeros())
        self.nu = self.s.clone()

    def pull(self) -> Tensor:
        """Return G^T (s - nu)."""
        return self.program.constrain_transposed(self.s - self.nu)

    def update(self, u: Tensor) -> float:
        """Step copy and dual; return |G u - s|."""
        sides = self.program.constrain(u)
        self.s = (sides + self.nu).clamp_min(0)
        self.nu = self.nu + self.dual_step * (sides - self.s)
        return (sides - self.s).norm().item()
