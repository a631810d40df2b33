"""Gradient descent whose step is found by Armijo's rule: shrink it until the loss falls as a share c of the slope says.

Armijo, "Minimization of functions having Lipschitz continuous first partial derivatives", 1966; on mini-batches it is
the line search of Vaswani et al. (arXiv:1905.09997), and the inner solver of target surrogates (arXiv:2302.02607).
With gradients g and learning rates lr of the groups, take the first s in (s0, s0 b, s0 b^2, ...) for which

    L(w - s lr g) <= L(w) - c s sum lr |g|^2,      s0 = min(1, expand * the last accepted s)

Shapes: w and g are lists of parameter tensors of any shape; sums are over all of them.

Departures: lr is the largest step and not the first of an unbounded sequence, so that schedulers and groups mean what
they mean elsewhere. Where no trial is accepted, or the loss or a gradient is not finite, the weights stay as they were.
Official code shrinks by 0.9, which takes up to seven times as many trials as 0.5.
Cost: one backward pass per step, and a forward pass (without `value`, a backward pass too) per trial, about two if
1 / shrink = expand; one copy of the weights; each trial waits for the device.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._dense import refuse_sparse

__all__ = ["ArmijoDescent"]


class ArmijoDescent(torch.optim.Optimizer):
    """Gradient descent with backtracking line search.

    Args:
        params: Parameters or groups; groups may differ in `lr`.
        lr: Largest step, at least 0.
        c: Share of the slope that a step must deliver, between 0 and 1.
        shrink: Factor by which a rejected step is shortened, between 0 and 1.
        expand: Factor by which the last accepted step may grow, at least 1.
        max_trials: Trials before a step is given up.

    Raises:
        InvalidInput: If a number is out of range; from `step`, if there is no closure, it returns no loss, or a
            gradient is sparse.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([3.0]))
        >>> optimizer = ArmijoDescent([w], lr=8.0)
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = w.square().sum() / 2
        ...     loss.backward()
        ...     return loss
        >>> optimizer.step(closure).item(), w.item()  # 8, 4 and 2 are too long
        (4.5, 0.0)
    """

    needs_closure = True

    def __init__(
        self,
        params: Any,
        lr: float = 10.0,
        c: float = 0.1,
        shrink: float = 0.5,
        expand: float = 2.0,
        max_trials: int = 50,
    ) -> None:
        if not 0 <= lr < math.inf:
            raise InvalidInput(f"lr must be a finite number of at least 0; got {lr}")
        if not (0 < c < 1 and 0 < shrink < 1 and 1 <= expand < math.inf and max_trials >= 1):
            raise InvalidInput(
                f"expected 0 < c < 1, 0 < shrink < 1, expand >= 1 and max_trials >= 1; got {c}, {shrink}, {expand} and "
                f"{max_trials}"
            )
        self.c, self.shrink, self.expand, self.max_trials = c, shrink, expand, max_trials
        super().__init__(params, {"lr": lr})

    def step(self, closure: Callable[[], Any] | None = None, value: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Clears the gradients, computes the loss, calls `backward()` and returns the loss.
            value: Returns the loss alone, for the trials; without it they call the closure.

        Returns:
            What the closure returned before the step.

        Raises:
            InvalidInput: If there is no closure, it returns no loss, or a gradient is sparse.
        """
        if closure is None:
            raise InvalidInput(
                "ArmijoDescent compares losses and got no closure; call step(closure) with a function that computes "
                "the loss, calls backward() and returns it"
            )
        with torch.enable_grad():
            loss = closure()
        if loss is None:
            raise InvalidInput("ArmijoDescent compares losses, but the closure returned None; let it return the loss")
        with torch.no_grad():
            self._search(float(loss), lambda: float(self._evaluated(closure if value is None else value)))
        return loss

    def __getstate__(self) -> dict[str, Any]:
        options = ("c", "shrink", "expand", "max_trials")  # torch's keeps groups and state alone
        return super().__getstate__() | {name: getattr(self, name) for name in options}

    def _evaluated(self, function: Callable[[], Any]) -> Any:
        with torch.enable_grad():
            return function()

    def _search(self, loss: float, value: Callable[[], float]) -> None:
        moved = [_Moved(group, self.c) for group in self.param_groups]
        slope = sum(each.slope for each in moved)
        if not (math.isfinite(loss) and 0 < slope < math.inf):
            return
        state = self.state[next(p for group in self.param_groups for p in group["params"])]
        scale = min(1.0, self.expand * state.get("scale", 1.0))
        for _ in range(self.max_trials):
            for each in moved:
                each.try_step(scale)
            if value() <= loss - scale * slope:
                state["scale"] = scale
                return
            scale *= self.shrink
        for each in moved:
            each.try_step(0.0)
        state["scale"] = 1.0  # a hard batch must not leave the next ones with steps that lead nowhere


class _Moved:
    """The parameters of a group, where they were, and the direction in which they are tried."""

    def __init__(self, group: dict[str, Any], c: float) -> None:
        self.lr = float(group["lr"])
        self.params: list[Tensor] = [p for p in group["params"] if p.grad is not None]
        for p in self.params:
            refuse_sparse(p, "ArmijoDescent")
        self.starts = [p.clone() for p in self.params]
        self.grads = [p.grad.clone() for p in self.params]  # type: ignore[union-attr]
        norms = torch._foreach_norm(self.grads) if self.grads else []
        self.slope = c * self.lr * sum(float(norm) ** 2 for norm in norms)

    def try_step(self, scale: float) -> None:
        if self.params:
            torch._foreach_copy_(self.params, self.starts)
            if scale * self.lr:
                torch._foreach_add_(self.params, self.grads, alpha=-scale * self.lr)
