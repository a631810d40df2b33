"""The comparison of learning rules: equal tuning and budgets, and plots that show what was recorded."""

from __future__ import annotations

import pytest

from assay.comparisons.learning_rules.figures import figures
from assay.comparisons.learning_rules.study import METHODS, study


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_arms_of_a_task_share_data_and_budget(scale):
    """A rule would win by longer training, more candidates or other images."""
    arms = study(scale).arms
    for task in {name.rpartition("/")[0] for name in arms}:
        of_task = [arm for name, arm in arms.items() if name.rpartition("/")[0] == task]
        assert len({(arm.data, arm.epochs, arm.batch_size, arm.checkpoint) for arm in of_task}) == 1
        assert {len(arm.tuning()) for arm in of_task} == {4}


def test_controls_and_every_rule_are_there():
    """The comparison would leave out what the papers leave out."""
    kinds = [method.kind for method in METHODS.values()]
    assert kinds.count("backprop") == 2 and kinds.count("control") == 1
    names = {method.rule.partition("(")[0] for method in METHODS.values()}
    from assay import rules

    public = {name for name in rules.__all__ if name[0].isupper()} - {"Rule", "Phase", "Blocks"}
    kebab = {"".join(f"-{c.lower()}" if c.isupper() else c for c in name).strip("-") for name in public}
    kebab = {"noprop" if name == "no-prop" else name for name in kebab}
    assert kebab <= names, f"the comparison lacks {sorted(kebab - names)}"


def test_plots_show_the_recorded_means():
    """A line would be another method's, or memory not relative to backpropagation's."""
    trials = [
        {
            "arm": f"mnist/depth-{depth}/{method}",
            "seed": seed,
            "status": "done",
            "metrics": {"test_accuracy": 0.9 - 0.01 * depth * penalty + 0.001 * seed},
            "resources": {"saved_bytes": 100.0 * depth * factor, "cpu_seconds": 1.0 + factor},
            "series": {},
        }
        for depth in (1, 2, 4, 8)
        for method, penalty, factor in (("backprop-adam", 0, 1.0), ("mono-forward", 1, 0.25))
        for seed in (0, 1)
    ]
    drawn = figures(trials)
    assert set(drawn) == {"accuracy", "depth", "memory", "cost"}
    reference, mono = drawn["memory"].axes[0].lines[:2]
    assert [*reference.get_ydata()] == [1.0] * 4 and [*mono.get_ydata()] == [0.25] * 4
    assert drawn["depth"].axes[0].lines[1].get_ydata()[-1] == pytest.approx(0.8205)
    assert sum(panel.get_visible() for panel in drawn["accuracy"].axes) == 4
