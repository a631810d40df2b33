"""Equilibrium propagation against autograd through the relaxation and the implicit function theorem."""

from __future__ import annotations

import math
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from assay.errors import InvalidInput
from assay.models._relaxation import Dynamics
from assay.models.mlp import MLP
from assay.models.relaxation_net import RelaxationCNN, RelaxationNet
from assay.rules._responses import circle, linearised
from assay.rules.equilibrium_propagation import EquilibriumPropagation

STEPS = 80


def _generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def _net(**options: object) -> RelaxationNet:
    given = {"width": (7, 6), "gain": 0.5, "steps": STEPS, "damping": 0.8, "generator": _generator()}
    return RelaxationNet((6,), 3, **(given | options)).double()


def _cnn(angle: float) -> RelaxationCNN:
    options = {"gain": 0.5, "steps": 50, "damping": 0.9, "generator": _generator()}
    return RelaxationCNN((1, 6, 6), 3, channels=(2,), feedback_angle=angle, **options).double()


def _batch(net: Dynamics) -> tuple[Tensor, Tensor]:
    return torch.randn(5, *net.input_shape, generator=_generator(1), dtype=torch.float64), torch.arange(5) % 3


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}


def _estimated(net: Dynamics, **options: object) -> dict[str, Tensor]:
    net.zero_grad(set_to_none=True)
    EquilibriumPropagation(net, **({"steps": STEPS} | options)).backward(*_batch(net))
    return _gradients(net)


def _through_time(net: Dynamics, loss: str = "cross-entropy") -> dict[str, Tensor]:
    """Autograd through every step of the relaxation."""
    net.zero_grad(set_to_none=True)
    (x, y), scores = _batch(net), net(_batch(net)[0])
    value = F.cross_entropy(scores, y) if loss == "cross-entropy" else None
    (value if value is not None else (scores - F.one_hot(y, 3)).square().sum() / (2 * len(x))).backward()
    return _gradients(net)


def _assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=1e-6, atol=1e-9, msg=lambda m, n=name: f"{n}: {m}")


@pytest.mark.parametrize(
    ("connections", "readout", "loss"),
    [("layered", True, "cross-entropy"), ("layered", False, "mse"), ("loop", True, "mse")],
)
def test_recurrent_backprop_is_autograd_through_the_relaxation(connections: str, readout: bool, loss: str) -> None:
    """The reference would not be the loss gradient of a settled network, whatever its connections."""
    net = _net(connections=connections, readout=readout)
    _assert_equal(_estimated(net, estimator="recurrent-backprop", loss=loss), _through_time(net, loss))


@pytest.mark.parametrize("net", ["dense", "convolutional"])
def test_symmetric_weights_make_equilibrium_propagation_exact(net: str) -> None:
    """At angle 0 the response to a nudge would not be the backpropagated error."""
    model = _net(feedback_angle=0.0) if net == "dense" else _cnn(0.0)
    expected = _through_time(model)
    _assert_equal(_estimated(model, estimator="linear"), expected)
    six = _estimated(model, points=6, beta=0.05)
    worst = max(float((six[name] - g).abs().max() / g.abs().max()) for name, g in expected.items())
    assert worst < 1e-6


def test_asymmetric_weights_leave_a_bias_that_no_nudge_removes() -> None:
    """With independent feedback hidden groups would get the loss gradient after all: nothing for homeostasis to do."""
    net = _net()
    expected, found = _through_time(net), _estimated(net, estimator="linear")
    assert F.cosine_similarity(expected["entry.weight"].flatten(), found["entry.weight"].flatten(), dim=0) < 0.9
    for name in ("readout.weight", "readout.bias"):
        torch.testing.assert_close(found[name], expected[name])


def test_linear_response_is_the_implicit_functions_derivative() -> None:
    """V would not solve (1 - sigma' W) v = sigma' g, nor delta the transposed system."""
    net = _net(readout=False)
    x, y = _batch(net)
    rule = EquilibriumPropagation(net, loss="mse", estimator="linear", steps=STEPS)
    signals = rule.error_signals(x, y)
    u = net.relax(x, STEPS).state
    s, sizes = net.activate(u), [7, 6, 3]
    flat = torch.cat([v for v in s.values()], 1)
    weight = torch.zeros(16, 16, dtype=torch.float64)
    starts = {"l1": 0, "l2": 7, "out": 13}
    for name, connection in net.connections.items():
        source, target = (starts[g] for g in name.split("-"))
        rows, columns = connection.weight.shape
        weight[target : target + rows, source : source + columns] = connection.weight.detach()
    g = torch.cat([torch.zeros(5, 13, dtype=torch.float64), s["out"] - F.one_hot(y, 3)], 1)
    slope = 4 * flat * (1 - flat)
    for matrix, which in ((weight, 0), (weight.T, 1)):
        system = torch.eye(16, dtype=torch.float64) - slope[:, :, None] * matrix
        expected = torch.linalg.solve(system, slope * g).split(sizes, 1)
        for group, value in zip(signals, expected, strict=True):
            torch.testing.assert_close(signals[group][which], value.detach())


@pytest.mark.parametrize("points", [1, 2, 3, 4])
def test_error_of_n_nudges_falls_with_the_nth_power_of_their_radius(points: int) -> None:
    """The average over the circle would leave a lower-order bias, or conjugate points be counted wrongly."""
    net = _net()
    exact = torch.cat([g.flatten() for g in _estimated(net, points=0).values()])
    errors = []
    for r in (0.05, 0.1):
        found = torch.cat([g.flatten() for g in _estimated(net, points=points, beta=r).values()])
        errors.append(float((found - exact).norm()))
    assert math.log2(errors[1] / errors[0]) == pytest.approx(points, abs=0.3)


@pytest.mark.parametrize("points", [2, 3, 4, 5])
def test_half_the_circle_stands_for_the_whole(points: int) -> None:
    """Nudges beta_k and beta_{N-k} would be counted once or three times."""
    betas, counts = circle(points, 0.3)
    whole = 0.3 * torch.exp(2j * math.pi * torch.arange(points, dtype=torch.float64) / points)
    expected = (torch.exp(whole) / whole).sum() / points
    half = (counts * (torch.exp(betas) / betas)).real.sum() / points
    assert counts.sum() == points and abs(expected.imag) < 1e-15
    assert half.item() == pytest.approx(expected.real.item())


def test_without_feedback_it_is_ordinary_backpropagation_or_nothing() -> None:
    """Recurrent backprop of a feed-forward net would not be backprop; nudges would reach groups that hear nothing."""
    net = _net(connections="feedforward", damping=1.0, steps=4)
    _assert_equal(_estimated(net, estimator="recurrent-backprop", steps=4), _through_time(net))
    silent = _estimated(net, points=2)
    hidden = ("entry.weight", "connections.l1-l2.weight")
    assert all(silent[name].abs().max() < 1e-15 for name in hidden)
    assert silent["connections.l2-out.weight"].abs().max() > 1e-3


def test_linearised_products_are_jvp_and_vjp() -> None:
    """Products with the Jacobian would be transposed, or groups without influence be mixed up."""
    net = _cnn(90.0)
    s = {g: torch.randn(2, *shape, generator=_generator(2), dtype=torch.float64) for g, shape in net.shapes.items()}
    t = {g: v.flip(1) for g, v in s.items()}

    def field(state: dict[str, Tensor]) -> dict[str, Tensor]:
        return net.drive(state, {})

    forward, transposed = linearised(field, s)
    expected = torch.func.jvp(field, (s,), (t,))[1], torch.func.vjp(field, s)[1](t)[0]
    for found, reference in zip((forward(t), transposed(t)), expected, strict=True):
        for g in s:
            torch.testing.assert_close(found[g], reference[g].detach())


def test_homeostasis_adds_the_gradient_of_asymmetry() -> None:
    """Lambda (2 / n) (W_ff - W_fb^T) would not be added to a reciprocal pair, plain decay not to a one-way link."""
    for connections in ("layered", "loop"):
        net = _net(connections=connections)
        exact = {"homeostasis": 3.0, "homeostasis_samples": None, "estimator": "linear"}
        with_it, without = _estimated(net, **exact), _estimated(net, estimator="linear")
        for name, connection in net.connections.items():
            key = f"connections.{name}.weight"
            partner = "-".join(reversed(name.split("-")))
            other = net.connections[partner].weight.T if partner in net.connections else 0.0
            expected = 3.0 * 2 / 16 * (connection.weight - other)
            torch.testing.assert_close(with_it[key] - without[key], expected.detach())
        assert torch.equal(with_it["entry.weight"], without["entry.weight"])


def test_homeostasis_alone_makes_the_estimate_exact() -> None:
    """Descent on the homeostatic loss would not end where equilibrium propagation gives the loss gradient."""
    net = _net()
    before = EquilibriumPropagation(net, steps=STEPS, estimator="linear")
    options = {"estimator": "linear", "homeostasis_samples": None}
    pulled, plain = _estimated(net, homeostasis=1.0, **options), _estimated(net, **options)
    with torch.no_grad():
        for name, p in net.named_parameters():
            p.sub_(16 / 4 * (pulled[name] - plain[name]))  # a step of n / 4 meets a pair in its middle
    _assert_equal(_estimated(net, estimator="linear"), _through_time(net))
    assert all(torch.allclose(*pair, atol=1e-9) for pair in before.error_signals(*_batch(net)).values())


def _saved_bytes(net: Dynamics, **options: object) -> int:
    total = 0

    def pack(tensor: Tensor) -> Tensor:
        nonlocal total
        total += tensor.numel() * tensor.element_size()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        EquilibriumPropagation(net, **options).backward(*_batch(net))
    return total


@pytest.mark.parametrize("options", [{"points": 4}, {"estimator": "linear"}, {"homeostasis": 1.0}])
def test_memory_does_not_grow_with_steps(options: dict) -> None:
    """Steps would keep a graph, as backpropagation through time does."""
    short, long = (_saved_bytes(_net(steps=steps), steps=steps, **options) for steps in (10, 30))
    assert short == long


def test_deep_stacks_settle_and_train() -> None:
    """Sixty-four groups would fail to relax, or get no finite gradient."""
    net = RelaxationNet((6,), 3, width=5, depth=64, gain=0.5, steps=70, generator=_generator())
    rule = EquilibriumPropagation(net, steps=65)
    x, y = (t.to(torch.get_default_dtype()) if t.is_floating_point() else t for t in _batch(net))
    logs = rule.backward(x, y)
    assert logs["residual"] < 1e-3
    assert all(p.grad is not None and p.grad.isfinite().all() for p in rule.trained_parameters())


def test_unsettled_dynamics_are_said_once_with_the_residual() -> None:
    """A network that flips between two states would give scores and gradients that mean nothing, in silence."""
    net = _net(gain=30.0, damping=1.0, steps=20)
    rule = EquilibriumPropagation(net)
    with pytest.warns(UserWarning, match="did not settle: residual") as said:
        logs = rule.backward(*_batch(net))
    assert [str(w.message)[:30] for w in said] == ["the free relaxation (20 steps)", "the nudged relaxation (30 step"]
    assert logs["residual"] > 0.1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        rule.predict(_batch(net)[0])
    with pytest.warns(UserWarning, match="did not settle"):
        EquilibriumPropagation(net).predict(_batch(net)[0])


def test_settled_dynamics_say_nothing() -> None:
    """A warning would come although all is well."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _estimated(_net(), points=4)


def test_head_only_leaves_random_groups_alone() -> None:
    """The control of frozen random blocks would train more than the output group, or with another gradient."""
    net = _net()
    whole = _estimated(net, estimator="recurrent-backprop")
    head = _estimated(net, estimator="recurrent-backprop", trained="head")
    assert head.keys() == {
        f"{name}.{kind}" for name in ("connections.l2-out", "readout") for kind in ("weight", "bias")
    }
    assert all(torch.equal(g, whole[name]) for name, g in head.items())


def test_soft_targets_are_the_labels_they_encode() -> None:
    """Float targets would be scaled otherwise than labels."""
    net = _net()
    x, y = _batch(net)
    by_label = _estimated(net, points=2, loss="mse")
    net.zero_grad(set_to_none=True)
    EquilibriumPropagation(net, steps=STEPS, points=2, loss="mse").backward(x, F.one_hot(y, 3).double())
    _assert_equal(_gradients(net), by_label)


@pytest.mark.parametrize("rows", [[[1.0, 1.0, 0.0], [0.0, 1.0, 1.0], [1.0, 1.0, 1.0]], [[0.25, 0.0, 0.25]] * 3])
def test_targets_that_are_no_distribution_get_the_gradient_of_cross_entropy(rows: list[list[float]]) -> None:
    """Multi-label or weighted targets would be learned with another gradient than the loss that is logged."""
    net, targets = _net(), torch.tensor(rows, dtype=torch.float64)
    x = _batch(net)[0][:3]
    F.cross_entropy(net(x), targets).backward()
    expected = _gradients(net)
    net.zero_grad(set_to_none=True)
    EquilibriumPropagation(net, estimator="recurrent-backprop", steps=STEPS).backward(x, targets)
    _assert_equal(_gradients(net), expected)


@pytest.mark.parametrize(
    "options",
    [
        {"loss": "hinge"},
        {"loss": nn.CrossEntropyLoss(label_smoothing=0.1)},
        {"loss": nn.HuberLoss()},
        {"loss": nn.CrossEntropyLoss(ignore_index=2)},
        {"beta": 0.0},
        {"points": -1},
        {"steps": 0},
        {"estimator": "exact"},
        {"homeostasis": -1.0},
        {"homeostasis_samples": 0},
        {"trained": "none"},
        {"tolerance": 0.0},
        {"model": MLP((6,), 3)},
    ],
)
def test_refuses_what_it_cannot_use_at_once(options: dict) -> None:
    """An unfit model, loss or option would be noticed only in training."""
    with pytest.raises(InvalidInput):
        EquilibriumPropagation(**({"model": _net()} | options))


def test_refuses_labels_that_are_no_class() -> None:
    """A label out of range or of another length would fail deep inside."""
    net = _net()
    x, _ = _batch(net)
    for y in (torch.full((5,), 3), torch.full((5,), -1), torch.zeros(4, dtype=torch.long), torch.zeros(5, 2)):
        with pytest.raises(InvalidInput, match="expected"):
            EquilibriumPropagation(net).backward(x, y)
