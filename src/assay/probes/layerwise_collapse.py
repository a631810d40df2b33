"""Neural collapse of every block's output: through which layers do classes separate, and where do they collapse?

The layer-wise view of Kothapalli's review (2023, arXiv:2206.04041); the measures are those of
`assay.probes.neural_collapse`, with the layer's name behind a slash: "nc1/block2".

Features are vectors, so an output with positions is reduced: a convolution's (B, C, H, W) is averaged over H and W,
tokens (B, T, d) over T, or everything is flattened with `pool="flatten"`. NC1 is not the same for the two: averaging
removes spread within an image.

Shapes: B samples, K classes, d features of a layer. Two passes over the data: class means, then the spread about them.
Cost: two forward passes, 8 K d flops per sample and layer, memory of 32 K d bytes per layer: never d x d, and nothing
that grows with the number of samples, so that flattened maps of any size can be measured.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.probes._simplex import CollapseGeometry
from assay.probes._spread import Spread
from assay.probes.class_statistics import check_labels, chunks, class_sums
from assay.probes.view import View

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["LayerwiseCollapse"]

_KEYS = ("nc1", "nc1_trace", "nc1_cdnv", "nc2_equinorm", "nc2_etf", "ncc_accuracy")


class LayerwiseCollapse:
    """NC1 and its variants, NC2 and the nearest-class-mean accuracy, layer by layer.

    Args:
        layers: Names as in `model.named_modules()`; the model's blocks (its children, or theirs where there is only
            one) if not given. With a learning rule the blocks are the rule's, and no others can be asked for.
        pool: What becomes of positions: "average" or "flatten".

    Raises:
        InvalidInput: If `pool` is neither.

    Example:
        >>> view = View(nn.Sequential(nn.Identity(), nn.Linear(3, 3)))
        >>> inputs, targets = torch.eye(3).repeat(2, 1), torch.arange(3).repeat(2)
        >>> values = LayerwiseCollapse().measure(view, [(inputs, targets)])
        >>> round(values["nc1/0"], 6), values["ncc_accuracy/1"]
        (0.0, 1.0)
    """

    def __init__(self, layers: Sequence[str] | None = None, pool: str = "average") -> None:
        if pool not in ("average", "flatten"):
            raise InvalidInput(f"pool must be 'average' or 'flatten', not {pool!r}")
        self.layers, self.pool = layers, pool
        self.skipped: dict[str, str] = {}
        self._last: dict[str, float] = {}

    @torch.no_grad()
    def measure(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, float]:
        """Return the measures by "name/layer", NaN where undefined.

        Args:
            view: The network.
            batches: Training data; gone through twice.

        Raises:
            InvalidInput: If the model has no such layer, or the layer did not run or has no row per sample.
        """
        self.skipped, self._last = {}, {}
        geometries = {name: CollapseGeometry(m, n, None) for name, (m, n) in self._means(view, batches).items()}
        spreads: dict[str, Spread] = {}
        for x, y in batches:
            for name, features in self._features(view, x).items():
                if geometries[name].defined:
                    _add(spreads, name, geometries[name], features, y)
        for name, geometry in geometries.items():
            values = spreads[name].finish() if geometry.defined else {}
            self._last |= {f"{key}/{name}": values.get(key, math.nan) for key in _KEYS}
            self.skipped |= {f"{key}/{name}": geometry.skipped[key] for key in _KEYS if key in geometry.skipped}
        return dict(self._last)

    def figure(self) -> Figure:
        """Return a plot of the last measurement's NC1, by pseudo-inverse and by traces, over the layers.

        Raises:
            InvalidInput: If nothing was measured yet.
        """
        if not self._last:
            raise InvalidInput("layer-wise collapse has measured nothing; call measure first")
        from matplotlib.figure import Figure

        figure = Figure(figsize=(5, 3), layout="constrained")
        axes = figure.subplots()
        for key in ("nc1", "nc1_trace"):
            points = {name.partition("/")[2]: v for name, v in self._last.items() if name.startswith(f"{key}/")}
            axes.semilogy(list(points), list(points.values()), marker="o", label=key)
        axes.set_xlabel("layer")
        axes.tick_params(axis="x", rotation=45)
        axes.legend()
        return figure

    def _features(self, view: View, x: Any) -> dict[str, Tensor]:
        if view.rule is None:
            outputs = view.activations(x, view.layers(self.layers if self.layers is not None else _blocks(view.model)))
        elif self.layers is None:
            outputs = view.rule.features(x)
        else:
            raise InvalidInput("a network with a learning rule is measured at the rule's own blocks; leave layers out")
        return {name: _pooled(h, self.pool) for name, h in outputs.items() if h.is_floating_point()}

    def _means(self, view: View, batches: Iterable[tuple[Any, Tensor]]) -> dict[str, tuple[Tensor, Tensor]]:
        """Return the class means (K, d) and the samples per class (K,) by layer."""
        totals: dict[str, tuple[Tensor, Tensor]] = {}
        for x, y in batches:
            K = view.scores(x).shape[1] if not totals else len(next(iter(totals.values()))[1])
            for name, features in self._features(view, x).items():
                check_labels(features, y, K)
                sums, counts = class_sums(features, y, K)
                if name in totals:
                    sums, counts = sums.add_(totals[name][0]), counts.add_(totals[name][1])
                totals[name] = sums, counts
        return {name: (sums.div_(counts[:, None]), counts) for name, (sums, counts) in totals.items()}


def _add(spreads: dict[str, Spread], name: str, geometry: CollapseGeometry, features: Tensor, targets: Tensor) -> None:
    if name not in spreads:
        spreads[name] = Spread(geometry, torch.promote_types(features.dtype, torch.float32))
    for h, y in chunks(features, targets, 2**17):
        spreads[name].add(h, y)


def _blocks(model: nn.Module) -> list[str]:
    """Return the names of the model's children; where there is only one and it has several itself, of those."""
    prefix, children = "", list(model.named_children())
    while len(children) == 1 and next(children[0][1].children(), None) is not None:
        prefix, children = f"{prefix}{children[0][0]}.", list(children[0][1].named_children())
    if not children:
        raise InvalidInput(f"{type(model).__name__} has no layers inside; name the layers to measure")
    return [prefix + name for name, _ in children]


def _pooled(output: Tensor, pool: str) -> Tensor:
    """Return features (B, d) of an output (B, d), (B, T, d) or (B, C, ...)."""
    if pool == "flatten" or output.ndim == 2:
        return output.flatten(1)
    return output.mean(dim=1) if output.ndim == 3 else output.flatten(2).mean(dim=2)
