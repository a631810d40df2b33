"""Curves as SVG that takes its colours and its font from the page, so that one file serves light, dark and print.

Matplotlib draws with marker colours that stand for the page's CSS variables, and the SVG is rewritten to name those.
Titles, units and names of arms stand in the HTML around a figure: no text of a record gets into the SVG.
"""

from __future__ import annotations

import io
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, FuncFormatter, LogLocator, MaxNLocator, NullLocator
from numpy.typing import NDArray

from assay.lab.report import text

__all__: list[str] = []

WIDTH, HEIGHT = 310, 195
COLOURS = 7
DASHES = ("", "7 2.5", "2 2", "8 2.5 2 2.5")
MARKERS = "os^D"
MAX_PLOTTED = 120
_RULE, _TEXT = "#fb0001", "#fb0002"
_VARIABLES = {_RULE: "var(--rule)", _TEXT: "var(--muted)"}
_SETTINGS: dict[Any, Any] = {
    "font.size": 11.0,
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "path.simplify_threshold": 0.3,
}

Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Band:
    """A quantity over steps in one arm: the mean over seeds between the lowest and the highest seed."""

    steps: NDArray[np.float64]
    mean: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def dash(arm: int) -> str:
    """Return an arm's SVG dash pattern; with `colour` it tells up to 28 arms apart."""
    return DASHES[arm % len(DASHES)]


def marker(arm: int) -> str:
    """Return an arm's marker in a scatter plot, by matplotlib's letter."""
    return MARKERS[arm % len(MARKERS)]


def colour(arm: int) -> int:
    """Return the number of an arm's colour among the page's `--arm-0` ... `--arm-6`."""
    return arm % COLOURS


def band(curves: Sequence[Curve]) -> Band | None:
    """Merge the curves of an arm's seeds on common steps.

    A seed counts between its own first and last step, by linear interpolation: one that diverged or ran out of time
    ends early and leaves the others to go on.

    Args:
        curves: (steps, values) per seed; points that are not finite are left out.

    Returns:
        The band, or None where no point is finite.
    """
    kept = [c for c in map(_finite_points, curves) if len(c[0])]
    if not kept:
        return None
    grid = np.unique(np.concatenate([steps for steps, _ in kept]))
    if len(grid) > MAX_PLOTTED:
        grid = grid[np.linspace(0, len(grid) - 1, MAX_PLOTTED).round().astype(int)]
    rows = np.ma.masked_invalid([np.interp(grid, s, v, left=np.nan, right=np.nan) for s, v in kept])
    # Between the steps of short and long seeds the thinned grid can fall where no seed was running.
    some = ~rows.mask.all(axis=0) if rows.mask.ndim else np.ones(len(grid), dtype=bool)
    low, mean, high = (np.asarray(f(axis=0))[some] for f in (rows.min, rows.mean, rows.max))
    return Band(grid[some], mean, low, high)


def curves_svg(bands: Mapping[int, Band], salt: str) -> tuple[str, bool]:
    """Draw one panel: a line and a band for every arm.

    Args:
        bands: What to draw, by the arm's place in the study (it decides colour and dashes).
        salt: Makes the SVG's inner ids unique on the page, and the same every time.

    Returns:
        The SVG element and whether its vertical axis is logarithmic.
    """
    logarithmic = _wants_logarithm(list(bands.values()))

    def draw(axes: Axes) -> None:
        for arm, b in bands.items():
            paint = _arm_colour(arm)
            if len(b.steps) == 1:
                axes.plot(b.steps, b.mean, "o", color=paint, markersize=4, gid=f"arm-{arm}")
                continue
            axes.fill_between(b.steps, b.low, b.high, color=paint, alpha=0.16, linewidth=0, gid=f"arm-{arm}")
            axes.plot(b.steps, b.mean, color=paint, linewidth=1.6, linestyle=_line_style(arm), gid=f"arm-{arm}")
        if logarithmic:
            axes.set_yscale("log")

    return _svg(draw, salt), logarithmic


def scatter_svg(points: Mapping[int, Sequence[tuple[float, float]]], salt: str) -> str:
    """Draw one point per seed and arm, for claims about how two quantities go together.

    Args:
        points: (x, y) pairs by the arm's place in the study.
        salt: Makes the SVG's inner ids unique on the page, and the same every time.

    Returns:
        The SVG element.
    """

    def draw(axes: Axes) -> None:
        for arm, pairs in points.items():
            x, y = np.asarray(pairs, dtype=float).reshape(-1, 2).T
            axes.plot(x, y, marker(arm), color=_arm_colour(arm), alpha=0.8, markersize=6, gid=f"arm-{arm}")

    return _svg(draw, salt)


def _svg(draw: Callable[[Axes], None], salt: str) -> str:
    with matplotlib.rc_context():
        # A reader's own matplotlibrc must not change the pages.
        matplotlib.rcdefaults()
        matplotlib.rcParams.update({**_SETTINGS, "svg.hashsalt": salt})
        figure = Figure(figsize=(WIDTH / 72, HEIGHT / 72), dpi=72)
        figure.patch.set_visible(False)
        axes = figure.add_axes((0.15, 0.125, 0.835, 0.84))
        draw(axes)
        _quiet(axes)
        buffer = io.StringIO()
        FigureCanvasSVG(figure).print_svg(buffer, metadata={"Date": None})
    return _for_page(buffer.getvalue())


def _quiet(axes: Axes) -> None:
    """Leave of the frame only the base line, the horizontal rules and a few ticks."""
    axes.patch.set_visible(False)
    axes.set_axisbelow(True)
    axes.margins(x=0.02, y=0.06)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(_RULE)
    axes.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if axes.get_yscale() == "log":
        _log_ticks(axes)
    else:
        axes.yaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(FuncFormatter(lambda value, _: text.short(value)))
        axis.set_tick_params(length=0, pad=5, labelcolor=_TEXT)
    axes.grid(axis="y", color=_RULE, linewidth=0.7)


def _log_ticks(axes: Axes) -> None:
    """Put ticks at powers of ten, or also at 2 and 5 times these where fewer than three would show."""
    low, high = axes.get_ylim()
    ticks: list[float] = []
    for subs in ((1.0,), (1.0, 2.0, 5.0)):
        ticks = [t for t in LogLocator(subs=subs, numticks=5).tick_values(low, high) if low <= t <= high]
        if len(ticks) > 2:
            break
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_locator(FixedLocator(ticks))


def _wants_logarithm(bands: Sequence[Band]) -> bool:
    """Say whether a quantity is positive and spans more than two decades."""
    low, high = min(b.low.min() for b in bands), max(b.high.max() for b in bands)
    return bool(low > 0 and high / low > 100)


def _finite_points(curve: Curve) -> Curve:
    steps, values = curve
    order = np.argsort(steps, kind="stable")
    keep = order[np.isfinite(steps[order]) & np.isfinite(values[order])]
    return steps[keep], values[keep]


def _arm_colour(arm: int) -> str:
    return f"#fa{colour(arm):02x}00"


def _line_style(arm: int) -> str | tuple[int, tuple[float, ...]]:
    lengths = tuple(float(length) / 1.6 for length in dash(arm).split())
    return (0, lengths) if lengths else "-"


def _rounded(match: re.Match[str]) -> str:
    return f"{float(match[0]):.2f}".rstrip("0").rstrip(".")


def _for_page(svg: str) -> str:
    """Turn matplotlib's document into an element for the page: classes for ids, CSS variables for colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>|<style .*?</style>", "", svg, flags=re.DOTALL)
    svg = re.sub(r"<svg [^>]*>", f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" aria-hidden="true">', svg, count=1)
    svg = re.sub(r'<g id="arm-(\d+)"', r'<g class="arm-\1"', svg)
    svg = re.sub(r'<g id="[^"]*"', "<g", svg)
    svg = re.sub(r"#fa(\d\d)00", lambda match: f"var(--arm-{int(match[1], 16)})", svg)
    for stand_in, variable in _VARIABLES.items():
        svg = svg.replace(stand_in, variable)
    svg = svg.replace("xlink:href", "href")
    # A hundredth of a pixel is enough, six decimals would double the page. Only in tags: a tick may say 0.975.
    svg = re.sub(r"<[^>]*>", lambda tag: re.sub(r"-?\d+\.\d{3,}", _rounded, tag[0]), svg)
    return re.sub(r"\s*\n\s*", "\n", svg).strip()
