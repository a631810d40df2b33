"""PerpGrad removes from each gradient its component along the weights, which only scales the logits.

Paper: "Grokking at the Edge of Numerical Stability" (arXiv:2501.04697). For weights w with gradient g, before a step:

    g'  = g - <w, g> / (<w, w> + eps) w          (projection)
    g'' = g' ||g|| / (||g'|| + eps)              (rescaled to the old length, as the official code does)

Shapes: w and g are a parameter tensor each (granularity "tensor", the official code's) or all of the optimizer's
parameters that have a gradient as one vector (granularity "global", the paper's equation).

Departures, where the official code would feed the optimizer noise: a tensor of one element is left alone (its whole
gradient is along itself), and where ||g'|| is within rounding of 0 the gradient is not rescaled. Half-precision tensors
are projected in float32. The rule is homogeneous in g, so loss scaling does not matter. Gradients of a closure passed
to `step` are projected each time it is evaluated. Decoupled weight decay acts outside the projection.
Cost: a few passes over the parameters per step, no state, no host synchronisation.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._gradient_transform import GradientTransform

__all__ = ["PerpGrad", "perpendicular"]

GRANULARITIES = ("tensor", "global")


def _working(tensor: Tensor) -> Tensor:
    """Return a detached real vector, in at least float32; shares memory where nothing has to change."""
    real = torch.view_as_real(tensor.detach()) if tensor.is_complex() else tensor.detach()
    return real.reshape(-1).to(torch.promote_types(real.dtype, torch.float32))


def _inner(a: list[Tensor], b: list[Tensor]) -> Tensor:
    """Return the inner product of two lists of vectors read as one vector each."""
    return torch.stack([torch.dot(x, y).to(a[0].device) for x, y in zip(a, b, strict=True)]).sum()


def _project(weights: list[Tensor], gradients: list[Tensor], rescale: bool, eps: float) -> list[Tensor]:
    coefficient = _inner(weights, gradients) / (_inner(weights, weights) + eps)
    projected = [g - coefficient.to(w.device) * w for w, g in zip(weights, gradients, strict=True)]
    if not rescale:
        return projected
    before, after = _inner(gradients, gradients).sqrt(), _inner(projected, projected).sqrt()
    rounding = 16 * torch.finfo(before.dtype).eps
    scale = torch.where(after > rounding * before, before / (after + eps), 1.0)
    return [g * scale.to(g.device, g.dtype) for g in projected]


def perpendicular(weight: Tensor, gradient: Tensor, rescale: bool = True, eps: float = 1e-30) -> Tensor:
    """Return the gradient's component orthogonal to the weight.

    Args:
        weight: Any shape.
        gradient: Same shape.
        rescale: Give the result the gradient's norm.
        eps: Added to denominators; 0 weights leave the gradient as it is.

    Returns:
        Tensor of the gradient's shape and type.

    Example:
        >>> perpendicular(torch.tensor([1.0, 0.0]), torch.tensor([3.0, 4.0]))
        tensor([0., 5.])
    """
    (result,) = _project([_working(weight)], [_working(gradient)], rescale, eps)
    return _as(result, gradient)


def _as(vector: Tensor, like: Tensor) -> Tensor:
    if like.is_complex():
        return torch.view_as_complex(vector.view(*like.shape, 2)).to(like.dtype)
    return vector.view(like.shape).to(like.dtype)


class PerpGrad(GradientTransform):
    """Projects an optimizer's gradients before each of its steps.

    The optimizer stays the one to call, to schedule and to save: its groups, state and state dict are untouched.

    Args:
        optimizer: Any `torch.optim.Optimizer`. Use weight decay 0 for the paper's method.
        granularity: "tensor" projects each parameter tensor, "global" all of them as one vector.
        rescale: Give the projected gradient the old norm, as the official code does.
        eps: Added to denominators, above 0.

    Raises:
        InvalidInput: On an unknown granularity or an eps not above 0; from `step`, on a sparse gradient (the
            projection is dense).

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 0.0]))
        >>> optimizer = torch.optim.SGD([weight], lr=0.5)
        >>> with PerpGrad(optimizer):
        ...     weight.grad = torch.tensor([3.0, 4.0])
        ...     optimizer.step()
        >>> weight.data
        tensor([ 1.0000, -2.5000])
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        granularity: str = "tensor",
        rescale: bool = True,
        eps: float = 1e-30,
    ) -> None:
        if granularity not in GRANULARITIES:
            raise InvalidInput(f"granularity must be one of {', '.join(GRANULARITIES)}; got {granularity!r}")
        if not 0 < eps < math.inf:
            raise InvalidInput(f"eps must be a finite number above 0; got {eps}")
        super().__init__(optimizer)
        self.granularity = granularity
        self.rescale = rescale
        self.eps = eps

    @torch.no_grad()
    def project(self) -> None:
        """Project the gradients that the optimizer's parameters hold now, in place; `step` does this by itself."""
        parameters = self._holders()
        if self.granularity == "global":
            self._replace(parameters)
            return
        for parameter in parameters:
            if parameter.numel() > 1:
                self._replace([parameter])

    def change(self) -> None:
        """Project; what the optimizer's step calls."""
        self.project()

    def _replace(self, parameters: Iterable[Tensor]) -> None:
        holders = [p for p in parameters if p.numel() > 0]
        if not holders:
            return
        gradients: list[Tensor] = [p.grad for p in holders]  # type: ignore[misc]
        weights, working = [_working(p) for p in holders], [_working(g) for g in gradients]
        for old, new in zip(gradients, _project(weights, working, self.rescale, self.eps), strict=True):
            old.copy_(_as(new, old))
