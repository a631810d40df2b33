"""What the study of LAMB adds of its own: the schedule, the rate that is carried over, and equal tuning."""

from __future__ import annotations

import pytest

from assay.papers.lamb import training
from assay.papers.lamb.study import RATES, study
from assay.papers.lamb.training import schedule, train
from assay.streams import Streams

TINY = {
    "data": "digits(train=60, validation=20, test=40)",
    "model": "mlp(width=8, depth=1)",
    "weight_decay": 0.01,
    "epochs": 2,
    "base_batch": 10,
    "batch_sizes": (10, 40),
    "lr": 0.01,
}


@pytest.mark.parametrize("steps", [1, 2, 16, 100])
def test_the_schedule_rises_for_a_tenth_and_falls_to_nothing(steps):
    """The large batch's few steps would start at the full rate, never reach it, or stop learning before the end."""
    rates = [schedule(step, steps) for step in range(steps)]
    top = rates.index(max(rates))
    assert max(rates) <= 1
    assert rates[:top] == sorted(rates[:top])
    assert rates[top:] == sorted(rates[top:], reverse=True)
    assert all(rate > 0 for rate in rates)
    if steps == 100:
        assert rates[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
        assert rates[10] == 1
        assert rates[-1] == pytest.approx(1 / 90)


def test_rates_are_carried_over_and_test_data_left_alone_while_tuning(monkeypatch):
    """The large batch would get the small one's rate, the tuning a look at the large batch, or biases weight decay."""
    made = []
    actual = training._optimizer

    def listening(network, name, lr, weight_decay):
        optimizer = actual(network, name, lr, weight_decay)
        made.append((lr, [(g["weight_decay"], {p.ndim for p in g["params"]}) for g in optimizer.param_groups]))
        return optimizer

    monkeypatch.setattr(training, "_optimizer", listening)
    record = train(Streams("t", 0), optimizer="lamb", **TINY)
    assert [lr for lr, _ in made] == pytest.approx([0.01, 0.02])  # 4 times the batch, twice the rate
    assert made[0][1] == [(0.01, {2}), (0.0, {1})]
    assert record.metrics["test_accuracy"] == record.metrics["accuracy_40"]
    assert record.metrics["degradation"] == record.metrics["accuracy_10"] - record.metrics["accuracy_40"]
    assert record.resources["steps"] == 4
    made.clear()
    tuning = train(Streams("t", 0), optimizer="lamb", **TINY, validation_only=True)
    assert list(tuning.metrics) == ["validation_score"]
    assert [lr for lr, _ in made] == [0.01]


def test_a_diverged_network_is_tested_as_it_is():
    """A rate that is too large would end the trial, or train on with numbers that are none."""
    record = train(Streams("t", 0), optimizer="sgd", **{**TINY, "lr": 1e30})
    assert record.metrics["diverged"] == 2
    assert 0 <= record.metrics["test_accuracy"] <= 0.3


def test_text_is_scored_by_character():
    """Tokens would be compared by window."""
    text = {
        "data": "stdlib-text(context=4, train=20, validation=10, test=10)",
        "model": "transformer-lm(width=8, depth=1)",
    }
    found = train(Streams("t", 0), optimizer="lars", **{**TINY, **text}).metrics["test_accuracy"]
    assert found * 40 == pytest.approx(round(found * 40))


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_all_optimizers_are_tuned_alike(scale):
    """An optimizer would have more candidates, another task, or a hyper-parameter without a source."""
    made = study(scale)
    assert len({len(arm.tuning()) for arm in made.arms.values()}) == 1
    for name in ("mnist", "text"):
        for way in ("transfer", "retuned"):
            settings = [dict(made.arms[f"{name}/{o}/{way}"].arguments) for o in RATES]
            assert len({str({**s, "optimizer": "", "lr": 0}) for s in settings}) == 1
    assert made.unsourced() == []


def test_both_tasks_put_both_ways_to_the_test():
    """Where LAMB comes out below, tuned anew, it would be shown without a verdict."""
    statements = {e.text for e in study("desk").expects}
    for way in ("transfer", "retuned"):
        for task in ("mnist", "text"):
            assert f"test_accuracy: {task}/lamb/{way} > {task}/adamw/{way}" in statements


def test_the_copies_start_from_the_same_weights():
    """Arms and batch sizes would differ by their start."""
    sums = []
    for lr in (0.0, 0.0):
        record = train(Streams("t", 0), optimizer="lamb", **{**TINY, "lr": lr})
        sums.append((record.metrics["accuracy_10"], record.metrics["accuracy_40"]))
    assert len(set(sums)) == 1
    assert sums[0][0] == sums[0][1], "with rate 0 both batch sizes keep the start"
