"""Where the dots, bars and thresholds of an expectation's drawing go, in percent of its width.

The template draws them as SVG whose coordinates are percentages: lines and text keep their size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from matplotlib.ticker import MaxNLocator

from assay.lab.report import text

__all__: list[str] = []

Range = tuple[float, float]
Point = tuple[float, bool]


@dataclass(frozen=True)
class Axis:
    """A linear scale from values to percent of the drawing's width."""

    low: float
    high: float

    def at(self, value: float) -> float:
        """Return where a value lies, from 0 to 100; what lies outside (an infinite end) is put at the edge."""
        share = (value - self.low) / (self.high - self.low) if math.isfinite(value) else float(value > 0)
        return round(100 * min(max(share, 0.0), 1.0), 2)

    @property
    def ticks(self) -> list[tuple[float, str]]:
        """Return a few round values as (percent, label), none so near to an edge that its label would be cut."""
        values = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(self.low, self.high)
        step = 10.0 ** (math.floor(math.log10(self.high - self.low)) - 3)
        rounded = [round(float(v) / step) * step for v in values]
        return [(p, text.short(float(f"{v:.8g}"))) for v in rounded if 3 <= (p := self._raw(v)) <= 97]

    def _raw(self, value: float) -> float:
        return round(100 * (value - self.low) / (self.high - self.low), 2)

    @classmethod
    def around(cls, values: Iterable[float]) -> Axis:
        """Return an axis that holds all values, with a margin."""
        known = [v for v in values if math.isfinite(v)] or [0.0]
        low, high = min(known), max(known)
        margin = 0.06 * (high - low) or 0.5 * abs(high) or 1.0
        return cls(low - margin, high + margin)


@dataclass(frozen=True)
class Row:
    """One comparison of an expectation: an interval, its centre and a dot per seed."""

    name: str
    status: str
    numbers: str
    effect: float | None
    bar: Range | None
    dots: list[tuple[float, str]]
    region: Range | None
    limits: list[float]
    slack: float


@dataclass(frozen=True)
class Drawing:
    """An expectation's comparisons over one axis; `more` are those that a page with many folds away."""

    rows: list[Row]
    more: list[Row]
    ticks: list[tuple[float, str]]
    zero: float | None


@dataclass(frozen=True)
class Lane:
    """An arm's final values: its place among the arms, (percent, seed, whether censored) per seed, and their mean."""

    arm: str
    place: int
    dots: list[tuple[float, str, bool]]
    mean: float | None
    written: str


@dataclass(frozen=True)
class Strip:
    """A quantity's final value for every arm and seed: a row per arm, a line per seed through the arms."""

    title: str
    rows: list[Lane]
    lines: list[tuple[float, int, float, int]]
    ticks: list[tuple[float, str]]
    censored: bool


SHOWN = 12
DIFFERENCES = ("greater", "less", "equivalent", "monotone")


def drawing(outcome: Mapping[str, Any], expectation: Mapping[str, Any]) -> Drawing | None:
    """Lay out an outcome's comparisons, or the outcome itself where it has none; None if nothing is finite."""
    components = [c for c in outcome.get("components") or [outcome] if _extent(c)]
    if not components:
        return None
    # A difference is read against zero, even if its margin lies elsewhere.
    values = [0.0] if expectation.get("kind") in DIFFERENCES else []
    for component in components:
        values += [*_extent(component), *_bounds(component)]
    axis = Axis.around(values)
    rows = [_row(component, axis) for component in components]
    if len(rows) > SHOWN:
        # Whoever sees only some must see those that come nearest to breaking the claim.
        rows = sorted(rows, key=lambda row: row.slack)
    zero = axis.at(0.0) if axis.low < 0 < axis.high else None
    return Drawing(rows[:SHOWN], rows[SHOWN:], axis.ticks, zero)


def strip(title: str, values: Mapping[str, Mapping[str, Point]]) -> Strip:
    """Lay out a quantity's final values.

    Args:
        title: The quantity.
        values: (value, whether censored) by arm and seed.
    """
    axis = Axis.around(value for by_seed in values.values() for value, _ in by_seed.values())
    lanes, lines = [], []
    before: Mapping[str, Point] = {}
    for place, (arm, by_seed) in enumerate(values.items()):
        mean = math.fsum(value for value, _ in by_seed.values()) / len(by_seed) if by_seed else None
        dots = [(axis.at(value), seed, censored) for seed, (value, censored) in by_seed.items()]
        lanes.append(Lane(arm, place, dots, None if mean is None else axis.at(mean), text.number(mean)))
        pairs = [(before[seed][0], value) for seed, (value, _) in by_seed.items() if seed in before]
        lines += [(axis.at(first), place - 1, axis.at(second), place) for first, second in pairs]
        before = by_seed
    return Strip(title, lanes, lines, axis.ticks, any(c for by_seed in values.values() for _, c in by_seed.values()))


def _row(component: Mapping[str, Any], axis: Axis) -> Row:
    effect, ends = text.finite(component.get("effect")), _interval(component)
    holds = _region(component)
    numbers = text.estimate(effect, *ends) if ends else text.number(effect, 3)
    return Row(
        name=str(component.get("text") or ""),
        status=str(component.get("status") or ""),
        numbers=f"{numbers} {text.interval(*ends)}" if ends else numbers,
        effect=None if effect is None else axis.at(effect),
        bar=(axis.at(ends[0]), axis.at(ends[1])) if ends else None,
        dots=[(axis.at(v), seed) for seed, v in _by_seed(component)],
        region=(axis.at(holds[0]), axis.at(holds[1])) if holds else None,
        limits=[axis.at(bound) for bound in _bounds(component)],
        slack=_slack(ends, holds),
    )


def _region(component: Mapping[str, Any]) -> Range | None:
    """Return where a component expects its mean; None in its "range" is an open end."""
    if not component.get("range"):
        return None
    low, high = map(text.finite, component["range"])
    return -math.inf if low is None else low, math.inf if high is None else high


def _bounds(component: Mapping[str, Any]) -> list[float]:
    """Return the finite ends of the region, or the threshold where no region is stored."""
    region = _region(component) or (text.finite(component.get("threshold")),)
    return [end for end in region if end is not None and math.isfinite(end)]


def _slack(ends: Range | None, holds: Range | None) -> float:
    """Return how far inside the region an interval lies; negative where it sticks out or is missing."""
    if holds is None:
        return 0.0
    return -math.inf if ends is None else min(ends[0] - holds[0], holds[1] - ends[1])


def _extent(component: Mapping[str, Any]) -> list[float]:
    numbers = [component.get("effect"), *(component.get("interval") or ()), *(component.get("values") or ())]
    return [x for x in map(text.finite, numbers) if x is not None]


def _interval(component: Mapping[str, Any]) -> Range | None:
    low, high = map(text.finite, component.get("interval") or (None, None))
    return None if low is None or high is None else (low, high)


def _by_seed(component: Mapping[str, Any]) -> list[tuple[str, float]]:
    values = component.get("values") or []
    seeds = component.get("seeds") or range(len(values))
    pairs = [(str(seed), text.finite(value)) for seed, value in zip(seeds, values, strict=False)]
    return [(seed, value) for seed, value in pairs if value is not None]
