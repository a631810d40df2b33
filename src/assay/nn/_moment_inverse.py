"""A weight whose gradient is multiplied by the inverse second moment of the layer's input, for `first_layers`.

Equations and shapes are there: a moment is (groups, n, n), a gradient (m, ...) with groups of rows.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from assay.errors import InvalidInput

__all__ = ["Preconditioned", "RowsScaled", "apply_inverse", "check_lam", "factor", "factor_of_rows"]

ROUNDING = 8.0  # machine epsilons of the moment's trace: the smallest ridge with a safe Cholesky factor


def check_lam(lam: float) -> None:
    """Refuse a ridge that is not a finite number above 0."""
    if not 0 < lam < math.inf:
        raise InvalidInput(f"lam must be a finite number above 0; got {lam}")


def factor(gram: Tensor, lam: float) -> tuple[Tensor, Tensor]:
    """Return Cholesky factors (groups, k, k) of gram + ridge I, and the ridges (groups, 1, 1)."""
    rounding = ROUNDING * torch.finfo(gram.dtype).eps
    ridge = (rounding * gram.diagonal(dim1=-2, dim2=-1).sum(-1)).clamp(min=lam)[..., None, None]
    eye = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    # Without a check, which would synchronise with the device; what is not finite stays so.
    return torch.linalg.cholesky_ex(gram + ridge * eye).L, ridge


def factor_of_rows(x: Tensor, lam: float) -> tuple[Tensor, Tensor, Tensor | None]:
    """Return the factor of the smaller of the two Gram matrices of x (b, n), its ridge, and x where it is b x b."""
    rows = x.to(torch.promote_types(x.dtype, torch.float32))
    b, n = rows.shape
    if b < n:
        scaled = rows / math.sqrt(max(b, 1))
        return *factor((scaled @ scaled.T)[None], lam), scaled
    return *factor((rows.T @ rows / b)[None], lam), None


def apply_inverse(gradient: Tensor, cholesky: Tensor, ridge: Tensor, rows: Tensor | None) -> Tensor:
    """Return the gradient (m, ...) times the inverse of its group's moment plus ridge."""
    groups = len(cholesky)
    G = gradient.reshape(groups, len(gradient) // groups, -1).to(cholesky.dtype)
    if rows is None:
        result = torch.cholesky_solve(G.mT, cholesky).mT
    else:  # Woodbury: (r^T r + ridge I)^-1 = (I - r^T (r r^T + ridge I)^-1 r) / ridge
        result = (G - torch.cholesky_solve(rows @ G.mT, cholesky).mT @ rows) / ridge
    return result.reshape(gradient.shape).to(gradient.dtype)


class Preconditioned(torch.autograd.Function):
    """The weight as it is; its gradient is multiplied by an inverse moment."""

    @staticmethod
    def forward(weight: Tensor, cholesky: Tensor, ridge: Tensor, rows: Tensor | None) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[1:])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        with torch.autocast(gradient.device.type, enabled=False):
            return apply_inverse(gradient, *ctx.saved_tensors), None, None, None


class RowsScaled(torch.autograd.Function):
    """The weight as it is; each row of its gradient is multiplied by a number."""

    @staticmethod
    def forward(weight: Tensor, scale: Tensor) -> Tensor:
        return weight.view_as(weight)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = ctx.saved_tensors
        return (gradient * scale[:, None]).to(gradient.dtype), None
