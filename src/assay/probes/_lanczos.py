"""One step of Lanczos with full reorthogonalisation, for several start vectors at once.

The three-term recurrence removes what is large; one pass against the whole basis, as two matrix-vector products, then
removes what rounding left, and a second one only where the first removed much. Without it, vectors lose orthogonality
as soon as an eigenvalue converges, and copies of it ("ghosts") appear.

Symbols: r runs, P parameters, m steps; basis (r, m, P); T = tridiag(beta, alpha, beta).
"""

from __future__ import annotations

import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["orthogonalise", "random_unit", "step", "tridiagonal"]


def random_unit(P: int, *, seed: int, like: Tensor) -> Tensor:
    """Return a random direction (P,), the same on every device, in the precision of `like`."""
    v = torch.randn(P, generator=torch.Generator().manual_seed(seed), dtype=torch.float32)
    v = v.to(like.device, torch.float64)
    return (v / v.norm()).to(like.dtype)


def step(w: Tensor, basis: Tensor, beta: float, *, full: bool = True) -> tuple[float, float]:
    """Make w = A v_j orthogonal to the basis, in place.

    Args:
        w: The product (P,).
        basis: The vectors so far, as rows (j, P); only the last two are read without `full`.
        beta: The length before normalisation of the last of them; 0 for the first.
        full: Whether to reorthogonalise against all.

    Returns:
        alpha_j and beta_{j+1}: the component along v_j and the length of what is left.

    Raises:
        InvalidInput: If w is not finite.
    """
    alpha = torch.dot(w, basis[-1]).item()
    w.add_(basis[-1], alpha=-alpha)
    if beta > 0:
        w.add_(basis[-2], alpha=-beta)
    if full:
        alpha += orthogonalise(w, basis)
    length = w.norm().item()
    if not length < float("inf"):
        raise InvalidInput("the matrix times a vector is not finite; look for NaN or inf in the network and the data")
    return alpha, length


def orthogonalise(w: Tensor, basis: Tensor) -> float:
    """Remove from w (P,) its components along the rows of the basis (j, P); return that along the last."""
    last, before = 0.0, w.norm()
    for _ in range(2):
        components = basis @ w
        w.addmv_(basis.T, components, alpha=-1)
        last += components[-1].item()
        if (after := w.norm()) > 0.7 * before:
            break
        before = after
    return last


def tridiagonal(alphas: list[float], betas: list[float]) -> Tensor:
    """Return T (j, j), float64, with alphas on its diagonal and betas beside it."""
    T = torch.diag(torch.tensor(alphas, dtype=torch.float64))
    beside = torch.tensor(betas[: len(alphas) - 1], dtype=torch.float64)
    return T + torch.diag(beside, 1) + torch.diag(beside, -1)
