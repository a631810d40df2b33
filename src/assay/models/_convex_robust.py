"""The robust hinge in ADMM: its copy of each sample's linear map, and the cones of its constraints.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), the program of adversarial training with hinge loss. They hand it to a
general solver; here ADMM's copies q = H u (loss) and s = G u, a = u (constraints) have exact proximal steps, each the
root of one scalar function per sample or block that is made of lines.

Symbols as in `_convex_program`; t is the dual step. Cost per iteration: O(n (P + d log d)) for each of a few steps of
Newton's method or bisection, and O(P^2 d).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.models._convex_program import ConvexProgram

__all__ = ["Cones", "RobustFit", "project_on_cones", "robust_hinge_proximal"]


class Cones:
    """G u >= e |u|_1 in each block, on copies s of G u and a of u."""

    identities = 2

    def __init__(self, program: ConvexProgram, dual_step: float) -> None:
        self.program, self.dual_step = program, dual_step
        self.a, self.kappa = program.zeros(), program.zeros()
        self.s = program.constrain(program.zeros())
        self.nu = self.s.clone()

    def pull(self) -> Tensor:
        """Return G^T (s - nu) + a - kappa."""
        return self.program.constrain_transposed(self.s - self.nu) + self.a - self.kappa

    def update(self, u: Tensor) -> float:
        """Step copies and duals; return the joint residual."""
        sides = self.program.constrain(u)
        self.a, self.s = project_on_cones(u + self.kappa, sides + self.nu, self.program.radius)
        self.kappa = self.kappa + self.dual_step * (u - self.a)
        self.nu = self.nu + self.dual_step * (sides - self.s)
        return ((sides - self.s).square().sum() + (u - self.a).square().sum()).sqrt().item()


def project_on_cones(a: Tensor, s: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Return the nearest (a, s) with every s_k >= sum_j radius_j |a_j|, block by block; a (..., d), s (..., n).

    With multiplier m, a shrinks by m radius, tau = sum_j radius_j |a_j|, s = max(s, tau), and sum_k (tau - s_k)_+ = m.
    """
    m = torch.zeros_like(a[..., :1])
    while True:  # Newton's method from below: the surplus is convex in m and made of finitely many lines
        shrunk = (a.abs() - m * radius).clamp_min(0)
        tau = (shrunk @ radius)[..., None]
        excess = tau - s
        surplus = excess.clamp_min(0).sum(dim=-1, keepdim=True) - m
        fall = (shrunk > 0).to(a) @ radius.square()
        step = surplus / (1 + (excess > 0).sum(dim=-1, keepdim=True) * fall[..., None])
        if not bool((step > 1e-12 * (1 + m)).any()):
            return a.sign() * shrunk, torch.maximum(s, tau)
        m = m + step.clamp_min(0)


class RobustFit:
    """The robust hinge on the copy q of H u; (c I + G^T G + H^T H) is diagonal in two small bases."""

    def __init__(self, program: ConvexProgram, rho: float, dual_step: float, identities: int) -> None:
        self.program, self.rho, self.dual_step = program, rho, dual_step
        overlaps, self.patterns = torch.linalg.eigh(program.D @ program.D.T)
        gram, self.features = torch.linalg.eigh(program.X.T @ program.X)
        self.total = identities + gram
        self.difference = self.total + 2 * overlaps.clamp_min(0)[:, None]
        self.q = torch.zeros_like(program.X)
        self.mu = self.q.clone()

    def minimise(self, pull: Tensor, u: Tensor) -> Tensor:
        """Solve for sums and differences of v and w in the two bases."""
        b = pull + self.program.local_weights_transposed(self.q - self.mu)
        total = ((b[0] + b[1]) @ self.features / self.total) @ self.features.T
        turned = self.patterns.T @ (b[0] - b[1]) @ self.features / self.difference
        difference = self.patterns @ turned @ self.features.T
        return torch.stack([total + difference, total - difference]) / 2

    def update(self, u: Tensor) -> None:
        """Step the copy and its dual."""
        weights = self.program.local_weights(u)
        self.q = robust_hinge_proximal(weights + self.mu, self.program.X, self.program.y, self.program.radius, self.rho)
        self.mu = self.mu + self.dual_step * (weights - self.q)


def robust_hinge_proximal(c: Tensor, X: Tensor, y: Tensor, radius: Tensor, rho: float) -> Tensor:
    """Return argmin over q (n, d) of sum_k (1 - y_k x_k q_k + radius |q_k|)_+ + rho/2 |q - c|^2.

    The hinge is the largest t (1 - ...) over t in [0, 1]; for given t, q is a shrunken step.
    """

    def at(t: Tensor) -> Tensor:
        moved = c + t * y[:, None] * X / rho
        return moved.sign() * (moved.abs() - t * radius / rho).clamp_min(0)

    def slope(t: Tensor) -> Tensor:
        q = at(t)
        return (1 - y * (X * q).sum(dim=1) + q.abs() @ radius)[:, None]

    # the slope is made of lines in t, which meet where an entry of q reaches 0 or leaves it
    tilt, shrink = y[:, None] * X / rho, radius / rho
    kinks = torch.cat([c / (shrink - tilt), -c / (shrink + tilt)], dim=1).nan_to_num().clamp(0, 1)
    kinks = F.pad(F.pad(kinks, (1, 0)), (0, 1), value=1.0).sort(dim=1).values
    low = torch.zeros(len(c), 1, dtype=torch.long, device=c.device)
    high = low + kinks.shape[1] - 1
    for _ in range(kinks.shape[1].bit_length()):
        middle = (low + high) // 2
        rising = slope(kinks.gather(1, middle)) > 0
        low, high = torch.where(rising, middle, low), torch.where(rising, high, middle)
    left, right = kinks.gather(1, low), kinks.gather(1, high)
    share = slope(left) / (slope(left) - slope(right)).clamp_min(1e-300)
    return at(left + share.clamp(0, 1) * (right - left))
