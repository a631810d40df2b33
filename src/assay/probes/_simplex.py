"""What class means and a classifier decide about neural collapse: NC2, NC3, the bias, and the space NC1 lives in.

Symbols as in `assay.probes.neural_collapse`: K classes, d features; mu_G (d,) the average of the class means, M (K, d)
the class means without it; W (K, d) the classifier's rows, centred over classes. Everything works on K x K Gram
matrices in float64; nothing is ever d x d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["CollapseGeometry", "centred"]

SIMPLEX_KEYS = ("nc2_equiangular", "nc2_maxangle", "nc2_etf")
HEAD_SIMPLEX_KEYS = ("nc2_equiangular_head", "nc2_maxangle_head", "nc2_etf_head", "nc3")
HEAD_KEYS = ("nc2_equinorm_head", *HEAD_SIMPLEX_KEYS, "nc_bias")
MEANS_KEYS = ("nc1", "nc1_trace", "nc2_equinorm", *SIMPLEX_KEYS, "nc3")
KEYS = ("nc1", "nc1_trace", "nc2_equinorm", *SIMPLEX_KEYS, *HEAD_KEYS, "nc4")

# Below this share of the largest eigenvalue a direction of the class means is rounding noise of float32 features.
_RANK_TOLERANCE = 1e-9
_COLUMNS = 64  # of the classifier taken to float64 at a time


def centred(rows: Tensor) -> Tensor:
    """Return the rows (K, d) in float64 without their mean; always a copy."""
    rows = rows.detach().to(torch.float64, copy=True)
    return rows.sub_(rows.mean(dim=0))


def _why_undefined(centres: Tensor, counts: Tensor) -> dict[str, str]:
    """Return why measures are undefined whatever the head and the spread are.

    Args:
        centres: Class means (K, d).
        counts: Samples per class (K,).
    """
    (K, d), missing = centres.shape, (counts == 0).nonzero().flatten().tolist()
    if K < 2:
        return dict.fromkeys(KEYS, "there is only one class")
    if missing:
        return dict.fromkeys(KEYS, f"{len(missing)} of {K} classes have no samples, the first is {missing[0]}")
    if not centres.sum().isfinite():
        return dict.fromkeys(KEYS, "the features contain NaN or infinity")
    if d < K - 1:
        reason = f"{K} classes need {K - 1} dimensions for a simplex, the features have {d}"
        return dict.fromkeys(("nc1", *SIMPLEX_KEYS, *HEAD_SIMPLEX_KEYS), reason)
    return {}


def _etf_error(gram: Tensor) -> float:
    """Return | G / |G|_F - (I - J/K) / sqrt(K-1) |_F."""
    K, error = len(gram), gram / gram.norm()
    error += 1 / (K * math.sqrt(K - 1))
    error.diagonal().sub_(1 / math.sqrt(K - 1))
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
    """Return NC2 of the classifier, NC3 and the bias measure, and why they are undefined if they are.

    Args:
        mean: mu_G (d,).
        M: Centred class means (K, d).
        head: The classifier, if there is one.
    """
    if head is None:
        return {}, dict.fromkeys(HEAD_KEYS, "the network has no linear head on these features")
    if head.weight.shape != M.shape:
        reason = f"the head's weight is {tuple(head.weight.shape)}, the class means are {tuple(M.shape)}"
        return {}, dict.fromkeys(HEAD_KEYS, reason)
    weight, bias = head.weight.detach(), 0.0 if head.bias is None else head.bias.detach().double()
    values = {"nc_bias": (weight @ mean.to(weight.dtype) + bias).norm().item()}
    gram, dual = M.new_zeros(len(M), len(M)), M.new_zeros(len(M), len(M))
    for W, part in zip(weight.split(_COLUMNS, dim=1), M.split(_COLUMNS, dim=1), strict=True):
        W = centred(W)
        gram, dual = gram.addmm_(W, W.T), dual.addmm_(W, part.T)
    if not gram.any():
        return values, dict.fromkeys(HEAD_KEYS[:-1], "all rows of the head are equal")
    return values | _simplex(gram, "_head") | {"nc3": _etf_error(dual)}, {}


def _spread_measures(projected: Tensor, trace: float, gram: Tensor) -> tuple[dict[str, float], dict[str, str]]:
    """Return NC1 and the ratio of traces, and why NC1 is undefined if it is.

    With M M^T = U diag(g) U^T of rank K-1, pinv(Sigma_B) / K = M^T U diag(g^-2) U^T M, so that
    tr(Sigma_W pinv(Sigma_B)) / K = sum_j u_j^T (M Sigma_W M^T) u_j / g_j^2 over the K-1 largest eigenvalues.

    Args:
        projected: M Sigma_W M^T (K, K).
        trace: tr Sigma_W.
        gram: M M^T (K, K).
    """
    values = {"nc1_trace": trace * len(gram) / gram.trace().item()} if gram.trace() > 0 else {}
    g, U = torch.linalg.eigh(gram)
    g, U = g[1:], U[:, 1:]  # the rows of M add up to 0, so the first direction is always empty
    if g[0] <= _RANK_TOLERANCE * g[-1]:
        return values, {"nc1": f"the class means span fewer than {len(gram) - 1} directions"}
    nc1 = ((U * (projected @ U)).sum(dim=0) / g**2).sum().item()
    return values | {"nc1": max(0.0, nc1)}, {}


class CollapseGeometry:
    """The measures of neural collapse but NC4, from class means, a head and, at last, the spread about the means.

    Args:
        centres: Class means (K, d), overwritten with M.
        counts: Samples per class (K,).
        head: The classifier, if there is one.

    Attributes:
        defined: False if nothing is; `mean` (d,), `M` (K, d) and `gram` = M M^T (K, K) exist only if something is.
        values: What is known so far, NaN where undefined.
        skipped: Why a value is NaN, by name.
    """

    def __init__(self, centres: Tensor, counts: Tensor, head: nn.Linear | None) -> None:
        self.values = dict.fromkeys(KEYS[:-1], math.nan)
        self.skipped = _why_undefined(centres, counts)
        self.defined = len(self.skipped) < len(KEYS)
        if not self.defined:
            return
        self.samples = counts.sum().item()
        self.mean = centres.mean(dim=0)
        self.M = centres.sub_(self.mean)
        self.gram = self.M @ self.M.T
        if not self.gram.trace() > 0:
            self.skipped = dict.fromkeys(MEANS_KEYS, "all class means are equal") | self.skipped
        self._add(_simplex(self.gram, ""), {})
        self._add(*_head_geometry(self.mean, self.M, head))

    def add_spread(self, projected: Tensor, trace: float) -> None:
        """Add NC1 and the ratio of traces from N M Sigma_W M^T (K, K) and N tr Sigma_W."""
        self._add(*_spread_measures(projected / self.samples, trace / self.samples, self.gram))

    def _add(self, values: dict[str, float], reasons: dict[str, str]) -> None:
        self.skipped = reasons | self.skipped
        self.values |= {key: math.nan if key in self.skipped else value for key, value in values.items()}
