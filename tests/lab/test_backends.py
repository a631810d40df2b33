from __future__ import annotations

import sys

import pytest
from lab_arms import Draw, Misbehave, TorchDraw, Tuned, make_study, outcome

from assay.errors import AssayError, InvalidInput, MissingData, MissingExtra
from assay.lab import backends
from assay.lab.backends import check_jobs, trial_backend
from assay.lab.run import TrialError, run
from assay.lab.store import Store

CLUSTERS = [("dask", "distributed"), ("ray", "ray")]


def go(study, path, backend="loky", **options):
    options = {"seeds": 2, "jobs": 2} | options
    return run(study, task="task", scale="smoke", store=path, backend=backend, **options)


def outcomes(result):
    return {(t.stage, t.arm, t.seed, t.key): outcome(record) for t, record in result.trials}


def test_jobs_default_to_what_the_cores_allow(monkeypatch):
    """Trials would slow each other down, or cores stand idle."""
    monkeypatch.setattr(backends, "usable_cores", lambda: 8)
    assert [check_jobs("loky", None, threads) for threads in (1, 2, 3, 8)] == [8, 4, 2, 1]
    assert check_jobs("ray", 4, 2) == 4
    with pytest.raises(InvalidInput, match="5 jobs of 2 threads each need 10 cores, but 8 are usable here; take at most 4"):
        check_jobs("loky", 5, 2)
    with pytest.raises(InvalidInput, match="takes 9 threads, but 8 cores"):
        check_jobs("loky", None, 9)


def test_a_cluster_elsewhere_has_its_own_cores(monkeypatch):
    """A cluster of 100 cores could not be used from a laptop."""
    monkeypatch.setattr(backends, "usable_cores", lambda: 2)
    monkeypatch.setenv("DASK_SCHEDULER_ADDRESS", "tcp://10.0.0.1:8786")
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    assert check_jobs("dask", 100, 1) == 100
    for other in ("loky", "ray"):
        with pytest.raises(InvalidInput, match="100 jobs"):
            check_jobs(other, 100, 1)


@pytest.mark.parametrize(("backend", "module"), CLUSTERS)
def test_a_missing_extra_is_named(monkeypatch, backend, module):
    """The user would see an ImportError and not know what to install."""
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingExtra, match=rf"pip install 'assay\[{backend}\]'"), trial_backend(backend, 2, 1):
        pass


@pytest.mark.cluster
@pytest.mark.parametrize(("backend", "module"), CLUSTERS)
def test_a_cluster_gives_the_records_of_loky(tmp_path, backend, module):
    """A verdict would depend on where the trials ran; also checks progress, divergence, timeout, errors and deaths."""
    pytest.importorskip(module)
    arms = {
        "torch": TorchDraw(0.0),
        "tuned": Tuned(grid=(0.1, 0.2)),
        "diverges": Misbehave(how="diverge"),
        "slow": Misbehave(how="cooperate"),
    }
    study = make_study(arms, time_limit=2.0)
    expected = go(study, tmp_path / "loky.sqlite")
    events = []
    found = go(study, tmp_path / "cluster.sqlite", backend, progress=lambda *event: events.append(event))
    assert outcomes(found) == outcomes(expected)
    assert found.chosen == expected.chosen
    assert [r.status for r in found.records["slow"].values()] == ["done", "timeout"]
    assert [done for done, _, _ in events] == list(range(1, 11))


@pytest.mark.cluster
@pytest.mark.parametrize(("backend", "module"), CLUSTERS)
def test_errors_in_a_cluster_are_those_of_loky(tmp_path, backend, module):
    """The user would see the cluster's internals instead of the arm's name, or wait for ever for a dead worker."""
    pytest.importorskip(module)
    cases = [("bug", TrialError, "arm 'bad', seed 1 failed"), ("missing", MissingData, "arm 'bad', seed 1: put the file")]
    for how, error, text in [*cases, ("die", AssayError, "a worker process died")]:
        path = tmp_path / f"{how}.sqlite"
        with pytest.raises(error, match=text):
            go(make_study({"good": Draw(), "bad": Misbehave(how=how, seconds=0.1)}), path, backend)
        with Store(path) as store:
            assert store.count() == 3
