"""Tiny settings of `assay.optim.ArmijoDescent` and `assay.optim.TargetSurrogate`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.optim import target_surrogates
from assay.optim.armijo import ArmijoDescent

__all__ = ["CASES"]


class TargetSurrogate(target_surrogates.TargetSurrogate):
    """The surrogate for the identity as the model: its outputs are the parameters, so that a plain closure does.

    It has the name of what it tests, by which the checks look for classes without a case.
    """

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """Take one step with the closure's gradients as those by the outputs."""
        params = [p for group in self.param_groups for p in group["params"]]

        def forward() -> Tensor:
            return torch.cat([p.reshape(-1) for p in params])

        def loss(z: Tensor) -> tuple[Any, Tensor]:
            value = closure() if closure else None
            gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in params]
            return value, torch.cat([gradient.reshape(-1) for gradient in gradients])

        return super().step(forward, loss)


def _surrogate(base: type[torch.optim.Optimizer], options: dict[str, Any], **own: Any) -> Callable[[], Any]:
    return lambda: lambda parameters: TargetSurrogate(base(parameters, **options), **own)


CASES: dict[str, Callable[[], Any]] = {
    "armijo-descent": lambda: lambda parameters: ArmijoDescent(parameters, lr=4.0),
    "target-surrogate": _surrogate(ArmijoDescent, {"lr": 4.0}, eta=0.5, inner_steps=3, reduction="sum"),
    "target-surrogate-sgd": _surrogate(
        torch.optim.SGD, {"lr": 0.1, "momentum": 0.5}, eta=0.3, inner_steps=4, eta_schedule="sqrt", restart=False
    ),
    "target-surrogate-adam": _surrogate(torch.optim.Adam, {"lr": 0.01}, inner_steps=2, reduction="sum"),
}
