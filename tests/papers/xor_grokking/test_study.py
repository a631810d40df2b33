"""What the study of xor-grokking adds of its own: gradient descent in Gram coordinates, and paired arms."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.models.two_layer_relu import TwoLayerReLU
from assay.papers.xor_grokking.gram_descent import GramDescent, LinearDescent
from assay.papers.xor_grokking.study import study, train
from assay.streams import Streams

N, P, M = 20, 50, 8


def _problem(init_std: float) -> tuple[TwoLayerReLU, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    model = TwoLayerReLU((P,), width=M, init_std=init_std, generator=generator).double()
    x, new = (torch.randn(size, P, generator=generator, dtype=torch.float64) for size in (N, 15))
    return model, x, torch.arange(N) % 2, new


def _descent(model: TwoLayerReLU, x: Tensor, y: Tensor, new: Tensor) -> GramDescent:
    return GramDescent(
        model.block1[0].weight.detach().clone(), 2 * model.head.weight[1].detach(), x, 2.0 * y.double() - 1, new
    )


def _sgd(model: nn.Module, x: Tensor, y: Tensor, lr: float, steps: int) -> None:
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()


def test_gram_descent_is_gradient_descent() -> None:
    """The cheap simulation would be an approximation: it must equal torch's SGD through autograd in float64."""
    model, x, y, new = _problem(init_std=0.3)
    descent = _descent(model, x, y, new)
    _sgd(model, x, y, lr=0.7, steps=10)
    for _ in range(10):
        descent.step(0.7)
    with torch.no_grad():
        assert torch.allclose(descent.weight(), model.block1[0].weight, rtol=0, atol=1e-10)
        for found, points in ((descent.values(), x), (descent.test_values(), new)):
            assert torch.allclose(found, model(points).diff(dim=1)[:, 0], rtol=0, atol=1e-10)


def test_linear_descent_is_logistic_regression_from_zero() -> None:
    """The baseline would be handicapped by another loss or step."""
    _, x, y, new = _problem(1.0)
    descent = LinearDescent(x, 2.0 * y.double() - 1, new)
    w = torch.zeros(P, dtype=torch.float64, requires_grad=True)
    for _ in range(10):
        descent.step(0.3)
        (gradient,) = torch.autograd.grad(F.softplus(-(2 * y - 1) * (x @ w)).mean(), w)
        w = (w - 0.3 * gradient).detach().requires_grad_()
    assert torch.allclose(descent.test_values(), new @ w, rtol=0, atol=1e-10)


def test_the_first_step_is_the_papers_closed_form() -> None:
    """With f(0) = 0 the step of w_j is lr a_j / (2 n) times the sum of y_i x_i over the samples that activate it."""
    model, x, y, new = _problem(init_std=1e-9)
    start, a = model.block1[0].weight.detach().clone(), 2 * model.head.weight[1].detach()
    descent = _descent(model, x, y, new)
    descent.step(0.5)
    for j in range(M):
        expected = sum((2 * int(y[i]) - 1) * x[i] for i in range(N) if start[j] @ x[i] > 0) * 0.5 * a[j] / (2 * N)
        assert torch.allclose(descent.weight()[j] - start[j], expected, rtol=1e-6, atol=1e-9)


def test_flipping_labels_and_signs_together_changes_nothing() -> None:
    """The two classes would not be treated alike."""
    model, x, y, new = _problem(init_std=0.1)
    first = _descent(model, x, y, new)
    second = GramDescent(first.start, -first.signs, x, -first.labels, new)
    for descent in (first, second):
        for _ in range(5):
            descent.step(0.5)
    assert torch.allclose(first.test_values(), -second.test_values(), rtol=0, atol=1e-12)


def _tiny(**changes: object) -> dict[str, object]:
    return (
        dict(study("smoke").arms["relu"].arguments)
        | {"features": 2000, "samples": 100, "late": 2, "steps": 4}
        | changes
    )  # type: ignore[attr-defined]


def test_without_a_signal_the_test_error_stays_at_one_half() -> None:
    """Test labels would leak into training."""
    record = train(Streams("t", 0), **_tiny(squared_mu=1e-12, test=3000))  # type: ignore[arg-type]
    assert record.metrics["test_accuracy_late"] == pytest.approx(0.5, abs=0.04)


def test_arms_of_a_seed_share_their_data() -> None:
    """The linear classifier would be compared on other clusters."""
    relu, linear = (train(Streams("t", 1), **_tiny(kind=kind, lr=1e-3)) for kind in ("relu", "linear"))  # type: ignore[arg-type]
    for record in (relu, linear):
        assert {"train_accuracy", "test_accuracy", "linear_agreement"} <= set(record.series)
    # After one small step both networks are (nearly) the same linear function of the same data.
    assert linear.metrics["linear_agreement_first"] == 1.0
    assert relu.metrics["test_accuracy_first"] == pytest.approx(linear.metrics["test_accuracy_first"], abs=0.1)


@pytest.mark.parametrize("scale", ["smoke", "desk", "paper"])
def test_arms_differ_in_what_they_are_named_for_only(scale: str) -> None:
    """An arm would win by other data, flips or steps; initial weights would not be tiny against the first update."""
    arms = {name: dict(arm.arguments) for name, arm in study(scale).arms.items()}  # type: ignore[attr-defined]
    relu = arms["relu"]
    differ = {name: {k for k in relu if a.get(k) != relu[k]} for name, a in arms.items()}
    assert differ["linear"] == {"kind", "width", "init_std"}
    assert differ["initial-1e-3"] == differ["initial-5e-3"] == {"init_std"}
    assert differ["few-features"] == {"features", "lr", "init_std"}
    # <w_j, x_i> starts at about omega sqrt(p), and the first step moves it by about lr p / (2 n sqrt(m)).
    first_move = relu["lr"] * relu["features"] / (2 * relu["samples"] * math.sqrt(relu["width"]))
    assert relu["init_std"] * math.sqrt(relu["features"]) < 1e-3 * first_move
