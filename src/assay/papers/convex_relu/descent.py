"""The network's own objective by L-BFGS and by Adam, and adversarial training by projected gradients, in NumPy.

The baselines of convex-relu: min l((X U)_+ a, y) + beta/2 (|U|^2 + |a|^2), from random starts. Shapes: U (m, d), a (m,).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import minimize

__all__ = ["Network", "adam", "lbfgs"]

Array = NDArray[np.float64]


class Network:
    """The objective and its gradient at weights in one vector (m (d + 1),), for squared or hinge loss.

    Args:
        X: Data (n, d).
        y: Targets (n,).
        width: m.
        beta: Weight decay.
        loss: "squared" (half the squared error) or "hinge", both sums.
        radius: Per feature (d,), how far an attack moves it; all 0 for none. The attack is 10 projected sign steps.
    """

    def __init__(self, X: Array, y: Array, width: int, beta: float, loss: str, radius: Array) -> None:
        self.X, self.y, self.width, self.beta, self.loss, self.radius = X, y, width, beta, loss, radius

    def start(self, generator: np.random.Generator) -> Array:
        """Return random weights, both layers with outputs of about unit size."""
        m, d = self.width, self.X.shape[1]
        U, a = generator.standard_normal((m, d)) / np.sqrt(d), generator.standard_normal(m) / np.sqrt(m)
        return np.concatenate([U.ravel(), a])

    def split(self, weights: Array) -> tuple[Array, Array]:
        """Return U (m, d) and a (m,)."""
        return weights[: -self.width].reshape(self.width, -1), weights[-self.width :]

    def __call__(self, weights: Array) -> tuple[float, Array]:
        """Return the objective, on attacked data where there is a radius, and its gradient."""
        U, a = self.split(weights)
        X = self._attacked(U, a) if self.radius.any() else self.X
        h = X @ U.T
        z = np.maximum(h, 0)
        value, slope = self._loss(z @ a)
        hidden = ((h > 0) * np.outer(slope, a)).T @ X
        gradient = np.concatenate([hidden.ravel(), z.T @ slope]) + self.beta * weights
        return value + self.beta / 2 * float(weights @ weights), gradient

    def _loss(self, z: Array) -> tuple[float, Array]:
        if self.loss == "squared":
            return 0.5 * float(((z - self.y) ** 2).sum()), z - self.y
        margin = 1 - self.y * z
        return float(np.maximum(margin, 0).sum()), np.where(margin > 0, -self.y, 0.0)

    def _attacked(self, U: Array, a: Array) -> Array:
        X = self.X
        for _ in range(10):
            uphill = -self.y[:, None] * (((X @ U.T > 0) * a) @ U)
            X = np.clip(X + 0.25 * self.radius * np.sign(uphill), self.X - self.radius, self.X + self.radius)
        return X


def lbfgs(objective: Callable[[Array], tuple[float, Array]], start: Array, steps: int) -> Array:
    """Return where SciPy's L-BFGS ends."""
    options = {"maxiter": steps, "maxfun": 2 * steps, "ftol": 1e-13, "gtol": 1e-9}
    return np.asarray(minimize(objective, start, jac=True, method="L-BFGS-B", options=options).x)


def adam(objective: Callable[[Array], tuple[float, Array]], start: Array, steps: int, lr: float) -> Array:
    """Return where Adam ends, its rate falling to 0 along a cosine."""
    weights, first, second = start.copy(), np.zeros_like(start), np.zeros_like(start)
    for step in range(1, steps + 1):
        gradient = objective(weights)[1]
        first = 0.9 * first + 0.1 * gradient
        second = 0.999 * second + 0.001 * gradient**2
        rate = lr * (1 + np.cos(np.pi * step / steps)) / 2
        weights = weights - rate * (first / (1 - 0.9**step)) / (np.sqrt(second / (1 - 0.999**step)) + 1e-8)
    return weights
