"""The budget of probing time, with a clock that only probes, passes and training move."""

import json
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torchmetrics import Metric

from assay._budget import Ledger
from assay.errors import InvalidInput
from assay.history import History
from assay.watch import Watch


class Clock:
    """Time that somebody must spend."""

    def __init__(self):
        self.now = 0.0

    def __call__(self):
        """Tell the time."""
        return self.now


class Timed:
    """A probe of its own whose measurements take known times; the last one goes on."""

    def __init__(self, clock, *seconds, dear=False, key="value"):
        self.clock, self.seconds, self.dear, self.key, self.count = clock, list(seconds), dear, key, 0

    def measure(self, view, batches):
        """Take as long as the next measurement should."""
        self.clock.now += self.seconds[min(self.count, len(self.seconds) - 1)]
        self.count += 1
        return {self.key: float(self.count)}


class Dear(Timed):
    """Has another name than `Timed`."""


class Streaming(Metric):
    """A streaming probe whose updates take known times."""

    consumes = ("scores",)
    full_state_update = False

    def __init__(self, clock, seconds, key):
        super().__init__()
        self.clock, self.seconds, self.key = clock, seconds, key

    def update(self, scores):
        """Take the time."""
        self.clock.now += self.seconds

    def compute(self):
        """Return anything."""
        return {self.key: 1.0}


class Slow(nn.Module):
    """A model whose forward pass takes a known time."""

    def __init__(self, clock, seconds=0.0):
        super().__init__()
        self.clock, self.seconds, self.layer = clock, seconds, nn.Linear(2, 2)

    def forward(self, x):
        """Take the time."""
        self.clock.now += self.seconds
        return self.layer(x)


def watched(clock, *probes, forward=0.0, **options):
    """Watch a model on two batches of two samples."""
    data = (torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    return Watch(Slow(clock, forward), list(probes), data, batch_size=2, clock=clock, **options)


def run(watch, clock, times, start=0):
    """Train between measurements; return which probes' values each step has."""
    steps = []
    for step, seconds in enumerate(times, start):
        steps.append(sorted(watch.measure(step)))
        clock.now += seconds
    return steps


def test_without_a_budget_everything_is_measured_and_timed():
    """The default defers something, or the table of costs does not add up."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 3.0), Dear(clock, 5.0, dear=True, key="dear"))
    assert run(watch, clock, [2.0] * 3) == [["dear", "value"]] * 3
    rows = {row["probe"]: row for row in watch.costs()}
    assert rows["timed"]["seconds"] == 9 and rows["dear"]["seconds"] == 15 and rows["dear"]["last"] == 5
    assert [rows["dear"][key] for key in ("dear", "measurements", "overhead")] == [True, 3, 15 / 4]
    # The last two seconds of training have no measurement after them yet.
    assert watch.overhead == 24 / 4 == sum(row["overhead"] for row in rows.values())


def test_overhead_before_training_is_said_to_be_unbounded():
    """A division by zero, or a first measurement that costs nothing."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 1.0))
    assert watch.overhead == 0
    watch.measure(0)
    assert watch.overhead == math.inf


def test_cheap_probes_go_on_while_a_dear_one_waits():
    """A dear probe's debt keeps the cheap ones from being measured, or it is measured although nothing pays for it."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 0.01), Dear(clock, 5.0, dear=True, key="dear"), max_overhead=0.1)
    steps = run(watch, clock, [1.0] * 400)
    assert steps[0] == ["value"], "the dear one runs before any training"
    assert all("value" in step for step in steps[3:])
    dear = [i for i, step in enumerate(steps) if "dear" in step]
    # It gets 0.1 s a step less the cheap one's 0.01: once every 5 / 0.09 steps, in the long run.
    assert len(dear) == pytest.approx(400 * 0.09 / 5, abs=1.5)
    assert watch.overhead <= 0.1 + 5.0 / 400
    assert watch.deferred == ("dear",) and "dear" not in watch.history.steps[399]


def test_a_probe_that_turns_out_dear_is_deferred():
    """Only probes that call themselves dear are kept within the budget."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 2.0), max_overhead=0.25)
    steps = run(watch, clock, [1.0] * 200)
    assert sum(map(len, steps)) == pytest.approx(200 * 0.25 / 2, abs=2)
    assert watch.overhead == pytest.approx(0.25, abs=2 * 2.0 / 199)


def test_a_slow_first_measurement_is_paid_for_and_not_taken_for_the_price():
    """Warming up is hidden from the share, or frightens the probe away for ever."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 10.0, 0.05), max_overhead=0.1)
    steps = run(watch, clock, [1.0] * 150)
    waiting = steps.index(["value"], 1)
    assert waiting == 100, "ten seconds are a tenth of a hundred"
    assert all(steps[waiting:])


def test_one_forward_pass_is_shared_in_the_account():
    """Each streaming probe is charged the whole pass, or none is."""
    clock = Clock()
    watch = watched(clock, Streaming(clock, 1.0, "a"), Streaming(clock, 2.0, "b"), Timed(clock, 7.0), forward=4.0)
    watch.measure(0)
    # Two batches: 8 s of forward passes, 2 s and 4 s of updates.
    assert [row["seconds"] for row in watch.costs()] == [6.0, 8.0, 7.0]
    assert [row["probe"] for row in watch.costs()] == ["streaming", "streaming-2", "timed"]
    assert clock.now == 21


def test_streaming_probes_wait_until_they_can_pay_the_pass_together():
    """The pass is run for nobody, or for each alone."""
    clock = Clock()
    watch = watched(clock, Streaming(clock, 0.0, "a"), Streaming(clock, 0.0, "b"), forward=1.0, max_overhead=0.1)
    steps = run(watch, clock, [1.0] * 300)
    assert {tuple(step) for step in steps} == {(), ("a", "b")}
    assert sum(map(bool, steps)) == pytest.approx(300 * 0.1 / 2, abs=2)


costs = st.lists(st.floats(0.0, 20.0), min_size=1, max_size=4)


@given(
    probes=st.lists(st.tuples(costs, st.booleans()), min_size=1, max_size=4),
    times=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=40),
    budget=st.floats(0.01, 2.0),
)
@settings(max_examples=30, deadline=None)
def test_probing_never_exceeds_the_budget_by_more_than_one_measurement(probes, times, budget):
    """Whatever measurements cost and however training goes on, the share drifts away."""
    clock = Clock()
    built = [Timed(clock, *seconds, dear=dear, key=str(i)) for i, (seconds, dear) in enumerate(probes)]
    watch = watched(clock, *built, max_overhead=budget)
    trained = 0.0
    one = sum(max(seconds) for seconds, _ in probes)
    for step, seconds in enumerate(times):
        watch.measure(step)
        assert clock.now - trained <= budget * trained + one + 1e-6
        clock.now += seconds
        trained += seconds


@given(
    streaming=st.lists(st.floats(0.0, 5.0), min_size=1, max_size=3),
    forward=st.floats(0.0, 5.0),
    times=st.lists(st.floats(0.0, 10.0), min_size=1, max_size=20),
)
@settings(max_examples=20, deadline=None)
def test_the_same_holds_of_probes_that_share_a_pass(streaming, forward, times):
    """Sharing lets probes run that nobody pays for."""
    clock = Clock()
    watch = watched(
        clock,
        *(Streaming(clock, seconds, str(i)) for i, seconds in enumerate(streaming)),
        forward=forward,
        max_overhead=0.1,
    )
    trained, one = 0.0, 2 * sum(streaming) + 2 * forward * len(streaming)
    for step, seconds in enumerate(times):
        watch.measure(step)
        assert clock.now - trained <= 0.1 * trained + one + 1e-6
        clock.now += seconds
        trained += seconds
    assert sum(row["seconds"] for row in watch.costs()) == pytest.approx(clock.now - trained, abs=1e-6)


def test_probes_within_the_budget_are_measured_every_time():
    """The budget is saved where nothing needs to be saved."""
    clock = Clock()
    probes = [Timed(clock, 0.02, key=str(i)) for i in range(3)]
    watch = watched(clock, *probes, max_overhead=0.1)
    steps = run(watch, clock, [1.0] * 50)
    assert all(len(step) == 3 for step in steps[3:]), "the first two have no price yet"


def test_a_restarted_run_goes_on_with_its_account(tmp_path):
    """After a restart a dear probe starts anew, or the time between the runs counts as training."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 2.0), max_overhead=0.1)
    run(watch, clock, [1.0] * 30)
    watch.save(tmp_path / "w.json")
    clock.now += 1e6
    other = watched(clock, Timed(clock, 2.0), max_overhead=0.1).load(tmp_path / "w.json")
    assert other.overhead == watch.overhead and other.costs() == watch.costs()
    assert History.load(tmp_path / "w.json").frame() == watch.frame()
    assert other.measure(30) == {} and other.overhead == watch.overhead
    strange = json.loads((tmp_path / "w.json").read_text())
    strange["accounts"] = {"training": "long"}
    (tmp_path / "w.json").write_text(json.dumps(strange))
    with pytest.raises(InvalidInput, match="account of time"):
        other.load(tmp_path / "w.json")


def test_histories_of_before_the_account_are_read(tmp_path):
    """An old file is refused."""
    (tmp_path / "old.json").write_text(
        '{"format": "assay-watch", "version": 1, "steps": [{"step": 0, "values": {"a": 1}}]}'
    )
    clock = Clock()
    watch = watched(clock, Timed(clock, 1.0)).load(tmp_path / "old.json")
    assert watch.frame() == [{"step": 0, "quantity": "a", "value": 1.0}] and watch.overhead == 0


def test_every_by_probe_is_the_same_in_each_run():
    """A schedule by probe depends on the clock, or reaches the other probes."""
    clock = Clock()
    probes = [Timed(clock, 3.0), Dear(clock, 1.0, key="dear")]
    watch = watched(clock, *probes, every={"dear": 3})
    assert run(watch, clock, [1.0] * 7) == [["dear", "value"], ["value"], ["value"]] * 2 + [["dear", "value"]]
    assert watch.measure(8, only=["dear"]) == {"dear": 4.0}, "asked for by name"


@pytest.mark.parametrize(
    "options,said",
    [
        ({"every": {"hessian": 3}}, "every names 'hessian', but the probes are timed"),
        ({"every": {"timed": 0}}, "at least 1"),
        ({"max_overhead": 0.0}, "above 0"),
        ({"max_overhead": math.nan}, "above 0"),
        ({"max_overhead": math.inf}, "above 0"),
    ],
)
def test_bad_schedules_are_refused(options, said):
    """A misspelt probe is never scheduled, and nobody hears of it."""
    clock = Clock()
    with pytest.raises(InvalidInput, match=said):
        watched(clock, Timed(clock, 1.0), **options)
    with pytest.raises(InvalidInput, match="no probe is called 'x'"):
        watched(clock, Timed(clock, 1.0)).measure(0, only=["x"])


def test_two_probes_of_one_quantity_are_refused_at_any_step():
    """Two schedules that never meet would write two quantities into one curve."""
    clock = Clock()
    watch = watched(clock, Timed(clock, 1.0), Dear(clock, 1.0), every={"timed": 2, "dear": 3})
    watch.measure(2)
    with pytest.raises(InvalidInput, match="two probes measure value"):
        watch.measure(3)


def test_figures_are_those_of_measured_probes():
    """A probe without a picture, or without a measurement, breaks the others' pictures."""

    class Pictured(Timed):
        def figure(self):
            assert self.count
            return "figure"

    clock = Clock()
    watch = watched(clock, Timed(clock, 1.0), Pictured(clock, 1.0, key="b"), every={"pictured": 2})
    watch.measure(1)
    assert watch.figures() == {}
    watch.measure(2)
    assert watch.figures() == {"pictured": "figure"}


def test_an_account_that_is_full_gives_to_the_others():
    """What a cheap probe does not need is lost, or saved up for a burst."""
    ledger = Ledger({"cheap": False, "dear": True}, 0.1)
    for _ in range(2):
        ledger.charge({"cheap": 0.0, "dear": 4.0}, [], 0.0)
    ledger.trained(50.0)
    assert ledger.accounts["dear"].credit == pytest.approx(-8 + 5)
    ledger.trained(1000.0)
    assert ledger.accounts["dear"].credit == pytest.approx(4.0), "one measurement, not 25"


@pytest.mark.parametrize("reduces", [True, False])
def test_one_process_decides_for_those_that_reduce_together(monkeypatch, reduces):
    """Clocks differ: one process would wait for ever in a reduction that the other one has put off."""
    told = []

    def broadcast(objects, src, device):
        told.append((list(objects[0]), src))
        objects[0] = []

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "broadcast_object_list", broadcast)
    clock = Clock()
    probe = Streaming(clock, 1.0, "a")
    probe.sync_on_compute = reduces
    watch = watched(clock, probe, max_overhead=0.1)
    monkeypatch.setattr(probe, "compute", lambda: {"a": 1.0})
    found = watch.measure(0)
    assert (told, found) == (([(["streaming"], 0)], {}) if reduces else ([], {"a": 1.0}))
