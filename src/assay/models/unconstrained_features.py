"""The unconstrained feature model: a linear head on features that are free variables, and its global minimum.

Papers: "Are All Losses Created Equal: A Neural Collapse Perspective" (arXiv:2210.02192); for squared loss "On the
Optimization Landscape of Neural Collapse under MSE Loss" (arXiv:2203.01238).

    f(W, H, b) = 1/N sum_{k,i} L(W h_{k,i} + b, k) + lW/2 ||W||^2 + lH/2 ||H||^2 + lb/2 ||b||^2

Shapes: K classes, n samples each, N = K n, d features; W (K, d), H (N, d), b (K,).

The global minimum needs no training. With s = sqrt(n lW lH), the two norms cost s times the nuclear norm of the class
scores W H^T, and symmetry leaves scores a (I - J/K) + t J (J all ones), so that

    f* = min_{a >= 0, t}  L(a (e_1 - 1/K) + t, 1) + s (K - 1) a + offset(t)

where offset(t), the price of a common offset paid through the bias or through W H^T, whichever is cheaper, is Huber's
function with slope s K and curvature lb K (0 without decay of b). This holds for losses that treat classes alike and
are convex in the scores, and for focal loss by the paper's theorem; it needs d >= K (K - 1 where t is free or useless).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize
from torch import Tensor, nn

from assay.errors import InvalidInput

__all__ = ["CollapsedMinimum", "UnconstrainedFeatures", "collapsed_minimum"]

Loss = Callable[[Tensor, Tensor], Tensor]


class UnconstrainedFeatures(nn.Module):
    """A head and one free feature vector per sample; `model()` gives the scores of all samples.

    Args:
        num_classes: K, at least 2.
        samples_per_class: n, at least 1; samples are ordered by class.
        features: d, the width of the features.
        bias: Whether the head has a bias.
        generator: Decides the start (standard normal times `scale`); None is the fixed start of seed 0.
        scale: Size of the start.
        dtype: Of all parameters.

    Raises:
        InvalidInput: On fewer than 2 classes, or no sample or feature.

    Example:
        >>> model = UnconstrainedFeatures(num_classes=3, samples_per_class=2, features=4)
        >>> model().shape, model.targets.tolist()
        (torch.Size([6, 3]), [0, 0, 1, 1, 2, 2])
    """

    targets: Tensor

    def __init__(
        self,
        num_classes: int,
        samples_per_class: int,
        features: int,
        bias: bool = True,
        generator: torch.Generator | None = None,
        scale: float = 1.0,
        dtype: torch.dtype = torch.float64,
    ) -> None:
        super().__init__()
        if num_classes < 2 or samples_per_class < 1 or features < 1:
            raise InvalidInput(
                "expected num_classes >= 2, samples_per_class >= 1 and features >= 1; "
                f"got {num_classes}, {samples_per_class} and {features}"
            )
        generator = generator or torch.Generator().manual_seed(0)
        samples = num_classes * samples_per_class
        self.features = nn.Parameter(scale * torch.randn(samples, features, generator=generator, dtype=dtype))
        self.head = nn.utils.skip_init(nn.Linear, features, num_classes, bias=bias, dtype=dtype)
        with torch.no_grad():
            for parameter in self.head.parameters():
                parameter.copy_(scale * torch.randn(parameter.shape, generator=generator, dtype=dtype))
        self.register_buffer("targets", torch.arange(num_classes).repeat_interleave(samples_per_class))

    def forward(self) -> Tensor:
        """Return the scores of all samples (N, K)."""
        return self.head(self.features)

    def objective(self, loss: Loss, weight_decay: float, feature_decay: float, bias_decay: float = 0.0) -> Tensor:
        """Return f(W, H, b).

        Args:
            loss: Mean loss of scores (N, K) and targets (N,).
            weight_decay: lW.
            feature_decay: lH.
            bias_decay: lb.
        """
        value = loss(self(), self.targets)
        value = value + weight_decay / 2 * self.head.weight.square().sum()
        value = value + feature_decay / 2 * self.features.square().sum()
        if self.head.bias is not None:
            value = value + bias_decay / 2 * self.head.bias.square().sum()
        return value


@dataclass(frozen=True)
class CollapsedMinimum:
    """Where the unconstrained feature model with a bias ends.

    Args:
        scale: a: class k's scores are a (e_k - 1/K) + offset.
        offset: t; 0 for losses that ignore a common offset.
        value: f*, the objective's global minimum.
    """

    scale: float
    offset: float
    value: float


def collapsed_minimum(
    loss: Loss,
    num_classes: int,
    samples_per_class: int,
    weight_decay: float,
    feature_decay: float,
    bias_decay: float = 0.0,
) -> CollapsedMinimum:
    """Return the global minimum of the unconstrained feature model by solving for its two scalars.

    Args:
        loss: Mean loss of scores (B, K) and targets (B,), symmetric in the classes.
        num_classes: K.
        samples_per_class: n.
        weight_decay: lW, above 0.
        feature_decay: lH, above 0.
        bias_decay: lb, 0 or larger.

    Raises:
        InvalidInput: If a decay has the wrong sign.

    Example:
        >>> round(collapsed_minimum(nn.functional.cross_entropy, 4, 6, 5e-3, 5e-3).value, 8)
        0.19781481
    """
    if weight_decay <= 0 or feature_decay <= 0 or bias_decay < 0:
        raise InvalidInput(
            "expected weight_decay > 0, feature_decay > 0 and bias_decay >= 0; "
            f"got {weight_decay}, {feature_decay} and {bias_decay}"
        )
    slope = (samples_per_class * weight_decay * feature_decay) ** 0.5
    simplex = torch.eye(num_classes, dtype=torch.float64)[:1] - 1 / num_classes
    first_class = torch.zeros(1, dtype=torch.long)

    def objective(scalars: np.ndarray) -> tuple[float, np.ndarray]:
        scalars_ = torch.tensor(scalars, dtype=torch.float64, requires_grad=True)
        scale, offset = scalars_
        value = loss(scale * simplex + offset, first_class) + slope * (num_classes - 1) * scale
        value = value + _offset_price(offset, slope * num_classes, bias_decay * num_classes)
        (gradient,) = torch.autograd.grad(value, scalars_)
        return value.item(), gradient.numpy()

    # Focal loss is not convex in the scale, so several starts; the tolerances leave rounding as the only error.
    found = [
        minimize(
            objective,
            np.array([start, 0.0]),
            jac=True,
            method="L-BFGS-B",
            bounds=[(0, None), (None, None)],
            options={"ftol": 0.0, "gtol": 1e-12, "maxiter": 1000},
        )
        for start in (0.1, 1.0, 10.0)
    ]
    best = min(found, key=lambda result: result.fun)
    return CollapsedMinimum(scale=float(best.x[0]), offset=float(best.x[1]), value=float(best.fun))


def _offset_price(offset: Tensor, slope: float, curvature: float) -> Tensor:
    """Return Huber's function: quadratic through the bias, linear beyond the point where W H^T is the cheaper way."""
    if curvature == 0:
        return torch.zeros_like(offset)
    quadratic = curvature / 2 * offset.square()
    linear = slope * (offset.abs() - slope / (2 * curvature))
    return torch.where(offset.abs() <= slope / curvature, quadratic, linear)
