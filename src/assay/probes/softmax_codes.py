"""Softmax codes: K unit vectors in d dimensions whose one-vs-rest margin is as large as can be found.

Jiang, Zhou, Wang, Qu, Mixon, You, Zhu (2024, arXiv:2310.05351): cross-entropy on normalised features tends to a softmax
code as its temperature falls, and so does this search, at rising s = 1 / temperature, each stage from the last's end:

    min over W, H on the sphere of  1/s log sum_{k, j != k} exp(s <w_j - w_k, h_k>)

which tends to the largest entry, whose minimum over H is -rho(W) (minimax duality).

Shapes: W, H (K, d). Departure: the paper's code descends the gradient of the largest entry itself for 100,000 steps;
a smooth function and L-BFGS need some hundred. Cost: K^2 d per evaluation; (100, 10) takes half a second per restart.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes.one_vs_rest import one_vs_rest_margin

__all__ = ["SoftmaxCode", "softmax_code"]

STAGES = (5.0, 20.0, 80.0, 320.0, 1280.0)


class SoftmaxCode(NamedTuple):
    """Unit vectors (K, d) in float64 and their one-vs-rest margin."""

    W: Tensor
    rho: float


def softmax_code(num_classes: int, dimensions: int, restarts: int = 8, seed: int = 0) -> SoftmaxCode:
    """Search for a softmax code from random starts and return the best one.

    The result is a lower bound on the largest margin: the search may end in a local optimum, more restarts help.

    Args:
        num_classes: K, at least 2.
        dimensions: d, at least 2.
        restarts: How many starts.
        seed: Decides the starts.

    Raises:
        InvalidInput: If a number is too small.

    Example:
        >>> round(softmax_code(5, 2, restarts=1).rho, 4)  # the regular pentagon, 1 - cos(72 degrees)
        0.691
    """
    if num_classes < 2 or dimensions < 2 or restarts < 1:
        raise InvalidInput(
            f"expected at least 2 classes, 2 dimensions and 1 restart; got {num_classes}, {dimensions} and {restarts}"
        )
    best = _search(num_classes, dimensions, restarts, seed)
    return SoftmaxCode(best.W.clone(), best.rho)


@cache
def _search(K: int, d: int, restarts: int, seed: int) -> SoftmaxCode:
    random = np.random.default_rng(seed)
    codes = []
    for _ in range(restarts):
        flat = random.standard_normal(2 * K * d)
        for s in STAGES:
            flat = minimize(_objective, flat, (s, K, d), "L-BFGS-B", jac=True, options={"maxiter": 500}).x
        W = torch.from_numpy(_normalised(flat.reshape(2, K, d))[0][0].copy())
        codes.append(SoftmaxCode(W, one_vs_rest_margin(W).min().item()))
    return max(codes, key=lambda code: code.rho)


def _normalised(V: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    lengths = np.linalg.norm(V, axis=-1, keepdims=True)
    return V / lengths, lengths


def _objective(flat: np.ndarray, s: float, K: int, d: int) -> tuple[float, np.ndarray]:
    """Return the smoothed largest entry and its gradient; vectors are normalised inside."""
    V, lengths = _normalised(flat.reshape(2, K, d))
    W, H = V
    scores = H @ W.T  # row k: <w_j, h_k>
    gaps = s * (scores - scores.diagonal()[:, None])
    np.fill_diagonal(gaps, -np.inf)
    top = gaps.max()
    shares = np.exp(gaps - top)
    total = shares.sum()
    shares /= total
    np.fill_diagonal(shares, -shares.sum(axis=1))
    gradient = np.stack([shares.T @ H, shares @ W])
    gradient -= (gradient * V).sum(axis=-1, keepdims=True) * V
    return (top + np.log(total)) / s, (gradient / lengths).ravel()
