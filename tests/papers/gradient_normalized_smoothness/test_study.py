"""What the study of gradient-normalized-smoothness adds of its own: problems, the loop's accounts, and fair arms."""

from __future__ import annotations

import pytest
import torch

from assay.errors import InvalidInput
from assay.lab.record import Record
from assay.lab.tuned_call import TunedCall
from assay.optim.curvature import LowRank
from assay.papers.gradient_normalized_smoothness.problems import build
from assay.papers.gradient_normalized_smoothness.study import PASSES, minimise, study
from assay.streams import Streams

STREAMS = Streams("test", 0)


def _minimise(problem: str, size: int, method: str, steps: int = 10**6, passes: int = 10**6, **more: object) -> Record:
    return minimise(STREAMS, problem, size, method, steps, passes, **{"target": 1e-8, **more})  # type: ignore[arg-type]


def test_minimum_of_logsumexp_is_at_zero() -> None:
    """The gap would be measured from another value than the minimum."""
    task = build(STREAMS, "logsumexp", 8)
    (x,) = task.params
    with torch.no_grad():
        x.zero_()
    loss = task.loss()
    (g,) = torch.autograd.grad(loss, x)
    assert task.minimum is not None and abs(loss.item() - task.minimum) < 1e-13 and g.norm() < 1e-13


def test_weighted_gauss_newton_lacks_the_rank_one_term_alone() -> None:
    """The arm with the approximate matrix would use another one than the paper's."""
    task = build(STREAMS, "logsumexp", 5)
    (x,) = task.params
    (g,) = torch.autograd.grad(task.loss(), x, create_graph=True)
    exact = torch.stack([torch.autograd.grad(g[i], x, retain_graph=True)[0] for i in range(5)])
    found = task.curvatures["gauss-newton"]([x])  # type: ignore[operator]
    assert isinstance(found, LowRank)
    torch.testing.assert_close(found.dense() - torch.outer(g, g).detach(), exact)


def test_logistic_start_is_zero_and_its_minimum_a_minimum() -> None:
    """The arms would start where Newton's method ended, or at a gap that is none."""
    task = build(STREAMS, "logistic", 100)
    (w,) = task.params
    assert not w.any() and task.loss().item() == pytest.approx(0.6931471805599453)
    assert task.minimum is not None and 0 < task.minimum < 0.1


def test_second_order_steps_reach_the_target_and_are_charged_for_matrices() -> None:
    """The loop would stop early, or forget what matrices cost."""
    metrics = _minimise("logsumexp", 10, "exact").metrics
    assert metrics["reached"] == 1 and metrics["log10_gap"] <= -8
    assert metrics["passes"] >= 11 * (metrics["steps_to_target"] - 1)


@pytest.mark.parametrize("method", ["fisher", "adamw", "gradient-descent", "sgd"])
def test_passes_are_spent_and_not_exceeded_by_more_than_a_step(method: str) -> None:
    """An arm would get more gradients than another."""
    metrics = _minimise("logistic", 100, method, passes=25, target=1e-30, rate=0.1).metrics
    assert metrics["reached"] == 0 and 25 <= metrics["passes"] < 25 + 52


def test_tuning_prefers_the_target_reached_sooner() -> None:
    """Among rates that reach the target, chance in the last step's overshoot would choose."""
    scores = [
        _minimise("sampled", 4, "exact", passes=passes, rate=rate, validation_only=True).metrics["validation_score"]
        for passes, rate in ((200, 1.0), (200, 1e-3), (10, 1.0))
    ]
    assert 9 > scores[0] > scores[1] > 8 > scores[2]


def test_steps_are_limited() -> None:
    """An arm would get more steps than another."""
    metrics = _minimise("chebyshev", 3, "zero", steps=5).metrics
    assert metrics["steps_to_target"] == 5 and metrics["reached"] == 0


def test_unknown_names_are_refused() -> None:
    """A typing error would run another arm."""
    with pytest.raises(InvalidInput, match="problem must be"):
        _minimise("rosenbrock", 3, "exact")
    with pytest.raises(InvalidInput, match="method must be"):
        _minimise("chebyshev", 3, "fisher")


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_that_compete_have_equal_budgets_and_grids(scale: str) -> None:
    """An optimizer would win by more gradients or more tuning."""
    made = study(scale)
    assert not made.unsourced()
    for problem in ("logistic", "mlp"):
        arms = [arm for name, arm in made.arms.items() if name.startswith(problem)]
        assert all(isinstance(arm, TunedCall) for arm in arms)
        assert {arm.arguments["passes"] for arm in arms} == {PASSES[scale][problem]}  # type: ignore[attr-defined]
        assert len({len(arm.tune["rate"]) for arm in arms}) == 1  # type: ignore[attr-defined]
