"""What the study of tpsgd adds of its own: arms that differ in the rule alone, the greedy order's schedule."""

from __future__ import annotations

from dataclasses import replace

import pytest

from assay.names import resolve
from assay.papers.tpsgd.study import NETWORKS, study
from assay.rules import TargetProjection


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_on_one_network_differ_in_the_rule_alone(scale):
    """A rule would get other data, passes, optimizer or candidates than backpropagation."""
    arms = study(scale).arms
    for network in NETWORKS[scale]:
        own = {name: arm for name, arm in arms.items() if name.rpartition("/")[0] == network}
        plain = own[f"{network}/backprop"]
        assert len(own) >= 5
        assert all(replace(arm, rule=plain.rule, schedule=plain.schedule) == plain for arm in own.values())


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_the_rate_falls_to_zero_once_per_phase(scale):
    """The greedy order's rate would be 0 before its phase ends, or not fall: its share of the passes is another."""
    arms = study(scale).arms
    for network, (data, model, epochs) in NETWORKS[scale].items():
        built = resolve("models", model)((1, 8, 8), 10)
        phases = len(TargetProjection(built, 10, order="greedy").phase_names)
        assert epochs % phases == 0, f"{data}: the phases' shares are no whole epochs"
        assert arms[f"{network}/target-projection-greedy"].schedule == f"cosine-annealing(T_max={epochs // phases})"
        assert arms[f"{network}/target-projection"].schedule == f"cosine-annealing(T_max={epochs})"
