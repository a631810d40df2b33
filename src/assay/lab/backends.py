"""Where trials run: loky's processes on this machine, a Dask cluster or a Ray cluster, behind one context manager.

Dask and Ray use the cluster that `DASK_SCHEDULER_ADDRESS` or `RAY_ADDRESS` names (or, for Ray, the one that this
process is connected to already); without one they start a cluster of processes on this machine for the run.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from assay.errors import InvalidInput, MissingExtra
from assay.lab.environment import usable_cores

__all__ = ["BACKENDS", "check_jobs", "trial_backend", "worker_death"]


@contextmanager
def _loky(jobs: int, threads: int) -> Iterator[None]:
    from joblib import parallel_config

    with parallel_config("loky", n_jobs=jobs, inner_max_num_threads=threads):
        yield


@contextmanager
def _dask(jobs: int, threads: int) -> Iterator[None]:
    distributed = _extra("dask", "distributed")
    from joblib import parallel_config

    # A trial whose worker dies is not tried again: it would most likely die again.
    with (
        importlib.import_module("dask").config.set({"distributed.scheduler.allowed-failures": 0}),
        distributed.Client(**_dask_cluster(jobs)) as client,
        parallel_config("dask", client=client),
    ):
        _report_deaths()
        yield


def _report_deaths() -> None:
    """Tell joblib of a dead Dask worker: its Dask backend sets the future's exception, but nobody waits for that."""
    from joblib.parallel import get_active_backend

    backend, _ = get_active_backend()
    submit = backend.submit

    def submit_and_report(function: Any, callback: Callable[[BaseException], None]) -> Future[Any]:
        future: Future[Any] = submit(function, callback)
        future.add_done_callback(lambda done: callback(error) if (error := done.exception()) else None)
        return future

    backend.submit = submit_and_report


def _dask_cluster(jobs: int) -> dict[str, object]:
    address = os.environ.get("DASK_SCHEDULER_ADDRESS")
    if address:
        return {"address": address}
    # The operating system alone decides when memory is short: Dask's own limit would end trials that fit.
    local = {"n_workers": jobs, "threads_per_worker": 1, "processes": True, "memory_limit": 0}
    return {**local, "dashboard_address": None}


@contextmanager
def _ray(jobs: int, threads: int) -> Iterator[None]:
    ray = _extra("ray", "ray")
    from joblib import parallel_config

    importlib.import_module("ray.util.joblib").register_ray()
    started = not ray.is_initialized()
    if started:
        ray.init(**_ray_cluster(jobs))
    try:
        with parallel_config("ray", n_jobs=jobs):
            yield
    finally:
        if started:
            ray.shutdown()


def _ray_cluster(jobs: int) -> dict[str, object]:
    quiet = {"log_to_driver": False, "logging_level": "error"}
    if os.environ.get("RAY_ADDRESS"):
        return quiet
    # Ray's workers do not inherit the import path, as those of loky and Dask do.
    path = {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}}
    return {**quiet, "address": "local", "num_cpus": jobs, "include_dashboard": False, "runtime_env": path}


# Named, not imported: the classes of a backend that is not installed cannot be.
DEATHS = {
    "joblib.TerminatedWorkerError",
    "distributed.KilledWorker",
    "ray.RayActorError",
    "ray.WorkerCrashedError",
    "ray.OutOfMemoryError",
}
BACKENDS: dict[str, Callable[[int, int], AbstractContextManager[None]]] = {"loky": _loky, "dask": _dask, "ray": _ray}


def _extra(extra: str, module: str) -> ModuleType:
    try:
        return importlib.import_module(module)
    except ImportError as error:
        raise MissingExtra(f"the backend {extra!r} is not installed; pip install 'assay[{extra}]'") from error


def check_jobs(backend: str, jobs: int | None, threads: int) -> int:
    """Return how many trials run at a time, once it is sure that they do not need more cores than there are.

    Args:
        backend: "loky", "dask" or "ray".
        jobs: The wish; None for as many as the cores allow.
        threads: Threads of one trial.

    Raises:
        InvalidInput: If the backend is unknown, or `jobs` is below 1 or more than the cores allow.
    """
    if backend not in BACKENDS:
        raise InvalidInput(f"unknown backend {backend!r}; choose one of {', '.join(BACKENDS)}")
    cores = usable_cores()
    if jobs is not None and (isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1):
        raise InvalidInput(f"jobs must be a whole number, 1 or larger, not {jobs!r}")
    wanted = max(1, cores // threads) if jobs is None else jobs
    if wanted * threads > cores and not _has_cluster(backend):
        raise InvalidInput(
            f"{wanted} jobs of {threads} threads each need {wanted * threads} cores, but {cores} are usable here; "
            f"take at most {cores // threads} jobs"
            if threads <= cores
            else f"a trial of this study takes {threads} threads, but {cores} cores are usable here"
        )
    return wanted


def _has_cluster(backend: str) -> bool:
    return bool(os.environ.get({"dask": "DASK_SCHEDULER_ADDRESS", "ray": "RAY_ADDRESS"}.get(backend, ""), ""))


@contextmanager
def trial_backend(name: str, jobs: int, threads: int) -> Iterator[None]:
    """Make `joblib.Parallel` run on the named backend inside the context.

    Args:
        name: "loky", "dask" or "ray".
        jobs: Trials at a time; a cluster that is there already has its own number of workers.
        threads: Threads of one trial.

    Raises:
        MissingExtra: If the backend's package is not installed.
    """
    with BACKENDS[name](jobs, threads):
        yield


def worker_death(error: BaseException) -> bool:
    """Say whether an error of `joblib.Parallel` means that a worker process is dead."""
    names = {f"{kind.__module__.partition('.')[0]}.{kind.__name__}" for kind in type(error).__mro__}
    return bool(names & DEATHS)
