"""The largest eigenvalues of a symmetric matrix with their vectors and residuals, by Lanczos with reorthogonalisation.

Lanczos (1950); Golub and Van Loan, Matrix Computations, section 10.3. From a random start v_1 each step multiplies once
and makes the result orthogonal to all vectors before it; the eigenpairs (theta, s) of the projected, tridiagonal matrix
T_m give values theta and vectors V s with residual |A V s - theta V s| = beta_m |s_m|.

Symbols: A (P, P), P parameters, m steps, V (m, P) basis as rows, k pairs wanted.

Departures: "largest" is by magnitude, since at a saddle the negative end counts too. Where the subspace is exhausted
(beta = 0) a new random direction goes on, so that a multiple eigenvalue is found as often as it occurs.

Cost: m products, 4 m^2 P flops, memory of m P numbers.
"""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._lanczos import orthogonalise, random_unit, step, tridiagonal

__all__ = ["Eigenpairs", "SymmetricMap", "top_eigenpairs"]


class SymmetricMap(Protocol):
    """What Lanczos needs of a symmetric matrix; `assay.probes.CurvatureMatrix` and a `torch.Tensor` have it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Return (P, P)."""
        ...

    @property
    def dtype(self) -> torch.dtype:
        """Return the precision of vectors."""
        ...

    @property
    def device(self) -> torch.device:
        """Return where vectors are."""
        ...

    def __matmul__(self, vectors: Tensor, /) -> Tensor:
        """Return the matrix times vectors (P,) or (P, r)."""
        ...


class Eigenpairs(NamedTuple):
    """Eigenvalues (k,) by falling magnitude, float64, and orthonormal vectors (P, k) as columns.

    `residuals` (k,) are the lengths |A v - value v|, down to the rounding of the products: some eigenvalue lies within
    that distance of the value. `converged` says whether all are below the tolerance.
    """

    values: Tensor
    vectors: Tensor
    residuals: Tensor
    converged: bool


def top_eigenpairs(
    matrix: SymmetricMap, k: int = 1, *, tolerance: float = 1e-3, max_steps: int = 100, seed: int = 0
) -> Eigenpairs:
    """Return the k eigenpairs of largest magnitude.

    Args:
        matrix: Symmetric (P, P).
        k: How many, 1 to P.
        tolerance: Stop when all residuals are below this times the largest magnitude. The relative error of a value is
            then about the square of it, divided by its relative distance from the next one.
        max_steps: At most this many products, and vectors in memory.
        seed: Of the start.

    Raises:
        InvalidInput: If k, tolerance or max_steps is out of range, or a product is not finite.

    Example:
        >>> import torch
        >>> pairs = top_eigenpairs(torch.diag(torch.tensor([3.0, -5.0, 1.0])), k=2)
        >>> [round(v, 4) for v in pairs.values.tolist()], pairs.converged
        ([-5.0, 3.0], True)
    """
    P = matrix.shape[0]
    if not 1 <= k <= P or max_steps < k or not tolerance > 0:
        raise InvalidInput(f"need 1 <= k <= {P}, max_steps >= k, tolerance > 0; not {k}, {max_steps} and {tolerance}")
    m = min(max_steps, P)
    V = torch.empty(m, P, dtype=matrix.dtype, device=matrix.device)
    V[0] = random_unit(P, seed=seed, like=V)
    alphas: list[float] = []
    betas: list[float] = [0.0]
    found = None
    for j in range(m):
        w = matrix @ V[j]
        alpha, beta = step(w, V[: j + 1], betas[j])
        alphas.append(alpha)
        last = j + 1 == m
        if last or (j + 1 >= k and (j + 1 - k) % 4 == 0):
            found = _ritz(alphas, betas, 0.0 if j + 1 == P else beta, k, torch.finfo(V.dtype).eps)
            if last or (beta > 0 and found[2].max() <= tolerance * found[0][0].abs()):
                break
        if beta <= 1e-6 * max(abs(a) for a in alphas) + 1e-30:
            beta, w = 0.0, random_unit(P, seed=seed + j + 1, like=V)
            orthogonalise(w, V[: j + 1])
        V[j + 1] = w / w.norm()
        betas.append(beta)
    assert found is not None
    values, S, residuals = found
    vectors = V[: len(alphas)].T @ S.to(V)
    return Eigenpairs(values, vectors, residuals, bool(residuals.max() <= tolerance * values[0].abs()))


def _ritz(
    alphas: list[float], betas: list[float], beta: float, k: int, rounding: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return the k largest eigenvalues of T, their vectors (j, k) and residuals."""
    theta, S = torch.linalg.eigh(tridiagonal(alphas, betas[1:]))
    order = theta.abs().argsort(descending=True)[:k]
    residuals = (beta * S[-1, order].abs()).clamp(min=rounding * theta.abs().max().item())
    return theta[order], S[:, order], residuals
