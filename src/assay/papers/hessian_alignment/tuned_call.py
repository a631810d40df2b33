"""An arm made of a function with a grid of one argument, as `Experiment` has it for training runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

from assay.lab.arms import Call, describe
from assay.lab.record import Record
from assay.streams import Streams

__all__ = ["TunedCall"]


@dataclass(frozen=True)
class TunedCall:
    """An arm whose setting is chosen by validation.

    Args:
        train: Called as `train(streams, **arguments)` for the final trials.
        validate: The same for a candidate; its record has `validation_score` and nothing of the test data.
        arguments: Plain data.
        name: The argument that is tuned.
        values: Its grid.
    """

    train: Callable[..., Record | dict[str, float]]
    validate: Callable[..., Record | dict[str, float]]
    arguments: Mapping[str, Any]
    name: str
    values: tuple[float, ...]

    def __call__(self, streams: Streams) -> Record:
        """Run with the arguments as they are."""
        return self.final()(streams)

    def describe(self) -> dict[str, Any]:
        """Return the function's name, its arguments and the grid."""
        return self.final().describe() | {"tune": {self.name: list(self.values)}}

    def but(self, **changes: Any) -> TunedCall:
        """Return a copy with some arguments replaced."""
        return replace(self, arguments={**self.arguments, **changes})

    def final(self) -> Call:
        """Return the arm without its grid."""
        return Call(self.train, self.arguments)

    def tuning(self) -> list[_Point]:
        """Return one candidate per value of the grid."""
        return [_Point(self, {self.name: value}) for value in self.values]


@dataclass(frozen=True)
class _Point:
    """One value of the grid."""

    arm: TunedCall
    overrides: Mapping[str, Any]

    def __call__(self, streams: Streams) -> Record:
        """Run the candidate on validation data."""
        return Call(self.arm.validate, {**self.arm.arguments, **self.overrides})(streams)

    def describe(self) -> dict[str, Any]:
        """Return the candidate as plain data."""
        return {"tuning": True, "validate": describe(self.arm.validate)} | self.final().describe()

    def final(self) -> Call:
        """Return the arm at this value, without a grid."""
        return self.arm.but(**self.overrides).final()
