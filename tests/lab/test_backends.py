from __future__ import annotations

import sys

import pytest
from lab_arms import Draw, Misbehave, TorchDraw, Tuned, make_study, outcome

from assay.errors import AssayError, InvalidInput, MissingExtra
from assay.lab import backends
from assay.lab.backends import check_jobs, trial_backend
from assay.lab.run import TrialError, run
from assay.lab.store import Store

CLUSTERS = [("dask", "distributed"), ("ray", "ray")]


def go(study, path, backend="loky", **options):
    """Run a study with the tests' usual options."""
    options = {"seeds": 2, "jobs": 2} | options
    return run(study, task="task", scale="smoke", store=path, backend=backend, **options)


def outcomes(result):
    """Return what has to be the same in every run, by trial."""
    return {(t.stage, t.arm, t.seed, t.key): outcome(record) for t, record in result.trials}


def test_jobs_default_to_what_the_cores_allow(monkeypatch):
    """Trials would slow each other down, or cores stand idle."""
    monkeypatch.setattr(backends, "usable_cores", lambda: 8)
    assert [check_jobs("loky", None, threads) for threads in (1, 2, 3, 8)] == [8, 4, 2, 1]
    assert check_jobs("ray", 4, 2) == 4
    with pytest.raises(
        InvalidInput, match="5 jobs of 2 threads each need 10 cores, but 8 are usable here; take at most 4"
    ):
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


@pytest.fixture(scope="module", params=CLUSTERS, ids=lambda names: names[0])
def cluster(request):
    """A cluster of two processes on this machine, which the runs find and leave as it is."""
    backend, module = request.param
    pytest.importorskip(module)
    with trial_backend(backend, 2, 1), pytest.MonkeyPatch.context() as patch:
        if backend == "dask":
            import distributed

            patch.setenv("DASK_SCHEDULER_ADDRESS", distributed.default_client().scheduler.address)
        yield backend


@pytest.mark.cluster
def test_a_cluster_gives_the_records_of_loky(tmp_path, cluster):
    """A verdict would depend on where the trials ran; divergence, timeouts, tuning and progress are checked along."""
    arms = {
        "torch": TorchDraw(0.0),
        "tuned": Tuned(grid=(0.1, 0.2)),
        "diverges": Misbehave(how="diverge"),
        "slow": Misbehave(how="cooperate"),
    }
    study = make_study(arms, time_limit=2.0)
    expected = go(study, tmp_path / "loky.sqlite")
    events = []
    found = go(study, tmp_path / "cluster.sqlite", cluster, progress=lambda *event: events.append(event))
    assert outcomes(found) == outcomes(expected)
    assert found.chosen == expected.chosen
    assert [r.status for r in found.records["slow"].values()] == ["done", "timeout"]
    assert [done for done, _, _ in events] == list(range(1, 11))


@pytest.mark.cluster
def test_errors_in_a_cluster_are_those_of_loky(tmp_path, cluster):
    """The user would see the cluster's internals instead of the arm's name, or wait for ever for a dead worker."""
    for how, error, text in [("bug", TrialError, "'bad', seed 1 failed"), ("die", AssayError, "a worker process died")]:
        path = tmp_path / f"{how}.sqlite"
        with pytest.raises(error, match=text):
            go(make_study({"good": Draw(), "bad": Misbehave(how=how, seconds=0.1)}), path, cluster)
        with Store(path) as store:
            assert store.count() == 3


@pytest.mark.cluster
def test_a_run_ends_the_cluster_that_it_started(tmp_path, monkeypatch):
    """Processes would stay behind after `assay run --backend dask`."""
    distributed = pytest.importorskip("distributed")
    monkeypatch.delenv("DASK_SCHEDULER_ADDRESS", raising=False)
    clusters = []
    original = distributed.LocalCluster.__init__

    def remember(self, *args, **kwargs):
        clusters.append(self)
        original(self, *args, **kwargs)

    monkeypatch.setattr(distributed.LocalCluster, "__init__", remember)
    result = go(make_study({"a": Draw()}), tmp_path / "store.sqlite", "dask")
    assert set(result.records["a"]) == {0, 1}
    assert [cluster.status.name for cluster in clusters] == ["closed"]
