"""Gradient sign: does a gradient step at this point lower the pre-activations of the neurons that are active?

Paper: "The Lazy Neuron Phenomenon" (Li et al., ICLR 2023, arXiv:2210.06313), the theorem that explains emerging
sparsity. Let f = V relu(p) with last layer V = [v_1 ... v_dff] (K, d_ff) independent of p, its entries i.i.d. with mean
zero and not constant, and L the cross-entropy of f with any label y. For every i with p_i > 0

    E_V[dL / dp_i] = E_V[v_i^T (softmax(f) - e_y)] > 0,

since E[v_i^T e_y] = 0 and softmax_k rises with v_ki. For the squared loss 1/2 |f - t|^2 it is sum_k Var(v_ki) p_i. It
speaks of the start of training only; the probe measures the derivative's mean at any time and in any layer.

    active_gradient            mean of dL/dp_i over all active entries, L the loss of one sample (or token)
    active_gradient_positive   share of neurons, among those ever active, whose mean derivative is positive

Shapes: p and a = relu(p) are (..., d_ff); of images (B, C, H, W) a channel is a neuron. dL/dp_i = dL/da_i if a_i > 0.

Departures: read at activations with exact zeros (ReLU, top-k); GELU has derivatives everywhere, so nothing is "active".
Cost: one forward pass and a backward pass down to the first activation; d_ff floats per layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from assay.probes._activations import NOTHING_FOUND, found_readings, hooked, is_smooth, neuron_dim
from assay.probes._same_scores import why_not_own_scores
from assay.probes._token_targets import targets_by_row
from assay.probes.view import View

__all__ = ["GradientSign"]

_KEYS = ("active_gradient", "active_gradient_positive")


class GradientSign:
    """Mean derivative of the loss by active pre-activations, and the share of neurons for which it is positive.

    Args:
        layers: Names of modules whose outputs are ReLU activations; None finds all modules of such a type.
        inputs_of: Names of modules whose first input is one, for networks that call F.relu.
        dim: The dimension of neurons; None is 1 for images (B, C, H, W) and the last otherwise.

    Attributes:
        gradients: Of the last measurement, each neuron's mean derivative while active (d_ff,) by layer, NaN if never.
        skipped: Why a value is NaN.

    Example:
        >>> model = nn.Sequential(nn.Identity(), nn.ReLU(), nn.Linear(1, 2, bias=False))
        >>> _ = model[2].weight.data.copy_(torch.tensor([[2.0], [0.0]]))
        >>> batch = torch.tensor([[-1.0], [1e-9]]), torch.tensor([0, 1])  # the first makes nothing active
        >>> round(GradientSign().measure(View(model), [batch])["active_gradient/1"], 6)  # (2, 0) . (1/2, 1/2 - 1)
        1.0
    """

    def __init__(
        self, layers: Sequence[str] | None = None, *, inputs_of: Sequence[str] = (), dim: int | None = None
    ) -> None:
        self.layers, self.inputs_of, self.dim = layers, inputs_of, dim
        self.skipped: dict[str, str] = {}
        self.gradients: dict[str, Tensor] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return "<name>" (mean over layers, for the share only) and "<name>/<layer>".

        Args:
            view: The network; its `loss` must average over samples. A language model's scores (B, T, C) and targets
                (B, T) are taken as B T samples.
            batches: Pairs of inputs and targets.

        Raises:
            InvalidInput: If a named layer is not there, or an activation has no neurons.
        """
        self.skipped, self.gradients = {}, {}
        readings = [r for r in found_readings(view, self.layers, self.inputs_of) if not is_smooth(r.module)]
        if not readings:
            return {_KEYS[1]: self._skip(_KEYS[1], NOTHING_FOUND.format(type(view.model).__name__))}
        sums: dict[str, tuple[Tensor, Tensor]] = {}
        for x, y in batches:
            if not sums and (reason := why_not_own_scores(view, x)):
                return {_KEYS[1]: self._skip(_KEYS[1], reason)}
            with torch.inference_mode(False), torch.enable_grad():
                caught: dict[str, Tensor] = {}
                with hooked(readings, partial(_caught, caught)):
                    scores = view.token_scores(x) if view.rule is None else view.functional({}, x)
                loss = view.loss(scores, targets_by_row(scores, y)) * len(scores)
                self._add(sums, caught, loss)
        for reading in readings:
            sums.setdefault(reading.name, (torch.zeros(0), torch.zeros(0)))
        return self._values(sums)

    def _add(self, sums: dict[str, tuple[Tensor, Tensor]], caught: dict[str, Tensor], loss: Tensor) -> None:
        """Add one batch's derivatives and counts by neuron."""
        found = torch.autograd.grad(loss, list(caught.values()), allow_unused=True)
        for (name, a), g in zip(caught.items(), found, strict=True):
            dim = neuron_dim(name, a, self.dim)
            others = [i for i in range(a.ndim) if i != a.ndim + dim]
            active = a.detach() != 0  # NaN is active: it must not vanish from the sums
            gradient = torch.zeros_like(a) if g is None else g
            total = torch.where(active, gradient, 0.0).double().sum(others)
            before = sums.get(name, (0.0, 0))
            sums[name] = (before[0] + total, before[1] + active.sum(others))

    def _values(self, sums: dict[str, tuple[Tensor, Tensor]]) -> dict[str, float]:
        values: dict[str, float] = {}
        for layer, (total, count) in sums.items():
            self.gradients[layer] = (total / count).cpu()
            seen = total[count > 0] / count[count > 0]
            found = ((total.sum() / count.sum()).item(), (seen > 0).double().mean().item())
            finite = bool(total.isfinite().all()) and count.numel() > 0
            reason = "no neuron is active" if finite else "a gradient is not finite"
            reason = reason if count.numel() else "the layer did not run"
            for key, value in zip(_KEYS, found, strict=True):
                undefined = not finite or math.isnan(value)
                values[f"{key}/{layer}"] = self._skip(f"{key}/{layer}", reason) if undefined else value
        shares = [value for key, value in values.items() if key.startswith(f"{_KEYS[1]}/")]
        mean = sum(shares) / len(shares)
        return {_KEYS[1]: self._skip(_KEYS[1], "a layer's is NaN") if math.isnan(mean) else mean} | values

    def _skip(self, key: str, reason: str) -> float:
        self.skipped[key] = reason
        return math.nan


def _caught(caught: dict[str, Tensor], name: str, module: nn.Module, activation: Tensor) -> Tensor:
    """Keep the activation, as a leaf if nothing before it is trained; pass on a copy that may be changed in place."""
    caught[name] = activation if activation.requires_grad else activation.detach().requires_grad_()
    return caught[name].clone()
