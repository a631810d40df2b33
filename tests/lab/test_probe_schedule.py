"""Intervals chosen before a run: within the budget whatever things cost, and plain data of the experiment."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from assay.errors import InvalidInput
from assay.lab.experiment import Experiment
from assay.lab.probe_schedule import affordable_intervals, timed_intervals
from assay.streams import Streams

BASE = Experiment(
    data="digits",
    model="mlp(width=16)",
    optimizer="sgd(lr=0.1)",
    epochs=4,
    probes=("neural-collapse", "softmax-collapse"),
)


@given(
    st.lists(st.floats(0, 1e3), min_size=1, max_size=6),
    st.floats(1e-3, 1e3),
    st.floats(1e-3, 10),
    st.floats(0.1, 10),
)
@settings(max_examples=30, deadline=None)
def test_all_probes_together_stay_within_the_budget(costs, epoch_seconds, budget, every):
    """The sum over probes exceeds what each alone is allowed, or an interval is shorter than was asked for."""
    named = {str(i): cost for i, cost in enumerate(costs)}
    intervals = affordable_intervals(named, epoch_seconds, budget, every=every)
    spent = sum(cost / intervals[name] for name, cost in named.items())
    assert spent <= budget * epoch_seconds * (1 + 1e-9)
    assert list(intervals) == list(named) and min(intervals.values()) >= every


def test_nothing_is_stretched_without_need():
    """Probes that the budget pays for are measured less often than asked."""
    assert affordable_intervals({"a": 0.1, "b": 0.2}, 10.0, 0.1) == {"a": 1.0, "b": 1.0}
    # The cheap one leaves 0.9 of the second: 5 / 8 is the first half-power below it.
    assert affordable_intervals({"dear": 5.0, "a": 0.1}, 10.0, 0.1) == {"dear": 8.0, "a": 1.0}
    with pytest.raises(InvalidInput, match="above 0"):
        affordable_intervals({"a": 1.0}, 1.0, 0.0)


def test_an_experiment_measures_at_the_epochs_its_schedule_says():
    """A schedule by probe reaches the other probe, or the end is measured twice or not at all."""
    record = BASE.but(probe_every={"neural-collapse": 1, "softmax-collapse": 3})(Streams("t", 0))
    assert record.series["nc1"].steps == (1.0, 2.0, 3.0, 4.0)
    assert record.series["softmax_collapse"].steps == (3.0, 4.0)
    once = BASE.but(probe_every={"neural-collapse": 2})(Streams("t", 0))
    assert once.series["nc1"].steps == (2.0, 4.0) and once.series["softmax_collapse"].steps == (4.0,)
    assert once.metrics["nc1"] == record.metrics["nc1"], "the schedule moves the training run"


def test_a_misspelt_probe_or_interval_is_refused():
    """A schedule for nobody would be ignored."""
    with pytest.raises(InvalidInput, match="probe_every names 'hessian', but the probes are neural-collapse"):
        BASE.but(probe_every={"hessian": 1})(Streams("t", 0))
    with pytest.raises(InvalidInput, match="probe_every must be above 0"):
        BASE.but(probe_every={"neural-collapse": 0})


def test_intervals_are_timed_for_all_arms():
    """An arm that cannot pay is measured as often as one that can."""
    intervals = timed_intervals([BASE, BASE.but(model="mlp(width=12)")], 1e-6)
    assert set(intervals) == {"neural-collapse", "softmax-collapse"} and min(intervals.values()) > 8
    assert timed_intervals([BASE], 1e6, every=0.5) == {"neural-collapse": 0.5, "softmax-collapse": 0.5}
