"""Arms: named variants in a comparison, each a picklable `Streams -> Record` that describes itself as plain data."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, Self, runtime_checkable

from assay.errors import InvalidInput
from assay.lab.record import Record
from assay.streams import Streams

__all__ = ["Arm", "Call", "Candidate", "describe"]


@runtime_checkable
class Arm(Protocol):
    """What a study compares."""

    def __call__(self, streams: Streams) -> Record:
        """Run one trial."""

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the outcome, as canonical plain data."""

    def but(self, **changes: Any) -> Self:
        """Return a copy with some fields replaced."""


class Candidate(Protocol):
    """One point of an arm's tuning grid: an arm that is judged on validation data only."""

    overrides: Mapping[str, Any]

    def __call__(self, streams: Streams) -> Record:
        """Run one tuning trial; the record's `validation_score` is higher where better."""

    def describe(self) -> dict[str, Any]:
        """Return everything that decides the outcome, as canonical plain data."""

    def final(self) -> Arm:
        """Return the arm with this setting, without its grid."""


def describe(value: Any) -> Any:
    """Turn a setting into plain data: literals stay, functions and classes become `module:name`.

    Raises:
        InvalidInput: If the value has no stable name, as a lambda or an instance has none.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [describe(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): describe(v) for k, v in value.items()}
    if isinstance(value, functools.partial):
        arguments = {str(i): describe(v) for i, v in enumerate(value.args)} | describe(value.keywords)
        return {"function": describe(value.func), "arguments": arguments}
    name = getattr(value, "__qualname__", None)
    if name is None or "<" in name:
        raise InvalidInput(
            f"{value!r} has no importable name, so a trial with it could not be found again; "
            "use a name-spec, a top-level function or class, or a functools.partial of one"
        )
    return f"{value.__module__}:{name}"


@dataclass(frozen=True)
class Call:
    """An arm made of a top-level function, for claims that are not about a training run.

    Args:
        function: Called as `function(streams, **arguments)`; returns a `Record`, or a dict of final metrics. To say
            that the computation diverged it raises `FloatingPointError`.
        arguments: Plain data.

    Example:
        >>> from assay.lab import Call
        >>> def halve(streams, value):
        ...     return {"half": value / 2}
        >>> Call(halve, {"value": 3.0})(Streams("doc", 0)).metrics
        {'half': 1.5}
    """

    function: Callable[..., Record | dict[str, float]]
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __call__(self, streams: Streams) -> Record:
        """Run the function."""
        result = self.function(streams, **self.arguments)
        return result if isinstance(result, Record) else Record(metrics={k: float(v) for k, v in result.items()})

    def describe(self) -> dict[str, Any]:
        """Return the function's name and its arguments."""
        return {"function": describe(self.function), **describe(self.arguments)}

    def but(self, **changes: Any) -> Call:
        """Return a copy with some arguments replaced."""
        return Call(self.function, {**self.arguments, **changes})
