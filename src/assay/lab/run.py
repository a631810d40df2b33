"""Run a study: plan its trials, skip the stored ones, run the others side by side, return all records.

The worker that runs a trial writes its record itself (see `assay.lab.store`), so a run that is killed, interrupted or
out of memory resumes where it was. Cost: a few milliseconds per trial and 1 to 3 s for the workers to start; with one
job the trials run in this process.
"""

from __future__ import annotations

import contextlib
import math
import pickle
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from assay.errors import AssayError, InvalidInput, StoreError
from assay.lab._worker import Order, TrialError, run_trial
from assay.lab.backends import check_jobs, trial_backend, worker_death
from assay.lab.plan import Trial, plain_study, plan, plan_final, plan_tuning
from assay.lab.record import Record
from assay.lab.store import Store

if TYPE_CHECKING:
    from assay.lab.arms import Candidate
    from assay.lab.study import Study

# `run` itself is missing here: in the namespace of `assay.lab` the name belongs to this module.
__all__ = ["Progress", "RunResult", "TrialError"]

Progress = Callable[[int, int, Trial], None]
POLL_SECONDS = 0.1


@dataclass(frozen=True)
class RunResult:
    """What a run gave.

    Args:
        trials: Every trial with its record; the tuning trials first.
        chosen: The tuned settings by arm, for the arms that are tuned.
        resumed: How many of the trials were in the store already.
        seconds: Wall-clock time of the run.
    """

    trials: Sequence[tuple[Trial, Record]]
    chosen: Mapping[str, Mapping[str, Any]]
    resumed: int
    seconds: float

    @property
    def records(self) -> dict[str, dict[int, Record]]:
        """The final trials' records by arm and seed: what the judge sees."""
        found: dict[str, dict[int, Record]] = defaultdict(dict)
        for trial, record in self.trials:
            if trial.stage == "final":
                found[trial.arm][trial.seed] = record
        return dict(found)


def run(
    study: Study,
    *,
    task: str,
    scale: str,
    seeds: int,
    store: Path | str,
    jobs: int | None = None,
    backend: str = "loky",
    progress: Progress | None = None,
) -> RunResult:
    """Run a study's missing trials and return all records.

    Arms with a tuning grid are tuned first: each candidate runs on the tuning seeds, the best mean validation score
    wins (a trial that diverges or times out counts as the worst, the first of equal ones wins), and only the
    winner runs on the seeds of the comparison.

    Args:
        study: The claim and its arms.
        task: Usually the paper's id; it decides the random streams.
        scale: "smoke", "desk" or "paper".
        seeds: Repetitions of each arm.
        store: SQLite file of finished trials; made if it does not exist.
        jobs: Trials at a time; None for as many as the cores allow.
        backend: "loky", "dask" or "ray".
        progress: Called with (finished trials, all trials, the one that finished), from another thread, and
            for stored trials too.

    Raises:
        InvalidInput: If seeds, jobs, backend, an arm's description or the tuning budgets are not usable.
        StoreError: If the store is not usable.
        TrialError: If an arm has a bug; finished trials are kept, as they are whenever a run ends early.
        AssayError: If a worker process dies.
    """
    start = time.perf_counter()
    plan(study, task=task, scale=scale, seeds=seeds)
    if study.time_limit is not None and not study.time_limit > 0:
        raise InvalidInput(f"a study's time_limit is in seconds and above 0, or None; not {study.time_limit!r}")
    jobs = check_jobs(backend, jobs, study.threads)
    tuning = plan_tuning(study, task=task, scale=scale)
    tuning_trials = [trial for points in tuning for point in points for trial in point]
    with Store(store) as opened, contextlib.ExitStack() as cluster:
        total = len(tuning_trials) + len(study.arms) * seeds
        runner = _Runner(study, opened, jobs, backend, progress or _ignore, total, cluster)
        scores = {trial.key: _score(trial, record) for trial, record in runner.finish(tuning_trials)}
        winners = {points[0][0].arm: _best(points, scores) for points in tuning}
        arms = {name: winners[name].final() if name in winners else arm for name, arm in study.arms.items()}
        runner.finish(plan_final(study, arms, task=task, scale=scale, seeds=seeds))
        chosen = {name: dict(winner.overrides) for name, winner in winners.items()}
        opened.save_study(task, scale, plain_study(study, [trial for trial, _ in runner.finished], chosen))
    return RunResult(runner.finished, chosen, runner.resumed, time.perf_counter() - start)


def _ignore(done: int, total: int, trial: Trial) -> None:
    pass


def _score(trial: Trial, record: Record) -> float:
    if record.status != "done":
        return -math.inf
    try:
        score = record.metrics["validation_score"]
    except KeyError:
        raise InvalidInput(
            f"{trial}: a tuning candidate's record needs the metric 'validation_score' (higher is better); "
            f"it has {', '.join(record.metrics) or 'none'}"
        ) from None
    return -math.inf if math.isnan(score) else score


def _best(points: Sequence[Sequence[Trial]], scores: Mapping[str, float]) -> Candidate:
    means = [min(s) if math.isinf(min(s)) else sum(s) / len(s) for s in ([scores[t.key] for t in p] for p in points)]
    winner: Any = points[means.index(max(means))][0].call
    return winner


@dataclass
class _Runner:
    """Finishes lists of trials and keeps count."""

    study: Study
    store: Store
    jobs: int
    backend: str
    progress: Progress
    total: int
    cluster: contextlib.ExitStack
    started: bool = False
    resumed: int = 0
    finished: list[tuple[Trial, Record]] = field(default_factory=list)

    def finish(self, trials: Sequence[Trial]) -> list[tuple[Trial, Record]]:
        """Return the trials with their records, after running the missing ones."""
        stored = self.store.keys(trial.key for trial in trials)
        # Two arms with the same description share their trials.
        missing = {trial.key: trial for trial in trials if trial.key not in stored}
        self.resumed += sum(trial.key in stored for trial in trials)
        with self._reported(trials):
            if missing:
                self._execute(list(missing.values()))
        found = self.store.trials(trial.key for trial in trials)
        records = [(trial, found[trial.key].record) for trial in trials]
        self.finished += records
        return records

    def _execute(self, trials: Sequence[Trial]) -> None:
        from joblib import Parallel, delayed

        order = Order(self.store.path.absolute(), self.store.id, self.study.time_limit, self.study.threads)
        try:
            if not self.started:
                self.cluster.enter_context(trial_backend(self.backend, self.jobs, self.study.threads))
                self.started = True
            elsewhere = Parallel(batch_size=1)(delayed(run_trial)(trial, order) for trial in trials)
        except Exception as error:
            raise self._explained(error) from error
        for stored in filter(None, elsewhere):
            self.store.add(stored)

    def _explained(self, error: Exception) -> Exception:
        """Return what to raise for an error of `joblib.Parallel`: what an arm raised stays as it is."""
        kept = f"the {self.store.count()} trials in {self.store.path} are kept; run again to resume"
        if worker_death(error):
            return AssayError(
                f"a worker process died; most likely the system ended it for lack of memory, so take fewer jobs "
                f"than {self.jobs}, or an arm crashed it; {kept}"
            )
        if isinstance(error, pickle.PicklingError) or "un-serialize" in str(error):
            return InvalidInput(
                "an arm cannot be sent to a worker process: its functions and classes must stand at the top of a "
                f"module that workers can import ({error})"
            )
        return error

    @contextlib.contextmanager
    def _reported(self, trials: Sequence[Trial]) -> Iterator[None]:
        """Report progress from the store, which is where every backend's trials arrive first."""
        waiting: dict[str, list[Trial]] = defaultdict(list)
        for trial in trials:
            waiting[trial.key].append(trial)
        stop = threading.Event()
        thread = threading.Thread(target=self._report, args=(waiting, stop), daemon=True)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def _report(self, waiting: dict[str, list[Trial]], stop: threading.Event) -> None:
        row, done = 0, len(self.finished)
        with contextlib.suppress(StoreError), Store(self.store.path, create=False, check=False) as store:
            last = False
            while not last:
                last = stop.wait(POLL_SECONDS)
                row, keys = store.keys_after(row)
                for trial in (trial for key in keys for trial in waiting.pop(key, ())):
                    done += 1
                    self.progress(done, self.total, trial)
