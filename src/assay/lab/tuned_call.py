"""A `Call` with a grid: the arm of a training function of our own, tuned on validation data as an `Experiment` is."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from assay.lab.arms import Call, describe
from assay.lab.record import Record
from assay.streams import Streams

__all__ = ["TunedCall"]


@dataclass(frozen=True)
class TunedCall(Call):
    """An arm made of a function, with a grid.

    Args:
        function: As of `Call`; with `validation_only=True` it looks at no test data and returns "validation_score",
            higher where better.
        arguments: Plain data.
        tune: Values to try, by argument; all combinations are candidates.
    """

    tune: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)

    def describe(self) -> dict[str, Any]:
        """Return the function's name, its arguments and the grid."""
        return super().describe() | {"tune": describe(self.tune)}

    def but(self, **changes: Any) -> TunedCall:
        """Return a copy with some arguments replaced and the same grid."""
        return replace(self, arguments={**self.arguments, **changes})

    def tuning(self) -> list[GridPoint]:
        """Return one candidate per point of the grid."""
        points = itertools.product(*self.tune.values())
        return [GridPoint(Call(self.function, self.arguments), dict(zip(self.tune, p, strict=True))) for p in points]


@dataclass(frozen=True)
class GridPoint:
    """One point of the grid, trained without a look at test data."""

    call: Call
    overrides: Mapping[str, Any]

    def __call__(self, streams: Streams) -> Record:
        """Train once; the record holds "validation_score"."""
        return self.final().but(validation_only=True)(streams)

    def describe(self) -> dict[str, Any]:
        """Return the arm at this point as plain data."""
        return {"tuning": True} | self.final().describe()

    def final(self) -> Call:
        """Return the arm at this point, without a grid."""
        return self.call.but(**self.overrides)
