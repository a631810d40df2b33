from __future__ import annotations

import json
import math

import pytest

from assay.errors import InvalidInput, UnknownName
from assay.lab.quantities import Metric, Quantity, as_quantity, at, difference, reach, spread
from assay.lab.record import Record, Series

RECORDS = {
    "a": Record({"accuracy": 0.9, "loss": 0.5}, {"accuracy": Series((1, 2, 3), (0.5, 0.8, 0.7))}, {}, {"seconds": 3.0}),
    "b": Record(
        {"accuracy": 0.7, "loss": 0.25}, {"accuracy": Series((1, 2, 3), (0.5, 0.6, 0.7))}, {}, {"seconds": 5.0}
    ),
    "c": Record({"accuracy": math.nan}, status="diverged"),
    "d": Record({"accuracy": 0.8}, status="timeout"),
    "e": Record({"accuracy": math.inf}, {"accuracy": Series((), ())}),
}
ALL = [
    Metric("accuracy"),
    reach("accuracy", above=0.8),
    reach("loss", below=0.1),
    at("accuracy", "a"),
    at(reach("accuracy", above=0.8), "a"),
    spread("accuracy", ["a", "b"]),
    difference("accuracy", "loss"),
    difference(at("accuracy", "a"), spread(difference("loss", "accuracy"), ["a", "b"])),
]


def test_metrics_come_before_resources() -> None:
    """If this failed, a claim about seconds or about a metric would read the wrong table."""
    assert as_quantity("accuracy").measure(RECORDS, "a").value == 0.9
    assert as_quantity("seconds").measure(RECORDS, "b").value == 5.0


@pytest.mark.parametrize(("arm", "problem"), [
    ("c", "c diverged"), ("d", "d ran out of time"), ("e", "e gave inf"), ("f", "f has no trial"),
])  # fmt: skip
def test_a_missing_value_says_why(arm: str, problem: str) -> None:
    """If this failed, a diverged or unfinished trial would be used or dropped in silence."""
    for quantity in (Metric("accuracy"), difference("accuracy", "accuracy"), spread("accuracy", ["a", arm])):
        measured = quantity.measure(RECORDS, arm)
        assert math.isnan(measured.value)
        assert measured.problem == problem


def test_an_unknown_name_lists_the_nearest() -> None:
    """If this failed, a typo in a study would not be explained."""
    with pytest.raises(UnknownName, match=r"acuracy.*did you mean accuracy"):
        Metric("acuracy").measure(RECORDS, "a")
    with pytest.raises(UnknownName, match=r"series 'losses'.*accuracy"):
        reach("losses", above=1).measure(RECORDS, "a")
    with pytest.raises(UnknownName, match=r"'reaches'.*reach"):
        Quantity.from_plain({"kind": "reaches"})


def test_reach_is_the_first_crossing_or_censored() -> None:
    """If this failed, time to a level would be a later crossing, or a level never reached would pass for reached."""
    reached = reach("accuracy", above=0.8).measure(RECORDS, "a")
    assert (reached.value, reached.may_rise) == (2.0, False)
    censored = reach("accuracy", above=0.8).measure(RECORDS, "b")
    assert (censored.value, censored.may_rise, censored.may_fall) == (3.0, True, False)
    assert reach("accuracy", below=0.6).measure(RECORDS, "a").value == 1.0
    assert "empty series" in reach("accuracy", above=0.8).measure(RECORDS, "e").problem


def test_nan_in_a_series_is_no_crossing() -> None:
    """If this failed, a NaN on the way would count as having reached a level."""
    record = Record({}, {"loss": Series((1, 2, 3), (math.nan, 2.0, 0.5))})
    assert reach("loss", below=1.0).measure({"a": record}, "a").value == 3.0


def test_differences_turn_censoring_round() -> None:
    """If this failed, a subtrahend that may be larger would be taken for a difference that may be larger."""
    level = reach("accuracy", above=0.8)
    forward = difference(at(level, "a"), at(level, "b")).measure(RECORDS)
    backward = difference(at(level, "b"), at(level, "a")).measure(RECORDS)
    assert (forward.value, forward.may_rise, forward.may_fall) == (-1.0, False, True)
    assert (backward.value, backward.may_rise, backward.may_fall) == (1.0, True, False)
    spreading = spread(level, ["a", "b"]).measure(RECORDS)
    assert (spreading.value, spreading.may_rise, spreading.may_fall) == (1.0, True, True)


def test_arithmetic() -> None:
    """If this failed, spread and difference would not be what their names say."""
    assert spread("accuracy", ["a", "b"]).measure(RECORDS).value == pytest.approx(0.2)
    assert difference("accuracy", "loss").measure(RECORDS, "b").value == pytest.approx(0.45)
    assert difference(at("loss", "a"), at("loss", "b")).measure(RECORDS).value == 0.25
    assert difference(at("loss", "a"), at("loss", "b")).measure(RECORDS).size == 0.5


@pytest.mark.parametrize("quantity", ALL, ids=lambda q: q.text)
def test_round_trip(quantity: Quantity) -> None:
    """If this failed, a stored study would be judged on another quantity."""
    plain = json.loads(json.dumps({"quantity": quantity.to_plain()}))
    restored = Quantity.from_plain(plain["quantity"])
    assert restored == quantity
    assert restored.text == quantity.text


def test_bound_quantities_name_their_arms() -> None:
    """If this failed, an expectation could not tell whether a quantity still needs an arm."""
    assert Metric("accuracy").free and difference("accuracy", at("accuracy", "a")).free
    assert not at("accuracy", "a").free
    assert difference(at("x", "a"), spread("y", ["b", "a"])).arms == ("a", "b")
    with pytest.raises(InvalidInput, match="needs an arm"):
        Metric("accuracy").measure(RECORDS)


@pytest.mark.parametrize("build", [
    lambda: Metric(""),
    lambda: as_quantity(3),  # type: ignore[arg-type]
    lambda: reach("x"),
    lambda: reach("x", above=1, below=0),
    lambda: reach("x", above=math.nan),
    lambda: spread("x", ["a"]),
    lambda: spread("x", ["a", "a"]),
    lambda: at(at("x", "a"), "b"),
    lambda: spread(at("x", "a"), ["a", "b"]),
    lambda: Quantity.from_plain({"kind": "at", "quantity": "x"}),
])  # fmt: skip
def test_nonsense_is_refused(build) -> None:
    """If this failed, an ill-formed quantity would be found out only after a study had run."""
    with pytest.raises(InvalidInput):
        build()
