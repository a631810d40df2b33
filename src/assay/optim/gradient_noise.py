"""Gradient noise: annealed Gaussian noise on every gradient entry before the optimizer's step.

Neelakantan, Vilnis, Le, Sutskever, Kaiser, Kurach and Martens, arXiv:1511.06807. At step t = 0, 1, 2, ...

    g <- clip(g, clip_norm);   g <- g + N(0, sigma_t^2 I),   sigma_t^2 = eta / (1 + t)^gamma

with gamma = 0.55 and eta from {0.01, 0.3, 1} in the paper. With zero gradients and plain SGD the weights walk at
random, with standard deviation `accumulated_deviation` after T steps; that is how training leaves an initialisation in
which nothing depends on the weights.

Shapes: g is each parameter's gradient; the norm for clipping is over all of them.
Departures: noise is drawn on the generator's device and moved to the gradient's, so that a run with a CPU generator is
the same on every device; in float32 or wider. With Adam the noise's own size divides out of the update: there eta says
how much of a step is noise, not how far it goes.
Cost: one normal draw per gradient entry and step.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.optim._gradient_transform import GradientTransform

__all__ = ["GradientNoise", "accumulated_deviation", "add_gradient_noise_"]


def _check(eta: float, gamma: float) -> None:
    if not 0 <= eta < math.inf:
        raise InvalidInput(f"eta, the noise's first variance, must be finite and at least 0; got {eta}")
    if not 0 <= gamma < math.inf:
        raise InvalidInput(f"gamma, how fast the variance falls, must be finite and at least 0; got {gamma}")


def add_gradient_noise_(
    parameters: Iterable[Tensor], t: int, eta: float, gamma: float = 0.55, generator: torch.Generator | None = None
) -> None:
    """Add N(0, eta / (1 + t)^gamma) to every entry of the gradients, in place.

    Args:
        parameters: Tensors; those without a gradient are left alone.
        t: Steps made so far, at least 0.
        eta: Variance at step 0.
        gamma: How fast the variance falls; 0 keeps it constant.
        generator: Where the noise comes from; None is torch's global generator.

    Raises:
        InvalidInput: If eta or gamma is negative or infinite, or t is negative.

    Example:
        >>> weight = torch.zeros(100_000, requires_grad=True)
        >>> weight.grad = torch.zeros(100_000)
        >>> add_gradient_noise_([weight], t=0, eta=0.25, generator=torch.Generator().manual_seed(0))
        >>> round(float(weight.grad.std()), 2)
        0.5
    """
    _check(eta, gamma)
    if t < 0:
        raise InvalidInput(f"t, the steps made so far, must be at least 0; got {t}")
    deviation = math.sqrt(eta / (1 + t) ** gamma)
    if deviation == 0:
        return
    for parameter in parameters:
        if parameter.grad is None:
            continue
        gradient = parameter.grad.detach()
        gradient = torch.view_as_real(gradient) if gradient.is_complex() else gradient
        device = generator.device if generator is not None else gradient.device
        dtype = torch.promote_types(gradient.dtype, torch.float32)
        noise = torch.randn(gradient.shape, generator=generator, device=device, dtype=dtype)
        gradient.add_(noise.to(gradient.device, gradient.dtype), alpha=deviation)


def accumulated_deviation(lr: float, steps: int, eta: float, gamma: float = 0.55) -> float:
    """Return the standard deviation of a weight that SGD moves by noise alone: lr sqrt(sum_t sigma_t^2), t < steps.

    A ReLU network of a given width starts to learn where this comes near sqrt(2 / width), the size of He's weights.

    Args:
        lr: Learning rate.
        steps: Steps made.
        eta: Variance of the noise at step 0.
        gamma: How fast the variance falls.
    """
    _check(eta, gamma)
    return lr * math.sqrt(eta * math.fsum((1 + t) ** -gamma for t in range(steps)))


class GradientNoise(GradientTransform):
    """Adds annealed Gaussian noise to an optimizer's gradients before each of its steps.

    Args:
        optimizer: Any optimizer that evaluates its gradients once per step.
        eta: Variance of the noise at the first step; 0 only clips.
        gamma: How fast the variance falls; 0 keeps it constant.
        clip_norm: Largest norm of all gradients together, applied before the noise; None does not clip.
        generator: Where the noise comes from; None is a fresh one with seed 0, never torch's global one.

    Raises:
        InvalidInput: On an option out of its range, or an optimizer that evaluates its gradients several times per
            step and would see another noise each time; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.zeros(3))
        >>> optimizer = torch.optim.SGD([weight], lr=1.0)
        >>> noise = GradientNoise(optimizer, eta=1.0)
        >>> weight.grad = torch.zeros(3)
        >>> optimizer.step()
        >>> bool((weight != 0).all())
        True
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        eta: float = 0.3,
        gamma: float = 0.55,
        clip_norm: float | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        _check(eta, gamma)
        if clip_norm is not None and not clip_norm > 0:
            raise InvalidInput(f"clip_norm must be above 0, or None; got {clip_norm}")
        if isinstance(optimizer, torch.optim.LBFGS) or getattr(optimizer, "needs_closure", False):
            raise InvalidInput(
                f"{type(optimizer).__name__} evaluates gradients several times per step and would see another noise "
                "each time; use an optimizer that evaluates them once, such as SGD or Adam"
            )
        super().__init__(optimizer)
        self.eta, self.gamma, self.clip_norm = eta, gamma, clip_norm
        self.generator = generator if generator is not None else torch.Generator().manual_seed(0)
        self.t = 0

    def change(self) -> None:
        """Clip and add noise; what the optimizer's step calls, once per step."""
        holders = self._holders()
        if self.clip_norm is not None:
            nn.utils.clip_grad_norm_(holders, self.clip_norm)
        add_gradient_noise_(holders, self.t, self.eta, self.gamma, self.generator)
        self.t += 1

    def state_dict(self) -> dict[str, Any]:
        """Return the number of steps and the generator's state; save it beside the optimizer's own."""
        return {"t": self.t, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on where `state_dict` was taken."""
        self.t = int(state["t"])
        self.generator.set_state(state["generator"].cpu())
