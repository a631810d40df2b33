"""What the study of counter-current adds of its own: arms that differ in the rule alone."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

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


@pytest.mark.parametrize("name", ["backprop", "dfa"])
def test_rivals_are_clipped_over_the_whole_network(name):
    """A rival would go without the clipping that the official code gives it too, or be clipped layer by layer."""
    arms = study("desk").arms
    model = resolve("models", arms["mnist/backprop"].model)((1, 14, 14), 10)
    arguments = (model, 10) if name == "dfa" else (model,)
    rule = resolve("rules", arms[f"mnist/{name}"].rule)(*arguments)
    x, y = torch.randn(64, 1, 14, 14, generator=torch.Generator().manual_seed(0)) * 100, torch.arange(64) % 10
    rule.backward(x, y)
    gradients = {n: p.grad.clone() for n, p in model.named_parameters()}
    norm = nn.utils.get_total_norm(gradients.values())
    assert norm > 2
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    rule.step(x, y, torch.optim.SGD(rule.parameters(), lr=0.5))
    for n, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), before[n] - 0.5 * gradients[n] / norm)
