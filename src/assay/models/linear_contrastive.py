"""Deep linear networks under the spectral contrastive loss with weight decay: the population's loss and its minimum.

Xue et al., "Investigating the Benefits of Projection Head for Representation Learning" (arXiv:2403.11391), section on
linear networks; here for any number L of layers, f(x) = W x with W = W_L ... W_1, the upper ones being the head:

    loss = -2 tr(W M W^T) + |W S W^T|_F^2 + alpha sum_l |W_l|_F^2,    M = E[x x+^T],  S = E[x x^T]

Shapes: d inputs, p hidden units, m outputs; W_1 (p, d), ..., W_L (m, p); M and S (d, d).

Where feature k has variance phi_k^2 and augmentation adds independent noise sigma_k^2, M = diag(phi^2) and
S = diag(phi^2 + sigma^2). W's columns are then orthogonal, and each of their lengths omega_k minimises

    -2 phi_k^2 omega^2 + (phi_k^2 + sigma_k^2)^2 omega^4 + alpha L omega^(2/L)

since L |W|_{2/L}^{2/L} (Schatten) is the least decay for a given W. Balanced layers pay it,
W_l W_l^T = W_{l+1}^T W_{l+1}, so feature k has the weight omega_k^(l/L) after layer l: in the same order, less unequal
below. For alpha -> 0, omega_k = phi_k / (phi_k^2 + sigma_k^2).

Departures: weight decay is kept, where the paper takes alpha -> 0. For L > 1 a weight of 0 is a local minimum of its
own (near 0 decay outweighs the reward), so that a small start can lose features that the minimum keeps. That no mixture
of features does better was checked numerically, not proved. Needs p, m >= d. Cost: O(L) matrix products.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["ContrastiveMinimum", "LinearContrastive", "contrastive_minimum"]


class LinearContrastive(nn.Module):
    """A linear encoder with a linear head; `model(x)` is W x, `model.objective` the population's loss.

    Args:
        inputs: d.
        width: p, of all hidden layers.
        outputs: m; p if not given.
        depth: L, the number of layers; the first is the encoder where there are two.
        scale: Standard deviation of the initial weights.
        generator: Draws them; None is the fixed start of seed 0.
        dtype: Of the weights.

    Raises:
        InvalidInput: If a size is below 1.

    Example:
        >>> LinearContrastive(inputs=6, width=8)(torch.zeros(2, 6, dtype=torch.float64)).shape
        torch.Size([2, 8])
    """

    def __init__(
        self,
        inputs: int,
        width: int,
        outputs: int | None = None,
        depth: int = 2,
        scale: float = 0.3,
        generator: torch.Generator | None = None,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        sizes = [inputs, *[width] * (depth - 1), width if outputs is None else outputs]
        if depth < 1 or min(sizes) < 1:
            raise InvalidInput(f"expected sizes and depth of at least 1; got {sizes} and depth {depth}")
        generator = generator or torch.Generator().manual_seed(0)
        self.layers = nn.ParameterList(
            scale * torch.randn(rows, columns, generator=generator, dtype=dtype) for columns, rows in pairwise(sizes)
        )

    def products(self) -> list[Tensor]:
        """Return W_l ... W_1 for l = 1 to L."""
        found = [self.layers[0]]
        for layer in list(self.layers)[1:]:
            found.append(layer @ found[-1])
        return found

    def forward(self, x: Tensor) -> Tensor:
        """Return the outputs (B, m) of inputs (B, d)."""
        return x @ self.products()[-1].T

    def objective(self, M: Tensor, S: Tensor, decay: float = 0.0) -> Tensor:
        """Return the population's loss.

        Args:
            M: E[x x+^T] of two views of one sample (d, d).
            S: E[x x^T] of a view (d, d).
            decay: alpha.
        """
        W = self.products()[-1]
        loss = ((W @ S @ W.T).square().sum()) - 2 * (W @ M * W).sum()
        norms = torch.stack([layer.square().sum() for layer in self.layers])
        return loss + decay * norms.sum()

    @torch.no_grad()
    def feature_weights(self) -> Tensor:
        """Return how strongly each layer's output weighs each input: column lengths of W_l ... W_1, (L, d)."""
        return torch.stack([W.norm(dim=0) for W in self.products()])


@dataclass(frozen=True)
class ContrastiveMinimum:
    """Where a linear network ends.

    Args:
        weights: Of each feature after each layer (L, d), float64.
        value: The population's loss there, decay included.
    """

    weights: Tensor
    value: float


def contrastive_minimum(signal: Tensor, noise: Tensor, decay: float = 0.0, depth: int = 2) -> ContrastiveMinimum:
    """Return the minimum of the population's loss for independent features.

    Args:
        signal: Variances phi_k^2 of the features (d,), above 0.
        noise: Variances sigma_k^2 that augmentation adds (d,), 0 or larger.
        decay: alpha; at 0 the lower layers' weights are the limit alpha -> 0, since any factors of W are minimal there.
        depth: L.

    Raises:
        InvalidInput: If shapes do not fit or a number is out of range.

    Example:
        >>> end = contrastive_minimum(torch.tensor([1.0, 0.25]), torch.tensor([1.0, 0.0]))
        >>> end.weights, end.value  # the encoder weighs them 1 : 2, the head's output 1 : 4
        (tensor([[0.7071, 1.4142],
                [0.5000, 2.0000]], dtype=torch.float64), -1.25)
    """
    if signal.ndim != 1 or signal.shape != noise.shape or not (bool((signal > 0).all()) and bool((noise >= 0).all())):
        raise InvalidInput(
            f"expected signal (d,) above 0 and noise (d,) of at least 0; got {signal.tolist()} and {noise.tolist()}"
        )
    if decay < 0 or depth < 1:
        raise InvalidInput(f"expected decay >= 0 and depth >= 1; got {decay} and {depth}")
    pairs = [_one_feature(m, m + n, decay, depth) for m, n in zip(signal.tolist(), noise.tolist(), strict=True)]
    squares = torch.tensor([t for t, _ in pairs], dtype=torch.float64)
    powers = torch.arange(1, depth + 1, dtype=torch.float64)[:, None] / 2
    return ContrastiveMinimum(weights=squares**powers, value=sum(value for _, value in pairs))


def _one_feature(m: float, s: float, decay: float, depth: int) -> tuple[float, float]:
    """Minimise -2 m t^L + s^2 t^(2L) + decay L t over t = omega^(2/L) >= 0; return t and the value."""
    slope = np.zeros(2 * depth)  # coefficients of the derivative over 2L, highest power first
    slope[0] = s**2
    slope[depth] -= m  # with one layer the same coefficient as the next line's
    slope[-1] += decay / 2
    roots = np.roots(slope)
    candidates = [0.0, *(r.real for r in roots if abs(r.imag) < 1e-9 * max(1.0, abs(r)) and r.real > 0)]
    values = [-2 * m * t**depth + s**2 * t ** (2 * depth) + decay * depth * t for t in candidates]
    best = int(np.argmin(values))
    return float(candidates[best]), float(values[best])
