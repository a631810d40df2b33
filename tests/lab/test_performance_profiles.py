"""Performance profiles against their definition."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.lab.performance_profiles import Profile, profiles

TIMES = st.one_of(st.floats(0.1, 100.0), st.just(math.inf), st.just(math.nan))
TABLES = st.lists(st.lists(TIMES, min_size=3, max_size=3), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(TABLES)
def test_profiles_follow_the_definition(table):
    """A share would not be the counted share of tasks within tau of the fastest."""
    times = {f"m{i}": {f"w{j}": t for j, t in enumerate(row)} for i, row in enumerate(table)}
    found = profiles(times)
    array = np.where(np.isnan(table), np.inf, np.array(table, dtype=float))
    best = array.min(axis=0)
    for i, row in enumerate(array):
        for tau in (1.0, 1.7, 3.0):
            expected = np.mean([math.isfinite(t) and t / b <= tau for t, b in zip(row, best, strict=True)])
            assert found[f"m{i}"].share(tau) == pytest.approx(expected)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.one_of(st.floats(1.0, 8.0), st.just(math.inf)), min_size=1, max_size=6), st.floats(1.5, 6.0))
def test_score_is_the_area_under_the_profile(ratios, tau_max):
    """The closed form would not be the integral of the share over tau."""
    profile = Profile(tuple(sorted(ratios)))
    grid = np.linspace(1, tau_max, 20_001)
    middles = (grid[1:] + grid[:-1]) / 2
    area = np.mean([sum(r <= m for r in ratios) / len(ratios) for m in middles[::20]])
    assert profile.score(tau_max) == pytest.approx(area, abs=2e-3)


def test_limits():
    """The fastest everywhere must score 1, one that never arrives 0, and a unit of time must not matter."""
    times = {"fast": {"x": 1.0, "y": 2.0}, "never": {"x": math.inf, "y": math.nan}}
    found = profiles(times)
    assert found["fast"].score() == 1 and found["never"].score() == 0
    slower = {name: {task: 60 * t for task, t in row.items()} for name, row in times.items()}
    assert profiles(slower) == found


@pytest.mark.parametrize(
    "times", [{}, {"a": {}}, {"a": {"x": 1.0}, "b": {"y": 1.0}}, {"a": {"x": 0.0}}], ids=["no", "none", "other", "zero"]
)
def test_bad_tables_are_refused(times):
    """A method that was not run everywhere would get a score all the same."""
    with pytest.raises(InvalidInput):
        profiles(times)
    with pytest.raises(InvalidInput):
        Profile((1.0,)).score(1.0)
