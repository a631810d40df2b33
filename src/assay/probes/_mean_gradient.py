"""The gradient of the mean loss over all samples, by parameter, for probes of steps."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._same_scores import why_not_own_scores
from assay.probes.view import View

__all__ = ["mean_gradient"]

NOT_FINITE = "a gradient or a weight is NaN or infinite"


def mean_gradient(view: View, batches: Iterable[tuple[Any, Tensor]]) -> tuple[dict[str, Tensor], str]:
    """Return the gradient by parameter, in float64 or complex128, and why there is none ("" if there is one).

    Args:
        view: The network; its loss must average over samples.
        batches: Pairs of inputs and targets.

    Raises:
        InvalidInput: If no parameter is trainable.
    """
    parameters = view.parameters()
    if not parameters:
        raise InvalidInput("the model has no trainable parameters, so there is no gradient to measure")
    sums = {
        name: torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float64)) for name, p in parameters.items()
    }
    samples = 0
    for x, y in batches:
        if not samples and (reason := why_not_own_scores(view, x)):
            return {}, reason
        aliases = {name: p.detach().requires_grad_() for name, p in parameters.items()}
        with torch.inference_mode(False), torch.enable_grad():
            loss = view.loss(view.functional(aliases, x), y) * len(y)
            found = torch.autograd.grad(loss, list(aliases.values()), allow_unused=True, materialize_grads=True)
        for total, gradient in zip(sums.values(), found, strict=True):
            total += gradient
        samples += len(y)
    finite = all(g.isfinite().all() and parameters[name].isfinite().all() for name, g in sums.items())
    return {name: g / samples for name, g in sums.items()}, "" if finite else NOT_FINITE
