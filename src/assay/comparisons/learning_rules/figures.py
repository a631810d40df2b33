"""The plots of the comparison of learning rules, from its recorded trials."""

from __future__ import annotations

import statistics

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from assay.comparisons._drawing import Table, Trials, colours, dots, label_ends, panels, tidy, values
from assay.comparisons.learning_rules.study import DEPTHS, METHODS, REFERENCE

__all__ = ["figures"]


def figures(trials: Trials) -> dict[str, Figure]:
    """Return the plots by name.

    Args:
        trials: The final trials as `trials.json` has them.
    """
    return {
        "accuracy": _accuracy(values(trials, "test_accuracy")),
        "depth": _over_depth(values(trials, "test_accuracy"), "test accuracy"),
        "memory": _over_depth(
            _relative(values(trials, "saved_bytes")), "bytes kept for one update,\nbackpropagation = 1"
        ),
        "cost": _cost(values(trials, "test_accuracy"), values(trials, "cpu_seconds")),
    }


def _accuracy(accuracy: Table) -> Figure:
    figure, axes = panels(len(accuracy), len(METHODS))
    for panel, (task, row) in zip(axes, accuracy.items(), strict=True):
        dots(panel, row, list(METHODS), REFERENCE)
        panel.set_title(task, fontsize=9)
    figure.supxlabel("test accuracy: mean and 95 % interval", fontsize=9)
    return figure


def _over_depth(table: Table, label: str, scale: str = "linear") -> Figure:
    figure, axes = _one_panel()
    paint, ends = colours([*METHODS], REFERENCE), {}
    for method in METHODS:
        points = [
            (depth, statistics.fmean(table[f"mnist/depth-{depth}"][method]))
            for depth in DEPTHS
            if method in table.get(f"mnist/depth-{depth}", {})
        ]
        if len(points) < 2:
            continue
        axes.plot(*zip(*points, strict=True), marker="o", markersize=3.5, linewidth=1.3, color=paint[method])
        ends[method] = points[-1]
    axes.set_xscale("log", base=2)
    axes.set_yscale(scale)
    axes.xaxis.set_major_locator(FixedLocator(list(DEPTHS)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticklabels([str(depth) for depth in DEPTHS])
    axes.set_xlabel("hidden layers (MNIST)", fontsize=9)
    axes.set_ylabel(label, fontsize=9)
    tidy(axes)
    axes.grid(axis="y", color="#eceff1", linewidth=0.8)
    label_ends(axes, ends, paint, gap=0.055)
    return figure


def _one_panel() -> tuple[Figure, Axes]:
    figure = Figure(figsize=(8.0, 4.8))
    return figure, figure.add_axes((0.1, 0.12, 0.62, 0.85))


def _relative(table: Table) -> Table:
    """Divide by the mean of backpropagation on the same task."""
    return {
        task: {method: [v / statistics.fmean(row[REFERENCE]) for v in sample] for method, sample in row.items()}
        for task, row in table.items()
        if REFERENCE in row
    }


def _cost(accuracy: Table, seconds: Table) -> Figure:
    task = f"mnist/depth-{DEPTHS[1]}"
    figure, axes = _one_panel()
    paint = colours([*METHODS], REFERENCE)
    for place, method in enumerate(METHODS):
        if method not in accuracy.get(task, {}):
            continue
        x, y = statistics.fmean(seconds[task][method]), statistics.fmean(accuracy[task][method])
        axes.plot([x], [y], "os^Dv"[place % 5], color=paint[method], markersize=6, label=method)
    axes.set_xscale("log")
    axes.set_xlabel(f"CPU seconds of one trial on {task}, evaluation included", fontsize=9)
    axes.set_ylabel("test accuracy", fontsize=9)
    tidy(axes)
    axes.legend(loc="center left", bbox_to_anchor=(1.03, 0.5), fontsize=8, frameon=False)
    return figure
