"""The study's training: budgets are equal, constant sizes stay, ramps reach the top."""

from __future__ import annotations

import pytest

from assay.papers.adadagrad.study import study
from assay.papers.adadagrad.training import train
from assay.streams import Streams

ARGUMENTS = {
    "data": "digits(train=200, validation=50, test=100)",
    "model": "mlp(width=8, depth=1)",
    "optimizer": "adagrad",
    "lr": 0.03,
    "passes": 3,
    "batch_size": 8,
    "max_batch_size": 200,
    "subsample": 32,
}


@pytest.mark.parametrize("scheme", ["constant", "ramp", "norm-test(eta=0.5)"])
def test_every_scheme_sees_as_many_samples(scheme):
    """A scheme would win by training longer."""
    record = train(Streams("test", 0), scheme=scheme, **ARGUMENTS)
    assert record.series["batch_size"].steps[-1] == 600
    assert record.metrics["steps"] * record.metrics["mean_batch"] == pytest.approx(600)
    sizes = record.series["batch_size"].values
    if scheme == "constant":
        assert set(sizes) == {8.0} and record.metrics["steps"] == 75
    else:
        assert max(sizes) > 50
    # at most 32 samples of every batch are tested
    share = record.metrics["per_sample_share"]
    assert share == 0 if scheme in ("constant", "ramp") else 0 < share <= sum(min(32, s) for s in sizes) / 600
    assert record.metrics["largest_batch"] == max(sizes)


def test_tuning_looks_at_no_test_data():
    """A rate would be chosen by what it is judged on."""
    record = train(Streams("test", 0), scheme="constant", validation_only=True, **ARGUMENTS)
    assert not any(name.startswith("test") for name in record.metrics)
    assert record.metrics["validation_score"] == record.metrics["validation_accuracy"]


def test_arms_of_a_task_have_equal_budgets_and_candidates():
    """One arm would be tuned better than another."""
    arms = study("desk").arms
    assert {len(arm.tuning()) for arm in arms.values()} == {5}
    for task in ("mnist/mlp", "digits/mlp"):
        assert len({arm.arguments["passes"] for name, arm in arms.items() if name.startswith(task)}) == 1
