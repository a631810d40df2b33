"""Information of a layer about the input and about the label, once its activations are binned or noise is added.

A deterministic network's I(X; T) is constant or infinite. What is measured is the information of another variable: T
cut into bins (Shwartz-Ziv and Tishby, 2017, arXiv:1703.00810, and their code), or T with Gaussian noise (Saxe et al.,
2018, ICLR, with the bounds of Kolchinsky and Tracey, 2017, arXiv:1706.02419). It depends on bins and noise: say them
with the number.

    binned    I(X; T) = H(bins)          I(T; Y) = H(bins) + H(Y) - H(bins, Y)      plug-in entropies
    kde       I(X; T) = -1/N sum_i log2 1/N sum_j exp(-|t_i - t_j|^2 / s)           s = 2 noise_variance: upper bound,
              I(T; Y) = I(X; T) - sum_y p(y) (the same within class y)              8 noise_variance: lower bound

Shapes: N samples, activations t (N, d), labels (N,). In bits: 0 <= I(X; T) <= log2 N and, binned, 0 <= I(T; Y) <= H(Y).
With nearly as many occupied bins as samples, both values are at their ceilings, whatever the network does.

Departures: an activation below the first edge has a bin of its own, where the published code lets it share the last
one; edges are not rounded to float32. The kde I(T; Y), a difference of two bounds of one kind, is itself no bound.

Cost: binned, a sort of N rows of d bins; kde, N^2 d multiplications and N^2 exponentials, memory for a part of the N^2
distances at a time.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from assay.errors import InvalidInput

__all__ = ["Information", "binned_mutual_information", "kde_mutual_information"]

BINNINGS = ("bins", "fixed_width", "range", "quantile")
BOUNDS = ("upper", "lower")
_DISTANCES = 2**17  # at a time, so that they stay in a core's cache


class Information(NamedTuple):
    """What a layer T tells: `i_xt` = I(X; T) of the input and `i_ty` = I(T; Y) of the label, in bits."""

    i_xt: float
    i_ty: float


def binned_mutual_information(
    activations: Tensor,
    targets: Tensor,
    binning: str = "bins",
    *,
    bins: int = 30,
    low: float = -1.0,
    high: float = 1.0,
    width: float = 0.07,
) -> Information:
    """Return the information of binned activations, every input being equally likely.

    Args:
        activations: One row per input (N, d).
        targets: Labels (N,), integers.
        binning: "bins": `bins` equally spaced edges from `low` to `high`, everything beyond in two end bins;
            "fixed_width": bins of `width`, without end; "range": `bins` equal bins from the layer's smallest to its
            largest activation; "quantile": `bins` bins with as many of the layer's activations each.
        bins: Number of edges or bins, at least 2.
        low: First edge of "bins".
        high: Last edge of "bins".
        width: Of the bins of "fixed_width", above 0.

    Raises:
        InvalidInput: If shapes or types are wrong, an activation is not finite, or an option is out of range.

    Example:
        >>> t, y = torch.tensor([[-0.9], [-0.8], [0.8], [0.8]]), torch.tensor([0, 0, 1, 1])
        >>> binned_mutual_information(t, y, "fixed_width", width=0.5)
        Information(i_xt=1.0, i_ty=1.0)
    """
    if bins < 2 or not low < high or not width > 0:
        raise InvalidInput(f"expected bins >= 2, low < high, width > 0; got {bins}, {low}, {high}, {width}")
    t, y = _checked(activations, targets)
    if binning == "bins":
        codes = np.digitize(t, np.linspace(low, high, bins))
    elif binning == "fixed_width":
        codes = np.floor(t / width)
    elif binning == "range":
        codes = np.digitize(t, np.linspace(t.min(), t.max(), bins + 1)[1:-1])
    elif binning == "quantile":
        codes = np.digitize(t, np.quantile(t, np.linspace(0, 1, bins + 1)[1:-1]))
    else:
        raise InvalidInput(f"binning must be one of {', '.join(BINNINGS)}; got {binning!r}")
    rows, classes = _row_numbers(codes), np.unique(y, return_inverse=True)[1]
    together = _entropy(rows * (classes.max() + 1) + classes)
    i_xt = _entropy(rows)
    return Information(i_xt, min(max(i_xt + _entropy(classes) - together, 0.0), i_xt))  # rounding aside, within these


def kde_mutual_information(
    activations: Tensor, targets: Tensor, *, noise_variance: float = 1e-3, bound: str = "upper"
) -> Information:
    """Return bounds on the information of activations with Gaussian noise, every input being equally likely.

    Args:
        activations: One row per input (N, d).
        targets: Labels (N,), integers.
        noise_variance: Of each activation's noise, in the activations' own unit squared: rescaling a layer changes the
            result. Above 0.
        bound: "upper" or "lower"; both are exact where the activations are equal or far apart.

    Raises:
        InvalidInput: If shapes or types are wrong, an activation is not finite, or an option is out of range.

    Example:
        >>> t, y = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]]), torch.tensor([0, 0, 1, 1])
        >>> kde_mutual_information(t, y)
        Information(i_xt=1.0, i_ty=1.0)
    """
    if not noise_variance > 0 or bound not in BOUNDS:
        raise InvalidInput(f"expected noise_variance > 0 and bound 'upper' or 'lower'; got {noise_variance}, {bound!r}")
    values, labels = _checked(activations, targets)
    order = np.argsort(labels, kind="stable")
    t, counts = torch.from_numpy(values[order]), np.unique(labels, return_counts=True)[1]
    t = (t - t.mean(dim=0)) / math.sqrt((2 if bound == "upper" else 8) * noise_variance)
    squares = t.square().sum(dim=1)
    i_xt, given_label, start, N = 0.0, 0.0, 0, len(t)
    for count in counts.tolist():
        own = slice(start, start + count)
        for part in torch.arange(start, start + count).split(max(1, _DISTANCES // N)):
            exponents = torch.addmm(-squares, t[part], t.T, alpha=2).sub_(squares[part, None])
            near = exponents.clamp_(max=0).float().exp_()  # float32: each sum has a term 1, its own
            i_xt -= (near.sum(dim=1, dtype=torch.float64) / N).log2().sum().item()
            given_label -= (near[:, own].sum(dim=1, dtype=torch.float64) / count).log2().sum().item()
        start += count
    return Information(max(i_xt / N, 0.0), (i_xt - given_label) / N)


def _checked(activations: Tensor, targets: Tensor) -> tuple[np.ndarray, np.ndarray]:
    if activations.ndim != 2 or not activations.is_floating_point() or activations.numel() == 0:
        raise InvalidInput(
            f"activations must be floats (samples, units), not {activations.dtype} {tuple(activations.shape)}"
        )
    if targets.shape != activations.shape[:1] or targets.is_floating_point() or targets.is_complex():
        raise InvalidInput(
            f"targets must be integer labels ({len(activations)},), not {targets.dtype} {tuple(targets.shape)}"
        )
    if not activations.isfinite().all():
        raise InvalidInput("activations are NaN or infinite; information needs finite ones")
    return activations.detach().cpu().double().numpy(), targets.detach().cpu().numpy()


def _row_numbers(codes: np.ndarray) -> np.ndarray:
    """Number equal rows alike: rows are compared as bytes, which no hash can confuse."""
    rows = np.ascontiguousarray(codes, dtype=np.int64)
    return np.unique(rows.view(np.dtype((np.void, rows.itemsize * rows.shape[1]))).ravel(), return_inverse=True)[1]


def _entropy(numbers: np.ndarray) -> float:
    """Return the plug-in entropy in bits."""
    counts = np.unique(numbers, return_counts=True)[1]
    return max(math.log2(len(numbers)) - float((counts * np.log2(counts)).sum()) / len(numbers), 0.0)
