"""Results: what evidence, reports and programs get is a function of the store."""

from __future__ import annotations

import json

import pytest

from assay.errors import StoreError
from assay.lab.expectations import greater
from assay.lab.experiment import Experiment
from assay.lab.results import find_study, outcome_row, result, strict_json
from assay.lab.run import run
from assay.lab.store import Store
from assay.lab.study import Study

BASE = Experiment(data="digits", model="mlp(width=8, depth=1)", optimizer="sgd(lr=0.1)", epochs=1, loss="cross-entropy")
STUDY = Study(
    claim="A rate of 0.1 beats none.",
    arms={
        "tuned": BASE.but(tune={"optimizer.lr": (0.1, 1e-9)}),
        "still": BASE.but(tune={"optimizer.lr": (1e-9, 1e-8)}),
    },
    expects=[greater("test_accuracy", "tuned", "still")],
    sources={"optimizer.lr": "tuned", "optimizer": "Section 1"},
    seeds=2,
)


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Return a store with one finished study."""
    path = tmp_path_factory.mktemp("results") / "store.sqlite"
    run(STUDY, task="demo", scale="smoke", seeds=2, store=path, jobs=1)
    with Store(path) as opened:
        yield opened


def test_a_result_holds_the_tuned_setting_and_its_grid(store):
    """The table of arms must show what ran, not what was declared, and where it came from."""
    found = result(store, find_study(store, "demo", "smoke"), title="Demo", command="assay run demo")
    arm = found["arms"]["tuned"]
    assert arm["tuned"] == {"optimizer.lr": 0.1}
    rows = {row["name"]: row for row in arm["hyperparameters"]}
    assert rows["optimizer"]["value"] == "sgd(lr=0.1)" and "tuned" in rows["optimizer"]["source"]
    assert rows["tune"]["value"] == {"optimizer.lr": [0.1, 1e-9]}


def test_a_result_has_every_trial_once_and_a_verdict(store):
    """Two arms, two candidates, two seeds: four tuning trials and four final ones; the verdict is kept in the store."""
    found = result(store, find_study(store, "demo", "smoke"), title="Demo", command="assay run demo")
    stages = [trial["stage"] for trial in found["trials"]]
    assert stages.count("tune") == stages.count("final") == 4
    assert found["verdict"]["status"] == "inconclusive"
    assert find_study(store, "demo", "smoke").verdict == found["verdict"]
    assert json.dumps(strict_json(found), allow_nan=False)
    assert set(outcome_row(found["verdict"]["outcomes"][0])) == {"text", "status", "effect", "interval", "n"}


def test_a_study_that_was_not_run_is_named(store):
    """Asking for what is not there must say so."""
    with pytest.raises(StoreError, match="nothing"):
        find_study(store, "nothing", "desk")


def test_strict_json_knows_no_nan():
    """NaN and infinities become null wherever they are."""
    assert strict_json({"a": [float("nan"), (1.0, "inf")], "b": "text"}) == {"a": [None, [1.0, None]], "b": "text"}
