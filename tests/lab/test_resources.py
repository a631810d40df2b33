from __future__ import annotations

import gc
import signal
import sys
import threading
import time
import weakref

import numpy as np
import pytest

from assay.lab import resources
from assay.lab.resources import TrialTimeout, check_deadline, measured, time_limit

MEGABYTE = 2**20
linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux sets the high-water mark back")


def in_thread(function):
    """Run a function outside the main thread and return what it gives."""
    found = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


@linux
def test_peak_memory_is_the_high_water_mark_above_the_start():
    """A trial would be charged for the process's earlier memory, or its freed peak would be missed."""
    ballast = np.ones(30 * MEGABYTE, dtype=np.uint8)
    with measured() as usage:
        peak = np.ones(60 * MEGABYTE, dtype=np.uint8)
        del peak
        small = np.ones(10 * MEGABYTE, dtype=np.uint8)
    assert usage["peak_memory"] == pytest.approx(60 * MEGABYTE, abs=5 * MEGABYTE)
    assert ballast.size + small.size == 40 * MEGABYTE


@linux
def test_peak_memory_does_not_depend_on_the_trial_before():
    """Memory that an earlier trial freed would be reused unseen, so the order of trials would decide the figure."""

    def trial():
        with measured() as usage:
            parts = [np.ones(50_000, dtype=np.uint8) for _ in range(400)]
            del parts
        return usage["peak_memory"]

    peaks = [trial() for _ in range(3)]
    assert peaks == pytest.approx([20e6] * 3, rel=0.25)


def test_seconds_are_wall_time_and_cpu_seconds_are_not():
    """Waiting would be counted as computing."""
    with measured() as usage:
        time.sleep(0.2)
    assert 0.2 <= usage["seconds"] < 5
    assert usage["cpu_seconds"] < 0.1
    with measured() as usage:
        stop = time.process_time() + 0.1
        while time.process_time() < stop:
            pass
    assert usage["cpu_seconds"] >= 0.1
    assert usage["seconds"] > 0.09


def test_usage_is_there_after_an_error_too():
    """A trial that diverges would have no resources."""
    with pytest.raises(FloatingPointError), measured() as usage:
        raise FloatingPointError
    assert set(usage) == {"seconds", "cpu_seconds", "peak_memory"}


def test_without_proc_the_figure_is_not_negative(monkeypatch):
    """Another system than Linux would fail or report nonsense."""
    monkeypatch.setattr(resources, "_start_mark", lambda: None)
    with measured() as usage:
        pass
    assert usage["peak_memory"] >= 0


def test_measuring_is_cheap():
    """The engine's overhead would show in short trials; a full garbage collection takes over 0.1 s with torch loaded."""
    import torch

    def once():
        start = time.perf_counter()
        with measured():
            pass
        return time.perf_counter() - start

    assert torch.__version__
    assert min(once() for _ in range(5)) < 0.02


def test_garbage_in_cycles_is_freed_with_its_trial():
    """A model in a reference cycle would stay, and its memory be reused unseen by the next trial."""

    class Node:
        pass

    with measured():
        node = Node()
        node.itself = node
        alive = weakref.ref(node)
        del node
    assert alive() is None
    assert gc.get_freeze_count() == 0


def test_a_loop_is_interrupted_in_the_main_thread():
    """A trial would run for ever."""
    start = time.monotonic()
    with pytest.raises(TrialTimeout), time_limit(0.1):
        while True:
            pass
    assert 0.1 <= time.monotonic() - start < 10


def test_an_alarm_that_is_lost_in_a_finaliser_comes_again(monkeypatch):
    """A trial would run for ever when the alarm comes at the wrong moment."""
    monkeypatch.setattr(resources, "REPEAT_ALARM", 0.1)

    class Slow:
        def __del__(self):
            time.sleep(0.2)

    def loop():
        slow = Slow()
        del slow
        while True:
            pass

    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        with pytest.raises(TrialTimeout), time_limit(0.1):
            loop()
    finally:
        sys.unraisablehook = hook


def test_other_threads_ask_for_the_deadline():
    """A trial in a Dask worker's thread would run for ever."""

    def loop():
        try:
            with time_limit(0.1):
                while True:
                    time.sleep(0.01)
                    check_deadline()
        except TrialTimeout:
            return "timeout"

    assert in_thread(loop) == "timeout"


def test_a_trial_that_nothing_could_interrupt_is_late_all_the_same():
    """Whether a trial counts as too late would depend on the backend."""

    def sleep():
        try:
            with time_limit(0.01):
                time.sleep(0.05)
        except TrialTimeout:
            return "timeout"

    assert in_thread(sleep) == "timeout"


def test_the_limit_is_lifted_afterwards():
    """The next trial would be interrupted, or the user's own alarm handler be lost."""

    def handler(number, frame):
        raise AssertionError("the alarm rang after the trial")

    previous = signal.signal(signal.SIGALRM, handler)
    try:
        with time_limit(0.05):
            pass
        with pytest.raises(TrialTimeout), time_limit(0.05):
            time.sleep(1)
        time.sleep(0.1)
        assert signal.getsignal(signal.SIGALRM) is handler
        assert signal.getitimer(signal.ITIMER_REAL) == (0.0, 0.0)
        check_deadline()
    finally:
        signal.signal(signal.SIGALRM, previous)


def test_no_limit_means_none():
    """A study without a limit would end early."""
    with time_limit(None):
        check_deadline()
    with time_limit(1e6):
        check_deadline()
