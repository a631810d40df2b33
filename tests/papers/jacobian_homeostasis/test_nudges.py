"""The study of jacobian-homeostasis: equal budgets and tuning, controls, and the arm that measures nudges."""

from __future__ import annotations

import pytest

from assay.papers.jacobian_homeostasis.nudges import nudge_errors
from assay.papers.jacobian_homeostasis.study import study
from assay.streams import Streams


def test_nudges_err_by_the_order_of_their_number() -> None:
    """Slopes would not be N, although the network is analytic."""
    found = nudge_errors(
        Streams("test", 0),
        width=8,
        depth=2,
        gain=0.5,
        damping=0.8,
        epochs=1,
        lr=1e-2,
        batch_size=200,
        steps=60,
        radii=[0.05, 0.1],
        points=[1, 2],
        large=0.5,
    )
    assert found["slope_1"] == pytest.approx(1, abs=0.1) and found["slope_2"] == pytest.approx(2, abs=0.1)
    assert 0.8 < found["cosine_1"] <= 1 and 0.8 < found["cosine_2"] <= 1 and found["residual"] < 1e-4


@pytest.mark.parametrize("scale", ["desk", "paper"])
def test_arms_have_equal_budgets_and_numbers_of_rates(scale: str) -> None:
    """An arm would win by more epochs, more samples or more candidates."""
    arms = {name: arm for name, arm in study(scale).arms.items() if name != "nudges"}
    for data in ("digits", "mnist"):
        own = [arm.describe() for name, arm in arms.items() if name.startswith(data)]
        for field in ("data", "epochs", "batch_size", "schedule"):
            assert len({str(description[field]) for description in own}) == 1
        assert {len(description["tune"]["optimizer.lr"]) for description in own} == {3}
        assert {f"{data}/random-blocks", f"{data}/backprop", f"{data}/recurrent-backprop"} <= set(arms)


def test_arms_that_are_compared_differ_in_their_rule_only() -> None:
    """Homeostasis would be confounded with another network or optimizer."""
    arms = study("desk").arms
    pairs = [("digits/ep", "digits/ep-homeostasis"), ("digits/ep", "digits/recurrent-backprop")]
    for a, b in [*pairs, ("mnist/ep", "mnist/ep-homeostasis"), ("digits/loop", "digits/loop-homeostasis")]:
        first, second = arms[a].describe(), arms[b].describe()
        assert {key for key in first if first[key] != second[key]} == {"rule"}
