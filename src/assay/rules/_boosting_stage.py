"""A stage of gradient boosting: J hidden units on given features, fitted to residuals by L-BFGS.

Shapes: features phi (N, D), residuals r (N, k); U (J, D), a (J,), V (k, J), c (k,).
"""

from __future__ import annotations

import math

import numpy as np
import torch
from scipy.optimize import minimize
from scipy.special import expit
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["Remembering", "Stage", "fit_and_gradient", "fitted_stage", "fresh_stage", "last_layers", "residual_fit"]

Stage = tuple[Tensor, Tensor, Tensor, Tensor]


def fresh_stage(sizes: tuple[int, int, int], activation: nn.Module, generator: torch.Generator) -> Stage:
    """Draw U, a, V, c for sizes (D, J, k), uniformly within Glorot's bound as scikit-learn does."""
    D, J, k = sizes
    gain = 2 if isinstance(activation, nn.Sigmoid) else 6

    def uniform(fan_in: int, fan_out: int, *shape: int) -> Tensor:
        return math.sqrt(gain / (fan_in + fan_out)) * (2 * torch.rand(*shape, generator=generator) - 1)

    return uniform(D, J, J, D), uniform(D, J, J), uniform(J, k, k, J), uniform(J, k, k)


def residual_fit(h: Tensor, r: Tensor, U: Tensor, V: Tensor, weight_decay: float) -> Tensor:
    """Return half the squared error of h to r, per sample, with weight decay on the weights."""
    return ((h - r).square().sum() + weight_decay * (U.square().sum() + V.square().sum())) / (2 * len(h))


def _with_slope(activation: nn.Module, z: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the activation and its derivative, entry by entry."""
    if isinstance(activation, nn.Sigmoid):
        s = expit(z)
        return s, s * (1 - s)
    if isinstance(activation, nn.Tanh):
        s = np.tanh(z)
        return s, 1 - s * s
    with torch.enable_grad():
        tensor = torch.from_numpy(z).requires_grad_()
        s = activation(tensor.clone())  # it may act in place
        return s.detach().numpy(), torch.autograd.grad(s.sum(), tensor)[0].numpy()


def fit_and_gradient(
    values: np.ndarray, phi: np.ndarray, r: np.ndarray, activation: nn.Module, weight_decay: float
) -> tuple[float, np.ndarray]:
    """Return the residual fit and its gradient by U, a, V, c, all in one vector.

    In NumPy and by hand: a few units on a table take microseconds, automatic differentiation ten times as long.
    """
    U, a, V, c = _unpacked(values, phi.shape[1], r.shape[1])
    s, slope = _with_slope(activation, phi @ U.T + a)
    e = s @ V.T + c - r
    back = (e @ V) * slope
    loss = (np.vdot(e, e) + weight_decay * (np.vdot(U, U) + np.vdot(V, V))) / 2
    parts = back.T @ phi + weight_decay * U, back.sum(0), e.T @ s + weight_decay * V, e.sum(0)
    return float(loss) / len(phi), np.concatenate([part.ravel() for part in parts]) / len(phi)


def _unpacked(values: np.ndarray, D: int, k: int) -> tuple[np.ndarray, ...]:
    J = (len(values) - k) // (D + 1 + k)
    U, a, V, c = np.split(values, np.cumsum([J * D, J, k * J]))
    return U.reshape(J, D), a, V.reshape(k, J), c


def fitted_stage(
    stage: Stage, phi: Tensor, r: Tensor, activation: nn.Module, weight_decay: float, iterations: int
) -> Stage:
    """Minimise the residual fit by L-BFGS from the given weights, in float64 on the CPU."""
    data = [t.detach().cpu().double().numpy() for t in (phi, r)]
    first = torch.cat([part.detach().cpu().double().flatten() for part in stage]).numpy()
    options = {"maxiter": iterations, "gtol": 0.0}
    arguments = (*data, activation, weight_decay)
    found = minimize(fit_and_gradient, first, arguments, jac=True, method="L-BFGS-B", options=options)
    U, a, V, c = (torch.from_numpy(part) for part in _unpacked(found.x, phi.shape[1], r.shape[1]))
    return U, a, V, c


class Remembering:
    """A fixed body that runs once on inputs that come again and again."""

    def __init__(self, body: nn.Module) -> None:
        self.body = body
        self._last: tuple[Tensor, list[int], Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """Return the body's features (N, D) of inputs (N, ...)."""
        state = [*self.body.parameters(), *self.body.buffers()]
        if not state:
            return _vectors(self.body(x))
        versions, last = [t._version for t in state], self._last
        if last is None or last[1] != versions or not torch.equal(last[0], x):
            self._last = last = (x.detach().clone(), versions, _vectors(self.body(x)))
        return last[2]

    def __getstate__(self) -> dict[str, object]:
        return {"body": self.body, "_last": None}


def _vectors(phi: Tensor) -> Tensor:
    if phi.ndim != 2:
        raise InvalidInput(f"the hidden layer must read one vector per sample, but the body gives {tuple(phi.shape)}")
    return phi


def _leaves(module: nn.Module) -> list[nn.Module]:
    # A subclass with a forward of its own is not what its children apply in order.
    if not isinstance(module, nn.Sequential) or type(module).forward is not nn.Sequential.forward:
        return [module]
    return [leaf for child in module for leaf in _leaves(child)]


def last_layers(model: nn.Module) -> tuple[nn.Sequential, nn.Linear, nn.Module, nn.Linear]:
    """Return body, hidden layer, activation and head of a network.

    Raises:
        InvalidInput: If it does not end in Linear - activation - Linear.
    """
    leaves = _leaves(model)
    if len(leaves) >= 3 and not list(leaves[-2].parameters()):
        hidden, activation, head = leaves[-3:]
        if isinstance(hidden, nn.Linear) and isinstance(head, nn.Linear) and hidden.bias is not None is not head.bias:
            _check_unit_by_unit(activation)
            return nn.Sequential(*leaves[:-3]), hidden, activation, head
    end = " - ".join(type(leaf).__name__ for leaf in leaves[-3:])
    raise InvalidInput(
        "gradient boosting builds the last hidden layer and the head: it needs an nn.Sequential that ends in Linear - "
        f"activation - Linear, with biases, and this {type(model).__name__} ends in {end}"
    )


def _check_unit_by_unit(activation: nn.Module) -> None:
    z = torch.linspace(-2, 2, 8).view(2, 4)
    whole = activation(z.clone())
    if whole.shape != z.shape or not torch.allclose(whole[:, :3], activation(z[:, :3])):
        raise InvalidInput(f"units are added a few at a time, so {type(activation).__name__} must act on each alone")
