"""Logit-scaling alignment: does the next gradient step merely make the network's scores larger?

Prieto, Barsbey, Mediano, Birdal (2025, arXiv:2501.04697), naive loss minimisation: for a network that is positively
homogeneous in its parameters theta, moving along +theta scales the scores and nothing else. The probe is
cos(-grad L, theta), over all parameters and per layer. Near 1, training no longer learns.

Convention: L is the mean over all samples given, in the caller's mode (`assay.Watch`: eval); trainable parameters only;
a layer is a module's own parameters, weight and bias together; parameters the loss does not reach have gradient 0.
Cost: one forward and backward pass, memory of two copies of the parameters.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.probes._same_scores import why_not_own_scores
from assay.probes.view import View

__all__ = ["LogitScalingAlignment"]

_KEY = "logit_scaling_alignment"


class LogitScalingAlignment:
    """Cosine of the negative gradient with the parameters.

    Args:
        per_layer: Whether each layer's own cosine is returned beside the global one.

    Example:
        >>> view = View(torch.nn.Linear(1, 2, bias=False))
        >>> _ = torch.nn.init.constant_(view.model.weight, 0.0).data[0].fill_(1.0)
        >>> values = LogitScalingAlignment().measure(view, [(torch.ones(1, 1), torch.tensor([0]))])
        >>> round(values["logit_scaling_alignment"], 6)  # gradient (-p, p), parameters (1, 0)
        0.707107
    """

    def __init__(self, per_layer: bool = True) -> None:
        self.per_layer = per_layer
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the cosines in [-1, 1].

        Args:
            view: The network; its `loss` must average over the batch.
            batches: Pairs of inputs and targets.

        Returns:
            "logit_scaling_alignment" and "logit_scaling_alignment/<layer>"; NaN where a gradient or the parameters are
            0, where nothing is trainable, or where the rule does not predict by the model's own forward pass.
        """
        parameters = {name: p.detach().requires_grad_() for name, p in view.parameters().items()}
        self.skipped = {}
        if not parameters:
            self.skipped[_KEY] = "the network has no trainable parameters"
            return {_KEY: math.nan}
        gradient = _mean_gradient(view, parameters, batches)
        if isinstance(gradient, str):
            self.skipped[_KEY] = gradient
            return {_KEY: math.nan}
        layers: dict[str, list[str]] = defaultdict(list)
        for name in parameters:
            layers[name.rpartition(".")[0] or "model"].append(name)
        groups = {_KEY: list(parameters)}
        if self.per_layer:
            groups |= {f"{_KEY}/{layer}": names for layer, names in layers.items()}
        return {key: self._cosine(key, parameters, gradient, names) for key, names in groups.items()}

    def _cosine(self, key: str, parameters: dict[str, Tensor], gradient: dict[str, Tensor], names: list[str]) -> float:
        along = sum(_dot(gradient[name], parameters[name]) for name in names)
        lengths = [math.sqrt(sum(_dot(t[name], t[name]) for name in names)) for t in (gradient, parameters)]
        if not lengths[0] * lengths[1] > 0:
            self.skipped[key] = "the gradient or the parameters are 0 or not finite"
            return math.nan
        return -along / (lengths[0] * lengths[1])


def _dot(a: Tensor, b: Tensor) -> float:
    return (a.detach().double() * b.detach().double()).sum().item()


def _mean_gradient(
    view: View, parameters: dict[str, Tensor], batches: Iterable[tuple[Any, Tensor]]
) -> dict[str, Tensor] | str:
    """Return the gradient of the mean loss by parameter, or why there is none: scores that are not the model's own."""
    total = {name: torch.zeros_like(p) for name, p in parameters.items()}
    samples = 0
    for x, y in batches:
        if samples == 0 and (reason := why_not_own_scores(view, x)):
            return reason
        with torch.inference_mode(False), torch.enable_grad():
            loss = view.loss(view.functional(parameters, x), y)
            gradients = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
        for sum_so_far, g in zip(total.values(), gradients, strict=True):
            if g is not None:
                sum_so_far.add_(g.detach(), alpha=len(y))
        samples += len(y)
    return {name: g.div_(max(samples, 1)) for name, g in total.items()}
