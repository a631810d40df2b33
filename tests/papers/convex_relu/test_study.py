"""What the study of convex-relu adds of its own: its problems, its descent, and what its arms measure."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from assay.models.convex_relu import ConvexReLU
from assay.papers.convex_relu.descent import Network, adam, lbfgs
from assay.papers.convex_relu.problems import load_problem
from assay.papers.convex_relu.study import convex, descend, study
from assay.streams import Streams


@pytest.mark.parametrize("loss", ["squared", "hinge"])
def test_gradient_is_autograds(loss: str) -> None:
    """Descent would follow another function than the convex program's network has."""
    generator = np.random.default_rng(0)
    X, y = generator.standard_normal((7, 3)), np.sign(generator.standard_normal(7))
    objective = Network(X, y, 4, 0.3, loss, np.zeros(3))
    weights = objective.start(generator)
    value, gradient = objective(weights)
    w = torch.tensor(weights, requires_grad=True)
    z = (torch.from_numpy(X) @ w[:12].view(4, 3).T).relu() @ w[12:]
    targets = torch.from_numpy(y)
    fit = (z - targets).square().sum() / 2 if loss == "squared" else (1 - targets * z).relu().sum()
    expected = fit + 0.15 * w.square().sum()
    assert value == pytest.approx(expected.item())
    torch.testing.assert_close(torch.from_numpy(gradient), torch.autograd.grad(expected, w)[0])


def test_attack_stays_in_its_box_and_hurts() -> None:
    """The baseline would train on points further away than allowed, or on its own side of the boundary."""
    generator = np.random.default_rng(1)
    X, y, radius = generator.standard_normal((9, 2)), np.sign(generator.standard_normal(9)), np.array([0.2, 0.0])
    attacked, plain = (Network(X, y, 5, 0.1, "hinge", r) for r in (radius, 0 * radius))
    weights = attacked.start(generator)
    moved = attacked._attacked(*attacked.split(weights)) - X
    assert np.abs(moved[:, 0]).max() == pytest.approx(0.2) and (moved[:, 1] == 0).all()
    assert attacked(weights)[0] > plain(weights)[0]


def test_descent_reaches_a_minimum_in_one_neuron() -> None:
    """L-BFGS or Adam would stop short: one positive sample has the soft threshold as its optimum."""
    objective = Network(np.array([[2.0]]), np.array([3.0]), 1, 0.4, "squared", np.zeros(1))
    start = np.array([0.5, 0.5])
    expected = 0.5 * 0.2**2 + 0.4 * 1.4  # v = (2 * 3 - 0.4) / 4
    assert objective(lbfgs(objective, start, 200))[0] == pytest.approx(expected, abs=1e-8)
    assert objective(adam(objective, start, 1500, 0.03))[0] == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("name", ["exact", "breast-cancer", "toy"])
def test_problems(name: str) -> None:
    """Two seeds would share their data, a problem lack its ones, or labels be other than -1 and 1."""
    first, again, other = (load_problem(Streams("p", seed), name, 20) for seed in (0, 0, 1))
    assert torch.equal(first.X, again.X) and not torch.equal(first.X, other.X)
    assert first.X.shape[0] == 20 and bool((first.X[:, -1] == 1).all()) and bool((first.X_test[:, -1] == 1).all())
    assert name == "exact" or set(first.y.tolist()) == set(first.y_test.tolist()) == {-1.0, 1.0}


def test_arms_measure_one_objective() -> None:
    """The program's value and the network's would be on different scales, so that no comparison means anything."""
    streams, base = Streams("p", 0), {"problem": "exact", "samples": 6, "beta": 0.05}
    exact = convex(streams, **base, patterns=0, iters=800, rho=0.3)
    wide = descend(streams, **base, width=20, method="lbfgs", steps=400, restarts=2)
    data = load_problem(streams, "exact", 6)
    model = ConvexReLU(1, 0.05).fit(data.X, data.y)
    assert exact["objective"] <= wide["objective"] + 1e-3 <= model.objective_nonconvex() + 2e-3
    assert wide["objective"] == pytest.approx(exact["objective"], abs=0.02)


def test_all_that_is_compared_gets_as_many_candidates() -> None:
    """One side would be tuned more than the other, or not at all, or an arm be judged on other data."""
    desk = study("desk")
    arms = desk.arms
    tuned = {name: len(arm.tuning()) for name, arm in arms.items() if hasattr(arm, "tuning")}
    judged = {name for expectation in desk.expects for name in expectation.named_arms}
    assert set(tuned.values()) == {5} and {"toy/standard", "toy/robust", "toy/pgd"} <= judged
    assert all("lbfgs" in name or "scp" in name for name in judged - set(tuned)), "only these have nothing to tune"
    for problem in ("exact", "mnist", "breast-cancer", "toy"):
        settings = {(a.describe()["samples"], a.describe()["beta"]) for n, a in arms.items() if n.startswith(problem)}
        assert len(settings) == 1


def test_robust_arm_is_valued_under_attack() -> None:
    """Its penalty would be tuned by clean data, on which adversarial training isn't judged either."""
    toy = {"problem": "toy", "samples": 12, "beta": 0.05, "patterns": 5, "iters": 50, "rho": 0.3, "loss": "hinge"}
    robust = convex(Streams("p", 0), **toy, radius=0.08)
    assert robust["objective"] <= robust["objective_convex"] + 12 * robust["violation"]
    data, eps = load_problem(Streams("p", 0), "toy", 12), torch.tensor([0.08, 0.08, 0.0], dtype=torch.float64)
    model = ConvexReLU(5, 0.05, "hinge", rho=0.3, iters=50, eps_adv=eps, generator=Streams("p", 0).torch("patterns"))
    clean = model.fit(data.X, data.y).objective_nonconvex()
    assert clean + 1e-3 < robust["objective"] and robust["patterns"] == len(model.patterns)
    tuned = convex(Streams("p", 0), **toy, radius=0.08, validation_only=True)
    assert tuned == {"validation_score": -robust["objective"]}
