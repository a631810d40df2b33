"""The second pass of neural collapse: the spread of features about known class means, and which mean is nearest.

Knowing the class means, it whitens each residual by A = diag(1/g) U^T M (K-1, d), where M M^T = U diag(g) U^T: the sum
of |A (h - mu_y)|^2 over samples is N times NC1, so that nothing d x d is ever formed, and no large numbers cancel.

Symbols: B samples, K classes, d features, M (K, d) the class means without their average.
Cost: 2 B d K flops, twice that for chunks in which the nearest mean is in doubt; 2 d K + B (d + K) numbers in memory.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from assay.probes._simplex import CollapseGeometry

__all__ = ["Spread", "decisions"]

_COLUMNS = 32  # of M in float64 at a time, beside M itself
_SURELY = 0.999  # of the way to the midpoint between two means, so that rounding cannot decide


def decisions(scores: Tensor) -> Tensor:
    """Return the classes (B,) of the largest of scores (B, K), -1 where one is NaN."""
    largest, index = scores.max(dim=1)
    return index.masked_fill_(largest.isnan(), -1)


class Spread:
    """Sums over samples about given class means.

    Args:
        geometry: The class means; its `M` and `basis`, the largest things in it, are used up.
        dtype: Of the features, float32 or float64 (half precision is to be raised before).
        own: Whether the means are those of the very samples that will come, so that residuals add up to 0 by class.

    Attributes:
        squares: Sum of |h - mu_y|^2 by class (K,).
        counts: Samples by class (K,).
    """

    def __init__(self, geometry: CollapseGeometry, dtype: torch.dtype, *, own: bool = True) -> None:
        gram, M, basis, K = geometry.gram, geometry.M, geometry.basis, len(geometry.M)
        geometry.basis = None
        self.geometry, self.own = geometry, own
        self.A = None if basis is None else _whitening(M, (basis[1] / basis[0]).T, dtype)
        del basis
        self.centres, self.rounding, self.whitened_rounding = _rounded(M, geometry.mean, dtype, self.A)
        del M, geometry.M
        # |h - mu_k|^2 = |h - mu_G|^2 - 2 (r.M_k + M_y.M_k - |M_k|^2 / 2) with r = h - mu_y: nearest is where the
        # bracket is largest. Where |r| is below half the distance from mu_y to any other mean, it is y.
        lengths = gram.diagonal()
        self.reach = (gram - lengths / 2).to(dtype)
        gaps = (lengths + lengths[:, None] - 2 * gram).clamp_(min=0).fill_diagonal_(torch.inf)
        self.safe = (gaps.amin(dim=1).sqrt() * _SURELY / 2).to(dtype)
        self.squares, self.counts, self.whitened = gram.new_zeros(K), gram.new_zeros(K), gram.new_zeros(())
        self.correct, self.different = gram.new_zeros(()), gram.new_zeros(())

    def add(self, features: Tensor, targets: Tensor, decided: Tensor | None = None) -> None:
        """Take in samples.

        Args:
            features: (B, d), of the `dtype` given.
            targets: Classes (B,).
            decided: The network's decisions (B,), as `decisions` gives them.
        """
        residual = self.centres.index_select(0, targets)
        torch.sub(features, residual, out=residual)
        lengths = torch.linalg.vector_norm(residual, dim=1)
        self.squares.index_add_(0, targets, lengths.double().square())
        self.counts += torch.bincount(targets, minlength=len(self.counts))
        if self.A is not None:
            self.whitened += torch.linalg.vector_norm(residual @ self.A).double().square()
        nearest = targets
        if not (lengths < self.safe[targets]).all():
            nearest = self.reach[targets].addmm_(residual, self.centres.T).argmax(dim=1)
        self.correct += (nearest == targets).sum()
        if decided is not None:
            self.different += (nearest != decided).sum() + torch.where(decided < 0, torch.nan, 0.0).sum()

    def finish(self) -> dict[str, float]:
        """Return all measures of the geometry with those of NC1, "nc4" (without decisions: 0) and "ncc_accuracy"."""
        whitened, squares = self.whitened, self.squares
        if self.own:  # sum |r + e|^2 = sum |r|^2 + n |e|^2 where the r add up to 0
            squares = (squares - self.counts * self.rounding).clamp_(min=0)
            whitened = (whitened - self.counts @ self.whitened_rounding).clamp_(min=0)
        self.geometry.add_spread(math.nan if self.A is None else whitened.item(), squares, self.counts)
        N = self.counts.sum()
        shares = {"nc4": (self.different / N).item(), "ncc_accuracy": (self.correct / N).item()}
        if not squares.sum().isfinite():
            shares = dict.fromkeys(shares, math.nan)
            self.geometry.skipped |= dict.fromkeys(shares, "the features contain NaN or infinity")
        elif self.different.isnan():
            self.geometry.skipped["nc4"] = "the scores contain NaN"
        return self.geometry.values | shares


def _whitening(M: Tensor, rows: Tensor, dtype: torch.dtype) -> Tensor:
    """Return A^T = (rows M)^T (d, K-1), from float64 a few columns at a time."""
    A = M.new_empty(M.shape[1], len(rows), dtype=dtype)
    for part, out in zip(M.split(_COLUMNS, dim=1), A.split(_COLUMNS), strict=True):
        out.copy_((rows @ part).T)
    return A


def _rounded(M: Tensor, mean: Tensor, dtype: torch.dtype, A: Tensor | None) -> tuple[Tensor, Tensor, Tensor]:
    """Return the class means (K, d) in a precision, and |e_k|^2 and |A e_k|^2 (K,) of the errors e that this makes."""
    centres, squares = torch.empty_like(M, dtype=dtype), M.new_zeros(len(M))
    whitened = M.new_zeros(len(M), 1 if A is None else A.shape[1], dtype=dtype)
    for start in range(0, M.shape[1], _COLUMNS):
        part = slice(start, start + _COLUMNS)
        exact = M[:, part] + mean[part]
        centres[:, part] = exact
        error = exact.neg_().add_(centres[:, part])
        squares += error.square().sum(dim=1)
        if A is not None:
            whitened.addmm_(error.to(dtype), A[part])
    return centres, squares, torch.linalg.vector_norm(whitened, dim=1).double().square()
