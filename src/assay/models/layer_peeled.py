"""The layer-peeled model: a linear head on free features whose norms are bounded instead of decayed.

Fang, He, Long, Su (2021, arXiv:2101.12699), with each vector bounded by itself as in Kothapalli's review (2023,
arXiv:2206.04041); the minimum is the same as with bounded means of squared norms, `assay.models.layer_peeled_minimum`.

    min mean L(W h_i + b, y_i)  subject to  |w_k|^2 <= EW, |h_i|^2 <= EH

Shapes: K classes, n samples each, N = K n, d features; W (K, d), H (N, d), b (K,).
Projected gradients keep the bounds: call `project` after each step of any optimizer, without weight decay.
"""

from __future__ import annotations

import torch

from assay.errors import InvalidInput
from assay.models.unconstrained_features import UnconstrainedFeatures

__all__ = ["LayerPeeled"]


class LayerPeeled(UnconstrainedFeatures):
    """Unconstrained features with bounded norms.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1; samples are ordered by class.
        features: d.
        weight_bound: EW, above 0.
        feature_bound: EH, above 0.
        bias: Whether the head has a bias.
        generator: Decides the start; None is the fixed start of seed 0.

    Raises:
        InvalidInput: If a size or a bound is out of range.

    Example:
        >>> model = LayerPeeled(3, 2, 4, weight_bound=1.0, feature_bound=4.0)
        >>> bool((model.features.norm(dim=1) <= 2 + 1e-12).all()), model().shape
        (True, torch.Size([6, 3]))
    """

    def __init__(
        self,
        num_classes: int,
        samples_per_class: int,
        features: int,
        weight_bound: float = 1.0,
        feature_bound: float = 1.0,
        bias: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        if weight_bound <= 0 or feature_bound <= 0:
            raise InvalidInput(f"expected bounds above 0; got {weight_bound} and {feature_bound}")
        super().__init__(num_classes, samples_per_class, features, bias, generator)
        self.weight_bound, self.feature_bound = weight_bound, feature_bound
        self.project()

    @torch.no_grad()
    def project(self) -> None:
        """Shorten the vectors that are longer than their bound, in place."""
        for rows, bound in ((self.head.weight, self.weight_bound), (self.features, self.feature_bound)):
            rows.mul_((bound**0.5 / rows.norm(dim=1, keepdim=True)).clamp(max=1))
