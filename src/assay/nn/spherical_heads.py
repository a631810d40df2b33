"""Classifiers on the sphere: a linear head on normalised features and weights, and class means in place of weights.

Jiang, Zhou, Wang, Qu, Mixon, You, Zhu (2024, arXiv:2310.05351), generalized neural collapse; the scores are

    s <w_j, h> / (|w_j| |h|),   s = 1 / temperature

Since trained class vectors tend to the class means, they need not be trained: the class-mean-feature classifier (CMF)
keeps moving averages, W <- m W + (1 - m) sum_{i: y_i = k} h_i / |h_i| row by row, then normalises its rows.

Shapes: features (..., d), targets (B,), weight (K, d). Cost: 2 B K d flops. Departures: none; the
sum (not the mean) over a batch's samples of a class is the official code's, so that m matters less the more there are.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["ClassMeanClassifier", "NormalizedLinear"]


class NormalizedLinear(nn.Linear):
    """A linear classifier without bias whose scores are `scale` times the cosine of feature and class vector.

    Being an `nn.Linear`, it is what probes take for the head; its `weight` is not normalised, its use is.

    Args:
        in_features: d.
        out_features: K.
        scale: s, 1 / temperature; with large s and small d start small and raise it, or training stalls.
        generator: Draws the weights (standard normal, so directions are uniform); None is torch's global generator.

    Raises:
        InvalidInput: If a number is not positive.

    Example:
        >>> NormalizedLinear(3, 5, scale=7.0)(torch.ones(2, 3)).abs().max().item() <= 7.0 + 1e-5
        True
    """

    def __init__(
        self, in_features: int, out_features: int, scale: float = 10.0, *, generator: torch.Generator | None = None
    ) -> None:
        _check(in_features, out_features, scale)
        super().__init__(in_features, out_features, bias=False, device="meta")
        self.weight = nn.Parameter(torch.randn(out_features, in_features, generator=generator))
        self.scale = scale

    def forward(self, input: Tensor) -> Tensor:
        """Return scores (..., K) of features (..., d)."""
        return self.scale * F.linear(F.normalize(input, dim=-1), F.normalize(self.weight, dim=-1))

    def extra_repr(self) -> str:
        """Show the scale beside the sizes."""
        return f"in_features={self.in_features}, out_features={self.out_features}, scale={self.scale:g}"


class ClassMeanClassifier(nn.Linear):
    """A classifier whose class vectors are moving averages of normalised features; nothing in it is trained.

    Args:
        in_features: d.
        out_features: K.
        momentum: m, 0 up to but not including 1.
        scale: s, 1 / temperature.

    Attributes:
        weight: A buffer (K, d), zero until a class is seen (its score is 0 then), of unit rows after.

    Raises:
        InvalidInput: If a number is out of range.

    Example:
        >>> head = ClassMeanClassifier(2, 2, scale=1.0)
        >>> _ = head(torch.tensor([[3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 1]))
        >>> head.eval()(torch.tensor([[5.0, 0.0]])).tolist()
        [[1.0, 0.0]]
    """

    def __init__(self, in_features: int, out_features: int, momentum: float = 0.9, scale: float = 10.0) -> None:
        _check(in_features, out_features, scale)
        if not 0 <= momentum < 1:
            raise InvalidInput(f"momentum must be at least 0 and below 1, not {momentum}")
        super().__init__(in_features, out_features, bias=False, device="meta")
        del self.weight
        self.register_buffer("weight", torch.zeros(out_features, in_features))
        self.momentum, self.scale = momentum, scale

    def forward(self, input: Tensor, target: Tensor | None = None) -> Tensor:
        """Return scores (..., K); in training mode with targets, the class vectors take in the batch first.

        Args:
            input: Features (..., d), or (B, d) with targets.
            target: Classes (B,).

        Raises:
            InvalidInput: If features and targets do not fit together.
        """
        h = F.normalize(input, dim=-1)
        if target is not None and self.training:
            self._take_in(h.detach(), target)
        return self.scale * F.linear(h, self.weight)

    @torch.no_grad()
    def _take_in(self, h: Tensor, target: Tensor) -> None:
        if h.ndim != 2 or target.shape != h.shape[:1]:
            raise InvalidInput(
                f"expected one target per feature vector, got {tuple(h.shape)} and {tuple(target.shape)}"
            )
        new = (1 - self.momentum) * h.to(self.weight.dtype)
        # A new tensor: a graph in flight may hold the old one.
        self.weight = F.normalize((self.momentum * self.weight).index_add(0, target, new), dim=-1)

    def extra_repr(self) -> str:
        """Show momentum and scale beside the sizes."""
        sizes = f"in_features={self.in_features}, out_features={self.out_features}"
        return f"{sizes}, momentum={self.momentum:g}, scale={self.scale:g}"


def _check(in_features: int, out_features: int, scale: float) -> None:
    if in_features < 1 or out_features < 1 or not scale > 0:
        raise InvalidInput(f"expected sizes of at least 1 and scale > 0; got {in_features}, {out_features} and {scale}")
