"""The information plane: where each layer stands between what it knows of the input and what it knows of the label.

Shwartz-Ziv and Tishby (2017, arXiv:1703.00810) plot every layer T at (I(X; T), I(T; Y)) while a network trains, and
report that I(X; T) rises and then falls (compression). Saxe et al. (2018, ICLR) show that this depends on the
activation function and on the estimator, so the probe takes several at once; `assay.probes.mutual_information` has
their definitions.

Shapes: N samples, a layer's activations (N, d). Every sample counts as one equally likely input; all activations of the
layers are kept while measuring. Measure on a fixed set of inputs: values are bounded by log2 N and not comparable
between sets. Where nearly all rows of bins differ, as in any wide layer, I(X; T) stands at log2 N and says nothing.

Cost: one forward pass, and per layer and estimator a sort (binned) or N^2 distances and exponentials (kde).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes.mutual_information import (
    BINNINGS,
    Information,
    binned_mutual_information,
    kde_mutual_information,
)
from assay.probes.view import NOT_RUN, View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["InformationPlane", "compression"]

_KINDS = ("i_xt", "i_ty")
ESTIMATORS = (*BINNINGS, "kde_upper", "kde_lower")


def compression(values: Iterable[float]) -> float:
    """Return how far a curve of I(X; T) has come down from its highest point, in the curve's unit.

    Raises:
        InvalidInput: If there are no values.

    Example:
        >>> compression([3.0, 7.0, 5.0])
        2.0
    """
    curve = list(values)
    if not curve:
        raise InvalidInput("compression needs at least one value")
    return max(curve) - curve[-1]


class InformationPlane:
    """Information of layers about input and label, by one or several estimators.

    Args:
        layers: Names of modules whose outputs are measured, as in `named_modules()`. If not given: the
            outputs of all activation modules of `torch.nn`, or what the head reads if there are none; with a learning
            rule, its layers.
        estimators: Any of "bins", "fixed_width", "range", "quantile", "kde_upper", "kde_lower".
        bins: Edges of "bins", number of bins of "range" and "quantile".
        low: First edge of "bins".
        high: Last edge of "bins".
        width: Bins of "fixed_width".
        noise_variance: Of "kde_upper" and "kde_lower".

    Attributes:
        trajectory: All measurements so far, in order.
        skipped: Why a value of the last measurement is NaN, by name.
        dear: Whether an estimator's time grows with the square of the number of samples.

    Raises:
        InvalidInput: If an estimator is unknown or named twice.

    Example:
        >>> model = nn.Sequential(nn.Linear(2, 3), nn.Tanh(), nn.Linear(3, 2))
        >>> probe = InformationPlane(estimators=["fixed_width", "kde_upper"], width=1e-6)
        >>> values = probe.measure(View(model), [(torch.eye(2), torch.tensor([0, 1]))])
        >>> values["i_xt_fixed_width/1"], values["i_ty_fixed_width/1"]
        (1.0, 1.0)
    """

    dear = False

    def __init__(
        self,
        layers: Sequence[str] | None = None,
        estimators: Sequence[str] | str = ("bins",),
        *,
        bins: int = 30,
        low: float = -1.0,
        high: float = 1.0,
        width: float = 0.07,
        noise_variance: float = 1e-3,
    ) -> None:
        self.layers = [layers] if isinstance(layers, str) else layers
        if self.layers is not None and not self.layers:
            raise InvalidInput("layers is empty; name at least one, or leave it out for all activation modules")
        self.estimators = (estimators,) if isinstance(estimators, str) else tuple(estimators)
        if not self.estimators or not set(self.estimators) <= set(ESTIMATORS):
            raise InvalidInput(f"estimators must be some of {', '.join(ESTIMATORS)}; got {self.estimators}")
        if len(set(self.estimators)) < len(self.estimators):
            raise InvalidInput(f"an estimator is named twice: {self.estimators}")
        self.binning: dict[str, Any] = {"bins": bins, "low": low, "high": high, "width": width}
        self.noise_variance = noise_variance
        self.dear = any(name.startswith("kde") for name in self.estimators)
        self.trajectory: list[dict[str, float]] = []
        self.skipped: dict[str, str] = {}

    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return "i_xt_<estimator>/<layer>" and "i_ty_<estimator>/<layer>" in bits.

        Args:
            view: The network.
            batches: Pairs of inputs and integer labels (B,).

        Returns:
            NaN, with the reason in `skipped`, for a layer that is not finite, and for I(T; Y) if there is only one
            class. A layer that runs again in one forward pass adds "<layer>#2".

        Raises:
            InvalidInput: If the model has no layer of that name, it did not run or does not give one row per sample, or
                labels are not integers.
        """
        self.skipped = {}
        names = self._names(view)
        seen: dict[str, list[Tensor]] = {}
        labels = []
        with torch.no_grad():
            for x, y in batches:
                for name, activations in (view.activations(x, names) if names else view.features(x)).items():
                    seen.setdefault(name, []).append(activations.detach().flatten(1))
                labels.append(y)
        y = torch.cat(labels)
        values: dict[str, float] = {}
        for name, parts in seen.items():
            values |= self._of_layer(name, torch.cat(parts), y)
        missing = [f"{k}_{e}/{n}" for n in names if n not in seen for e in self.estimators for k in _KINDS]
        self.skipped |= dict.fromkeys(missing, NOT_RUN)
        values |= dict.fromkeys(missing, math.nan)
        self.trajectory.append(values)
        return values

    def compression(self) -> dict[str, float]:
        """Return by "<estimator>/<layer>" how far I(X; T) is below its highest value so far, in bits."""
        keys = [key for key in (self.trajectory[-1] if self.trajectory else {}) if key.startswith("i_xt_")]
        curves = {key: [v for m in self.trajectory if not math.isnan(v := m.get(key, math.nan))] for key in keys}
        return {key.removeprefix("i_xt_"): compression(curve) for key, curve in curves.items() if curve}

    def figure(self) -> Figure:
        """Return the plane: one panel per estimator, one path per layer, a ring at its end.

        Raises:
            InvalidInput: If nothing was measured yet.
        """
        if not self.trajectory:
            raise InvalidInput("there is nothing to show; measure first")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(4 * len(self.estimators), 3.5), layout="constrained")
        panels = figure.subplots(1, len(self.estimators), squeeze=False)[0]
        for panel, estimator in zip(panels, self.estimators, strict=True):
            prefix = f"i_xt_{estimator}/"
            for layer in [key.removeprefix(prefix) for key in self.trajectory[-1] if key.startswith(prefix)]:
                path = [[m.get(f"{kind}_{estimator}/{layer}", math.nan) for m in self.trajectory] for kind in _KINDS]
                (line,) = panel.plot(*path, marker=".", label=layer)
                panel.plot(path[0][-1], path[1][-1], "o", color=line.get_color(), fillstyle="none", markersize=10)
            panel.set(title=estimator.replace("_", " "), xlabel="I(X; T) in bits", ylabel="I(T; Y) in bits")
            panel.legend(title="layer")
        return figure

    def _names(self, view: View) -> list[str]:
        """Return the layers to read; none means what the view calls features."""
        if self.layers is not None:
            return view.layers(self.layers)
        modules = {} if view.rule is not None else dict(view.model.named_modules())
        return [name for name, module in modules.items() if name and type(module).__module__ == nn.ReLU.__module__]

    def _of_layer(self, layer: str, t: Tensor, y: Tensor) -> dict[str, float]:
        reason = "" if t.isfinite().all() else "an activation is NaN or infinite"
        classes = y.unique()
        values: dict[str, float] = {}
        for estimator in self.estimators:
            keys = [f"{kind}_{estimator}/{layer}" for kind in _KINDS]
            found = Information(math.nan, math.nan) if reason else self._estimate(estimator, t, y)
            values |= dict(zip(keys, found, strict=True))
            self.skipped |= dict.fromkeys(keys, reason) if reason else {}
            if not reason and len(classes) < 2:
                values[keys[1]], self.skipped[keys[1]] = math.nan, "the data have one class, so the label tells nothing"
        return values

    def _estimate(self, estimator: str, t: Tensor, y: Tensor) -> Information:
        if estimator in BINNINGS:
            return binned_mutual_information(t, y, estimator, **self.binning)
        bound = estimator.removeprefix("kde_")
        return kde_mutual_information(t, y, noise_variance=self.noise_variance, bound=bound)
