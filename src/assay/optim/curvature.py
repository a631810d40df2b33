"""Curvature matrices of an objective, for optimizers that ask for one: Gauss-Newton, empirical Fisher, products.

Each function here returns a curvature: a function of the list of parameters that gives, at their present values,

    Tensor (P, P)     a dense symmetric matrix
    LowRank(rows)     H = R^T R of rows R (r, P), never formed
    v -> H v          products with vectors (P,)

with P entries in the order of the list. For outputs u(x) in R^K (all samples together), J = du/dx, an objective
f(x) = l(u(x)), and losses f_i of N samples whose mean is f:

    gauss_newton       J^T (d2 l / du2) J, positive semidefinite for convex l; exact where u is linear
    empirical_fisher   1/N sum_i g_i g_i^T with g_i = df_i/dx, for the labels of the data
    hessian_products   v -> (d2 f / dx2) v

Reference: Semenov, Jaggi, Doikov, "Gradient-Normalized Smoothness for Optimization with Approximate Hessians"
(arXiv:2506.13710), section on approximations; they are the field's usual matrices.
Cost: Gauss-Newton K backward passes, P through the gradient of l alone, K P^2 operations and memory K P; Fisher N
backward passes and memory N P; one product about two gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["LowRank", "empirical_fisher", "gauss_newton", "hessian_products"]

AT_ONCE = 256  # backward passes in one batched call


@dataclass(frozen=True)
class LowRank:
    """The matrix R^T R of rows R (r, P).

    Example:
        >>> LowRank(torch.tensor([[1.0, 2.0]])).dense()
        tensor([[1., 2.],
                [2., 4.]])
    """

    rows: Tensor

    def dense(self) -> Tensor:
        """Return R^T R (P, P)."""
        return self.rows.T @ self.rows


Matrix = Tensor | LowRank | Callable[[Tensor], Tensor]
Curvature = Callable[[Sequence[Tensor]], Matrix]


def gauss_newton(forward: Callable[[], Tensor], loss: Callable[[Tensor], Tensor]) -> Curvature:
    """Return the generalised Gauss-Newton matrix of `loss(forward())` as a curvature.

    Args:
        forward: Computes outputs of any shape from the parameters.
        loss: Scalar, twice differentiable in the outputs.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> curvature = gauss_newton(lambda: w * torch.tensor([1.0, 3.0]), lambda u: u.square().sum() / 2)
        >>> curvature([w])
        tensor([[1., 0.],
                [0., 9.]])
    """

    def matrix(params: Sequence[Tensor]) -> Tensor:
        with torch.enable_grad():
            outputs = forward()
            J = jacobian(outputs, params)
            u = outputs.detach().requires_grad_()
            (slope,) = torch.autograd.grad(loss(u), u, create_graph=True)
        if not slope.requires_grad:  # linear in the outputs
            return J.new_zeros(J.shape[1], J.shape[1])
        SJ = torch.cat([_pull(slope, [u], V.reshape(-1, *u.shape)) for V in J.T.split(AT_ONCE)]).T
        H = J.T @ SJ
        return (H + H.T) / 2

    return matrix


def empirical_fisher(losses: Callable[[], Tensor]) -> Curvature:
    """Return the uncentred second moment of the samples' gradients as a curvature of rank N.

    Args:
        losses: Computes the losses (N,) of the samples, with the data's own labels.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0]))
        >>> curvature = empirical_fisher(lambda: w * torch.tensor([1.0, 3.0]))
        >>> round(curvature([w]).dense().item(), 5)  # (1 + 9) / 2
        5.0
    """

    def matrix(params: Sequence[Tensor]) -> LowRank:
        with torch.enable_grad():
            values = losses()
        if values.ndim != 1:
            raise InvalidInput(f"losses() must return one loss per sample (N,), got shape {tuple(values.shape)}")
        return LowRank(jacobian(values, params) / len(values) ** 0.5)

    return matrix


def hessian_products(objective: Callable[[], Tensor]) -> Curvature:
    """Return products with the exact Hessian of `objective()` as a curvature, for many parameters.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> product = hessian_products(lambda: (w**3).sum() / 6)([w])
        >>> product(torch.tensor([1.0, 1.0]))
        tensor([1., 2.])
    """

    def matrix(params: Sequence[Tensor]) -> Callable[[Tensor], Tensor]:
        with torch.enable_grad():
            gradient = flat_gradient(objective(), params, create_graph=True)
        return lambda v: _pull(gradient, params, v[None])[0]

    return matrix


def flat_gradient(value: Tensor, params: Sequence[Tensor], *, create_graph: bool = False) -> Tensor:
    """Return the gradient (P,), zero where the value does not depend on a parameter."""
    found = torch.autograd.grad(value, params, create_graph=create_graph, allow_unused=True)
    return torch.cat(
        [(torch.zeros_like(p) if g is None else g).reshape(-1) for p, g in zip(params, found, strict=True)]
    )


def jacobian(outputs: Tensor, params: Sequence[Tensor]) -> Tensor:
    """Return the derivatives (K, P) of K outputs; the graph stays."""
    identity = torch.eye(outputs.numel(), dtype=outputs.dtype, device=outputs.device)
    return torch.cat([_pull(outputs, params, part.reshape(-1, *outputs.shape)) for part in identity.split(AT_ONCE)])


def _pull(outputs: Tensor, params: Sequence[Tensor], vectors: Tensor) -> Tensor:
    """Return v^T (d outputs / d params) for a batch of v shaped as the outputs: (batch, P)."""
    batch = len(vectors)
    if not outputs.requires_grad:
        return vectors.new_zeros(batch, sum(p.numel() for p in params))
    found = torch.autograd.grad(outputs, params, vectors, is_grads_batched=True, retain_graph=True, allow_unused=True)
    parts = [
        p.new_zeros(batch, p.numel()) if g is None else g.reshape(batch, -1) for p, g in zip(params, found, strict=True)
    ]
    return torch.cat(parts, 1).detach()
