"""Grokking times from what was measured over a run."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.probes.grokking_delay import grokking_times

ACCURACIES = st.lists(st.sampled_from([0.0, 0.5, 0.94, 0.95, 0.99, 0.995, 1.0, math.nan]), min_size=1, max_size=12)


@settings(max_examples=30, deadline=None)
@given(ACCURACIES)
def test_a_time_is_the_first_step_after_which_every_value_is_at_the_level(values: list[float]) -> None:
    """A step would be named after which accuracy falls below the level again."""
    steps = [3.0 * i for i in range(len(values))]
    times = grokking_times(steps, values, values)
    for time, level in ((times.fit, 0.995), (times.generalise, 0.95)):
        good = [s for i, s in enumerate(steps) if all(v >= level for v in values[i:])]
        assert time == min(good, default=math.inf)
    assert times.fit >= times.generalise


def test_the_delay_of_a_run_that_groks_and_of_one_that_does_not() -> None:
    """A run that never generalises would be given a delay."""
    steps = [0, 1, 10, 100]
    assert grokking_times(steps, [0.5, 1, 1, 1], [0.5, 0.5, 0.5, 0.97]).delay == 99
    never = grokking_times(steps, [0.5, 1, 1, 1], [0.5, 0.96, 0.5, 0.6])
    assert never == (1, math.inf) and math.isnan(never.delay)


@pytest.mark.parametrize("steps", [[], [0], [0, 0], [1, 0]])
def test_series_that_do_not_fit_are_refused(steps: list[float]) -> None:
    """Values would be read at the wrong steps."""
    with pytest.raises(InvalidInput, match=r"one accuracy per step|ascend"):
        grokking_times(steps, [1.0, 1.0], [1.0, 1.0])
