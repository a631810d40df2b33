"""SAM steps with the gradient found a little uphill, so that the loss falls in a whole neighbourhood of the weights.

Paper: "Sharpness-Aware Minimization for Efficiently Improving Generalization" (arXiv:2010.01412), eq. (2) and
algorithm 1; the adaptive form is ASAM's (arXiv:2102.11600), without its small constant. It is the reference optimizer
of `useful` (arXiv:2404.17768). For weights w with gradient g = grad L(w), taken over all parameters as one vector:

    e = rho g / ||g||                  (SAM)
    e = rho w^2 g / || |w| g ||        (adaptive, element by element)
    the base optimizer steps from w with grad L(w + e)

Shapes: w, g and e are lists of parameter tensors of any shape.

SAM holds no state of its own: groups, state and state dict are the base optimizer's, with `rho` and `adaptive` in each
group. The step needs a closure, as the loss is evaluated twice; dropout draws anew and running statistics of batch norm
are updated in both evaluations. Loss scaling by `torch.amp.GradScaler` does not support closures.
Departure: weights are copied and put back, instead of subtracting e, so that they return bit for bit.
Cost: two forward and backward passes per step, and one copy of the weights during it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._dense import refuse_sparse

__all__ = ["SAM"]


class SAM(torch.optim.Optimizer):
    """Sharpness-aware minimisation around any optimizer whose step needs no closure.

    Make schedulers with this object, or with the base: they share their groups.

    Args:
        base: Takes the step with the gradient at w + e; construct it with the parameters as usual.
        rho: Radius of the neighbourhood, at least 0; 0 is the base optimizer at twice the cost. Groups may differ.
        adaptive: Measure the neighbourhood in units of each weight's size, as ASAM does.

    Raises:
        InvalidInput: If `base` is no optimizer or `rho` is below 0 or not finite; from `step`, if there is no closure
            or a gradient is sparse.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = SAM(torch.optim.SGD([w], lr=0.5), rho=1.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), w.item()  # 3 - 0.5 (3 + 1)
        (4.5, 1.0)
    """

    needs_closure = True

    def __init__(self, base: torch.optim.Optimizer, rho: float = 0.05, adaptive: bool = False) -> None:
        if not isinstance(base, torch.optim.Optimizer):
            raise InvalidInput(
                f"SAM wraps an optimizer, got {type(base).__name__}; write SAM(torch.optim.SGD(parameters, lr=0.1))"
            )
        _check_radius(rho)
        self.base = base
        super().__init__(base.param_groups, {**base.defaults, "rho": rho, "adaptive": adaptive})
        self._share()

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Computes the loss, calls `backward()` and returns the loss; it is called twice, and gradients of
                these parameters are cleared before either call.

        Returns:
            What the closure returned at w.

        Raises:
            InvalidInput: If there is no closure, or a gradient is sparse.
        """
        if closure is None:
            raise InvalidInput(
                "SAM evaluates the loss twice and got no closure; call step(closure) with a function that computes the "
                "loss, calls backward() and returns it"
            )
        loss = self._evaluate(closure)
        weights = self._climb()
        try:
            self._evaluate(closure)
        finally:
            with torch.no_grad():
                for parameter, weight in weights:
                    parameter.copy_(weight)
        self.base.step()
        return loss

    def _evaluate(self, closure: Callable[[], Any]) -> Any:
        self.zero_grad()
        with torch.enable_grad():
            return closure()

    @torch.no_grad()
    def _climb(self) -> list[tuple[Tensor, Tensor]]:
        """Move the weights to w + e and return each moved parameter with its old value."""
        moved = [(p, group) for group in self.param_groups for p in group["params"] if p.grad is not None]
        for parameter, _ in moved:
            refuse_sparse(parameter, "SAM")
        length = _norm([_scaled(p, group["adaptive"]) for p, group in moved])
        weights = [(p, p.clone()) for p, _ in moved]
        for parameter, group in moved:
            direction = _scaled(parameter, group["adaptive"])
            if group["adaptive"]:
                direction = direction * parameter.abs()
            step = group["rho"] / length.clamp(min=torch.finfo(length.dtype).tiny)
            parameter.add_(direction * step.to(parameter.device, direction.dtype))
        return weights

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with this object's `rho` and `adaptive` unless it has its own."""
        if self.param_groups is not self.base.param_groups:  # the base's own groups, read by the constructor
            super().add_param_group(param_group)
            return
        own = {name: self.defaults[name] for name in ("rho", "adaptive")}
        self.base.add_param_group(own | param_group)

    def state_dict(self) -> dict[str, Any]:
        """Return the base optimizer's state dict, whose groups say `rho` and `adaptive`."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore the base optimizer; a state dict saved without SAM keeps this object's `rho` and `adaptive`."""
        self.base.load_state_dict(state_dict)
        self._share()

    def _share(self) -> None:
        self.param_groups, self.state = self.base.param_groups, self.base.state
        for group in self.param_groups:
            group.setdefault("rho", self.defaults["rho"])
            group.setdefault("adaptive", self.defaults["adaptive"])
            _check_radius(group["rho"])

    def __getstate__(self) -> dict[str, Any]:
        return {"base": self.base, "defaults": self.defaults}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._share()


def _check_radius(rho: float) -> None:
    if not 0 <= rho < math.inf:
        raise InvalidInput(f"rho must be a finite number of at least 0; got {rho}")


def _scaled(parameter: Tensor, adaptive: bool) -> Tensor:
    """Return g, or |w| g, in at least float32: half precision has no room for squares of gradients."""
    gradient: Tensor = parameter.grad  # type: ignore[assignment]
    gradient = gradient.to(torch.promote_types(gradient.dtype, torch.float32))
    return gradient * parameter.abs() if adaptive else gradient


def _norm(tensors: list[Tensor]) -> Tensor:
    """Return the norm of all tensors as one vector, on the first one's device."""
    if not tensors:
        return torch.ones(())
    norms = [torch.linalg.vector_norm(t).to(tensors[0].device) for t in tensors]
    return torch.linalg.vector_norm(torch.stack(norms))
