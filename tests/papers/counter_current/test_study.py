"""What the study of counter-current adds of its own: arms that differ in the rule alone."""

from __future__ import annotations

from dataclasses import replace

import pytest

from assay.names import resolve
from assay.papers.counter_current.study import DATA, RULES, study
from assay.rules import CounterCurrent


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_on_one_data_set_differ_in_the_rule_alone(scale):
    """A rule would get other data, passes, checkpoint, optimizer or candidates than backpropagation."""
    arms = study(scale).arms
    assert len(arms) == len(DATA[scale]) * len(RULES)
    for name, arm in arms.items():
        plain = arms[f"{name.partition('/')[0]}/backprop"]
        assert replace(arm, rule=plain.rule, tune=plain.tune) == plain
        assert scale == "smoke" or len(arm.tune["optimizer.lr"]) == 6
    assert scale == "smoke" or 1.0 in arms["mnist/counter-current"].tune["optimizer.lr"], "the official rate is missing"


def test_the_frozen_arm_freezes_the_feedback_and_nothing_else():
    """The mechanism's control would train its feedback, or differ in the rule's other settings."""
    arms = study("desk").arms
    trained, frozen = (
        resolve("rules", arms[f"mnist/{name}"].rule)(
            resolve("models", arms["mnist/backprop"].model)((1, 14, 14), 10), 10
        )
        for name in ("counter-current", "frozen-feedback")
    )
    assert isinstance(trained, CounterCurrent) and len(trained.groups()) == 2 and len(frozen.groups()) == 1
    same = ("match", "weight", "clip", "skip_above", "num_classes")
    assert all(getattr(trained, name) == getattr(frozen, name) for name in same)
    assert (trained.match, trained.weight, trained.clip) == ("prototype", 0.5, 1.0)
