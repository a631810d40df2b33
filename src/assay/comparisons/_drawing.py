"""What the plots of comparisons share: reading arms named "task/method" from trials, and panels of dots."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
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


def colours(methods: Sequence[str], reference: str) -> dict[str, str]:
    """Return a colour per method; the reference is black."""
    others = [method for method in methods if method != reference]
    # the registry's type is the base class, which has no list of colours
    wheel = [to_hex(colour) for colour in (*colormaps["tab10"].colors, *colormaps["Dark2"].colors)]  # type: ignore[attr-defined]
    return {reference: "#000000"} | {method: wheel[i % len(wheel)] for i, method in enumerate(others)}


def label_ends(axes: Axes, ends: Mapping[str, tuple[float, float]], paint: Mapping[str, str], gap: float) -> None:
    """Write each line's name beside the axes at its height, moved apart so that no two overlap, with a thin leader.

    Args:
        axes: Where to write; its limits and scales must be set.
        ends: Last point by name.
        paint: Colour by name.
        gap: Least vertical distance of two names, in axes coordinates.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    points = {name: to_axes.transform(point) for name, point in ends.items()}
    order = sorted(points, key=lambda name: points[name][1])
    heights = [float(points[name][1]) for name in order]
    for i in range(1, len(heights)):
        heights[i] = max(heights[i], heights[i - 1] + gap)
    # What rose above the top goes down again, and pushes the others.
    heights[-1:] = [min(heights[-1], 1.0)] if heights else []
    for i in range(len(heights) - 2, -1, -1):
        heights[i] = min(heights[i], heights[i + 1] - gap)
    for name, height in zip(order, heights, strict=True):
        x, y = points[name]
        axes.plot([x, 1.04], [y, height], transform=axes.transAxes, clip_on=False, color=paint[name], linewidth=0.5)
        axes.text(1.05, height, name, transform=axes.transAxes, fontsize=8, va="center", color=paint[name])


def panels(count: int, lines: int) -> tuple[Figure, list[Axes]]:
    """Return a figure of panels, at most three side by side, that share their vertical axes, for that many lines."""
    columns = min(count, 3)
    rows = math.ceil(count / columns)
    figure = Figure(figsize=(2.0 + 2.3 * columns, rows * (0.9 + 0.19 * lines)), layout="constrained")
    axes = figure.subplots(rows, columns, sharey=True, squeeze=False).flatten()
    for unused in axes[count:]:
        unused.set_visible(False)
    return figure, list(axes[:count])
