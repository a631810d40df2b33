"""The part of neural collapse that class means decide: NC2, NC3, the bias, and the space NC1 is measured in.

Symbols: K classes, d features; means mu_k (K, d), their average mu_G, centred means M = [mu_k - mu_G] (K, d);
classifier rows W (K, d), centred over classes, and bias b (K,). P = (I - J/K) / sqrt(K-1) is the Gram matrix of a
simplex ETF, scaled to norm 1. Everything works on K x K Gram matrices; nothing is ever d x d.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

__all__ = ["KEYS", "between_class_gram", "centred", "ratio_of_traces", "simplex_geometry", "within_class_spread"]

SIMPLEX_KEYS = ("nc2_equiangular", "nc2_maxangle", "nc2_etf")
HEAD_SIMPLEX_KEYS = ("nc2_equiangular_head", "nc2_maxangle_head", "nc2_etf_head", "nc3")
HEAD_KEYS = ("nc2_equinorm_head", *HEAD_SIMPLEX_KEYS, "nc_bias")
KEYS = ("nc1", "nc1_trace", "nc2_equinorm", *SIMPLEX_KEYS, *HEAD_KEYS, "nc4")

# Below this share of the largest eigenvalue a direction of the class means is rounding noise of float32 features.
_RANK_TOLERANCE = 1e-9


def centred(rows: Tensor) -> Tensor:
    """Return the rows (K, d) in float64 without their mean; always a copy."""
    rows = rows.detach().to(torch.float64, copy=True)
    return rows.sub_(rows.mean(dim=0))


def between_class_gram(M: Tensor) -> Tensor:
    """Return the Gram matrix M M^T (K, K) of the centred class means."""
    return M @ M.T


def ratio_of_traces(projected: Tensor, gram: Tensor) -> float:
    """Return NC1 = tr(Sigma_W pinv(Sigma_B)) / K without forming either d x d matrix.

    With M M^T = U diag(g) U^T and rank K-1, pinv(Sigma_B) / K = M^T U diag(g^-2) U^T M, so that
    NC1 = sum_j u_j^T (M Sigma_W M^T) u_j / g_j^2 over the K-1 largest eigenvalues.

    Args:
        projected: M Sigma_W M^T (K, K).
        gram: M M^T (K, K).
    """
    g, U = torch.linalg.eigh(gram)
    g, U = g[1:], U[:, 1:]  # the mean of the rows of M is 0: the first direction is always empty
    return max(0.0, ((U * (projected @ U)).sum(dim=0) / g**2).sum().item())


def _etf_error(gram: Tensor) -> float:
    K = len(gram)
    simplex = (torch.eye(K, dtype=gram.dtype, device=gram.device) - 1 / K) / math.sqrt(K - 1)
    return (gram / gram.norm() - simplex).norm().item()


def _simplex(gram: Tensor, suffix: str) -> dict[str, float]:
    """Return the four measures of how far K vectors with this Gram matrix are from a simplex ETF."""
    K, norms = len(gram), gram.diagonal().sqrt()
    cosines = (gram / torch.outer(norms, norms))[~torch.eye(K, dtype=torch.bool, device=gram.device)]
    return {
        f"nc2_equinorm{suffix}": (norms.std(correction=0) / norms.mean()).item(),
        f"nc2_equiangular{suffix}": cosines.std(correction=0).item(),
        f"nc2_maxangle{suffix}": (cosines + 1 / (K - 1)).abs().mean().item(),
        f"nc2_etf{suffix}": _etf_error(gram),
    }


def _head_geometry(mean: Tensor, M: Tensor, head: nn.Linear) -> dict[str, float]:
    W = centred(head.weight)
    values = _simplex(W @ W.T, "_head")
    values["nc3"] = _etf_error(W @ M.T)
    bias = 0.0 if head.bias is None else head.bias.detach().double()
    values["nc_bias"] = (head.weight.detach() @ mean.to(head.weight.dtype) + bias).norm().item()
    return values


def simplex_geometry(
    mean: Tensor, M: Tensor, gram: Tensor, head: nn.Linear | None
) -> tuple[dict[str, float], dict[str, str]]:
    """Return NC2, NC3 and the bias measure, and for each that is undefined (NaN) why.

    Args:
        mean: Average of the class means, mu_G (d,).
        M: Centred class means (K, d).
        gram: M M^T (K, K).
        head: The classifier, if there is one.
    """
    (K, d), values, skipped = M.shape, _simplex(gram, ""), {}
    if head is None:
        skipped = dict.fromkeys(HEAD_KEYS, "the network has no linear head on these features")
    elif head.weight.shape != M.shape:
        reason = f"the head's weight is {tuple(head.weight.shape)}, the class means are {tuple(M.shape)}"
        skipped = dict.fromkeys(HEAD_KEYS, reason)
    else:
        values |= _head_geometry(mean, M, head)
    if K - 1 > d:
        reason = f"{K} classes need {K - 1} dimensions for a simplex; the features have {d}"
        skipped = dict.fromkeys(("nc1", *SIMPLEX_KEYS), reason) | skipped
        skipped |= {key: skipped.get(key, reason) for key in HEAD_SIMPLEX_KEYS}
    return values, skipped


def within_class_spread(projected: Tensor, trace: float, gram: Tensor) -> tuple[dict[str, float], dict[str, str]]:
    """Return NC1 and the ratio of traces, and why NC1 is undefined if it is.

    Args:
        projected: M Sigma_W M^T (K, K).
        trace: tr Sigma_W.
        gram: M M^T (K, K).
    """
    values = {"nc1": math.nan, "nc1_trace": trace * len(gram) / gram.trace().item()}
    spectrum = torch.linalg.eigvalsh(gram)
    if spectrum[1] <= _RANK_TOLERANCE * spectrum[-1]:
        return values, {"nc1": f"the class means span fewer than {len(gram) - 1} directions"}
    return values | {"nc1": ratio_of_traces(projected, gram)}, {}
