"""Full-batch gradient descent of the hidden layer, in coordinates that do not grow with the number of features.

Every update of w_j is a combination of training inputs, so W(t) = W(0) + C(t) X, and with G = X X^T

    Z = W(0) X^T + C G,   f = a^T relu(Z),   g_i = 1 / (1 + exp(y_i f_i)),   C_ji += (lr / n) a_j [Z_ji > 0] y_i g_i

which is gradient descent on the mean logistic loss exactly, at n^2 m flops per step whatever p is.

Shapes: n samples, p features, m neurons; X (n, p), labels y (n,) in {-1, +1}, W (m, p), signs a (m,), C (m, n).
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["GramDescent", "LinearDescent"]


class GramDescent:
    """The two-layer network f(x) = a^T relu(W x), of which W is trained.

    Args:
        weight: W(0) (m, p).
        signs: a (m,).
        inputs: X (n, p).
        labels: y (n,), -1 or +1.
        test: Further inputs (N, p) that `test_values` answers for.
    """

    def __init__(self, weight: Tensor, signs: Tensor, inputs: Tensor, labels: Tensor, test: Tensor) -> None:
        self.start, self.signs, self.inputs, self.labels = weight, signs, inputs, labels
        self.gram, self.cross = inputs @ inputs.T, inputs @ test.T
        self.Z0, self.Z0_test = weight @ inputs.T, weight @ test.T
        self.C = weight.new_zeros(len(weight), len(inputs))

    def values(self) -> Tensor:
        """Return f on the training inputs (n,)."""
        return self.signs @ (self.Z0 + self.C @ self.gram).relu()

    def test_values(self) -> Tensor:
        """Return f on the test inputs (N,)."""
        return self.signs @ (self.Z0_test + self.C @ self.cross).relu()

    def weight(self) -> Tensor:
        """Return the hidden weights W (m, p) as they are now."""
        return self.start + self.C @ self.inputs

    def step(self, lr: float) -> None:
        """Do one step of gradient descent."""
        Z = self.Z0 + self.C @ self.gram
        pull = self.labels * torch.sigmoid(-self.labels * (self.signs @ Z.relu()))
        self.C += lr / len(self.inputs) * self.signs[:, None] * (Z > 0) * pull


class LinearDescent:
    """The linear classifier f(x) = <w, x> from w = 0 on the same loss, with w = X^T c.

    Args:
        inputs: X (n, p).
        labels: y (n,), -1 or +1.
        test: Further inputs (N, p).
    """

    def __init__(self, inputs: Tensor, labels: Tensor, test: Tensor) -> None:
        self.labels = labels
        self.gram, self.cross = inputs @ inputs.T, inputs @ test.T
        self.c = inputs.new_zeros(len(inputs))

    def values(self) -> Tensor:
        """Return f on the training inputs (n,)."""
        return self.c @ self.gram

    def test_values(self) -> Tensor:
        """Return f on the test inputs (N,)."""
        return self.c @ self.cross

    def step(self, lr: float) -> None:
        """Do one step of gradient descent."""
        self.c = self.c + lr / len(self.c) * self.labels * torch.sigmoid(-self.labels * self.values())
