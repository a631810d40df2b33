"""Quantities: what an expectation reads from the records of one seed.

A *free* quantity (a metric, `reach`) is read from any arm; a *bound* one (`at`, `spread`) names its arms itself.
Reading never fails silently: a trial that diverged, ran out of time or is missing gives a `Measurement` without a value
that says why, and a series that never reaches its level gives a censored one. A name that a finished trial does not
have is an error that lists the nearest names.
"""

from __future__ import annotations

import difflib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any, ClassVar, Self, cast

from assay.errors import InvalidInput, UnknownName
from assay.lab.record import Record

__all__ = [
    "Measurement",
    "Metric",
    "Quantity",
    "as_quantity",
    "at",
    "difference",
    "reach",
    "spread",
]

_ENDINGS = {"diverged": "diverged", "timeout": "ran out of time"}


@dataclass(frozen=True)
class Measurement:
    """One quantity for one seed.

    Args:
        value: The value; NaN if there is none.
        problem: Why there is none, such as "adam diverged"; empty if there is a value.
        may_rise: The true value is `value` or above: a time that was not over when the trial ended.
        may_fall: The true value is `value` or below.
        operands: The largest absolute value that `value` was computed from.
    """

    value: float
    problem: str = ""
    may_rise: bool = False
    may_fall: bool = False
    operands: float = 0.0

    @property
    def size(self) -> float:
        """The largest absolute value in its computation: rounding errors are in proportion to it."""
        return max(abs(self.value), self.operands)

    @classmethod
    def missing(cls, problem: str) -> Measurement:
        """Return a measurement without a value."""
        return cls(math.nan, problem)

    def minus(self, other: Measurement) -> Measurement:
        """Return the difference, with the problem of either and the censoring of both."""
        if self.problem or other.problem:
            return Measurement.missing(self.problem or other.problem)
        return Measurement(
            self.value - other.value,
            may_rise=self.may_rise or other.may_fall,
            may_fall=self.may_fall or other.may_rise,
            operands=max(self.size, other.size),
        )


def unknown(what: str, name: str, names: Iterable[str]) -> UnknownName:
    """Return the error for an unknown name, with the nearest names or, failing these, all of them."""
    names = sorted(set(names))
    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or names[:20]
    return UnknownName(f"{what} {name!r} is unknown; did you mean {', '.join(near) or '(there are none)'}?")


class Plain:
    """A frozen dataclass of plain values and quantities, with a kind that names its class in JSON."""

    kind: ClassVar[str]

    def to_plain(self) -> dict[str, Any]:
        """Return JSON-ready data; `from_plain` restores an equal object."""
        values = {field.name: getattr(self, field.name) for field in fields(cast(Any, self))}
        return {"kind": self.kind, **{name: _to_plain(value) for name, value in values.items()}}

    @classmethod
    def restore(cls, plain: Mapping[str, Any]) -> Self:
        """Build this class from `to_plain`'s data."""
        arguments = {name: _from_plain(name, value) for name, value in plain.items() if name != "kind"}
        try:
            return cls(**arguments)
        except TypeError as error:
            raise InvalidInput(f"cannot read {dict(plain)!r} as {cls.__name__}: {error}") from None


# Fields that hold a quantity; a plain string in one of them is a metric's name.
_QUANTITIES = ("quantity", "x", "y", "first", "second")


def _to_plain(value: Any) -> Any:
    if isinstance(value, Metric):
        return value.name
    if isinstance(value, Plain):
        return value.to_plain()
    return list(value) if isinstance(value, tuple) else value


def _from_plain(name: str, value: Any) -> Any:
    if name in _QUANTITIES:
        return as_quantity(value) if isinstance(value, str) else Quantity.from_plain(value)
    return tuple(value) if isinstance(value, list) else value


class Quantity(Plain, ABC):
    """Something that can be measured on the records of one seed; plain data."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The quantity in words."""

    @property
    def arms(self) -> tuple[str, ...]:
        """The arms that the quantity itself names."""
        return ()

    @property
    def free(self) -> bool:
        """Whether an arm must be given to measure it."""
        return not self.arms

    @abstractmethod
    def measure(self, records: Mapping[str, Record], arm: str | None = None) -> Measurement:
        """Measure it on one seed's records by arm; `arm` says which one a free quantity reads."""

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Quantity:
        """Restore a quantity from `to_plain`'s data.

        Raises:
            UnknownName: If no quantity is of that kind.
        """
        kind = plain.get("kind", "")
        if kind not in _KINDS:
            raise unknown("quantity", str(kind), _KINDS)
        return _KINDS[kind].restore(plain)


class _FreeQuantity(Quantity):
    """A quantity that reads one finished record."""

    @abstractmethod
    def read(self, record: Record, arm: str) -> Measurement:
        """Read it from a finished record."""

    def measure(self, records: Mapping[str, Record], arm: str | None = None) -> Measurement:
        if arm is None:
            raise InvalidInput(f"{self.text} needs an arm: write at({self.text!r}, arm)")
        if arm not in records:
            return Measurement.missing(f"{arm} has no trial")
        record = records[arm]
        if record.status != "done":
            return Measurement.missing(f"{arm} {_ENDINGS[record.status]}")
        measurement = self.read(record, arm)
        if not measurement.problem and not math.isfinite(measurement.value):
            return Measurement.missing(f"{arm} gave {measurement.value}")
        return measurement


@dataclass(frozen=True)
class Metric(_FreeQuantity):
    """A final metric of a trial or, where no metric has that name, a resource such as seconds."""

    name: str
    kind: ClassVar[str] = "metric"

    def __post_init__(self) -> None:
        if not self.name or not isinstance(self.name, str):
            raise InvalidInput(f"a metric needs a name, not {self.name!r}")

    @property
    def text(self) -> str:
        """The metric's name."""
        return self.name

    def read(self, record: Record, arm: str) -> Measurement:
        """Read it from a finished record."""
        for table in (record.metrics, record.resources):
            if self.name in table:
                return Measurement(float(table[self.name]))
        raise unknown(f"arm {arm!r}: metric", self.name, [*record.metrics, *record.resources])


@dataclass(frozen=True)
class _Reach(_FreeQuantity):
    """The first step at which a series is at or beyond a level, in the series' own unit."""

    series: str
    above: float | None = None
    below: float | None = None
    kind: ClassVar[str] = "reach"

    def __post_init__(self) -> None:
        levels = [level for level in (self.above, self.below) if level is not None]
        if len(levels) != 1 or not math.isfinite(levels[0]):
            raise InvalidInput(f"reach({self.series!r}) needs one finite level: above=... or below=...")

    @property
    def text(self) -> str:
        level = f">= {self.above:g}" if self.above is not None else f"<= {self.below:g}"
        return f"first step ({self.series} {level})"

    def _crossed(self, value: float) -> bool:
        if self.above is not None:
            return value >= self.above
        return self.below is not None and value <= self.below

    def read(self, record: Record, arm: str) -> Measurement:
        if self.series not in record.series:
            raise unknown(f"arm {arm!r}: series", self.series, record.series)
        series = record.series[self.series]
        if not series.steps:
            return Measurement.missing(f"{arm} has an empty series {self.series}")
        for step, value in zip(series.steps, series.values, strict=True):
            if self._crossed(value):
                return Measurement(float(step))
        return Measurement(float(series.steps[-1]), may_rise=True)


@dataclass(frozen=True)
class _At(Quantity):
    """A free quantity, bound to one arm."""

    quantity: Quantity
    arm: str
    kind: ClassVar[str] = "at"

    def __post_init__(self) -> None:
        if not self.quantity.free:
            raise InvalidInput(f"at: {self.quantity.text} names its arms already")

    @property
    def text(self) -> str:
        return f"{self.quantity.text} of {self.arm}"

    @property
    def arms(self) -> tuple[str, ...]:
        return (self.arm,)

    def measure(self, records: Mapping[str, Record], arm: str | None = None) -> Measurement:
        return self.quantity.measure(records, self.arm)


@dataclass(frozen=True)
class _Spread(Quantity):
    """The largest minus the smallest value of a free quantity over arms, per seed."""

    quantity: Quantity
    over: tuple[str, ...]
    kind: ClassVar[str] = "spread"

    def __post_init__(self) -> None:
        if len(set(self.over)) < 2 or len(set(self.over)) != len(self.over):
            raise InvalidInput(f"spread needs at least 2 different arms, got {list(self.over)}")
        if not self.quantity.free:
            raise InvalidInput(f"spread: {self.quantity.text} names its arms already")

    @property
    def text(self) -> str:
        return f"spread of {self.quantity.text} over {', '.join(self.over)}"

    @property
    def arms(self) -> tuple[str, ...]:
        return self.over

    def measure(self, records: Mapping[str, Record], arm: str | None = None) -> Measurement:
        parts = [self.quantity.measure(records, name) for name in self.over]
        for part in parts:
            if part.problem:
                return part
        values = [part.value for part in parts]
        # A censored arm may be the smallest or become the largest: the spread may turn out either way.
        open_ended = any(part.may_rise or part.may_fall for part in parts)
        size = max(part.size for part in parts)
        return Measurement(max(values) - min(values), may_rise=open_ended, may_fall=open_ended, operands=size)


@dataclass(frozen=True)
class _Difference(Quantity):
    """The first quantity minus the second, per seed."""

    first: Quantity
    second: Quantity
    kind: ClassVar[str] = "difference"

    @property
    def text(self) -> str:
        return f"({self.first.text} - {self.second.text})"

    @property
    def arms(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys([*self.first.arms, *self.second.arms]))

    @property
    def free(self) -> bool:
        return self.first.free or self.second.free

    def measure(self, records: Mapping[str, Record], arm: str | None = None) -> Measurement:
        return self.first.measure(records, arm).minus(self.second.measure(records, arm))


_KINDS: dict[str, type[Quantity]] = {cls.kind: cls for cls in (Metric, _Reach, _At, _Spread, _Difference)}


def as_quantity(value: str | Quantity) -> Quantity:
    """Return a quantity: a string names a metric or a resource."""
    if isinstance(value, Quantity):
        return value
    if isinstance(value, str):
        return Metric(value)
    raise InvalidInput(f"a quantity is a metric's name or comes from assay.lab.quantities, not {value!r}")


def reach(series: str, *, above: float | None = None, below: float | None = None) -> Quantity:
    """Return the first step at which a series is at or above, or at or below, a level.

    A series that never gets there is censored at its last step: the judge knows that the true value is larger. The step
    is as fine as the series was recorded.

    Raises:
        InvalidInput: Unless exactly one level is given.
    """
    return _Reach(series, above, below)


def at(quantity: str | Quantity, arm: str) -> Quantity:
    """Return a quantity of one named arm."""
    return _At(as_quantity(quantity), arm)


def spread(quantity: str | Quantity, arms: Iterable[str]) -> Quantity:
    """Return the largest minus the smallest value over arms, per seed."""
    return _Spread(as_quantity(quantity), tuple(arms))


def difference(first: str | Quantity, second: str | Quantity) -> Quantity:
    """Return one quantity minus another, per seed."""
    return _Difference(as_quantity(first), as_quantity(second))
