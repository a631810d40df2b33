"""Opposing signals: the few samples whose losses a step raises and lowers most, and whether their gradients oppose.

Rosenfeld and Risteski (2024, arXiv:2311.04163): small groups of training samples carry a large feature that pulls the
weights in opposite directions; at the edge of stability a step raises the loss of one group and lowers the other's, and
the next step does the reverse. The groups are found as in the paper; the numbers that make it decidable are ours.

    change         Delta_i = l_i(theta') - l_i(theta) over one step theta -> theta'
    groups         U, the k samples with the largest Delta; D, those with the smallest
    opposition     cos(g_U, g_D), g_S the gradient of the mean loss over S before the step, at theta
    oscillation    Pearson correlation over all samples of Delta in two consecutive steps; -1 if each change is undone
    concentration  share of U and D in sum_i |Delta_i|            delta_kurtosis   E (Delta - mean)^4 / Var^2
    rising_share   share of samples with Delta > 0

Selection alone makes the opposition negative: U is chosen for g_i . (theta' - theta) > 0 and D for < 0. Compare with a
run of smaller steps at the same loss, never with 0.

Shapes: N samples, P parameters, k samples per group. Losses are taken in the mode and with the buffers of the
measurement (`assay.Watch`: eval), on all samples given; the mean over samples is what steps are meant to lower.

Cost: 3 forward passes, 2 gradients of k samples, with `lr` 2 gradients over the data; memory 2 P, 2 N and 2 k samples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.probes._same_scores import why_not_own_scores
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["OpposingSignals", "SampleGroup"]

_KEYS = ("opposition", "oscillation", "concentration", "delta_kurtosis", "rising_share")
_Weights = dict[str, Tensor]


class SampleGroup(NamedTuple):
    """Samples whose loss a step changed most, the largest change first.

    `indices` (k,) count the samples in the order in which they came, `inputs` (k, ...) and `targets` (k,) are theirs,
    `changes` (k,) are their Delta in float64.
    """

    indices: Tensor
    inputs: Tensor
    targets: Tensor
    changes: Tensor


class OpposingSignals:
    """The two groups of a step, with their opposition and what the step does to all other samples.

    Args:
        k: Samples per group.
        lr: A step of full-batch gradient descent of this size is tried out from the weights as they are, and a second
            one after it; the network is left as it is. None looks back, at the steps between this measurement and the
            two before it: then measure after each step.

    Attributes:
        up: The group whose losses the last measured step raised most; None if there was none.
        down: The group whose losses it lowered most.
        skipped: Why a value of the last measurement is NaN, by name.

    Raises:
        InvalidInput: If k is below 1 or lr not above 0.

    Example:
        >>> view = View(torch.nn.Linear(1, 2))
        >>> probe = OpposingSignals(k=1, lr=0.1)
        >>> x, y = torch.tensor([[1.0], [5.0], [-5.0]]), torch.tensor([0, 0, 0])
        >>> sorted(probe.measure(view, [(x, y)]))[:3]
        ['concentration', 'delta_kurtosis', 'opposition']
    """

    dear = True

    def __init__(self, k: int = 20, lr: float | None = None) -> None:
        if k < 1 or not (lr is None or 0 < lr < math.inf):
            raise InvalidInput(f"expected k >= 1 and lr above 0 or None; got {k} and {lr}")
        self.k, self.lr = k, lr
        self.up: SampleGroup | None = None
        self.down: SampleGroup | None = None
        self.skipped: dict[str, str] = {}
        self._seen: list[_Weights] = []

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the quantities by name, see the head of this module.

        Args:
            view: The network; its loss is taken sample by sample and must be a mean over samples.
            batches: Pairs of inputs, as one tensor, and targets.

        Returns:
            NaN where there is nothing to compare with yet, no loss changed, a loss is not finite, or the rule does not
            predict by the model's own forward pass; `skipped` says which.

        Raises:
            InvalidInput: If inputs are no tensors, there are fewer than 2 k samples, or no parameter is trainable.
        """
        self.up = self.down = None
        weights = {name: p.detach().clone() for name, p in view.parameters().items()}
        if not weights:
            raise InvalidInput("the model has no trainable parameters, so no step changes a loss")
        if view.rule is not None and (reason := why_not_own_scores(view, next(iter(batches))[0])):
            return self._nothing(reason)
        points = self._points(view, weights, batches)
        if points is None:
            return self._nothing("it takes three measurements of the same parameters in a row, or lr=")
        start, end, other = points
        change, neighbour, reason = self._changes(view, (start, end, other), batches)
        if reason:
            return self._nothing(reason)
        return self._values(view, start, change, neighbour)

    def figure(self) -> Figure:
        """Return the samples of both groups: as pictures if they are images, else as rows of a heat map.

        Raises:
            InvalidInput: If the last measurement found no groups.
        """
        from assay.probes._group_figure import group_figure

        if self.up is None or self.down is None:
            raise InvalidInput("there are no groups to show; measure first, and see skipped")
        return group_figure({"loss rises": self.up, "loss falls": self.down})

    def _points(
        self, view: View, now: _Weights, batches: Iterable[tuple[Any, Tensor]]
    ) -> tuple[_Weights, _Weights, _Weights] | None:
        """Return the weights before and after the step, and the far end of its neighbour."""
        if self.lr is not None:
            following = _stepped(view, now, batches, self.lr)
            return now, following, _stepped(view, following, batches, self.lr)
        same = [w for w in self._seen if {n: t.shape for n, t in w.items()} == {n: t.shape for n, t in now.items()}]
        self._seen = [*same, now][-3:]
        if len(self._seen) < 3:
            return None
        before, start, end = self._seen
        self._seen = self._seen[1:]
        return start, end, before

    def _changes(
        self, view: View, points: tuple[_Weights, _Weights, _Weights], batches: Iterable[tuple[Any, Tensor]]
    ) -> tuple[Tensor, Tensor, str]:
        """Return each sample's change in the step and in its neighbour, and why there are none; collect the groups."""
        first: list[Tensor] = []
        second: list[Tensor] = []
        total = 0
        for x, y in batches:
            if not isinstance(x, Tensor):
                raise InvalidInput(f"inputs must be one tensor per batch, not {type(x).__name__}")
            before, after, other = (_sample_losses(view, weights, x, y) for weights in points)
            first.append(after - before)
            second.append(before - other if self.lr is None else other - after)
            indices = torch.arange(total, total + len(y), device=y.device)
            found = SampleGroup(indices, x, y, first[-1])
            self.up, self.down = _extreme(self.up, found, self.k, 1), _extreme(self.down, found, self.k, -1)
            total += len(y)
        change, neighbour = torch.cat(first), torch.cat(second)
        if total < 2 * self.k:
            raise InvalidInput(f"{total} samples cannot give two groups of {self.k}; choose a smaller k")
        reason = "" if change.isfinite().all() and neighbour.isfinite().all() else "a loss is NaN or infinite"
        return change, neighbour, reason or ("" if change.any() else "no loss changed: the weights are the same")

    def _values(self, view: View, start: _Weights, change: Tensor, neighbour: Tensor) -> dict[str, float]:
        assert self.up is not None and self.down is not None
        gradients = [_gradient(view, start, group.inputs, group.targets) for group in (self.up, self.down)]
        centred, sizes = change - change.mean(), change.abs()
        values = {
            "opposition": _cosine(*gradients),
            "oscillation": _cosine(centred, neighbour - neighbour.mean()),
            "concentration": ((self.up.changes.abs().sum() + self.down.changes.abs().sum()) / sizes.sum()).item(),
            "delta_kurtosis": (centred.pow(4).mean() / centred.square().mean().square()).item(),
            "rising_share": (change > 0).double().mean().item(),
        }
        reasons = {"opposition": "the gradient of a group is 0", "oscillation": "one of two steps changed no loss"}
        self.skipped = {key: reasons.get(key, "all losses changed alike") for key in values if math.isnan(values[key])}
        return values

    def _nothing(self, reason: str) -> dict[str, float]:
        self.up = self.down = None
        self.skipped = dict.fromkeys(_KEYS, reason)
        return dict.fromkeys(_KEYS, math.nan)


def _sample_losses(view: View, weights: _Weights, x: Tensor, y: Tensor) -> Tensor:
    """Return each sample's loss (B,) in float64."""
    with torch.no_grad():
        loss: Callable[[Tensor, Tensor], Tensor] = lambda s, t: view.loss(s[None], t[None])  # noqa: E731
        return torch.func.vmap(loss)(view.functional(weights, x).double(), _doubled(y)).double()


def _gradient(view: View, weights: _Weights, x: Tensor, y: Tensor) -> Tensor:
    """Return the gradient (P,) of the mean loss of some samples, in float64."""
    aliases = {name: w.detach().requires_grad_() for name, w in weights.items()}
    with torch.inference_mode(False), torch.enable_grad():
        scores = view.functional(aliases, x)
        wide = scores.detach().double().requires_grad_()
        (pull,) = torch.autograd.grad(view.loss(wide, _doubled(y)), wide)
        scale = pull.abs().max().clamp(min=torch.finfo(torch.float64).tiny)  # or it vanishes in the network's precision
        found = torch.autograd.grad(
            scores, list(aliases.values()), (pull / scale).to(scores.dtype), materialize_grads=True, allow_unused=True
        )
    return scale * torch.cat([g.detach().flatten().double() for g in found])


def _doubled(y: Tensor) -> Tensor:
    """Losses are taken in float64: of samples that are fitted, float32 knows neither a change nor a gradient."""
    return y.double() if y.is_floating_point() else y


def _stepped(view: View, weights: _Weights, batches: Iterable[tuple[Any, Tensor]], lr: float) -> _Weights:
    """Return the weights after one step of full-batch gradient descent."""
    total, samples = torch.zeros(()), 0
    for x, y in batches:
        total, samples = total.to(y.device) + len(y) * _gradient(view, weights, x, y), samples + len(y)
    parts = (total / samples).split([w.numel() for w in weights.values()])
    return {n: w - lr * g.view_as(w).to(w.dtype) for (n, w), g in zip(weights.items(), parts, strict=True)}


def _extreme(kept: SampleGroup | None, new: SampleGroup, k: int, sign: int) -> SampleGroup:
    """Return the k samples of a group and a batch with the largest (or, by sign, smallest) change."""
    both = new if kept is None else SampleGroup(*(torch.cat(pair) for pair in zip(kept, new, strict=True)))
    chosen = (sign * both.changes).topk(min(k, len(both.changes))).indices
    return SampleGroup(*(part[chosen] for part in both))


def _cosine(a: Tensor, b: Tensor) -> float:
    if not (a.any() and b.any()):
        return math.nan
    a, b = a / a.abs().max(), b / b.abs().max()  # else the squares of very small numbers vanish
    return (a @ b / (a.norm() * b.norm())).item()
