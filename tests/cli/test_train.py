"""`assay train`: any combination, a user's own objects, and the matrix of rules, losses and probes on digits."""

from __future__ import annotations

import json

import pytest

from assay.testing._rule_settings import SETTINGS

SMALL = ("--epochs", "1", "--seeds", "2", "--jobs", "1", "--json")
RULES = ("backprop", "mono-forward", "cascaded-forward", "forward-forward")
LOSSES = ("cross-entropy", "cross-entropy(label_smoothing=0.1)", "focal", "stable-max-cross-entropy", "rescaled-mse")
PROBES = ("neural-collapse", "softmax-collapse")


def test_arms_are_compared_with_intervals(assay):
    """Two rules make two arms, each with mean, interval and n of every metric."""
    called = assay("train", "--model", "mlp(width=16)", "--rule", "backprop", "--rule", "mono-forward", *SMALL)
    arms = {row["arm"]: row["metrics"] for row in json.loads(called.out)["arms"]}
    assert set(arms) == {"backprop", "mono-forward"}
    cell = arms["backprop"]["test_accuracy"]
    assert cell["n"] == 2 and cell["interval"][0] <= cell["mean"] <= cell["interval"][1]


def test_a_users_own_model_is_taken(assay, tmp_path, monkeypatch):
    """`--model package.module:MyModel` must import the user's class and train it."""
    (tmp_path / "mine.py").write_text(
        "from torch import nn\n"
        "class Net(nn.Sequential):\n"
        "    def __init__(self, width=8):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 10))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    called = assay("train", "--model", "mine:Net(width=4)", *SMALL)
    assert called.code == 0, called.err
    assert json.loads(called.out)["trials"] == 2


def test_the_table_and_the_page_are_made(assay, tmp_path):
    """Without --json a table is printed and a page is written, with the command that repeats the run."""
    called = assay("train", "--model", "mlp(width=8)", "--epochs", "1", "--seeds", "2", "--jobs", "1")
    assert called.code == 0 and "test_accuracy" in called.out
    assert (tmp_path / "report" / "index.html").exists()


@pytest.mark.parametrize("rule", RULES)
def test_every_probe_works_under_every_rule_and_loss(assay, rule):
    """The matrix on digits: what a rule can train with a loss, every probe can measure."""
    losses = [] if rule == "forward-forward" else [word for loss in LOSSES for word in ("--loss", loss)]
    probes = [word for probe in PROBES for word in ("--probe", probe)]
    called = assay("train", "--model", "mlp(width=16)", "--rule", rule, *losses, *probes, *SMALL)
    assert called.code == 0, called.err
    arms = json.loads(called.out)["arms"]
    assert len(arms) == (len(LOSSES) if losses else 1)
    for arm in arms:
        assert {"nc1", "nc2_equinorm", "nc4", "softmax_collapse", "test_accuracy"} <= set(arm["metrics"])
        assert arm["metrics"]["nc1"]["mean"] is not None


@pytest.mark.parametrize("rule", SETTINGS)
def test_every_rule_trains_with_probes(assay, rule):
    """A rule with phases, of whole data or with a model of its own would need more than its name."""
    tiny = ("--data", "digits(train=64, validation=32, test=32)", "--batch-size", "32", "--epochs", "4")
    probes = ("--probe", "neural-collapse", "--probe", "knn-accuracy", "--probe", "weight-movement")
    called = assay("train", "--model", SETTINGS[rule], "--rule", rule, *tiny, *probes, *SMALL[2:])
    assert called.code == 0, called.err
    (arm,) = json.loads(called.out)["arms"]
    assert arm["status"] == ["done", "done"]
    assert {"nc1", "nc4", "knn_accuracy", "weight_movement", "test_accuracy"} <= set(arm["metrics"])
    assert all(arm["metrics"][name]["n"] == 2 for name in ("knn_accuracy", "weight_movement", "test_accuracy"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--rule", "forward-forward", "--model", "cnn(channels=(4,))"), "needs blocks of Linear - ReLU"),
        (("--rule", "mono-forward", "--model", "mlp(depth=0)"), "no blocks to train"),
        (("--rule", "forward-forward", "--data", "wine", "--model", "mlp(depth=0)"), "no blocks to train"),
        (("--rule", "mono-forward", "--data", "diabetes"), "needs class labels"),
        (("--rule", "mono-forward", "--loss", "mse-loss(reduction='none')"), "the loss MSELoss"),
        (("--rule", "backprop", "--model", "physical-network(width=8)"), "no gradient crosses a physical system"),
        (("--rule", "mono-forward(schedule='sequential')", "--model", "mlp(depth=9)"), "9 phases"),
    ],
)
def test_what_a_rule_cannot_train_is_said_before_any_training(assay, tmp_path, arguments, message):
    """The other arms would be trained first, for nothing, or the reason would hide in a traceback."""
    called = assay("train", "--rule", "backprop", *arguments, *SMALL)
    assert called.code == 2 and message in called.err, called.err
    assert len(called.err.strip().splitlines()) == 1
    assert not (tmp_path / "store.sqlite").exists()


def test_a_rule_with_its_own_loss_refuses_another(assay):
    """Forward-Forward can't use a loss; saying nothing would compare it with the wrong thing."""
    called = assay("train", "--rule", "forward-forward", "--loss", "focal", *SMALL)
    assert called.code == 2 and "own loss" in called.err


def test_a_budget_becomes_a_schedule_before_the_run(assay):
    """The clock decides while training runs, so that two runs of one command differ for no reason one could read."""
    called = assay("train", "--model", "mlp(width=16)", "--probe", "neural-collapse", "--max-overhead", "1e6", *SMALL)
    assert called.code == 0 and "neural-collapse every 1" in called.err, called.err
    assert json.loads(called.out)["arms"][0]["metrics"]["nc1"]["n"]
    assert assay("train", "--max-overhead", "0.1", *SMALL).code == 2
    refused = assay("train", "--probe", "neural-collapse", "--max-overhead", "0", *SMALL)
    assert refused.code == 2 and "above 0" in refused.err
