"""Noise scale of the gradient: from which batch size on do larger batches stop helping?

McCandlish et al., "An Empirical Model of Large-Batch Training" (arXiv:1812.06162), the "simple" noise scale; what the
norm test of AdAdaGrad (arXiv:2402.11215) compares with the batch at hand. For gradients g_i of the n samples' own
losses, their mean m and their unbiased covariance:

    gradient_variance           tr Cov(g)
    gradient_norm_squared       |m|^2 - tr Cov(g) / n       unbiased for the squared norm of the true gradient
    gradient_noise_scale        tr Cov(g) / (|m|^2 - tr Cov(g) / n), in samples: B_simple

A batch much smaller than the noise scale has a gradient of mostly noise; one much larger hardly gains by more.

Shapes: sums over all trainable parameters, complex ones as pairs of real numbers, in float64.
Know before use: the network predicts as in evaluation, without dropout. For a language model give the view scores of
whole sequences, `View(model, scores=lambda scores: scores.flatten(1), loss=...)`: tokens are no samples of their own.
Cost: one forward pass over the data, one backward pass per sample, 16 at a time in the memory of as many gradients.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._same_scores import why_not_own_scores
from assay.probes.view import View

__all__ = ["GradientNoiseScale"]

AT_ONCE = 16
KEYS = ("gradient_noise_scale", "gradient_variance", "gradient_norm_squared")
TOO_FEW = "a variance needs at least 2 samples"
NOT_FINITE = "a gradient is NaN or infinite"
ONLY_NOISE = "the mean gradient is no longer than its noise over these samples; measure on more of them"


class GradientNoiseScale:
    """Variance of the samples' gradients over the squared norm of their mean.

    Attributes:
        skipped: Why a value is NaN.

    Raises:
        InvalidInput: From `measure`, if no parameter is trainable.

    Example:
        >>> from torch import nn
        >>> model = nn.Linear(1, 1, bias=False)
        >>> _ = model.weight.data.fill_(0.0)
        >>> x, y = torch.ones(3, 1), torch.tensor([[1.0], [2.0], [3.0]])
        >>> view = View(model, loss=lambda scores, y: 0.5 * (scores - y).square().mean())
        >>> GradientNoiseScale().measure(view, [(x, y)])  # gradients -1, -2 and -3
        {'gradient_noise_scale': 0.272..., 'gradient_variance': 1.0, 'gradient_norm_squared': 3.666...}
    """

    def __init__(self) -> None:
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the quantities by name, see the head of this module.

        Args:
            view: The network and its loss, a mean over samples.
            batches: Pairs of inputs and targets, read once.

        Raises:
            InvalidInput: If no parameter is trainable.
        """
        self.skipped = {}
        parameters = view.parameters()
        if not parameters:
            raise InvalidInput("the model has no trainable parameters, so there is no gradient to measure")
        mean: Tensor | None = None
        spread, count = 0.0, 0
        for x, y in batches:
            if count == 0 and (reason := why_not_own_scores(view, x)):
                return self._without(KEYS, reason)
            for rows in _own_gradients(view, x, y):
                # merged block by block (Chan et al.), since differences of large sums would lose a small variance
                found, added = rows.mean(0), len(rows)
                mean = torch.zeros_like(found) if mean is None else mean
                step = found - mean
                spread += float((rows - found).square().sum() + step.square().sum() * count * added / (count + added))
                mean += step * added / (count + added)
                count += added
        if mean is None or count < 2:
            return self._without(KEYS, TOO_FEW)
        variance, squared = spread / (count - 1), float(mean.square().sum())
        if not math.isfinite(variance) or not math.isfinite(squared):
            return self._without(KEYS, NOT_FINITE)
        unbiased = squared - variance / count
        values = {"gradient_variance": variance, "gradient_norm_squared": unbiased}
        if unbiased <= 0:
            return self._without(KEYS[:1], ONLY_NOISE) | values
        return {"gradient_noise_scale": variance / unbiased} | values

    def _without(self, keys: tuple[str, ...], reason: str) -> dict[str, float]:
        self.skipped = dict.fromkeys(keys, reason)
        return dict.fromkeys(keys, math.nan)


def _own_gradients(view: View, x: Any, y: Tensor) -> Iterator[Tensor]:
    """Yield the gradients of a few samples' own losses, (k, entries) in float64."""
    aliases = {name: p.detach().requires_grad_() for name, p in view.parameters().items()}
    with torch.inference_mode(False), torch.enable_grad():
        scores = view.functional(aliases, x)
        losses = torch.stack([view.loss(scores[i : i + 1], y[i : i + 1]) for i in range(len(y))])
        for start in range(0, len(y), AT_ONCE):
            chosen = torch.eye(len(y), dtype=losses.dtype, device=losses.device)[start : start + AT_ONCE]
            last = start + AT_ONCE >= len(y)
            found = torch.autograd.grad(
                losses,
                list(aliases.values()),
                chosen,
                is_grads_batched=True,
                retain_graph=not last,
                allow_unused=True,
            )
            # what the loss does not reach has gradients of 0, which change nothing
            yield torch.cat([_rows(g) for g in found if g is not None], 1)


def _rows(gradients: Tensor) -> Tensor:
    real = torch.view_as_real(gradients) if gradients.is_complex() else gradients
    return real.reshape(len(real), math.prod(real.shape[1:])).double()
