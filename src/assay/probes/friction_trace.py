"""Friction of diffGrad by tensor: does it damp some entries and not others, or is it one half everywhere?

Paper: diffGrad (arXiv:1909.11015). With the gradient g of the coming step and the one before, per entry

    xi = sigmoid(|g_prev - g|)          1/2 + |g_prev - g| / 4 where the change is small

    friction        mean of xi over all entries; friction/<parameter> of one tensor
    friction_p99    its 99th percentile: 99 of 100 entries have a smaller xi
    friction_max    its maximum

A mean near 1/2 says that diffGrad is Adam at half the learning rate.

Given the optimizer, g and g_prev are the gradients of its last two steps (0 before the first; L2 decay is in both).
Without it, g is the gradient of the mean loss over the probe's data and g_prev is 0: what diffGrad's first step would
have.
Cost: with an optimizer, a copy of the gradients at each of its steps (a hook, so do not compile the step); without, a
forward and a backward pass over the data.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.optim.diffgrad import DiffGrad, friction
from assay.probes._mean_gradient import NOT_FINITE, mean_gradient
from assay.probes.view import View

__all__ = ["FrictionTrace"]

_KEYS = ("friction", "friction_p99", "friction_max")
NO_STEP = "the optimizer has made no step since the probe was given it; measure after a step"


class FrictionTrace:
    """Mean, 99th percentile and maximum of diffGrad's friction coefficient.

    Args:
        optimizer: A `DiffGrad` that trains the model; whatever friction it uses, the paper's is shown. None
            shows the first step's.

    Attributes:
        skipped: Why a value is NaN.

    Raises:
        InvalidInput: If the optimizer is another.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(1, 1, bias=False)
        >>> optimizer = DiffGrad(model.parameters())
        >>> probe = FrictionTrace(optimizer)
        >>> model.weight.grad = torch.tensor([[2.0]])  # against 0 before the first step
        >>> optimizer.step()
        >>> round(probe.measure(View(model))["friction"], 4)
        0.8808
    """

    def __init__(self, optimizer: torch.optim.Optimizer | None = None) -> None:
        if optimizer is not None and not isinstance(optimizer, DiffGrad):
            raise InvalidInput(f"FrictionTrace reads the states of a DiffGrad, got {type(optimizer).__name__}")
        self.optimizer = optimizer
        self.skipped: dict[str, str] = {}
        self._before: dict[Tensor, tuple[float, Tensor]] | None = None
        self._handle = None if optimizer is None else optimizer.register_step_pre_hook(self._keep)

    def remove(self) -> None:
        """Take the hook off the optimizer; the probe then shows its last step with the hook."""
        if self._handle is not None:
            self._handle.remove()
            self._handle = None

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]] = ()) -> dict[str, float]:
        """Return the quantities by name, see the head of this module.

        Args:
            view: The network.
            batches: Pairs of inputs and targets; read only without an optimizer.

        Raises:
            InvalidInput: If no parameter is trainable.
        """
        self.skipped = {}
        if self.optimizer is None:
            gradients, reason = mean_gradient(view, batches)
            pairs = {name: (_real(g), torch.zeros_like(_real(g))) for name, g in gradients.items()}
        else:
            pairs = self._last_step(view, self.optimizer)
            finite = all(t.isfinite().all() for pair in pairs.values() for t in pair)
            reason = ("" if finite else NOT_FINITE) if pairs else NO_STEP
        if reason:
            self.skipped = dict.fromkeys(_KEYS, reason)
            return dict.fromkeys(_KEYS, math.nan)
        found = {name: friction(*pair).flatten() for name, pair in pairs.items() if pair[0].numel()}
        entries = torch.cat(list(found.values()))
        rank = math.ceil(0.99 * len(entries))
        summary = (entries.mean(), entries.kthvalue(rank).values, entries.max())
        values = {key: value.item() for key, value in zip(_KEYS, summary, strict=True)}
        return values | {f"{_KEYS[0]}/{name}": xi.mean().item() for name, xi in found.items()}

    def _keep(self, optimizer: torch.optim.Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Remember, before a step, the count and the gradient of the last one."""
        self._before = {p: (float(s["step"]), s["previous_grad"].clone()) for p, s in optimizer.state.items()}

    def _last_step(self, view: View, optimizer: torch.optim.Optimizer) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the gradient of the last step and of the one before by parameter that took it."""
        pairs: dict[str, tuple[Tensor, Tensor]] = {}
        for name, p in view.parameters().items():
            state = optimizer.state.get(p)
            if state and self._before is not None:
                count, before = self._before.get(p, (0.0, torch.zeros_like(state["previous_grad"])))
                if float(state["step"]) > count:
                    pairs[name] = (_real(state["previous_grad"]), _real(before))
        return pairs


def _real(gradient: Tensor) -> Tensor:
    return (torch.view_as_real(gradient) if gradient.is_complex() else gradient).double()
