"""Expectations: decidable statements about records, as plain data that a study declares before it runs.

Each expectation becomes one or several samples: one number per seed (mostly a difference between two arms that
share the seed) and the range in which its mean is expected. The expectation is the claim that *every* sample's mean
lies in its range; `assay.lab.judge` decides it. Ratios are compared as differences of logarithms; correlations as
Fisher's z of Spearman's rank correlation across the arms, one per seed.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from assay.errors import InvalidInput
from assay.lab._samples import Sample, Scale, Trials, perfect_correlation, rank_correlation
from assay.lab.quantities import Measurement, Plain, Quantity, as_quantity, unknown
from assay.lab.record import Record

__all__ = [
    "Expectation",
    "above",
    "below",
    "correlates",
    "equivalent",
    "greater",
    "less",
    "monotone",
    "ratio",
]

_MINIMUM_CORRELATED_ARMS = 4


def _sample(
    trials: Trials,
    text: str,
    bounds: tuple[float, float],
    measure: Callable[[Mapping[str, Record]], Measurement],
    scale: Scale = "linear",
) -> Sample:
    measurements = tuple(measure(trials.of(seed)) for seed in trials.seeds)
    return Sample(text, trials.seeds, measurements, *bounds, scale=scale)


def _finite(name: str, value: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number, not {value!r}")


def _one_limit(name: str, above: float | None, below: float | None) -> None:
    limits = [limit for limit in (above, below) if limit is not None]
    if len(limits) != 1:
        raise InvalidInput(f"{name} needs one limit: above=... or below=...")
    _finite(f"{name}'s limit", limits[0])


def _limit_text(above: float | None, below: float | None) -> str:
    return f"> {above:g}" if above is not None else f"< {below:g}"


def _free(name: str, value: Quantity) -> None:
    if not value.free:
        raise InvalidInput(f"{name} compares arms, but {value.text} names its arms already; use below or above")


def _different(name: str, arms: Sequence[str], least: int) -> None:
    if len(arms) < least or len(set(arms)) != len(arms):
        raise InvalidInput(f"{name} needs at least {least} different arms, got {list(arms)}")


class Expectation(Plain, ABC):
    """A decidable statement about a study's records; plain data."""

    @property
    @abstractmethod
    def text(self) -> str:
        """The statement in words."""

    @property
    @abstractmethod
    def named_arms(self) -> tuple[str, ...]:
        """The arms that the statement names; empty if it is about all arms."""

    @abstractmethod
    def samples(self, trials: Trials) -> list[Sample]:
        """Return what the statement claims, as samples whose means must all lie in their ranges."""

    def check(self, arms: Iterable[str]) -> None:
        """Check the statement against a study's arms, before anything runs.

        Raises:
            UnknownName: If it names an arm that the study does not have.
        """
        arms = list(arms)
        for name in self.named_arms:
            if name not in arms:
                raise unknown(f"{self.text}: arm", name, arms)

    @staticmethod
    def from_plain(plain: Mapping[str, Any]) -> Expectation:
        """Restore an expectation from `to_plain`'s data.

        Raises:
            UnknownName: If no expectation is of that kind.
        """
        kind = plain.get("kind", "")
        if kind not in _KINDS:
            raise unknown("expectation", str(kind), _KINDS)
        return _KINDS[kind].restore(plain)


@dataclass(frozen=True)
class _Pair(Expectation):
    quantity: Quantity
    a: str
    b: str

    def __post_init__(self) -> None:
        _free(self.kind, self.quantity)
        _different(self.kind, (self.a, self.b), 2)

    @property
    def named_arms(self) -> tuple[str, ...]:
        return (self.a, self.b)


@dataclass(frozen=True)
class _Comparison(_Pair):
    margin: float = 0.0
    sign: ClassVar[str]

    def __post_init__(self) -> None:
        super().__post_init__()
        _finite("margin", self.margin)

    @property
    def text(self) -> str:
        margin = f" (margin {self.margin:g})" if self.margin else ""
        return f"{self.quantity.text}: {self.a} {self.sign} {self.b}{margin}"

    def _bounds(self) -> tuple[float, float]:
        return (self.margin, math.inf) if self.sign == ">" else (-math.inf, 0.0 - self.margin)

    def samples(self, trials: Trials) -> list[Sample]:
        text = f"{self.a} {self.sign} {self.b}"
        return [_sample(trials, text, self._bounds(), _difference(self.quantity, self.a, self.b))]


def _difference(value: Quantity, a: str, b: str) -> Callable[[Mapping[str, Record]], Measurement]:
    return lambda records: value.measure(records, a).minus(value.measure(records, b))


class _Greater(_Comparison):
    kind = "greater"
    sign = ">"


class _Less(_Comparison):
    kind = "less"
    sign = "<"


@dataclass(frozen=True)
class _Limit(Expectation):
    quantity: Quantity
    value: float
    arms: tuple[str, ...] | None = None
    sign: ClassVar[str]

    def __post_init__(self) -> None:
        _finite("value", self.value)
        if self.arms is not None:
            _free(self.kind, self.quantity)
            _different(self.kind, self.arms, 1)

    @property
    def text(self) -> str:
        statement = f"{self.quantity.text} {self.sign} {self.value:g}"
        if not self.quantity.free:
            return statement
        return f"{statement} in {'every arm' if self.arms is None else ', '.join(self.arms)}"

    @property
    def named_arms(self) -> tuple[str, ...]:
        return (*self.quantity.arms, *(self.arms or ()))

    def samples(self, trials: Trials) -> list[Sample]:
        bounds = (self.value, math.inf) if self.sign == ">" else (-math.inf, self.value)
        if not self.quantity.free:
            return [_sample(trials, self.text, bounds, self.quantity.measure)]
        return [
            _sample(trials, f"{arm} {self.sign} {self.value:g}", bounds, partial(self.quantity.measure, arm=arm))
            for arm in self.arms or trials.arms
        ]


class _Above(_Limit):
    kind = "above"
    sign = ">"


class _Below(_Limit):
    kind = "below"
    sign = "<"


@dataclass(frozen=True)
class _Equivalent(Expectation):
    quantity: Quantity
    within: float
    arms: tuple[str, ...] | None = None
    kind: ClassVar[str] = "equivalent"

    def __post_init__(self) -> None:
        _finite("within", self.within)
        if self.within <= 0:
            raise InvalidInput(f"within must be above 0 (no data can show exact equality), not {self.within:g}")
        _free(self.kind, self.quantity)
        if self.arms is not None:
            _different(self.kind, self.arms, 2)

    @property
    def text(self) -> str:
        arms = "all arms" if self.arms is None else ", ".join(self.arms)
        return f"{self.quantity.text}: {arms} equivalent within {self.within:g}"

    @property
    def named_arms(self) -> tuple[str, ...]:
        return self.arms or ()

    def samples(self, trials: Trials) -> list[Sample]:
        arms = self.arms or trials.arms
        _different(f"{self.text}: equivalent", arms, 2)
        return [
            _sample(trials, f"{a} = {b}", (-self.within, self.within), _difference(self.quantity, a, b))
            for a, b in itertools.combinations(arms, 2)
        ]


@dataclass(frozen=True)
class _Ratio(_Pair):
    above: float | None = None
    below: float | None = None
    kind: ClassVar[str] = "ratio"

    def __post_init__(self) -> None:
        super().__post_init__()
        _one_limit("ratio", self.above, self.below)
        if (self.above or self.below or 0) <= 0:
            raise InvalidInput(f"a ratio's limit must be above 0, got {_limit_text(self.above, self.below)}")

    @property
    def text(self) -> str:
        return f"{self.quantity.text}: {self.a} / {self.b} {_limit_text(self.above, self.below)}"

    def _log(self, records: Mapping[str, Record], arm: str) -> Measurement:
        measured = self.quantity.measure(records, arm)
        if measured.problem:
            return measured
        if measured.value <= 0:
            return Measurement.missing(f"{arm} gave {measured.value:g}, and a ratio needs values above 0")
        # A relative rounding error becomes an absolute one: hence operands of at least 1.
        return Measurement(
            math.log(measured.value), may_rise=measured.may_rise, may_fall=measured.may_fall, operands=1.0
        )

    def samples(self, trials: Trials) -> list[Sample]:
        bounds = (
            math.log(self.above) if self.above is not None else -math.inf,
            math.log(self.below) if self.below is not None else math.inf,
        )
        text = f"{self.a} / {self.b} {_limit_text(self.above, self.below)}"
        return [_sample(trials, text, bounds, lambda r: self._log(r, self.a).minus(self._log(r, self.b)), "log")]


@dataclass(frozen=True)
class _Correlates(Expectation):
    x: Quantity
    y: Quantity
    above: float | None = None
    below: float | None = None
    arms: tuple[str, ...] | None = None
    kind: ClassVar[str] = "correlates"

    def __post_init__(self) -> None:
        _one_limit("correlates", self.above, self.below)
        _free(self.kind, self.x)
        _free(self.kind, self.y)
        if self.arms is not None:
            self._checked_arms(self.arms)

    @property
    def text(self) -> str:
        arms = "all arms" if self.arms is None else ", ".join(self.arms)
        limit = _limit_text(self.above, self.below)
        return f"rank correlation of {self.x.text} and {self.y.text} across {arms} {limit}"

    @property
    def named_arms(self) -> tuple[str, ...]:
        return self.arms or ()

    def _checked_arms(self, arms: tuple[str, ...]) -> tuple[str, ...]:
        _different(self.kind, arms, _MINIMUM_CORRELATED_ARMS)
        limit, largest = self.above if self.above is not None else self.below, perfect_correlation(len(arms))
        if limit is None or abs(limit) >= largest:
            raise InvalidInput(
                f"over {len(arms)} arms no rank correlation counts as more than {largest:g}: choose a limit below it "
                f"instead of {limit:g}, or more arms"
            )
        return arms

    def _correlation(self, records: Mapping[str, Record], arms: tuple[str, ...]) -> Measurement:
        measured = [[value.measure(records, arm) for arm in arms] for value in (self.x, self.y)]
        for part in itertools.chain(*measured):
            if part.problem:
                return part
        r = rank_correlation(*([part.value for part in row] for row in measured))
        if math.isnan(r):
            return Measurement.missing("one of the two is the same in all arms")
        censored = any(part.may_rise or part.may_fall for part in itertools.chain(*measured))
        return Measurement(math.atanh(r), may_rise=censored, may_fall=censored, operands=1.0)

    def samples(self, trials: Trials) -> list[Sample]:
        arms = self._checked_arms(self.arms or trials.arms)
        bounds = (
            math.atanh(self.above) if self.above is not None else -math.inf,
            math.atanh(self.below) if self.below is not None else math.inf,
        )
        text = f"correlation across {len(arms)} arms {_limit_text(self.above, self.below)}"
        return [_sample(trials, text, bounds, lambda r: self._correlation(r, arms), "fisher")]


@dataclass(frozen=True)
class _Monotone(Expectation):
    quantity: Quantity
    arms: tuple[str, ...]
    increasing: bool = True
    tolerance: float = 0.0
    kind: ClassVar[str] = "monotone"

    def __post_init__(self) -> None:
        _finite("tolerance", self.tolerance)
        if self.tolerance < 0:
            raise InvalidInput(f"tolerance must not be below 0, got {self.tolerance:g}")
        _free(self.kind, self.quantity)
        _different(self.kind, self.arms, 2)

    @property
    def text(self) -> str:
        tolerance = f" (tolerance {self.tolerance:g})" if self.tolerance else ""
        return f"{self.quantity.text}: {(' < ' if self.increasing else ' > ').join(self.arms)}{tolerance}"

    @property
    def named_arms(self) -> tuple[str, ...]:
        return self.arms

    def samples(self, trials: Trials) -> list[Sample]:
        bounds = (0.0 - self.tolerance, math.inf) if self.increasing else (-math.inf, self.tolerance)
        sign = ">" if self.increasing else "<"
        return [
            _sample(trials, f"{later} {sign} {earlier}", bounds, _difference(self.quantity, later, earlier))
            for earlier, later in itertools.pairwise(self.arms)
        ]


_KINDS: dict[str, type[Expectation]] = {
    cls.kind: cls for cls in (_Greater, _Less, _Above, _Below, _Equivalent, _Ratio, _Correlates, _Monotone)
}

from_plain = Expectation.from_plain


def _names(arms: Iterable[str] | None) -> tuple[str, ...] | None:
    if isinstance(arms, str):
        raise InvalidInput(f"arms must be a list of names, not {arms!r}")
    return None if arms is None else tuple(arms)


def greater(quantity: str | Quantity, a: str, b: str, margin: float = 0.0) -> Expectation:
    """Expect that arm a's value minus arm b's is above the margin.

    Args:
        quantity: A metric or resource by name, or something from `assay.lab.quantities`.
        a: An arm.
        b: The arm it is compared with.
        margin: The least difference that matters, in the quantity's unit. A negative one allows a to be a little worse.

    Raises:
        InvalidInput: If a and b are the same arm, or the margin is not finite.

    Example:
        >>> greater("test_accuracy", "mono-forward", "backprop", margin=0.005).text
        'test_accuracy: mono-forward > backprop (margin 0.005)'
    """
    return _Greater(as_quantity(quantity), a, b, margin)


def less(quantity: str | Quantity, a: str, b: str, margin: float = 0.0) -> Expectation:
    """Expect that arm b's value minus arm a's is above the margin; arguments as `greater`."""
    return _Less(as_quantity(quantity), a, b, margin)


def above(quantity: str | Quantity, value: float, arms: Iterable[str] | None = None) -> Expectation:
    """Expect a value above a limit in each of the arms; in all of the study's if none are named.

    Raises:
        InvalidInput: If the limit is not finite, or arms are named for a quantity that names its own.

    Example:
        >>> above("test_accuracy", 0.9).text
        'test_accuracy > 0.9 in every arm'
    """
    return _Above(as_quantity(quantity), value, _names(arms))


def below(quantity: str | Quantity, value: float, arms: Iterable[str] | None = None) -> Expectation:
    """Expect a value below a limit in each of the arms; arguments as `above`."""
    return _Below(as_quantity(quantity), value, _names(arms))


def equivalent(quantity: str | Quantity, *, within: float, arms: Iterable[str] | None = None) -> Expectation:
    """Expect that any two of the arms (all of the study's if none are named) differ by less than `within`.

    Raises:
        InvalidInput: If `within` is not above 0, or fewer than two arms are named.
    """
    return _Equivalent(as_quantity(quantity), within, _names(arms))


def ratio(
    quantity: str | Quantity, a: str, b: str, *, above: float | None = None, below: float | None = None
) -> Expectation:
    """Expect that the ratio of arm a's value to arm b's (its geometric mean over seeds) is above or below a limit.

    Raises:
        InvalidInput: Unless exactly one limit is given, and it is above 0.
    """
    return _Ratio(as_quantity(quantity), a, b, above, below)


def correlates(
    x: str | Quantity,
    y: str | Quantity,
    *,
    above: float | None = None,
    below: float | None = None,
    arms: Iterable[str] | None = None,
) -> Expectation:
    """Expect that Spearman's correlation of x and y across the arms, one per seed, averages above or below a limit.

    Args:
        x: A quantity.
        y: Another.
        above: Lower limit, in (-1, 1).
        below: Upper limit; give one of the two.
        arms: At least 4 arms; all of the study's if none are named.

    Raises:
        InvalidInput: Unless exactly one limit is given, within what so many arms can show.
    """
    return _Correlates(as_quantity(x), as_quantity(y), above, below, _names(arms))


def monotone(
    quantity: str | Quantity, arms: Iterable[str], *, increasing: bool = True, tolerance: float = 0.0
) -> Expectation:
    """Expect that a value rises (or falls) from each arm to the next, give or take a tolerance.

    Raises:
        InvalidInput: On fewer than two arms, or a tolerance below 0.

    Example:
        >>> monotone("loss", ["small", "medium", "large"], increasing=False).text
        'loss: small > medium > large'
    """
    return _Monotone(as_quantity(quantity), _names(arms) or (), increasing, tolerance)
