"""What one trial gives: final metrics, series over steps, arrays, pictures, resources, and how it ended."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from assay.lab.pictures import check_pictures

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
        pictures: Small pictures by name, uint8 (H, W) or (H, W, 3); those of each arm's first seed are shown beside the
            verdict and shipped with the evidence, so they are limited to `assay.lab.pictures.LARGEST_PICTURES` bytes.

    Raises:
        ValueError: If the status is none, or a picture is none (`InvalidInput`).
    """

    metrics: dict[str, float]
    series: dict[str, Series] = field(default_factory=dict)
    arrays: dict[str, np.ndarray] = field(default_factory=dict)
    resources: dict[str, float] = field(default_factory=dict)
    status: str = "done"
    pictures: dict[str, np.ndarray] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(f"status must be one of {', '.join(STATUSES)}, not {self.status!r}")
        check_pictures(self.pictures)

    def to_plain(self) -> dict[str, Any]:
        """Return everything but the arrays and pictures as JSON-ready data; `from_plain` restores it bit for bit."""
        return {
            "status": self.status,
            "metrics": {k: _to_number(v) for k, v in self.metrics.items()},
            "series": {k: s.to_plain() for k, s in self.series.items()},
            "resources": {k: _to_number(v) for k, v in self.resources.items()},
        }

    @classmethod
    def from_plain(
        cls,
        plain: dict[str, Any],
        arrays: dict[str, np.ndarray] | None = None,
        pictures: dict[str, np.ndarray] | None = None,
    ) -> Record:
        """Restore a record from `to_plain`'s data, its arrays and its pictures."""
        return cls(
            metrics={k: float(v) for k, v in plain["metrics"].items()},
            series={k: Series.from_plain(s) for k, s in plain["series"].items()},
            arrays=arrays or {},
            resources={k: float(v) for k, v in plain["resources"].items()},
            status=plain["status"],
            pictures=pictures or {},
        )
