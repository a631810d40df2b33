"""AdaGrad-Norm: gradient descent with one step size, divided by the root of all squared gradient norms so far.

Lau, Liu and Kolar, arXiv:2402.11215, algorithm 1 (AdAdaGradNorm without its batches); Ward, Wu and Bottou, 2019:

    S <- S + |g|^2;   x <- x - lr g / sqrt(S)

granularity: "global" has one S for all parameters (the paper), "tensor" one per tensor, "row" one per entry of the
first dimension (per neuron or filter), of tensors that have two or more.

Shapes: x and g are a parameter's; S is a scalar, or (rows,).
Departures: weight decay adds decay * x to g, where the official code adds it to itself; that code's class has rows too,
but one S per entry of a vector, to which it adds those of the weight's rows; complex gradients count by their absolute
value.
Cost: one scalar (or one per row) per parameter, of at least float32; three passes over the gradients.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim._dense import refuse_sparse
from assay.optim._saved_states import restore_types

__all__ = ["AdaGradNorm"]

GRANULARITIES = ("global", "tensor", "row")


class AdaGradNorm(torch.optim.Optimizer):
    """AdaGrad with one adaptive step size.

    Args:
        params: Parameters or groups of them.
        lr: Step size, 0 or more.
        initial_accumulator: S at the start, above 0; a parameter that joins a global S later takes it as it is.
        weight_decay: Added to the gradient as weight_decay * x, 0 or more.
        granularity: "global", "tensor" or "row".

    Raises:
        InvalidInput: On an option out of its range; from `step`, on a sparse gradient.

    Example:
        >>> weight = torch.nn.Parameter(torch.tensor([1.0, 1.0]))
        >>> optimizer = AdaGradNorm([weight], lr=1.0, initial_accumulator=11.0)
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> optimizer.step()  # sqrt(11 + 25) = 6
        >>> weight.data
        tensor([0.5000, 0.3333])
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1.0,
        initial_accumulator: float = 1e-2,
        weight_decay: float = 0.0,
        granularity: str = "global",
    ) -> None:
        for name, value in (("lr", lr), ("weight_decay", weight_decay)):
            if not 0 <= float(value) < math.inf:
                raise InvalidInput(f"{name} must be a finite number of at least 0; got {value}")
        if not 0 < initial_accumulator < math.inf:
            raise InvalidInput(f"initial_accumulator must be finite and above 0; got {initial_accumulator}")
        if granularity not in GRANULARITIES:
            raise InvalidInput(f"granularity must be one of {', '.join(GRANULARITIES)}; got {granularity!r}")
        options = {"lr": lr, "initial_accumulator": initial_accumulator}
        super().__init__(params, options | {"weight_decay": weight_decay, "granularity": granularity})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Make one step with the gradients that the parameters hold.

        Args:
            closure: Evaluates the loss and its gradients; its value is returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found = [(g, p) for g in self.param_groups for p in g["params"] if p.grad is not None]
        gradients = [_with_decay(p, group["weight_decay"]) for group, p in found]
        squares = [_squared(g, group["granularity"]) for (group, _), g in zip(found, gradients, strict=True)]
        self._add_global([s for (group, _), s in zip(found, squares, strict=True) if group["granularity"] == "global"])
        for (group, p), gradient, square in zip(found, gradients, squares, strict=True):
            state = self.state[p]
            if group["granularity"] != "global":
                if not state:
                    state["sum"] = torch.full_like(square, group["initial_accumulator"])
                state["sum"] += square
            scale = state["sum"].rsqrt()
            scaled = gradient * (scale.view(-1, *[1] * (p.ndim - 1)) if scale.ndim else scale)
            p.add_(scaled, alpha=-float(group["lr"]))
        return loss

    def _add_global(self, squares: list[Tensor]) -> None:
        """Add to the one S, of which every parameter keeps a copy, whether it has a gradient now or not."""
        if not squares:
            return
        total = torch.stack([s.to(squares[0].device) for s in squares]).sum()
        groups = [group for group in self.param_groups if group["granularity"] == "global"]
        present = next((self.state[p]["sum"] for g in groups for p in g["params"] if self.state[p]), None)
        for group, p in [(g, p) for g in groups for p in g["params"]]:
            if not self.state[p]:
                start = total.new_tensor(group["initial_accumulator"]) if present is None else present
                self.state[p]["sum"] = start.to(p.device, torch.promote_types(p.real.dtype, torch.float32), copy=True)
        for state in (self.state[p] for g in groups for p in g["params"]):
            state["sum"] += total.to(state["sum"])

    @torch._disable_dynamo
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load what `state_dict` returned, bit for bit."""
        super().load_state_dict(state_dict)
        restore_types(self, state_dict, ["sum"])


def _with_decay(parameter: Tensor, decay: float) -> Tensor:
    refuse_sparse(parameter, "AdaGradNorm")
    gradient = parameter.grad
    assert gradient is not None
    return gradient.add(parameter, alpha=decay) if decay else gradient


def _squared(gradient: Tensor, granularity: str) -> Tensor:
    """Return the squared norm, of each row if asked for, in at least float32."""
    size = torch.view_as_real(gradient).flatten(-2) if gradient.is_complex() else gradient
    size = size.to(torch.promote_types(size.dtype, torch.float32)).square()
    return size.flatten(1).sum(1) if granularity == "row" and gradient.ndim > 1 else size.sum()
