"""Records: what a trial gives survives being written down."""

from __future__ import annotations

import json
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.lab.record import Record, Series

numbers = st.floats(allow_nan=True, allow_infinity=True)


def _bits(value: float) -> bytes:
    return struct.pack("d", value) if value == value else b"nan"


@given(st.dictionaries(st.text(max_size=5), numbers, max_size=4), st.lists(st.tuples(numbers, numbers), max_size=4))
@settings(max_examples=50)
def test_a_record_survives_json_bit_for_bit(metrics, points):
    """NaN, infinities and the last bit of every float must come back, through strict JSON."""
    series = Series(tuple(a for a, _ in points), tuple(b for _, b in points), "step")
    record = Record(metrics=metrics, series={"s": series})
    if all(a == a and abs(a) != float("inf") for a, _ in points):
        back = Record.from_plain(json.loads(json.dumps(record.to_plain(), allow_nan=False)))
        assert {k: _bits(v) for k, v in back.metrics.items()} == {k: _bits(v) for k, v in metrics.items()}
        assert list(map(_bits, back.series["s"].values)) == [_bits(b) for _, b in points]
        assert back.series["s"].unit == "step"


def test_an_unknown_status_is_refused():
    """A misspelt status would hide a trial from every count."""
    with pytest.raises(ValueError, match="diverged"):
        Record(metrics={}, status="exploded")
