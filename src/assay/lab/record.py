"""What one trial gives: final metrics, series over steps, arrays, resources, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

__all__ = ["Record", "Series"]

STATUSES = ("done", "diverged", "timeout")


def _to_number(value: float) -> float | str:
    """JSON has no NaN and no infinity: they travel as strings, and come back bit-equal."""
    return value if math.isfinite(value) else repr(value)


@dataclass(frozen=True)
class Series:
    """A quantity over the steps of a trial."""

    steps: tuple[float, ...]
    values: tuple[float, ...]
    unit: str = "epoch"

    def to_plain(self) -> dict[str, Any]:
        """Return the series as JSON-ready data; `from_plain` restores it bit for bit."""
        return {"steps": list(self.steps), "values": [_to_number(v) for v in self.values], "unit": self.unit}

    @classmethod
    def from_plain(cls, plain: dict[str, Any]) -> Series:
        """Restore a series from `to_plain`'s data."""
        return cls(tuple(map(float, plain["steps"])), tuple(map(float, plain["values"])), plain["unit"])


@dataclass(frozen=True)
class Record:
    """What one trial gives.

    Args:
        metrics: Final values by name.
        series: Values over the steps of the trial by name.
        arrays: Anything larger, stored as npz and never as pickles.
        resources: Wall and CPU seconds, peak memory in bytes above the trial's start, parameters, ...
        status: "done", "diverged" (a result, not a crash) or "timeout".
    """

    metrics: dict[str, float]
    series: dict[str, Series] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    status: str = "done"

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")

    def to_plain(self) -> dict[str, Any]:
        """Return everything but the arrays as JSON-ready data; `from_plain` restores it bit for bit."""
        return {
            "status": self.status,
            "metrics": {k: _to_number(v) for k, v in self.metrics.items()},
            "series": {k: s.to_plain() for k, s in self.series.items()},
            "resources": {k: _to_number(v) for k, v in self.resources.items()},
        }

    @classmethod
    def from_plain(cls, plain: dict[str, Any], arrays: dict[str, np.ndarray] | None = None) -> Record:
        """Restore a record from `to_plain`'s data and its arrays."""
        return cls(
            metrics={k: float(v) for k, v in plain["metrics"].items()},
            series={k: Series.from_plain(s) for k, s in plain["series"].items()},
            arrays=arrays or {},
            resources={k: float(v) for k, v in plain["resources"].items()},
            status=plain["status"],
        )
