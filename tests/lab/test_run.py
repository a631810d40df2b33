from __future__ import annotations

import json
import math
import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from lab_arms import Draw, Misbehave, Prepared, TorchDraw, Tuned, lines, make_study, outcome

from assay.errors import AssayError, InvalidInput, MissingData, StoreError
from assay.lab._worker import Order, run_trial
from assay.lab.plan import plan
from assay.lab.run import TrialError, run
from assay.lab.store import Store

HERE = Path(__file__).parent


@pytest.fixture
def path(tmp_path):
    """Where a store can be made."""
    return tmp_path / "store.sqlite"


def go(study, path, seeds=2, jobs=1, **options):
    """Run a study with the tests' usual options."""
    return run(study, task="task", scale="smoke", seeds=seeds, store=path, jobs=jobs, **options)


def outcomes(result):
    """Return what has to be the same in every run, by trial."""
    return {(t.stage, t.arm, t.seed, t.key): outcome(record) for t, record in result.trials}


def test_a_run_gives_every_arm_every_seed_with_its_resources(path):
    """The judge would miss pairs, or a trial its cost."""
    result = go(make_study({"a": Draw(0.0), "b": Draw(1.0)}), path, seeds=3)
    assert {arm: list(by_seed) for arm, by_seed in result.records.items()} == {"a": [0, 1, 2], "b": [0, 1, 2]}
    assert (len(result.trials), result.resumed, dict(result.chosen)) == (6, 0, {})
    for seed in range(3):
        a, b = (result.records[arm][seed] for arm in "ab")
        assert b.metrics["value"] == a.metrics["value"] + 1.0
        assert np.array_equal(a.arrays["draws"], b.arrays["draws"])
        assert {"seconds", "cpu_seconds", "peak_memory", "draws"} == set(a.resources)
        assert math.isnan(a.metrics["undefined"])
    assert result.seconds > 0


def test_stored_trials_are_not_run_again(path, tmp_path):
    """A resumed run would do everything twice."""
    log = tmp_path / "log"
    study = make_study({"a": Draw(0.0, log=str(log)), "b": Draw(1.0, log=str(log))})
    first = go(study, path, seeds=2)
    second = go(study, path, seeds=3)
    assert sorted(lines(log)) == sorted(f"{shift} {seed}" for shift in (0.0, 1.0) for seed in range(3))
    assert (first.resumed, second.resumed, len(second.trials)) == (0, 4, 6)
    third = go(study, path, seeds=3)
    assert (third.resumed, outcomes(third)) == (6, outcomes(second))
    assert len(lines(log)) == 6


def test_another_arm_changes_no_other_arms_key_or_record(path, tmp_path):
    """A paper's evidence would change when somebody adds a baseline."""
    arms = {"a": TorchDraw(0.0), "b": Draw(1.0)}
    few = go(make_study(arms), path)
    more = go(make_study({"new": TorchDraw(5.0), **arms, "last": Draw(2.0)}), tmp_path / "other.sqlite")
    old = {key: value for key, value in outcomes(more).items() if key[1] in arms}
    assert old == outcomes(few)


def test_a_record_does_not_depend_on_jobs_nor_on_what_ran_before(path, tmp_path):
    """A verdict would depend on the number of cores, or on where a run was interrupted."""
    study = make_study({"a": TorchDraw(0.0), "b": TorchDraw(1.0)})
    torch.manual_seed(1)
    alone = go(study, path, seeds=2, jobs=1)
    torch.manual_seed(2)
    random.seed(3)
    together = go(study, tmp_path / "other.sqlite", seeds=2, jobs=2)
    assert outcomes(alone) == outcomes(together)
    metrics = alone.records["a"][0].metrics
    assert metrics["threads"] == metrics["variable"] == 1
    assert metrics["loss"] != alone.records["a"][1].metrics["loss"]
    assert metrics == alone.records["b"][0].metrics


def test_a_study_gets_as_many_threads_as_it_asks_for(path):
    """A study of kernels would run on one thread although it says two."""
    result = go(make_study({"a": TorchDraw()}, threads=2), path, seeds=1)
    metrics = result.records["a"][0].metrics
    assert metrics["threads"] == metrics["variable"] == 2


def test_nothing_leaks_from_a_trial(path, monkeypatch):
    """A user's own draws would depend on whether a study ran before."""
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy(), torch.get_num_threads()
    go(make_study({"a": TorchDraw()}, threads=2), path)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert np.array_equal(np.random.get_state()[1], states[2])
    assert torch.get_num_threads() == states[3]
    assert "OMP_NUM_THREADS" not in os.environ


def test_two_arms_with_one_description_share_their_trials(path, tmp_path):
    """One of them would be missing from the records, or be computed twice."""
    log = tmp_path / "log"
    arm = Draw(log=str(log))
    result = go(make_study({"a": arm, "same": arm}), path)
    assert len(lines(log)) == 2
    assert outcome(result.records["a"][1]) == outcome(result.records["same"][1])
    assert len(result.trials) == 4


def test_preparation_is_neither_counted_nor_limited(path):
    """The first trial of a process would be charged for imports, and a short time limit end it."""
    result = go(make_study({"a": Draw(), "prepared": Prepared()}, time_limit=0.25), path)
    for seed, record in result.records["prepared"].items():
        assert record.resources["seconds"] < 0.25
        assert outcome(record) == outcome(result.records["a"][seed])


@pytest.mark.parametrize("jobs", [1, 2])
def test_divergence_and_timeout_are_results(path, jobs):
    """One diverging arm would end the study."""
    arms = {"ok": Draw(), "diverges": Misbehave(how="diverge"), "hangs": Misbehave(how="hang")}
    result = go(make_study(arms, time_limit=1.0), path, jobs=jobs)
    status = {arm: [r.status for r in by_seed.values()] for arm, by_seed in result.records.items()}
    assert status == {"ok": ["done"] * 2, "diverges": ["done", "diverged"], "hangs": ["done", "timeout"]}
    late = result.records["hangs"][1]
    assert (late.metrics, late.series) == ({}, {})
    assert late.resources["seconds"] >= 1.0
    assert result.records["diverges"][1].metrics == {}


@pytest.mark.parametrize(
    ("jobs", "how", "error", "text"),
    [
        (1, "bug", TrialError, r"arm 'bad', seed 1 failed: Unpicklable\('boom'\)[\s\S]*in _bug"),
        (2, "bug", TrialError, r"arm 'bad', seed 1 failed: Unpicklable\('boom'\)[\s\S]*in _bug"),
        (1, "exit", TrialError, r"arm 'bad', seed 1 failed: SystemExit"),
        (2, "missing", MissingData, "^arm 'bad', seed 1: put the file here$"),
        (1, "nothing", InvalidInput, "arm 'bad', seed 1: an arm must return a Record, not dict"),
        (1, "unstorable", InvalidInput, "the record of arm 'bad', seed 1 cannot be stored"),
        (1, "objects", InvalidInput, "arm 'bad', seed 1 cannot be stored: array 'a' holds Python objects"),
    ],
)
def test_a_broken_arm_is_named_and_finished_trials_are_kept(path, jobs, how, error, text):
    """The user would not know which of many arms has the bug, or lose hours of work to it."""
    study = make_study({"good": Draw(), "bad": Misbehave(how=how, seconds=0.1 if jobs > 1 else 0)})
    with pytest.raises(error, match=text):
        go(study, path, seeds=2, jobs=jobs)
    keys = {t.key: (t.arm, t.seed) for t in plan(study, task="task", scale="smoke", seeds=2)}
    with Store(path) as store:
        kept = {keys[key] for key in store.keys(keys)}
    assert {("good", 0), ("bad", 0), ("good", 1)} == kept


def test_a_dead_worker_is_one_clear_error_and_the_run_resumes(path):
    """Out of memory, the user would see a hundred lines of the pool's traceback."""
    study = make_study({"good": Draw(), "dies": Misbehave(how="die", seconds=0.1)})
    with pytest.raises(AssayError, match=r"a worker process died.*fewer jobs than 2.*are kept"):
        go(study, path, jobs=2)
    mended = make_study({"good": Draw(), "dies": Misbehave(how="die", seeds=())})
    assert go(mended, path, jobs=2).resumed == 3


def test_an_interrupted_run_resumes(path, tmp_path):
    """Ctrl-C would cost the finished trials."""
    log = str(tmp_path / "log")
    study = make_study({"a": Draw(log=log), "b": Misbehave(how="interrupt")})
    with pytest.raises(KeyboardInterrupt):
        go(study, path)
    mended = make_study({"a": Draw(log=log), "b": Misbehave(how="interrupt", seeds=())})
    assert go(mended, path).resumed == 3
    assert len(lines(Path(log))) == 2


def test_an_arm_that_workers_cannot_import_is_one_clear_error(path):
    """The user would see the pool's internals."""

    class Local(Draw):
        def __reduce__(self):
            return (exec, ("raise ImportError('no module named mine')",))

    with pytest.raises(InvalidInput, match="cannot be sent to a worker"):
        go(make_study({"a": Local()}), path, jobs=2)


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"jobs": 0}, "jobs must be"),
        ({"jobs": -1}, "jobs must be"),
        ({"jobs": 1.5}, "jobs must be"),
        ({"jobs": 10_000}, "10000 jobs of 1 threads each need 10000 cores, but"),
        ({"seeds": 0}, "seeds must be"),
        ({"backend": "slurm"}, "unknown backend 'slurm'; choose one of loky, dask, ray"),
    ],
)
def test_unusable_options_are_refused_before_anything_is_made(path, options, text):
    """A typing error would leave an empty store or show a traceback."""
    with pytest.raises(InvalidInput, match=text):
        go(make_study({"a": Draw()}), path, **options)
    assert not path.exists()


def test_threads_and_time_limits_are_checked_too(path):
    """Jobs times threads would exceed the cores, or every trial end at once."""
    with pytest.raises(InvalidInput, match="takes 10000 threads"):
        go(make_study({"a": Draw()}, threads=10_000), path, jobs=None)
    with pytest.raises(InvalidInput, match="time_limit"):
        go(make_study({"a": Draw()}, time_limit=0.0), path)
    assert not path.exists()


def test_a_run_on_a_broken_store_says_so(path):
    """Trials would be computed that cannot be kept."""
    path.write_text("no store")
    with pytest.raises(StoreError, match="is not an Assay store"):
        go(make_study({"a": Draw()}), path)


def test_progress_reports_every_trial_once(path):
    """The progress bar would stop short or run over."""
    study = make_study({"a": Tuned(grid=(0.1, 0.2)), "b": Draw()})
    go(make_study({"b": Draw()}), path, seeds=1)
    events = []
    result = go(study, path, jobs=2, progress=lambda *event: events.append(event))
    assert [done for done, _, _ in events] == list(range(1, 7))
    assert {total for _, total, _ in events} == {6}
    assert {t.key for _, _, t in events} == {t.key for t, _ in result.trials}
    events.clear()
    go(study, path, progress=lambda *event: events.append(event))
    assert len(events) == 6


def test_tuning_chooses_on_validation_scores_of_its_own_seeds(path, tmp_path):
    """An arm would be tuned on test data, on the comparison's seeds, or with a budget of its own."""
    log = tmp_path / "log"
    arm = Tuned(grid=(0.1, 0.25, 0.9), log=str(log))
    result = go(make_study({"a": arm, "b": Draw(1.0)}, tune_seeds=2), path)
    assert dict(result.chosen) == {"a": {"shift": 0.25}}
    stages = [(t.stage, t.arm, t.seed) for t, _ in result.trials]
    assert stages[:6] == [("tune", "a", 10_000), ("tune", "a", 10_001)] * 3
    assert sorted(stages[6:]) == [("final", arm, seed) for arm in "ab" for seed in (0, 1)]
    assert [line for line in lines(log) if not line.startswith("tune")] == ["0.25 0", "0.25 1"]
    assert set(result.records) == {"a", "b"}
    final = next(t for t, _ in result.trials if t.stage == "final" and t.arm == "a")
    assert final.description == {"arm": "tuned", "shift": 0.25, "grid": []}
    assert go(make_study({"a": arm, "b": Draw(1.0)}, tune_seeds=2), path).resumed == 10


@pytest.mark.parametrize(
    ("grid", "diverges", "chosen"),
    [
        ((0.25, 0.75), (), 0.25),
        ((0.75, 0.25), (), 0.75),
        ((8.0, 0.9), (), 0.9),
        ((0.5, 0.9), (0.5,), 0.9),
        ((0.5, 0.9), (0.5, 0.9), 0.5),
    ],
)
def test_ties_go_to_the_first_and_divergence_is_worst(path, grid, diverges, chosen):
    """The choice would depend on chance, or fall on a setting that diverges."""
    arm = Tuned(grid=grid, diverges=diverges, best=0.5)
    assert go(make_study({"a": arm}), path, seeds=1).chosen["a"]["shift"] == chosen


def test_a_candidate_without_a_score_is_refused(path):
    """The first candidate would win silently."""
    with pytest.raises(InvalidInput, match=r"validation_score.*it has other"):
        go(make_study({"a": Tuned(grid=(7.0,))}), path)


def test_the_store_alone_tells_what_was_run(path):
    """`assay report` could not build a page from a store."""
    study = make_study({"a": Tuned(grid=(0.1, 0.2)), "b": Draw(1.0)}, sources={"shift": "section 2"})
    result = go(study, path)
    with Store(path, create=False) as store:
        (found,) = store.studies()
        trials = store.trials(t["key"] for t in found.plan["trials"])
    assert (found.id, found.scale, found.verdict) == ("task", "smoke", None)
    assert found.plan["claim"] == "A claim."
    assert found.plan["chosen"] == {"a": {"shift": 0.2}}
    assert found.plan["arms"]["b"]["hyperparameters"][1] == {"name": "shift", "value": 1.0, "source": "section 2"}
    assert {key: outcome(s.record) for key, s in trials.items()} == {
        trial.key: outcome(record) for trial, record in result.trials
    }
    assert all(s.environment["python"] for s in trials.values())


def test_a_worker_that_does_not_see_the_store_hands_the_trial_back(path, tmp_path):
    """On a cluster of several machines every record would be lost, or land in another file."""
    (trial,) = plan(make_study({"a": Draw()}), task="task", scale="smoke", seeds=1)
    with Store(path) as store, Store(tmp_path / "other.sqlite") as other:
        for place, name in [(tmp_path / "none.sqlite", store.id), (other.path, store.id)]:
            stored = run_trial(trial, Order(place, name, None, 1))
            assert stored is not None
            assert stored.trial.call is None
            assert stored.record.status == "done"
        assert not (tmp_path / "none.sqlite").exists()
        assert other.count() == store.count() == 0
        assert run_trial(trial, Order(path, store.id, None, 1)) is None
        assert store.count() == 1


def test_a_trial_that_another_run_has_finished_is_skipped(path, tmp_path):
    """Two runs side by side would do everything twice."""
    log = tmp_path / "log"
    (trial,) = plan(make_study({"a": Draw(log=str(log))}), task="task", scale="smoke", seeds=1)
    with Store(path) as store:
        for _ in range(2):
            run_trial(trial, Order(path, store.id, None, 1))
    assert len(lines(log)) == 1


def test_a_run_killed_ten_times_equals_an_uninterrupted_one(tmp_path):
    """`kill -9` would lose or double trials, or change the verdict."""
    moments = random.Random(0)
    killed, whole, log = tmp_path / "killed.sqlite", tmp_path / "whole.sqlite", tmp_path / "log"
    kills = 0
    for i in range(10):
        # Half of the kills wait for some progress, the others come at any time from the start on.
        new = moments.randrange(1, 4) if i % 2 else 0
        kills += _run_and_kill(killed, log, count(killed) + new, moments.uniform(0, 0.5 if new == 0 else 0.05))
    assert kills == 10
    stopped_at = count(killed)
    assert 5 <= stopped_at < 60
    final = json.loads(_subprocess(killed, log).communicate(timeout=60)[0])
    fresh = json.loads(_subprocess(whole, tmp_path / "other log").communicate(timeout=60)[0])
    assert final["resumed"] >= stopped_at
    assert fresh["resumed"] == 0
    assert final["outcomes"] == fresh["outcomes"]
    assert final["verdict"] == fresh["verdict"]
    assert count(killed) == count(whole) == len(final["outcomes"]) == 60
    assert set(lines(log)) == set(lines(tmp_path / "other log"))
    # At most the two trials that were under way at each kill ran twice.
    assert len(lines(log)) <= 60 + 2 * 10


def count(path):
    """Return how many trials a store has, also while a run writes to it."""
    if not path.exists():
        return 0
    connection = sqlite3.connect(path, timeout=30)
    try:
        return connection.execute("SELECT count(*) FROM trials").fetchone()[0]
    except sqlite3.OperationalError:
        return 0
    finally:
        connection.close()


def _subprocess(store, log):
    command = [sys.executable, str(HERE / "run_small_study.py"), str(store), str(log)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)


def _run_and_kill(store, log, progress, delay):
    """Kill a run and its workers once the store has some trials and a delay has passed; say whether it still ran."""
    process = _subprocess(store, log)
    stop = time.monotonic() + 30
    while count(store) < progress and time.monotonic() < stop:
        time.sleep(0.02)
    time.sleep(delay)
    alive = process.poll() is None
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return alive
