"""What transforms of gradients share: a hook that changes an optimizer's gradients right before each of its steps."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from assay.optim._dense import refuse_sparse

__all__ = ["GradientTransform"]


class GradientTransform:
    """Hooks `change` into an optimizer, which stays the one to call, to schedule and to save.

    Args:
        optimizer: Any `torch.optim.Optimizer`.
    """

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self._handle: Any = optimizer.register_step_pre_hook(self._before_step)

    def change(self) -> None:
        """Change the gradients that the optimizer's parameters hold now, in place."""
        raise NotImplementedError(f"{type(self).__name__} defines no change")

    def remove(self) -> None:
        """Detach from the optimizer, which then steps as before; a second call does nothing."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def _holders(self) -> list[Tensor]:
        """Return the parameters that have a gradient.

        Raises:
            InvalidInput: If one is sparse.
        """
        holders = [p for group in self.optimizer.param_groups for p in group["params"] if p.grad is not None]
        for parameter in holders:
            refuse_sparse(parameter, type(self).__name__)
        return holders

    def _before_step(
        self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        # args[0] is the optimizer itself; a closure computes the gradients inside the step, so it is wrapped
        if len(args) > 1 and args[1] is not None:
            return (args[0], self._after(args[1]), *args[2:]), kwargs
        if kwargs.get("closure") is not None:
            return args, {**kwargs, "closure": self._after(kwargs["closure"])}
        if self._unscaled():
            self.change()
        return None

    def _unscaled(self) -> bool:
        """Divide gradients by the loss's scale where the step would; return whether there is to be a step at all.

        A `torch.amp.GradScaler` leaves both to a fused optimizer: it sets two tensors on it before it calls the step.
        """
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) > 0:
            return False
        scale = getattr(self.optimizer, "grad_scale", None)
        if scale is not None:
            for parameter in self._holders():
                parameter.grad.div_(scale.to(parameter.grad.device))  # type: ignore[union-attr]  # a holder has one
            self.optimizer.grad_scale = None  # type: ignore[attr-defined]  # the scaler's, not declared by torch
        return True

    def _after(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        def evaluate() -> Any:
            loss = closure()
            self.change()
            return loss

        return evaluate

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_handle": self._handle is not None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # torch's optimizers drop their hooks when they are copied or pickled, so the copy needs a new one.
        self.__dict__.update(state, _handle=None)
        if state["_handle"]:
            self._handle = self.optimizer.register_step_pre_hook(self._before_step)
