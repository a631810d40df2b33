"""What class means and a classifier decide about neural collapse: NC2, NC3, the bias, and the space NC1 lives in.

Symbols as in `assay.probes.neural_collapse`: K classes, d features; mu_G (d,) the average of the class means, M (K, d)
the class means without it; W (K, d) the classifier's rows. Everything works on K x K Gram matrices in float64; nothing
is ever d x d.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["CollapseGeometry", "centred", "check_centre"]

SIMPLEX_KEYS = ("nc2_equiangular", "nc2_maxangle", "nc2_etf")
HEAD_SIMPLEX_KEYS = ("nc2_equiangular_head", "nc2_maxangle_head", "nc2_etf_head", "nc3")
BIAS_KEYS = ("nc_bias", "nc_bias_centred")
HEAD_KEYS = ("nc2_equinorm_head", *HEAD_SIMPLEX_KEYS, "nc3_frob", "nc3_cos", *BIAS_KEYS)
SPREAD_KEYS = ("nc1", "nc1_trace", "nc1_cdnv")
MEANS_KEYS = (*SPREAD_KEYS, "nc2_equinorm", *SIMPLEX_KEYS, "nc3", "nc3_frob", "nc3_cos")
NEAREST_KEYS = ("nc4", "ncc_accuracy")
KEYS = (*SPREAD_KEYS, "nc2_equinorm", *SIMPLEX_KEYS, "nc2_of", *HEAD_KEYS, *NEAREST_KEYS)

# Below this share of the largest eigenvalue a direction of the class means is rounding noise of float32 features.
_RANK_TOLERANCE = 1e-9
_COLUMNS = 64  # of the class means and the classifier taken to float64 at a time


def check_centre(centre: str) -> None:
    """Refuse a centre that is neither the average of class means nor that of samples."""
    if centre not in ("class", "sample"):
        raise InvalidInput(f"centre must be 'class' or 'sample', not {centre!r}")


def centred(rows: Tensor) -> Tensor:
    """Return the rows (K, d) in float64 without their mean; always a copy."""
    rows = rows.detach().to(torch.float64, copy=True)
    return rows.sub_(rows.mean(dim=0))


def _why_undefined(centres: Tensor, counts: Tensor | None) -> dict[str, str]:
    """Return why measures are undefined whatever the head and the spread are.

    Args:
        centres: Class means (K, d).
        counts: Samples per class (K,); None if the means are those of other samples.
    """
    K, d = centres.shape
    missing = [] if counts is None else (counts == 0).nonzero().flatten().tolist()
    if K < 2:
        return dict.fromkeys(KEYS, "there is only one class")
    if missing:
        return dict.fromkeys(KEYS, f"{len(missing)} of {K} classes have no samples, the first is {missing[0]}")
    if not centres.sum().isfinite():
        return dict.fromkeys(KEYS, "the features contain NaN or infinity")
    reasons: dict[str, str] = {}
    if d < K:
        reasons["nc2_of"] = f"{K} classes need {K} dimensions for an orthogonal frame, the features have {d}"
    if d < K - 1:
        reason = f"{K} classes need {K - 1} dimensions for a simplex, the features have {d}"
        reasons |= dict.fromkeys(("nc1", *SIMPLEX_KEYS, *HEAD_SIMPLEX_KEYS), reason)
    if counts is not None and counts.max() <= 1:
        reasons |= dict.fromkeys(SPREAD_KEYS, "every class has a single sample, so it has no spread to measure")
    return reasons


def _etf_error(gram: Tensor) -> float:
    """Return | G / |G|_F - (I - J/K) / sqrt(K-1) |_F."""
    K, error = len(gram), gram / gram.norm()
    error += 1 / (K * math.sqrt(K - 1))
    error.diagonal().sub_(1 / math.sqrt(K - 1))
    return error.norm().item()


def _frame_error(gram: Tensor, along: Tensor, square: Tensor) -> float:
    """Return | G / |G|_F - I / sqrt(K) |_F of the means with their average, U = M + 1 mu_G^T.

    Args:
        gram: M M^T (K, K).
        along: M mu_G (K,).
        square: |mu_G|^2.
    """
    error = gram + along + along[:, None] + square
    error /= error.norm()
    error.diagonal().sub_(1 / math.sqrt(len(gram)))
    return error.norm().item()


def _simplex(gram: Tensor, suffix: str) -> dict[str, float]:
    """Return the four measures of how far K vectors with this Gram matrix are from a simplex ETF."""
    K, norms = len(gram), gram.diagonal().sqrt()
    cosines = (gram / torch.outer(norms, norms)).flatten()[:-1].view(K - 1, K + 1)[:, 1:]  # off the diagonal
    return {
        f"nc2_equinorm{suffix}": (norms.std(correction=0) / norms.mean()).item(),
        f"nc2_equiangular{suffix}": cosines.std(correction=0).item(),
        f"nc2_maxangle{suffix}": (cosines + 1 / (K - 1)).abs().mean().item(),
        f"nc2_etf{suffix}": _etf_error(gram),
    }


def _head_geometry(mean: Tensor, M: Tensor, head: nn.Linear | None) -> tuple[dict[str, float], dict[str, str]]:
    """Return NC2 of the classifier, NC3 and the bias measures, and why they are undefined if they are.

    Args:
        mean: mu_G (d,).
        M: Class means without mu_G (K, d).
        head: The classifier, if there is one.
    """
    if head is None:
        return {}, dict.fromkeys(HEAD_KEYS, "the network has no linear head on these features")
    if head.weight.shape != M.shape:
        reason = f"the head's weight is {tuple(head.weight.shape)}, the class means are {tuple(M.shape)}"
        return {}, dict.fromkeys(HEAD_KEYS, reason)
    weight, bias = head.weight.detach(), 0.0 if head.bias is None else head.bias.detach().double()
    scores = weight @ mean.to(weight.dtype) + bias
    if not scores.isfinite().all():
        return {}, dict.fromkeys(HEAD_KEYS, "the head's weight or bias contains NaN or infinity")
    values = {"nc_bias": scores.norm().item(), "nc_bias_centred": (scores - scores.mean()).norm().item()}
    gram, dual = M.new_zeros(len(M), len(M)), M.new_zeros(len(M), len(M))
    for W, part in _columns(weight, M):
        W = centred(W)
        gram, dual = gram.addmm_(W, W.T), dual.addmm_(W, part.T)
    if not gram.any():
        return values, dict.fromkeys(set(HEAD_KEYS) - set(BIAS_KEYS), "all rows of the head are equal")
    return values | _simplex(gram, "_head") | {"nc3": _etf_error(dual)} | _alignment(weight, M), {}


def _alignment(weight: Tensor, M: Tensor) -> dict[str, float]:
    """Return how far the rows of the head (K, d), as they are, and the centred class means are from one another."""
    squares, products = M.new_zeros(2, len(M)), M.new_zeros(len(M))
    for W, part in _columns(weight, M):
        squares += torch.stack((W.square().sum(dim=1), part.square().sum(dim=1)))
        products += (W * part).sum(dim=1)
    lengths = squares.sum(dim=1).sqrt()
    distance = sum((W / lengths[0] - part / lengths[1]).square().sum() for W, part in _columns(weight, M))
    cosines = products / (squares[0] * squares[1]).sqrt()
    return {"nc3_frob": torch.as_tensor(distance).sqrt().item(), "nc3_cos": 1 - cosines.mean().item()}


def _columns(weight: Tensor, M: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield matching blocks of columns in float64, so that no copy of the whole weight is made."""
    for W, part in zip(weight.split(_COLUMNS, dim=1), M.split(_COLUMNS, dim=1), strict=True):
        yield W.double(), part


class CollapseGeometry:
    """The measures of neural collapse but NC4, from class means, a head and, at last, the spread about the means.

    Args:
        centres: Class means (K, d), overwritten with M.
        counts: Samples per class (K,); None if the means are those of other samples than will be measured.
        head: The classifier, if there is one.
        centre: mu_G: "class" averages class means, "sample" weighs them by `counts`.

    Attributes:
        defined: False if nothing is; `mean` (d,), `M` (K, d) and `gram` = M M^T (K, K) exist only if something is.
        basis: The K-1 eigenvalues g and eigenvectors U (K, K-1) of M M^T; None where NC1 is undefined.
        values: What is known so far, NaN where undefined.
        skipped: Why a value is NaN, by name.
    """

    def __init__(self, centres: Tensor, counts: Tensor | None, head: nn.Linear | None, centre: str = "class") -> None:
        self.values = dict.fromkeys(KEYS[: -len(NEAREST_KEYS)], math.nan)
        self.skipped = _why_undefined(centres, counts)
        self.defined = len(self.skipped) < len(KEYS)
        self.basis: tuple[Tensor, Tensor] | None = None
        if not self.defined:
            return
        weights = counts if centre == "sample" and counts is not None else centres.new_ones(len(centres))
        self.mean = weights / weights.sum() @ centres
        self.M = centres.sub_(self.mean)
        self.gram = self.M @ self.M.T
        if not self.gram.trace() > 0:
            self.skipped = dict.fromkeys(MEANS_KEYS, "all class means are equal") | self.skipped
        self._add(
            _simplex(self.gram, "") | {"nc2_of": _frame_error(self.gram, self.M @ self.mean, self.mean @ self.mean)}
        )
        self._add(*_head_geometry(self.mean, self.M, head))
        if "nc1" not in self.skipped:
            self._find_basis()

    def _find_basis(self) -> None:
        g, U = torch.linalg.eigh(self.gram)
        # The rows of M add up to 0, weighed as they are for mu_G, so the first direction is always empty.
        g, U = g[1:], U[:, 1:]
        if g[0] <= _RANK_TOLERANCE * g[-1]:
            self._add({}, {"nc1": f"the class means span fewer than {len(self.gram) - 1} directions"})
        else:
            self.basis = g, U

    def whitened(self, projected: Tensor) -> float:
        """Return N tr(Sigma_W pinv(Sigma_B)) / K from N M Sigma_W M^T (K, K); NaN where it is undefined.

        With M M^T = U diag(g) U^T of rank K-1, pinv(Sigma_B) / K = M^T U diag(g^-2) U^T M, so that
        tr(Sigma_W pinv(Sigma_B)) / K = sum_j u_j^T (M Sigma_W M^T) u_j / g_j^2.
        """
        if self.basis is None:
            return math.nan
        g, U = self.basis
        return max(0.0, ((U * (projected @ U)).sum(dim=0) / g**2).sum().item())

    def add_spread(self, whitened: float, squares: Tensor, counts: Tensor) -> None:
        """Add the measures of NC1.

        Args:
            whitened: As the method of that name returns it.
            squares: Sum of squared distances to the class mean, by class (K,).
            counts: Samples per class (K,).
        """
        N, K, lengths = counts.sum(), len(counts), self.gram.diagonal()
        variances, distances = squares / counts, lengths + lengths[:, None] - 2 * self.gram
        ratios = (variances + variances[:, None]) / (2 * distances.clamp_(min=0))
        if not squares.sum().isfinite():
            self._add({}, dict.fromkeys(SPREAD_KEYS, "the features contain NaN or infinity"))
        off_diagonal = ratios.flatten()[:-1].view(K - 1, K + 1)[:, 1:]
        self._add(
            {
                "nc1": whitened / N.item(),
                "nc1_trace": (squares.sum() / N * K / lengths.sum()).item(),
                "nc1_cdnv": off_diagonal.mean().item(),
            }
        )

    def _add(self, values: dict[str, float], reasons: dict[str, str] | None = None) -> None:
        broken = [key for key, value in values.items() if not math.isfinite(value)]
        self.skipped = dict.fromkeys(broken, "a length or a distance that it divides by is 0") | self.skipped
        self.skipped |= reasons or {}
        self.values |= {key: math.nan if key in self.skipped else value for key, value in values.items()}
