"""Run one trial in a worker and store its record.

Every trial is on its own: the global random generators are seeded from the trial's "noise" stream and set back, and
it gets the study's number of threads and no more, so a record depends neither on what ran before it in the same
process nor on the number of jobs.

An arm may have two things more than the protocol `Arm` asks for: `prepare()`, called before a trial's resources and
time are counted, since the first trial of a process would be charged for imports and for what libraries set up once;
and `uses_torch = False`, which spares its workers the import of torch.
"""

from __future__ import annotations

import contextlib
import os
import random
import threading
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from assay.errors import AssayError, InvalidInput
from assay.lab.environment import environment
from assay.lab.plan import Trial
from assay.lab.record import Record
from assay.lab.resources import TrialTimeout, measured, time_limit
from assay.lab.store import Store, StoredTrial, now
from assay.streams import Streams

THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
# A Dask worker can have several threads.
_one_trial_at_a_time = threading.Lock()


class TrialError(RuntimeError):
    """A trial failed for a reason that is neither divergence nor a timeout: most likely a bug in its arm."""


@dataclass(frozen=True)
class Order:
    """What a worker needs besides the trial.

    Args:
        path: The store's file.
        store: The store's own id: another machine can have another store at the same path.
        time_limit: Seconds per trial; None for no limit.
        threads: Threads per trial.
    """

    path: Path
    store: str
    time_limit: float | None
    threads: int

    def open(self) -> Store | None:
        """Open the store; None where this machine does not see it."""
        if not self.path.exists():
            return None
        store = Store(self.path, create=False, check=False)
        if store.id == self.store:
            return store
        store.close()
        return None


def run_trial(trial: Trial, order: Order) -> StoredTrial | None:
    """Run a trial in a worker and store its record.

    Returns:
        None, or the trial to be stored where the worker does not see the store, on another machine of a cluster.
    """
    with _one_trial_at_a_time, contextlib.ExitStack() as stack:
        store = order.open()
        if store is not None:
            stack.enter_context(store)
            # A forgotten worker of an earlier run may have been quicker.
            if store.keys([trial.key]):
                return None
        stored = StoredTrial(replace(trial, call=None), _measured_record(trial, order), environment(), now())
        if store is None:
            return stored
        store.add(stored)
        return None


def _measured_record(trial: Trial, order: Order) -> Record:
    streams = Streams(trial.task, trial.seed)
    uses_torch = getattr(trial.call, "uses_torch", True)
    entropy = streams.entropy("noise")
    with _named(trial), _threads(order.threads, uses_torch):
        prepare = getattr(trial.call, "prepare", None)
        if prepare is not None:
            with _seeded(entropy, uses_torch):
                prepare()
        with _seeded(entropy, uses_torch), measured() as usage:
            record = _limited(trial, streams, order.time_limit)
    return replace(record, resources={**usage, **record.resources})


def _limited(trial: Trial, streams: Streams, limit: float | None) -> Record:
    call: Any = trial.call
    try:
        with time_limit(limit):
            record = call(streams)
    except TrialTimeout:
        return Record(metrics={}, status="timeout")
    except FloatingPointError:
        return Record(metrics={}, status="diverged")
    if not isinstance(record, Record):
        raise InvalidInput(f"an arm must return a Record, not {type(record).__name__}")
    return record


@contextlib.contextmanager
def _named(trial: Trial) -> Iterator[None]:
    """Say in an arm's error which arm and seed it was."""
    try:
        yield
    except AssayError as error:
        raise type(error)(f"{trial}: {error}") from error
    except (Exception, SystemExit) as error:
        # As text, since neither the traceback nor every exception can be sent to another process.
        raise TrialError(f"{trial} failed: {error!r}\n{''.join(traceback.format_exception(error))}") from error


@contextlib.contextmanager
def _threads(threads: int, uses_torch: bool) -> Iterator[None]:
    """Limit the threads of libraries that are loaded, and of those that the trial will load."""
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = {name: os.environ[name] for name in THREAD_VARIABLES if name in os.environ}
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, str(threads)))
    try:
        with _torch_threads(threads) if uses_torch else contextlib.nullcontext(), threadpool_limits(threads):
            yield
    finally:
        for name in THREAD_VARIABLES:
            os.environ.pop(name, None)
        os.environ.update(before)


@contextlib.contextmanager
def _torch_threads(threads: int) -> Iterator[None]:
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextlib.contextmanager
def _seeded(entropy: int, uses_torch: bool) -> Iterator[None]:
    """Seed the global random generators, which parts do not use but other code may, and set them back at the end."""
    import numpy as np

    python, legacy = random.getstate(), np.random.get_state()
    random.seed(entropy)
    np.random.seed(entropy % 2**32)
    try:
        with _seeded_torch(entropy) if uses_torch else contextlib.nullcontext():
            yield
    finally:
        random.setstate(python)
        np.random.set_state(legacy)


@contextlib.contextmanager
def _seeded_torch(entropy: int) -> Iterator[None]:
    import torch

    devices = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(entropy)
        yield
