"""What the plots of comparisons share: reading arms named "task/method" from trials, and panels of dots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from assay.lab.statistics import t_interval

Trials = Sequence[Mapping[str, Any]]
Table = dict[str, dict[str, list[float]]]

INK, ACCENT, QUIET = "#22313f", "#0b7a75", "#b8c1c8"


def values(trials: Trials, metric: str) -> Table:
    """Return a metric or resource of every finished trial, by task and method, in the order of the arms."""
    found: Table = {}
    for trial in trials:
        task, _, method = trial["arm"].rpartition("/")
        value = (trial["metrics"] | trial["resources"]).get(metric)
        if trial["status"] == "done" and value is not None:
            found.setdefault(task, {}).setdefault(method, []).append(float(value))
    return found


def interval(sample: Sequence[float]) -> tuple[float, float]:
    """Return the 95 % t interval of the mean; the mean twice for a single value."""
    if len(sample) < 2:
        return sample[0], sample[0]
    low, high = t_interval(sample)
    return (low, high) if math.isfinite(low) and math.isfinite(high) else (sample[0], sample[0])


def dots(axes: Axes, row: Mapping[str, Sequence[float]], methods: Sequence[str], reference: str) -> None:
    """Draw one method per line: mean, interval, and a vertical line at the reference's mean."""
    places = {method: -place for place, method in enumerate(methods)}
    if reference in row:
        axes.axvline(statistics.fmean(row[reference]), color=QUIET, linewidth=1, zorder=0)
    for method, place in places.items():
        if method not in row:
            continue
        low, high = interval(row[method])
        colour = ACCENT if method == reference else INK
        axes.plot([low, high], [place, place], color=colour, linewidth=1.4)
        axes.plot([statistics.fmean(row[method])], [place], "o", color=colour, markersize=4.5)
    axes.set_yticks(list(places.values()), list(places))
    axes.tick_params(labelsize=8, length=0)
    tidy(axes)


def tidy(axes: Axes) -> None:
    """Leave out the frame and draw a light grid."""
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.grid(axis="x", color="#eceff1", linewidth=0.8)
    axes.set_axisbelow(True)


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], gap: float) -> None:
    """Write each line's name at its end, moved apart so that no two overlap.

    Args:
        axes: Where to write.
        ends: Last point by name.
        gap: Least vertical distance of two names, in axes coordinates.
    """
    to_axes = axes.transLimits.transform if axes.get_yscale() == "linear" else _through(axes)
    lowest = -math.inf
    for name, (x, y) in sorted(ends.items(), key=lambda item: item[1][1]):
        _, height = to_axes((x, y))
        lowest = max(height, lowest + gap)
        axes.annotate(name, (1.02, lowest), xycoords="axes fraction", fontsize=8, va="center", color=INK)


def _through(axes: Axes) -> Any:
    def transform(point: tuple[float, float]) -> Any:
        return axes.transLimits.transform(axes.transScale.transform(point))

    return transform


def panels(count: int, lines: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels side by side that share their vertical axis, with room for that many lines."""
    figure = Figure(figsize=(2.4 + 2.5 * count, 1.1 + 0.24 * lines), layout="constrained")
    axes = figure.subplots(1, count, sharey=True, squeeze=False)[0]
    return figure, list(axes)
