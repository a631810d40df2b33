"""What the study of gradient-normalized-smoothness adds of its own: problems, the loop's accounts, and fair arms."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

from assay.errors import InvalidInput
from assay.lab.record import Record
from assay.lab.tuned_call import TunedCall
from assay.optim.armijo import ArmijoDescent
from assay.optim.curvature import LowRank
from assay.optim.gradient_normalized_newton import GradientNormalizedNewton
from assay.papers.gradient_normalized_smoothness.problems import Problem, build
from assay.papers.gradient_normalized_smoothness.study import FAR, PASSES, minimise, study
from assay.streams import Streams

STREAMS = Streams("test", 0)


def _minimise(problem: str, size: int, method: str, steps: int = 10**6, passes: int = 10**6, **more: object) -> Record:
    options = {"target": 1e-8, "rate": 1.0, **more}
    return minimise(STREAMS, problem, size, method, steps, passes, **options)  # type: ignore[arg-type]


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


def test_logsumexp_in_its_metric_is_the_same_problem_in_other_coordinates() -> None:
    """Gradient descent would run in another metric than A^T A, in which the other arms measure their steps."""
    plain, moved = build(STREAMS, "logsumexp", 8), build(STREAMS, "logsumexp-in-metric", 8)
    assert plain.metric is not None and moved.metric is not None
    torch.testing.assert_close(moved.metric, torch.eye(8, dtype=torch.float64))
    (x,), (z,) = plain.params, moved.params
    assert moved.loss().item() == pytest.approx(plain.loss().item(), rel=1e-12)
    (g,), (h,) = torch.autograd.grad(plain.loss(), x), torch.autograd.grad(moved.loss(), z)
    torch.testing.assert_close(h @ h, g @ torch.linalg.solve(plain.metric, g))
    assert moved.minimum == pytest.approx(plain.minimum, rel=1e-12)


def test_system_of_power_four_is_the_square_of_that_of_power_two() -> None:
    """The arm would minimise another power of the residuals than its name says."""
    square, fourth = (build(STREAMS, name, 4).loss().item() for name in ("chebyshev", "chebyshev-4"))
    assert fourth == pytest.approx((2 * square) ** 2 / 4)  # r^4 / 4 with r^2 / 2


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


@pytest.mark.parametrize("method", ["exact", "gradient-descent", "sgd"])
def test_passes_end_where_the_loss_meets_the_target(method: str) -> None:
    """An arm would be charged for a step that it takes from a point that is good enough: a whole Hessian, if exact."""
    found, task, evaluations = _minimise("logistic", 100, method, rate=3.0, target=0.02).metrics, *_start()
    assert task.minimum is not None
    optimizers = {
        "exact": lambda: GradientNormalizedNewton(task.params, task.curvatures["exact"], gamma0=3.0),
        "gradient-descent": lambda: ArmijoDescent(task.params, lr=3.0),
        "sgd": lambda: torch.optim.SGD(task.params, lr=3.0, momentum=0.9),
    }
    optimizer, steps = optimizers[method](), 0

    def closure() -> Tensor:
        evaluations.append(1)
        loss = task.loss()
        if method != "exact":
            optimizer.zero_grad()
            loss.backward()
        return loss

    while task.loss().item() - task.minimum > 0.02:
        optimizer.step(closure)  # type: ignore[arg-type]
        steps += 1
    matrices = steps * len(task.params[0]) if method == "exact" else 0
    assert found["reached"] == 1 and found["steps_to_target"] == steps > 2
    assert found["passes"] == len(evaluations) + matrices


def _start() -> tuple[Problem, list[int]]:
    """Return a regression, and an empty list of evaluations."""
    return build(STREAMS, "logistic", 100), []


@pytest.mark.parametrize("problem", ["logsumexp", "chebyshev", "sampled"])
def test_the_bound_of_armijos_rule_does_not_bind_where_it_is_not_tuned(problem: str) -> None:
    """Gradient descent would be held back by a largest step far below official code's, 1e5."""
    rates = {arm.arguments["rate"] for name, arm in study("desk").arms.items() if name == f"{problem}/gradient-descent"}  # type: ignore[attr-defined]
    assert rates == {FAR}
    ends = [_minimise(problem, 5, "gradient-descent", steps=40, target=1e-12, rate=rate) for rate in (FAR, 2 * FAR)]
    assert ends[0].metrics["log10_gap"] == ends[1].metrics["log10_gap"]
    assert ends[0].metrics["passes"] == ends[1].metrics["passes"] - 1  # one more halving, in the first step


def test_one_step_of_l_bfgs_is_one_iteration_with_a_whole_line_search() -> None:
    """It would take the first trial of every step, and stall where scipy's reaches the minimum."""
    metrics = _minimise("chebyshev", 3, "l-bfgs", steps=300, target=1e-12).metrics
    (x,) = (task := build(STREAMS, "chebyshev", 3)).params

    def value(point: np.ndarray) -> tuple[float, np.ndarray]:
        with torch.no_grad():
            x.copy_(torch.from_numpy(point))
        loss = task.loss()
        return loss.item(), torch.autograd.grad(loss, x)[0].numpy().copy()

    start = x.detach().numpy().copy()
    options = {"maxcor": 100, "ftol": 0.0, "gtol": 1e-9}
    iterations = scipy.optimize.minimize(value, start, jac=True, method="L-BFGS-B", options=options).nit
    assert metrics["reached"] == 1 and metrics["steps_to_target"] < 1.5 * iterations
    assert metrics["passes"] > 2 * metrics["steps_to_target"]


@pytest.mark.parametrize("method", ["fisher", "adamw", "gradient-descent", "l-bfgs", "sgd"])
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
