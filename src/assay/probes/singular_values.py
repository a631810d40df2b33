"""Singular values and leading singular vectors of weight matrices, by way of the smaller Gram matrix.

Shapes: a weight of h outputs is read as a matrix of h rows (a convolution as h x (in k k)); m is the smaller side.

The eigenvalues of the m x m Gram matrix are the squared singular values. Squaring also squares the condition number: in
float64 an eigenvalue has an absolute error of some 1e-15 of the largest (measured up to m = 1024), so those above 1e-9
of it are right to 5 digits or better, and those below, singular values under 3e-5 of the largest, are not to be
relied on; `squared_singular_values(..., method="svd")` is for them. In float32 the same holds above 1e-3.

Cost: h d m flops for the Gram matrix (one triangle; rows are raised to float64 a piece at a time) and 4/3 m^3 for its
eigenvalues: 0.4 of `torch.linalg.svdvals` in float64 at 1024 x 1024. On the CPU SciPy's BLAS and LAPACK are called,
which were 1.3 to 1.5 times as fast as torch's there.
"""

from __future__ import annotations

from typing import Literal

import scipy.linalg
import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["as_matrix", "leading_singular_vectors", "squared_singular_values"]

_PIECE = 2**22  # elements of the weight that are raised to the working type at a time


def as_matrix(weight: Tensor) -> Tensor:
    """Return a weight as a matrix with a row per output.

    Args:
        weight: A linear layer's (h, d), or a convolution's (h, in, ...).

    Raises:
        InvalidInput: If it has fewer than two dimensions, or is no real floating-point tensor.

    Example:
        >>> as_matrix(torch.zeros(8, 3, 5, 5)).shape
        torch.Size([8, 75])
    """
    if weight.ndim < 2 or not weight.is_floating_point():
        raise InvalidInput(f"a weight matrix is real with at least 2 dimensions, not {weight.dtype} {weight.ndim}-d")
    return weight.detach().flatten(1)


def squared_singular_values(
    matrix: Tensor, *, dtype: torch.dtype = torch.float64, method: Literal["gram", "svd"] = "gram"
) -> Tensor:
    """Return all squared singular values (m,) of a matrix, ascending, none below 0.

    Args:
        matrix: (h, d), any floating type.
        dtype: float64, or float32 for speed where 3 digits of the larger half will do.
        method: "gram", or "svd" where the smallest ones matter (2.5 times the time).

    Raises:
        InvalidInput: If an entry is not finite, or its square is too large for the type.

    Example:
        >>> squared_singular_values(torch.tensor([[3.0, 0.0, 0.0], [0.0, 0.0, 2.0]])).tolist()
        [4.0, 9.0]
    """
    if method == "svd":
        if not matrix.isfinite().all():
            raise InvalidInput("the weight has NaN or infinite entries and so no spectrum")
        return torch.linalg.svdvals(matrix.to(dtype)).square().flip(0)
    return _eigenvalues(_gram(matrix, dtype)).clamp(min=0)


def leading_singular_vectors(matrix: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the `rank` largest singular triplets in float64, largest first.

    Args:
        matrix: (h, d), any floating type.
        rank: How many, at most the smaller side.

    Returns:
        Left vectors (h, rank), singular values (rank,), right vectors (d, rank). A vector on the longer side is 0 where
        its singular value is below 3e-8 of the largest.

    Raises:
        InvalidInput: If the rank is out of range, or an entry is not finite.

    Example:
        >>> u, s, v = leading_singular_vectors(torch.tensor([[3.0, 0.0], [0.0, 2.0], [0.0, 0.0]]), 1)
        >>> u.abs().flatten().tolist(), s.tolist(), v.abs().flatten().tolist()
        ([1.0, 0.0, 0.0], [3.0], [1.0, 0.0])
    """
    if not 1 <= rank <= min(matrix.shape):
        raise InvalidInput(f"a {tuple(matrix.shape)} matrix has 1 to {min(matrix.shape)} singular vectors, not {rank}")
    tall = len(matrix) >= matrix.shape[1]
    gram = _gram(matrix, torch.float64)
    short = torch.linalg.eigh(gram, UPLO="U").eigenvectors[:, -rank:].flip(1)
    long = (matrix if tall else matrix.T).double() @ short
    lengths = long.norm(dim=0)
    keep = lengths > 3e-8 * lengths[0]
    long = torch.where(keep, long / lengths, 0.0)
    return (long, lengths, short) if tall else (short, lengths, long)


def _gram(matrix: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the smaller Gram matrix; below the diagonal it may be 0."""
    tall = matrix if len(matrix) >= matrix.shape[1] else matrix.T
    m = tall.shape[1]
    gram = torch.zeros(m, m, dtype=dtype, device=matrix.device)
    syrk = scipy.linalg.blas.dsyrk if dtype == torch.float64 else scipy.linalg.blas.ssyrk
    for piece in tall.split(max(1, _PIECE // m)):
        rows = piece.to(dtype)
        if gram.device.type == "cpu":  # BLAS counts columns first: transposed, `gram` is written in place
            syrk(1.0, rows.numpy().T, beta=1.0, c=gram.numpy().T, lower=True, overwrite_c=True)
        else:
            gram.addmm_(rows.T, rows)
    if not gram.diagonal().isfinite().all():
        raise InvalidInput("the weight has NaN, infinite or too large entries and so no spectrum")
    return gram


def _eigenvalues(gram: Tensor) -> Tensor:
    """Return the ascending eigenvalues of a symmetric matrix, of which the upper triangle is read; it may be spoilt."""
    if gram.device.type != "cpu":
        return torch.linalg.eigvalsh(gram, UPLO="U")
    values = scipy.linalg.eigvalsh(gram.numpy().T, lower=True, overwrite_a=True, check_finite=False, driver="ev")
    return torch.from_numpy(values)
