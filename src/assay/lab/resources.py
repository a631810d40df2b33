"""What a trial may use and what it used: the time limit, wall and CPU seconds, peak memory.

The limit works in two ways. Where the trial runs in a process's main thread, an alarm interrupts it between two
lines of Python; elsewhere (a Dask worker runs tasks in another thread) the training loop asks `check_deadline`.
Peak memory is the high-water mark of the process's resident memory above its value at the start. Linux can set the
mark back; elsewhere it only ever rises, so a trial after a larger one in the same process shows 0.
Cost: about a millisecond per trial.
"""

from __future__ import annotations

import ctypes
import gc
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

__all__ = ["TrialTimeout", "check_deadline", "measured", "time_limit"]

REPEAT_ALARM = 1.0
_deadline: float | None = None


class TrialTimeout(BaseException):
    """The trial's time is up. Not an `Exception`, so that a trial's own `except Exception` lets it through."""


def check_deadline() -> None:
    """Raise `TrialTimeout` if the current trial's time is up; loops of unknown length call it."""
    if _deadline is not None and time.monotonic() > _deadline:
        raise TrialTimeout


def _alarm(number: int, frame: FrameType | None) -> None:
    # An alarm that comes while the limit is being lifted finds no deadline any more.
    if _deadline is not None:
        raise TrialTimeout


@contextmanager
def time_limit(seconds: float | None) -> Iterator[None]:
    """Limit the body's wall-clock time.

    Args:
        seconds: The limit; None for none.

    Raises:
        TrialTimeout: In the body, or after it if nothing could interrupt it.
    """
    global _deadline
    if seconds is None:
        yield
        return
    _deadline = time.monotonic() + seconds
    interruptible = hasattr(signal, "setitimer") and threading.current_thread() is threading.main_thread()
    if interruptible:
        previous = signal.signal(signal.SIGALRM, _alarm)
        # It repeats, since an exception that is raised inside a finaliser is lost.
        signal.setitimer(signal.ITIMER_REAL, seconds, REPEAT_ALARM)
    try:
        try:
            yield
            check_deadline()
        finally:
            _deadline = None
    finally:
        if interruptible:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, previous)
        _deadline = None


@contextmanager
def _own_garbage() -> Iterator[None]:
    """Free what the body leaves behind, or it would hide the next trial's memory.

    What was alive before is set aside meanwhile: a full collection takes a tenth of a second once torch is loaded.
    """
    gc.freeze()
    if sys.platform == "linux":
        # Freed memory that the C library keeps would be reused unseen.
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)
    try:
        yield
    finally:
        gc.collect()
        gc.unfreeze()


def _status_bytes(field: str) -> int:
    with open("/proc/self/status", encoding="ascii", errors="replace") as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _highest_ever() -> int:
    try:
        import resource
    except ImportError:
        return 0
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _start_mark() -> int | None:
    """Set the high-water mark back and return the resident memory; None where the system cannot."""
    try:
        with open("/proc/self/clear_refs", "w", encoding="ascii") as file:
            file.write("5")
        return _status_bytes("VmRSS:")
    except (OSError, StopIteration):
        return None


@contextmanager
def measured() -> Iterator[dict[str, float]]:
    """Measure the body: fills the yielded dict with `seconds`, `cpu_seconds` and `peak_memory` when it ends.

    Yields:
        A dict that is empty until then; `seconds` and `cpu_seconds` (of all threads of the process) in seconds,
        `peak_memory` in bytes above the start.
    """
    usage: dict[str, float] = {}
    with _own_garbage():
        start, highest = _start_mark(), _highest_ever()
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            yield usage
        finally:
            usage["seconds"] = time.perf_counter() - wall
            usage["cpu_seconds"] = time.process_time() - cpu
            peak = _highest_ever() - highest if start is None else _status_bytes("VmHWM:") - start
            usage["peak_memory"] = float(max(0, peak))
