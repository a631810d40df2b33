"""A linear classifier whose class vectors are a fixed simplex: where training ends anyway, so they need no training.

Zhou et al., "On the Optimization Landscape of Neural Collapse under MSE Loss" (arXiv:2203.01238), section on fixed
classifiers; official code: options ETF_fc and fixdim. K unit vectors with all angles equal and as wide as possible,

    W = sqrt(K / (K-1)) (I - J/K) P^T,   W W^T = K / (K-1) (I - J/K),   <w_j, w_k> = -1 / (K-1)

with any P (d, K) of orthonormal columns, J all ones (K, K).

Shapes: features (..., d), weight (K, d), d >= K-1. Without a generator P is the first K unit vectors (official code);
features beyond the K-th are then never read. With d = K-1, for which there is no such P, an orthonormal basis
of the simplex's span takes its place. Departures: rotations and d = K-1 are ours. Cost: B K d multiply-adds; none for
the gradient of W.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["SimplexETFLinear", "simplex_etf"]


def simplex_etf(num_classes: int, features: int, generator: torch.Generator | None = None) -> Tensor:
    """Return the K unit vectors of a simplex in d dimensions as rows (K, d), float32.

    Args:
        num_classes: K, at least 2.
        features: d, at least K-1.
        generator: Turns the simplex at random; None leaves it along the first axes.

    Raises:
        InvalidInput: If K is below 2 or d below K-1.

    Example:
        >>> W = simplex_etf(4, 3)
        >>> [round(cosine, 4) for cosine in (W @ W.T)[0].tolist()]
        [1.0, -0.3333, -0.3333, -0.3333]
    """
    K, d = num_classes, features
    if K < 2 or d < K - 1:
        raise InvalidInput(f"a simplex of K >= 2 vectors needs at least K - 1 features; got K = {K} and {d} features")
    if generator is None and d >= K:
        W = torch.zeros(K, d, dtype=torch.float64)
        W[:, :K] = math.sqrt(K / (K - 1)) * (torch.eye(K, dtype=torch.float64) - 1 / K)
        return W.float()
    basis = _contrasts(K)
    if generator is not None:
        turn = torch.linalg.qr(torch.randn(d, K - 1, generator=generator, dtype=torch.float64)).Q
        basis = basis @ turn.T
    return (math.sqrt(K / (K - 1)) * basis).float()


def _contrasts(K: int) -> Tensor:
    """Return Helmert's orthonormal basis (K, K-1) of the vectors that add up to 0."""
    columns = []
    for j in range(1, K):
        column = torch.zeros(K, dtype=torch.float64)
        column[:j], column[j] = 1.0, -j
        columns.append(column / math.sqrt(j * (j + 1)))
    return torch.stack(columns, dim=1)


class SimplexETFLinear(nn.Linear):
    """A linear layer to class scores whose weight is a fixed simplex; only the bias is trained.

    Being an `nn.Linear`, it is what probes take for the head.

    Args:
        in_features: d, at least K-1.
        out_features: K, at least 2.
        scale: Length of the class vectors, above 0.
        bias: Whether there is a trainable bias, 0 at first.
        generator: Turns the simplex at random; None leaves it along the first axes.

    Attributes:
        weight: A buffer (K, d).

    Raises:
        InvalidInput: If a number is out of range.

    Example:
        >>> head = SimplexETFLinear(8, 3)
        >>> [name for name, _ in head.named_parameters()], head(torch.ones(2, 8)).shape
        (['bias'], torch.Size([2, 3]))
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        scale: float = 1.0,
        bias: bool = True,
        *,
        generator: torch.Generator | None = None,
    ) -> None:
        if not 0 < scale < math.inf:
            raise InvalidInput(f"scale must be a finite number above 0, not {scale}")
        weight = scale * simplex_etf(out_features, in_features, generator)
        super().__init__(in_features, out_features, bias=bias, device="meta")
        del self.weight
        self.register_buffer("weight", weight.to(torch.get_default_dtype()))
        if bias:
            self.bias = nn.Parameter(torch.zeros(out_features))
        self.scale = scale

    def extra_repr(self) -> str:
        """Show the scale beside the sizes."""
        return f"{super().extra_repr()}, scale={self.scale:g}"
