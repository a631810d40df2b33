"""LAMB's trust ratio by tensor: how differently would the layers' learning rates have to be?

Paper: LAMB (arXiv:1904.00962), algorithms 1 and 2: for each weight x with at least two dimensions and direction u

    trust_ratio/<parameter>     |x| / |u|, 1 where either is 0
    trust_ratio_min, trust_ratio_max        over tensors: what LAMB evens out is their quotient

Given the optimizer, u is its direction with the moments and weights of now: of LAMB, Adam and AdamW
(m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps) + lambda x (with amsgrad, v is the largest so far), of LARS and SGD with
momentum its buffer. So under AdamW it shows what LAMB would do. Without it, u is the gradient of the mean loss over the
probe's data: LARS's first step.
Cost: a pass over the states with an optimizer, a forward and a backward pass over the data without.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim.lamb import LAMB, lamb_direction, trust_ratio
from assay.optim.lars import LARS
from assay.probes._mean_gradient import NOT_FINITE, mean_gradient
from assay.probes.view import View

__all__ = ["TrustRatio"]

_KEYS = ("trust_ratio_min", "trust_ratio_max")
READABLE = (LAMB, LARS, torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
NO_STATE = "the optimizer has no moments of a weight yet; measure after a step"


class TrustRatio:
    """Norm of each weight over the norm of the optimizer's direction in it.

    Args:
        optimizer: LAMB, LARS, or torch's Adam, AdamW or SGD with momentum (not Nesterov's, whose direction is in no
            state), training the model; None takes the gradient.

    Attributes:
        skipped: Why a value is NaN.

    Raises:
        InvalidInput: If `optimizer` is none of these; from `measure`, if the model has no weight matrix to train.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(2, 1, bias=False)
        >>> _ = model.weight.data.copy_(torch.tensor([[3.0, 4.0]]))
        >>> optimizer = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9)
        >>> model.weight.grad = torch.tensor([[0.0, 0.5]])
        >>> optimizer.step()
        >>> TrustRatio(optimizer).measure(View(model))["trust_ratio/weight"]
        10.0
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        if optimizer is not None and (reason := _unreadable(optimizer)):
            raise InvalidInput(
                f"TrustRatio reads the direction of LAMB, LARS, Adam, AdamW or SGD in their states, got {reason}; "
                "give one of these, or None for the gradient"
            )
        self.optimizer = optimizer
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]] = ()) -> dict[str, float]:
        """Return the quantities by name, see the head of this module.

        Args:
            view: The network.
            batches: Pairs of inputs and targets; read only without an optimizer.

        Raises:
            InvalidInput: If no trainable parameter has two dimensions.
        """
        self.skipped = {}
        weights = {name: p.detach() for name, p in view.parameters().items() if p.ndim >= 2}
        if not weights:
            raise InvalidInput("the model has no trainable weight with two dimensions, so no layer has a trust ratio")
        if self.optimizer is None:
            directions, reason = mean_gradient(view, batches)
        else:
            directions, reason = _directions(view, self.optimizer), ""
        common = [name for name in weights if name in directions]
        reason = reason or ("" if common else NO_STATE)
        ratios = {} if reason else {name: _ratio(weights[name], directions[name]) for name in common}
        if not all(map(math.isfinite, ratios.values())):
            reason = NOT_FINITE
        if reason:
            self.skipped = dict.fromkeys(_KEYS, reason)
            return dict.fromkeys(_KEYS, math.nan)
        summary = dict(zip(_KEYS, (min(ratios.values()), max(ratios.values())), strict=True))
        return summary | {f"trust_ratio/{name}": ratio for name, ratio in ratios.items()}


def _ratio(weight: Tensor, direction: Tensor) -> float:
    lengths = [torch.linalg.vector_norm(_wide(t)) for t in (weight, direction)]
    return math.nan if not all(map(torch.isfinite, lengths)) else trust_ratio(*lengths).item()


def _wide(tensor: Tensor) -> Tensor:
    # torch's optimizers take the real and imaginary parts of a complex weight for two entries
    return (torch.view_as_real(tensor) if tensor.is_complex() else tensor).double()


def _unreadable(optimizer: torch.optim.Optimizer) -> str:
    """Return what stands in the way of reading the optimizer's direction, "" if nothing does."""
    # others keep Adam's moments, or a momentum, but step along something else
    if not isinstance(optimizer, READABLE):
        return type(optimizer).__name__
    nesterov = any(group.get("nesterov") for group in optimizer.param_groups)
    return f"{type(optimizer).__name__} with nesterov=True" if nesterov else ""


def _directions(view: View, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    groups = {p: group for group in optimizer.param_groups for p in group["params"]}
    found = {}
    for name, p in view.parameters().items():
        state = optimizer.state.get(p, {})
        if "exp_avg_sq" in state:
            found[name] = _adam_direction(p.detach(), state, groups[p])
        elif state.get("momentum_buffer") is not None:
            found[name] = state["momentum_buffer"]
    return found


def _adam_direction(weight: Tensor, state: dict[str, Any], group: dict[str, Any]) -> Tensor:
    # torch's Adam without decoupled decay has the decay in its moments
    decay = group["weight_decay"] if group.get("decoupled_weight_decay", True) else 0.0
    return lamb_direction(
        _wide(weight),
        _wide(state["exp_avg"]),
        _wide(state.get("max_exp_avg_sq", state["exp_avg_sq"])),
        step=float(state["step"]),
        betas=group["betas"],
        eps=group["eps"],
        weight_decay=decay,
        bias_correction=group.get("bias_correction", True),
    )
