"""The quantities of a study's expectations, read again from the stored trials, arm by arm and seed by seed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from assay.errors import UnknownName
from assay.lab.quantities import Quantity, as_quantity
from assay.lab.record import Record, Series

__all__: list[str] = []

# Where expectations and bound quantities keep what they read.
FIELDS = ("quantity", "x", "y", "first", "second")


def quantities(expectations: Iterable[Mapping[str, Any]]) -> list[Quantity]:
    """Return the quantities that can be read from any one arm, each once, in the order in which they are named."""
    found = {quantity.text: quantity for plain in expectations for quantity in _free(plain)}
    return list(found.values())


def names(quantity: Quantity) -> list[str]:
    """Return the metric or the series that a quantity reads."""
    plain = quantity.to_plain()
    return [str(plain[key]) for key in ("name", "series") if key in plain]


def values(
    quantity: Quantity, finals: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> dict[str, dict[str, tuple[float, bool]]]:
    """Return (value, whether censored) by arm and seed, without those that have none."""
    found: dict[str, dict[str, tuple[float, bool]]] = {}
    for arm, seeds in finals.items():
        found[arm] = {}
        for seed, trial in seeds.items():
            try:
                measured = quantity.measure({arm: _record(trial)}, arm)
            except UnknownName:  # an arm need not have what another arm's claim is about
                continue
            if not measured.problem:
                found[arm][seed] = measured.value, measured.may_rise or measured.may_fall
    return found


def _free(plain: Mapping[str, Any]) -> Iterator[Quantity]:
    """Yield the free quantities within an expectation's, or a bound quantity's, plain data."""
    for field in FIELDS:
        value = plain.get(field)
        if isinstance(value, str):
            yield as_quantity(value)
        elif isinstance(value, Mapping):
            quantity = Quantity.from_plain(value)
            yield from [quantity] if quantity.free else _free(value)


def _record(trial: Mapping[str, Any]) -> Record:
    """Return a stored trial as a record: null, which JSON has for NaN and infinity, becomes NaN."""
    return Record(
        status=str(trial.get("status", "done")),
        metrics={name: _float(value) for name, value in (trial.get("metrics") or {}).items()},
        resources={name: _float(value) for name, value in (trial.get("resources") or {}).items()},
        series={name: _series(plain) for name, plain in (trial.get("series") or {}).items()},
    )


def _series(plain: Mapping[str, Any]) -> Series:
    steps, found = (tuple(map(_float, plain[key])) for key in ("steps", "values"))
    return Series(steps, found, str(plain.get("unit") or "step"))


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)
