"""The study's network: a small perceptron whose last features are few and of any sign, under one of three classifiers."""

from __future__ import annotations

import math
from collections.abc import Sequence

from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.nn.spherical_heads import ClassMeanClassifier, NormalizedLinear
from assay.rules.backprop import Backprop

__all__ = ["FewFeatures", "WithTargets"]


class FewFeatures(nn.Module):
    """Two hidden ReLU layers, a linear layer to d features, a classifier without bias.

    Args:
        input_shape: Shape of one sample.
        outputs: Number of classes K.
        features: d.
        head: "learned" and "class-means" classify on the sphere, "linear" does not.
        scale: 1 / temperature on the sphere.
        width: Units of a hidden layer.
    """

    def __init__(
        self, input_shape: Sequence[int], outputs: int, features: int, head: str, scale: float = 10.0, width: int = 128
    ) -> None:
        super().__init__()
        first = nn.Linear(math.prod(input_shape), width)
        hidden = nn.Linear(width, width)
        self.encoder = nn.Sequential(
            nn.Flatten(), first, nn.ReLU(), hidden, nn.ReLU(), nn.Linear(width, features, bias=False)
        )
        self.head: nn.Linear
        if head == "learned":
            self.head = NormalizedLinear(features, outputs, scale)
        elif head == "class-means":
            self.head = ClassMeanClassifier(features, outputs, scale=scale)
        elif head == "linear":
            self.head = nn.Linear(features, outputs, bias=False)
        else:
            raise InvalidInput(f"head must be 'learned', 'class-means' or 'linear', not {head!r}")

    def forward(self, x: Tensor, target: Tensor | None = None) -> Tensor:
        """Return scores (B, K); a classifier of class means takes in features where targets are given."""
        h = self.encoder(x)
        return self.head(h) if target is None else self.head(h, target)


class WithTargets(Backprop):
    """Backpropagation through a network that sees the targets in training, as a classifier of class means must."""

    def backward(self, x: Tensor, y: Tensor) -> dict[str, Tensor]:
        """Add the gradient of the loss to `.grad`; see `Rule.backward`."""
        loss = self.loss(self.model(x, y), y)
        loss.backward()
        return {"loss": loss.detach()}
