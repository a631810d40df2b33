"""The convex program whose optimum is that of a two-layer ReLU network with weight decay.

Bai, Gautam and Sojoudi (2023, arXiv:2201.01965), the program (C) over activation patterns (Pilanci and Ergen 2020) and
its form under bounded perturbations of the data:

    min  l(sum_i D_i X (v_i - w_i), y) + beta sum_i (|v_i| + |w_i|)   s.t.  (2 D_i - I) X v_i >= 0, same for w_i
    robust (hinge):  1 - y_k q_k x_k + e |q_k|_1 in the loss, q_k = sum_i d_ik (v_i - w_i), and >= e |v_i|_1

Shapes: n samples, d features, P patterns; X (n, d), y (n,), D (P, n), a solution u (2, P, d) holds v and w. F u are
the predictions (n,), G u the constraints' left sides (2, P, n), H u the q_k (n, d). e (d,) is the radius per feature.
Cost: each map and its transpose O(n d P) in time.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from assay.models._convex_losses import ConvexLoss

__all__ = ["ConvexProgram"]


@dataclass(frozen=True)
class ConvexProgram:
    """Data, patterns, loss, decay and radius of one program, with its linear maps; all in float64."""

    X: Tensor
    y: Tensor
    D: Tensor
    loss: ConvexLoss
    beta: float
    radius: Tensor

    @property
    def robust(self) -> bool:
        """Whether the data may be perturbed."""
        return bool((self.radius > 0).any())

    def zeros(self) -> Tensor:
        """Return the solution of all zeros (2, P, d)."""
        return self.X.new_zeros(2, len(self.D), self.X.shape[1])

    def predict(self, u: Tensor) -> Tensor:
        """Return F u (n,)."""
        return ((u[0] - u[1]) @ self.X.T * self.D).sum(dim=0)

    def predict_transposed(self, r: Tensor) -> Tensor:
        """Return F^T r (2, P, d)."""
        half = (self.D * r) @ self.X
        return torch.stack([half, -half])

    def constrain(self, u: Tensor) -> Tensor:
        """Return G u (2, P, n)."""
        return u @ self.X.T * (2 * self.D - 1)

    def constrain_transposed(self, s: Tensor) -> Tensor:
        """Return G^T s (2, P, d)."""
        return (s * (2 * self.D - 1)) @ self.X

    def local_weights(self, u: Tensor) -> Tensor:
        """Return H u (n, d), the linear map that the network is at each sample."""
        return self.D.T @ (u[0] - u[1])

    def local_weights_transposed(self, q: Tensor) -> Tensor:
        """Return H^T q (2, P, d)."""
        half = self.D @ q
        return torch.stack([half, -half])

    def objective(self, u: Tensor) -> Tensor:
        """Return the loss (the robust bound, if perturbed) plus the group penalty."""
        z = self.predict(u)
        if self.robust:  # the hinge of y z lowered by the worst perturbation
            z = z - self.y * (self.local_weights(u).abs() @ self.radius)
        return self.loss.value(z, self.y) + self.beta * u.norm(dim=-1).sum()

    def violation(self, u: Tensor) -> Tensor:
        """Return by how much the worst constraint is missed; 0 for a feasible u."""
        slack = self.constrain(u) - (u.abs() @ self.radius)[..., None]
        return (-slack).max().clamp_min(0)
