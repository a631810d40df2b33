"""Gradient norms and their spikes: how large is each tensor's gradient, and how far did it jump above its usual size?

Huang et al. (2025, arXiv:2502.17055), the section on why 4-bit training is unstable: spikes of gradients and of their
norms come before spikes of the loss.

    gradient_norm     |g|_2 of the mean loss over the data, and per tensor
    gradient_spike    max_t |g_t| / median_t |g_t| over the measurements so far, and per tensor

Shapes: T measurements, P tensors, norms (T, P). The first measurement has a spike of 1; of an even number, the median
is the lower one, as in `torch.median`. Measured on a fixed large sample, the gradient is that of the landscape; on one
mini-batch it has its noise too.

Convention: mean loss over the data, eval mode, trainable parameters; a tied weight counts once, under its first name.
Cost: a forward and a backward pass over the data; one float per tensor and measurement is kept.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._token_targets import targets_by_row
from assay.probes.view import View

__all__ = ["GradientNormTrace", "spike_ratio"]

_NORM, _SPIKE = "gradient_norm", "gradient_spike"


def spike_ratio(norms: Tensor) -> Tensor:
    """Return each column's largest number over its median.

    Args:
        norms: (T, P) or (T,), 0 or larger, T at least 1.

    Returns:
        (P,) or a scalar; infinite where the median is 0 and the largest is not, NaN where both are.

    Raises:
        InvalidInput: If there is nothing to take a median of.

    Example:
        >>> spike_ratio(torch.tensor([2.0, 10.0, 2.0]))
        tensor(5.)
    """
    if norms.ndim not in (1, 2) or len(norms) < 1:
        raise InvalidInput(f"expected norms (T, P) or (T,) with T of at least 1, got shape {tuple(norms.shape)}")
    return norms.amax(0) / norms.median(0).values


class GradientNormTrace:
    """Gradient norms, and their spikes over all measurements of one probe object.

    Args:
        per_tensor: Whether to return the values of each tensor; they are in `norms` in any case.

    Attributes:
        norms: All measurements' gradient norms by parameter name, "" for all of them as one vector.
        skipped: Why a value is NaN, by name.

    Example:
        >>> layer, probe = torch.nn.Linear(1, 1, bias=False), GradientNormTrace()
        >>> view = View(layer, loss=lambda scores, y: (scores * y).mean())
        >>> for factor in (2.0, 3.0, 12.0):
        ...     values = probe.measure(view, [(torch.ones(4, 1), torch.full((4, 1), factor))])
        >>> values["gradient_norm"], values["gradient_spike"]
        (12.0, 4.0)
    """

    def __init__(self, *, per_tensor: bool = True) -> None:
        self.per_tensor = per_tensor
        self.norms: dict[str, list[float]] = {}
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return "gradient_norm" and "gradient_spike", and both with "/<parameter>" after it.

        Args:
            view: The network; its `loss` must average over samples. A language model's scores (B, T, C) and targets
                (B, T) are taken as B T samples.
            batches: Pairs of inputs and targets.

        Returns:
            NaN, with a reason in `skipped`, where a gradient is not finite, a median is 0, or there is no gradient; a
            gradient that is not finite is not kept.

        Raises:
            InvalidInput: If the probe has measured a network with other parameters.
        """
        self.skipped = {}
        sizes = _norms(view, batches)
        if self.norms and sizes and self.norms.keys() != sizes.keys():
            raise InvalidInput("the probe has measured a network with other parameters; use one probe per network")
        values: dict[str, float] = {}
        for name, size in (sizes or {"": math.nan}).items():
            trace = self.norms.setdefault(name, []) if sizes else []
            if math.isfinite(size):
                trace.append(size)
            if not name or self.per_tensor:
                values |= self._values(f"/{name}" if name else "", size, trace)
        return values

    def _values(self, suffix: str, size: float, trace: list[float]) -> dict[str, float]:
        spike = spike_ratio(torch.tensor(trace, dtype=torch.float64)).item() if trace else math.nan
        found = {_NORM + suffix: size, _SPIKE + suffix: spike}
        for key, value in found.items():
            if not math.isfinite(value):
                found[key] = math.nan
                self.skipped[key] = "there is no gradient, it is not finite, or its median norm is 0"
        return found


def _norms(view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
    """Return the norm of the mean loss's gradient, over all and by parameter; nothing if there is no gradient."""
    parameters = view.parameters()
    sums: dict[str, Tensor] = {}
    samples = 0
    for x, y in batches:
        with torch.inference_mode(False), torch.enable_grad():
            scores = view.token_scores(x)
            loss = view.loss(scores, targets_by_row(scores, y)) * len(scores)
        samples += len(scores)
        if not parameters or not loss.requires_grad:
            return {}
        for name, g in zip(
            parameters, torch.autograd.grad(loss, list(parameters.values()), allow_unused=True), strict=True
        ):
            part = torch.zeros_like(parameters[name]) if g is None else g
            part = part.to(torch.promote_types(part.dtype, torch.float64))
            sums[name] = sums[name] + part if name in sums else part
    found = {name: total.norm().item() / samples for name, total in sums.items()}
    return {"": math.hypot(*found.values()), **found} if found else {}
