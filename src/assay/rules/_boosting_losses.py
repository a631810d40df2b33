"""Losses as gradient boosting needs them: best constant, pseudo-residuals, and the Newton step along a direction.

Emami and Martinez-Munoz, IEEE Access 11 (2023) 42738, arXiv:1909.12098; equations from the official code. The step is
one Newton step on sum L(F + rho f) from rho = 0; for several classes with the diagonal of the Hessian. Only the squared
and the logistic loss start from their best constant, all others from 0.

Shapes: F and f (N, k), the raw outputs; scores (N, outputs) = F E with E (k, outputs), the identity but for two classes
with one raw output, where the scores are (-F, F), so that their softmax is 1 / (1 + exp(-2 F)).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.rules._loss_check import check_loss

__all__ = ["BoostingLoss", "boosting_loss"]

Loss = Callable[[Tensor, Tensor], Tensor]

# Below this mean curvature the losses are flat: residuals are rounding errors.
FLAT = 1e-12
# One wrong sample in a flat region would ask for thousands.
LARGEST_STEP = 100.0
# From the largest step down to 1e-7.
HALVINGS = 30


def _quotient(slope: Tensor, curvature: Tensor, samples: int) -> float:
    """Return slope / curvature within bounds, 0 where there is no curvature."""
    if not curvature > FLAT * samples:
        return 0.0
    return float((slope / curvature).clamp(-LARGEST_STEP, LARGEST_STEP))


class BoostingLoss(ABC):
    """What a stage asks of a loss."""

    def encoding(self, outputs: int) -> Tensor:
        """Return E (k, outputs)."""
        return torch.eye(outputs)

    @abstractmethod
    def targets(self, y: Tensor, outputs: int) -> Tensor:
        """Return targets as the other methods take them.

        Raises:
            InvalidInput: If they don't fit.
        """

    def start(self, y: Tensor, k: int) -> Tensor:
        """Return the constant F_0 (k,)."""
        return torch.zeros(k)

    @abstractmethod
    def residual(self, y: Tensor, raw: Tensor) -> Tensor:
        """Return -dL/dF (N, k) of the summed loss."""

    @abstractmethod
    def newton(self, y: Tensor, raw: Tensor, f: Tensor) -> float:
        """Return the Newton step along f."""

    @abstractmethod
    def value(self, y: Tensor, raw: Tensor) -> Tensor:
        """Return the mean loss."""


class Squared(BoostingLoss):
    """(y - F)^2 / 2; the residual fit is a least-squares fit already, so its step is 1."""

    def targets(self, y: Tensor, outputs: int) -> Tensor:
        y = y[:, None] if y.ndim == 1 else y
        if not y.is_floating_point() or y.shape[1:] != (outputs,):
            raise InvalidInput(
                f"the squared loss needs targets (B, {outputs}) of real numbers, got {tuple(y.shape)} of {y.dtype}"
            )
        return y

    def start(self, y: Tensor, k: int) -> Tensor:
        return y.mean(0)

    def residual(self, y: Tensor, raw: Tensor) -> Tensor:
        return y - raw

    def newton(self, y: Tensor, raw: Tensor, f: Tensor) -> float:
        return 1.0

    def value(self, y: Tensor, raw: Tensor) -> Tensor:
        return (y - raw).square().mean() / 2


def _classes(y: Tensor, classes: int) -> Tensor:
    if y.ndim != 1 or y.is_floating_point() or not 0 <= int(y.min()) <= int(y.max()) < classes:
        raise InvalidInput(f"expected class labels (B,) from 0 to {classes - 1}, got {tuple(y.shape)} of {y.dtype}")
    return y.long()


class Logistic(BoostingLoss):
    """log(1 + exp(-2 y F)) with y = -1 or 1: two classes on one raw output."""

    def encoding(self, outputs: int) -> Tensor:
        if outputs != 2:
            raise InvalidInput(f"the logistic loss is one of two classes, but the model has {outputs} outputs")
        return torch.tensor([[-1.0, 1.0]])

    def targets(self, y: Tensor, outputs: int) -> Tensor:
        return 2.0 * _classes(y, 2)[:, None] - 1

    def start(self, y: Tensor, k: int) -> Tensor:
        # A single class would ask for infinite odds.
        return torch.atanh(y.mean(0).clamp(-1 + 1e-6, 1 - 1e-6))

    def residual(self, y: Tensor, raw: Tensor) -> Tensor:
        return 2 * y * torch.sigmoid(-2 * y * raw)

    def newton(self, y: Tensor, raw: Tensor, f: Tensor) -> float:
        r = self.residual(y, raw)
        return _quotient((r * f).sum(), (r * f.square() * (2 * y - r)).sum(), len(y))

    def value(self, y: Tensor, raw: Tensor) -> Tensor:
        return F.softplus(-2 * y * raw).mean()


class Softmax(BoostingLoss):
    """Cross-entropy."""

    def targets(self, y: Tensor, outputs: int) -> Tensor:
        return F.one_hot(_classes(y, outputs), outputs).float()

    def residual(self, y: Tensor, raw: Tensor) -> Tensor:
        return y - raw.softmax(1)

    def newton(self, y: Tensor, raw: Tensor, f: Tensor) -> float:
        p = raw.softmax(1)
        return _quotient(((y - p) * f).sum(), (f.square() * p * (1 - p)).sum(), len(y))

    def value(self, y: Tensor, raw: Tensor) -> Tensor:
        return F.cross_entropy(raw, y)


class Differentiable(BoostingLoss):
    """A mean loss of scores and targets, by automatic differentiation; its curvature along f is exact.

    A step is halved until the loss falls. It starts at 1 where the loss is not convex along f, is piecewise linear or
    can't be differentiated twice.
    """

    def __init__(self, loss: Loss) -> None:
        self.loss = loss

    def targets(self, y: Tensor, outputs: int) -> Tensor:
        return y[:, None] if y.is_floating_point() and y.ndim == 1 and outputs == 1 else y

    def residual(self, y: Tensor, raw: Tensor) -> Tensor:
        check_loss(self.loss, raw, y)
        with torch.enable_grad():
            raw = raw.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.loss(raw, y), raw)
        return -len(y) * slope

    def newton(self, y: Tensor, raw: Tensor, f: Tensor) -> float:
        with torch.enable_grad():
            rho = torch.zeros((), dtype=raw.dtype, device=raw.device, requires_grad=True)
            (slope,) = torch.autograd.grad(self.loss(raw + rho * f, y), rho, create_graph=True)
            curvature = _derivative(slope, rho)
        step = _quotient(-slope.detach(), curvature, 1) if curvature > FLAT else 1.0
        before = self.value(y, raw)
        for halvings in range(HALVINGS):
            if self.value(y, raw + step / 2**halvings * f) < before:
                return step / 2**halvings
        return 0.0

    def value(self, y: Tensor, raw: Tensor) -> Tensor:
        return self.loss(raw, y)


def _derivative(slope: Tensor, rho: Tensor) -> Tensor:
    """Return the second derivative, 0 where torch has none."""
    if not slope.requires_grad:  # piecewise linear
        return torch.zeros(())
    try:
        return torch.autograd.grad(slope, rho)[0]
    except RuntimeError:  # some criteria of torch's are differentiable only once
        return torch.zeros(())


NAMED: dict[str, type[BoostingLoss]] = {"squared": Squared, "logistic": Logistic, "softmax": Softmax}


def boosting_loss(loss: str | Loss) -> BoostingLoss:
    """Return a loss by name or, of a criterion, the loss of the paper that it is; others are differentiated.

    Raises:
        InvalidInput: If there is no such name.
    """
    if isinstance(loss, str):
        if loss not in NAMED:
            raise InvalidInput(f"loss must be {', '.join(NAMED)} or a criterion, not {loss!r}")
        return NAMED[loss]()
    settings = vars(loss) if isinstance(loss, nn.Module) else {}
    if loss is F.cross_entropy or (type(loss) is nn.CrossEntropyLoss and settings == vars(nn.CrossEntropyLoss())):
        return Softmax()
    if loss is F.mse_loss or (type(loss) is nn.MSELoss and settings == vars(nn.MSELoss())):
        return Squared()
    return Differentiable(loss)
