"""Linear probe: how well does a linear classifier do on a layer's frozen features?

Alain and Bengio, "Understanding intermediate layers using linear classifier probes" (arXiv:1610.01644); how
"Investigating the Benefits of Projection Head for Representation Learning" (arXiv:2403.11391) compares the features
before and after a head.

    min over W, b of  mean_i CE(W u_i + b, y_i) + decay/2 |W|^2,    u = (h - mean h) / s,  s^2 = mean |h - mean h|^2 / D

Features are scaled by one number s for all of them, not each by its own deviation, which would undo the very weighting
of features that such comparisons are about: with a given decay, what a layer weighs little is hard to read.

Shapes: N samples, D features h (N, D), C classes. The problem is strictly convex in W, solved by L-BFGS in float64 from
0, so there is no seed and no learning rate. Cost: a hundred or so products with an (N, D) matrix per layer.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._batches import Batches
from assay.probes.class_statistics import check_labels
from assay.probes.view import NOT_RUN, View

__all__ = ["LinearProbe", "LinearReadout", "fit_linear_probe"]


@dataclass(frozen=True)
class LinearReadout:
    """A fitted linear classifier of features.

    Args:
        mean: Of the features it was fitted to (D,).
        scale: s, their root mean square deviation.
        weight: W (C, D), on scaled features.
        bias: b (C,).
    """

    mean: Tensor
    scale: float
    weight: Tensor
    bias: Tensor

    def scores(self, features: Tensor) -> Tensor:
        """Return float64 scores (B, C) of features (B, D)."""
        return (features.double() - self.mean) / self.scale @ self.weight.T + self.bias

    def accuracy(self, features: Tensor, targets: Tensor) -> float:
        """Return the share of features (B, D) whose largest score is that of their class (B,)."""
        check_labels(features, targets, len(self.bias))
        return (self.scores(features).argmax(dim=1) == targets).double().mean().item()


def fit_linear_probe(
    features: Tensor, targets: Tensor, decay: float = 1e-2, num_classes: int | None = None, max_iter: int = 200
) -> LinearReadout:
    """Fit a linear classifier to features.

    Args:
        features: (N, D), finite; no gradient passes.
        targets: Classes (N,).
        decay: Of the weights on scaled features, above 0; the bias is free.
        num_classes: C; the largest label plus one if not given.
        max_iter: Most steps of L-BFGS.

    Raises:
        InvalidInput: On wrong shapes or labels, features that are not finite or do not vary, or decay not above 0.

    Example:
        >>> h, y = torch.tensor([[-1.0], [-2.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> fit_linear_probe(h, y).accuracy(h, y)
        1.0
    """
    if not len(targets) or not decay > 0:
        raise InvalidInput(f"expected at least one sample and decay > 0; got {len(targets)} and {decay}")
    classes = int(targets.max()) + 1 if num_classes is None else num_classes
    check_labels(features, targets, classes)
    h = features.detach().double()
    mean = h.mean(dim=0)
    centred = h - mean
    if not _vary(h):
        raise InvalidInput("features do not vary or are not finite, so there is nothing to fit")
    scale = centred.square().mean().sqrt().item()
    with torch.enable_grad():
        weight, bias = _minimised(centred / scale, targets, decay, classes, max_iter)
    return LinearReadout(mean, scale, weight, bias)


def _vary(h: Tensor) -> bool:
    return bool(h.isfinite().all()) and bool((h != h[:1]).any())


def _minimised(u: Tensor, targets: Tensor, decay: float, classes: int, max_iter: int) -> tuple[Tensor, Tensor]:
    weight = u.new_zeros(classes, u.shape[1]).requires_grad_()
    bias = u.new_zeros(classes).requires_grad_()
    optimizer = torch.optim.LBFGS(
        [weight, bias], max_iter=max_iter, tolerance_grad=1e-6, tolerance_change=1e-10, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(F.linear(u, weight, bias), targets) + decay / 2 * weight.square().sum()
        torch.autograd.backward(loss, inputs=[weight, bias])
        return loss

    optimizer.step(closure)
    return weight.detach(), bias.detach()


class LinearProbe:
    """Held-out accuracy of a linear classifier on the frozen outputs of layers.

    Args:
        layers: Names as in `model.named_modules()`. With `assay.nn.WithProjectionHead`: "encoder" and "head".
        held_out: Inputs and classes to be told, in any form that `assay.Watch` takes.
        fit: Inputs and classes to fit to; the data that are watched if not given. Their classes need not be those that
            the network is trained on.
        decay: Of the classifier's weights; the same for all layers.
        batch_size: Samples per forward pass where data are not in batches already.

    Example:
        >>> x, y = torch.tensor([[-1.0], [-2.0], [1.0], [3.0]]), torch.tensor([0, 0, 1, 1])
        >>> view = View(torch.nn.Sequential(torch.nn.Linear(1, 2), torch.nn.Linear(2, 2)))
        >>> LinearProbe(["0"], held_out=(2 * x, y)).measure(view, [(x, y)])
        {'linear_probe/0': 1.0, 'linear_probe_fit/0': 1.0}
    """

    dear = True

    def __init__(
        self, layers: Sequence[str], held_out: Any, fit: Any = None, decay: float = 1e-2, batch_size: int = 512
    ) -> None:
        if not decay > 0:
            raise InvalidInput(f"decay must be above 0, not {decay}")
        self.layers, self.held_out, self.fit = layers, held_out, fit
        self.decay, self.batch_size = decay, batch_size
        self.skipped: dict[str, str] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return accuracies: "linear_probe/<layer>" on held-out data, "linear_probe_fit/<layer>" on those fitted.

        NaN, with the reason in `skipped`, if a layer's outputs do not vary or are not finite.

        Args:
            view: The network.
            batches: Pairs of inputs and classes, used where `fit` is not given.

        Raises:
            InvalidInput: If the model has no such layer, or labels are no classes.
        """
        self.skipped = {}
        names = view.layers(self.layers)
        first = next(iter(view.model.parameters()), torch.zeros(()))
        fit = batches if self.fit is None else Batches(self.fit, self.batch_size, view)
        seen, y = _outputs(view, names, fit, first.dtype)
        told, z = _outputs(view, names, Batches(self.held_out, self.batch_size, view), first.dtype)
        values: dict[str, float] = {}
        for name in names:
            keys = f"linear_probe/{name}", f"linear_probe_fit/{name}"
            if name not in seen or name not in told:
                self.skipped |= dict.fromkeys(keys, NOT_RUN)
                values |= dict.fromkeys(keys, math.nan)
                continue
            if not (_vary(seen[name]) and told[name].isfinite().all()):
                self.skipped |= dict.fromkeys(keys, "the layer's outputs do not vary, or contain NaN or infinity")
                values |= dict.fromkeys(keys, math.nan)
                continue
            readout = fit_linear_probe(seen[name], y, self.decay, int(max(y.max(), z.max())) + 1)
            values |= {keys[0]: readout.accuracy(told[name], z), keys[1]: readout.accuracy(seen[name], y)}
        return values


def _outputs(
    view: View, names: Sequence[str], data: Iterable[tuple[Any, Tensor]], dtype: torch.dtype
) -> tuple[dict[str, Tensor], Tensor]:
    """Return flattened outputs (N, D) by layer, and the classes (N,)."""
    outputs: dict[str, list[Tensor]] = {}
    targets = []
    for x, y in data:
        if isinstance(x, Tensor) and x.is_floating_point():
            x = x.to(dtype)  # a network in float64 may be watched on data in float32
        for name, output in view.activations(x, names).items():
            outputs.setdefault(name, []).append(output.flatten(1).double())
        targets.append(y)
    return {name: torch.cat(parts) for name, parts in outputs.items()}, torch.cat(targets)
